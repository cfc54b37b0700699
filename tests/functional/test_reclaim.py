# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that the guest frees comes back at once, and only because of the device."""

import unittest

from freehint_vm import MIB, Finished, FreehintVM
from guest_trace import count_time_in_ticks, traced

MEMHOG_BYTES = 1024 * MIB
PAGE = 4096
# How much may still be missing, and how long that may take, in seconds.
MISSING_WITHIN = {MEMHOG_BYTES // 10: 0.5, 64 * MIB: 1.0}


class ReclaimTest(unittest.TestCase):
    def run_memhog(self, vm: FreehintVM) -> Finished:
        result = vm.run("memhog 1g")
        self.assertEqual(result.status, 0, result.output)
        used = max(sample.rss for sample in vm.memory.since(result.started))
        self.assertGreater(used, MEMHOG_BYTES, "memhog did not use its memory")
        return result

    def lags(self, vm: FreehintVM) -> dict[int, float]:
        """Time from memhog's end until no more than this is missing, for the guest."""
        ended, missing = None, MEMHOG_BYTES
        lags: dict[int, float] = {}
        for when, (name, *words) in traced(vm, "sched_process_exit", "freehint_range"):
            if "comm=memhog" in words:
                ended = when
            elif "verdict=discarded" in words:
                missing -= PAGE * int(dict(w.split("=") for w in words)["pages"])
            for left in MISSING_WITHIN:
                if ended is not None and missing <= left:
                    lags.setdefault(left, when - ended)
        return lags

    def test_freed_memory_is_back_within_a_second(self) -> None:
        """90 % in half a second, and all but 64 MiB in a second.

        Time is what the guest executes, until it has the answer that the memory is
        discarded: a busy host would stretch it.
        """
        with FreehintVM(icount=True) as vm:
            before = vm.settle()
            count_time_in_ticks(vm)
            vm.trace("sched/sched_process_exit", "virtio_freehint/freehint_range")
            self.run_memhog(vm)
            back = vm.wait_rss_below(before + min(MISSING_WITHIN), 30)
            self.assertIsNotNone(back, "the memory has not come back in 30 s")
            lags = self.lags(vm)
            self.assertEqual(lags.keys(), MISSING_WITHIN.keys())
            for missing, within in MISSING_WITHIN.items():
                self.assertLess(lags[missing], within, lags)

    def test_little_is_back_soon(self) -> None:
        """So little memory that all of it stays on per-CPU lists.

        The driver looks at these once per second; by itself the kernel drains them after
        eight seconds or more.
        """
        little = 48 * MIB
        with FreehintVM() as vm:
            before = vm.settle()
            result = vm.run(f"memhog {little}")
            self.assertEqual(result.status, 0, result.output)
            back = vm.wait_rss_below(before + little // 4, 4, since=result.ended)
            self.assertIsNotNone(back, "the memory has not come back in 4 s")

    def test_without_a_device_memory_stays(self) -> None:
        """The control: neither QEMU nor the guest gives memory back by itself."""
        with FreehintVM("none") as vm:
            before = vm.settle()
            result = self.run_memhog(vm)
            back = vm.wait_rss_below(before + MEMHOG_BYTES // 2, timeout=5)
            self.assertIsNone(back, "memory came back with no device")
            self.assertGreater(vm.memory.at(result.ended).rss, MEMHOG_BYTES)

    def test_balloon_reporting_works_too(self) -> None:
        """Balloon reporting in the same guest, so comparisons with it are fair."""
        with FreehintVM("balloon") as vm:
            before = vm.settle(quiet=5)
            self.run_memhog(vm)
            back = vm.wait_rss_below(before + MEMHOG_BYTES // 2, timeout=60)
            self.assertIsNotNone(back, "balloon reporting gives nothing back")


if __name__ == "__main__":
    unittest.main()
