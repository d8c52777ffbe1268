"""Figures of a report: learning curves, accuracy against cost, angles to backprop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas

from dtp.experiments.over_seeds import distinct
from dtp.experiments.report.groups import Group, Measure, Section
from dtp.experiments.report.words import rendered
from dtp.plots.labels import SMALL, Named, label_ends, label_points
from dtp.plots.style import (
    color,
    counted,
    degrees,
    finish,
    layer_color,
    legend_beside,
    new_figure,
    new_panels,
    plot_spread,
    save_figure,
)
from dtp.run.reading import ANGLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Lines that have a name in one panel; further ones are drawn grey.
NAMED = 8
# Rows of the figure of angles, and names of points in that of costs.
MOST_ROWS = 60
MOST_POINTS = 40
GREY = "0.6"
# Errors at which the axis of accuracies has ticks.
ERRORS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 90)
# Where a factor of less than this is shown, further ones.
NARROW = 15
MORE_ERRORS = (0.3, 0.7, 1.5, 3, 4, 7, 15, 30, 40, 70)
# The smallest error that is drawn; the axis is logarithmic.
LEAST_ERROR = 0.05


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn, and what stands under it."""

    kind: str
    caption: str
    draw: Callable[[Path], None]


def drawings(section: Section) -> list[Drawing]:
    """The figures that there is data for. Nothing is drawn before they are asked to."""
    # Axes are of one measure.
    alike, others = ([g for g in section.groups if (g.measure == section.measure) == own] for own in (True, False))
    groups = [group for group in alike if len(group.curve)]
    timed = [group for group in groups if "epoch" in group.costs]
    priced = [group for group in alike if group.test and "epoch" in group.costs]
    angles = [group for group in section.groups if group.rule != "bp" and group.angles(ANGLES[0])]
    by_time = any(group.rule != "bp" for group in timed)
    by_cost = len({group.costs["epoch"].mean for group in priced}) > 1
    found: dict[str, tuple[list[Group], int, Callable[[Path], None]]] = {
        "curves": (groups, NAMED, lambda path: _draw_curves(groups, path, by_time=False)),
        "curves-time": (groups if by_time else [], NAMED, lambda path: _draw_curves(timed, path, by_time=True)),
        "cost": (priced if by_cost else [], MOST_POINTS, lambda path: _draw_cost(priced, path)),
        "angles": (angles, MOST_ROWS, lambda path: _draw_angles(_best(angles, MOST_ROWS), path)),
    }
    return [
        Drawing(kind, rendered("captions.md.jinja", kind=kind, groups=shown, others=others, most=most), draw)
        for kind, (shown, most, draw) in found.items()
        if shown
    ]


def _best(groups: Sequence[Group], most: int) -> list[Group]:
    """The ``most`` best by test, in the order that they had."""
    sign = {group: -1 if group.measure.higher else 1 for group in groups}
    best = sorted(groups, key=lambda group: sign[group] * group.test.mean if group.test else np.inf)[:most]
    return [group for group in groups if group in best]


# --- learning curves --------------------------------------------------------------------------------------------------


def _draw_curves(groups: Sequence[Group], path: Path, by_time: bool) -> None:
    """One panel for each family of rules, with backprop in all of them."""
    references, others = ([g for g in groups if (g.rule == "bp") == bp] for bp in (True, False))
    panels = {family: [g for g in others if g.family == family] for family in distinct(g.family for g in others)}
    if not panels or len(references) > 1:
        # Several baselines have a panel of their own; elsewhere they stand in the background.
        panels = {"Backprop": references} | panels
    figure, all_axes = new_panels(len(panels), min(len(panels), 3), panel=(4.4, 2.9))
    curves = {group: _points(group, by_time) for group in groups}
    times = [x for x, *_ in curves.values()]
    for axes, (title, members) in zip(all_axes, panels.items(), strict=True):
        _quality_axis(axes, groups[0].measure, pandas.concat([group.curve for group in groups]), "validation")
        ends = []
        best = _best(members, NAMED)
        for group in [*(references if members is not references else ()), *members]:
            x, y, deviation = curves[group]
            if group not in members:
                shade, style = "0.45", {"linestyle": "--", "marker": None}
            elif group in best:
                shade, style = color(best.index(group)), {}
            else:
                axes.plot(x, y, color=GREY, alpha=0.5, linewidth=0.7, zorder=1)
                continue
            plot_spread(axes, x, y, deviation, shade, None, **style)
            if group in members or len(references) == 1:
                ends.append(Named(x[-1], y[-1], group.label, shade))
        if len(best) < len(members):
            title += f" (best {len(best)} of {len(members)} named)"
        axes.set_title(title, loc="left", fontsize=10)
        if by_time:
            axes.set_xlim(0.8 * min(map(min, times)), 1.2 * max(map(max, times)))
            _times_axis(axes, "time, epochs of backprop")
        else:
            counted(axes, "epochs of the forward weights")
        finish(axes)
        label_ends(axes, ends)
    save_figure(figure, path)


def _points(group: Group, by_time: bool) -> tuple[list[float], list[float], list[float]]:
    """Where the curve of ``group`` runs, and its deviations."""
    factor = group.costs["epoch"].mean if by_time else 1
    means, deviations = group.curve["mean"], group.curve["deviation"]
    return [factor * number for number in means.index], _flipped(group.measure, means).tolist(), deviations.tolist()


def _flipped(measure: Measure, values: Any) -> Any:
    """Errors in place of a series of accuracies: the axis is logarithmic in them, and labelled with accuracies."""
    return (100 - values).clip(lower=LEAST_ERROR) if measure.unit == "%" else values


def _quality_axis(axes: Axes, measure: Measure, values: pandas.DataFrame, split: str) -> None:
    """A vertical axis for ``measure`` on validation or test, with good up; it spreads what is nearly perfect."""
    from matplotlib.ticker import FixedLocator, NullLocator

    means = _flipped(measure, values["mean"])
    lowest = np.maximum(means - values["deviation"], 0.7 * means).min()
    highest = (means + values["deviation"]).max()
    axes.set_ylabel(measure.named(split))
    if lowest <= 0:
        return
    axes.set_yscale("log")
    if measure.unit == "%":
        axes.set_ylim(min(1.1 * highest, 100), max(lowest / 1.15, 0.8 * LEAST_ERROR))
        axes.yaxis.set_major_locator(FixedLocator([*ERRORS, *(MORE_ERRORS if highest / lowest < NARROW else ())]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda error, _: f"{100 - error:g}")
    else:
        axes.set_ylim(highest * 1.15, lowest / 1.15)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.3g}" if highest / lowest < 10 else "")


def _times_axis(axes: Axes, name: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlabel(name)
    low, high = axes.get_xlim()
    subs = (1.0, 2.0, 5.0) if high / low > 12 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=20))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


# --- accuracy against cost --------------------------------------------------------------------------------------------


def _draw_cost(groups: Sequence[Group], path: Path) -> None:
    figure, (axes,) = new_figure(1, 1, panel=(9.0, 5.4))
    measure, named = groups[0].measure, _best(groups, MOST_POINTS)
    tests = [test.scaled(measure.scale) for group in groups if (test := group.test)]
    table: Any = pandas.DataFrame({"mean": [test.mean for test in tests], "deviation": [test.spread for test in tests]})
    _quality_axis(axes, measure, table, "test")
    table = table.assign(
        label=[group.label for group in groups],
        family=[group.family for group in groups],
        time=[group.costs["epoch"].mean for group in groups],
        error=_flipped(measure, table["mean"]),
    )
    table["below"] = np.minimum(table["deviation"], 0.9 * table["error"])
    colors = {family: color(i) for i, family in enumerate(table["family"].unique())}
    for family, members in table.groupby("family", sort=False):
        bars = members[["below", "deviation"]].to_numpy().T
        style = {"markersize": 5, "color": colors[family], "elinewidth": 1, "label": family}
        axes.errorbar(members["time"], members["error"], yerr=bars, fmt="o", **style)
    points = [
        Named(p.time, p.error, p.label, colors[p.family], p.error - p.below, p.error + p.deviation)
        for p in table.itertuples()
    ]
    low, high = table["time"].min(), table["time"].max()
    beyond = (high / low) ** 0.08
    axes.set_xlim(low / beyond, high * beyond)
    _times_axis(axes, "time of an epoch of the forward weights, epochs of backprop")
    finish(axes)
    legend_beside(axes, fontsize=SMALL)
    # Where the points lie on the page is known once the layout is.
    figure.canvas.draw()
    label_points(axes, points, [group in named for group in groups])
    figure.set_layout_engine("none")
    save_figure(figure, path)


# --- angles -----------------------------------------------------------------------------------------------------------


def _draw_angles(groups: Sequence[Group], path: Path) -> None:
    """A row for each group, a point for each layer, in one panel for updates and one for feedback weights."""
    titles = dict(zip(ANGLES, ("Update to backprop's", "Feedback to transposed forward weights"), strict=True))
    found = {title: [group.angles(kind) for group in groups] for kind, title in titles.items()}
    found = {title: rows for title, rows in found.items() if any(rows)}
    depth = max(layer for rows in found.values() for angles in rows for layer in angles)
    figure, all_axes = new_figure(1, len(found), panel=(4.8, max(1.1 + 0.22 * len(groups), 2.0)))
    for axes, (title, rows) in zip(all_axes, found.items(), strict=True):
        highest = 0.0
        for row, angles in enumerate(rows):
            for layer, angle in angles.items():
                # One beside the other, so that equal angles are seen.
                y = row + 0.5 * ((layer - 1) / max(depth - 1, 1) - 0.5)
                shade, ends = layer_color(layer, depth), [angle.mean - angle.spread, angle.mean + angle.spread]
                axes.plot(ends, [y, y], color=shade, linewidth=1)
                axes.plot([angle.mean], [y], "o", color=shade, markersize=4)
                highest = max(highest, ends[1])
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        labels = [group.label if axes is all_axes[0] else "" for group in groups]
        axes.set_yticks(range(len(groups)), labels, fontsize=SMALL)
        degrees(axes, highest, across=True)
        for row in range(1, len(groups)):
            if groups[row].family != groups[row - 1].family:
                axes.axhline(row - 0.5, color="0.75", linewidth=0.8)
        finish(axes)
    for layer in range(1, depth + 1):
        all_axes[-1].plot([], [], "o", color=layer_color(layer, depth), markersize=4, label=str(layer))
    legend_beside(all_axes[-1], "layer", fontsize=SMALL)
    save_figure(figure, path)
