# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that the guest frees comes back at once, and only because of the device."""

import unittest

from freehint_vm import MIB, TRACING, FreehintVM
from guest_trace import count_time_in_ticks, traced

PAGE = 4096
MUCH = 1024 * MIB
# So little that all of it stays on per-CPU lists.
LITTLE = 48 * MIB


def run_memhog(vm: FreehintVM, size: int) -> float:
    """Returns when it has ended, by the host's clock."""
    result = vm.run(f"memhog {size}")
    if result.status:
        raise AssertionError(result.output)
    used = max(sample.rss for sample in vm.memory.since(result.started))
    if used < size:
        raise AssertionError("memhog did not use its memory")
    return result.ended


class ReclaimTest(unittest.TestCase):
    """Time is what the guest executes: a busy host would stretch it."""

    vm: FreehintVM

    @classmethod
    def setUpClass(cls) -> None:
        cls.vm = cls.enterClassContext(FreehintVM(icount=True))
        count_time_in_ticks(cls.vm)
        cls.vm.trace("sched/sched_process_exit", "virtio_freehint/freehint_range")

    def lags(self, size: int, *missing: int) -> list[float]:
        """Have a process use and free memory; when is no more missing than this?

        In seconds from its end, until the guest has the answer that memory is discarded.
        """
        before = self.vm.settle()
        self.vm.check(f"echo >{TRACING}/trace")
        run_memhog(self.vm, size)
        back = self.vm.wait_rss_below(before + min(missing), 30)
        self.assertIsNotNone(back, "the memory has not come back in 30 s")
        gone = size
        lags: dict[int, float] = {}
        ended = None
        for when, event in traced(self.vm, "sched_process_exit", "freehint_range"):
            if "comm=memhog" in event:
                ended = when
            elif "verdict=discarded" in event:
                gone -= PAGE * int(dict(word.split("=") for word in event[1:])["pages"])
            for most in missing:
                if ended is not None and gone <= most:
                    lags.setdefault(most, when - ended)
        return [lags[most] for most in missing]

    def test_freed_memory_is_back_within_a_second(self) -> None:
        """90 % in half a second, and all but 64 MiB in a second."""
        most, all_but_little = self.lags(MUCH, MUCH // 10, 64 * MIB)
        self.assertLess(most, 0.5)
        self.assertLess(all_but_little, 1.0)

    def test_little_is_back_soon(self) -> None:
        """The driver looks at per-CPU lists once per second.

        By itself the kernel drains them after eight seconds or more.
        """
        [lag] = self.lags(LITTLE, LITTLE // 4)
        self.assertLess(lag, 4)


class ControlTest(unittest.TestCase):
    def test_without_a_device_memory_stays(self) -> None:
        """Neither QEMU nor the guest gives memory back by itself."""
        with FreehintVM("none") as vm:
            before = vm.settle()
            ended = run_memhog(vm, MUCH)
            back = vm.wait_rss_below(before + MUCH // 2, timeout=5)
            self.assertIsNone(back, "memory came back with no device")
            self.assertGreater(vm.memory.at(ended).rss, MUCH)

    def test_balloon_reporting_works_too(self) -> None:
        """Balloon reporting in the same guest, so comparisons with it are fair."""
        with FreehintVM("balloon") as vm:
            before = vm.settle(quiet=5)
            run_memhog(vm, MUCH)
            back = vm.wait_rss_below(before + MUCH // 2, timeout=60)
            self.assertIsNotNone(back, "balloon reporting gives nothing back")


if __name__ == "__main__":
    unittest.main()
