# SPDX-License-Identifier: GPL-2.0-or-later
"""What the results must show, and whether they do.

A target compares freehint with balloon reporting as shipped, measured in the
same run; a missed one is the report's first line, not its last.
"""

import dataclasses
from collections.abc import Callable, Iterator

from freehint_vm import MIB
from samples import Params, Samples
from sections.churn import name as loop_name
from sections.lag import name as size_name

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One line of the table of targets; sizes and units are in the texts."""

    target: str
    case: str
    theirs: str
    ours: str
    measured: str
    met: bool


def ratio_text(value: float) -> str:
    return f"1/{1 / value:.0f}" if 0 < value < 0.4 else f"{value:.2f}"


def compare(
    target: str,
    case: str,
    theirs: float | None,
    ours: float | None,
    met: Callable[[float], bool],
    digits: int = 2,
) -> Iterator[Verdict]:
    """A verdict on ours over theirs; none where either was not measured."""
    if theirs is None or ours is None:
        return
    ratio = ours / theirs if theirs else (1.0 if ours == theirs else float("inf"))
    their_text, our_text = (f"{value:,.{digits}f}" for value in (theirs, ours))
    yield Verdict(target, case, their_text, our_text, ratio_text(ratio), met(ratio))


def lag(samples: Samples) -> Iterator[Verdict]:
    """What was not seen to come back is a miss if it is ours."""
    target = "90 % back, s: at most 1/20"
    for case in samples.cases():
        mine, peer = (samples.of(arm=a, **case) for a in ("freehint", "balloon"))
        theirs, ours = peer.median("t90"), mine.median("t90")
        if not mine or not peer:
            continue
        if theirs is None or ours is None:
            yield Verdict(
                target,
                size_name(case),
                "never" if theirs is None else f"{theirs:.2f}",
                "never" if ours is None else f"{ours:.2f}",
                "–",
                ours is not None,
            )
        else:
            yield from compare(target, size_name(case), theirs, ours, within(0.05))


def per_gib(samples: Samples, key: str) -> float | None:
    found = sorted(samples.ratios(key, "returned"))
    return found[len(found) // 2] * GIB if found else None


def price(samples: Samples) -> Iterator[Verdict]:
    for key, title, limit in (
        ("discard_calls", "discard calls per GiB: at most 1/6", 1 / 6),
        ("notifications", "notifications per GiB: at most as many", 1.0),
    ):
        for case in samples.cases():
            parts = (samples.of(arm=a, **case) for a in ("balloon", "freehint"))
            theirs, ours = (per_gib(part, key) for part in parts)
            met = within(limit)
            yield from compare(title, size_name(case), theirs, ours, met, 1)


def within(limit: float) -> Callable[[float], bool]:
    return lambda ratio: ratio <= limit


def churn(samples: Samples) -> Iterator[Verdict]:
    pooled = samples.of(backing="hugetlb")
    for case in pooled.cases():
        noise = noise_floor(pooled.of(**case))
        mine, peer = (pooled.of(arm=a, **case) for a in ("freehint", "balloon"))
        title = f"churn, MiB/s: at least as many, ±{noise:.0%} noise"
        theirs, ours = peer.median("busy_rate"), mine.median("busy_rate")
        met = at_least(1 - noise)
        yield from compare(title, loop_name(case), theirs, ours, met, 0)
        yield from refaults(case, mine, peer)
    yield from lazy_tax(samples.of(backing="anon"))


def at_least(limit: float) -> Callable[[float], bool]:
    return lambda ratio: ratio >= limit


def refaults(case: Params, mine: Samples, peer: Samples) -> Iterator[Verdict]:
    """Below 16 MiB it is the noise of a guest that does other things, too."""
    their_bytes, our_bytes = peer.median("refaulted"), mine.median("refaulted")
    if their_bytes is None or our_bytes is None:
        return
    theirs, ours = their_bytes / MIB, our_bytes / MIB
    met = ours <= max(1.1 * theirs, 16)
    ratio = ratio_text(ours / theirs) if theirs else "–"
    title = "churn, MiB refaulted: at most 1.1 times"
    texts = (f"{theirs:,.0f}", f"{ours:,.0f}")
    yield Verdict(title, loop_name(case), *texts, ratio, met)


def noise_floor(samples: Samples) -> float:
    """How far the two runs of a case without a reporter are apart."""
    a, b = (samples.of(arm=x).median("busy_rate") for x in ("off", "off-again"))
    return abs(a - b) / min(a, b) if a and b else 0.0


def lazy_tax(samples: Samples) -> Iterator[Verdict]:
    """Against "off": what is not taken costs nothing to have."""
    for case in samples.cases():
        noise = noise_floor(samples.of(**case))
        off = samples.of(arm="off", **case).median("busy_rate")
        lazy = samples.of(arm="freehint-lazy", **case).median("busy_rate")
        title = f"lazy against off, MiB/s: no tax, ±{noise:.0%} noise"
        yield from compare(title, loop_name(case), off, lazy, at_least(1 - noise), 0)


def footprint(samples: Samples) -> Iterator[Verdict]:
    for case in samples.cases():
        theirs = samples.of(arm="balloon", **case).median("mean")
        ours = samples.of(arm="freehint", **case).median("mean")
        title = "mean footprint, MiB: at most as much"
        if theirs and ours:
            sizes = theirs / MIB, ours / MIB
            text = f"{case['idle_s']} s idle"
            yield from compare(title, text, *sizes, within(1.01), 0)


def hugepages(samples: Samples) -> Iterator[Verdict]:
    for case in samples.cases():
        off, ours = (samples.of(arm=a, **case) for a in ("off", "freehint"))
        title = "AnonHugePages / RSS against off: kept"
        sizes = off.median("share"), ours.median("share")
        yield from compare(title, f"{case['cycles']} cycles", *sizes, at_least(0.99), 3)


def tails(samples: Samples) -> Iterator[Verdict]:
    """Tails are wide; the noise is that of the two runs without a reporter."""
    for key, title in (
        ("order0_p99", "order 0, p99"),
        ("order0_p999", "order 0, p99.9"),
        ("order9_p99", "order 9, p99"),
        ("order9_p999", "order 9, p99.9"),
    ):
        a, b = (samples.of(arm=x).median(key) for x in ("off", "off-again"))
        noise = abs(a - b) / min(a, b) if a and b else 0.0
        theirs, ours = (samples.of(arm=x).median(key) for x in ("balloon", "freehint"))
        text = f"allocation, µs: at most balloon's, ±{noise:.0%} noise"
        if theirs and ours:
            times = theirs / 1000, ours / 1000
            yield from compare(text, title, *times, within(1.0 + noise), 1)


def overcommit(samples: Samples) -> Iterator[Verdict]:
    for case in samples.of(kind="turns").cases():
        mine, peer = (samples.of(arm=a, **case) for a in ("freehint", "balloon"))
        where = f"`{case['command']}`, {case['limit_mib']} MiB"
        theirs, ours = peer.median("seconds"), mine.median("seconds")
        title = "overcommit, s for all turns: less"
        yield from compare(title, where, theirs, ours, within(1.0), 1)
        theirs, ours = peer.median("swapped_out"), mine.median("swapped_out")
        if theirs is not None and ours is not None:
            texts = (f"{theirs / MIB:,.0f}", f"{ours / MIB:,.0f}")
            title = "overcommit, MiB swapped out: none"
            yield Verdict(title, where, *texts, "–", ours < MIB)
    for case in samples.of(kind="fit").cases():
        mine, peer = (samples.of(arm=a, **case) for a in ("freehint", "balloon"))
        sizes = peer.median("guests"), mine.median("guests")
        title = "guests before anything is swapped: no fewer"
        where = f"{case['limit_mib']} MiB"
        yield from compare(title, where, *sizes, at_least(1.0), 0)


def compiling(samples: Samples) -> Iterator[Verdict]:
    for key, title, unit in (
        ("build_gib_s", "compiling, GiB s while building: no more", 1),
        ("after_gib_s", "compiling, GiB s after that: no more", 1),
        ("end", "compiling, MiB at the end: no more", MIB),
    ):
        parts = (samples.of(arm=a) for a in ("balloon", "freehint"))
        theirs, ours = (part.median(key) for part in parts)
        if theirs is not None and ours is not None:
            sizes = theirs / unit, ours / unit
            yield from compare(title, "Lua", *sizes, within(1.02), 1)


def day(samples: Samples) -> Iterator[Verdict]:
    """Against what the guest has in use, so a reporter has to meet them by itself."""
    share = "a day, host memory per in use: at most 1.15"
    left = "a day, MiB beyond use and page cache: at most 64"
    for key, title, case, limit, unit, digits in (
        ("host_per_use", share, "with page cache", 1.15, 1, 2),
        ("host_per_use_aside", share, "page cache aside", 1.15, 1, 2),
        ("cleaned_excess", left, "at its end", 64, MIB, 0),
        ("dropped_excess", left, "page cache dropped", 64, MIB, 0),
    ):
        parts = (samples.of(arm=a, upkeep="none") for a in ("balloon", "freehint"))
        theirs, ours = (part.median(key) for part in parts)
        if theirs is not None and ours is not None:
            peer, mine = (f"{value / unit:,.{digits}f}" for value in (theirs, ours))
            yield Verdict(title, case, peer, mine, "–", ours / unit <= limit)


TARGETS: dict[str, list[Callable[[Samples], Iterator[Verdict]]]] = {
    "lag": [lag, price],
    "footprint": [footprint],
    "churn": [churn],
    "hugepages": [hugepages],
    "tails": [tails],
    "overcommit": [overcommit],
    "compiling": [compiling],
    "day": [day],
}


def verdicts(samples: Samples) -> list[Verdict]:
    return [
        verdict
        for metric, judges in TARGETS.items()
        for judge in judges
        for verdict in judge(samples.of(metric))
    ]
