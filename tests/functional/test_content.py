# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest writes to memory that was hinted is there when it reads it."""

import unittest

from freehint_vm import DEVICE_ID, MIB, FreehintVM, GuestError
from guest_driver import GuestDriver
from hint_trace import HintTrace

HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage"


class ContentTest(unittest.TestCase):
    def check_churn(self, options: str) -> None:
        with FreehintVM(cpus=2) as vm:
            if "-t" in options and vm.run(f"test -d {HUGE_PAGES}").status:
                self.skipTest("the guest's kernel has no transparent huge pages")
            vm.settle()
            before = vm.query()["stats"]["discarded"]["bytes"]
            result = vm.run(f"churn -n 10 {options}", timeout=300)
            self.assertEqual(result.status, 0, result.output)
            self.assertIn(" 0 bytes lost", result.output)
            # Without this, the memory would not have been away.
            discarded = vm.query()["stats"]["discarded"]["bytes"] - before
            self.assertGreater(discarded, 10 * 16 * MIB)

    def test_ten_cycles_lose_no_byte(self) -> None:
        self.check_churn("-m 128")

    def test_ten_cycles_of_huge_pages_lose_no_byte(self) -> None:
        self.check_churn("-m 128 -t")

    def test_slow_discards_lose_no_byte(self) -> None:
        """The guest uses memory again while the host still works on it.

        A page that came back before its hint was used would be lost here: each discard
        waits until the guest has long written to the memory again.
        """
        trace = HintTrace()
        self.addCleanup(trace.close)
        slow = ("-global", "virtio-freehint-testdev.x-job-start-delay-ms=300")
        args = (*slow, *trace.args)
        adapt = "virtio_freehint.adapt=0"
        with FreehintVM("testdev", cpus=2, extra_args=args, append=adapt) as vm:
            vm.machine.cmd("freehint-set", id=DEVICE_ID, min_age_ms=20)
            vm.settle()
            before = vm.query()["stats"]["discarded"]["bytes"]
            # A fast guest has finished before many discards, and a slow one has few.
            for _ in range(40):
                result = vm.run("churn -n 6 -m 128 -p 150", timeout=300)
                self.assertEqual(result.status, 0, result.output)
                self.assertIn(" 0 bytes lost", result.output)
                discarded = vm.query()["stats"]["discarded"]["bytes"] - before
                if discarded > 128 * MIB:
                    break
            self.assertGreater(discarded, 128 * MIB)
            driver = GuestDriver(vm)
            at_once, both = trace.overlaps(int(driver.attribute("granule")))
            engine = driver.engine()
        # Page reporting offers as much at a time as fits into a hint.
        if engine != "page-reporting":
            self.assertGreater(at_once, 1, "one hint at a time overlaps with none")
        self.assertEqual(both, set(), "in two hints at a time")

    def test_a_complaint_of_the_kernel_is_noticed(self) -> None:
        """The control for the tests of all modules."""
        vm = FreehintVM()
        with self.assertRaisesRegex(GuestError, "WARNING: CPU: 0"):
            with vm:
                vm.check("echo 'WARNING: CPU: 0 PID: 1 at mm/none.c' >/dev/kmsg")
        vm.console.unlink()


if __name__ == "__main__":
    unittest.main()
