# SPDX-License-Identifier: GPL-2.0-or-later
"""A workload that we did not write: compiling Lua's library in the guest.

Without optimization, as the guest is emulated and this should take minutes. Then the guest
idles, removes what it built, and drops its page cache, and idles after each. Only the
guest's RAM counts: the compiler is much code, and QEMU's translation of it takes memory,
too, in every arm.
"""

import time
from collections.abc import Iterator

import program_disk
from arms import Arm, BenchGuest
from curves import area, at, thin
from plan import Case, Metric, Outcome, Values
from program_disk import check, inside

MEMORY_MIB = 1536
VCPUS = 2
ARMS = ("off", "balloon", "balloon-100ms", "freehint")
IDLE = 20.0
GIB = 1 << 30
LUA = "cd /work/lua/src && make -s"
BUILD_LUA = inside(f"{LUA} -j{VCPUS} liblua.a CC=gcc MYCFLAGS=-O0")
CLEAN_LUA = f"{inside(f'{LUA} clean')}; sync"
DROP = "echo 3 >/proc/sys/vm/drop_caches"


def cases(scale: str) -> list[Case]:
    if scale == "smoke":
        return []
    if scale == "quick":
        return [Case({"program": "lua"}, ("balloon", "freehint"))]
    return [Case({"program": "lua"}, ARMS, reps=3)]


def measure(arm: Arm, params: Values) -> Iterator[Outcome]:
    with BenchGuest(
        arm, memory_mib=MEMORY_MIB, cpus=VCPUS, ram_only=True, extra_args=program_disk.disk()
    ) as vm:
        vm.rest()
        check(vm, program_disk.MOUNT)
        built = check(vm, BUILD_LUA)
        time.sleep(IDLE)
        cleaned = check(vm, CLEAN_LUA)
        time.sleep(IDLE)
        check(vm, DROP)
        time.sleep(IDLE)
        end = time.monotonic()
        kept = [(s.when, s.kept()) for s in vm.resident.since(built.started, end)]
        yield Outcome(
            params=params,
            values={
                "build_s": built.ended - built.started,
                "build_gib_s": area(kept, built.started, built.ended) / GIB,
                "after_gib_s": area(kept, built.ended, end) / GIB,
                "built": at(kept, built.ended),
                "idled": at(kept, cleaned.started),
                "end": vm.resident.now(),
            },
            guest="; ".join((program_disk.MOUNT, BUILD_LUA, CLEAN_LUA, DROP)),
            qemu=vm.command(),
            series={"kept_mib": thin(kept, built.started, 0.5)},
        )


METRIC = Metric("compiling", "Compiling a program", cases, measure, program_disk.unavailable)
