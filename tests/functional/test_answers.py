# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver and a device whose answers are wrong, or refusals.

The device's property x-faults selects the fault; the trace has what the device really did.
One guest for all cases: each starts with a device that behaves.
"""

import time
import unittest

from freehint_vm import MIB, FreehintVM
from guest_driver import KEPT, GuestDriver, wait_for
from hint_trace import HintTrace
from page_books import PageBooks

DISCARDED, DECLINED, THROTTLED, FAILED = 0x10, 0x20, 0x21, 0x30
# The last two are not in the specification, but belong to that class.
NEVER = (*range(0x40, 0x48), 0x48, 0xFF)
# No status of the specification: zero, one beside each class, and the last below 0x40.
UNKNOWN = (0x00, 0x11, 0x22, 0x31, 0x3F)

ACK_BYTES = 16
# If nothing happens for so long, nothing will.
QUIET = 1.5
# By then the driver would have tried a device again that it reset for another reason.
LATER = 4
FREED = "memhog 96m"


class AnswersTest(unittest.TestCase):
    vm: FreehintVM
    trace: HintTrace
    driver: GuestDriver
    books: PageBooks
    granule: int

    @classmethod
    def setUpClass(cls) -> None:
        cls.trace = HintTrace()
        cls.addClassCleanup(cls.trace.close)
        vm = FreehintVM("testdev", memory_mib=512, cpus=2, extra_args=cls.trace.args)
        cls.vm = cls.enterClassContext(vm)
        cls.driver = GuestDriver(cls.vm)
        cls.granule = int(cls.driver.attribute("granule"))
        cls.driver.allow(False)
        cls.books = PageBooks(cls.vm)
        cls.driver.allow(True)
        # Each case uses at once what the case before had hinted.
        cls.vm.check("echo N >/sys/module/virtio_freehint/parameters/adapt")

    def setUp(self) -> None:
        self.driver.set_faults()
        if self.driver.attribute("status") == "failed":
            self.driver.unbind()
            self.assertTrue(self.driver.bind())
        self.driver.move_epoch()
        self.driver.settle()
        self.assertEqual(self.driver.attribute("status"), "active")
        self.before = self.driver.counters()

    def tearDown(self) -> None:
        """Whatever happened, no memory is lost, and every hint has an outcome."""
        self.driver.set_faults()
        self.driver.wait_accounted()
        self.assertEqual(self.driver.violations(), 0)
        self.driver.allow(False)
        self.assertEqual(self.books.close(), [])
        self.assertGreater(self.books.taken, 0)
        self.driver.allow(True)
        result = self.vm.run("churn -n 1 -m 64 -p 150")
        self.assertIn(" 0 bytes lost", result.output)

    # -- helpers --

    def rose(self, name: str) -> int:
        """How much a counter of the driver rose in this test."""
        return self.driver.counters()[name] - self.before[name]

    def hint_with(self, **faults: int) -> int:
        """Free memory, have it hinted while the device has faults, and wait.

        Returns a mark of the trace from before that.
        """
        mark = self.trace.mark()
        self.driver.set_faults(**faults)
        self.vm.check(FREED)
        wait_for("hints", lambda: self.trace.ranges(mark))
        self.driver.settle()
        return mark

    def wait_risen(self, counter: str, before: int) -> None:
        """Wait until a counter has grown by a good part of the freed memory."""
        wait_for(
            f"{counter} rises by 32 MiB",
            lambda: self.driver.counters()[counter] - before > 32 * MIB,
        )
        self.driver.settle()

    def assert_quiet(self, why: str) -> None:
        mark = self.trace.mark()
        time.sleep(QUIET)
        self.assertEqual(self.trace.ranges(mark), [], why)

    def assert_left_alone(self, told: set[int]) -> None:
        """Nothing of that is hinted; what the guest happens to free meanwhile may be."""
        mark = self.trace.mark()
        time.sleep(QUIET)
        self.assertEqual(told & self.trace.granules(self.granule, mark), set())

    def assert_all_hinted_again(self, told: set[int]) -> None:
        """All is hinted again once the device behaves and its epoch has moved."""
        self.driver.set_faults()
        mark = self.trace.mark()
        self.driver.move_epoch()
        self.driver.settle()
        counters = self.driver.counters()
        self.assertEqual(counters["refused_bytes"], 0)
        again = self.trace.granules(self.granule, mark)
        # Some of it may be in use by now, and some is kept as a reserve.
        self.assertLess(len(told - again), len(told) // 4 + 4)

    def check_refusal(self, counter: str, **faults: int) -> None:
        """Refused memory stays free and is not hinted before the epoch moves."""
        before = self.driver.counters()[counter]
        mark = self.hint_with(**faults)
        self.wait_risen(counter, before)
        told = self.trace.granules(self.granule, mark)
        self.assertGreater(self.driver.counters()["refused_bytes"], 32 * MIB)
        self.assertEqual(self.driver.attribute("status"), "active")
        self.assert_left_alone(told)
        self.assert_all_hinted_again(told)

    # -- status of a range --

    def test_what_is_declined_waits_for_the_epoch(self) -> None:
        self.check_refusal("declined_bytes", status=DECLINED)

    def test_what_failed_waits_for_the_epoch(self) -> None:
        self.check_refusal("failed_bytes", status=FAILED)

    def test_an_unknown_status_is_a_refusal(self) -> None:
        for status in UNKNOWN:
            with self.subTest(f"0x{status:02x}"):
                self.check_refusal("declined_bytes", status=status)

    def test_what_is_throttled_waits_for_its_time(self) -> None:
        retry_ms = 1500
        mark = self.trace.mark()
        self.driver.set_faults(status=THROTTLED, retry_after_ms=retry_ms)
        self.vm.check(FREED)
        wait_for(
            "most of it is throttled",
            lambda: self.rose("throttled_bytes") > 64 * MIB,
            timeout=60,
        )
        time.sleep(2 * retry_ms / 1000)
        answers = self.trace.answers(mark)
        answered: dict[int, float] = {}
        gaps = []
        for r in self.trace.ranges(mark):
            for granule in r.granules(self.granule):
                if granule in answered:
                    gaps.append(r.when - answered[granule])
                if r.cookie in answers:
                    answered[granule] = answers[r.cookie]
        self.assertTrue(gaps, "nothing was hinted a second time")
        self.assertGreaterEqual(min(gaps), retry_ms / 1000)

        self.driver.set_faults()
        self.driver.settle()
        self.assertLess(self.driver.counters()["free_pending_bytes"], KEPT)

    def test_what_is_never_is_not_hinted_again(self) -> None:
        """Not even if it was used in between."""
        for status in NEVER:
            with self.subTest(f"0x{status:02x}"):
                before = self.driver.counters()["never_bytes"]
                mark = self.hint_with(status=status)
                told = self.trace.granules(self.granule, mark)
                self.wait_risen("never_bytes", before)
                self.driver.set_faults()
                mark = self.trace.mark()
                self.vm.check(FREED)
                self.driver.settle()
                later = self.trace.granules(self.granule, mark)
                self.assertEqual(told & later, set())
                self.assert_all_hinted_again(told)

    # -- the epoch --

    def test_a_refusal_of_another_epoch_does_not_count(self) -> None:
        """The answer's epoch is older or newer than the driver's: the memory is hinted
        again, at the usual pace."""
        for offset in (1, 2**32 - 1):
            with self.subTest(offset=offset):
                mark = self.trace.mark()
                self.driver.set_faults(status=DECLINED, epoch_offset=offset)
                self.vm.check(FREED)
                time.sleep(2)
                hints = self.trace.hints(mark)
                ranges = self.trace.ranges(mark)
                seen = [g for r in ranges for g in r.granules(self.granule)]
                self.assertGreater(len(seen), 2 * len(set(seen)), "not hinted again")
                self.assertLess(len(hints), 200, "hinted without any pace")
                self.driver.set_faults()
                self.driver.settle()
                counters = self.driver.counters()
                self.assertLess(counters["free_pending_bytes"], KEPT)
                self.assertEqual(counters["refused_bytes"], 0)

    # -- the answer as a whole --

    def test_a_status_beyond_the_used_length_is_a_refusal(self) -> None:
        for used_length in (0, ACK_BYTES - 1, ACK_BYTES):
            with self.subTest(used_length=used_length):
                self.check_refusal("declined_bytes", used_length=used_length)

    def test_a_status_beyond_nstatus_is_a_refusal(self) -> None:
        self.check_refusal("declined_bytes", nstatus=0)

    def test_statuses_up_to_the_end_count(self) -> None:
        """An answer with fewer statuses than ranges, or with more than fit."""
        for fault in {"nstatus": 1}, {"used_length": ACK_BYTES + 1}:
            discarded = self.rose("discarded_bytes")
            self.hint_with(**fault)
            self.assertGreater(self.rose("discarded_bytes"), discarded, fault)
        declined = self.rose("declined_bytes")
        self.hint_with(nstatus=2**32 - 1)
        self.assertEqual(self.rose("declined_bytes"), declined)

    def test_an_unknown_result_is_a_refusal(self) -> None:
        mark = self.driver.mark_log()
        for result in (0, 3):
            with self.subTest(result=result):
                self.check_refusal("declined_bytes", result=result)
        self.assertLessEqual(len(self.driver.log(mark)), 1)

    def test_reserved_bits_are_ignored(self) -> None:
        before = self.driver.counters()["discarded_bytes"]
        self.hint_with(reserved=0xFFFF)
        self.wait_risen("discarded_bytes", before)
        self.assertEqual(self.rose("declined_bytes"), 0)

    def test_unsupported_hints_are_not_sent_again(self) -> None:
        log = self.driver.mark_log()
        self.driver.set_faults(result=2, nstatus=0, used_length=ACK_BYTES)
        self.vm.check(FREED)
        wait_for("giving up", lambda: self.driver.attribute("status") == "failed")
        self.assertEqual(self.vm.query()["driver-status"], "failed")
        lines = self.driver.log(log)
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("does not support", lines[0])
        self.vm.check(FREED)
        self.assert_quiet("hinted after giving up")
        self.driver.set_faults()
        time.sleep(LATER)
        self.assert_quiet("hinted after giving up")
        self.assertEqual(self.driver.attribute("status"), "failed")
        self.assertEqual(self.driver.unaccounted(), 0)

        self.driver.unbind()
        self.assertTrue(self.driver.bind())
        self.driver.settle()
        self.assertEqual(self.driver.attribute("status"), "active")
        self.assertGreater(self.driver.counters()["discarded_bytes"], 32 * MIB)

    # -- the state --

    def test_an_unknown_state_is_not_active(self) -> None:
        for state in (3, 2**32 - 1):
            with self.subTest(state=state):
                self.driver.set_faults(state=state)
                wait_for(
                    "the driver waits",
                    lambda: self.driver.attribute("status") == "waiting",
                )
                self.assertEqual(self.vm.query()["driver-status"], "waiting")
                self.vm.check(FREED)
                self.assert_quiet("hinted in an unknown state")
                self.driver.set_faults()
                wait_for(
                    "hints", lambda: self.driver.attribute("status") == "active"
                )


if __name__ == "__main__":
    unittest.main()
