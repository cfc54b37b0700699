# SPDX-License-Identifier: GPL-2.0-or-later
"""What a pool of evicted page cache would have saved on a day that was logged, and cost.

A page that is evicted and qualifies is copied into the open granule, and a granule that is
full may be taken by the host. When the pool is full, its oldest granule is used again. A
page that is read again is copied back if its granule is still there. The first that opens a
file for writing, or writes to it, wipes the file's pages.
"""

import dataclasses
import random
import statistics
from collections import defaultdict, deque
from typing import NamedTuple

from evictions import Page, Run, Step, percent

SLOTS = 512
SEEDS = 5
# Assumed, in microseconds: the tables beside a copy; the fault of a first touch, as if each
# hit had one; and a read of one page from a disk, and each more page of the same read.
BOOKS_US = 0.1
FAULT_US = 2.5
DISK_US = {"NVMe": 100.0, "network volume": 1000.0, "hard disk": 10000.0}
MORE_US = 1.3
# As far as Linux reads ahead, in pages.
AHEAD = 32
# A run of fewer pages is cheap to keep, and dear to read.
SHORT = 8


class Cost(NamedTuple):
    """What tests/guest/pagecost.c measures, in ns for a page."""

    copy: float
    hash: float
    both: float

    @staticmethod
    def parse(text: str) -> "Cost":
        word, *numbers = text.split()
        if word != "cost":
            raise ValueError(f"this is not what pagecost prints: {text!r}")
        return Cost(*map(float, numbers))

    def put_us(self) -> float:
        return self.both / 1000 + BOOKS_US

    def get_us(self) -> float:
        """The same if the host has taken it: zeros are copied and hashed."""
        return self.put_us() + FAULT_US


@dataclasses.dataclass(frozen=True)
class Setting:
    """At each idle the host takes a share of the full granules, at random.

    With `host` "stable", a granule that was read stays, as under KVM if it is not hinted
    again; with "touched", those that were read go first. With `admits` "back", only pages that
    were evicted and read before are put, and with "short" those last read in a short run.
    """

    mib: int
    share: float
    host: str = "any"
    admits: str = "all"


class Granule:
    def __init__(self) -> None:
        self.pages: list[Page] = []
        self.touched = False
        self.taken = False


@dataclasses.dataclass
class Result:
    """Pages; `lost` ones were wanted back after the host had taken them.

    A hit saves its share of the `reads` that its run would have taken.
    """

    puts: int = 0
    hits: int = 0
    lost: int = 0
    reads: float = 0.0
    # Granules: what the host could take at each idle, and what it took.
    offered: list[int] = dataclasses.field(default_factory=list)
    taken: int = 0

    def spent_us(self, cost: Cost) -> float:
        return self.puts * cost.put_us() + (self.hits + self.lost) * cost.get_us()

    def saved_us(self, disk: str) -> float:
        return self.hits * MORE_US + self.reads * (DISK_US[disk] - MORE_US)


class Pool:
    def __init__(self, setting: Setting, seed: int) -> None:
        self._setting = setting
        self._random = random.Random(seed)
        self._open = Granule()
        self._full: deque[Granule] = deque()
        self._where: defaultdict[int, dict[int, Granule]] = defaultdict(dict)
        self.result = Result()

    def put(self, page: Page) -> None:
        if len(self._open.pages) == SLOTS:
            self._full.append(self._open)
            self._open = Granule()
            if len(self._full) * 2 >= self._setting.mib:
                self._forget(self._full.popleft())
        self._open.pages.append(page)
        self._where[page[0]][page[1]] = self._open
        self.result.puts += 1

    def get(self, page: Page) -> None:
        granule = self._where[page[0]].pop(page[1], None)
        if granule is None:
            return
        if granule.taken:
            self.result.lost += 1
        else:
            self.result.hits += 1
            granule.touched = True

    def wipe(self, inode: int) -> None:
        self._where.pop(inode, None)

    def host_is_short(self) -> None:
        there = [granule for granule in self._full if not granule.taken]
        if self._setting.host == "stable":
            there = [granule for granule in there if not granule.touched]
        self.result.offered.append(len(there))
        self._random.shuffle(there)
        if self._setting.host == "touched":
            there.sort(key=lambda granule: not granule.touched)
        for granule in there[: round(self._setting.share * len(there))]:
            granule.taken = True
            self.result.taken += 1

    def _forget(self, granule: Granule) -> None:
        for inode, index in granule.pages:
            if self._where[inode].get(index) is granule:
                del self._where[inode][index]


def play(day: list[Step], setting: Setting, seed: int = 0) -> Result:
    pool = Pool(setting, seed)
    evicted: set[Page] = set()
    back: set[Page] = set()
    short: set[Page] = set()
    admitted = {"back": back, "short": short}.get(setting.admits)

    def read(run: Run) -> None:
        before = pool.result.hits
        for page in run.pages():
            pool.get(page)
        hits = pool.result.hits - before
        pool.result.reads += reads_of(run.length) * hits / run.length
        back.update(evicted.intersection(run.pages()))
        short.difference_update(run.pages())
        if run.length < SHORT:
            short.update(run.pages())

    def handle(run: Run, step: Step) -> None:
        if run.kind == "w":
            pool.wipe(run.inode)
        elif run.kind == "r":
            read(run)
        else:
            for page in run.pages() if step.qualifies(run.inode) else ():
                if admitted is None or page in admitted:
                    pool.put(page)
            evicted.update(run.pages())

    for step in day:
        for run in step.work:
            handle(run, step)
        for inode in step.writers:
            pool.wipe(inode)
        for run in step.reclaim:
            handle(run, step)
        pool.host_is_short()
    return pool.result


def middle(costs: list[Cost]) -> Cost:
    return Cost(*(statistics.median(values) for values in zip(*costs)))


def reads_of(length: int) -> int:
    """How many reads a run of pages takes."""
    return -(-length // AHEAD)


def page_us(disk: str, lengths: list[int]) -> float:
    """What a page costs to read if they are read in runs of these lengths."""
    reads = sum(map(reads_of, lengths))
    return MORE_US + reads * (DISK_US[disk] - MORE_US) / sum(lengths)


def cost_table(costs: list[Cost]) -> str:
    """Median and range; and the share of hits that pays for all puts on each disk."""
    lines = ["| of a page | ns |", "| --- | --- |"]
    for name, values in zip(Cost._fields, zip(*costs)):
        spread = f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
        lines.append(f"| {name} | {spread} |")
    cost = middle(costs)
    lines += ["", "| disk (assumed) | in a row | us for a page | hits that pay for all puts |"]
    lines.append("| --- | --- | --- | --- |")
    for disk in DISK_US:
        for length in (1, AHEAD):
            took = page_us(disk, [length])
            gain = took - cost.get_us()
            pays = cost.put_us() < gain
            share = f"{100 * cost.put_us() / gain:.2g} %" if pays else "never"
            lines.append(f"| {disk} | {length} | {took:.1f} | {share} |")
    return "\n".join(lines)


SETTINGS = (
    *(Setting(mib, 0.0) for mib in (64, 128, 256)),
    *(Setting(256, share) for share in (0.1, 0.5, 0.9)),
    *(Setting(256, 0.5, host) for host in ("stable", "touched")),
    *(Setting(256, share, admits="back") for share in (0.0, 0.5)),
    *(Setting(256, share, admits="short") for share in (0.0, 0.5)),
)


def table(day: list[Step], cost: Cost) -> str:
    """The median of some seeds, and the range of their hits."""
    lengths = [run.length for step in day for run in step.work if run.kind == "r"]
    reads = sum(lengths)
    took = ", ".join(f"{page_us(disk, lengths):.1f} us ({disk})" for disk in DISK_US)
    lines = [
        f"{reads} pages were read in {len(lengths)} runs; of a page that takes {took}.\n",
        "| pool, MiB | host takes | which | admits | puts | hits | of puts | of reads |"
        " it could take, MiB | it took, MiB | spent, ms | saved per spent: "
        + " | ".join(DISK_US) + " |",
        "| --- " * (11 + len(DISK_US)) + "|",
    ]
    for setting in SETTINGS:
        seeds = range(SEEDS if setting.share else 1)
        results = sorted((play(day, setting, n) for n in seeds), key=lambda r: r.hits)
        result = results[len(results) // 2]
        hits = f"{result.hits} ({results[0].hits} to {results[-1].hits})"
        cells = [
            *(str(setting.mib), f"{100 * setting.share:.0f} %", setting.host),
            *(setting.admits, str(result.puts), hits if setting.share else str(result.hits)),
            *(percent(result.hits, result.puts), percent(result.hits, reads)),
            *(f"{2 * statistics.mean(result.offered):.0f}", str(2 * result.taken)),
            f"{result.spent_us(cost) / 1000:.0f}",
            *(f"{result.saved_us(disk) / result.spent_us(cost):.2f}" for disk in DISK_US),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
