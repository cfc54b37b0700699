# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's section on churn."""

from freehint_vm import MIB
from markdown import by_arm, commands, number, ratio, shown
from samples import Params, Samples

TEXT = """\
A guest of 1.25 GiB with two vCPUs allocates, touches and frees memory in a loop, on
huge pages. Each loop has a guest of its own and a warm-up, in which an arm may learn. The
row names the number of warm-up cycles, which are not measured. The rate counts the time
spent touching and freeing, not the pauses.
"""

POOLED = """\
With RAM from a pool of huge pages, where a fault costs what it costs on a host that is
no VM itself:
"""

ANONYMOUS = """\
With anonymous RAM, which lazy discards need. The host takes nothing there until it needs
memory, so the rates can be compared although the host is a VM itself:
"""


def name(case: Params) -> str:
    if "threads" in case:
        return f"{case['mib']} MiB, {case['threads']} thread(s), warm-up {case['warm_up']}"
    pause = case.get("pause_ms", 0) / 1000
    return f"{case['mib']} MiB, pause {pause:g} s, warm-up {case['warm_up']}"


def tables(samples: Samples) -> list[str]:
    lines = by_arm("MiB/s", samples, name, shown("busy_rate", number()))
    lines += by_arm(
        "refaulted, bytes per byte touched",
        samples,
        name,
        ratio("refaulted", "touched", number(3)),
    )
    lines += by_arm("discarded, MiB", samples, name, shown("discarded", number(0, MIB)))
    return lines + by_arm("age learned, ms", samples, name, shown("age_ms", number()))


def section(samples: Samples) -> list[str]:
    lines = [TEXT]
    for backing, text in (("hugetlb", POOLED), ("anon", ANONYMOUS)):
        part = samples.of(backing=backing)
        if part:
            lines += [text, *tables(part)]
    return lines + commands(samples)
