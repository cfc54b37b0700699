# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that idles brings memory together that is free in small pieces."""

import time
import unittest

from freehint_vm import MIB, FreehintVM
from guest_driver import wait_for

SWITCH = "/sys/module/virtio_freehint/parameters/compact"
# A page of each 64 stays: 8 of a granule, 8 MiB of this.
SIZE = 512 * MIB
PIECES = f"fragment -m {SIZE // MIB} -k 64"
# What is too little to be worth some work: an eighth would do in a guest of 2 GiB.
LITTLE = SIZE // 4
# Its share of a CPU's time, and what it may take at a time, in us.
SHARE_US = 10_000
SLICE_US = 100_000
# Seconds in which an idle guest would have compacted much of it.
WHILE = 10


class CompactTest(unittest.TestCase):
    """One guest for all cases. Nobody asks it for figures while it has to be idle."""

    vm: FreehintVM

    @classmethod
    def setUpClass(cls) -> None:
        cls.vm = cls.enterClassContext(FreehintVM(cpus=2))

    def setUp(self) -> None:
        self.vm.settle()
        self.pieces = self.vm.start(PIECES)
        self.vm.wait_output(self.pieces, "ready")
        wait_for("memory is in pieces", lambda: self.stuck() > SIZE - SIZE // 8)

    def tearDown(self) -> None:
        """No page may have another content than before."""
        self.vm.check(f"echo N >{SWITCH}; killall -TERM fragment")
        result = self.vm.finish(self.pieces)
        self.assertEqual(result.status, 0, result.output)

    def stuck(self) -> int:
        """By the gauges, which the guest sends by itself."""
        gauges = self.vm.query()["guest-gauges"]
        return int(gauges["stuck"]) if gauges else 0

    def moved(self) -> int:
        return self.vm.figure("compact_moved_bytes")

    def test_an_idle_guest_gives_back_what_lay_in_pieces(self) -> None:
        vm, moved = self.vm, self.moved()
        gained = vm.figure("compact_gained_bytes")
        discarded = vm.query()["stats"]["discarded"]["bytes"]
        vm.check(f"echo Y >{SWITCH}")
        wait_for("little is stuck", lambda: self.stuck() < LITTLE, timeout=120)
        vm.settle()
        discarded = vm.query()["stats"]["discarded"]["bytes"] - discarded
        self.assertGreater(discarded, SIZE // 2)
        self.assertGreater(vm.figure("compact_gained_bytes") - gained, SIZE // 2)
        # Each page that stayed had to move once, as a rule.
        self.assertGreater(self.moved() - moved, SIZE // 64 // 2)
        self.assertLess(self.moved() - moved, SIZE // 64 * 2)
        uptime = float(vm.check("cat /proc/uptime").split()[0])
        self.assertLess(vm.figure("compact_us"), uptime * SHARE_US + SLICE_US)

    def test_a_busy_guest_is_left_alone(self) -> None:
        vm = self.vm
        loops = [vm.start("while [ ! -e /tmp/idle ]; do :; done") for _ in range(2)]
        vm.check(f"rm -f /tmp/idle; sleep 2; echo Y >{SWITCH}")
        moved = self.moved()
        time.sleep(WHILE)
        self.assertEqual(self.moved(), moved)
        vm.check("touch /tmp/idle")
        for loop in loops:
            vm.finish(loop)
        wait_for("it was only busy", lambda: self.stuck() < SIZE // 2, timeout=120)

    def test_the_administrator_can_switch_it_off(self) -> None:
        moved = self.moved()
        time.sleep(WHILE)
        self.assertEqual(self.moved(), moved)


if __name__ == "__main__":
    unittest.main()
