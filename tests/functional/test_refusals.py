# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that must not hint say why; those that expect zeros get them."""

import unittest

from freehint_vm import MIB, SYSFS, FreehintVM
from guest_driver import GuestDriver, wait_for

BALLOON = ("-device", "virtio-balloon-pci,id=balloon0,free-page-reporting=on")


class RefusalsTest(unittest.TestCase):
    def assert_refuses(self, vm: FreehintVM, status: str, says: str) -> None:
        """Says why to the host, to the administrator, and once in the log."""
        found = vm.query()
        self.assertEqual(found["driver-status"], status)
        self.assertEqual([o["reason"] for o in found["obstacles"]], ["guest"])
        self.assertIn("driver-status", found["obstacles"][0]["detail"])
        self.assertEqual(vm.check(f"cat {SYSFS}/status"), status)
        log = vm.check("dmesg | grep 'freehint.*: not hinting' || true").splitlines()
        self.assertEqual(len(log), 1, log)
        self.assertIn(says, log[0])
        vm.check("memhog 128m")
        stats = vm.query()["stats"]
        self.assertEqual((stats["hints"], stats["discard-calls"]), (0, 0))
        self.assertEqual(vm.flush()["result"], "refused")

    def test_a_granule_larger_than_a_pageblock(self) -> None:
        large = ("-global", "virtio-freehint-device.x-granule=4M")
        with FreehintVM(extra_args=large) as vm:
            self.assert_refuses(vm, "granule", "larger than a pageblock")

    def test_another_reporter(self) -> None:
        """For as long as the other reporter is there."""
        with FreehintVM(extra_args=BALLOON) as vm:
            self.assert_refuses(vm, "other-reporter", "reporting has a device")
            vm.check(
                "cd /sys/bus/virtio/drivers/virtio_balloon && d=$(echo virtio*)"
                " && echo $d >unbind"
            )
            # There is no notification; the driver looks now and then.
            wait_for(
                "free memory is discarded",
                lambda: vm.query()["stats"]["discarded"]["bytes"] > 512 * MIB,
            )
            self.assertEqual(vm.query()["driver-status"], "active")

    def test_poisoned_pages(self) -> None:
        with FreehintVM(append="page_poison=1") as vm:
            self.assert_refuses(vm, "poisoning", "page_poison")

    def test_pages_unmapped_when_freed(self) -> None:
        with FreehintVM(append="debug_pagealloc=on") as vm:
            self.assert_refuses(vm, "debugging", "debug_pagealloc")

    def test_guard_pages(self) -> None:
        """Guard pages come only with unmapping."""
        guards = "debug_pagealloc=on debug_guardpage_minorder=1"
        with FreehintVM(append=guards) as vm:
            vm.check("dmesg | grep 'Setting debug_guardpage_minorder to 1'")
            self.assert_refuses(vm, "debugging", "debug_pagealloc")

    def check_churn(self, append: str) -> None:
        """Freed memory is hinted each time, however soon it is used again."""
        with FreehintVM(cpus=2, append=f"{append} virtio_freehint.adapt=0") as vm:
            driver = GuestDriver(vm)
            driver.settle()
            for _ in range(3):
                before = vm.query()["stats"]["discarded"]["bytes"]
                result = vm.run("churn -z -n 1 -m 128", timeout=300)
                self.assertEqual(result.status, 0, result.output)
                self.assertIn(" 0 bytes lost", result.output)
                # test_reclaim tests how much and how soon.
                wait_for(
                    "hints of most of it",
                    lambda: vm.query()["stats"]["discarded"]["bytes"] - before
                    > 96 * MIB,
                )
                driver.settle()

    def test_pages_zeroed_when_freed(self) -> None:
        """The guest does not zero pages again when it allocates them."""
        self.check_churn("init_on_free=1")

    def test_pages_zeroed_when_allocated(self) -> None:
        self.check_churn("init_on_alloc=1")


if __name__ == "__main__":
    unittest.main()
