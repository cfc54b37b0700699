# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's section on the footprint over time."""

from freehint_vm import MIB
from markdown import by_arm, commands, number, shown, table
from samples import Params, Samples

TEXT = """\
A guest of 2 GiB uses 1.5 GiB for 2 s, frees it and idles, in cycles. The tables show the
mean of QEMU's memory from the first cycle to the end of the last, in MiB; the lower bound
of that, by the guest's free blocks of 2 MiB or more, which includes QEMU's own memory;
and the efficiency: which part of the memory that could have been with the host was there.
The picture shows the first sample of each arm. The longest run took a minute or so: no
guest was watched for a day.
"""


def name(case: Params) -> str:
    return f"{case['idle_s']} s idle, {case['cycles']} cycles"


def efficiency(samples: Samples) -> float | None:
    mean, bound = samples.median("mean"), samples.median("bound")
    provisioned = samples.median("provisioned")
    if mean is None or bound is None or provisioned is None:
        return None
    return (provisioned - mean) / (provisioned - bound)


def section(samples: Samples) -> list[str]:
    lines = [TEXT, "![QEMU's memory over time, and its lower bound](benchmarks/footprint.svg)", ""]
    lines += by_arm("QEMU's mean, MiB", samples, name, shown("mean", number(0, MIB)))
    lines += by_arm("bound, MiB", samples, name, shown("bound", number(0, MIB)))
    rows = []
    arms = samples.arms()
    for case in samples.cases():
        row = [name(case)]
        for arm in arms:
            part = samples.of(arm=arm.name, **case)
            found = efficiency(part)
            row.append("–" if found is None else f"{found:.3f}")
        rows.append(row)
    lines += table(["efficiency", *(arm.title for arm in arms)], rows)
    return lines + commands(samples)
