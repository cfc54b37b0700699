# SPDX-License-Identifier: GPL-2.0-or-later
"""The host asks for all free memory at once, and learns how far that got."""

import time
import unittest
from typing import Any

from freehint_vm import DEVICE_ID, MIB, SYSFS, FreehintVM
from guest_driver import GuestDriver
from hint_trace import HintTrace

# Far longer than any test: without a flush nothing is hinted.
NEVER_MS = 60000

# What a complete flush leaves behind: the last blocks of their kinds.
REST = 16 * MIB


def let_rest(vm: FreehintVM) -> None:
    """From here on, freed memory is not hinted by itself."""
    vm.settle()
    vm.machine.cmd("freehint-set", id=DEVICE_ID, min_age_ms=NEVER_MS)


class FlushTest(unittest.TestCase):
    def assert_done(self, outcome: dict[str, Any]) -> None:
        self.assertEqual(outcome["result"], "done", outcome)
        gauges = outcome["guest-gauges"]
        self.assertEqual(gauges["in-flight"], 0, outcome)
        self.assertLess(gauges["pending"], REST, outcome)

    def wait_free_below(self, vm: FreehintVM, limit: int) -> None:
        deadline = time.monotonic() + 60
        while (free := vm.memory.now().free) is None or free > limit:
            self.assertLess(time.monotonic(), deadline, f"{free} bytes are free")
            time.sleep(0.1)

    def test_a_flush_takes_what_is_too_young(self) -> None:
        """Including what the allocator keeps for single CPUs."""
        with FreehintVM(cpus=2) as vm:
            let_rest(vm)
            before = vm.memory.now().rss
            vm.check("memhog 512m")
            hinted = vm.figure("hinted_bytes")
            self.assertGreater(vm.figure("free_pending_bytes"), 256 * MIB)

            outcome = vm.flush()
            self.assert_done(outcome)
            self.assertEqual(vm.figure("in_flight_bytes"), 0)
            self.assertEqual(vm.figure("hinted_bytes") - hinted, outcome["hinted"])
            self.assertGreaterEqual(outcome["hinted"], 480 * MIB)
            self.assertEqual(outcome["discarded"], outcome["hinted"])
            self.assertLess(vm.memory.now().rss, before + 64 * MIB)

    def test_each_flush_is_answered_once(self) -> None:
        """By this driver; the next one does not answer earlier requests."""
        trace = HintTrace()
        self.addCleanup(trace.close)
        with FreehintVM(extra_args=trace.args) as vm:
            vm.settle()
            first, second = vm.flush(), vm.flush()
            self.assert_done(second)
            self.assertNotEqual(first["flush-id"], second["flush-id"])
            ids = [first["flush-id"], second["flush-id"]]
            # A hint sent after that comes after everything sent before.
            GuestDriver(vm).move_epoch()
            vm.settle()
            self.assertEqual(trace.flush_answers(), ids)
            self.assertEqual(vm.figure("flushes"), 2)

            vm.check(
                "cd /sys/bus/virtio/drivers/virtio_freehint && d=$(echo virtio*)"
                " && echo $d >unbind && echo $d >bind"
            )
            vm.settle()
            self.assertEqual(vm.figure("flushes"), 0)
            third = vm.flush()
            self.assert_done(third)
            self.assertEqual(vm.figure("flushes"), 1)
            self.assertEqual(trace.flush_answers(), [*ids, third["flush-id"]])

    def test_a_guest_that_does_not_hint_refuses(self) -> None:
        with FreehintVM() as vm:
            vm.settle()
            vm.check(f"echo 0 | tee {SYSFS}/allowed")
            outcome = vm.flush()
            self.assertEqual(outcome["result"], "refused")
            self.assertEqual(outcome["driver-status"], "off")
            self.assertEqual(outcome["hinted"], 0)

            vm.check(f"echo 1 | tee {SYSFS}/allowed")
            self.assert_done(vm.flush())

    def test_a_slow_host_is_told_how_far_it_got(self) -> None:
        slow = ("-global", "virtio-freehint-testdev.x-job-delay-ms=100")
        with FreehintVM("testdev", memory_mib=768, extra_args=slow) as vm:
            let_rest(vm)
            vm.check("memhog 384m")
            outcome = vm.flush(timeout_ms=1000)
            self.assertEqual(outcome["result"], "timeout", outcome)
            self.assertGreater(outcome["hinted"], 0)
            self.assertLess(outcome["hinted"], 320 * MIB)
            left = outcome["guest-gauges"]
            self.assertGreater(left["pending"] + left["in-flight"], 64 * MIB)

            self.assert_done(vm.flush(timeout_ms=30000))

    def test_a_guest_out_of_memory_is_left_alone(self) -> None:
        """It waits for the end of a pause, if there is time."""
        with FreehintVM() as vm:
            let_rest(vm)
            victim = vm.start("memhog -r1000 512m")
            self.wait_free_below(vm, 1024 * MIB)
            vm.check("echo f > /proc/sysrq-trigger")
            self.assertNotEqual(vm.finish(victim).status, 0)

            outcome = vm.flush(timeout_ms=1000)
            self.assertEqual(outcome["result"], "timeout", outcome)
            self.assertEqual(outcome["hinted"], 0)
            self.assertGreater(outcome["guest-gauges"]["pending"], 256 * MIB)

            outcome = vm.flush(timeout_ms=30000)
            self.assert_done(outcome)
            self.assertGreater(outcome["hinted"], 256 * MIB)

    def test_compaction_brings_pieces_together(self) -> None:
        with FreehintVM() as vm:
            let_rest(vm)
            pieces = vm.start("fragment -m 512 -k 16")
            vm.wait_output(pieces, "ready")
            plain = vm.flush()
            self.assert_done(plain)
            self.assertGreater(plain["guest-gauges"]["stuck"], 256 * MIB, plain)

            compacted = vm.flush(timeout_ms=30000, compact=True)
            self.assert_done(compacted)
            self.assertLess(compacted["guest-gauges"]["stuck"], 128 * MIB, compacted)
            self.assertGreater(compacted["discarded"], 128 * MIB)

            vm.check("killall -TERM fragment")
            result = vm.finish(pieces)
            self.assertEqual(result.status, 0, result.output)

    def test_compaction_ends_in_time(self) -> None:
        """Or at least the flush ends; the guest goes on as before."""
        with FreehintVM() as vm:
            let_rest(vm)
            pieces = vm.start("fragment -m 512 -k 8")
            vm.wait_output(pieces, "ready")
            outcome = vm.flush(timeout_ms=50, compact=True)
            self.assertIn(outcome["result"], ("done", "timeout"))
            self.assertGreater(outcome["guest-gauges"]["stuck"], 256 * MIB, outcome)

            # It waits for the other flush, which has not compacted either.
            outcome = vm.flush(timeout_ms=30000)
            self.assert_done(outcome)
            self.assertGreater(outcome["guest-gauges"]["stuck"], 256 * MIB, outcome)
            vm.check("killall -TERM fragment")
            result = vm.finish(pieces)
            self.assertEqual(result.status, 0, result.output)

    def test_the_driver_goes_while_a_flush_is_prepared(self) -> None:
        """Compaction looks at zones that are no longer tracked by then.

        Memory that is zeroed when it is freed shows who uses it later.
        """
        with FreehintVM(cpus=2, append="init_on_free=1") as vm:
            driver = GuestDriver(vm)
            let_rest(vm)
            pieces = vm.start("fragment -m 256 -k 16")
            vm.wait_output(pieces, "ready")
            for _ in range(4):
                vm.machine.cmd(
                    "freehint-flush", id=DEVICE_ID, timeout_ms=20000, compact=True
                )
                driver.unbind()
                ended = vm.machine.event_wait("FREEHINT_FLUSH_COMPLETED", timeout=30.0)
                self.assertIsNotNone(ended, "a flush has not ended")
                self.assertTrue(driver.bind())
            vm.check("killall -TERM fragment")
            result = vm.finish(pieces)
            self.assertEqual(result.status, 0, result.output)
            self.assert_done(vm.flush())

    def test_flushes_lose_no_byte(self) -> None:
        """Nor does a guest that is never idle keep a flush from ending."""
        with FreehintVM(cpus=2) as vm:
            vm.settle()
            churn = vm.start("churn -m 128 -n 4 -p 300")
            compact = False
            while not churn.done.is_set():
                outcome = vm.flush(compact=compact)
                self.assertEqual(outcome["result"], "done", outcome)
                compact = not compact
            result = vm.finish(churn)
            self.assertEqual(result.status, 0, result.output)
            self.assertIn(" 0 bytes lost", result.output)


if __name__ == "__main__":
    unittest.main()
