"""Figures of a report: learning curves, accuracy against cost, angles to backprop."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas

from dtp.algorithms.options import FAMILIES
from dtp.experiments.report.groups import OTHER, Group, Study
from dtp.plots.style import color, counted, finish, layer_color, new_figure, plot_spread, save_figure

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
SMALL = 8


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn, and what stands under it."""

    kind: str
    caption: str
    draw: Callable[[Path], None]


def drawings(study: Study) -> list[Drawing]:
    """The figures that there is data for. Nothing is drawn before they are asked to."""
    found = []
    groups = [group for group in study.groups if len(group.curve)]
    if groups:
        what = groups[0].measure
        caption = (
            f"Validation: {what.title} against epochs that train the forward weights; means over seeds, in a band of "
            "one standard deviation."
        )
        caption += _named("Unfinished", [group for group in groups if not group.finished])
        found.append(Drawing("curves", caption, lambda path: _draw_curves(groups, path, by_time=False)))
    timed = [group for group in groups if "epoch" in group.costs]
    if any(group.rule != "bp" for group in timed):
        caption = "The same against the time of the training batches, in epochs of backprop."
        caption += _named("Left out, without a time to compare", [group for group in groups if group not in timed])
        found.append(Drawing("curves-time", caption, lambda path: _draw_curves(timed, path, by_time=True)))
    priced = [group for group in study.groups if group.test is not None and "epoch" in group.costs]
    if len({group.costs["epoch"].mean for group in priced}) > 1:
        caption = (
            f"Test: {priced[0].measure.title}, with the standard deviation over seeds, against the time of an epoch "
            "that trains the forward weights, with the feedback epochs that belong to it, in epochs of backprop."
        )
        named = _best(priced, MOST_POINTS)
        if len(named) < len(priced):
            caption += f" The best {len(named)} of {len(priced)} are named."
        found.append(Drawing("cost", caption, lambda path: _draw_cost(priced, named, path)))
    angles = [group for group in study.groups if group.rule != "bp" and group.angles("update_angle")]
    if angles:
        shown = _best(angles, MOST_ROWS)
        caption = (
            "Angles at the end of training, by layer: of a layer's update to backprop's, and of feedback weights to "
            "the transposed forward weights; means over seeds, lines of one standard deviation to either side."
        )
        if len(shown) < len(angles):
            caption += f" The best {len(shown)} of {len(angles)} settings."
        found.append(Drawing("angles", caption, lambda path: _draw_angles(shown, path)))
    return found


def _named(what: str, groups: Sequence[Group]) -> str:
    return f" {what}: {', '.join(f'`{group.label}`' for group in groups)}." if groups else ""


def _best(groups: Sequence[Group], most: int) -> list[Group]:
    """The ``most`` best by test, in the order that they had."""
    best = sorted(groups, key=_badness)[:most]
    return [group for group in groups if group in best]


def _badness(group: Group) -> float:
    if group.test is None:
        return float("inf")
    return -group.test.mean if group.measure.higher else group.test.mean


# --- learning curves --------------------------------------------------------------------------------------------------


def _draw_curves(groups: Sequence[Group], path: Path, by_time: bool) -> None:
    """One panel for each family of rules, with backprop in all of them."""
    references = [group for group in groups if group.rule == "bp"]
    alone = [family for family in (*FAMILIES, OTHER) if any(g.family == family and g.rule != "bp" for g in groups)]
    panels = [(family, [g for g in groups if g.family == family and g.rule != "bp"]) for family in alone]
    if not panels or len(references) > 1:
        # Several baselines have a panel of their own; elsewhere they stand in the background.
        panels.insert(0, ("Backprop", references))
    columns = min(len(panels), 3)
    figure, all_axes = new_figure(-(-len(panels) // columns), columns, panel=(4.4, 2.9))
    everything = pandas.concat([group.curve for group in groups])
    times = [x for group in groups for x in _points(group, by_time)[0]]
    for axes, (title, members) in zip(all_axes, panels, strict=False):
        backs = references if members is not references else []
        _quality_axis(axes, groups[0], everything, "validation")
        ends = []
        for group in backs:
            x, y, deviation = _points(group, by_time)
            plot_spread(axes, x, y, deviation, "0.45", None, linestyle="--", marker=None)
            if len(backs) == 1:
                ends.append((x[-1], y[-1], group.label, "0.45"))
        best = _best(members, NAMED)
        for group in members:
            x, y, deviation = _points(group, by_time)
            if group in best:
                shade = color(best.index(group))
                plot_spread(axes, x, y, deviation, shade, None)
                ends.append((x[-1], y[-1], group.label, shade))
            else:
                axes.plot(x, y, color=GREY, alpha=0.5, linewidth=0.7, zorder=1)
        if len(best) < len(members):
            title += f" (best {len(best)} of {len(members)} named)"
        axes.set_title(title, loc="left", fontsize=10)
        if by_time:
            axes.set_xlim(0.8 * min(times), 1.2 * max(times))
            _times_axis(axes, "time, epochs of backprop")
        else:
            counted(axes, "epochs of the forward weights")
        finish(axes)
        _label_ends(axes, ends)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    save_figure(figure, path)


def _points(group: Group, by_time: bool) -> tuple[list[float], list[float], list[float]]:
    """Where the curve of ``group`` runs, and its deviations."""
    factor = group.costs["epoch"].mean if by_time else 1
    curve = group.curve
    return [factor * number for number in curve.index], _flipped(group, curve["mean"]), curve["deviation"].tolist()


def _flipped(group: Group, values: Any) -> list[float]:
    """Errors in place of a series of accuracies: the axis is logarithmic in them, and labelled with accuracies."""
    return ((100 - values).clip(lower=LEAST_ERROR) if group.measure.unit == "%" else values).tolist()


def _quality_axis(axes: Axes, group: Group, values: pandas.DataFrame, split: str) -> None:
    """A vertical axis for the measure of ``group`` on validation or test; good is up.

    It spreads what is nearly perfect.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    measure = group.measure
    means = np.asarray(_flipped(group, values["mean"]))
    lowest = np.maximum(means - values["deviation"], 0.7 * means).min()
    highest = (means + values["deviation"]).max()
    axes.set_ylabel(", ".join(filter(None, (f"{split} {measure.title}", measure.unit))))
    if lowest <= 0:
        return
    axes.set_yscale("log")
    if measure.unit == "%":
        axes.set_ylim(min(1.1 * highest, 100), max(lowest / 1.15, 0.8 * LEAST_ERROR))
        ticks = [*ERRORS, *(MORE_ERRORS if highest / lowest < NARROW else ())]
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 - error:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(highest * 1.15, lowest / 1.15)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        if highest / lowest < 10:
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        else:
            axes.yaxis.set_minor_formatter(NullFormatter())


def _times_axis(axes: Axes, name: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlabel(name)
    low, high = axes.get_xlim()
    subs = (1.0, 2.0, 5.0) if high / low > 12 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, Any]]) -> None:
    """Names to the right of a panel, each at the height of its line's end where there is room, and joined to it."""
    to_fraction = axes.transData + axes.transAxes.inverted()
    at = [tuple(to_fraction.transform((x, y))) for x, y, *_ in ends]
    figure: Any = axes.get_figure()
    grid: Any = axes.get_gridspec()
    height = figure.get_size_inches()[1] / max(grid.nrows, 1)
    gap = (1.25 * SMALL / 72) / (0.72 * height)
    order = sorted(range(len(ends)), key=lambda i: at[i][1])
    places = spread([min(max(at[i][1], 0.0), 1.0) for i in order], gap)
    for i, place in zip(order, places, strict=True):
        _, _, label, line_color = ends[i]
        axes.annotate(
            label,
            xy=at[i],
            xytext=(1.05, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=SMALL,
            color=line_color,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line_color, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 1},
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved apart to at least ``gap`` between neighbours, as little as it takes."""
    clusters: list[list[float]] = []
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1 and _low(clusters[-1], gap) < _high(clusters[-2], gap) + gap - 1e-9:
            last = clusters.pop()
            clusters[-1].extend(last)
    return [_low(cluster, gap) + i * gap for cluster in clusters for i in range(len(cluster))]


def _low(cluster: Sequence[float], gap: float) -> float:
    return statistics.fmean(cluster) - gap * (len(cluster) - 1) / 2


def _high(cluster: Sequence[float], gap: float) -> float:
    return statistics.fmean(cluster) + gap * (len(cluster) - 1) / 2


# --- accuracy against cost --------------------------------------------------------------------------------------------


def _draw_cost(groups: Sequence[Group], named: Sequence[Group], path: Path) -> None:
    figure, (axes,) = new_figure(1, 1, panel=(9.0, 5.4))
    scale = groups[0].measure.scale
    table = pandas.DataFrame(
        [
            (group, group.family, group.costs["epoch"].mean, scale * test.mean, scale * test.spread)
            for group in groups
            if (test := group.test)
        ],
        columns=["group", "family", "time", "mean", "deviation"],
    )
    _quality_axis(axes, groups[0], table, "test")
    table["error"] = _flipped(groups[0], table["mean"])
    table["below"] = np.minimum(table["deviation"], 0.9 * table["error"])
    points = []
    for i, family in enumerate(family for family in (*FAMILIES, OTHER) if family in set(table["family"])):
        members = table[table["family"] == family]
        axes.errorbar(
            members["time"],
            members["error"],
            yerr=members[["below", "deviation"]].to_numpy().T,
            fmt="o",
            markersize=5,
            color=color(i),
            elinewidth=1,
            label=family,
        )
        for group, _, time, _, above, error, below in members.itertuples(index=False):
            points.append((time, error, (error - below, error + above), group, color(i)))
    times = [x for x, *_ in points]
    beyond = max(times) / min(times)
    axes.set_xlim(min(times) / beyond**0.08, max(times) * beyond**0.08)
    _times_axis(axes, "time of an epoch of the forward weights, epochs of backprop")
    finish(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=SMALL)
    # Where the points lie on the page is known once the layout is.
    figure.canvas.draw()
    _label_points(axes, points, named)
    figure.set_layout_engine("none")
    save_figure(figure, path)


def _label_points(
    axes: Axes, points: Sequence[tuple[float, float, tuple[float, float], Group, Any]], named: Sequence[Group]
) -> None:
    """Names beside points where they cover neither points nor other names, joined to them where they are far."""
    figure: Any = axes.get_figure()
    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    unit = SMALL * figure.dpi / 72
    places = [axes.transData.transform((x, y)) for x, y, *_ in points]
    taken = [(x - 0.5 * unit, y - 0.5 * unit, x + 0.5 * unit, y + 0.5 * unit) for x, y in places]
    for x, _, ends, *_ in points:
        (middle, one), (_, other) = (axes.transData.transform((x, end)) for end in ends)
        taken.append((middle - 0.2 * unit, min(one, other), middle + 0.2 * unit, max(one, other)))
    # From the crowded to the lonely.
    order = sorted(range(len(points)), key=lambda i: sum(_near(places[i], other, 4 * unit) for other in places))
    for i in reversed(order):
        *_, group, point_color = points[i]
        if group not in named:
            continue
        text = axes.text(0, 0, group.label, fontsize=SMALL)
        width, height = text.get_window_extent(renderer).width, text.get_window_extent(renderer).height
        text.remove()
        x, y = places[i]
        best = None
        for radius in (0.9, 1.6, 2.4, 3.2, 4.2, 5.4, 7.0, 9.0):
            for dx, dy in ((1, 0), (-1, 0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8), (0, 1), (0, -1)):
                left = x + dx * radius * unit - (width if dx < 0 else width / 2 if dx == 0 else 0)
                low = y + dy * radius * unit - height / 2
                box = (left, low, left + width, low + height)
                cost = sum(_overlap(box, other) for other in taken) + 3 * _outside(box, frame)
                if best is None or cost < best[0] - 1e-6:
                    best = (cost, radius, box)
            if best[0] <= 1e-6:
                break
        _, radius, box = best
        taken.append(box)
        middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        arrow = {"arrowstyle": "-", "color": point_color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            group.label,
            xy=(x, y),
            xytext=middle,
            xycoords="figure pixels",
            textcoords="figure pixels",
            fontsize=SMALL,
            color=point_color,
            ha="center",
            va="center",
            arrowprops=arrow if radius > 1 else None,
        )


def _near(a: np.ndarray, b: np.ndarray, distance: float) -> bool:
    return abs(a[0] - b[0]) < 2 * distance and abs(a[1] - b[1]) < distance


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0.0) * max(high, 0.0)


def _outside(box: Sequence[float], frame: Any) -> float:
    beyond = max(frame.x0 - box[0], 0) + max(box[2] - frame.x1, 0)
    return beyond * (box[3] - box[1]) + (max(frame.y0 - box[1], 0) + max(box[3] - frame.y1, 0)) * (box[2] - box[0])


# --- angles -----------------------------------------------------------------------------------------------------------


def _draw_angles(groups: Sequence[Group], path: Path) -> None:
    """A row for each group, a point for each layer, in one panel for updates and one for feedback weights."""
    kinds = [("update_angle", "Update to backprop's"), ("feedback_angle", "Feedback to transposed forward weights")]
    found = [(title, [group.angles(kind) for group in groups]) for kind, title in kinds]
    found = [(title, rows) for title, rows in found if any(rows)]
    depth = max(layer for _, rows in found for angles in rows for layer in angles)
    figure, all_axes = new_figure(1, len(found), panel=(4.8, max(1.1 + 0.22 * len(groups), 2.0)))
    for axes, (title, rows) in zip(all_axes, found, strict=True):
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
        if axes is all_axes[0]:
            axes.set_yticks(range(len(groups)), [group.label for group in groups], fontsize=SMALL)
        else:
            axes.set_yticks(range(len(groups)), [""] * len(groups))
        _degrees_across(axes, highest)
        for row in range(1, len(groups)):
            if groups[row].family != groups[row - 1].family:
                axes.axhline(row - 0.5, color="0.75", linewidth=0.8)
        finish(axes)
    layers = range(1, depth + 1)
    handles = [_marker(layer_color(layer, depth)) for layer in layers]
    all_axes[-1].legend(
        handles,
        [str(layer) for layer in layers],
        title="layer",
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=SMALL,
    )
    save_figure(figure, path)


def _marker(point_color: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="o", linestyle="", color=point_color, markersize=4)


def _degrees_across(axes: Axes, highest: float) -> None:
    """As :func:`dtp.plots.style.degrees`, for the horizontal axis."""
    from matplotlib.ticker import MultipleLocator

    top = 105 if highest <= 100 else 185
    axes.set_xlabel("degrees (90: unrelated)")
    axes.set_xlim(-0.03 * top, top)
    axes.xaxis.set_major_locator(MultipleLocator(15 if top == 105 else 30))
    axes.axvline(90, color="0.75", linewidth=0.8, linestyle=":")
