"""Names beside lines and points, where they cover nothing and are joined to what they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the letters, in points.
SMALL = 8
# Where a name is tried around a point: distances in heights of a letter, and directions, the best first.
_DISTANCES = (0.9, 1.6, 2.4, 3.2, 4.2, 5.4, 7.0, 9.0)
_DIRECTIONS = ((1, 0), (-1, 0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8), (0, 1), (0, -1))


@dataclass(frozen=True)
class Named:
    """A point with a name, in units of the data.

    Attributes:
        low, high: ends of its error bar.
    """

    x: float
    y: float
    label: str
    color: Any
    low: float = 0.0
    high: float = 0.0


def label_ends(axes: Axes, ends: Sequence[Named]) -> None:
    """Names to the right of a panel, each at the height of its line's end where there is room, and joined to it."""
    to_fraction = axes.transData + axes.transAxes.inverted()
    at = [(to_fraction.transform((end.x, end.y)), end) for end in ends]
    at.sort(key=lambda found: found[0][1])
    figure: Any = axes.get_figure()
    grid: Any = axes.get_gridspec()
    height = figure.get_size_inches()[1] / max(grid.nrows, 1)
    places = apart([min(max(y, 0.0), 1.0) for (_, y), _ in at], (1.25 * SMALL / 72) / (0.72 * height))
    for ((x, y), end), place in zip(at, places, strict=True):
        axes.annotate(
            end.label,
            xy=(x, y),
            xytext=(1.05, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=SMALL,
            color=end.color,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": end.color, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 1},
        )


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved to at least ``gap`` between neighbours, as little as it takes (least squares)."""
    from sklearn.isotonic import isotonic_regression

    steps = gap * np.arange(len(heights))
    return (isotonic_regression(np.asarray(heights) - steps) + steps).tolist() if len(heights) else []


def label_points(axes: Axes, points: Sequence[Named], named: Sequence[bool]) -> None:
    """Names beside points where they cover neither points nor other names, joined to them where they are far.

    The layout of the figure must be known: its canvas drawn.

    Args:
        named: of each point, whether its name is to be shown.
    """
    figure: Any = axes.get_figure()
    renderer = figure.canvas.get_renderer()
    unit = SMALL * figure.dpi / 72
    frame = np.array([axes.get_window_extent(renderer).extents])
    at = axes.transData.transform([(p.x, y) for p in points for y in (p.y, p.low, p.high)]).reshape(-1, 3, 2)
    places, low, high = at[:, 0], at.min(axis=1), at.max(axis=1)
    bars = np.hstack([low - (0.2 * unit, 0), high + (0.2 * unit, 0)])
    taken = np.vstack([np.hstack([places - 0.5 * unit, places + 0.5 * unit]), bars])

    def cost(box: np.ndarray) -> float:
        size = box[2:] - box[:2]
        covered = _common(box, taken).clip(0).prod(axis=1).sum()
        return round(covered + 3 * ((size - _common(box, frame)[0]) * size[::-1]).sum(), 6)

    crowd = (abs(places[:, None] - places) < (8 * unit, 4 * unit)).all(axis=2).sum(axis=1)
    # From the crowded to the lonely.
    for i in np.argsort(crowd, kind="stable")[::-1]:
        if not named[i]:
            continue
        point = points[i]
        text = axes.text(0, 0, point.label, fontsize=SMALL)
        size = np.array(text.get_window_extent(renderer).size)
        text.remove()
        best = np.inf, 0.0, np.zeros(4)
        for distance in _DISTANCES:
            if best[0] <= 0:
                break
            for direction in _DIRECTIONS:
                low = places[i] + distance * unit * np.array(direction) - size * ((1 - np.sign(direction[0])) / 2, 0.5)
                box = np.concatenate([low, low + size])
                best = min(best, (cost(box), distance, box), key=lambda found: found[0])
        _, distance, box = best
        taken = np.vstack([taken, box])
        arrow = {"arrowstyle": "-", "color": point.color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            point.label,
            xy=tuple(places[i]),
            xytext=tuple((box[:2] + box[2:]) / 2),
            xycoords="figure pixels",
            textcoords="figure pixels",
            fontsize=SMALL,
            color=point.color,
            ha="center",
            va="center",
            arrowprops=arrow if distance > 1 else None,
        )


def _common(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Width and height of what a box (left, low, right, high) shares with each of others; below 0 where apart."""
    return np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
