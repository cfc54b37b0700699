# SPDX-License-Identifier: GPL-2.0-or-later
"""The content of free memory at the moment when it is hinted."""

import re
import tempfile
import unittest
from pathlib import Path

from freehint_vm import MIB, FreehintVM
from guest_driver import GuestDriver, wait_for
from hint_trace import HintTrace

TRACING = "/sys/kernel/tracing"
TAKE = f"{TRACING}/events/freehint/freehint_take/enable"
HINT_F_ZERO = 1
# Fills memory with non-zero bytes.
FILL = "tr '\\0' x </dev/zero | head -c 128m >/tmp/file"


class ExpectationTest(unittest.TestCase):
    def content_in_flight(self, vm: FreehintVM) -> bytes:
        """Memory that was given to a device that does nothing with it."""
        driver = GuestDriver(vm)
        vm.check(FILL)
        # Few hints may be in flight, so that these are not for what trickles in meanwhile.
        driver.settle()
        vm.check(f"echo 1 >{TAKE}")
        driver.set_faults(hang=1)
        vm.check("rm /tmp/file")
        wait_for(
            "much memory in flight",
            lambda: driver.counters()["in_flight_bytes"] >= 16 * MIB,
        )
        taken = re.findall(
            r"freehint_take: pfn=(0x\w+) order=(\d+)", vm.check(f"cat {TRACING}/trace")
        )
        content = b""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "memory"
            for pfn, order in taken:
                vm.machine.cmd(
                    "pmemsave",
                    val=int(pfn, 16) * 4096,
                    size=4096 << int(order),
                    filename=str(path),
                )
                content += path.read_bytes()
        self.assertEqual(driver.counters()["timeouts"], 0, "too slow")
        self.assertGreaterEqual(len(content), 16 * MIB)
        return content

    def setUp(self) -> None:
        self.trace = HintTrace()
        self.addCleanup(self.trace.close)

    def boot(self, append: str) -> FreehintVM:
        return FreehintVM(
            "testdev",
            memory_mib=512,
            append=f"{append} virtio_freehint.timeout_ms=60000",
            extra_args=self.trace.args,
        )

    def flags(self) -> set[int]:
        """Of all hints so far that have an answer."""
        return {r.flags for r in self.trace.ranges()}

    def test_zeroed_memory_is_zero_when_it_is_hinted(self) -> None:
        """The hints say so; otherwise the device may leave any content."""
        with self.boot("init_on_free=1") as vm:
            self.assertFalse(any(self.content_in_flight(vm)))
            self.assertEqual(self.flags(), {HINT_F_ZERO})

    def test_other_memory_is_not(self) -> None:
        """The control: the content is that of the memory when it was in use."""
        with self.boot("init_on_free=0") as vm:
            self.assertIn(b"x" * MIB, self.content_in_flight(vm))
            self.assertEqual(self.flags(), {0})


if __name__ == "__main__":
    unittest.main()
