# SPDX-License-Identifier: GPL-2.0-or-later
"""A workload that we did not write: compiling Lua's library in the guest.

Without optimization, as the guest is emulated and this should take minutes. Then the guest
idles, removes what it built, and drops its page cache, and idles after each. Only the
guest's RAM counts: the compiler is much code, and QEMU's translation of it takes memory,
too, in every arm.
"""

import time
from collections.abc import Iterator

from arms import Arm, BenchGuest
from freehint_vm import BUILD, MIB, Finished
from meters import Resident
from plan import Case, Metric, Outcome, Values

MEMORY_MIB = 1536
VCPUS = 2
ARMS = ("off", "balloon", "balloon-100ms", "freehint")
IMAGE = BUILD / "bench" / "compiler.img"
IDLE = 20.0
ROOT = "/root"
CHROOT = f"PATH=/usr/bin:/bin chroot {ROOT} sh -c"
MOUNT = f"mount -t ext2 /dev/vda {ROOT} && mount -t devtmpfs dev {ROOT}/dev"
BUILD_LUA = f"{CHROOT} 'cd /lua/src && make -s -j{VCPUS} liblua.a CC=gcc MYCFLAGS=-O0'"
CLEAN_LUA = f"{CHROOT} 'cd /lua/src && make -s clean'; sync"
DROP = "echo 3 >/proc/sys/vm/drop_caches"


def unavailable() -> str:
    if IMAGE.exists():
        return ""
    return f"there is no {IMAGE.name}: run tests/bench/build-compiler-image"


def cases(scale: str) -> list[Case]:
    if scale == "smoke":
        return []
    if scale == "quick":
        return [Case({"program": "lua"}, ("balloon", "freehint"))]
    return [Case({"program": "lua"}, ARMS, reps=3)]


def measure(arm: Arm, params: Values) -> Iterator[Outcome]:
    """Writes to the image go to a temporary file, which QEMU removes."""
    disk = f"if=none,id=disk0,format=raw,snapshot=on,file={IMAGE}"
    args = ("-drive", disk, "-device", "virtio-blk-pci,drive=disk0")
    with BenchGuest(
        arm, memory_mib=MEMORY_MIB, cpus=VCPUS, ram_only=True, extra_args=args
    ) as vm:
        vm.rest()
        check(vm, MOUNT)
        built = check(vm, BUILD_LUA)
        time.sleep(IDLE)
        cleaned = check(vm, CLEAN_LUA)
        time.sleep(IDLE)
        check(vm, DROP)
        time.sleep(IDLE)
        end = time.monotonic()
        samples = vm.resident.since(built.started, end)
        yield Outcome(
            params=params,
            values={
                "build_s": built.ended - built.started,
                "build_gib_s": area(samples, built.started, built.ended),
                "after_gib_s": area(samples, built.ended, end),
                "built": kept(samples, built.ended),
                "idled": kept(samples, cleaned.started),
                "end": vm.resident.now(),
            },
            guest="; ".join((MOUNT, BUILD_LUA, CLEAN_LUA, DROP)),
            qemu=vm.command(),
            series={"kept_mib": thin(samples, built.started)},
        )


def check(vm: BenchGuest, command: str) -> Finished:
    result = vm.run(command, timeout=600)
    if result.status:
        raise RuntimeError(f"'{command}' has failed: {result.output[-500:]}")
    return result


def area(samples: list[Resident], begin: float, end: float) -> float:
    """GiB seconds of the guest's memory between two moments."""
    inside = [s for s in samples if begin <= s.when <= end]
    steps = zip(inside, inside[1:])
    return sum((b.when - a.when) * a.kept() for a, b in steps) / (1 << 30)


def kept(samples: list[Resident], when: float) -> int:
    return [s.kept() for s in samples if s.when <= when][-1]


def thin(samples: list[Resident], begin: float) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for sample in samples:
        when = sample.when - begin
        if not points or when >= points[-1][0] + 0.5:
            points.append((round(when, 2), round(sample.kept() / MIB, 1)))
    return points


METRIC = Metric("compiling", "Compiling a program", cases, measure, unavailable)
