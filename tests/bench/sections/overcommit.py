# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's section on guests that together do not fit."""

from freehint_vm import MIB
from markdown import by_arm, commands, number, shown
from samples import Params, Samples

TEXT = """\
Four guests of 1 GiB run in a memory cgroup, with a swap file of 4 GiB. Each in turn uses
850 MiB and frees it; the next begins at once. "–" is a run that was not finished after
150 s, or an arm that was not run; the turns say how far it got.
"""

FIT = """\
Here guests are started one by one, and each uses its memory once, until something is
swapped out or killed. The table shows how many fitted. At most twelve were tried. A bar
is the median, the line in it goes from the lowest to the highest of the samples.

![Guests of 1 GiB that fit in 2600 MiB](benchmarks/fit.svg)
"""


def name(case: Params) -> str:
    limit = f"{case['limit_mib']} MiB"
    if case["kind"] == "fit":
        return f"`{case['command']}`, {limit}"
    return f"`{case['command']}`, {case['rounds']} round(s), {limit}"


def section(samples: Samples) -> list[str]:
    lines = [TEXT]
    turns, fit = samples.of(kind="turns"), samples.of(kind="fit")
    for key, title, show in (
        ("seconds", "all turns, s", number(1)),
        ("turns", "turns", number()),
        ("worst_s", "slowest turn, s", number(1)),
        ("swapped_out", "swapped out, MiB", number(0, MIB)),
        ("swapped_in", "swapped in, MiB", number(0, MIB)),
        ("peak", "peak of the cgroup, MiB", number(0, MIB)),
    ):
        lines += by_arm(title, turns, name, shown(key, show))
    if fit:
        lines += [FIT, *by_arm("guests", fit, name, shown("guests", number()))]
    return lines + commands(samples)
