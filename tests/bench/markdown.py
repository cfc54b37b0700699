# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables and figures of the report."""

from collections.abc import Callable, Sequence

from arms import Arm
from samples import Params, Samples
from spread import Spread, spread

Format = Callable[[float], str]


def number(digits: int = 0, scale: float = 1, unit: str = "") -> Format:
    """Format a value, divided by a scale, with a unit."""
    return lambda value: f"{value / scale:,.{digits}f}{unit}"


def cell(found: Spread | None, show: Format, otherwise: str = "–") -> str:
    """A median, and its confidence interval if there is more than one value."""
    if found is None:
        return otherwise
    low, median, high = map(show, (found.low, found.median, found.high))
    if found.count == 1 or low == high:
        return median
    return f"{median} [{low}, {high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def by_arm(
    title: str,
    samples: Samples,
    name: Callable[[Params], str],
    value: Callable[[Samples], str],
) -> list[str]:
    """A row for each case, a column for each arm."""
    arms: list[Arm] = samples.arms()
    rows = [
        [name(case), *(value(samples.of(arm=arm.name, **case)) for arm in arms)]
        for case in samples.cases()
    ]
    return table([title, *(arm.title for arm in arms)], rows)


def shown(key: str, show: Format, otherwise: str = "–") -> Callable[[Samples], str]:
    """The value of a cell: the median of one key."""
    return lambda s: cell(s.spread(key), show, otherwise)


def ratio(key: str, per: str, show: Format) -> Callable[[Samples], str]:
    """The value of a cell: the median of one key per another."""

    def value(samples: Samples) -> str:
        found = samples.ratios(key, per)
        return cell(spread(found), show) if found else "–"

    return value


def commands(samples: Samples) -> list[str]:
    """The commands that the guests ran, so anybody can repeat them."""
    texts = dict.fromkeys(sample["guest"] for sample in samples)
    return ["In the guest:", "", *(f"    {text}" for text in texts), ""]
