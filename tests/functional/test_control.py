# SPDX-License-Identifier: GPL-2.0-or-later
"""What the operator sees and does: query-freehint and freehint-set."""

import time
import unittest
from collections.abc import Callable
from typing import Any

from freehint_vm import MIB, PACKED_RING, FreehintVM

CHURN_BYTES = 512 * MIB
VIRTIO_F_RING_PACKED = 34
DRIVER = "/sys/bus/virtio/drivers/virtio_freehint"


def discards(info: dict[str, Any]) -> tuple[int, int]:
    """The counters that must not grow while nothing may be discarded."""
    stats = info["stats"]
    return stats["discard-calls"], stats["discard-bytes"]


def total(counts: Any, unit: str) -> int:
    """Sum of one unit ("bytes" or "ranges") over counts by reason."""
    return sum(count[unit] for count in counts.values())


class ControlTest(unittest.TestCase):
    def assert_adds_up(self, info: dict[str, Any]) -> None:
        """hinted = discarded + declined + throttled + rejected + failed + in flight."""
        stats = info["stats"]
        for unit in ("ranges", "bytes"):
            parts = sum(
                stats[name][unit]
                for name in ("discarded", "throttled", "failed", "in-flight")
            )
            parts += total(stats["declined"], unit) + total(stats["rejected"], unit)
            self.assertEqual(stats["hinted"][unit], parts, f"{unit}: {stats}")

    def check_veto(
        self, vm: FreehintVM, set_vetoed: Callable[[bool], object], state: str, reason: str
    ) -> None:
        """With the veto nothing is discarded; without it, all free memory is."""
        before = vm.settle()
        set_vetoed(True)
        frozen = discards(vm.query())
        self.assertEqual((vm.query()["state"], vm.query()["reason"]), (state, reason))

        vm.check("memhog 512m")
        time.sleep(3)
        self.assertEqual(discards(vm.query()), frozen)
        self.assertGreater(vm.memory.now().rss, before + CHURN_BYTES // 2)

        set_vetoed(False)
        back = vm.wait_rss_below(before + 64 * MIB, timeout=30)
        self.assertIsNotNone(back, "no convergence without the veto")
        info = vm.query()
        self.assertEqual((info["state"], info.get("reason")), ("active", None))
        self.assertGreater(discards(info), frozen)
        self.assert_adds_up(info)

    def test_disabling_stops_discards_and_enabling_resumes(self) -> None:
        with FreehintVM() as vm:
            self.check_veto(
                vm, lambda vetoed: vm.set_enabled(not vetoed), "disabled", "operator"
            )

    def test_who_pins_memory_stops_discards_until_it_goes(self) -> None:
        with FreehintVM(extra_args=("-device", "discard-testdev,id=veto0")) as vm:
            self.check_veto(
                vm,
                lambda vetoed: vm.machine.cmd(
                    "qom-set",
                    path="/machine/peripheral/veto0",
                    property="disabled",
                    value=vetoed,
                ),
                "vetoed",
                "pinned",
            )

    def test_disabling_in_the_middle_of_discards(self) -> None:
        """No discard after the command has returned, whatever the guest does."""
        with FreehintVM(cpus=2) as vm:
            churn = vm.start("churn -m 256 -n 8 -p 200 -t")
            for _ in range(5):
                time.sleep(1)
                vm.set_enabled(False)
                frozen = discards(vm.query())
                time.sleep(0.5)
                self.assertEqual(discards(vm.query()), frozen)
                vm.set_enabled(True)
            result = vm.finish(churn, timeout=300)
            self.assertEqual(result.status, 0, result.output)
            self.assert_adds_up(vm.query())

    def test_a_packed_ring_will_do(self) -> None:
        with FreehintVM(memory_mib=512, extra_args=PACKED_RING) as vm:
            features = vm.check(f"cat {DRIVER}/virtio*/features")
            self.assertEqual(features.strip()[VIRTIO_F_RING_PACKED], "1", features)
            before = vm.settle()
            vm.check("memhog 256m")
            back = vm.wait_rss_below(before + 64 * MIB, timeout=30)
            self.assertIsNotNone(back, "nothing came back")
            self.assertGreaterEqual(discards(vm.query())[1], 192 * MIB)
            self.assert_adds_up(vm.query())

    def test_counters_add_up_at_any_time(self) -> None:
        with FreehintVM(cpus=2) as vm:
            churn = vm.start("churn -m 256 -n 3 -p 300 -t")
            while not churn.done.is_set():
                self.assert_adds_up(vm.query())
                time.sleep(0.05)
            self.assertEqual(vm.finish(churn).status, 0)
            info = vm.query()
            self.assert_adds_up(info)
            self.assertGreater(info["stats"]["discarded"]["bytes"], 3 * 64 * MIB)
            self.assertEqual(total(info["stats"]["rejected"], "ranges"), 0)
            self.assertEqual(info["stats"]["malformed"], 0)

    def test_without_a_device_the_answer_is_empty(self) -> None:
        with FreehintVM("none") as vm:
            self.assertEqual(vm.machine.cmd("query-freehint"), [])

    def test_the_guest_says_that_it_is_active(self) -> None:
        with FreehintVM() as vm:
            vm.settle()
            self.assertEqual(vm.query()["driver-status"], "active")


if __name__ == "__main__":
    unittest.main()
