# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests whose memory is in several nodes and zones, or comes and goes."""

import itertools
import re
import unittest
from collections import Counter
from typing import Any

from freehint_vm import DEVICE_ID, HOTPLUG_PORT, MIB, PORT, FreehintVM
from guest_driver import KEPT, GuestDriver, wait_for
from hint_trace import HintTrace

PAGE = 4096
GRANULE_PAGES = 2 * MIB // PAGE
SECTION_PAGES = 128 * MIB // PAGE
DIMM_MIB = 512
DIMM_PAGES = DIMM_MIB * MIB // PAGE

# The status of a command that `timeout` has ended.
TERMINATED = 143

# The part of a zone's free memory that must be back at least.
LEAST_BACK = 0.6

# A disk with more data than the page cache can hold; it costs the host nothing.
DISK = "large"
LARGE_DISK = (
    *("-drive", f"if=none,id={DISK},driver=null-co,size=64G,read-zeroes=on"),
    *("-device", f"virtio-blk-pci,drive={DISK},serial={DISK}"),
)


def zone_fields(vm: FreehintVM) -> dict[str, dict[str, int]]:
    """For each zone that has memory, its figures about page frames."""
    found = {}
    text = vm.check("cat /proc/zoneinfo")
    for zone in re.split(r"^Node ", text, flags=re.M)[1:]:
        name = re.match(r"(\d+), zone +(\w+)", zone)
        fields = re.findall(r"^ +(spanned|present|start_pfn):? +(\d+)", zone, re.M)
        assert name and fields
        if "start_pfn" in dict(fields):
            found[f"{name[1]} {name[2]}"] = {key: int(value) for key, value in fields}
    return found


def zones(vm: FreehintVM) -> dict[str, range]:
    """The page frames that each zone with memory spans."""
    return {
        name: range(zone["start_pfn"], zone["start_pfn"] + zone["spanned"])
        for name, zone in zone_fields(vm).items()
    }


def present(vm: FreehintVM) -> int:
    """The number of page frames in the movable zone of the second node."""
    return zone_fields(vm).get("1 Movable", {}).get("present", 0)


def free_granules(vm: FreehintVM) -> dict[str, int]:
    """Memory that is free in blocks of a granule or more, in granules."""
    found = {}
    for line in vm.check("cat /proc/buddyinfo").splitlines():
        name = re.match(r"Node (\d+), zone +(\w+)((?: +\d+)+) *$", line)
        assert name, line
        counts = [int(word) for word in name[3].split()]
        large = sum(nr << order for order, nr in enumerate(counts) if order >= 9)
        found[f"{name[1]} {name[2]}"] = large // GRANULE_PAGES
    return found


class HintedBlocks:
    """The blocks that are taken off the free lists for hints, in a "with" statement."""

    def __init__(self, vm: FreehintVM) -> None:
        self._vm = vm
        # Each block's page frames, in the order in which they were taken.
        self.blocks: list[range] = []

    def __enter__(self) -> "HintedBlocks":
        self._vm.trace("freehint/freehint_take")
        self._vm.traced("freehint_take:")
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._vm.traced("freehint_take:"):
            event = re.search(r"pfn=(0x[0-9a-f]+) order=(\d+)", line)
            if event:
                pfn = int(event[1], 0)
                self.blocks.append(range(pfn, pfn + (1 << int(event[2]))))

    def zones(self, known: dict[str, range]) -> list[tuple[str, int]]:
        """The zone and the number of granules of each block.

        A granule counts when it is taken first: what is lazy is hinted once more later.
        """
        found, seen = [], set[int]()
        for block in self.blocks:
            name = next(name for name, pfns in known.items() if block[0] in pfns)
            new = set(block) - seen
            seen |= new
            found.append((name, len(new) // GRANULE_PAGES))
        return found


def totals(hinted: list[tuple[str, int]]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for zone, granules in hinted:
        sums[zone] += granules
    return sums


class ZonesTest(unittest.TestCase):
    def use_most(self, vm: FreehintVM) -> None:
        """Use memory of all nodes at a time, and free all of it at once.

        Not all that a node has, as page tables need some.
        """
        nodes = sorted({int(name.split()[0]) for name in zones(vm)})
        meminfo = "/sys/devices/system/node/node{0}/meminfo"
        free = [
            int(vm.check(f"awk '/MemFree/ {{print $4}}' {meminfo.format(node)}"))
            for node in nodes
        ]
        hogs = [
            vm.start(f"memhog {kib * 7 // 8}k membind {node}")
            for node, kib in zip(nodes, free)
        ]
        for hog in hogs:
            result = vm.finish(hog)
            self.assertEqual(result.status, 0, result.output)

    def assert_each_zone_comes_back(self, vm: FreehintVM, expected: set[str]) -> None:
        """In each zone, most of the free memory is hinted after it was used."""
        known = zones(vm)
        self.assertEqual(set(known) - {"0 DMA"}, expected)
        GuestDriver(vm).settle()
        with HintedBlocks(vm) as hinted:
            self.use_most(vm)
            GuestDriver(vm).settle()
        free, took = free_granules(vm), totals(hinted.zones(known))
        print(f"# back: {took}, free: {free}")
        for zone in expected:
            self.assertGreater(free[zone], 16, zone)
            self.assertGreater(took[zone], LEAST_BACK * free[zone], (zone, took, free))
        self.assertEqual(GuestDriver(vm).violations(), 0)

    def assert_zones_take_turns(self, vm: FreehintVM, first: str, second: str) -> None:
        """If two zones have much to hint at once, neither waits for the other."""
        vm.set_enabled(False)
        GuestDriver(vm).settle()
        with HintedBlocks(vm) as hinted:
            vm.set_enabled(True)
            GuestDriver(vm).settle()
        blocks = hinted.zones(zones(vm))
        both = totals(blocks)
        half = sum(both.values()) // 2
        done = itertools.accumulate(granules for _, granules in blocks)
        early = totals([block for block, sum_ in zip(blocks, done) if sum_ <= half])
        for zone in (first, second):
            self.assertGreater(both[zone], 100, both)
            self.assertGreater(early[zone], both[zone] / 4, (early, both))

    def test_two_nodes_with_a_boundary_inside_a_granule(self) -> None:
        """The granule is in a section of which each node has about a half."""
        nodes = (
            *("-object", "memory-backend-ram,id=n0,size=447M"),
            *("-object", "memory-backend-ram,id=n1,size=577M"),
            *("-numa", "node,nodeid=0,memdev=n0,cpus=0-1"),
            *("-numa", "node,nodeid=1,memdev=n1"),
        )
        with FreehintVM(memory_mib=1024, cpus=2, extra_args=nodes) as vm:
            boundary = zones(vm)["1 DMA32"].start
            self.assertNotEqual(boundary % GRANULE_PAGES, 0)
            first = boundary % SECTION_PAGES
            self.assertGreater(first, SECTION_PAGES // 3)
            self.assertLess(first, SECTION_PAGES * 2 // 3)
            self.assert_each_zone_comes_back(vm, {"0 DMA32", "1 DMA32"})
            self.assert_zones_take_turns(vm, "0 DMA32", "1 DMA32")

    def stalls(self, vm: FreehintVM) -> int:
        """How often an allocation stalled."""
        stalls = "awk '/^(allocstall|compact_stall)/ { n += $2 } END { print n }'"
        return int(vm.check(f"{stalls} /proc/vmstat"))

    def start_reclaim(self, vm: FreehintVM, node: int) -> None:
        """Start to fill a node with page cache, so memory is reclaimed there."""
        disk = f"/dev/$(basename $(dirname $(grep -lx {DISK} /sys/block/*/serial)))"
        reader = f"membind {node} dd if={disk} of=/dev/null bs=4M"
        for _ in range(4):
            vm.start(f"while :; do {reader} 2>/dev/null; done")
        before = self.stalls(vm)
        wait_for("somebody waits for memory", lambda: self.stalls(vm) > before, 120)

    def test_reclaim_on_one_node_leaves_the_other_alone(self) -> None:
        """An allocation that waits for a full node gets nothing from the other one."""
        nodes = (
            *("-object", "memory-backend-ram,id=n0,size=768M"),
            *("-object", "memory-backend-ram,id=n1,size=768M"),
            *("-numa", "node,nodeid=0,memdev=n0,cpus=0-1"),
            *("-numa", "node,nodeid=1,memdev=n1"),
        )
        with FreehintVM(
            memory_mib=1536, cpus=2, extra_args=(*nodes, *LARGE_DISK)
        ) as vm:
            driver = GuestDriver(vm)
            driver.settle()
            self.start_reclaim(vm, 0)
            # Twice, allocations must stall meanwhile; on a slow host they do not always.
            pressed = 0
            for _ in range(20):
                stalls = self.stalls(vm)
                before = vm.query()["stats"]["discarded"]["bytes"]
                vm.check("memhog 512m membind 1")
                wait_for(
                    "what was freed on the other node is discarded",
                    lambda: vm.query()["stats"]["discarded"]["bytes"]
                    > before + 448 * MIB,
                    10,
                )
                pressed += self.stalls(vm) > stalls
                if pressed == 2:
                    break
            self.assertEqual(pressed, 2, "nobody waits for memory")
            # A flush, too: the host asks for one when it is short of memory itself.
            outcome = vm.flush()
            self.assertEqual(outcome["result"], "done", outcome)

    def test_memory_above_4_gib_and_a_movable_zone(self) -> None:
        with FreehintVM(
            memory_mib=1536,
            cpus=2,
            extra_args=("-machine", "max-ram-below-4g=512M"),
            append="movablecore=512M",
        ) as vm:
            self.assert_each_zone_comes_back(vm, {"0 DMA32", "0 Normal", "0 Movable"})

    def test_zones_that_are_kept_from_higher_classes(self) -> None:
        """So are low zones of large guests, however much of them is free."""
        trace = HintTrace()
        self.addCleanup(trace.close)
        with FreehintVM(
            memory_mib=1536,
            cpus=2,
            extra_args=("-machine", "max-ram-below-4g=512M", *trace.args),
            append="movablecore=512M",
        ) as vm:
            vm.set_enabled(False)
            vm.check("echo 1 1 1 0 >/proc/sys/vm/lowmem_reserve_ratio")
            free, known = free_granules(vm), zones(vm)
            before, mark = vm.figure("hinted_bytes"), trace.mark()
            vm.set_enabled(True)
            wait_for(
                "all free memory is hinted",
                lambda: vm.figure("hinted_bytes") > before
                and vm.figure("free_pending_bytes") < KEPT,
            )
            took: Counter[str] = Counter()
            for r in trace.ranges(mark):
                zone = next(z for z, pfns in known.items() if r.addr // PAGE in pfns)
                took[zone] += r.len // (2 * MIB)
            for zone in "0 DMA32", "0 Normal", "0 Movable":
                self.assertGreater(free[zone], 64, zone)
                self.assertGreater(took[zone], free[zone] * 3 // 4, (zone, took, free))

    def test_a_zone_whose_only_memory_does_not_go_offline(self) -> None:
        """Its memory is hinted again when the kernel has given up."""
        zone = "1 Movable"
        with self.start_two_nodes() as vm:
            self.plug(vm, mib=SECTION_PAGES * PAGE // MIB)
            GuestDriver(vm).settle()
            pin = vm.start("membind 1 pin")
            vm.wait_output(pin, "pinned")
            block = f"memory{zones(vm)[zone].start // SECTION_PAGES}"
            state = f"/sys/devices/system/memory/{block}/state"
            # The kernel tries to move the page until a signal comes.
            went = vm.run(f"timeout 3 sh -c 'echo offline >{state}'")
            self.assertEqual(went.status, TERMINATED, went.output)
            self.assertEqual(vm.check(f"cat {state}"), "online")
            with HintedBlocks(vm) as hinted:
                self.use_most(vm)
                GuestDriver(vm).settle()
            took, free = totals(hinted.zones(zones(vm))), free_granules(vm)
            self.assertGreater(free[zone], 16)
            self.assertGreater(took[zone], LEAST_BACK * free[zone], (took, free))
            self.assertEqual(GuestDriver(vm).violations(), 0)
            vm.check("killall pin")
            vm.finish(pin)

    def start_two_nodes(self, granule: int = 2 * MIB) -> FreehintVM:
        """Two nodes; all memory of the second one is in DIMMs. The device can be unplugged."""
        return FreehintVM(
            "none",
            memory_mib=512,
            cpus=2,
            extra_args=(
                *("-m", "slots=2,maxmem=4G"),
                *HOTPLUG_PORT,
                *("-global", f"virtio-freehint-device.x-granule={granule}"),
                *("-device", f"virtio-freehint-pci,id={DEVICE_ID},bus={PORT}"),
                *("-object", "memory-backend-ram,id=n0,size=512M"),
                *("-numa", "node,nodeid=0,memdev=n0,cpus=0-1", "-numa", "node,nodeid=1"),
            ),
            append="memhp_default_state=online_movable",
        )

    def test_a_node_that_comes_and_goes(self) -> None:
        """A DIMM is its node's only memory, and is unplugged while it is hinted."""
        with self.start_two_nodes(granule=MIB) as vm:
            driver = GuestDriver(vm)
            self.plug(vm)
            self.assert_each_zone_comes_back(vm, {"0 DMA32", "1 Movable"})
            stress = vm.start("stress -m 256 -s 5")
            vm.unplug("dimm0")
            vm.machine.cmd("object-del", id="d0")
            result = vm.finish(stress)
            self.assertEqual(result.status, 0, result.output)
            self.assertEqual(driver.violations(), 0)
            # The engine starts anew while the node is gone, with larger granules.
            vm.unplug(DEVICE_ID)
            vm.machine.cmd(
                "device_add",
                driver="virtio-freehint-pci",
                id=DEVICE_ID,
                bus=PORT,
                x_granule=2 * MIB,
            )
            wait_for("the new device is bound", driver.is_bound)
            self.assertEqual(driver.attribute("granule"), str(2 * MIB))
            self.plug(vm)
            self.assert_each_zone_comes_back(vm, {"0 DMA32", "1 Movable"})
            for counter in "leaked_bytes", "never_bytes":
                self.assertEqual(driver.counters()[counter], 0, counter)

    def test_a_zone_with_a_hole(self) -> None:
        """Each side is hinted, and the hole between them is not."""
        with self.start_two_nodes() as vm:
            sides = [range(pfn, pfn + DIMM_PAGES) for pfn in (1 << 20, 5 << 18)]
            for side in sides:
                self.plug(vm, side.start * PAGE)
            spanned = zones(vm)["1 Movable"]
            self.assertEqual(spanned, range(sides[0].start, sides[1].stop))
            GuestDriver(vm).settle()
            with HintedBlocks(vm) as hinted:
                self.use_most(vm)
                GuestDriver(vm).settle()
            blocks = [block for block in hinted.blocks if block.start in spanned]
            for side in sides:
                within = {pfn for block in blocks if block.start in side for pfn in block}
                self.assertGreater(len(within), LEAST_BACK * DIMM_PAGES)
            strays = [
                block
                for block in blocks
                if not any(block[0] in side and block[-1] in side for side in sides)
            ]
            self.assertEqual(strays, [])
            self.assertEqual(GuestDriver(vm).violations(), 0)

    def plug(self, vm: FreehintVM, addr: int = 0, mib: int = DIMM_MIB) -> None:
        """Plug a DIMM into the second node, anywhere or at an address."""
        before = present(vm)
        plugged: Any = vm.machine.cmd("query-memory-devices")
        nr = len(plugged)
        vm.machine.cmd(
            "object-add", qom_type="memory-backend-ram", id=f"d{nr}", size=mib * MIB
        )
        dimm = {"driver": "pc-dimm", "id": f"dimm{nr}", "memdev": f"d{nr}", "node": 1}
        if addr:
            dimm["addr"] = addr
        vm.machine.cmd("device_add", dimm)
        pages = before + mib * MIB // PAGE
        wait_for("the DIMM is online", lambda: present(vm) == pages)


if __name__ == "__main__":
    unittest.main()
