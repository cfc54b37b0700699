#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host takes first when it is short: lazily freed memory, or what it has to swap.

A process in a memory cgroup keeps some memory, frees other memory lazily, and then wants
more than fits. A neighbour in the same cgroup may read a file over and over meanwhile.
What is lazily freed is enough, so that nothing has to be swapped. Needs root and a version
1 memory cgroup. Where there is MGLRU, all is done with and without it.
"""

import array
import contextlib
import ctypes
import dataclasses
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from memcg import MIB, PAGE, MemoryCgroup

LRU_GEN = Path("/sys/kernel/mm/lru_gen/enabled")
LIMIT_MIB = 600
SWAP_MIB = 1024
KEPT_MIB, LAZY_MIB, WANTED_MIB = 256, 300, 180
# The neighbour's file, and how often it is read before and after memory is freed.
FILE_MIB = 160
PASSES_BEFORE, PASSES_AFTER = 2, 8
PRESENT = 1 << 63


@dataclasses.dataclass(frozen=True)
class Case:
    """`freed` says whether memory is freed at all; if not, it has to be swapped."""

    huge: bool
    lazy_first: bool
    neighbour: bool
    mglru: bool | None = None
    freed: bool = True


@dataclasses.dataclass(frozen=True)
class Taken:
    """In bytes, since memory was freed; `before` is what the neighbour refaulted until then.

    `left` is what is still there of what was lazily freed, `read` what the neighbour has
    read from the disk, and `huge` what was in huge pages.
    """

    lazy: int
    left: int
    swapped: int
    refaulted: int
    read: int
    before: int
    huge: int


# --- what runs in the cgroup; each line is a request -------------------------


def hold(advice: int) -> None:
    """Touch or free memory as told, and say where it is."""
    held: dict[str, mmap.mmap] = {}
    for line in sys.stdin:
        verb, name, mib = line.split()
        if verb == "free":
            held[name].madvise(mmap.MADV_FREE)
        else:
            area = held[name] = mmap.mmap(-1, int(mib) * MIB, mmap.MAP_PRIVATE)
            area.madvise(advice)
            for offset in range(0, len(area), PAGE):
                area[offset] = 1
        print(ctypes.addressof(ctypes.c_char.from_buffer(held[name])), flush=True)


def read_again(path: str) -> None:
    """Read a file as often as told, page by page, without reading ahead."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for _ in sys.stdin:
        for offset in range(0, FILE_MIB * MIB, PAGE):
            os.pread(fd, PAGE, offset)
        print("0", flush=True)


# --- the experiment ----------------------------------------------------------


class InGroup:
    """This program in the cgroup, in one of the roles above."""

    def __init__(self, group: MemoryCgroup, *role: str) -> None:
        self._process = subprocess.Popen(
            [*group.wrapper(), sys.executable, __file__, *role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def __enter__(self) -> "InGroup":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, request: str) -> None:
        assert self._process.stdin
        print(request, file=self._process.stdin, flush=True)

    def answer(self) -> int:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process in the cgroup has ended")
        return int(line)

    def do(self, request: str) -> int:
        self.ask(request)
        return self.answer()

    def read(self) -> int:
        """The number of bytes that came from the disk."""
        fields = Path(f"/proc/{self.pid}/io").read_text().split()
        return int(fields[fields.index("read_bytes:") + 1])

    def present(self, address: int, mib: int) -> int:
        """How many bytes of an area are in memory."""
        count = mib * MIB // PAGE
        with Path(f"/proc/{self.pid}/pagemap").open("rb", buffering=0) as file:
            file.seek(address // PAGE * 8)
            entries = array.array("Q", file.read(count * 8))
        return sum(1 for entry in entries if entry & PRESENT) * PAGE

    def huge(self) -> int:
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text().split()
        return int(rollup[rollup.index("AnonHugePages:") + 1]) * 1024


@contextlib.contextmanager
def generations(on: bool | None) -> Iterator[None]:
    """MGLRU on or off, and put back at the end; None if the kernel has no MGLRU."""
    if on is None:
        yield
        return
    before = LRU_GEN.read_text()
    LRU_GEN.write_text("y" if on else "n")
    try:
        yield
    finally:
        LRU_GEN.write_text(before)


@contextlib.contextmanager
def file_on_disk(mib: int) -> Iterator[Path]:
    """A file with none of it in the page cache."""
    with tempfile.NamedTemporaryFile(prefix="freehint-", dir="/var/tmp") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield Path(file.name)


def measure(case: Case) -> Taken:
    with contextlib.ExitStack() as stack:
        stack.enter_context(generations(case.mglru))
        path = stack.enter_context(file_on_disk(FILE_MIB))
        swap = path.with_suffix(".swap")
        group = stack.enter_context(MemoryCgroup(LIMIT_MIB, SWAP_MIB, swap))
        holder = stack.enter_context(InGroup(group, "hold", "huge" * case.huge))
        neighbour = stack.enter_context(InGroup(group, "read", str(path)))
        at = {}
        areas = [("kept", KEPT_MIB), ("lazy", LAZY_MIB)]
        for name, mib in reversed(areas) if case.lazy_first else areas:
            at[name] = holder.do(f"touch {name} {mib}")
        huge = holder.huge()
        for _ in range(PASSES_BEFORE * case.neighbour):
            neighbour.do("read")
        # What is swapped of it goes at once.
        if case.freed:
            holder.do("free lazy 0")
        lazy = holder.present(at["lazy"], LAZY_MIB)
        swapped, refaulted, read = group.swapped(), group.refaulted(), neighbour.read()
        passes = PASSES_AFTER * case.neighbour
        for _ in range(passes):
            neighbour.ask("read")
        holder.do(f"touch wanted {WANTED_MIB}")
        for _ in range(passes):
            neighbour.answer()
        left = holder.present(at["lazy"], LAZY_MIB)
        taken = Taken(
            lazy=lazy - left,
            left=left,
            swapped=group.swapped() - swapped,
            refaulted=group.refaulted() - refaulted,
            read=neighbour.read() - read,
            before=refaulted,
            huge=huge,
        )
    return taken


def cases() -> list[Case]:
    mglru = (False, True) if LRU_GEN.exists() else (None,)
    either = (False, True)
    found = [
        Case(huge, lazy_first, neighbour, generation)
        for generation in mglru
        for neighbour in either
        for huge in either
        for lazy_first in either
    ]
    controls = [Case(False, False, neighbour, freed=False) for neighbour in either]
    return found + controls


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        hold(mmap.MADV_HUGEPAGE if sys.argv[2] else mmap.MADV_NOHUGEPAGE)
    else:
        read_again(sys.argv[2])
