# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that do not fit together: time, swapping, and how many of them fit.

Four guests of 1 GiB are in a memory cgroup that cannot hold them all, with a swap file. Each
in turn uses most of its memory, and the next one starts the moment that the one before has
freed it. This is the experiment of the first patches for free page reporting, scaled. The
fast toucher uses huge pages, in three rounds, with a limit that leaves room for little more
than one guest. Then guests are started one by one, and each uses its memory once, until
something is swapped out or killed.
"""

import contextlib
import time
from collections.abc import Iterator

from arms import Arm, BenchGuest
from freehint_vm import BUILD
from memcg import MemoryCgroup, swap_traffic, unavailable
from plan import Case, Metric, Outcome, Values

MEMORY_MIB = 1024
SWAP_MIB = 4096
GUESTS = 4
MOST_GUESTS = 12
# Long enough to see that an arm will not finish.
TIMEOUT = 150.0
ARMS = (
    *("off", "balloon", "balloon-100ms"),
    *("freehint", "freehint-drop", "freehint-20ms", "freehint-lazy"),
)

MEMHOG = {"kind": "turns", "command": "memhog 850m", "rounds": 1, "limit_mib": 2600}
TOUCHER = {
    "kind": "turns",
    "command": "toucher -t -m 850",
    "rounds": 3,
    "limit_mib": 1500,
}
FIT = {"kind": "fit", "command": "toucher -t -m 850", "limit_mib": 2600}


def cases(scale: str) -> list[Case]:
    if scale == "smoke":
        return []
    if scale == "quick":
        return [Case(TOUCHER | {"rounds": 1}, ("balloon", "freehint"))]
    return [Case(kind, ARMS, reps=3) for kind in (MEMHOG, TOUCHER, FIT)]


def measure(arm: Arm, params: Values) -> Iterator[Outcome]:
    swap = BUILD / "bench" / "swap"
    swap.parent.mkdir(exist_ok=True)
    with MemoryCgroup(params["limit_mib"], SWAP_MIB, swap) as group:
        if params["kind"] == "fit":
            yield measure_fit(arm, params, group)
        else:
            yield measure_turns(arm, params, group)


def boot(arm: Arm, group: MemoryCgroup) -> BenchGuest:
    return BenchGuest(arm, memory_mib=MEMORY_MIB, wrapper=group.wrapper())


def measure_turns(arm: Arm, params: Values, group: MemoryCgroup) -> Outcome:
    command = params["command"]
    with contextlib.ExitStack() as stack:
        vms = [stack.enter_context(boot(arm, group)) for _ in range(GUESTS)]
        for vm in vms:
            vm.rest(quiet=1.0)
        out, into = swap_traffic()
        begin = time.monotonic()
        took = []
        for vm in vms * params["rounds"]:
            left = begin + TIMEOUT - time.monotonic()
            if left < 1:
                break
            started = time.monotonic()
            entry = vm.start(command)
            if not entry.done.wait(left):
                break
            vm.finish(entry)
            took.append(time.monotonic() - started)
        seconds = time.monotonic() - begin
        after_out, after_into = swap_traffic()
        qemu = vms[0].command()
        peak, kills = group.peak(), group.oom_kills()
    turns = GUESTS * params["rounds"]
    return Outcome(
        params=params,
        values={
            "seconds": seconds if len(took) == turns else None,
            "turns": len(took),
            "worst_s": max(took, default=None),
            "swapped_out": after_out - out,
            "swapped_in": after_into - into,
            "peak": peak,
            "oom_kills": kills,
        },
        guest=command,
        qemu=qemu,
        series={"turn_s": [round(t, 2) for t in took]},
    )


def measure_fit(arm: Arm, params: Values, group: MemoryCgroup) -> Outcome:
    """The number of guests that had their turn before anything was swapped out."""
    fit, qemu = 0, ""
    with contextlib.ExitStack() as stack:
        while fit < MOST_GUESTS:
            vm = stack.enter_context(boot(arm, group))
            qemu = qemu or vm.command()
            vm.check(params["command"])
            if group.swapped() or group.oom_kills():
                break
            fit += 1
        values = {"guests": fit, "peak": group.peak(), "oom_kills": group.oom_kills()}
    return Outcome(params, values, guest=params["command"], qemu=qemu)


METRIC = Metric("overcommit", "Overcommit", cases, measure, unavailable)
