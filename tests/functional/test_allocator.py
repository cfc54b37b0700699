# SPDX-License-Identifier: GPL-2.0-or-later
"""Hints and the guest's page allocator, whose memory they are about.

What is known of free memory stays known, whatever blocks it is in. Who needs memory
that is in flight waits for it, for an answer or a second: there, the device is told
not to answer, and then, or not, to go on. One guest for all cases: each starts with
a device that behaves.
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
# All of it can go offline: what the boot allocator has is elsewhere.
DIMM = (
    *("-m", "slots=1,maxmem=4G"),
    *("-object", f"memory-backend-ram,id=d0,size={MOVABLE_MIB}M"),
    *("-device", "pc-dimm,id=dimm0,memdev=d0"),
)
FRAGMENT_MIB = 160
# The movable zone, and about half of the area for contiguous allocations.
USED_MIB = MOVABLE_MIB + 512

# How long those in need wait at most, FH_WAIT_MS, and what a busy host makes of it.
WAIT, AT_MOST = 1.0, 10.0
# How long a device takes that answers in time.
SLOW = 0.3
# An attempt at a contiguous allocation that failed, and the end of them all.
ATTEMPT, ALLOCATED = "cma/cma_alloc_busy_retry", "cma/cma_alloc_finish"
# So few at the start of the area that all of them are in flight.
FEW_PAGES = 2048
# Offlining looks for pages that are not on the free lists.
LOOK = "page_isolation/test_pages_isolated"
# Where the address of a page is written that is to fail, and what becomes of pages:
# bits in /proc/kpageflags.
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
        """How long a command takes in the guest, and how it ends.

        A device that is slow answers meanwhile, one that isn't does not answer.
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

    # -- what is known --

    def hinted_by_flush(self, within: range) -> set[int]:
        """The granules of a range of page frames that were not hinted before."""
        with HintedBlocks(self.vm) as hinted:
            self.assertEqual(self.vm.flush()["result"], "done")
        pfns = (pfn for block in hinted.blocks for pfn in block[::GRANULE_PAGES])
        return {pfn // GRANULE_PAGES for pfn in pfns if pfn in within}

    def test_contiguous_allocation_ends_what_is_known_of_what_it_takes(self) -> None:
        """Not of what it isolates, but for the other half of a block that is taken apart."""
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
        """A page in use of each largest block keeps one of its two granules."""
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
        """At the first attempt: all of the area, as the device has some at its top."""
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
        """Of the whole area, for which there is but one attempt."""
        area = self.area()
        self.driver.hold()
        took, result = self.timed(f"cat {area}/count >{area}/alloc", slow=False)
        self.assertNotEqual(result.status, 0)
        self.assertGreater(took, 0.9 * WAIT)
        self.assertLess(took, AT_MOST)

    def test_the_area_for_them_is_used_from_the_top(self) -> None:
        """Hints leave it so: they look for room from the bottom up."""
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
        """Have memory of a block that can go offline in flight; its state file."""
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
        """All others of its block do, and are free again."""
        low = zones(self.vm)["0 DMA32"]
        with HintedBlocks(self.vm) as hinted:
            self.driver.hold()
        block = next(block for block in hinted.blocks if block[0] in low)
        bad = block[len(block) // 2 + 5]
        # Nobody uses it, and it is on no free list: that there is nothing to do about
        # it is how that ends.
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
        """And when it has killed, memory is left alone for a while."""
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
