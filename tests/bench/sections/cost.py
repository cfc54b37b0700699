# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's section on the cost of the guest's hot path."""

from markdown import by_arm, cell, commands, number
from samples import Params, Samples

TEXT = """\
The table shows the instructions of the whole guest for taking a block of 2 MiB from the
free lists and giving it back. Filling and emptying the guest's pool of huge pages does
that; the blocks are not touched. QEMU counts them (`-icount shift=0`), so they do not
depend on the host. With a reporter they include the hooks, the thread that reports, its
driver, and its interrupts.
"""


def name(case: Params) -> str:
    return f"{case['rounds']} times {case['pages']} blocks"


def section(samples: Samples) -> list[str]:
    lines = [TEXT]
    lines += by_arm(
        "instructions per block",
        samples,
        name,
        lambda s: cell(s.spread("instructions"), number()),
    )
    return lines + commands(samples)
