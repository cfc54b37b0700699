# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver for Debian's own kernels, which is built on their page reporting.

These tests cover only the differences; tests of other modules run under such a kernel, too.
"""

import time
import unittest

from freehint_vm import DEVICE_ID, MIB, FreehintVM
from guest_driver import GuestDriver, wait_for

# Page reporting by itself waits this long before each pass.
REPORTING_DELAY_S = 2
# From Linux 7.3 on, this delay is a parameter.
DELAY_FILE = "/sys/module/page_reporting/parameters/page_reporting_delay_ms"
# Far more than any test takes.
NEVER_MS = 60000
THROTTLED = 0x21
# The driver retries an offer for 16 s before it gives up, and on a busy host there may be
# several offers.
RETRIES_S = 120
# The driver tries to register every 5 s.
TRIES_S = 12
GRANULE_ORDER = 9
BURST = 512 * MIB


class StockTest(unittest.TestCase):
    """One guest for all cases."""

    vm: FreehintVM
    driver: GuestDriver

    @classmethod
    def setUpClass(cls) -> None:
        cls.vm = cls.enterClassContext(FreehintVM("testdev", cpus=2))
        cls.driver = GuestDriver(cls.vm)

    def setUp(self) -> None:
        self.driver.settle()
        self.before = self.vm.settle()

    def set_age(self, ms: int) -> None:
        self.vm.machine.cmd("freehint-set", id=DEVICE_ID, min_age_ms=ms)

    def use(self, size: int = BURST) -> float:
        """Have memory used and freed; return when it was free."""
        result = self.vm.run(f"memhog {size}")
        self.assertEqual(result.status, 0, result.output)
        return result.ended

    def is_back(self, since: float, timeout: float) -> bool:
        limit = self.before + BURST // 8
        return self.vm.wait_rss_below(limit, timeout, since=since) is not None

    def test_it_says_where_free_memory_comes_from(self) -> None:
        self.assertEqual(self.driver.engine(), "page-reporting")
        log = self.vm.check("dmesg | grep -c 'free memory comes from page reporting'")
        self.assertEqual(log, "1")

    def test_nobody_waits_for_page_reporting(self) -> None:
        """At its own pace, a 16th would be back in this time, if anything."""
        self.assertTrue(self.is_back(self.use(), REPORTING_DELAY_S))

    def test_memory_rests_for_as_long_as_the_device_asks(self) -> None:
        """Page reporting itself does not know for how long memory has been free."""
        self.set_age(NEVER_MS)
        try:
            ended = self.use()
            self.assertFalse(self.is_back(ended, 3 * REPORTING_DELAY_S))
            outcome = self.vm.flush()
            self.assertEqual(outcome["result"], "done")
            self.assertEqual(outcome["discarded"], outcome["hinted"])
            self.assertGreater(outcome["hinted"], BURST * 3 // 4)
            self.assertEqual(outcome["guest-gauges"]["in-flight"], 0)
            self.assertTrue(self.is_back(ended, 1))
        finally:
            self.set_age(100)

    def test_while_it_is_disabled_nothing_is_hinted(self) -> None:
        self.vm.set_enabled(False)
        wait_for(
            "the driver stops",
            lambda: self.vm.query()["driver-status"] == "waiting",
        )
        hints = self.vm.query()["stats"]["hints"]
        ended = self.use()
        self.assertFalse(self.is_back(ended, 2 * REPORTING_DELAY_S))
        self.assertEqual(self.vm.query()["stats"]["hints"], hints)
        self.vm.set_enabled(True)
        self.assertTrue(self.is_back(ended, 10))

    def test_the_guest_can_forbid_it(self) -> None:
        allowed = "/sys/bus/virtio/drivers/virtio_freehint/virtio*/freehint/allowed"
        self.vm.check(f"echo 0 >$(echo {allowed})")
        self.assertEqual(self.vm.query()["driver-status"], "off")
        ended = self.use()
        self.assertFalse(self.is_back(ended, 2 * REPORTING_DELAY_S))
        self.vm.check(f"echo 1 >$(echo {allowed})")
        self.assertTrue(self.is_back(ended, 10))

    def test_an_offer_that_always_fails_is_given_up(self) -> None:
        """Later offers are made all the same."""
        self.driver.set_faults(status=THROTTLED, retry_after_ms=1)
        self.use(96 * MIB)
        throttled = [self.driver.counters()["throttled_bytes"]]

        def is_given_up() -> bool:
            """No try for longer than between the last two tries."""
            throttled.append(self.driver.counters()["throttled_bytes"])
            time.sleep(1)
            return len(throttled) > 12 and len(set(throttled[-12:])) == 1

        try:
            wait_for("the offer is given up", is_given_up, RETRIES_S + 30)
        finally:
            self.driver.set_faults()
        # It was tried more than once, and not all the time.
        tries = len(set(throttled))
        self.assertGreater(tries, 2, throttled)
        self.assertLess(tries, 16, throttled)
        self.assertTrue(self.is_back(self.use(), REPORTING_DELAY_S))

    def test_gauges_are_those_of_the_allocator(self) -> None:
        stuck = 0
        for line in self.vm.check("cat /proc/buddyinfo").splitlines():
            counts = line.split()[4:]
            for order, count in enumerate(counts[:GRANULE_ORDER]):
                stuck += int(count) * 4096 << order
        counters = self.driver.counters()
        self.assertLess(abs(counters["free_stuck_bytes"] - stuck), 4 * MIB)
        self.assertEqual(counters["in_flight_bytes"], 0)
        free = int(self.vm.check("awk '/MemFree/ {print $2}' /proc/meminfo")) * 1024
        # Gauges are sent along with hints, so have some memory hinted.
        self.use()
        self.driver.settle()
        told = self.vm.query()["guest-gauges"]["free"]
        self.assertLess(abs(told - free), 64 * MIB)


class ContentTest(unittest.TestCase):
    def test_nothing_is_back_before_its_answer(self) -> None:
        """The guest is so small that it uses at once what page reporting gives back.

        Discards are late, so they would destroy what is written to memory that came back
        before its answer.
        """
        slow = ("-global", "virtio-freehint-testdev.x-job-start-delay-ms=300")
        with FreehintVM("testdev", memory_mib=512, cpus=2, extra_args=slow) as vm:
            vm.machine.cmd("freehint-set", id=DEVICE_ID, min_age_ms=20)
            before = vm.query()["stats"]["discarded"]["bytes"]
            for _ in range(6):
                result = vm.run("churn -n 6 -m 208 -p 100", timeout=300)
                self.assertEqual(result.status, 0, result.output)
                self.assertIn(" 0 bytes lost", result.output)
            discarded = vm.query()["stats"]["discarded"]["bytes"] - before
            self.assertGreater(discarded, 64 * MIB)


class BalloonTest(unittest.TestCase):
    def test_a_balloon_that_came_first_reports(self) -> None:
        """However often our driver tries to register.

        Unit tests show that it succeeds when the balloon goes: these kernels crash when a
        balloon is unbound.
        """
        balloon = ("-device", "virtio-balloon-pci,id=balloon0,free-page-reporting=on")
        with FreehintVM(extra_args=balloon) as vm:
            driver = GuestDriver(vm)
            end = time.monotonic() + TRIES_S
            while time.monotonic() < end:
                self.assertEqual(vm.query()["driver-status"], "other-reporter")
                time.sleep(0.05)
            self.assertEqual(driver.attribute("status"), "other-reporter")
            log = vm.check("dmesg | grep freehint.*:").splitlines()
            (line,) = [text for text in log if "not hinting" in text]
            self.assertIn("free page reporting has a device already", line)
            self.assertFalse([text for text in log if "cannot keep track" in text])
            vm.check("memhog 128m")
            self.assertEqual(vm.query()["stats"]["hints"], 0)
            self.assertEqual(vm.flush()["result"], "refused")

    def lags(self, reporter: str, append: str = "") -> list[float]:
        """The times until half of the used memory is back, and 7/8 of it."""
        with FreehintVM(reporter, append=append) as vm:
            before = vm.settle(quiet=5)
            result = vm.run(f"memhog {BURST}")
            self.assertEqual(result.status, 0, result.output)
            times = []
            for share in 2, 8:
                limit = before + BURST // share
                back = vm.wait_rss_below(limit, 90, since=result.ended)
                assert back is not None, reporter
                times.append(back - result.ended)
            return times

    def test_it_is_faster_than_balloon_reporting(self) -> None:
        """Both use the same image. Lags for other delays of page reporting, where that can
        be set, are only printed."""
        ours, theirs = self.lags("freehint"), self.lags("balloon")
        print(f"# half and 7/8 back, s: ours {ours}, balloon {theirs}")
        for mine, other in zip(ours, theirs):
            self.assertLess(mine, 1)
            self.assertGreater(other, mine)
        with FreehintVM("none") as vm:
            can_set = vm.run(f"test -e {DELAY_FILE}").status == 0
        for ms in (100, 0) if can_set else ():
            theirs = self.lags("balloon", f"page_reporting.page_reporting_delay_ms={ms}")
            print(f"# half and 7/8 back, s: balloon at {ms} ms {theirs}")


if __name__ == "__main__":
    unittest.main()
