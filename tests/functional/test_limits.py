# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver with devices that it must not use, or only just can."""

import re
import unittest
from typing import Any

from freehint_vm import DEVICE_ID, MIB, FreehintVM
from guest_driver import GuestDriver, wait_for
from hint_trace import HintTrace

VERSION_1, ACCESS_PLATFORM = 1 << 32, 1 << 33
STATUS_FAILED = "VIRTIO_CONFIG_S_FAILED"
# Larger than what the guest can track, a pageblock.
LARGE_GRANULE = 4 * MIB
# Of driver_status, in the device's configuration.
STATUS_OFFSET = 32
# The alignment of the device's configuration.
REGION = 0x1000


class LimitsTest(unittest.TestCase):
    vm: FreehintVM
    trace: HintTrace
    driver: GuestDriver

    @classmethod
    def setUpClass(cls) -> None:
        cls.trace = HintTrace()
        cls.addClassCleanup(cls.trace.close)
        vm = FreehintVM("testdev", memory_mib=512, extra_args=cls.trace.args)
        cls.vm = cls.enterClassContext(vm)
        cls.driver = GuestDriver(cls.vm)
        cls.driver.settle()

    def setUp(self) -> None:
        self.driver.set_faults()
        if self.driver.is_bound():
            self.driver.unbind()

    def tearDown(self) -> None:
        if self.driver.is_bound():
            self.driver.wait_accounted()
            self.assertEqual(self.driver.violations(), 0)

    def device_statuses(self) -> list[str]:
        """Names of the device status bits."""
        path = f"/machine/peripheral/{DEVICE_ID}/virtio-backend"
        status: Any = self.vm.machine.cmd("x-query-virtio-status", path=path)
        return [name.split(":")[0] for name in status["status"]["statuses"]]

    def wait_status(self, status: str) -> None:
        """Wait until the driver has reported this status to the device."""
        wait_for(
            f"the driver is {status}",
            lambda: self.vm.query()["driver-status"] == status,
        )

    def check_refused(self, word: str, **faults: int) -> None:
        """The driver logs why, once, and leaves the device alone."""
        log, mark = self.driver.mark_log(), self.trace.mark()
        self.driver.set_faults(**faults)
        self.assertFalse(self.driver.bind(), "the driver took the device")
        lines = [line for line in self.driver.log(log) if word in line]
        self.assertEqual(len(lines), 1, self.driver.log(log))
        self.assertIn(STATUS_FAILED, self.device_statuses())
        self.vm.check("memhog 64m; sleep 1")
        self.assertEqual(self.trace.hints(mark), [])

    def check_works(self) -> None:
        mark = self.trace.mark()
        self.assertTrue(self.driver.bind())
        self.assertEqual(self.vm.query()["driver-status"], "active")
        self.vm.check("memhog 96m")
        self.driver.settle()
        size = sum(r.len for r in self.trace.ranges(mark))
        self.assertGreater(size, 64 * MIB)

    def test_access_platform_is_refused(self) -> None:
        self.check_refused("VIRTIO_F_ACCESS_PLATFORM", features=ACCESS_PLATFORM)
        self.driver.set_faults()
        self.check_works()

    def test_a_device_of_before_version_1_is_refused(self) -> None:
        self.check_refused("VIRTIO_F_VERSION_1", features=VERSION_1)

    def test_a_granule_that_is_no_power_of_two_is_refused(self) -> None:
        for granule in (0, 3 * MIB, 2**64 - 1):
            with self.subTest(granule=granule):
                self.check_refused("granule", granule=granule)

    def test_hints_without_ranges_are_refused(self) -> None:
        self.check_refused("0 ranges", max_ranges=0)
        self.driver.set_faults()
        self.check_works()

    def test_one_range_a_hint_will_do(self) -> None:
        self.driver.set_faults(max_ranges=1)
        mark = self.trace.mark()
        self.check_works()
        cookies = [r.cookie for r in self.trace.ranges(mark)]
        self.assertEqual(len(cookies), len(set(cookies)), "two ranges in a hint")

    def test_too_large_a_granule_is_not_used(self) -> None:
        for granule in (LARGE_GRANULE, 2**63):
            with self.subTest(granule=granule):
                log, mark = self.driver.mark_log(), self.trace.mark()
                self.driver.set_faults(granule=granule)
                self.assertTrue(self.driver.bind())
                self.assertEqual(self.driver.attribute("status"), "granule")
                self.assertEqual(self.vm.query()["driver-status"], "granule")
                self.vm.check("memhog 64m; sleep 1")
                self.assertEqual(self.trace.hints(mark), [])
                self.assertEqual(len(self.driver.log(log)), 1)
                self.driver.unbind()

    def test_the_driver_writes_its_status_and_nothing_else(self) -> None:
        """The driver writes its status as one 32-bit access, whatever happens."""
        mark = self.trace.mark()
        event = "memory_region_ops_write"
        self.vm.machine.cmd("trace-event-set-state", name=event, enable=True)
        self.assertTrue(self.driver.bind())
        for enabled, status in (False, "waiting"), (True, "active"):
            self.vm.set_enabled(enabled)
            self.wait_status(status)
        self.vm.check("memhog 64m")
        self.driver.set_faults(needs_reset=1)
        self.vm.check("memhog 64m; sleep 1")
        self.vm.machine.cmd("trace-event-set-state", name=event, enable=False)
        writes = re.findall(
            r"memory_region_ops_write .* addr 0x(\w+) .* size (\d+) "
            r"name 'virtio-pci-device-virtio-freehint'",
            self.trace.text(mark),
        )
        seen = {(int(addr, 16) % REGION, int(size)) for addr, size in writes}
        self.assertEqual(seen, {(STATUS_OFFSET, 4)})
        self.assertGreater(len(writes), 3)

        self.driver.set_faults()


if __name__ == "__main__":
    unittest.main()
