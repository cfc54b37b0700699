# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics, in the order in which they are run and shown."""

from plan import Metric

from . import churn, compiling, cost, day, footprint, hugepages, lag, overcommit, scale, tails

METRICS: list[Metric] = [
    lag.METRIC,
    footprint.METRIC,
    churn.METRIC,
    cost.METRIC,
    hugepages.METRIC,
    tails.METRIC,
    overcommit.METRIC,
    compiling.METRIC,
    day.METRIC,
    scale.METRIC,
]
BY_NAME = {metric.name: metric for metric in METRICS}
