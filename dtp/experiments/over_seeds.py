"""Means and deviations of runs that differ in their seeds, for reports, sweeps and studies. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas


@dataclass(frozen=True)
class Statistic:
    """Mean of numbers, and their standard deviation if there are two or more."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        """Of one number or more."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, tuple(values))

    @property
    def n(self) -> int:
        """How many numbers there are."""
        return len(self.values)

    @property
    def spread(self) -> float:
        """The deviation to draw: 0 of a single number."""
        return self.deviation or 0.0

    def scaled(self, factor: float) -> Statistic:
        """Of each number times ``factor``, which is not negative."""
        deviation = None if self.deviation is None else factor * self.deviation
        return Statistic(factor * self.mean, deviation, tuple(factor * value for value in self.values))

    def text(self, scale: float, digits: int) -> str:
        """Mean and deviation in words, times ``scale``: 97.20 ± 0.20."""
        deviation = "" if self.deviation is None else f" ± {scale * self.deviation:.{digits}f}"
        return f"{scale * self.mean:.{digits}f}{deviation}"


def statistic(values: Iterable[float | None]) -> Statistic | None:
    """Of the finite numbers among ``values``; None if there are none."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    return Statistic.of(found) if found else None


def mean_curve(curves: Sequence[Mapping[float, float]]) -> pandas.DataFrame:
    """Columns mean and deviation (0 of a single curve) of ``curves``, by the places where all of them have a value."""
    if not curves:
        return pandas.DataFrame(columns=["mean", "deviation"], dtype=float)
    table = pandas.concat([pandas.Series(curve, dtype=float) for curve in curves], axis=1, join="inner")
    return pandas.DataFrame({"mean": table.mean(axis=1), "deviation": table.std(axis=1).fillna(0.0)})


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order in which they come; of any kind, lists among them."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
