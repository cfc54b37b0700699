# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver as a module that is loaded and unloaded while the guest works.

For a kernel that has the driver as a module. Slices are slow and memory is hinted early,
so there often is a hint in flight while churn runs.
"""

import unittest

from freehint_vm import DEVICE_ID, MIB, MODULE, FreehintVM
from guest_driver import GuestDriver

SLOW = ("-global", "virtio-freehint-testdev.x-job-delay-ms=100")
ROUNDS = 5


class ModuleTest(unittest.TestCase):
    vm: FreehintVM
    driver: GuestDriver

    @classmethod
    def setUpClass(cls) -> None:
        vm = FreehintVM("testdev", memory_mib=512, cpus=2, extra_args=SLOW)
        cls.vm = cls.enterClassContext(vm)
        cls.driver = GuestDriver(cls.vm)
        cls.vm.machine.cmd("freehint-set", id=DEVICE_ID, min_age_ms=20)

    def is_loaded(self) -> bool:
        return self.vm.run("grep '^virtio_freehint ' /proc/modules").status == 0

    def discarded(self) -> int:
        size: int = self.vm.query()["stats"]["discarded"]["bytes"]
        return size

    def test_it_is_found_by_what_the_device_is(self) -> None:
        """As udev finds it: the module's alias matches the device's."""
        path = f"/sys/bus/virtio/devices/{self.driver.device()}/modalias"
        kind = self.vm.check(f"cat {path}").split("v")[1]
        self.assertIn(f"\0alias=v{kind}v*\0".encode(), MODULE.read_bytes())

    def test_unloading_with_hints_in_flight(self) -> None:
        self.driver.settle()
        free = self.driver.free_by_zone()
        churn = self.vm.start(f"churn -m 128 -p 60 -n {8 * ROUNDS}")
        for _ in range(ROUNDS):
            self.driver.wait_in_flight()
            self.unload()
            self.vm.load_module()
            self.assertEqual(self.vm.query()["driver-status"], "active")
            self.driver.wait_accounted()
            self.assertEqual(self.driver.violations(), 0)
        result = self.vm.finish(churn, timeout=300)
        self.assertIn(" 0 bytes lost", result.output)
        self.driver.settle()
        self.assertEqual(self.driver.missing(free), {})

    def unload(self) -> None:
        self.vm.check("rmmod virtio_freehint")
        self.assertFalse(self.is_loaded())
        found = self.vm.query()
        self.assertEqual(found["driver-status"], "not-ready")
        self.assertEqual(found["stats"]["in-flight"]["bytes"], 0)

    def test_hints_flow_as_long_as_it_is_loaded(self) -> None:
        self.unload()
        before = self.discarded()
        self.vm.check("memhog 128m; sleep 1")
        self.assertEqual(self.discarded(), before)
        self.vm.load_module()
        self.driver.settle()
        # All free memory is discarded again, as the new module does not know that it was;
        # page reporting does know, whoever asks it.
        if self.driver.engine() != "page-reporting":
            self.assertGreater(self.discarded() - before, 256 * MIB)
        before = self.discarded()
        self.vm.check("memhog 128m")
        self.driver.settle()
        self.assertGreater(self.discarded() - before, 64 * MIB)


if __name__ == "__main__":
    unittest.main()
