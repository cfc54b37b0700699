# SPDX-License-Identifier: GPL-2.0-or-later
"""What the allocator's hooks and the engine cost the guest, in instructions.

Under -icount shift=0 each instruction takes a nanosecond of the guest's clock. So the time
that a busy guest measures is a count of instructions: those of the whole guest, with the
engine's thread and all that it wakes. The guest fills and empties its pool of huge pages,
which takes blocks of 2 MiB from the free lists and puts them back untouched.
"""

import re
from collections.abc import Iterator

from arms import Arm, BenchGuest
from plan import Case, Metric, Outcome, Values

MEMORY_MIB = 1024
PAGES = 128
ARMS = ("off", "off-again", "balloon", "freehint")
POOL = "/proc/sys/vm/nr_hugepages"
# The clock of the guest, in ns, before and after the loop.
STAMP = "grep -m1 'now at' /proc/timer_list"


def cases(scale: str) -> list[Case]:
    if scale == "smoke":
        return []
    rounds = 200 if scale == "full" else 50
    reps = 3 if scale == "full" else 1
    return [Case({"pages": PAGES, "rounds": rounds}, ARMS, reps)]


def measure(arm: Arm, params: Values) -> Iterator[Outcome]:
    pages, rounds = params["pages"], params["rounds"]
    loop = f"echo {pages} >{POOL}; echo 0 >{POOL}"
    command = f"{STAMP}; for i in $(seq {rounds}); do {loop}; done; {STAMP}"
    icount = ("-icount", "shift=0,sleep=on")
    with BenchGuest(
        arm, memory_mib=MEMORY_MIB, accel="tcg,thread=single", extra_args=icount
    ) as vm:
        vm.rest(quiet=1.0)
        vm.check(f"for i in 1 2 3; do {loop}; done")
        output = vm.check(command, timeout=300)
        before, after = map(int, re.findall(r"now at (\d+) nsecs", output))
        yield Outcome(
            params=params,
            values={"instructions": (after - before) / (pages * rounds)},
            guest=command,
            qemu=vm.command(),
        )


METRIC = Metric("cost", "Cost on the guest's hot path", cases, measure)
