# SPDX-License-Identifier: GPL-2.0-or-later
"""Nearly full memory: nothing fails or stalls more often with hints than without.

Pairs of guests that differ in whether the device takes hints. All but a little of
their memory is anonymous and stays; in the rest huge pages and small ones, page
cache, pipes and page tables come and go, contiguous memory is allocated, and memory
blocks go offline. Guests run under -icount: their clocks, and so the latencies that
they measure, count instructions, whatever else the host does.

Guests differ a lot from run to run. What says more than their average is whether
memory was away just when somebody had to wait for some. With the same clocks they would
begin alike, though, and the average of those says less than it seems to, so each pair
has a seed of its own.

FREEHINT_PAIRS says how many pairs there are. The test prints how likely it was to notice a
figure that is twice as high with hints: with five pairs, less likely than not; with twenty,
nearly certain.

What is sharper, one guest shows: nobody waits for memory while hints are in flight.
"""

import os
import random
import re
import statistics
import unittest
from collections.abc import Iterable
from typing import NamedTuple

from freehint_vm import MIB, FreehintVM, GuestTimeout
from guest_driver import wait_for
from test_zones import zones

PAIRS = int(os.environ.get("FREEHINT_PAIRS", "5"))
SECONDS = 10
# In host time, in which it usually takes less than a minute.
AT_MOST = 300

# A contiguous area has to hold a page of 1 GiB: the first one above 4 GiB, where the kernel
# image must not be. Plugged memory is movable and holds nothing from boot, so it can go
# offline.
MEMORY_MIB = 1792
DIMM_MIB = 384
GUEST = (
    *("-icount", "shift=2,sleep=on"),
    *("-cpu", "qemu64,pdpe1gb=on", "-machine", "max-ram-below-4g=512M"),
    *("-m", f"slots=1,maxmem={MEMORY_MIB + DIMM_MIB}M"),
    *("-object", f"memory-backend-ram,id=dimm0,size={DIMM_MIB}M"),
    *("-device", "pc-dimm,memdev=dimm0"),
    # The source of page cache.
    *("-drive", "driver=null-co,size=4G,read-zeroes=on,if=virtio"),
)
APPEND = (
    "nokaslr hugetlb_cma=1G memhp_default_state=online_movable virtio_freehint.adapt=0"
)
# Eager: a granule is hinted after 20 ms. Slow: it is away for at least as long.
DEVICE = (
    *("-global", "virtio-freehint-device.min-age-ms=20"),
    *("-global", "virtio-freehint-testdev.x-job-delay-ms=20"),
    *("-global", "virtio-freehint-device.enabled={0}"),
)

# Memory that is used first, so that the free lists are in some order.
STIR = "stress -m 64 -w 1 -s 2 -r {seed} anon tmpfs pgtable"
# What is in use all the time; what that leaves, less what the kernel has; and what is
# allocated of the rest. Not "until so much is free": without hints, more of that is on per-
# CPU lists, where it is not counted.
FILL_MIB = 1632
LEFT_MIB = 384
TAIL = f"alloctail -f {FILL_MIB} -c 64 -p 20 -s {SECONDS}"
BESIDE = (
    f"stress -m 24 -w 1 -s {SECONDS} -r {{seed}} pipe pgtable tmpfs",
    f"disturb -s {SECONDS} -r {{seed}} cma:100 offline:300",
)
OVER = "/root/over"
READER = f"until [ -e {OVER} ]; do cat /dev/vda >/dev/null; done"
READERS = 2

# Events: somebody waits for memory; memory is away; contiguous memory is wanted.
RECLAIM = "mm_vmscan_direct_reclaim_begin"
COMPACTION = "mm_compaction_try_to_compact_pages"
TAKE, SUBMIT, COMPLETE = "freehint_take", "freehint_submit", "freehint_complete"
CMA_START, CMA_END = "cma_alloc_start", "cma_alloc_finish"
TRACED = (
    *(f"vmscan/{RECLAIM}", f"compaction/{COMPACTION}"),
    *(f"virtio_freehint/{SUBMIT}", f"virtio_freehint/{COMPLETE}", f"freehint/{TAKE}"),
    *(f"cma/{CMA_START}", f"cma/{CMA_END}"),
)

# Figures that must be 0, with hints or without.
FAILED_MEANWHILE = "CMA allocations that failed with hints in flight"
NEVER = (
    "OOM kills",
    "page allocations failed",
    "blocks that did not go offline",
    FAILED_MEANWHILE,
)
# The share of stalls that may come while hints are in flight, because somebody has to be
# the first. With an engine that ignores watermarks and does not yield it is one in three.
STALLED_MEANWHILE = "stalls with hints in flight"
COINCIDENCES = 0.02
# In one guest a single hint can coincide with a dozen of them.
COINCIDENCES_IN_ONE = 0.1
# Figures of which more is worse. Some must be above 0, or the run proves nothing.
PRESSED = ("reclaim stalls, order 0", "compaction stalls", "compactions failed")
# Some do not end without hints: the huge pages of a block that goes offline stay isolated
# while there is no room for them in one piece.
UNENDED = "guests that hung"
WORSE = (
    *PRESSED,
    # Near full memory, one in a hundred fails without hints, too.
    "CMA allocations failed",
    *("reclaim stalls, order 9", "huge page allocations failed"),
    *("order 0, p99, µs", "order 0, p99.9, µs"),
    *("order 9, p99, µs", "order 9, p99.9, µs"),
)
# A difference this rare among random divisions of the runs is not chance.
RARE = 0.01
DIVISIONS = 10000
# Experiments that are made up to see how likely such a difference is to be noticed.
EXPERIMENTS = 100


class Event(NamedTuple):
    """A line of the guest's trace."""

    name: str
    text: str

    @property
    def cookie(self) -> str:
        """Of a hint."""
        return self.text.split()[0]

    @property
    def pfn(self) -> int:
        """Of a block that is taken."""
        return int(self.text.split()[0].removeprefix("pfn="), 0)

    @property
    def can_move(self) -> bool:
        """Whether memory of the movable zone would do, for whoever waits for some."""
        return "MOVABLE" in self.text or "TRANSHUGE" in self.text


def parsed(line: str) -> Event:
    found = re.search(r" [\d.]+: (\w+): (.*)", line)
    assert found, line
    return Event(found[1], found[2])


class Run:
    """What happened in a guest with nearly full memory; `figures` has the numbers."""

    def __init__(self, hints: bool, seed: int) -> None:
        device = tuple(word.format("on" if hints else "off") for word in DEVICE)
        with FreehintVM(
            "testdev",
            accel="tcg,thread=single",
            cpus=2,
            memory_mib=MEMORY_MIB,
            extra_args=(*GUEST, *device),
            append=APPEND,
        ) as vm:
            vm.check(STIR.format(seed=seed))
            vm.settle()
            vm.trace(*TRACED)
            before = self._events(vm)
            movable = zones(vm)["0 Movable"]
            tail, beside = self._press(vm, seed)
            after = self._events(vm)
            events = {name: after[name] - before[name] for name in after}
            words = (event.partition("/")[2] + ":" for event in TRACED)
            trace = [parsed(line) for line in vm.traced(*words)]
            for line in vm.run("dmesg | grep 'alloc failed'").output.splitlines():
                print(f"# hints {hints}: {line}")
            self.figures: dict[str, float] = {
                "OOM kills": events["oom_kill"],
                "page allocations failed": int(
                    vm.run("dmesg | grep -c 'page allocation failure'").output
                ),
                **self._actions(beside),
                **self._stalls(trace),
                **self._meanwhile(trace, movable),
                "compaction stalls": events["compact_stall"],
                "compactions failed": events["compact_fail"],
                "huge page allocations failed": events["thp_fault_fallback"],
                **self._latencies(tail),
                "huge pages": events["thp_fault_alloc"],
                "MiB discarded": vm.query()["stats"]["discarded"]["bytes"] // MIB,
            }

    def _press(self, vm: FreehintVM, seed: int) -> tuple[str, str]:
        """Fill the memory and do the rest beside that; return what the tools printed."""
        tail = vm.start(TAIL)
        wait_for(
            "the memory is nearly full",
            lambda: (vm.agent.free or MEMORY_MIB * MIB) < (LEFT_MIB + 16) * MIB,
            timeout=300,
        )
        readers = [vm.start(READER) for _ in range(READERS)]
        beside = [vm.start(command.format(seed=seed)) for command in BESIDE]
        results = [vm.finish(command, AT_MOST) for command in (tail, *beside)]
        vm.check(f"touch {OVER}")
        results += [vm.finish(reader, AT_MOST) for reader in readers]
        for result in results:
            if result.status:
                raise AssertionError(f"{result.command}: {result.output}")
        return results[0].output, "\n".join(result.output for result in results[1:])

    @staticmethod
    def _events(vm: FreehintVM) -> dict[str, int]:
        lines = vm.check("cat /proc/vmstat").splitlines()
        return {name: int(value) for name, value in map(str.split, lines)}

    @staticmethod
    def _actions(output: str) -> dict[str, float]:
        figures: dict[str, float] = {}
        for action, did, failed in (
            ("cma", "CMA allocations", "CMA allocations failed"),
            ("offline", "blocks offline", "blocks that did not go offline"),
        ):
            found = re.search(rf"^{action}: (\d+) done, (\d+) failed$", output, re.M)
            assert found, output
            figures |= {did: int(found[1]), failed: int(found[2])}
        return figures

    @staticmethod
    def _stalls(trace: list[Event]) -> dict[str, int]:
        reclaims = [e.text for e in trace if e.name == RECLAIM]
        return {
            f"reclaim stalls, order {order}": sum(
                f"order={order} " in text for text in reclaims
            )
            for order in (0, 9)
        }

    @staticmethod
    def _meanwhile(trace: list[Event], movable_zone: range) -> dict[str, int]:
        """What went wrong while memory was away that could have been had.

        A hint is of one zone. Of the movable one, only those get memory who can move it.
        """
        hints: dict[str, bool] = {}
        is_movable = False
        # Were hints in flight since the contiguous memory was wanted?
        met = False
        stalls = stalled = failed = 0
        for event in trace:
            if event.name == TAKE:
                is_movable = event.pfn in movable_zone
            elif event.name == SUBMIT:
                hints[event.cookie] = is_movable
            elif event.name == COMPLETE:
                hints.pop(event.cookie, None)
            elif event.name == CMA_START:
                met = False
            elif event.name == CMA_END:
                failed += met and "errorno=0" not in event.text
            else:
                stalls += 1
                stalled += any(event.can_move or not movable for movable in hints.values())
            met = met or bool(hints)
        return {
            "stalls": stalls,
            STALLED_MEANWHILE: stalled,
            FAILED_MEANWHILE: failed,
        }

    @staticmethod
    def _latencies(output: str) -> dict[str, float]:
        figures: dict[str, float] = {}
        for order in (0, 9):
            found = re.search(rf"^order {order} \d+ \d+ (\d+) (\d+) \d+$", output, re.M)
            assert found, output
            figures[f"order {order}, p99, µs"] = int(found[1]) / 1000
            figures[f"order {order}, p99.9, µs"] = int(found[2]) / 1000
        return figures


def figures_of(hints: bool, seed: int) -> dict[str, float]:
    try:
        figures = Run(hints, seed).figures | {UNENDED: 0.0}
    except GuestTimeout as reason:
        if hints:
            raise
        print(f"# hints {hints}: {reason}")
        figures = {UNENDED: 1}
    print(f"# hints {hints}: {figures}", flush=True)
    return figures


def chance(off: list[float], on: list[float], divisions: int = DIVISIONS) -> float:
    """How often runs that are divided at random differ at least as much as these."""
    values, draws = off + on, random.Random(0)
    sums = (sum(draws.sample(values, len(on))) for _ in range(divisions))
    return sum(s >= sum(on) for s in sums) / divisions


def power(off: list[float], pairs: int) -> float:
    """How often a figure that hints double is noticed, by how it varies without them."""
    draws = random.Random(0)
    noticed = 0
    for _ in range(EXPERIMENTS):
        without, twice = draws.choices(off, k=pairs), draws.choices(off, k=pairs)
        doubled = [2 * value for value in twice]
        noticed += chance(without, doubled, DIVISIONS // 10) <= RARE
    return noticed / EXPERIMENTS


class PowerTest(unittest.TestCase):
    def test_more_pairs_notice_more(self) -> None:
        """Of something that varies by a half."""
        off = [10.0, 12.0, 15.0, 18.0, 20.0]
        self.assertLess(power(off, 2), 0.1)
        self.assertGreater(power(off, 20), 0.9)


class MeanwhileTest(unittest.TestCase):
    """In one guest, without statistics."""

    def test_nobody_waits_while_hints_are_in_flight(self) -> None:
        figures = figures_of(True, seed=1)
        for name in NEVER:
            self.assertEqual(figures[name], 0, name)
        self.assertGreater(figures["stalls"], 100)
        self.assertGreater(figures["MiB discarded"], LEFT_MIB)
        most = COINCIDENCES_IN_ONE * figures["stalls"]
        self.assertLess(figures[STALLED_MEANWHILE], most)


def cell(values: Iterable[float]) -> str:
    values = sorted(values)
    return f"{statistics.median(values):.4g} ({values[0]:.4g} to {values[-1]:.4g})"


class PressureTest(unittest.TestCase):
    def test_hints_do_no_harm_near_full_memory(self) -> None:
        runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for pair in range(PAIRS):
            for hints in (pair % 2 == 1, pair % 2 == 0):
                runs[hints].append(figures_of(hints, seed=pair + 1))

        names = max(sum(runs.values(), []), key=len)
        figures = {
            name: [[run[name] for run in arm if name in run] for arm in runs.values()]
            for name in names
        }
        print("# | | without hints | with hints |")
        for name, (off, on) in figures.items():
            print(f"# | {name} | {cell(off)} | {cell(on)} |")
        for name in WORSE:
            noticed = power(figures[name][0], PAIRS)
            print(f"# twice as many of '{name}' are noticed with {noticed:.0%}")

        for name in PRESSED:
            self.assertGreater(min(figures[name][0]), 0, name)
        self.assertGreater(min(figures["MiB discarded"][1]), LEFT_MIB)
        for name in ("CMA allocations", "blocks offline"):
            self.assertGreater(min(sum(figures[name], [])), 0, name)

        for name in NEVER:
            self.assertEqual(max(sum(figures[name], [])), 0, name)
        coincidences = COINCIDENCES * sum(figures["stalls"][1])
        self.assertLess(sum(figures[STALLED_MEANWHILE][1]), coincidences)
        for name in WORSE:
            off, on = figures[name]
            self.assertGreater(chance(off, on), RARE, (name, figures[name]))


if __name__ == "__main__":
    unittest.main()
