# SPDX-License-Identifier: GPL-2.0-or-later
"""What metrics do with sizes over time while they measure: a size at a moment, an area.

A size stays as it is between its points. The results only have thin curves, as series of
their samples: samples.py selects these, and plots.py draws them.
"""

import bisect

MIB = 1 << 20
# Seconds, and bytes.
Curve = list[tuple[float, int]]


def at(curve: Curve, when: float) -> int:
    """The size at a moment, or the first one if there was none yet."""
    index = bisect.bisect_right(curve, when, key=lambda point: point[0])
    return curve[max(index - 1, 0)][1]


def area(curve: Curve, begin: float, end: float) -> float:
    """Byte seconds between two moments."""
    inside = [(when, size) for when, size in curve if begin < when < end]
    points = [(begin, at(curve, begin)), *inside, (end, 0)]
    return sum((b - a) * size for (a, size), (b, _) in zip(points, points[1:]))


def thin(curve: Curve, begin: float, step: float) -> list[tuple[float, float]]:
    """Few points in MiB, for a plot, with times from `begin` on."""
    points: list[tuple[float, float]] = []
    for when, size in curve:
        if not points or when - begin >= points[-1][0] + step:
            points.append((round(when - begin, 2), round(size / MIB, 1)))
    return points
