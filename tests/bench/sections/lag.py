# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's section on reclaim lag and its price."""

from markdown import by_arm, cell, commands, number, shown
from samples import Params, Samples
from spread import spread

TEXT = """\
A guest of 2 GiB with one vCPU uses memory and frees it all at once, on transparent huge
pages unless the row says otherwise. The tables show the seconds from when it begins to
free until a part of that is back at the host. Between two sizes the guest rests until
all is quiet, with freehint for 11 s more, so that no history says that the memory will
be used again. "not seen": not within 20 s, or nothing came for 5 s once 90 % were back.
The picture shows medians, in bands from the lowest to the highest of the samples.
"""

PRICE = """\
These tables show what it took to bring the memory back, per GiB returned. Interrupts are
those that the device asked for. Discards are calls to the host's memory management, in
lazy mode as the device counts them. Free runs are the maximal runs of free memory that
the guest had at the end: nothing can name all of it with fewer calls. Processor time is
that of QEMU's threads other than the vCPUs, less what they need when nothing is reported
("off"). It is negative where that difference is smaller than its noise.
"""


def name(case: Params) -> str:
    return f"{case['mib']} MiB" + ("" if case["huge"] else ", small pages")


def per_gib(key: str) -> "PerGib":
    return PerGib(key)


class PerGib:
    """The value of a cell: a count for each GiB returned."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, samples: Samples) -> str:
        found = [v * (1 << 30) for v in samples.ratios(self._key, "returned")]
        return cell(spread(found), number(1)) if found else "–"


def idle_rate(samples: Samples) -> float:
    """Processor time of the other threads in ns per second, with no reporter."""
    found = samples.of(arm="off").ratios("cpu_ns", "cpu_s")
    return spread(found).median if found else 0.0


def cpu_per_gib(samples: Samples, idle: float) -> list[float]:
    """Milliseconds for each GiB returned, less those of being idle."""
    return [
        (s["values"]["cpu_ns"] - idle * s["values"]["cpu_s"])
        / 1e6
        / (s["values"]["returned"] / (1 << 30))
        for s in samples
        if s["values"]["returned"] > 0
    ]


def section(samples: Samples) -> list[str]:
    reporting = Samples([s for s in samples if not s["arm"].startswith("off")])
    lines = [TEXT, "![Memory of QEMU after 1 GiB was freed](benchmarks/lag.svg)", ""]
    for part in (50, 90, 99):
        value = shown(f"t{part}", number(2), "not seen")
        lines += by_arm(f"{part} % back after, s", reporting, name, value)
    lines += [PRICE]
    for key, title in (
        ("notifications", "notifications"),
        ("interrupts", "interrupts"),
        ("discard_calls", "discard calls"),
    ):
        lines += by_arm(f"{title} per GiB", reporting, name, per_gib(key))
    lines += by_arm("free runs", reporting, name, shown("runs", number()))
    idle = idle_rate(samples)
    lines += by_arm(
        "processor time, ms per GiB",
        reporting,
        name,
        lambda s: cell(spread(cpu_per_gib(s, idle)), number(1)) if s else "–",
    )
    return lines + commands(samples)
