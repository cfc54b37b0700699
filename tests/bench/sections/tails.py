# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's section on allocation latency near full memory."""

from markdown import by_arm, commands, number, shown
from samples import Samples

TEXT = """\
A guest of 1 GiB with two vCPUs is filled until 192 MiB are free. One thread allocates and
frees 64 MiB of that, four times per second. Another one measures how long the first
touch of pages and of huge pages takes, in microseconds. The RAM is in a pool of huge
pages.
"""

LATENCIES = [
    (f"order{order}_{part}", f"order {order}, {title}")
    for order in (0, 9)
    for part, title in (("p50", "median"), ("p99", "p99"), ("p999", "p99.9"))
]
EVENTS = (
    ("compact_stall", "compaction stalls"),
    ("thp_fault_fallback", "huge page allocation failures"),
    ("allocstall_movable", "reclaim stalls, movable"),
    ("notifications", "notifications"),
)


def section(samples: Samples) -> list[str]:
    lines = [TEXT]
    for key, title in LATENCIES:
        value = shown(key, number(1, 1000))
        lines += by_arm(f"{title}, µs", samples, lambda _: "", value)
    for key, title in EVENTS:
        lines += by_arm(title, samples, lambda _: "", shown(key, number()))
    return lines + commands(samples)
