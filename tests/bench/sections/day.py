# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's section on a day in a guest's life."""

from collections.abc import Callable

from freehint_vm import MIB
from markdown import Format, commands, number, shown, table
from metrics.day import AFTER, IDLE, STEPS, UPKEEP
from samples import Params, Samples

TEXT = f"""\
A guest of 1.5 GiB with two vCPUs compiles Lua and SQLite with gcc, fills and loads a
database of PostgreSQL and stops it, has a web service of Node serve and stops it, and
unpacks an archive that git then adds, commits, checks out and packs; it ends with a clean
disk. After each step it idles for {IDLE:.0f} s. All programs are Debian's, from a disk, and all
input is the same each time. *In use* is what the guest says: anonymous and shared memory,
slabs, page tables, per-CPU and vmalloc memory, page cache to be written, and the kernel's
own image and map of pages. Clean page cache is told apart; no reporter returns it. *Host
memory* is the guest's RAM on the host, without what the host may take at any time; the
code that QEMU translates is left out. *Free in small pieces* is what no hint can name: free
memory that is not in blocks of 2 MiB.

In the picture, each arm's host memory is the line, in use is dark, and the page cache is
light on top of it; what is white below the line is free memory that the host does not have.
"""

DAY = (
    ("host_gib_min", "host memory, GiB min", number(3)),
    ("seen_gib_min", "with what the host may take, GiB min", number(3)),
    ("use_gib_min", "in use, GiB min", number(3)),
    ("cache_gib_min", "page cache, GiB min", number(3)),
    ("host_per_use", "host memory per in use", number(2)),
    ("host_per_use_aside", "the same, page cache aside", number(2)),
    ("day_s", "it took, s", number(0)),
)
# What is told of a moment.
LEFT = (
    ("host", "host memory, MiB"),
    ("use", "in use, MiB"),
    ("cache", "page cache, MiB"),
    ("excess", "host memory beyond both, MiB"),
    ("small", "free in small pieces, MiB"),
    ("other", "in use for nothing that is told, MiB"),
)
IN_MIB = number(0, MIB)
Row = tuple[str, Callable[[Samples], str]]


def name(case: Params) -> str:
    return UPKEEP[str(case["upkeep"])].title


def rows_by_arm(title: str, samples: Samples, rows: list[Row]) -> list[str]:
    """A row for each figure, a column for each arm, of one case."""
    arms = samples.arms()
    cells = [
        [text, *(value(samples.of(arm=arm.name)) for arm in arms)] for text, value in rows
    ]
    return table([title, *(arm.title for arm in arms)], cells)


def figures(rows: tuple[tuple[str, str, Format], ...]) -> list[Row]:
    return [(text, shown(key, show)) for key, text, show in rows]


def left(moment: str) -> list[Row]:
    return [(text, shown(f"{moment}_{key}", IN_MIB)) for key, text in LEFT]


def section(samples: Samples) -> list[str]:
    lines = [TEXT, "![Host memory and memory in use](benchmarks/day.svg)", ""]
    for case in samples.cases():
        part = samples.of(**case)
        lines += [f"### {name(case)}", ""]
        lines += rows_by_arm("the whole day", part, figures(DAY))
        beyond = [(step.title, shown(f"{step.name}_excess", IN_MIB)) for step in STEPS]
        lines += rows_by_arm(f"beyond use and cache, MiB, {IDLE:.0f} s after", part, beyond)
        lines += rows_by_arm("at its end", part, left(STEPS[-1].name))
        for step in AFTER:
            lines += rows_by_arm(f"then {step.title}", part, left(step.name))
    return lines + commands(samples)
