# SPDX-License-Identifier: GPL-2.0-or-later
"""How many messages, ranges and calls it takes to give back what was freed.

These count events, not seconds, so they are the same on a busy host.
"""

import tempfile
import time
import unittest
from collections import Counter
from pathlib import Path

from freehint_vm import DEVICE_ID, MIB, SYSFS, TRACING, FreehintVM
from guest_driver import GuestDriver, wait_for
from guest_trace import TICK, count_time_in_ticks, traced
from hint_trace import HintTrace, Range

PAGE = 4096

MOST_CALLS = 40
MOST_NOTIFICATIONS = 16

# A run is memory that one range could have named: neighbours within a section. Memory that
# is freed a little later than its neighbours makes another range. So does the end of a
# hint, and how many of these there are follows from when the host answers.
SECTION = 128 * MIB
GRANULE = 2 * MIB
RANGES_A_RUN = 1.5

# A device that takes some time for each job of up to 64 MiB, but is not slow.
SLOW = ("-global", "virtio-freehint-testdev.x-job-delay-ms=5")
MOST_A_HINT = 128 * MIB // PAGE

HUGE_PAGES = "/proc/sys/vm/nr_hugepages"


def runs(ranges: list[Range]) -> int:
    """The fewest ranges that could have named the same memory."""
    named = sorted({granule for r in ranges for granule in r.granules(GRANULE)})
    return 1 + sum(
        second != first + 1 or second % (SECTION // GRANULE) == 0
        for first, second in zip(named, named[1:])
    )


class CountsTest(unittest.TestCase):
    def test_a_gigabyte_takes_few_calls(self) -> None:
        trace = HintTrace()
        self.addCleanup(trace.close)
        with FreehintVM(extra_args=trace.args, icount=True) as vm:
            vm.settle()
            mark = trace.mark()
            names = ("hints", "notifications")
            before = {name: vm.figure(name) for name in names}
            calls = vm.query()["stats"]["discard-calls"]
            discarded = vm.query()["stats"]["discarded"]["bytes"]
            vm.check("memhog 1g")
            vm.settle()
            took = {name: vm.figure(name) - before[name] for name in names}
            took["calls"] = vm.query()["stats"]["discard-calls"] - calls
            discarded = vm.query()["stats"]["discarded"]["bytes"] - discarded
            ranges = trace.ranges(mark)
            took["ranges"], took["runs"] = len(ranges), runs(ranges)
            hints = {r.cookie for r in ranges}
            took["runs of each"] = sum(
                runs([r for r in ranges if r.cookie == cookie]) for cookie in hints
            )

            self.assertGreater(discarded, 960 * MIB, took)
            self.assertLessEqual(took["calls"], MOST_CALLS, took)
            self.assertLessEqual(took["notifications"], MOST_NOTIFICATIONS, took)
            self.assertEqual(took["ranges"], took["runs of each"], took)
            self.assertLessEqual(
                took["ranges"], RANGES_A_RUN * took["runs"] + took["hints"], took
            )

    def test_hints_follow_before_the_answer_to_the_last(self) -> None:
        """An eighth of free memory may be in flight: here, two full hints."""
        with FreehintVM("testdev", memory_mib=3072, extra_args=SLOW) as vm:
            vm.settle()
            vm.trace("virtio_freehint/freehint_submit", "virtio_freehint/freehint_complete")
            vm.check("memhog 2g", timeout=240)
            vm.settle()
            in_flight, most = Counter[str](), 0
            for _, (event, cookie, *rest) in traced(
                vm, "freehint_submit", "freehint_complete"
            ):
                sizes = dict(word.split("=") for word in rest)
                in_flight[cookie] = int(sizes["pages"]) if event == "freehint_submit" else 0
                most = max(most, in_flight.total())
            self.assertGreater(most, MOST_A_HINT)

    def test_answers_share_interrupts(self) -> None:
        """Hints that come before the driver's thread has looked for the first answer."""
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log")
            events = ("virtio_freehint_done", "virtio_notify")
            logged = (word for event in events for word in ("-trace", event))
            with FreehintVM(
                "testdev", memory_mib=3072, extra_args=(*logged, "-D", str(log))
            ) as vm:
                driver = GuestDriver(vm)
                driver.settle()
                driver.hold()
                start = len(log.read_text())
                # All are answered at once, because there is no time to discard.
                vm.set_enabled(False)
                lines = log.read_text()[start:].splitlines()
        answers = [i for i, line in enumerate(lines) if "freehint_done" in line]
        self.assertGreater(len(answers), 1)
        interrupts = [
            i for i in answers if any("virtio_notify" in s for s in lines[i + 1 : i + 2])
        ]
        self.assertEqual(len(interrupts), 1, lines)

    def test_rounds_keep_their_distance(self) -> None:
        """The device is left alone for as long as it asks, however busy the guest gets.

        On a busy host the end of a round would be traced late, so time is what the guest
        executes.
        """
        delay_ms = 700
        with FreehintVM(cpus=2, icount=True) as vm:
            vm.settle()
            vm.machine.cmd(
                "freehint-set", id=DEVICE_ID, delay_ms=delay_ms, min_age_ms=20
            )
            count_time_in_ticks(vm)
            vm.trace("virtio_freehint/freehint_round")
            vm.check("churn -m 128 -n 8 -p 150")
            rounds = [(when, event[-1]) for when, event in traced(vm, "freehint_round")]
            gaps = [
                start - end
                for (end, was), (start, now) in zip(rounds, rounds[1:])
                if (was, now) == ("end", "start")
            ]
            self.assertGreater(len(gaps), 4)
            self.assertGreater(min(gaps), delay_ms / 1000 - 1.5 * TICK)

    def test_a_loop_keeps_its_memory_when_that_was_learned(self) -> None:
        """However much other memory is free, which it gets instead.

        Time is what the guest executes, and nobody waits for the host in between: a busy
        one would have the loop's memory rest for longer than the age that it has learned,
        or let that be forgotten.
        """
        loop = 256 * MIB
        # Far from the ages that are learned, 400 and 1600 ms: what rests for about as long
        # as its age is dropped in some cycles.
        cycle = f"toucher -t -m {loop // MIB} -p 1200"
        # What is hinted lazily is the loop's all the same.
        look = f"cat {SYSFS}/age_ms {SYSFS}/discarded_bytes"
        with FreehintVM(memory_mib=3072, icount=True) as vm:
            vm.settle()
            # The age has to grow twice.
            quiet = f"{cycle} >/dev/null"
            said = vm.check(f"{quiet} -n 5 && {look}; {quiet} -n 4 && {look}")
            age_ms, before, _, after = [int(word) for word in said.split()]
            self.assertLess(after - before, loop // 2, f"learned: {age_ms} ms")


class RestTest(unittest.TestCase):
    """How long memory rests, by the time that the guest executes.

    One guest for all cases; each restores what it found.
    """

    vm: FreehintVM

    @classmethod
    def setUpClass(cls) -> None:
        vm = FreehintVM(icount=True, append="virtio_freehint.adapt=0")
        cls.vm = cls.enterClassContext(vm)

    def setUp(self) -> None:
        self.vm.settle()
        count_time_in_ticks(self.vm)
        self.vm.trace("freehint/freehint_pending", "virtio_freehint/freehint_submit")
        self.addCleanup(self.vm.check, f"echo 0 >{HUGE_PAGES}")

    def set_min_age(self, age_ms: int) -> None:
        self.vm.machine.cmd("freehint-set", id=DEVICE_ID, min_age_ms=age_ms)

    def test_a_guest_that_waits_for_memory_keeps_what_little_is_freed(self) -> None:
        """For one second, if that happens now and then."""
        for _ in range(2):
            # Where it goes on as soon as hints do, it would be two.
            time.sleep(2)
            rested = self.want_too_much(64 * MIB)
            self.assertGreater(rested, 1 - 1.5 * TICK)
            self.assertLess(rested, 2)

    def test_who_waited_for_memory_and_frees_it_waits_for_none(self) -> None:
        """What is freed is hinted as soon as anything is, however often."""
        for _ in range(3):
            self.assertLess(self.want_too_much(1024 * MIB), 0.5)

    def want_too_much(self, back: int) -> float:
        """Ask for more huge pages than there can be, and free some of them.

        Returns after how many seconds these are hinted.
        """
        vm, pool = self.vm, HUGE_PAGES
        stalls = "awk '/^(allocstall|compact_stall)/ { n += $2 } END { print n }'"
        vm.settle()
        before = int(vm.check(f"{stalls} /proc/vmstat"))
        hints = vm.figure("hints")
        # The guest does not answer while the pool has all its memory.
        had = int(vm.check(f"cat {pool}"))
        kept = had + (vm.figure("free_discarded_bytes") - back) // (2 * MIB)
        vm.check(f"echo 4096 >{pool}; echo >{TRACING}/trace; echo {kept} >{pool}")
        wait_for("hints", lambda: vm.figure("hints") > hints)
        self.assertGreater(int(vm.check(f"{stalls} /proc/vmstat")), before)
        events = traced(vm, "freehint_pending", "freehint_submit")
        freed = next(when for when, event in events if event[0] == "freehint_pending")
        hinted = next(when for when, event in events if event[0] == "freehint_submit")
        return hinted - freed

    def test_memory_rests_for_as_long_as_is_asked(self) -> None:
        """And not for twice as long, if it was freed at once and nothing else was."""
        age_ms = 1000
        self.addCleanup(self.set_min_age, self.vm.query()["min-age-ms"])
        self.set_min_age(age_ms)
        self.vm.check("toucher -t -m 256")
        self.vm.settle(quiet=3 * age_ms / 1000)
        self.vm.check(f"echo >{TRACING}/trace; toucher -t -m 256")
        self.vm.settle(quiet=3 * age_ms / 1000)
        events = traced(self.vm, "freehint_pending", "freehint_submit")
        freed = [when for when, event in events if event[0] == "freehint_pending"]
        hinted = [when for when, event in events if event[0] == "freehint_submit"]
        self.assertTrue(freed and hinted)
        rested = hinted[0] - freed[0], hinted[-1] - freed[0]
        self.assertGreater(rested[0], age_ms / 1000 - 1.5 * TICK)
        self.assertLess(rested[1], 1.5 * age_ms / 1000)


if __name__ == "__main__":
    unittest.main()
