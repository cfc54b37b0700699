# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo: a guest uses 1 GiB and frees it, and we watch the host's memory.

It is our guest, or with --image one that boots a disk image of the user's.
"""

import argparse
import dataclasses
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests" / "functional"))

from accel import chosen  # noqa: E402
from freehint_vm import BUILD, MIB, FreehintVM, GuestError, Sample  # noqa: E402
from image_vm import BY_HAND, QEMU, ImageVM  # noqa: E402

MEMORY_MIB = 1536
# The programs that use 1 GiB: in our guest, and in one that may have no memhog.
MEMHOG, TOUCHER = "memhog 1g", "toucher -t -m 1024"
TICK_IN_USE, TICK_AFTER = 0.5, 0.25
BAR_WIDTH = 36
# How long to watch memory come back: balloon reporting takes longer.
WATCH = {"freehint": 3.0, "balloon": 33.0}
WATCH_IMAGE = 5.0
TITLES = {"freehint": "virtio-freehint", "balloon": "balloon free page reporting"}
FULL, EMPTY = ("█", "·") if (sys.stdout.encoding or "").startswith("utf") else "#."


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a run; sizes are bytes, times are seconds after the program's end."""

    reporter: str
    hog: str
    watched: float
    before: int
    peak: int
    second: int
    after: int
    lag90: float | None
    samples: list[Sample]
    ended: float
    # query-freehint's answers before and after, if there is the device.
    answers: list[dict[str, Any]]


def mib(size: int | None) -> str:
    return f"{size / MIB:5.0f} MiB" if size is not None else "        ?"


class LiveView:
    """Prints a line per tick: QEMU's memory, the guest's free memory, and the counters."""

    def __init__(self, vm: FreehintVM) -> None:
        self._vm = vm
        self._start = time.monotonic()
        self._full = max(MEMORY_MIB * MIB, vm.memory.now().rss + (1 << 30))
        print("   time   QEMU's memory" + " " * (BAR_WIDTH - 2), end="")
        print("  guest free   hints  discarded")

    def note(self, text: str) -> None:
        print(f"{self._time():6.1f} s  -- {text}", flush=True)

    def tick(self) -> None:
        sample = self._vm.memory.now()
        filled = min(BAR_WIDTH, round(sample.rss * BAR_WIDTH / self._full))
        bar = FULL * filled + EMPTY * (BAR_WIDTH - filled)
        print(
            f"{self._time():6.1f} s  {mib(sample.rss)}  {bar}  {mib(sample.free)}"
            f"  {self._told()}",
            flush=True,
        )

    def _time(self) -> float:
        return time.monotonic() - self._start

    def _told(self) -> str:
        if self._vm.reporter != "freehint":
            return "    -          -"
        stats = self._vm.query()["stats"]
        return f"{stats['hints']:5}  {mib(stats['discarded']['bytes'])}"


def run_ours(reporter: str, accel: str) -> Outcome:
    print(f"\nBooting a guest of {MEMORY_MIB} MiB under {accel.upper()}, {TITLES[reporter]}")
    with FreehintVM(
        reporter, memory_mib=MEMORY_MIB, accel=accel, qemu=QEMU, compacts=True
    ) as vm:
        # Balloon reporting waits for two seconds after each event.
        vm.settle(quiet=4 if reporter == "balloon" else 1.5)
        return watch(vm, MEMHOG, WATCH[reporter])


def run_image(image: Path, form: str, accel: str, patience: float) -> Outcome:
    vm = ImageVM(image, form, memory_mib=MEMORY_MIB, accel=accel, patience=patience)
    print(f"\nBooting {image} with {MEMORY_MIB} MiB under {accel.upper()}. What the guest")
    print("writes is forgotten at the end. cloud-init does the rest; where there is none,")
    print(f"type as root on its console (socat -,raw,echo=0,escape=0x1d unix:{vm.terminal}):")
    print(f"\n  {BY_HAND}\n", flush=True)
    with vm:
        print("The guest is up, and gets the driver", flush=True)
        vm.load_driver()
        vm.settle(quiet=1.5, timeout=300)
        return watch(vm, f"/mnt/{TOUCHER}", WATCH_IMAGE)


def watch(vm: FreehintVM, hog: str, after: float) -> Outcome:
    """Run a program that uses memory, and watch until a while after its end."""
    name = Path(hog.split()[0]).name
    view = LiveView(vm)
    view.tick()
    before = vm.memory.now().rss
    answers = ask(vm)
    view.note(f"the guest runs {hog}")
    running = vm.start(hog)
    while not running.done.wait(TICK_IN_USE):
        view.tick()
    result = vm.finish(running)
    if result.status:
        raise GuestError(f"{hog} has status {result.status}: {result.output}")
    view.note(f"{name} has ended, its memory is free")
    while time.monotonic() < result.ended + after:
        view.tick()
        time.sleep(TICK_AFTER)
    peak, since, lag90 = summarize(before, vm.memory.since(result.started), result.ended)
    return Outcome(
        reporter=vm.reporter,
        hog=name,
        watched=after,
        before=before,
        peak=peak,
        second=[s.rss for s in since if s.when <= result.ended + 1][-1],
        after=since[-1].rss,
        lag90=lag90,
        samples=since,
        ended=result.ended,
        answers=answers + ask(vm),
    )


def ask(vm: FreehintVM) -> list[dict[str, Any]]:
    return [vm.query()] if vm.reporter == "freehint" else []


def summarize(
    before: int, during: list[Sample], ended: float
) -> tuple[int, list[Sample], float | None]:
    """The peak, the samples after the end, and the time when 90 % was back."""
    peak = max(sample.rss for sample in during)
    limit = peak - 0.9 * (peak - before)
    since = [sample for sample in during if sample.when >= ended]
    lags = (s.when - ended for s in since if s.rss <= limit)
    return peak, since, next(lags, None)


def calls(outcome: Outcome) -> str:
    if not outcome.answers:
        return "not counted there"
    before, after = (answer["stats"] for answer in outcome.answers)
    used, hints = (after[n] - before[n] for n in ("discard-calls", "hints"))
    return f"{used}, for {hints} hints"


def lag90(outcome: Outcome) -> str:
    if outcome.lag90 is None:
        return f"not within {outcome.watched:.0f} s"
    return f"{outcome.lag90:.2f} s"


def print_summary(outcomes: list[Outcome]) -> None:
    hog = outcomes[0].hog
    rows = {
        "": [TITLES[o.reporter] for o in outcomes],
        f"before {hog}": [mib(o.before).strip() for o in outcomes],
        "peak": [mib(o.peak).strip() for o in outcomes],
        f"1 s after {hog}'s end": [mib(o.second).strip() for o in outcomes],
        "at the end": [mib(o.after).strip() for o in outcomes],
        "90 % back after": [lag90(o) for o in outcomes],
        "discard calls": [calls(o) for o in outcomes],
    }
    print("\nQEMU's memory on the host")
    for title, cells in rows.items():
        print(f"  {title:26}" + "".join(f"{cell:30}" for cell in cells).rstrip())


def print_comparison(outcomes: list[Outcome]) -> None:
    """The runs beside each other, at the same times after memhog's end."""
    print("\nQEMU's memory, seconds after memhog's end")
    for moment in (0, 0.25, 0.5, 1, 2, 4, 8, 16, 32):
        cells = []
        for outcome in outcomes:
            when = outcome.ended + moment
            known = [s.rss for s in outcome.samples if s.when <= when]
            rss = known[-1] if known else outcome.samples[0].rss
            cells.append(f"{mib(rss)} {FULL * round(rss / MIB * 16 / MEMORY_MIB)}")
        print(f"  {moment:6} s  " + "".join(f"{cell:30}" for cell in cells).rstrip())


def answer_text(answer: dict[str, Any]) -> str:
    """JSON, with each pair of counts on one line."""
    text = json.dumps(answer, indent=2, sort_keys=True)
    pair = r'\{\s+("bytes": \d+),\s+("ranges": \d+)\s+\}'
    return re.sub(pair, r"{ \1, \2 }", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--format", default="qcow2")
    parser.add_argument("--patience", type=float, default=600)
    args = parser.parse_args()
    accel = chosen(BUILD, QEMU.parent.name)
    if args.image:
        outcomes = [run_image(args.image, args.format, accel, args.patience)]
    else:
        reporters = ["freehint"] + ["balloon"] * args.compare
        outcomes = [run_ours(reporter, accel) for reporter in reporters]
    if args.compare:
        print_comparison(outcomes)
    print_summary(outcomes)
    print("\nThe device's own account since boot, query-freehint:")
    print(answer_text(outcomes[0].answers[-1]))


if __name__ == "__main__":
    try:
        main()
    except GuestError as error:
        sys.exit(f"demo: error: {error}")
