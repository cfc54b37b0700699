# SPDX-License-Identifier: GPL-2.0-or-later
"""Hints and the guest's page allocator.

A granule keeps its state when blocks are merged or split. Whoever needs memory that is in
flight waits for an answer, for a second at most: for those cases the device is told to
hold its answers, and then to go on, or not. One guest for all cases: each starts with a
device that behaves.
"""

import re
import time
import unittest

from freehint_vm import MIB, Finished, FreehintVM
from guest_driver import GuestDriver, wait_for
from test_stress import AREAS, CMA, CMA_GUEST
from test_zones import GRANULE_PAGES, HintedBlocks, zones

BLOCKS = "/sys/devices/system/memory"
BLOCK_PAGES = 128 * MIB // 4096
MOVABLE_MIB = 256
# All of it can go offline, as the boot allocator uses other memory.
DIMM = (
    *("-m", "slots=1,maxmem=4G"),
    *("-object", f"memory-backend-ram,id=d0,size={MOVABLE_MIB}M"),
    *("-device", "pc-dimm,id=dimm0,memdev=d0"),
)
FRAGMENT_MIB = 160
# The movable zone, and about half of the area for contiguous allocations.
USED_MIB = MOVABLE_MIB + 512

# How long an allocation waits at most, FH_WAIT_MS, and how long on a busy host.
WAIT, AT_MOST = 1.0, 10.0
# How long a slow device takes to answer.
SLOW = 0.3
# A failed attempt at a contiguous allocation, and the end of the last attempt.
ATTEMPT, ALLOCATED = "cma/cma_alloc_busy_retry", "cma/cma_alloc_finish"
# So few pages at the start of the area that all of them are in flight.
FEW_PAGES = 2048
# With this event, offlining looks for pages that are not on the free lists.
LOOK = "page_isolation/test_pages_isolated"
# To make a page fail, its address is written to this file; bits in /proc/kpageflags say
# what became of it.
HARD_OFFLINE = "/sys/devices/system/memory/hard_offline_page"
BUDDY, HWPOISON = 10, 19
# The device is not reset while the guest waits for it.
PATIENT_MS = 60000


class AllocatorTest(unittest.TestCase):
    vm: FreehintVM
    driver: GuestDriver

    @classmethod
    def setUpClass(cls) -> None:
        vm = FreehintVM(
            "testdev",
            memory_mib=2048,
            cpus=2,
            extra_args=(*CMA, *DIMM),
            append=f"{CMA_GUEST} memhp_default_state=online_movable",
        )
        cls.vm = cls.enterClassContext(vm)
        cls.driver = GuestDriver(cls.vm)
        cls.driver.set_timeout(PATIENT_MS)
        cls.vm.check("echo N >/sys/module/virtio_freehint/parameters/adapt")

    def setUp(self) -> None:
        self.driver.settle()

    def tearDown(self) -> None:
        self.driver.set_faults()
        wait_for(
            "all is back", lambda: not self.driver.counters()["in_flight_bytes"]
        )
        self.assertEqual(self.driver.counters()["timeouts"], 0)
        self.assertEqual(self.driver.violations(), 0)

    # -- helpers --

    def timed(self, command: str, slow: bool) -> tuple[float, Finished]:
        """How long a command takes in the guest, and its result.

        A `slow` device answers meanwhile, any other one does not answer.
        """
        entry = self.vm.start(f"time sh -c '{command}'")
        if slow:
            time.sleep(SLOW)
            self.driver.set_faults()
        result = self.vm.finish(entry)
        took = re.search(r"^real\t(\d+)m ([\d.]+)s$", result.output, re.M)
        assert took, result.output
        return 60 * int(took[1]) + float(took[2]), result

    def area(self) -> str:
        """The folder of the files for contiguous allocations."""
        return f"{AREAS}/{self.vm.check(f'ls {AREAS}')}"

    def pfns(self, area: str) -> range:
        """The page frames of that area."""
        base, size = (int(self.vm.check(f"cat {area}/{name}")) for name in ("base_pfn", "count"))
        return range(base, base + size)

    def is_page(self, pfn: int, flag: int) -> bool:
        read = f"dd if=/proc/kpageflags bs=8 skip={pfn} count=1 2>/dev/null"
        return bool(int(self.vm.check(f"{read} | od -A n -t u8")) >> flag & 1)

    # -- states of granules --

    def hinted_by_flush(self, within: range) -> set[int]:
        """The granules in a range of page frames that a flush hints."""
        with HintedBlocks(self.vm) as hinted:
            self.assertEqual(self.vm.flush()["result"], "done")
        pfns = (pfn for block in hinted.blocks for pfn in block[::GRANULE_PAGES])
        return {pfn // GRANULE_PAGES for pfn in pfns if pfn in within}

    def test_contiguous_allocation_ends_what_is_known_of_what_it_takes(self) -> None:
        """Granules that it only isolates keep their state, except the other half of a
        block that is split."""
        area = self.area()
        pfns = self.pfns(area)
        self.hinted_by_flush(pfns)
        for pages in (1, FEW_PAGES + 1):
            with self.subTest(pages=pages):
                self.vm.check(f"echo {pages} >{area}/alloc; echo {pages} >{area}/free")
                taken = range(
                    pfns[0] // GRANULE_PAGES, pfns[pages - 1] // GRANULE_PAGES + 1
                )
                again = self.hinted_by_flush(pfns)
                self.assertLessEqual(set(taken), again)
                halves = {half for granule in taken for half in (granule & ~1, granule | 1)}
                self.assertLessEqual(again, halves)

    def test_merging_leaves_what_is_known_of_neighbours(self) -> None:
        """In each largest block, a page in use keeps one of the two granules in use."""
        movable = zones(self.vm)["0 Movable"]
        fragment = self.vm.start(f"fragment -m {FRAGMENT_MIB} -k {2 * GRANULE_PAGES}")
        self.vm.wait_output(fragment, "ready")
        self.hinted_by_flush(movable)
        self.vm.check("kill $(pidof fragment)")
        self.assertEqual(self.vm.finish(fragment).status, 0)
        again = len(self.hinted_by_flush(movable))
        kept = FRAGMENT_MIB * MIB // 4096 // (2 * GRANULE_PAGES)
        self.assertGreater(again, kept // 2)
        self.assertLess(again, kept + kept // 2)

    # -- contiguous allocations --

    def test_contiguous_allocation_gets_what_a_slow_device_has(self) -> None:
        """It succeeds at the first attempt. It takes all of the area, as the device has
        memory at the area's top."""
        area = self.area()
        self.driver.hold()
        self.vm.trace(ATTEMPT, ALLOCATED)
        took, result = self.timed(f"cat {area}/count >{area}/alloc", slow=True)
        self.assertEqual(result.status, 0, result.output)
        self.assertGreater(took, SLOW / 2)
        events = self.vm.traced("cma_alloc_busy_retry:", "cma_alloc_finish:")
        self.vm.check(f"cat {area}/count >{area}/free")
        base = self.pfns(area)[0]
        self.assertEqual(len(events), 1, events)
        self.assertIn(f"pfn={base:#x} ", events[0])

    def test_contiguous_allocation_fails_soon_with_a_dead_device(self) -> None:
        """It takes the whole area, for which there is only one attempt."""
        area = self.area()
        self.driver.hold()
        took, result = self.timed(f"cat {area}/count >{area}/alloc", slow=False)
        self.assertNotEqual(result.status, 0)
        self.assertGreater(took, 0.9 * WAIT)
        self.assertLess(took, AT_MOST)

    def test_the_area_for_them_is_used_from_the_top(self) -> None:
        """Contiguous allocations search from the bottom up; hints keep the bottom free."""
        pfns = self.pfns(self.area())
        self.driver.move_epoch()
        self.driver.settle()
        self.vm.start(f"toucher -m {USED_MIB} -k 60000")
        try:
            wait_for(
                "the top is in use", lambda: not self.is_page(pfns[-1], BUDDY)
            )
            for pfn in pfns[: len(pfns) // 4 : BLOCK_PAGES // 8]:
                self.assertTrue(self.is_page(pfn, BUDDY), f"{pfn:#x}")
        finally:
            self.vm.check("kill $(pidof toucher)")

    # -- offlining --

    def block_in_flight(self) -> str:
        """Bring memory of a block that can go offline in flight; the block's state file."""
        movable = zones(self.vm)["0 Movable"]
        with HintedBlocks(self.vm) as hinted:
            self.driver.hold()
        pfn = next(block[0] for block in hinted.blocks if block[0] in movable)
        return f"{BLOCKS}/memory{pfn // BLOCK_PAGES}/state"

    def test_offlining_finds_all_of_a_block_with_a_slow_device(self) -> None:
        state = self.block_in_flight()
        _, result = self.timed(f"echo offline >{state}", slow=True)
        self.assertEqual(result.status, 0)
        self.assertEqual(self.vm.check(f"cat {state}").strip(), "offline")
        self.vm.check(f"echo online_movable >{state}")

    def test_offlining_looks_again_until_a_dead_device_is_back(self) -> None:
        state = self.block_in_flight()
        self.vm.trace(LOOK)
        entry = self.vm.start(f"echo offline >{state}")
        wait_for(
            "it has looked in vain, and looks again",
            lambda: len(self.vm.traced("test_pages_isolated:")) > 1,
        )
        self.assertEqual(self.vm.check(f"cat {state}").strip(), "going-offline")
        self.driver.set_faults()
        self.assertEqual(self.vm.finish(entry).status, 0)
        self.assertEqual(self.vm.check(f"cat {state}").strip(), "offline")
        self.vm.check(f"echo online_movable >{state}")

    # -- memory errors --

    def test_a_page_that_fails_in_flight_does_not_come_back(self) -> None:
        """All other pages of its block come back, and are free again."""
        low = zones(self.vm)["0 DMA32"]
        with HintedBlocks(self.vm) as hinted:
            self.driver.hold()
        block = next(block for block in hinted.blocks if block[0] in low)
        bad = block[len(block) // 2 + 5]
        # The write fails, as there is nothing to do: nobody uses the page, and it is on no
        # free list.
        self.vm.run(f"echo {bad * 4096:#x} >{HARD_OFFLINE}")
        self.assertTrue(self.is_page(bad, HWPOISON))
        self.driver.set_faults()
        self.driver.settle()

        self.assertEqual(self.vm.flush()["result"], "done")
        self.assertFalse(self.is_page(bad, BUDDY))
        for neighbour in (bad - 1, bad + 1):
            self.assertTrue(self.is_page(neighbour, BUDDY), f"{neighbour:#x}")
        with HintedBlocks(self.vm) as hinted:
            self.driver.move_epoch()
            self.driver.settle()
        again = [block for block in hinted.blocks if bad in block]
        self.assertEqual(again, [])
        self.assertIn(True, [block[0] in low for block in hinted.blocks])

    # -- running out of memory --

    def test_the_oom_killer_waits_not_much_longer_for_a_dead_device(self) -> None:
        """After a kill, the driver hints nothing for a while."""
        victim = self.vm.start("toucher -m 128 -k 60000")
        wait_for("memory is in use", lambda: self.vm.run("pidof toucher").status == 0)
        self.driver.hold()
        started = time.monotonic()
        self.vm.check("echo f >/proc/sysrq-trigger")
        killed = self.vm.finish(victim)
        self.assertNotEqual(killed.status, 0)
        self.assertGreater(killed.ended - started, 0.9 * WAIT)
        self.assertLess(killed.ended - started, AT_MOST)

        self.driver.set_faults()
        before = self.driver.counters()["hints"]
        self.vm.check("memhog 64m; sleep 1")
        self.assertEqual(self.driver.counters()["hints"], before)


if __name__ == "__main__":
    unittest.main()
