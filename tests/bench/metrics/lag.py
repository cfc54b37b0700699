# SPDX-License-Identifier: GPL-2.0-or-later
"""How soon memory is back at the host, and what that costs.

A guest frees memory all at once. The lag is the time from when it begins to free until 50,
90 and 99 % of the memory is back. Meanwhile we count notifications, interrupts, discards
and the processor time of QEMU's threads other than the vCPUs.
"""

import time
from collections.abc import Iterator

import toucher
from arms import Arm, BenchGuest
from freehint_vm import MIB
from plan import Case, Metric, Outcome, Values

MEMORY_MIB = 2048
EVERY = (
    *("off", "off-again", "balloon", "balloon-100ms"),
    *("freehint", "freehint-drop", "freehint-lazy"),
)
PARTS = (50, 90, 99)
# Longer than a reuse window, after which an allocation does not count as reuse, and than the
# next one, which the gauge of reuse covers as well.
REST = 11.0
# How long to watch memory come back, in seconds. We stop earlier if most is back and nothing
# has come for a while. And how long to watch if nothing should come.
WATCH, WATCH_SMOKE = 20.0, 3.0
WATCH_OFF = 3.0
QUIET = 5.0
# Balloon reporting soon reports all of a small guest that has just booted.
MEMORY_SMOKE_MIB = 512
SERIES_STEP = 0.1


def cases(scale: str) -> list[Case]:
    if scale == "smoke":
        sizes = [{"mib": 256, "huge": True}]
        params = {"memory_mib": MEMORY_SMOKE_MIB, "sizes": sizes, "watch_s": WATCH_SMOKE}
        return [Case(params, ("off", "balloon", "freehint"))]
    sizes = [{"mib": mib, "huge": True} for mib in (256, 1024, MEMORY_MIB * 3 // 4)]
    sizes.append({"mib": 1024, "huge": False})
    if scale == "quick":
        sizes = sizes[1:2]
    params = {"memory_mib": MEMORY_MIB, "sizes": sizes, "watch_s": WATCH}
    return [Case(params, EVERY, reps=3 if scale == "full" else 1)]


def measure(arm: Arm, params: Values) -> Iterator[Outcome]:
    """One boot for all sizes; the guest rests between them, so no history is left."""
    with BenchGuest(arm, memory_mib=params["memory_mib"], trace=True) as vm:
        vm.rest(quiet=1.0 if arm.reporter == "none" else 3.0)
        for index, size in enumerate(params["sizes"]):
            if index:
                rest(vm)
            yield measure_size(vm, size, params["watch_s"])


def rest(vm: BenchGuest) -> None:
    vm.rest()
    if vm.arm.reporter == "freehint":
        time.sleep(REST)


def measure_size(vm: BenchGuest, size: Values, watch: float) -> Outcome:
    command = f"toucher -m {size['mib']}" + " -t" * size["huge"]
    before, calls = vm.resident.now(), vm.discard_calls()
    result = vm.run(command)
    cycle = toucher.parse(result.output).cycles[0]
    begin = vm.agent.host_time(cycle.free_ms)
    used = max(s.kept() for s in vm.resident.since(result.started))
    cpu, cpu_since = vm.cpu.read(), time.monotonic()

    if vm.arm.reporter == "none":
        watch = WATCH_OFF
    limits = {part: used - part / 100 * size["mib"] * MIB for part in PARTS}
    while time.monotonic() < begin + watch and vm.resident.now() > limits[99]:
        if vm.resident.now() <= limits[90] and unchanged(vm, QUIET):
            break
        time.sleep(0.05)
    # Include what follows right after.
    time.sleep(0.5)
    end = time.monotonic()
    spent = vm.cpu.read() - cpu
    lags = {f"t{part}": lag(vm, begin, limits[part]) for part in PARTS}
    return Outcome(
        params=size,
        values=lags
        | {
            "used": used - before,
            "returned": used - vm.resident.now(),
            "free_s": cycle.free_ns / 1e9,
            "cpu_ns": spent.others,
            "cpu_s": end - cpu_since,
            "runs": free_runs(vm),
        }
        | counts(vm, begin, end, calls),
        guest=command,
        qemu=vm.command(),
        series={"kept_mib": series(vm, begin, end)},
    )


def unchanged(vm: BenchGuest, seconds: float) -> bool:
    sizes = [s.kept() for s in vm.resident.since(time.monotonic() - seconds)]
    return max(sizes) - min(sizes) < MIB


def lag(vm: BenchGuest, begin: float, limit: float) -> float | None:
    for sample in vm.resident.since(begin):
        if sample.kept() <= limit:
            return sample.when - begin
    return None


def counts(vm: BenchGuest, begin: float, end: float, calls: int | None) -> Values:
    assert vm.host_trace
    reports = vm.host_trace.reports(begin, end)
    values: Values = {
        "notifications": reports.notifications,
        "interrupts": reports.interrupts,
        "discard_calls": reports.discard_calls,
    }
    # Lazy discards, and several in one call, are not in the trace, so use the device's
    # counter, read when the guest was at rest. On a busy host all may be discarded before
    # we learn that freeing has ended.
    after = vm.discard_calls()
    if calls is not None and after is not None:
        values["discard_calls"] = after - calls
    return values


def free_runs(vm: BenchGuest) -> int:
    """The number of pieces that the guest's free memory is in."""
    return int(vm.check("freewatch runs").split()[1])


def series(vm: BenchGuest, begin: float, end: float) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for sample in vm.resident.since(begin - 1, end):
        when = sample.when - begin
        if not points or when >= points[-1][0] + SERIES_STEP:
            points.append((round(when, 2), round(sample.kept() / MIB, 1)))
    return points


METRIC = Metric("lag", "Reclaim lag and its price", cases, measure)
