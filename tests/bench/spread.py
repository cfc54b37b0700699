# SPDX-License-Identifier: GPL-2.0-or-later
"""Medians, and their confidence intervals."""

import dataclasses
import random
import statistics
from collections.abc import Sequence

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median and its bootstrap confidence interval of 95 %."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """The same values give the same interval: the resampling is seeded."""
    if not values:
        raise ValueError("there is no median of nothing")
    chance = random.Random(0)
    medians = sorted(
        statistics.median(chance.choices(values, k=len(values)))
        for _ in range(RESAMPLES)
    )
    tail = int((1 - CONFIDENCE) / 2 * RESAMPLES)
    return Spread(
        median=statistics.median(values),
        low=medians[tail],
        high=medians[-1 - tail],
        count=len(values),
    )
