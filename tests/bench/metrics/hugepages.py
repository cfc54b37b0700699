# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the host still backs a guest's memory with huge pages after a return.

The pause is longer than the default delay of balloon reporting, so every arm has given the
memory back before it is used again.
"""

from collections.abc import Iterator

from arms import Arm, BenchGuest
from freehint_vm import MIB
from meters import smaps_rollup
from plan import Case, Metric, Outcome, Values

MEMORY_MIB = 1280
USED_MIB = 768
ARMS = ("off", "balloon", "freehint", "freehint-lazy")


def cases(scale: str) -> list[Case]:
    if scale == "smoke":
        return []
    cycles, reps = (20, 3) if scale == "full" else (5, 1)
    return [Case({"mib": USED_MIB, "cycles": cycles, "pause_ms": 2500}, ARMS, reps)]


def measure(arm: Arm, params: Values) -> Iterator[Outcome]:
    command = f"toucher -t -m {params['mib']}"
    cycles = f"{command} -n {params['cycles']} -p {params['pause_ms']}"
    keep = f"{command} -k 3000"
    with BenchGuest(arm, memory_mib=MEMORY_MIB) as vm:
        pid = vm.machine.get_pid()
        assert pid is not None
        vm.rest(quiet=1.0)
        vm.check(cycles, timeout=600)
        kept = vm.start(keep)
        seen = [smaps_rollup(pid)]
        while not kept.done.wait(0.2):
            seen.append(smaps_rollup(pid))
        vm.finish(kept)
        # The sample when all of its memory was in use.
        fields = max(seen, key=lambda fields: fields["Rss"])
        yield Outcome(
            params=params,
            values={
                "rss": fields["Rss"],
                "huge": fields["AnonHugePages"],
                "share": fields["AnonHugePages"] / fields["Rss"],
                "small_mib": (fields["Rss"] - fields["AnonHugePages"]) / MIB,
            },
            guest=f"{cycles}; {keep}",
            qemu=vm.command(),
        )


METRIC = Metric("hugepages", "Huge pages kept", cases, measure)
