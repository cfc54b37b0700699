# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver and a device that does not answer, not even to a reset."""

import os
import signal
import time
import unittest

from freehint_vm import BUILD, MIB, FreehintVM
from guest_driver import GuestDriver, wait_for
from page_books import PageBooks

import accel  # found by freehint_vm

TIMEOUT_MS = 1000
# How long the driver waits for a reset; VFH_RESET_TIME.
RESET_S = 10
# How long it leaves a device alone after its first reset; VFH_BACKOFF. The time doubles with
# each reset, so a device that hangs until now is tried again before twice this time.
FIRST_REST_S = 1


def stop_for(vm: FreehintVM, seconds: float) -> None:
    """Neither the guest's CPUs nor its devices run for a while."""
    pid = vm.machine.get_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


class RecoveryTest(unittest.TestCase):
    """One guest for all cases: each starts with a device that behaves."""

    vm: FreehintVM
    driver: GuestDriver
    books: PageBooks | None = None

    @classmethod
    def setUpClass(cls) -> None:
        cls.vm = cls.enterClassContext(FreehintVM("testdev", memory_mib=512, cpus=2))
        cls.driver = GuestDriver(cls.vm)
        cls.driver.set_timeout(TIMEOUT_MS)
        # With page reporting, there is no trace of single blocks.
        if cls.driver.engine() != "page-reporting":
            cls.driver.unbind()
            cls.books = PageBooks(cls.vm)
            assert cls.driver.bind()

    def setUp(self) -> None:
        self.driver.settle()
        self.free = self.driver.free_by_zone()
        self.log = self.driver.mark_log()
        self.before = self.driver.counters()

    def tearDown(self) -> None:
        """Bind it anew, too: otherwise the driver would wait longer after each reset."""
        self.driver.set_faults()
        if self.driver.is_bound():
            self.driver.unbind()
        if self.books:
            self.assertEqual(self.books.close(), [])
            self.assertGreater(self.books.taken, 0)
        self.assertTrue(self.driver.bind())
        self.driver.settle()
        self.assertEqual(self.driver.attribute("status"), "active")
        self.assertEqual(self.driver.violations(), 0)

    def wait_failed(self, timeout: float = 30) -> None:
        wait_for(
            "the driver gives the device up",
            lambda: self.vm.query()["driver-status"] == "failed",
            timeout,
        )

    def wait_active(self, timeout: float = 60) -> None:
        """Wait until the driver is active again by itself."""
        wait_for(
            "the driver comes back",
            lambda: self.vm.query()["driver-status"] == "active",
            timeout,
        )

    def failures(self, number: int) -> list[float]:
        """The times at which the driver gives the device up for a while."""
        times: list[float] = []
        last = "active"
        deadline = time.monotonic() + 120
        while len(times) < number:
            self.assertLess(time.monotonic(), deadline, times)
            now = self.vm.query()["driver-status"]
            if (last, now) != ("failed", "failed") and now == "failed":
                times.append(time.monotonic())
            last = now
            time.sleep(0.02)
        return times

    def check_back(self, aborted: int) -> None:
        """All memory is back, and each hint has an outcome."""
        if self.driver.attribute("status") == "active":
            self.driver.settle()
        counters = self.driver.counters()
        self.assertEqual(counters["in_flight_bytes"], 0)
        self.assertEqual(counters["leaked_bytes"], 0)
        self.assertGreaterEqual(counters["aborted_bytes"], aborted)
        self.driver.wait_accounted()
        self.assertEqual(self.driver.missing(self.free), {})
        self.check_churn()

    def check_hints(self) -> None:
        """Memory that was free meanwhile is hinted, and so is memory that is freed later."""
        self.driver.settle()
        self.assertEqual(self.driver.attribute("status"), "active")
        discarded = self.vm.query()["stats"]["discarded"]["bytes"]
        self.vm.check("memhog 96m")
        wait_for(
            "freed memory is discarded",
            lambda: self.vm.query()["stats"]["discarded"]["bytes"]
            > discarded + 64 * MIB,
        )

    def check_churn(self) -> None:
        result = self.vm.run("churn -n 1 -m 128 -p 150")
        self.assertIn(" 0 bytes lost", result.output)

    def test_a_device_that_hangs_is_reset(self) -> None:
        """Churn runs meanwhile, and verifies what it wrote."""
        churn = self.vm.start("churn -n 4 -m 128 -p 400")
        self.driver.set_faults(hang=1)
        self.wait_failed()
        # Read the counters before the device is tried again, and hangs again.
        counters = self.driver.counters()
        self.assertEqual(counters["timeouts"], 1)
        self.assertEqual(len(self.driver.log(self.log)), 1)
        self.driver.set_faults()
        self.wait_active()
        result = self.vm.finish(churn)
        self.assertIn(" 0 bytes lost", result.output)
        self.check_back(aborted=1)
        self.check_hints()

    def test_one_lost_hint_of_many_is_noticed(self) -> None:
        """The device goes on to answer the other hints."""
        self.driver.set_faults(lose=1)
        self.vm.check("memhog 96m")
        churn = self.vm.start("churn -n 4 -m 64 -p 400")
        self.wait_failed()
        self.wait_active()
        self.vm.finish(churn)
        self.assertEqual(self.driver.counters()["timeouts"], 1)
        self.check_back(aborted=1)
        self.check_hints()

    def test_a_device_that_asks_for_a_reset_gets_it(self) -> None:
        self.driver.set_faults(needs_reset=1)
        self.vm.check("memhog 96m")
        self.wait_failed()
        self.assertEqual(self.driver.counters()["timeouts"], 0)
        self.driver.set_faults()
        self.wait_active()
        # One line for each reset; in a slow guest there is more than one.
        resets = self.driver.counters()["resets"] - self.before["resets"]
        lines = [s for s in self.driver.log(self.log) if "asks to be reset" in s]
        self.assertEqual(len(lines), resets)
        # It may ask in answer to gauges, with no hint in flight.
        self.check_back(aborted=0)
        self.check_hints()

    def test_a_device_that_breaks_its_queue_is_reset(self) -> None:
        """It breaks the queue with its answer to gauges, so no hint is overdue."""
        self.driver.set_faults(used_id=2**16 - 1)
        # The guest sends gauges because of that, and hints nothing.
        user = self.vm.start("toucher -m 128 -k 10000")
        self.wait_failed()
        self.driver.set_faults()
        self.wait_active()
        self.assertEqual(self.driver.counters()["timeouts"], 0)
        self.vm.finish(user)
        self.check_back(aborted=0)
        self.check_hints()

    def test_a_device_that_goes_on_to_hang_is_tried_less_and_less(self) -> None:
        self.driver.set_faults(hang=1)
        self.vm.check("memhog 96m")
        times = self.failures(4)
        gaps = [later - sooner for sooner, later in zip(times, times[1:])]
        self.assertGreater(gaps[0], FIRST_REST_S + TIMEOUT_MS / 1000 - 0.2)
        for shorter, longer in zip(gaps, gaps[1:]):
            self.assertGreater(longer, shorter + FIRST_REST_S / 2, gaps)
        # By now it has failed for long enough to be seen in the guest.
        wait_for("sysfs says so", lambda: self.driver.attribute("status") == "failed")
        self.driver.set_faults()
        self.wait_active()
        self.check_back(aborted=1)
        self.check_hints()

    def test_one_that_is_another_device_after_a_reset_stays_failed(self) -> None:
        """The guest's memory is tracked by the old granule."""
        self.driver.set_faults(hang=1, granule=MIB)
        self.vm.check("memhog 96m")
        self.wait_failed()
        wait_for(
            "the driver says why",
            lambda: any("another granule" in s for s in self.driver.log(self.log)),
        )
        self.driver.set_faults()
        time.sleep(4 * FIRST_REST_S)
        self.assertEqual(self.driver.attribute("status"), "failed")
        self.assertEqual(self.vm.query()["driver-status"], "failed")
        self.check_back(aborted=1)

    def test_unbinding_from_a_device_that_hangs(self) -> None:
        """The driver waits, resets the device, and has its memory back when it is unbound."""
        self.driver.set_timeout(60 * TIMEOUT_MS)
        self.driver.set_faults(hang=1)
        self.vm.check("memhog 96m")
        self.driver.wait_in_flight()
        self.driver.set_timeout(TIMEOUT_MS)
        self.driver.unbind()
        self.assertEqual(self.driver.missing(self.free), {})
        self.assertEqual(self.vm.query()["driver-status"], "not-ready")
        self.check_churn()


class StarvedGuestTest(unittest.TestCase):
    """A guest whose clock jumps must not blame its device, which did not run either."""

    def test_a_host_that_runs_neither_for_a_while_does_not_end_hints(self) -> None:
        with FreehintVM("testdev", memory_mib=512, cpus=2) as vm:
            driver = GuestDriver(vm)
            driver.settle()
            driver.set_timeout(5 * TIMEOUT_MS)
            driver.set_faults(hang=1)
            vm.check("memhog 96m")
            driver.wait_in_flight()
            stop_for(vm, 6 * TIMEOUT_MS / 1000)
            # The driver has noticed the time before the device can answer.
            vm.check("true")
            driver.set_faults()
            driver.settle()
            self.assertEqual(driver.counters()["timeouts"], 0)
            self.assertEqual(driver.attribute("status"), "active")


class BusyMainLoopTest(unittest.TestCase):
    """QEMU's main loop is busy for longer than the driver waits for an answer."""

    HOLD_MS = 8000
    OPTIONS = (
        *("-device", "discard-testdev,id=veto0"),
        *("-global", "virtio-freehint-testdev.x-job-delay-ms=200"),
    )

    def test_hints_go_on_when_the_bql_was_held(self) -> None:
        """Hints that were in flight are answered, and later ones are, too."""
        with FreehintVM("testdev", memory_mib=512, cpus=2, extra_args=self.OPTIONS) as vm:
            driver = GuestDriver(vm)
            driver.settle()
            churn = vm.start("churn -n 8 -m 64 -p 400")
            driver.wait_in_flight()
            vm.machine.cmd(
                "qom-set",
                path="/machine/peripheral/veto0",
                property="hold-bql-ms",
                value=self.HOLD_MS,
            )
            self.assertFalse(churn.done.is_set())
            self.assertIn(" 0 bytes lost", vm.finish(churn).output)
            wait_for(
                "the driver is active", lambda: driver.attribute("status") == "active", 60
            )
            driver.settle()
            driver.wait_accounted()
            counters = driver.counters()
            self.assertEqual(counters["leaked_bytes"], 0)
            # Under KVM the guest goes on meanwhile, and may reset the device.
            if accel.chosen(BUILD) == "tcg":
                self.assertEqual(counters["timeouts"], 0)
                self.assertEqual(counters["aborted_bytes"], 0)
            self.assertEqual(driver.violations(), 0)
            # A guest always frees some memory, whatever it does.
            wait_for(
                "each hint has an answer",
                lambda: vm.query()["stats"]["in-flight"]["bytes"] == 0,
            )
            discarded = vm.query()["stats"]["discarded"]["bytes"]
            vm.check("memhog 96m")
            wait_for(
                "freed memory is discarded",
                lambda: vm.query()["stats"]["discarded"]["bytes"]
                > discarded + 64 * MIB,
            )


class UnconfirmedResetTest(unittest.TestCase):
    """A guest of its own, as it is short of memory for long."""

    def test_memory_of_an_unconfirmed_reset_is_never_used(self) -> None:
        """It is used again when the reset is confirmed late."""
        with FreehintVM("testdev", memory_mib=384, cpus=2) as vm:
            driver = GuestDriver(vm)
            driver.settle()
            driver.set_timeout(TIMEOUT_MS)
            log = driver.mark_log()
            free = sum(driver.free_by_zone().values())

            driver.set_faults(hang=1, stuck_status=1)
            vm.check("memhog 96m")
            wait_for(
                "the driver gives up",
                lambda: driver.attribute("status") == "failed",
                RESET_S + 30,
            )
            leaked = driver.counters()["leaked_bytes"]
            self.assertGreater(leaked, 2 * MIB)
            self.assertEqual(driver.counters()["in_flight_bytes"], 0)
            self.assertEqual(driver.counters()["aborted_bytes"], 0)
            self.assertEqual(driver.unaccounted(), 0)
            lines = driver.log(log)
            self.assertEqual(len(lines), 2, lines)
            self.assertIn(f"{leaked >> 10} KiB", lines[1])
            gone = free - sum(driver.free_by_zone().values())
            self.assertLess(abs(gone - leaked), 16 * MIB)

            # The device wakes up late, and only then discards what it was given. A file
            # that fills the memory would lose data if any of that were in use again.
            available = vm.check("awk '/MemFree/ {print $2}' /proc/meminfo")
            mib = int(available) // 1024 - 60
            self.assertGreater(mib, 100)
            vm.check("mkdir /full && mount -t tmpfs -o size=100% tmpfs /full")
            vm.check("dd if=/dev/urandom of=/tmp/seed bs=1M count=1")
            fill = f"for i in $(seq {mib}); do cat /tmp/seed; done >/full/file"
            vm.check(f"set -e; {fill}", 300)
            checksum = vm.check("md5sum /full/file", 300)
            before = vm.query()["stats"]["discard-bytes"]
            driver.set_faults(stuck_status=1)
            wait_for(
                "discards that come late",
                lambda: vm.query()["stats"]["discard-bytes"] - before == leaked,
            )
            self.assertEqual(vm.check("md5sum /full/file", 300), checksum)
            vm.check("rm /full/file")

            # At last the reset is confirmed. Nobody binds the driver again.
            driver.set_faults()
            wait_for(
                "the driver comes back",
                lambda: driver.attribute("status") == "active",
                60,
            )
            counters = driver.counters()
            self.assertEqual(counters["leaked_bytes"], 0)
            self.assertGreaterEqual(counters["aborted_bytes"], leaked)
            driver.settle()
            driver.wait_accounted()
            gone = free - sum(driver.free_by_zone().values())
            self.assertLess(gone, 16 * MIB)
            self.assertEqual(driver.violations(), 0)
            result = vm.run("churn -n 2 -m 128 -p 150")
            self.assertIn(" 0 bytes lost", result.output)


if __name__ == "__main__":
    unittest.main()
