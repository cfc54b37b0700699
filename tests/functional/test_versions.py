# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that moves to another version of QEMU, FREEHINT_OTHER_QEMU, and back."""

import contextlib
import os
import time
import unittest
from pathlib import Path

import migration
from freehint_vm import MIB, QEMU, FreehintVM
from migration import HOG_MIB, start_vm


class VersionsTest(unittest.TestCase):
    def wait_discarded(self, vm: FreehintVM, amount: int) -> None:
        deadline = time.monotonic() + 60
        while vm.query()["stats"]["discarded"]["bytes"] < amount:
            self.assertLess(time.monotonic(), deadline, "the guest does not hint")
            time.sleep(0.1)

    def test_to_another_version_and_back(self) -> None:
        """With a machine type that both have, other settings, and hints on both."""
        other = Path(os.environ["FREEHINT_OTHER_QEMU"])
        machine = ("-machine", "pc-q35-10.0")
        with contextlib.ExitStack() as stack:
            vm = stack.enter_context(start_vm("delay-ms=40", *machine))
            churn = vm.start("churn -m 128 -n 40 -p 200")
            for qemu, delay in (other, 20), (QEMU, 40):
                self.wait_discarded(vm, HOG_MIB * MIB)
                target = start_vm(f"delay-ms={delay}", *machine, origin=vm, qemu=qemu)
                stack.enter_context(target)
                before = vm.query()["rehint-epoch"]
                migration.move(vm, target)
                moved = target.query()
                self.assertEqual(moved["driver-status"], "active")
                self.assertEqual(moved["delay-ms"], delay)
                self.assertNotEqual(moved["rehint-epoch"], before)
                vm = target
            self.assertFalse(churn.done.is_set(), "nothing was in use when it moved")
            self.assertIn(" 0 bytes lost", vm.finish(churn, timeout=300).output)
            migration.check_returns(vm)


if __name__ == "__main__":
    unittest.main()
