# SPDX-License-Identifier: GPL-2.0-or-later
"""Each allocation of the driver and of mm/freehint fails once, one after the other.

For a kernel with fault injection. Whichever allocation fails, the kernel does not complain,
no memory is lost, and the next try, with memory, succeeds.
"""

import unittest

from freehint_vm import MIB, FreehintVM
from guest_driver import DRIVER, GuestDriver, wait_for

from splats import complaints  # found by freehint_vm

# More allocations than the kernel makes for any of these writes.
MOST = 2000
FAULTS = "/sys/kernel/debug"


class ShortageTest(unittest.TestCase):
    vm: FreehintVM
    driver: GuestDriver

    @classmethod
    def setUpClass(cls) -> None:
        vm = FreehintVM(
            memory_mib=512,
            cpus=2,
            extra_args=(
                *("-m", "512M,slots=1,maxmem=2G"),
                *("-object", "memory-backend-ram,id=dimm0,size=128M"),
                *("-device", "pc-dimm,id=d0,memdev=dimm0"),
            ),
        )
        cls.vm = cls.enterClassContext(vm)
        cls.driver = GuestDriver(cls.vm)
        for kind in "failslab", "fail_page_alloc":
            # Allocations that may wait fail, too; and they are not logged one by one.
            cls.vm.check(f"echo N >{FAULTS}/{kind}/ignore-gfp-wait")
            cls.vm.check(f"echo 0 >{FAULTS}/{kind}/verbose")
        cls.vm.check(f"echo 0 >{FAULTS}/fail_page_alloc/min-order")

    @classmethod
    def tearDownClass(cls) -> None:
        """An interrupt without a /proc entry, for want of memory, complains when freed."""
        log = cls.vm.check("dmesg -c | grep -v 'WARNING:.*fs/proc/generic.c'")
        assert not complaints(log), complaints(log)

    def tearDown(self) -> None:
        """Everything is as if no allocation had failed."""
        if not self.driver.is_bound():
            self.assertTrue(self.driver.bind())
        self.driver.allow(True)
        self.driver.settle()
        self.assertEqual(self.driver.attribute("status"), "active")
        self.assertEqual(self.driver.violations(), 0)
        self.driver.wait_accounted()
        discarded = self.vm.query()["stats"]["discarded"]["bytes"]
        self.vm.check("memhog 128m")
        wait_for(
            "freed memory is discarded",
            lambda: self.vm.query()["stats"]["discarded"]["bytes"]
            > discarded + 96 * MIB,
        )

    def fail_nth(self, nth: int, path: str, word: str, task: str = "") -> tuple[bool, int]:
        """Whether the nth allocation was made and failed, and the error of the write."""
        said = self.vm.check(f"failnth {nth} {path} {word} {task}").split()
        return said[0] == "failed", int(said[1])

    def test_binding(self) -> None:
        """The driver is bound all the same, or the write has an error."""
        device = self.driver.device()
        results = {True: 0, False: 0}
        for nth in range(1, MOST):
            self.driver.unbind()
            failed, error = self.fail_nth(nth, f"{DRIVER}/bind", device)
            if not failed:
                break
            bound = self.driver.is_bound()
            self.assertEqual(bound, not error, f"allocation {nth}: error {error}")
            results[bound] += 1
            if not bound:
                self.assertTrue(self.driver.bind(), f"after allocation {nth} had failed")
        print(f"# bound all the same: {results[True]}, not bound: {results[False]}")
        self.assertGreater(results[False], 10)

    def test_starting(self) -> None:
        """The driver says that it is not ready, and tries again by itself."""
        switch = self.vm.check(f"echo {DRIVER}/virtio*/freehint/allowed")
        thread = self.vm.check("pidof kfreehintd")
        not_ready = 0
        for nth in range(1, MOST):
            self.driver.allow(False)
            failed, error = self.fail_nth(nth, switch, "1", thread)
            self.assertEqual(error, 0)
            if not failed:
                break
            not_ready += self.vm.query()["driver-status"] == "not-ready"
            wait_for(
                f"it has started after allocation {nth} had failed",
                lambda: self.driver.attribute("status") == "active",
            )
            self.assertEqual(self.driver.violations(), 0)
        print(f"# not ready at first: {not_ready}")
        self.assertGreater(not_ready, 3)

    def test_memory_that_comes_online(self) -> None:
        """It comes online, or the write has an error. If memory cannot be tracked, it comes
        online all the same, and the log says so."""
        block = self.vm.check(
            "for m in /sys/devices/system/memory/memory*; do"
            " [ $(cat $m/state) = offline ] && echo $m && break; done"
        )
        refused = 0
        for nth in range(1, MOST):
            failed, error = self.fail_nth(nth, f"{block}/state", "online_movable")
            if not failed:
                break
            online = self.vm.check(f"cat {block}/state") == "online"
            self.assertEqual(online, not error, f"allocation {nth}: error {error}")
            refused += not online
            if online:
                self.assertEqual(self.driver.violations(), 0)
                self.vm.check(f"echo offline >{block}/state")
        print(f"# refused: {refused} of {nth - 1}")
        self.assertGreater(refused, 3)


if __name__ == "__main__":
    unittest.main()
