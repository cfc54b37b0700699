# SPDX-License-Identifier: GPL-2.0-or-later
"""A VFIO device vetoes discards for as long as guest memory is mapped for DMA.

This takes a device behind an IOMMU, which the outer guest of nested_vm.py has. The order of
events comes from the inner QEMU's trace.
"""

import time
import unittest
from typing import Any

from freehint_vm import MIB
from nested_vm import EVENTS, INNER_MIB, NestedVM

from qemu.qmp import ExecuteError  # found by freehint_vm

DEVICE = "vf0"
QOM_PATH = f"/machine/peripheral/{DEVICE}"
FREEHINT = "/sys/bus/virtio/drivers/virtio_freehint/virtio*/freehint"

SLICE_BEGIN = "virtio_freehint_job_begin"
SLICE_END = "virtio_freehint_job_end"
# What vfio does, in this order: before it disables discards; with discards disabled, the
# mapping of each piece of RAM; before it enables them.
ATTACH = "vfio_attach_device"
MAP = "vfio_listener_region_add_ram"
DETACH = "vfio_detach_device"
TRACED = (SLICE_BEGIN, SLICE_END, ATTACH, MAP, DETACH)
TRACE_ARGS = tuple(f"-trace {name}" for name in TRACED)

# How long a discard takes that is to be in progress at that time.
SLOW_MS = 1500

# How much memory a QEMU that is not root's may lock.
LOCKED_MIB = 64


def names(events: list[str]) -> list[str]:
    return [event.split()[0] for event in events]


def late_discard(events: list[str]) -> str | None:
    """The first trace of a discard while memory is mapped for DMA."""
    discarding = mapped = False
    for index, name in enumerate(names(events)):
        if name == SLICE_BEGIN:
            discarding = True
        elif name == MAP:
            mapped = True
        elif name == SLICE_END:
            discarding = False
        elif name == DETACH:
            mapped = False
        if discarding and mapped:
            return f"event {index} of {events}"
    return None


def met_a_discard(events: list[str]) -> bool:
    """Whether the last device was plugged while a discard was in progress."""
    order = names(events)
    attach = len(order) - 1 - order[::-1].index(ATTACH)
    before = [name for name in order[:attach] if name in (SLICE_BEGIN, SLICE_END)]
    return bool(before) and before[-1] == SLICE_BEGIN


class LateDiscardTest(unittest.TestCase):
    """The check of the order can fail."""

    def test_order(self) -> None:
        waited = [SLICE_BEGIN, ATTACH, SLICE_END, MAP, DETACH, SLICE_BEGIN]
        self.assertIsNone(late_discard(waited))
        self.assertTrue(met_a_discard(waited))
        self.assertFalse(met_a_discard([SLICE_BEGIN, SLICE_END, ATTACH, MAP]))
        self.assertIsNotNone(late_discard([SLICE_BEGIN, ATTACH, MAP, SLICE_END]))
        self.assertIsNotNone(late_discard([ATTACH, MAP, SLICE_BEGIN, SLICE_END]))


class VFIOTest(unittest.TestCase):
    def assert_vetoed(self, info: dict[str, Any]) -> None:
        """The operator sees which device it is."""
        self.assertEqual((info["state"], info["reason"]), ("vetoed", "pinned"))
        self.assertEqual(len(info["obstacles"]), 1, info["obstacles"])
        self.assertEqual(info["obstacles"][0]["qom-paths"], [QOM_PATH])

    def assert_guest_knows(self, vm: NestedVM, state: str, reason: str) -> None:
        """The driver knows the reason without reading it from the device."""
        known = vm.check(f"cat {FREEHINT}/device_state {FREEHINT}/device_reason")
        self.assertEqual(known.split(), [state, reason])

    def wait_discarded(self, vm: NestedVM, amount: int) -> None:
        """Wait until this many more bytes have been discarded."""
        end = vm.query()["stats"]["discard-bytes"] + amount
        deadline = time.monotonic() + 120
        while vm.query()["stats"]["discard-bytes"] < end:
            self.assertLess(time.monotonic(), deadline, "nothing is hinted again")
            time.sleep(0.5)

    def wait_quiet(self, vm: NestedVM) -> None:
        """Wait until nothing has been hinted for some seconds."""
        deadline = time.monotonic() + 120
        last = None
        while (now := vm.query()["stats"]["hints"]) != last:
            self.assertLess(time.monotonic(), deadline, "hints do not end")
            last = now
            time.sleep(5)

    def assert_lifts(self, vm: NestedVM, amount: int) -> None:
        """Without the device, free memory is hinted again by itself."""
        vetoed = vm.query()
        self.assertGreater(vm.rss(), INNER_MIB * MIB, "vfio has not pinned all")
        vm.unplug(DEVICE)
        self.wait_discarded(vm, amount)
        info = vm.query()
        self.assertEqual((info["state"], info.get("reason")), ("active", None))
        self.assertNotEqual(info["rehint-epoch"], vetoed["rehint-epoch"])
        self.assert_guest_knows(vm, "active", "none")
        self.assertIsNone(late_discard(vm.events()))

    def test_cold_plugged(self) -> None:
        """Nothing is discarded until the device is gone."""
        with NestedVM() as vm:
            host = vm.bind_vfio()
            vm.launch(
                *("-device", f"vfio-pci,host={host},id={DEVICE}"),
                *("-device", "virtio-freehint-pci,id=fh0"),
                *TRACE_ARGS,
            )
            self.assert_vetoed(vm.query())
            self.assert_guest_knows(vm, "vetoed", "pinned")
            vm.check("memhog 128m")
            time.sleep(3)
            self.assertEqual(vm.query()["stats"]["discard-calls"], 0)
            self.assertNotIn(SLICE_BEGIN, names(vm.events()))

            pinned = vm.rss()
            self.assert_lifts(vm, 192 * MIB)
            self.assertLess(vm.rss(), pinned - 128 * MIB)

    def plug_during_a_discard(self, vm: NestedVM, host: str) -> None:
        """There are several tries, because it takes some luck to be in time."""
        for _ in range(5):
            vm.outer.check(f"until tail -n 1 {EVENTS} | grep -q {SLICE_BEGIN}; do :; done")
            vm.qmp.cmd("device_add", driver="vfio-pci", host=host, id=DEVICE)
            if met_a_discard(vm.events()):
                return
            vm.unplug(DEVICE)
        self.fail(f"no discard was in progress in 5 tries: {vm.events()}")

    def test_hot_plugged_while_hints_flow(self) -> None:
        """None is in progress after the call that disables discards."""
        with NestedVM() as vm:
            host = vm.bind_vfio()
            vm.launch(
                *("-device", f"virtio-freehint-testdev-pci,id=fh0,x-job-delay-ms={SLOW_MS}"),
                *TRACE_ARGS,
            )
            churn = vm.agent.start("churn -m 128 -n 100000 -p 50")
            self.plug_during_a_discard(vm, host)
            frozen = vm.query()
            self.assert_vetoed(frozen)
            time.sleep(2 * SLOW_MS / 1000)
            self.assertFalse(churn.done.is_set(), "hints do not flow any more")
            info = vm.query()
            self.assertEqual(
                info["stats"]["discard-calls"], frozen["stats"]["discard-calls"]
            )
            self.assert_guest_knows(vm, "vetoed", "pinned")
            self.assertIsNone(late_discard(vm.events()))

            self.assert_lifts(vm, 1 * MIB)

    def test_a_plug_that_fails(self) -> None:
        """What it has populated, until it came to the limit of locked memory, is hinted."""
        with NestedVM() as vm:
            host = vm.bind_vfio()
            vm.outer.check("chmod 666 /dev/vfio/*")
            # Root may lock as much as it likes.
            vm.launch(
                *("-device", "virtio-freehint-pci,id=fh0"),
                *("-run-with", "user=65534:65534"),
                *TRACE_ARGS,
                prepare=f"ulimit -l {LOCKED_MIB * 1024}",
            )
            vm.check("memhog 128m")
            self.wait_quiet(vm)
            before = vm.query()
            with self.assertRaisesRegex(ExecuteError, "Cannot allocate memory"):
                vm.qmp.cmd("device_add", driver="vfio-pci", host=host, id=DEVICE)
            info = vm.query()
            self.assertEqual((info["state"], info.get("reason")), ("active", None))
            self.assertEqual(info["obstacles"], [])
            self.assertNotEqual(info["rehint-epoch"], before["rehint-epoch"])
            self.wait_discarded(vm, LOCKED_MIB // 2 * MIB)
            self.assert_guest_knows(vm, "active", "none")


if __name__ == "__main__":
    unittest.main()
