# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's section on compiling a program in the guest."""

from freehint_vm import MIB
from markdown import by_arm, commands, number, shown
from samples import Params, Samples

TEXT = """\
A guest of 1.5 GiB with two vCPUs compiles Lua's library with gcc, from a disk. Then it
idles for 20 s, removes what it built, idles, drops its page cache and idles. The tables
show the RAM that the guest has from the host: its integral over time, while the guest
builds and after that, and its size at the end of each step. They leave out the code that
QEMU translates, which is about as much again.
"""

VALUES = (
    ("build_s", "building, s", number(1)),
    ("build_gib_s", "while building, GiB s", number(2)),
    ("after_gib_s", "after that, GiB s", number(2)),
    ("built", "when built, MiB", number(0, MIB)),
    ("idled", "20 s later, MiB", number(0, MIB)),
    ("end", "cleaned, caches dropped, MiB", number(0, MIB)),
)


def name(case: Params) -> str:
    return str(case["program"])


def section(samples: Samples) -> list[str]:
    lines = [TEXT, "![The guest's RAM over time](benchmarks/compiling.svg)", ""]
    for key, title, show in VALUES:
        lines += by_arm(title, samples, name, shown(key, show))
    return lines + commands(samples)
