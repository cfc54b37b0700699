# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's section on huge pages kept."""

from markdown import by_arm, commands, number, shown
from samples import Params, Samples

TEXT = """\
The guest frees its memory many times, each time for long enough that every arm gives it
back, and uses it once more. The table shows which share of QEMU's anonymous memory is on
huge pages of the host then. QEMU's own memory is on small pages, so no arm gets to 1.
"""


def name(case: Params) -> str:
    return f"after {case['cycles']} cycles of {case['mib']} MiB"


def section(samples: Samples) -> list[str]:
    lines = [TEXT]
    lines += by_arm("AnonHugePages / RSS", samples, name, shown("share", number(3)))
    lines += by_arm("on small pages, MiB", samples, name, shown("small_mib", number()))
    return lines + commands(samples)
