# SPDX-License-Identifier: GPL-2.0-or-later
"""Another kernel is started while the host still has hints of this one."""

import time
import unittest
from pathlib import Path
from typing import Any

from freehint_vm import INITRAMFS, KERNEL, SYSFS, FreehintVM

COMMAND_LINE = "console=ttyS0 quiet panic=-1"
# Discards that take seconds, but less than the time after which the driver resets the
# device.
SLOW = ("-global", "virtio-freehint-testdev.x-job-delay-ms=200")
# The next kernel has no driver, so anything discarded then was hinted by the old one.
NO_DRIVER = "initcall_blacklist=virtio_freehint_driver_init"


def disk(path: Path) -> tuple[str, str]:
    return ("-drive", f"if=virtio,format=raw,readonly=on,file={path}")


def start(append: str = "") -> FreehintVM:
    return FreehintVM(
        "testdev",
        cpus=2,
        extra_args=(*SLOW, *disk(KERNEL), *disk(INITRAMFS)),
        append=append,
    )


# The guest has the kernel and the initramfs as disks, too.
COPY = "cat /dev/vda >/root/kernel; cat /dev/vdb >/root/initrd"


def kexec(command_line: str, *options: str) -> str:
    return f"kexec {' '.join(options)} /root/kernel /root/initrd '{command_line}'"


def counted(vm: FreehintVM) -> tuple[Any, Any, Any]:
    stats = vm.query()["stats"]
    return stats["hinted"], stats["discarded"], stats["in-flight"]


class KexecTest(unittest.TestCase):
    def wait_in_flight(self, vm: FreehintVM) -> None:
        vm.check("memhog 512m")
        vm.check(f"until [ $(cat {SYSFS}/in_flight_bytes) != 0 ]; do :; done")

    def assert_nothing_is_discarded(self, vm: FreehintVM) -> None:
        before = counted(vm)
        self.assertEqual(before[2]["bytes"], 0)
        result = vm.run("stress -m 512 -s 5", timeout=120)
        self.assertEqual(result.status, 0, result.output)
        self.assertIn(" 0 bytes lost", result.output.splitlines()[-1])
        time.sleep(1)
        self.assertEqual(counted(vm), before)

    def test_the_next_kernel_keeps_its_memory(self) -> None:
        with start() as vm:
            vm.check(COPY)
            self.wait_in_flight(vm)
            vm.start(kexec(f"{COMMAND_LINE} {NO_DRIVER}"))
            vm.wait_boots(2)
            self.assertIn(NO_DRIVER, vm.check("cat /proc/cmdline"))
            self.assert_nothing_is_discarded(vm)

    def test_the_next_kernel_hints_too(self) -> None:
        with start() as vm:
            vm.check(COPY)
            self.wait_in_flight(vm)
            vm.start(kexec(COMMAND_LINE))
            vm.wait_boots(2)
            self.wait_in_flight(vm)
            self.assertEqual(vm.query()["driver-status"], "active")

    def test_a_kernel_that_dumps_another_does_not_hint(self) -> None:
        with start("crashkernel=320M") as vm:
            vm.check(COPY)
            vm.check(kexec(COMMAND_LINE, "-p"))
            vm.start("echo c >/proc/sysrq-trigger")
            vm.wait_boots(2)
            self.assertIn("elfcorehdr=", vm.check("cat /proc/cmdline"))
            self.assertIn("kdump kernel", vm.check("dmesg | grep virtio_freehint"))
            before = counted(vm)
            vm.check("memhog 32m")
            time.sleep(1)
            self.assertEqual(counted(vm), before)


if __name__ == "__main__":
    unittest.main()
