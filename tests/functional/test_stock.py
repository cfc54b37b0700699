# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver for a kernel as Debian builds it, whose page reporting it is built on.

Only what is different there; tests of other modules run under such a kernel, too.
"""

import time
import unittest

from freehint_vm import DEVICE_ID, MIB, FreehintVM
from guest_driver import GuestDriver, wait_for

# Page reporting by itself waits for so long before each pass.
REPORTING_DELAY_S = 2
# From Linux 7.3 on that is a parameter.
DELAY_FILE = "/sys/module/page_reporting/parameters/page_reporting_delay_ms"
# Far more than any test takes.
NEVER_MS = 60000
THROTTLED = 0x21
# An offer is tried again for 16 s before it is given up, and there may be several of them
# on a host that is busy.
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
        """Have memory used and freed; when it was free."""
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
        """Its pace would bring back a 16th in this time, if anything."""
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
        """And others that come later are not."""
        self.driver.set_faults(status=THROTTLED, retry_after_ms=1)
        self.use(96 * MIB)
        throttled = [self.driver.counters()["throttled_bytes"]]

        def is_given_up() -> bool:
            """None has been for longer than between the last two tries."""
            throttled.append(self.driver.counters()["throttled_bytes"])
            time.sleep(1)
            return len(throttled) > 12 and len(set(throttled[-12:])) == 1

        try:
            wait_for("the offer is given up", is_given_up, RETRIES_S + 30)
        finally:
            self.driver.set_faults()
        # More than once, and not all the time.
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
        # So that the device hears of it: gauges come along with hints.
        self.use()
        self.driver.settle()
        told = self.vm.query()["guest-gauges"]["free"]
        self.assertLess(abs(told - free), 64 * MIB)


class ContentTest(unittest.TestCase):
    def test_nothing_is_back_before_its_answer(self) -> None:
        """In a guest so small that it uses again at once what page reporting gives back.

        Each discard waits until the guest has long written to its memory again.
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
        """However often the driver tries.

        That it comes back when the balloon goes is for unit tests to show: these
        kernels fall over when a balloon is taken from its driver.
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
        """After how long half of what was used is back, and all but little of it."""
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
        """In the same image; where its delay can be set, whatever that is, is told only."""
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
