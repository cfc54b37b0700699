# SPDX-License-Identifier: GPL-2.0-or-later
"""What is free goes to the host at last, whatever kept it back for a while."""

import unittest

from freehint_vm import MIB, FreehintVM
from guest_driver import KEPT, GuestDriver, wait_for

MIN_FREE = "/proc/sys/vm/min_free_kbytes"
SCALE = "/proc/sys/vm/watermark_scale_factor"
# The driver looks now and then whether what it passed over can be had.
LATER = 30


def wait_hinted(vm: FreehintVM, timeout: float = LATER) -> None:
    wait_for(
        "what is free is hinted",
        lambda: vm.figure("free_pending_bytes") < KEPT,
        timeout,
    )


def wait_stays(vm: FreehintVM, least: int) -> None:
    """Wait until the driver has so much to hint, and leaves it alone."""
    hinted: list[int] = []

    def is_quiet() -> bool:
        if vm.figure("free_pending_bytes") < least:
            hinted.clear()
            return False
        hinted.append(vm.figure("hinted_bytes"))
        return len(hinted) > 10 and len(set(hinted[-10:])) == 1

    wait_for(f"{least} bytes are left alone", is_quiet)


class ReachTest(unittest.TestCase):
    def test_what_watermarks_kept_back_is_hinted_when_they_fall(self) -> None:
        """And the guest is idle: nothing is freed then that would tell of it."""
        with FreehintVM(memory_mib=1536) as vm:
            driver = GuestDriver(vm)
            driver.settle()
            usual = vm.check(f"cat {MIN_FREE} {SCALE}").split()
            # In use, so that what stays free is above the least watermark.
            vm.check("mkdir /full && mount -t tmpfs -o size=100% tmpfs /full")
            vm.check("dd if=/dev/zero of=/full/file bs=1M count=512")
            # The highest one is above all that there is.
            vm.check(f"echo 3000 >{SCALE}; echo {640 << 10} >{MIN_FREE}")
            vm.check("rm /full/file")
            wait_stays(vm, 384 * MIB)
            vm.check(f"echo {usual[0]} >{MIN_FREE}; echo {usual[1]} >{SCALE}")
            wait_hinted(vm)
            self.assertEqual(driver.violations(), 0)


if __name__ == "__main__":
    unittest.main()
