# SPDX-License-Identifier: GPL-2.0-or-later
"""How much memory the host spends on a guest that works, frees, and idles for a while.

And its lower bound: QEMU needs at least the memory that the guest uses, and that which is
free in pieces too small to be hinted.
"""

from collections.abc import Iterator

import toucher
from arms import Arm, BenchGuest
from curves import Curve, area, thin
from freehint_vm import MIB
from plan import Case, Metric, Outcome, Values

MEMORY_MIB = 2048
USED_MIB = MEMORY_MIB * 3 // 4
KEEP_MS = 2000
REPORTERS = ("balloon", "balloon-100ms", "freehint", "freehint-lazy")
# Cycles by how long the guest idles, in seconds.
CYCLES = {1: 5, 5: 3, 15: 2, 60: 1}
WATCH_MS = 200


def cases(scale: str) -> list[Case]:
    if scale == "smoke":
        return []
    reference = Case({"idle_s": 5, "cycles": CYCLES[5]}, ("off",))
    if scale == "quick":
        return [reference, Case({"idle_s": 5, "cycles": 2}, ("balloon", "freehint"))]
    idles = CYCLES.items()
    return [reference, *(Case({"idle_s": i, "cycles": n}, REPORTERS, 3) for i, n in idles)]


def measure(arm: Arm, params: Values) -> Iterator[Outcome]:
    idle, cycles = params["idle_s"], params["cycles"]
    command = f"toucher -m {USED_MIB} -t -n {cycles} -k {KEEP_MS} -p {idle * 1000}"
    with BenchGuest(arm, memory_mib=MEMORY_MIB, trace=True) as vm:
        own = vm.rest() - bound(vm, vm.check(f"freewatch {WATCH_MS} 1"))[-1][1]
        watch = vm.start(f"freewatch {WATCH_MS} {600}")
        result = vm.run(command, timeout=600)
        toucher.parse(result.output)
        begin, end = result.started, result.ended
        limits = [(t, b + own) for t, b in bound(vm, "\n".join(watch.lines))]
        kept = [(s.when, s.kept()) for s in vm.resident.since(begin, end)]
        values = {
            "mean": mean(kept, begin, end),
            "bound": mean(limits, begin, end),
            "seconds": end - begin,
            "own": own,
            "provisioned": MEMORY_MIB * MIB + own,
        }
        yield Outcome(
            params=params,
            values=values,
            guest=command,
            qemu=vm.command(),
            series={
                "kept_mib": thin(kept, begin, 0.25),
                "bound_mib": thin(limits, begin, 0.25),
            },
        )


def bound(vm: BenchGuest, output: str) -> Curve:
    """The guest's memory that is not free in blocks of 2 MiB or more."""
    points = []
    for line in output.splitlines():
        _, now, _, blocks = line.split()
        used = MEMORY_MIB * MIB - int(blocks)
        points.append((vm.agent.host_time(int(now)), used))
    return points


def mean(curve: Curve, begin: float, end: float) -> float:
    return area(curve, begin, end) / (end - begin)


METRIC = Metric("footprint", "Footprint over time", cases, measure)
