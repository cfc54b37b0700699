# SPDX-License-Identifier: GPL-2.0-or-later
"""Select samples, by metric, arm and parameters, for the report and its targets.

A sample is what the results have of one measurement: values, and series of points. Nothing
here measures, which metrics do (with curves.py), or draws, which plots.py does.
"""

import json
from collections.abc import Iterator
from typing import Any

from arms import ARMS, Arm
from spread import Spread, spread

Sample = dict[str, Any]
Params = dict[str, Any]


class Samples:
    """The samples of a file, or a part of them."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def __bool__(self) -> bool:
        return bool(self._samples)

    def of(self, metric: str = "", arm: str = "", **params: Any) -> "Samples":
        """The samples of a metric and an arm, with parameters as given."""
        return Samples(
            [
                s
                for s in self._samples
                if metric in ("", s["metric"])
                and arm in ("", s["arm"])
                and all(s["params"].get(k) == v for k, v in params.items())
            ]
        )

    def arms(self) -> list[Arm]:
        found = {sample["arm"] for sample in self._samples}
        return [arm for arm in ARMS if arm.name in found]

    def cases(self) -> list[Params]:
        """All parameters, in the order in which they were run."""
        known = {json.dumps(s["params"], sort_keys=True) for s in self._samples}
        cases = []
        for sample in self._samples:
            text = json.dumps(sample["params"], sort_keys=True)
            if text in known:
                known.remove(text)
                cases.append(sample["params"])
        return cases

    def values(self, key: str) -> list[float]:
        """All values of a key, without samples in which it did not happen."""
        found = (sample["values"].get(key) for sample in self._samples)
        return [value for value in found if value is not None]

    def spread(self, key: str) -> Spread | None:
        """The spread of a value; None if there is none, or if it did not always happen."""
        values = self.values(key)
        if not values or len(values) < len(self._samples):
            return None
        return spread(values)

    def median(self, key: str) -> float | None:
        found = self.spread(key)
        return found.median if found else None

    def ratios(self, key: str, per: str) -> list[float]:
        """One value per another one, sample by sample."""
        pairs = ((s["values"].get(key), s["values"].get(per)) for s in self._samples)
        return [a / b for a, b in pairs if a is not None and b]
