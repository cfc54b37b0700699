# SPDX-License-Identifier: GPL-2.0-or-later
"""How long single allocations take while memory is nearly full and hints run.

The guest's RAM is in a pool of huge pages; churn.py says why.
"""

from collections.abc import Iterator

from arms import Arm, BenchGuest
from hugepool import HugePool
from plan import Case, Metric, Outcome, Values

MEMORY_MIB = 1024
ARMS = ("off", "off-again", "balloon", "balloon-100ms", "freehint")
COMMAND = "alloctail -l 192 -c 64 -p 250"


def cases(scale: str) -> list[Case]:
    if scale == "smoke":
        return []
    reps = 5 if scale == "full" else 1
    return [Case({"seconds": 10}, ARMS, reps)]


def measure(arm: Arm, params: Values) -> Iterator[Outcome]:
    command = f"{COMMAND} -s {params['seconds']}"
    with HugePool(MEMORY_MIB), BenchGuest(
        arm, memory_mib=MEMORY_MIB, cpus=2, backing="hugetlb", trace=True
    ) as vm:
        vm.rest(quiet=1.0)
        result = vm.run(command)
        if result.status:
            raise RuntimeError(f"'{command}' has failed: {result.output}")
        assert vm.host_trace
        reports = vm.host_trace.reports(result.started, result.ended)
        values: Values = {"notifications": reports.notifications}
        for line in result.output.splitlines():
            kind, which, *numbers = line.split()
            if kind == "vmstat":
                values[which] = int(numbers[0])
                continue
            names = ("count", "p50", "p99", "p999", "max")
            for name, number in zip(names, numbers, strict=True):
                values[f"order{which}_{name}"] = int(number)
        yield Outcome(params, values, guest=command, qemu=vm.command())


METRIC = Metric("tails", "Allocation latency, nearly full", cases, measure)
