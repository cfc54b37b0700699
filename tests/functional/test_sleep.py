# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest sleeps and wakes up with its memory intact; then hints go on."""

import contextlib
import tempfile
import time
import unittest
from collections.abc import Iterator

from freehint_vm import BUILD, MIB, SYSFS, FreehintVM
from guest_driver import GuestDriver, wait_for

SLOW = ("-global", "virtio-freehint-testdev.x-job-delay-ms=50")
MEMORY_MIB = 768


class SleepTest(unittest.TestCase):
    def discarded(self, vm: FreehintVM) -> int:
        return int(vm.query()["stats"]["discarded"]["bytes"])

    def start_stress(self, vm: FreehintVM, seconds: int) -> None:
        """Start it in the background; the guest goes on with it when it wakes up."""
        command = f"stress -m 256 -s {seconds} >/root/stress 2>&1"
        vm.check(f"({command}; echo status $? >>/root/stress) &")

    def assert_nothing_was_lost(self, vm: FreehintVM) -> None:
        vm.check("until grep -q '^status' /root/stress; do sleep 1; done", 180)
        output = vm.check("cat /root/stress")
        self.assertIn("\nstatus 0", output)
        self.assertIn(" 0 bytes lost\nstatus", output)
        self.assertEqual(vm.check(f"cat {SYSFS}/leaked_bytes"), "0")
        overdue = vm.check("dmesg | grep 'no answer' || true")
        self.assertEqual((vm.figure("timeouts"), overdue), (0, ""))

    def assert_hints_go_on(self, vm: FreehintVM) -> None:
        self.assertEqual(vm.check(f"cat {SYSFS}/status"), "active")
        before = self.discarded(vm)
        vm.check("memhog 256m")
        deadline = time.monotonic() + 30
        while self.discarded(vm) < before + 192 * MIB:
            self.assertLess(time.monotonic(), deadline, "no hints after waking up")
            time.sleep(0.1)
        self.assertIn("violations 0", vm.check("cat /sys/kernel/debug/freehint/check"))

    def test_devices_that_sleep_and_wake_lose_nothing(self) -> None:
        with self.start(*SLOW) as vm:
            self.start_stress(vm, 25)
            vm.check("echo devices >/sys/power/pm_test")
            for _ in range(2):
                vm.check("sleep 1; echo mem >/sys/power/state")
            self.assert_nothing_was_lost(vm)
            self.assert_hints_go_on(vm)

    @contextlib.contextmanager
    def swap_disk(self) -> Iterator[tuple[str, ...]]:
        """A disk for the guest's memory while the guest hibernates."""
        with tempfile.NamedTemporaryFile(dir=BUILD, prefix="swap-") as swap:
            swap.truncate(2 * MEMORY_MIB * MIB)
            yield ("-drive", f"if=virtio,format=raw,file={swap.name}")

    def prepare(self, vm: FreehintVM) -> None:
        vm.check("mkswap /dev/vda && swapon /dev/vda")
        vm.check("echo /dev/vda >/sys/power/resume")

    def hibernate(self, vm: FreehintVM) -> None:
        vm.start("echo shutdown >/sys/power/disk; echo disk >/sys/power/state")
        vm.machine.wait(timeout=180)

    def start(self, *args: str) -> FreehintVM:
        return FreehintVM("testdev", cpus=2, memory_mib=MEMORY_MIB, extra_args=args)

    def wake(self, origin: FreehintVM, *args: str) -> FreehintVM:
        return FreehintVM(
            "testdev",
            cpus=2,
            memory_mib=MEMORY_MIB,
            extra_args=args,
            append="resume=/dev/vda",
            origin=origin,
            wakes=True,
        )

    def compacted(self, vm: FreehintVM) -> int:
        """The number of pages that compaction has scanned."""
        return int(vm.check("awk '/compact_migrate_scanned/ {print $2}' /proc/vmstat"))

    def test_hibernation_loses_nothing_and_all_is_hinted_again(self) -> None:
        with self.swap_disk() as disk:
            args = (*SLOW, *disk)
            with self.start(*args) as awake:
                self.prepare(awake)
                self.assertEqual(awake.flush()["flush-id"], 1)
                self.start_stress(awake, 15)
                self.hibernate(awake)
            with self.wake(awake, *args) as vm:
                self.assert_nothing_was_lost(vm)
                self.assert_hints_go_on(vm)
                # Memory that was free before is hinted again, as this QEMU is a new one.
                self.assertLess(vm.settle(), (MEMORY_MIB - 256) * MIB)
                # The new QEMU's first flush has the same number as the old one's.
                before = self.compacted(vm)
                outcome = vm.flush(compact=True)
                self.assertEqual((outcome["flush-id"], outcome["result"]), (1, "done"))
                self.assertGreater(self.compacted(vm), before)

    def test_waking_up_with_another_device(self) -> None:
        """Its granule differs from the one that the guest's memory is tracked by."""
        other = ("-global", "virtio-freehint-device.x-granule=1M")
        with self.swap_disk() as disk:
            with self.start(*disk) as awake:
                self.prepare(awake)
                self.hibernate(awake)
            with self.wake(awake, *disk, *other) as vm:
                driver = GuestDriver(vm)
                wait_for(
                    "the driver gives up", lambda: driver.attribute("status") == "failed"
                )
                self.assertEqual(vm.query()["driver-status"], "failed")
                self.assertIn("another granule", vm.check("dmesg"))
                vm.check("memhog 256m")
                self.assertEqual(vm.query()["stats"]["rejected"]["misaligned"]["ranges"], 0)
                driver.unbind()
                self.assertTrue(driver.bind())
                self.assertEqual(driver.attribute("granule"), str(MIB))
                self.assert_hints_go_on(vm)


if __name__ == "__main__":
    unittest.main()
