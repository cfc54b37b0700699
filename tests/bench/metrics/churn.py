# SPDX-License-Identifier: GPL-2.0-or-later
"""What giving memory back costs a guest that uses it again.

Loops allocate, touch and free: with pauses, and without pauses on one thread and on every
vCPU. Bytes refaulted are those that the host had to populate again, after a warm-up in
which an arm may learn.

If the host is a virtual machine itself, the host below it may have taken the freed memory,
which is then slow to come back. So times are measured with the guest's RAM in a pool of
huge pages, which stays where it is. Lazy discards exist for anonymous memory only, and are
compared with "off" on that.
"""

import statistics
from collections.abc import Iterator

import toucher
from arms import Arm, BenchGuest
from hugepool import HugePool
from freehint_vm import MIB
from plan import Case, Metric, Outcome, Values

MEMORY_MIB = 1280
CHURN_MIB = 512
FAULT_MIB = 128
VCPUS = 2
POOLED = ("off", "off-again", "balloon", "balloon-100ms", "freehint", "freehint-20ms")
ANONYMOUS = ("off", "off-again", "freehint", "freehint-lazy")
# A lazy discard costs something when the memory is used again, not while it rests.
LAZY_PAUSE_MS = 500


def loops(scale: str) -> list[tuple[Values, int]]:
    """Loops, with the cycles of their warm-up, and the number of samples of each."""
    churn = [
        ({"pause_ms": 0, "warm_up": 8, "seconds": 5}, 5),
        ({"pause_ms": 500, "warm_up": 6, "cycles": 12}, 3),
        ({"pause_ms": 3000, "warm_up": 6, "cycles": 4}, 3),
        ({"pause_ms": 10000, "warm_up": 1, "cycles": 2}, 3),
    ]
    churn = [({"mib": CHURN_MIB} | loop, reps) for loop, reps in churn]
    fault = [
        ({"mib": FAULT_MIB, "threads": n, "warm_up": 10, "seconds": 5}, 5)
        for n in (1, VCPUS)
    ]
    if scale == "quick":
        return [(loop, 1) for loop, _ in (churn[1], fault[0])]
    return churn + fault


def cases(scale: str) -> list[Case]:
    if scale == "smoke":
        # An arm that hints lazily may have nothing faulted in again. In each pause, memory
        # settles on a busy host as well.
        loop = {"mib": 128, "pause_ms": 3000, "warm_up": 1, "cycles": 3}
        return [Case({"backing": "anon"} | loop, ("off", "freehint-drop"))]
    backings = {"hugetlb": POOLED, "anon": ANONYMOUS}
    return [
        Case({"backing": backing} | loop, arms, reps)
        for backing, arms in backings.items()
        for loop, reps in loops(scale)
        if backing == "hugetlb" or loop.get("pause_ms", 0) <= LAZY_PAUSE_MS
    ]


def measure(arm: Arm, params: Values) -> Iterator[Outcome]:
    """Each loop has its own guest, so none learns from another."""
    with HugePool(MEMORY_MIB if params["backing"] == "hugetlb" else 0):
        yield measure_loop(arm, params)


def command_of(loop: Values) -> str:
    """The command for a loop, by cycles or seconds; the warm-up is a separate run."""
    command = f"toucher -t -m {loop['mib']}"
    command += f" -j {loop['threads']}" if "threads" in loop else ""
    return command + (f" -p {loop['pause_ms']}" if loop.get("pause_ms") else "")


def measure_loop(arm: Arm, loop: Values) -> Outcome:
    command = command_of(loop)
    for unit, option in (("cycles", "n"), ("seconds", "s")):
        main = f"{command} -{option} {loop[unit]}" if unit in loop else ""
        if main:
            break
    with BenchGuest(
        arm, memory_mib=MEMORY_MIB, cpus=VCPUS, backing=loop["backing"], trace=True
    ) as vm:
        vm.rest(quiet=1.0)
        vm.check(f"{command} -n {loop['warm_up']}", timeout=300)
        faults = vm.cpu.read().faults
        result = vm.run(main, timeout=300)
        assert vm.host_trace
        run = toucher.parse(result.output)
        grown = vm.resident.grown(result.started, result.ended)
        reports = vm.host_trace.reports(result.started, result.ended)
        busy = sum(c.touch_ns + c.free_ns for c in run.cycles)
        return Outcome(
            params=loop,
            values={
                "rate": run.bytes / MIB / (run.ns / 1e9),
                "busy_rate": run.bytes / MIB / (busy / 1e9),
                "cycle_ms": statistics.median(c.touch_ns for c in run.cycles) / 1e6,
                "touched": run.bytes,
                "refaulted": grown,
                "faults": vm.cpu.read().faults - faults,
                "discarded": reports.discarded,
                "notifications": reports.notifications,
                "age_ms": age(vm),
            },
            guest=f"{command} -n {loop['warm_up']}; {main}",
            qemu=vm.command(),
        )


def age(vm: BenchGuest) -> int | None:
    """How long memory rests before it is hinted, as the guest has learned."""
    if vm.arm.reporter != "freehint":
        return None
    return int(vm.check("cat /sys/bus/virtio/drivers/virtio_freehint/*/freehint/age_ms"))


METRIC = Metric("churn", "Churn", cases, measure)
