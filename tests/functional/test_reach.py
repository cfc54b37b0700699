# SPDX-License-Identifier: GPL-2.0-or-later
"""All free memory gets to the host in the end, whatever kept it back for a while."""

import re
import unittest

from freehint_vm import MIB, FreehintVM
from guest_driver import KEPT, GuestDriver, wait_for
from test_stress import AREAS, CMA, CMA_GUEST
from test_zones import GRANULE_PAGES, HintedBlocks, zones

PAGE = 4096
AREA = f"{AREAS}/*"
# A file system with unmovable pages, so none of them is in a CMA area.
PINNED = "mkdir -p /pinned && mount -t ramfs ramfs /pinned"
# A DIMM that is large compared to boot memory. Unused memory costs the host nothing.
DIMM_GIB = 32
LARGE_DIMM = (
    *("-m", f"slots=1,maxmem={2 * DIMM_GIB}G"),
    *("-object", f"memory-backend-ram,id=d0,size={DIMM_GIB}G,reserve=off"),
    *("-device", "pc-dimm,id=dimm0,memdev=d0"),
)
# How much free memory may be left.
LEFT = 4 * MIB

MIN_FREE = "/proc/sys/vm/min_free_kbytes"
SCALE = "/proc/sys/vm/watermark_scale_factor"
# The driver retries now and then what it passed over.
LATER = 30


def wait_hinted(vm: FreehintVM, timeout: float = LATER) -> None:
    wait_for(
        "what is free is hinted",
        lambda: vm.figure("free_pending_bytes") < KEPT,
        timeout,
    )


def wait_stays(vm: FreehintVM, least: int) -> None:
    """Wait until the driver has this much to hint, and does not hint it."""
    hinted: list[int] = []

    def is_quiet() -> bool:
        if vm.figure("free_pending_bytes") < least:
            hinted.clear()
            return False
        hinted.append(vm.figure("hinted_bytes"))
        return len(hinted) > 10 and len(set(hinted[-10:])) == 1

    wait_for(f"{least} bytes are left alone", is_quiet)


def pin(vm: FreehintVM, mib: int) -> None:
    """Use this much memory for unmovable pages."""
    vm.check(PINNED)
    vm.check(f"dd if=/dev/zero of=/pinned/file bs=1M count={mib}")


def zone_counts(vm: FreehintVM, zone: str) -> dict[str, int]:
    """A zone's free pages, those of them in CMA areas, and its watermark."""
    node, name = zone.split()
    text = vm.check("cat /proc/zoneinfo")
    own = re.split(rf"^Node {node}, zone +{name}$", text, flags=re.M)[1]
    names = ("nr_free_pages", "nr_free_cma", "high")
    found = (re.search(rf"^ +{field} +(\d+)$", own, re.M) for field in names)
    return {field: int(match[1]) for field, match in zip(names, found) if match}


class ReachTest(unittest.TestCase):
    def test_what_watermarks_kept_back_is_hinted_when_they_fall(self) -> None:
        """In an idle guest, in which no free could trigger it."""
        with FreehintVM(memory_mib=1536) as vm:
            driver = GuestDriver(vm)
            driver.settle()
            usual = vm.check(f"cat {MIN_FREE} {SCALE}").split()
            # So much is in use that free memory stays above the min watermark.
            vm.check("mkdir /full && mount -t tmpfs -o size=100% tmpfs /full")
            vm.check("dd if=/dev/zero of=/full/file bs=1M count=512")
            # The high watermark is above all memory.
            vm.check(f"echo 3000 >{SCALE}; echo {640 << 10} >{MIN_FREE}")
            vm.check("rm /full/file")
            wait_stays(vm, 384 * MIB)
            vm.check(f"echo {usual[0]} >{MIN_FREE}; echo {usual[1]} >{SCALE}")
            wait_hinted(vm)
            self.assertEqual(driver.violations(), 0)

    def test_free_memory_of_a_cma_area_is_hinted_where_all_other_is_in_use(self) -> None:
        """A contiguous allocation gets it back; free memory beside it is left alone."""
        with FreehintVM(
            memory_mib=2048, cpus=2, extra_args=CMA, append=CMA_GUEST
        ) as vm:
            driver = GuestDriver(vm)
            base, count = (int(vm.check(f"cat {AREA}/{f}")) for f in ("base_pfn", "count"))
            area = range(base, base + count)
            vm.check("memhog 1g")
            driver.settle()
            vm.set_enabled(False)
            # From the zone of the area, and some from the zone below.
            usual = zone_counts(vm, "0 Normal")
            others = usual["nr_free_pages"] - usual["nr_free_cma"]
            told = vm.figure("hinted_bytes")
            pin(vm, others * PAGE // MIB + 128)
            vm.check("memhog 900m")
            # An allocation from an area drains the per-CPU lists of its zone.
            vm.check(f"echo 1 | tee {AREA}/alloc; echo 1 | tee {AREA}/free")
            now = zone_counts(vm, "0 Normal")
            self.assertLess(now["nr_free_pages"] - now["nr_free_cma"], now["high"])
            self.assertGreater(now["nr_free_cma"], count * 3 // 4)
            before = vm.settle()

            with HintedBlocks(vm) as hinted:
                vm.set_enabled(True)
                wait_for("hints", lambda: vm.figure("hinted_bytes") > told)
                wait_stays(vm, 0)
            normal = zones(vm)["0 Normal"]
            granules = [
                pfn
                for block in hinted.blocks
                for pfn in block[::GRANULE_PAGES]
                if pfn in normal
            ]
            inside = {pfn for pfn in granules if pfn in area}
            self.assertGreater(len(inside) * GRANULE_PAGES, now["nr_free_cma"] * 9 // 10)
            self.assertEqual(len(inside), len(granules))
            self.assertGreater(before - vm.settle(), 700 * MIB)

            # Use all of it at once, and free it again.
            vm.check(f"echo {count} | tee {AREA}/alloc")
            with HintedBlocks(vm) as hinted:
                vm.check(f"echo {count} | tee {AREA}/free")
                self.assertEqual(vm.flush()["result"], "done")
            again = sum(len(block) for block in hinted.blocks if block[0] in area)
            self.assertGreater(again, count * 9 // 10)
            self.assertEqual(driver.violations(), 0)

    def test_boot_memory_beside_a_large_movable_dimm_is_hinted(self) -> None:
        """Although all of it is reserved from allocations that could use the DIMM."""
        with FreehintVM(
            memory_mib=1536,
            cpus=2,
            extra_args=LARGE_DIMM,
            append="memhp_default_state=online_movable",
        ) as vm:
            driver = GuestDriver(vm)
            wait_for("the DIMM is online", lambda: "0 Movable" in zones(vm), 120)
            driver.settle(180)
            low = zones(vm)["0 DMA32"]
            pin(vm, 512)
            vm.check("echo 1 1 1 0 >/proc/sys/vm/lowmem_reserve_ratio")
            with HintedBlocks(vm) as hinted:
                vm.check("rm /pinned/file")
                wait_for("all is hinted", lambda: vm.figure("free_pending_bytes") < LEFT)
            took = sum(len(block) for block in hinted.blocks if block[0] in low)
            self.assertGreater(took * PAGE, 500 * MIB)
            self.assertEqual(vm.flush(compact=True)["result"], "done")
            self.assertLess(vm.figure("free_pending_bytes"), LEFT)
            self.assertEqual(driver.violations(), 0)


if __name__ == "__main__":
    unittest.main()
