# SPDX-License-Identifier: GPL-2.0-or-later
"""Which page cache a guest gives up on a day of real programs, and what it reads again.

The day is that of the metric `day`, with page cache reclaimed at each idle. A folio
qualifies for a volatile page cache if it is of a regular file that nobody has open for
writing when it is evicted.
"""

import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import program_disk
from arms import BY_NAME, BenchGuest
from freehint_vm import TRACING
from metrics.day import IDLE, MEMORY_MIB, STEPS, UPKEEP, VCPUS
from program_disk import ROOT, check

# For each processor; an event takes about 50 bytes.
BUFFER_KIB = 32 << 10
EVENTS = f"{TRACING}/events"
DELETE = f"{EVENTS}/filemap/mm_filemap_delete_from_page_cache/enable"
START = " && ".join(
    (
        f"echo {BUFFER_KIB} >{TRACING}/buffer_size_kb",
        f"echo 0 >{TRACING}/options/context-info",
        f"echo 1 >{EVENTS}/filemap/mm_filemap_add_to_page_cache/enable",
        f"echo 1 >{EVENTS}/writeback/writeback_dirty_folio/enable",
    )
)
LOG = f"cachelog events {ROOT}"

Page = tuple[int, int]


class Run(NamedTuple):
    """Pages in a row of a file: read (r), written without being read (w), evicted (d)."""

    kind: str
    inode: int
    first: int
    length: int

    def pages(self) -> Iterator[Page]:
        return ((self.inode, self.first + i) for i in range(self.length))


@dataclasses.dataclass(frozen=True)
class Step:
    """Some work, and the reclaim after it."""

    name: str
    seconds: float
    work: list[Run]
    reclaim: list[Run]
    # Inodes that were open for writing, and those of directories that were made so far.
    writers: frozenset[int]
    folders: frozenset[int]
    # Evicted pages of block devices and other file systems.
    other: int
    lost: int

    def qualifies(self, inode: int) -> bool:
        return inode not in self.writers and inode not in self.folders


@dataclasses.dataclass
class Count:
    """Pages that were evicted after a step; those of `quiet` ones qualify.

    Those of `static` ones are of files that nobody writes to on all of the day.
    """

    evicted: int = 0
    folders: int = 0
    other: int = 0
    quiet: int = 0
    again: int = 0
    quiet_again: int = 0
    static_again: int = 0

    def __add__(self, more: "Count") -> "Count":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(more))
        return Count(*(a + b for a, b in pairs))


def parse_log(text: str) -> tuple[list[Run], int, int]:
    """What cachelog prints: the runs, other pages, and lost events."""
    runs, found = [], {"other": 0, "lost": 0}
    for line in text.splitlines():
        kind, *words = line.split()
        if kind in found:
            found[kind] += int(words[0])
        else:
            runs.append(Run(kind, *map(int, words)))
    return runs, found["other"], found["lost"]


def count(day: list[Step]) -> list[Count]:
    """For each step, what was evicted after it, and of this, what was read again later.

    A page that is overwritten before it is read is not read again.
    """
    counts = [Count(other=step.other) for step in day]
    runs = [run for step in day for run in step.work + step.reclaim]
    written = {run.inode for run in runs if run.kind == "w"}
    # Where a page was evicted that has not come back, and whether it qualified.
    gone: dict[Page, tuple[Count, bool]] = {}
    for step, mine in zip(day, counts):
        for run in step.work + step.reclaim:
            quiet = step.qualifies(run.inode)
            for page in run.pages():
                if run.kind == "d":
                    mine.evicted += 1
                    mine.folders += run.inode in step.folders
                    mine.quiet += quiet
                    gone[page] = mine, quiet
                elif (was := gone.pop(page, None)) and run.kind == "r":
                    was[0].again += 1
                    was[0].quiet_again += was[1]
                    was[0].static_again += was[1] and run.inode not in written
    return counts


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def table(day: list[Step]) -> str:
    """In MiB, and shares of all that was evicted, whatever it was."""
    counts = count(day)
    rows = list(zip([step.name for step in day], counts))
    rows.append(("all", sum(counts, Count())))
    lines = [
        "| after | evicted, MiB | of these no file | no writer | read again | both |"
        " both, never written |",
        "| --- " * 7 + "|",
    ]
    for name, c in rows:
        whole = c.evicted + c.other
        shares = (c.folders + c.other, c.quiet, c.again, c.quiet_again, c.static_again)
        cells = [name, f"{whole / 256:.1f}", *(percent(part, whole) for part in shares)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def save(day: list[Step], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = [dataclasses.asdict(step) for step in day]
    path.write_text(json.dumps(steps, default=sorted, separators=(",", ":")))


def load(path: Path) -> list[Step]:
    def step(entry: dict[str, Any]) -> Step:
        for key in ("work", "reclaim"):
            entry[key] = [Run(*run) for run in entry[key]]
        for key in ("writers", "folders"):
            entry[key] = frozenset(entry[key])
        return Step(**entry)

    return [step(entry) for entry in json.loads(path.read_text())]


def folders(vm: BenchGuest, *roots: str) -> frozenset[int]:
    """The inodes of all directories there are, found without a program on the disk."""
    found = f"find {' '.join(roots)} -xdev -type d -exec stat -c %i '{{}}' +"
    return frozenset(map(int, check(vm, found).output.split()))


def observe(vm: BenchGuest) -> list[Step]:
    upkeep = UPKEEP["reclaim"]
    check(vm, program_disk.MOUNT)
    check(vm, upkeep.first)
    directories = folders(vm, ROOT)
    # The day begins with an empty cache, as it does without that walk.
    check(vm, f"sync; echo 3 >/proc/sys/vm/drop_caches; {START}")
    day = []
    for step in STEPS:
        done = check(vm, step.command)
        seconds = done.ended - done.started
        idle = time.monotonic() + IDLE
        work, _, lost = parse_log(check(vm, LOG).output)
        directories |= folders(vm, f"{ROOT}/tmp", f"{ROOT}/work")
        opened = check(vm, f"cachelog writers {ROOT}; echo 1 >{DELETE}; {upkeep.idle}")
        log = check(vm, f"echo 0 >{DELETE}; {LOG}").output
        reclaim, other, more = parse_log(log)
        writers = frozenset(map(int, re.findall(r"^writer (\d+)$", opened.output, re.M)))
        day.append(
            Step(
                *(step.name, seconds, work, reclaim, writers, directories),
                *(other, lost + more),
            )
        )
        print(f"{step.name}: {seconds:.0f} s", file=sys.stderr, flush=True)
        time.sleep(max(idle - time.monotonic(), 0))
    return day


def observed_day(arm: str = "off") -> list[Step]:
    disk = program_disk.disk()
    with BenchGuest(
        BY_NAME[arm], memory_mib=MEMORY_MIB, cpus=VCPUS, ram_only=True, extra_args=disk
    ) as vm:
        vm.rest()
        return observe(vm)
