# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest without PCI: the device is on virtio-mmio."""

import unittest

from freehint_vm import MIB, FreehintVM
from guest_driver import GuestDriver

# Otherwise QEMU offers legacy devices there, which the driver refuses.
MODERN = ("-global", "virtio-mmio.force-legacy=false")
USED = 256


class MicrovmTest(unittest.TestCase):
    def test_freed_memory_comes_back(self) -> None:
        """Also from a driver that is bound again, with its queue.

        The machine has only one timer to begin with. A kernel that fails to calibrate it on
        a busy host hangs, so time is what the guest executes.
        """
        with FreehintVM(
            machine="microvm", memory_mib=512, extra_args=MODERN, icount=True
        ) as vm:
            driver = GuestDriver(vm)
            driver.settle()
            for _ in range(2):
                discarded = vm.query()["stats"]["discarded"]["bytes"]
                before = vm.memory.now().rss
                vm.check(f"memhog {USED}m")
                grown = before + USED // 2 * MIB
                self.assertIsNotNone(vm.wait_rss_below(grown, 20), "nothing came back")
                self.assertEqual(vm.flush()["result"], "done")
                now = vm.query()["stats"]["discarded"]["bytes"]
                self.assertGreater(now - discarded, USED * 3 // 4 * MIB)
                driver.unbind()
                driver.bind()
                driver.settle()
            self.assertEqual(driver.violations(), 0)


if __name__ == "__main__":
    unittest.main()
