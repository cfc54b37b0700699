# SPDX-License-Identifier: GPL-2.0-or-later
"""Parse the output of tests/guest/toucher.c."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Cycle:
    """One cycle of one thread; the times of day are the guest's, in ms."""

    thread: int
    touch_ns: int
    free_ns: int
    free_ms: int
    freed_ms: int


@dataclasses.dataclass(frozen=True)
class Toucher:
    cycles: list[Cycle]
    bytes: int
    ns: int


def parse(output: str) -> Toucher:
    lines = [line.split() for line in output.splitlines()]
    cycles = [Cycle(*map(int, words[1:])) for words in lines if words[0] == "cycle"]
    total = re.search(r"^total (\d+) (\d+)$", output, re.M)
    if not total or not cycles:
        raise ValueError(f"this is not what toucher prints: {output!r}")
    return Toucher(cycles, int(total[1]), int(total[2]))
