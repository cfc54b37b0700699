# SPDX-License-Identifier: GPL-2.0-or-later
"""A metric has a name, cases for each scale, and a function that measures one."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from arms import Arm

# How much is measured: for reliable figures, for a first impression, or to check that
# measuring works.
SCALES = ("full", "quick", "smoke")

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure, with some arms in turn, several times."""

    params: Values
    arms: tuple[str, ...]
    reps: int = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a measurement, and the commands to repeat it.

    `values` are numbers, or None for "not within the time that was watched"; `series` are
    lists of points for a plot.
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

    `unavailable` returns why it cannot be measured here, or nothing. A scale may have no
    cases of it.
    """

    name: str
    title: str
    cases: Callable[[str], list[Case]]
    measure: Callable[[Arm, Values], Iterator[Outcome]]
    unavailable: Callable[[], str] = always_available
