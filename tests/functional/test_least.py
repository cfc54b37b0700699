# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver without what can be left out of it: it hints, and gives all memory back.

For a kernel in which the driver learns no pace, tells no gauges, and neither flushes nor
compacts memory.
"""

import unittest

from freehint_vm import MIB, FreehintVM
from guest_driver import GuestDriver
from page_books import PageBooks

from qemu.qmp import ExecuteError  # found by freehint_vm

PARAMETERS = "/sys/module/virtio_freehint/parameters"
# The options of such a kernel, and the parameters of what it leaves out.
OPTIONS = {"FREEHINT", "FREEHINT_DEBUG", "VIRTIO_FREEHINT"}
LAYERS = {"adapt", "drain", "compact"}


class LeastTest(unittest.TestCase):
    """One guest for all cases."""

    vm: FreehintVM
    driver: GuestDriver

    @classmethod
    def setUpClass(cls) -> None:
        cls.vm = cls.enterClassContext(FreehintVM(memory_mib=512, cpus=2))
        cls.driver = GuestDriver(cls.vm)

    def setUp(self) -> None:
        self.driver.settle()

    def tearDown(self) -> None:
        self.driver.wait_accounted()
        self.assertEqual(self.driver.violations(), 0)

    def discarded(self) -> int:
        size: int = self.vm.query()["stats"]["discarded"]["bytes"]
        return size

    def test_what_is_left_out_is_not_there(self) -> None:
        lines = self.vm.check("zcat /proc/config.gz | grep '^CONFIG_.*FREEHINT.*=y'").split()
        self.assertEqual(set(lines), {f"CONFIG_{option}=y" for option in OPTIONS})
        parameters = self.vm.check(f"ls {PARAMETERS}").split()
        self.assertEqual(LAYERS & set(parameters), set())

    def test_freed_memory_comes_back_and_nothing_is_learned(self) -> None:
        before, discarded = self.vm.settle(), self.discarded()
        asked = self.vm.query()["min-age-ms"]
        # What is learned elsewhere is that this is hinted too early.
        result = self.vm.run("churn -n 4 -m 192 -p 500")
        self.assertIn(" 0 bytes lost", result.output)
        self.assertEqual(self.vm.figure("age_ms"), asked)
        self.driver.settle()
        self.assertGreater(self.discarded() - discarded, 4 * 128 * MIB)
        self.assertEqual(self.vm.query()["stats"]["lazy-bytes"], 0)
        self.assertLess(self.vm.settle(), before + 64 * MIB)

    def test_the_host_does_without_gauges_and_flushes(self) -> None:
        self.vm.check("memhog 128m")
        self.driver.settle()
        info = self.vm.query()
        self.assertEqual((info["driver-status"], info["obstacles"]), ("active", []))
        self.assertNotIn("guest-gauges", info)
        with self.assertRaisesRegex(ExecuteError, "does not support flush"):
            self.vm.flush()

    def test_all_memory_is_back_when_it_is_unbound(self) -> None:
        """And is hinted again by the driver that is bound next."""
        self.driver.unbind()
        books = PageBooks(self.vm)
        for _ in range(2):
            discarded = self.discarded()
            self.assertTrue(self.driver.bind())
            self.driver.settle()
            self.assertGreater(self.discarded() - discarded, 256 * MIB)
            self.driver.unbind()
            self.assertEqual(books.close(), [])
            self.assertGreater(books.taken, 0)
        self.assertTrue(self.driver.bind())


if __name__ == "__main__":
    unittest.main()
