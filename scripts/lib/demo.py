# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's run: a guest uses 1 GiB and frees it; the host's memory, live."""

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

MEMORY_MIB = 1536
MEMHOG = "memhog 1g"
TICK_IN_USE, TICK_AFTER = 0.5, 0.25
BAR_WIDTH = 36
# How long to look at what comes back: reporting takes its time.
WATCH = {"freehint": 3.0, "balloon": 33.0}
TITLES = {"freehint": "virtio-freehint", "balloon": "balloon free page reporting"}
FULL, EMPTY = ("█", "·") if (sys.stdout.encoding or "").startswith("utf") else "#."


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run came to; sizes are bytes, times seconds after memhog's end."""

    reporter: str
    before: int
    peak: int
    second: int
    after: int
    lag90: float | None
    samples: list[Sample]
    ended: float
    # query-freehint's answer before and after, where there is the device.
    answers: list[dict[str, Any]]


def mib(size: int | None) -> str:
    return f"{size / MIB:5.0f} MiB" if size is not None else "        ?"


class LiveView:
    """A line a tick: how much memory QEMU has, the guest has, and was told of."""

    def __init__(self, vm: FreehintVM) -> None:
        self._vm = vm
        self._start = time.monotonic()
        print("   time   QEMU's memory" + " " * (BAR_WIDTH - 2), end="")
        print("  guest free   hints  discarded")

    def note(self, text: str) -> None:
        print(f"{self._time():6.1f} s  -- {text}", flush=True)

    def tick(self) -> None:
        sample = self._vm.memory.now()
        filled = min(BAR_WIDTH, round(sample.rss / MIB * BAR_WIDTH / MEMORY_MIB))
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


def run(reporter: str) -> Outcome:
    accel = chosen(BUILD).upper()
    print(f"\nBooting a guest of {MEMORY_MIB} MiB under {accel}, {TITLES[reporter]}")
    with FreehintVM(reporter, memory_mib=MEMORY_MIB) as vm:
        # Reporting does nothing for two seconds after anything happened.
        vm.settle(quiet=4 if reporter == "balloon" else 1.5)
        view = LiveView(vm)
        view.tick()
        before = vm.memory.now().rss
        answers = ask(vm)
        view.note(f"the guest runs {MEMHOG}")
        memhog = vm.start(MEMHOG)
        while not memhog.done.wait(TICK_IN_USE):
            view.tick()
        result = vm.finish(memhog)
        if result.status:
            raise GuestError(f"{MEMHOG} has status {result.status}: {result.output}")
        view.note("memhog has ended, its memory is free")
        while time.monotonic() < result.ended + WATCH[reporter]:
            view.tick()
            time.sleep(TICK_AFTER)
        during = vm.memory.since(result.started)
        return summarize(reporter, before, during, result.ended, answers + ask(vm))


def ask(vm: FreehintVM) -> list[dict[str, Any]]:
    return [vm.query()] if vm.reporter == "freehint" else []


def summarize(
    reporter: str,
    before: int,
    during: list[Sample],
    ended: float,
    answers: list[dict[str, Any]],
) -> Outcome:
    peak = max(sample.rss for sample in during)
    limit = peak - 0.9 * (peak - before)
    since = [sample for sample in during if sample.when >= ended]
    lags = (s.when - ended for s in since if s.rss <= limit)
    second = [s.rss for s in since if s.when <= ended + 1][-1]
    return Outcome(
        reporter=reporter,
        before=before,
        peak=peak,
        second=second,
        after=since[-1].rss,
        lag90=next(lags, None),
        samples=since,
        ended=ended,
        answers=answers,
    )


def calls(outcome: Outcome) -> str:
    if not outcome.answers:
        return "not counted there"
    before, after = (answer["stats"] for answer in outcome.answers)
    used, hints = (after[n] - before[n] for n in ("discard-calls", "hints"))
    return f"{used}, for {hints} hints"


def lag90(outcome: Outcome) -> str:
    if outcome.lag90 is None:
        return f"not within {WATCH[outcome.reporter]:.0f} s"
    return f"{outcome.lag90:.2f} s"


def print_summary(outcomes: list[Outcome]) -> None:
    rows = {
        "": [TITLES[o.reporter] for o in outcomes],
        "before memhog": [mib(o.before).strip() for o in outcomes],
        "peak": [mib(o.peak).strip() for o in outcomes],
        "1 s after memhog's end": [mib(o.second).strip() for o in outcomes],
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
    args = parser.parse_args()
    outcomes = [run(r) for r in (["freehint"] + ["balloon"] * args.compare)]
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
