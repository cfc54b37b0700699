# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's sections, one for each metric."""

from collections.abc import Callable

from samples import Samples

from . import churn, compiling, cost, day, footprint, hugepages, lag, overcommit, scale, tails

# By metric: what to write of its samples.
SECTIONS: dict[str, Callable[[Samples], list[str]]] = {
    "lag": lag.section,
    "footprint": footprint.section,
    "churn": churn.section,
    "cost": cost.section,
    "hugepages": hugepages.section,
    "tails": tails.section,
    "overcommit": overcommit.section,
    "compiling": compiling.section,
    "day": day.section,
    "scale": scale.section,
}
