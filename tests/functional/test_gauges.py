# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest reports its gauges, and an idle guest is not woken for that, or for hints."""

import re
import time
import unittest
from typing import Any

from freehint_vm import DEVICE_ID, MIB, FreehintVM

# Memory that is under way between guest and host, or that moves between two gauges.
SLACK = 32 * MIB

# The guest reports a change of 1/128 of its memory.
STEP = 1536 * MIB // 128

IDLE_SECONDS = 16

# With builtins of the shell only, as each program that starts takes and frees memory.
COUNT_WAKEUPS = (
    "wakeups() { while read -r name value; do"
    ' [ "$name" != voluntary_ctxt_switches: ] || echo "$value";'
    " done </proc/$pid/status; };"
    f" pid=$(pidof kfreehintd); sleep 5; wakeups; sleep {IDLE_SECONDS}; wakeups"
)


class GaugesTest(unittest.TestCase):
    def wait_gauges(self, vm: FreehintVM, what: str, least: int) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            gauges: dict[str, Any] = vm.query().get("guest-gauges", {})
            if gauges.get(what, 0) >= least:
                return gauges
            time.sleep(0.2)
        self.fail(f"'{what}' is not {least} or more in 30 s: {gauges}")

    def test_gauges_are_what_the_guest_says(self) -> None:
        with FreehintVM() as vm:
            vm.settle()
            gauges = self.wait_gauges(vm, "hinted", 1024 * MIB)
            self.assertAlmostEqual(gauges["free"], vm.memory.now().free, delta=SLACK)
            self.assertLess(gauges["pending"], SLACK)
            self.assertAlmostEqual(
                gauges["free"],
                gauges["hinted"] + gauges["pending"] + gauges["stuck"],
                delta=SLACK,
            )
            # The gauges that went with the last hint count that hint as in flight.
            self.assertLess(gauges["in-flight"], STEP)

    def test_gauges_come_without_hints(self) -> None:
        """A guest that only allocates hints nothing, but is awake.

        The gauges say why such a guest does not shrink, as there is no obstacle.
        """
        with FreehintVM(memory_mib=1024) as vm:
            before = vm.settle()
            self.wait_gauges(vm, "free", 768 * MIB)
            hints = vm.query()["stats"]["hints"]
            user = vm.start("fragment -m 512 -k 1")
            vm.wait_output(user, "ready")
            deadline = time.monotonic() + 30
            while vm.query()["guest-gauges"]["free"] > 512 * MIB:
                self.assertLess(time.monotonic(), deadline, vm.query())
                time.sleep(0.2)
            info = vm.query()
            self.assertEqual((info["stats"]["hints"], info["obstacles"]), (hints, []))
            self.assertGreater(vm.memory.now().rss, before + 400 * MIB)

    def test_reuse_and_what_waits(self) -> None:
        with FreehintVM() as vm:
            vm.settle()
            vm.check("churn -m 256 -n 3 -p 500 -t")
            self.wait_gauges(vm, "reused", 64 * MIB)
            vm.machine.cmd("freehint-set", id=DEVICE_ID, min_age_ms=60000)
            vm.check("memhog 512m")
            self.wait_gauges(vm, "pending", 256 * MIB)

    def test_an_idle_guest_sleeps(self) -> None:
        """The thread is not woken, and the timer for the gauges wakes no CPU."""
        with FreehintVM() as vm:
            vm.settle()
            vm.trace("freehint", "virtio_freehint", "timer/timer_start")
            result = vm.check(COUNT_WAKEUPS)
            before, after = map(int, result.split())
            lines = vm.traced("freehint", "function=vfh_")
            self.assertEqual(after, before, "\n".join(lines))

            looks = [line for line in lines if "function=vfh_look" in line]
            self.assertGreater(len(looks), 1)
            for line in looks:
                self.assertRegex(line, r"flags=\S*\bD\b")

    def test_gauges_need_no_notification(self) -> None:
        """They are sent along with hints."""
        with FreehintVM() as vm:
            vm.settle()
            vm.trace("virtio_freehint/freehint_gauges", "virtio_freehint/freehint_submit")
            vm.check("memhog 512m")
            vm.settle()
            sent = [
                (float(match[1]), match[2])
                for line in vm.traced(": freehint_")
                if (match := re.search(r"([\d.]+): freehint_(\w+):", line))
            ]
            # Classify each by what was sent before it; "rest" is the last report after hints.
            kinds = {"submit": "along", "along": "rest", "rest": "look", "look": "look"}
            kind, told = "look", []
            for when, event in sent:
                kind = "submit" if event == "submit" else kinds[kind]
                told.append((when, kind))
            self.assertGreater(len([kind for _, kind in told if kind == "along"]), 1)
            # The others are those that the timer sent.
            looks = [when for when, kind in told if kind == "look"]
            for first, second in zip(looks, looks[1:]):
                self.assertGreater(second - first, 1, told)


if __name__ == "__main__":
    unittest.main()
