# SPDX-License-Identifier: GPL-2.0-or-later
"""Hints as fast as possible beside everything that moves memory: nothing is lost.

FREEHINT_STRESS_SECONDS says how long each case lasts.
"""

import dataclasses
import os
import re
import threading
import unittest
from collections.abc import Callable

from freehint_vm import DEVICE_ID, MIB, SYSFS, FreehintVM
from guest_driver import GuestDriver, wait_for

SECONDS = int(os.environ.get("FREEHINT_STRESS_SECONDS", "10"))

# Memory is hinted after one tick of the kernel's clock, however often it is used again.
EAGER = ("-global", "virtio-freehint-device.min-age-ms=0")
EAGER_GUEST = "virtio_freehint.min_age_floor_ms=0 virtio_freehint.adapt=0"

# A contiguous area, which has to hold a page of 1 GiB. All but 512 MiB of the guest's
# memory is above 4 GiB, where there is an aligned one. The kernel must not put itself there
# at random.
CMA = ("-cpu", "qemu64,pdpe1gb=on", "-machine", "max-ram-below-4g=512M")
CMA_GUEST = "hugetlb_cma=1G nokaslr"
AREAS = "/sys/kernel/debug/cma"

GRANULE_PAGES = 2 * MIB // 4096
KERNEL = os.environ.get("FREEHINT_KERNEL", "linux")
IS_PLAIN = KERNEL == "linux"
# KASAN's shadow also comes from the end of memory: an eighth of all.
MOVABLE = "movablecore=768M" if KERNEL == "linux-kasan" else "movablecore=256M"
# How many more pages a kernel may use afterwards, without slabs: less than a granule, so
# none can be lost. Debug kernels keep more.
KERNEL_SLACK = GRANULE_PAGES if IS_PLAIN else 8 * MIB // 4096

# The kernel gives a per-CPU list about as many pages at once.
PCP_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Zone:
    """A line of tests/guest/census.c, which explains the figures."""

    free: int
    cached: int
    slab: int
    bare: int
    away: int

    @property
    def known(self) -> int:
        """Pages that are known to be free, or whose use is known.

        Cached pages are bare: if more are cached than bare, the difference was freed since
        they were counted.
        """
        return self.free + self.slab + min(self.cached, self.bare)


def census(vm: FreehintVM) -> dict[str, Zone]:
    zones = {}
    for line in vm.check("census").splitlines():
        found = re.fullmatch(
            r"(\d+ \w+) free (\d+) cached (\d+) slab (\d+) bare (\d+) away (\d+)", line
        )
        assert found, line
        zones[found[1]] = Zone(*map(int, found.groups()[1:]))
    return zones


def census_at_rest(vm: FreehintVM) -> dict[str, Zone]:
    """After a burst of frees, per-CPU lists go on to drain for seconds.

    What leaves them while the pages are counted is counted twice.
    """
    counts = [census(vm)]

    def is_at_rest() -> bool:
        counts.append(census(vm))
        before, now = ({n: z.cached for n, z in c.items()} for c in counts[-2:])
        return sum(abs(now[name] - before[name]) for name in now) < PCP_BATCH

    wait_for("per-CPU lists are at rest", is_at_rest, 120)
    return counts[-1]


def counter(vm: FreehintVM, name: str) -> int:
    return vm.figure(name)


def failures(output: str, action: str) -> tuple[int, int]:
    """How often tests/guest/disturb.c did an action, and how often that failed."""
    found = re.search(rf"^{action}: (\d+) done, (\d+) failed$", output, re.M)
    assert found, output
    return int(found[1]), int(found[2])


class Repeater:
    """Repeat an action on the host while a block runs.

    If the action fails, so does the block, at its end.
    """

    def __init__(self, step: Callable[[int], None], pause: float) -> None:
        self._step = step
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: Exception | None = None
        self.count = 0

    def __enter__(self) -> "Repeater":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._pause):
                self._step(self.count)
                self.count += 1
        except Exception as failure:
            self._failure = failure


class StressTest(unittest.TestCase):
    def prepare(self, vm: FreehintVM) -> None:
        vm.settle()
        vm.check(
            "echo 1000 >/proc/sys/vm/nr_overcommit_hugepages;"
            "if [ -d /sys/kernel/mm/ksm ]; then"
            " echo 500 >/sys/kernel/mm/ksm/pages_to_scan;"
            " echo 1 >/sys/kernel/mm/ksm/run; fi"
        )
        # The first time, caches fill and the kernel's pools grow.
        self.stress(vm, mib=256, seconds=3, beside="")

    def stress(self, vm: FreehintVM, mib: int, seconds: int, beside: str) -> str:
        """The output of `disturb`, after checking that nothing was lost."""
        disturb = vm.start(f"disturb -s {seconds} audit:1000 {beside}")
        result = vm.run(f"stress -m {mib} -s {seconds}", timeout=120 + 3 * seconds)
        self.assertEqual(result.status, 0, result.output)
        self.assertIn("\nall: ", result.output)
        self.assertIn(" 0 bytes lost", result.output.splitlines()[-1])
        beside_result = vm.finish(disturb, timeout=120 + seconds)
        self.assertEqual(beside_result.status, 0, beside_result.output)
        for line in (result.output + "\n" + beside_result.output).splitlines():
            print(f"# {line}")
        return beside_result.output

    def stress_with_hints(self, vm: FreehintVM, mib: int, beside: str) -> str:
        """Repeat if a slow guest had hardly any memory away, which would prove nothing."""
        hints, away = counter(vm, "hints"), counter(vm, "discarded_bytes")
        for _ in range(10):
            output = self.stress(vm, mib, SECONDS, beside)
            seen = counter(vm, "hints") - hints
            gone = (counter(vm, "discarded_bytes") - away) // MIB
            print(f"# {seen} hints, {gone} MiB discarded")
            # One hint can name many blocks.
            if seen > SECONDS // 2 and gone > SECONDS * 2:
                return output
        self.fail("hardly any memory is hinted")

    def quiesce(self, vm: FreehintVM) -> None:
        GuestDriver(vm).allow(False)
        self.assertEqual(vm.check(f"cat {SYSFS}/status"), "off")
        vm.check("echo 2 >/sys/kernel/mm/ksm/run", timeout=300)
        vm.check("echo 0 >/proc/sys/vm/nr_hugepages; echo 3 >/proc/sys/vm/drop_caches")
        for name in ("in_flight_bytes", "leaked_bytes", "timeouts"):
            self.assertEqual(counter(vm, name), 0, name)

    def assert_accounted_for(
        self, before: dict[str, Zone], after: dict[str, Zone]
    ) -> None:
        self.assertEqual(before.keys(), after.keys())
        for name, zone in after.items():
            both = f"{name}: {before[name]} before, {zone} after"
            cached = zone.cached // GRANULE_PAGES
            self.assertLessEqual(zone.away, before[name].away + cached, both)
        # Memory in use moves to another zone when its block goes offline.
        known = [sum(zone.known for zone in zones.values()) for zones in (before, after)]
        print(f"# {known[0] - known[1]} pages more are in use")
        self.assertLess(known[0] - known[1], KERNEL_SLACK, f"{before}, {after}")

    def check_beside(self, vm: FreehintVM, mib: int, beside: str) -> str:
        self.prepare(vm)
        self.quiesce(vm)
        before = census_at_rest(vm)
        GuestDriver(vm).allow(True)
        output = self.stress_with_hints(vm, mib, beside)
        self.quiesce(vm)
        self.assert_accounted_for(before, census_at_rest(vm))
        return output

    def test_beside_compaction_contiguous_allocation_and_offlining(self) -> None:
        with FreehintVM(
            cpus=2,
            memory_mib=3072,
            extra_args=(*EAGER, *CMA),
            append=f"{EAGER_GUEST} {CMA_GUEST} {MOVABLE}",
        ) as vm:
            pauses = {"compact": 500, "offline": 200, "huge": 300, "cma": 50}
            # A distribution's kernel may have no CMA areas; ours do.
            if vm.run(f"ls {AREAS}").status and KERNEL == "linux-distro":
                del pauses["cma"]
            beside = " ".join(f"{action}:{ms}" for action, ms in pauses.items())
            output = self.check_beside(vm, 640, f"{beside} drop:2000")
            for action in pauses:
                done, failed = failures(output, action)
                self.assertGreater(done, failed, output)

    def test_beside_virtio_mem_and_a_balloon(self) -> None:
        def plug(count: int) -> None:
            size = (64, 512, 256)[count % 3] * MIB
            vm.machine.cmd(
                "qom-set", path="vmem0", property="requested-size", value=size
            )
            vm.machine.cmd("balloon", value=(1280 - 64 * (count % 4)) * MIB)

        with FreehintVM(
            cpus=2,
            memory_mib=1280,
            extra_args=(
                *EAGER,
                *("-m", "maxmem=2G"),
                *("-object", "memory-backend-ram,id=vm0,size=512M,reserve=off"),
                *("-device", "virtio-mem-pci,id=vmem0,memdev=vm0,requested-size=256M"),
                *("-device", "virtio-balloon-pci,id=balloon0"),
            ),
            append=EAGER_GUEST,
        ) as vm:
            self.prepare(vm)
            with Repeater(plug, pause=0.5) as plugging:
                self.stress_with_hints(vm, 448, "compact:1000")
            self.assertGreater(plugging.count, SECONDS)
            self.quiesce(vm)

    def test_what_is_in_flight_is_seen_to_be_away(self) -> None:
        """The control: the census would notice a granule that does not return."""
        slow = ("-global", "virtio-freehint-testdev.x-job-start-delay-ms=1500")
        with FreehintVM("testdev", cpus=2, extra_args=(*EAGER, *slow)) as vm:
            seen = [self.away(vm) for _ in range(5)]
            vm.machine.cmd("freehint-set", id=DEVICE_ID, enabled=False)
            vm.check("until [ $(cat %s/in_flight_bytes) = 0 ]; do :; done" % SYSFS)
            self.assertGreater(max(seen), self.away(vm))

    def away(self, vm: FreehintVM) -> int:
        return sum(zone.away for zone in census(vm).values())


if __name__ == "__main__":
    unittest.main()
