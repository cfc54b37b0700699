# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's section on growth with the machine."""

from markdown import table
from samples import Params, Samples

TEXT = """\
The engine's own code runs on zones that have state and no memory. The table shows, in
instructions, how often `zone->lock` is taken, the longest hold, and the sum of all
holds. The allocator is emulated; what it costs to take and give back a block is not in
these figures.
"""


def cells(samples: Samples, case: Params) -> list[str]:
    found = samples.of(**case)
    return [f"{found.median(key) or 0:,.0f}" for key in ("holds", "max", "total")]


def section(samples: Samples) -> list[str]:
    rows = []
    whats = dict.fromkeys(case["what"] for case in samples.cases())
    for what in whats:
        for case in samples.cases():
            if case["what"] == what:
                rows.append([what, f"{case['gib']:,} GiB", *cells(samples, case)])
    head = ["what", "zone", "holds", "longest hold", "all holds"]
    lines = [TEXT, *table(head, rows)]
    commands = dict.fromkeys(sample["qemu"] for sample in samples)
    return lines + ["The kernel of the KUnit suite:", "", *(f"    {c}" for c in commands), ""]
