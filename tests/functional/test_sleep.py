# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest sleeps, and finds its memory again; then hints go on."""

import tempfile
import time
import unittest

from freehint_vm import BUILD, MIB, SYSFS, FreehintVM

SLOW = ("-global", "virtio-freehint-device.x-slice-delay-ms=50")
MEMORY_MIB = 768


class SleepTest(unittest.TestCase):
    def discarded(self, vm: FreehintVM) -> int:
        return int(vm.query()["stats"]["discarded"]["bytes"])

    def start_stress(self, vm: FreehintVM, seconds: int) -> None:
        """The guest goes on with it when it wakes up, and nobody waits for it."""
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
        vm.check_kernel()

    def test_devices_that_sleep_and_wake_lose_nothing(self) -> None:
        with FreehintVM(cpus=2, memory_mib=MEMORY_MIB, extra_args=SLOW) as vm:
            self.start_stress(vm, 25)
            vm.check("echo devices >/sys/power/pm_test")
            for _ in range(2):
                vm.check("sleep 1; echo mem >/sys/power/state")
            self.assert_nothing_was_lost(vm)
            self.assert_hints_go_on(vm)

    def test_hibernation_loses_nothing_and_all_is_hinted_again(self) -> None:
        with tempfile.NamedTemporaryFile(dir=BUILD, prefix="swap-") as swap:
            swap.truncate(2 * MEMORY_MIB * MIB)
            disk = ("-drive", f"if=virtio,format=raw,file={swap.name}")
            with FreehintVM(
                cpus=2, memory_mib=MEMORY_MIB, extra_args=(*SLOW, *disk)
            ) as awake:
                awake.check("mkswap /dev/vda && swapon /dev/vda")
                awake.check("echo /dev/vda >/sys/power/resume")
                self.start_stress(awake, 15)
                awake.start("echo shutdown >/sys/power/disk; echo disk >/sys/power/state")
                awake.machine.wait(timeout=180)
            with FreehintVM(
                cpus=2,
                memory_mib=MEMORY_MIB,
                extra_args=(*SLOW, *disk),
                append="resume=/dev/vda",
                origin=awake,
                wakes=True,
            ) as vm:
                self.assert_nothing_was_lost(vm)
                self.assert_hints_go_on(vm)
                # What was free before is free in a machine that never heard of it.
                self.assertLess(vm.settle(), (MEMORY_MIB - 256) * MIB)


if __name__ == "__main__":
    unittest.main()
