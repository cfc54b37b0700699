# SPDX-License-Identifier: GPL-2.0-or-later
"""What a metric is: a name, cases for each scale, and how to measure one."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from arms import Arm

# How much is measured: to be sure of the numbers, to have an idea of them, or to
# see that measuring works.
SCALES = ("full", "quick", "smoke")

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure, with each of some arms in turn, some times over."""

    params: Values
    arms: tuple[str, ...]
    reps: int = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one measurement came to, and how anyone can make it again.

    `values` are numbers, or None for "not within the time that was watched";
    `series` are lists of points for a plot.
    """

    params: Values
    values: Values
    guest: str
    qemu: str
    series: Values = dataclasses.field(default_factory=dict)


def always_available() -> str:
    return ""


@dataclasses.dataclass(frozen=True)
class Metric:
    """Something that can be selected with --only.

    `unavailable` says why it cannot be measured here, if so; a scale may have no
    cases of it.
    """

    name: str
    title: str
    cases: Callable[[str], list[Case]]
    measure: Callable[[Arm, Values], Iterator[Outcome]]
    unavailable: Callable[[], str] = always_available
