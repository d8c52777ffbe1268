"""The figure of a sweep, and the numbers beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtp.errors import UserError
from dtp.experiments.jobs import Job
from dtp.experiments.over_seeds import statistic
from dtp.experiments.sweep.plan import Part, Sweep, shown
from dtp.experiments.sweep.results import Measured, collect, is_share, metric_name, write_results
from dtp.plots.style import (
    color,
    counted,
    finish,
    layer_color,
    legend_beside,
    new_figure,
    plot_spread,
    save_figure,
)
from dtp.system.locks import locked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches of one panel of curves or values, and of a row of final values.
PANEL, ROW = (4.0, 2.9), 0.24
# Of a footnote, at its size.
CHARACTERS_PER_INCH = 15
# A swept number that spans more than this has a logarithmic axis.
WIDE = 6


def draw_sweep(sweep: Sweep, folder: Path, jobs: Mapping[tuple[str, int], Job], command: str) -> Path | None:
    """Write ``NAME.png``, ``results.json`` and ``results.md`` of what has finished into the folder of a sweep.

    Args:
        folder: that of the sweep.
        jobs: its runs, by name of the setting and seed.
        command: what is written down as the command of the sweep.

    Returns:
        The figure; None where no run has finished, and nothing is written.

    Raises:
        UserError: a folder holds a run of another configuration, or no run has a metric that the figure is to show.
    """
    if not folder.is_dir():
        return None
    # Several processes may share a sweep, and the last to come here has seen all that have finished.
    with locked(folder / ".draw.lock"):
        measured = collect(sweep, jobs)
        if not any(m.runs for m in measured):
            return None
        write_results(sweep, measured, folder, command)
        png = folder / f"{sweep.name}.png"
        draw(sweep, measured, png)
    return png


def draw(sweep: Sweep, measured: Sequence[Measured], png: Path) -> None:
    """Draw the panels that the sweep's file asks for: means over seeds, with bands or bars of one deviation.

    Raises:
        UserError: no run has a value of any of their metrics.
    """
    panels = [panel for part in sweep.figure for panel in _panels(part, measured)]
    if not panels:
        names = ", ".join(metric for part in sweep.figure for metric in part.metric)
        raise UserError(f"{sweep.name}: figure, metric: expected columns of metrics.csv of its runs, found {names}.")
    columns = len(panels) if len(panels) < 4 else 2 if len(panels) == 4 else 3
    rows = -(-len(panels) // columns)
    finals = [len(settings) for part, _, _, settings in panels if part.kind == "final"]
    height = max([PANEL[1], *(1.0 + ROW * count for count in finals)])
    size = PANEL[0] * columns + 1.0, height * rows + 0.4
    figure, all_axes = new_figure(rows, columns, (size[0] / columns, size[1] / rows), pad=0.08)
    figure.suptitle(sweep.title, fontsize=12, x=0.01, ha="left")
    styles = _styles(panels)
    # Rows in the colours of the lines are a legend by themselves.
    rows_named = [list(_lines(part, settings)) for part, _, _, settings in panels if part.kind == "final"]
    for i, (axes, (part, metric, title, settings)) in enumerate(zip(all_axes, panels, strict=False)):
        labels = _DRAW[part.kind](axes, part, metric, settings, styles)
        if title:
            axes.set_title(title, loc="left", fontsize=10)
        finish(axes)
        following = panels[i + 1] if i + 1 < len(panels) else None
        ends_row = following is None or (i + 1) % columns == 0
        differs = following is None or ends_row or labels != _labels(following[0], following[3])
        if labels and labels not in rows_named and differs:
            legend_beside(axes, _legend_title(part, settings))
    _share_limits(list(zip(all_axes, panels, strict=False)))
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    note = footnote(measured)
    lines = textwrap.wrap(note, int(size[0] * CHARACTERS_PER_INCH))
    figure.supxlabel("\n".join(lines), fontsize=8, x=0.01, ha="left", color="0.35")
    save_figure(figure, png)


def _share_limits(drawn: Sequence[tuple[Axes, Panel]]) -> None:
    """One scale for all panels of a part that show the same metric, so that they can be compared."""
    groups: dict[tuple[int, str], list[tuple[Axes, Part]]] = {}
    for axes, (part, metric, _, _) in drawn:
        groups.setdefault((id(part), metric), []).append((axes, part))
    for group in groups.values():
        horizontal = group[0][1].kind == "final"
        ends = [axes.get_xlim() if horizontal else axes.get_ylim() for axes, _ in group]
        limits = min(low for low, _ in ends), max(high for _, high in ends)
        for axes, _ in group:
            (axes.set_xlim if horizontal else axes.set_ylim)(limits)


def footnote(measured: Sequence[Measured]) -> str:
    """How many runs there are of each setting, and which have no result and why."""
    counts = sorted({len(m.runs) for m in measured if m.runs})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    text = f"Mean and standard deviation over {seeds} seeds." if counts[-1] > 1 else "One seed."
    absent = [f"{m.point.name} seed {seed} ({why})" for m in measured for seed, why in m.missing.items()]
    if not absent:
        return text
    total = sum(len(m.runs) + len(m.missing) for m in measured)
    said = "; ".join(textwrap.shorten(entry, 110, placeholder=" ...") for entry in absent[:4])
    more = f"; and {len(absent) - 4} more, see results.md" if len(absent) > 4 else ""
    return f"{text} {len(absent)} of {total} runs have no result: {said}{more}."


# --- which panel shows what -------------------------------------------------------------------------------------------

Panel = tuple[Part, str, str, list[Measured]]


def _panels(part: Part, measured: Sequence[Measured]) -> list[Panel]:
    """Part, metric, title and settings of each panel."""
    groups: dict[str, list[Measured]] = {}
    for m in measured:
        groups.setdefault(_value(m, part.panels) if part.panels else "", []).append(m)
    option = "" if part.panels in ("", "variant") else f"{part.panels.replace('_', ' ')} "
    return [
        (part, metric, f"{option}{value}", settings)
        for value, settings in groups.items()
        for metric in part.metric
        if any(m.last(metric) for m in settings)
    ]


def _value(m: Measured, name: str) -> str:
    return m.point.variant if name == "variant" else shown(m.point.values[name])


def _swept(x: str) -> str:
    """The option of the grid that the horizontal axis ``x`` stands for."""
    return "widths" if x in ("depth", "width") else x


def _line_options(part: Part, settings: Sequence[Measured]) -> list[str]:
    """What tells the lines of a panel apart: ``variant`` and options of the grid."""
    names = [name for name in settings[0].point.values if name not in (part.panels, _swept(part.x))]
    variants = part.panels != "variant" and len({m.point.variant for m in settings}) > 1
    return ["variant", *names] if variants else names


def _label(part: Part, m: Measured, options: Sequence[str]) -> str:
    alone = len(options) == 1
    return ", ".join(
        _value(m, name) if alone or name == "variant" else f"{name.replace('_', ' ')} {_value(m, name)}"
        for name in options
    )


def _lines(part: Part, settings: Sequence[Measured]) -> dict[str, list[Measured]]:
    """The settings of each line of a panel, by its label."""
    options, lines = _line_options(part, settings), {}
    for m in settings:
        lines.setdefault(_label(part, m, options), []).append(m)
    return lines


def _labels(part: Part, settings: Sequence[Measured]) -> list[str]:
    return [] if part.kind == "final" else [label for label in _lines(part, settings) if label]


def _legend_title(part: Part, settings: Sequence[Measured]) -> str | None:
    options = _line_options(part, settings)
    return options[0].replace("_", " ") if len(options) == 1 and options[0] != "variant" else None


def _styles(panels: Sequence[Panel]) -> dict[str, Any]:
    """One colour for each label in the whole figure; in order where the labels are those of a growing number."""
    styles: dict[str, Any] = {}
    for part, _, _, settings in panels:
        if part.kind == "final":
            continue
        lines = _lines(part, settings)
        options = _line_options(part, settings)
        ordered = len(lines) > 2 and len(options) == 1 and _are_numbers(settings, options[0])
        for i, label in enumerate(lines):
            if label not in styles:
                named = sum(not isinstance(value, tuple) for value in styles.values())
                styles[label] = ("ordered", i + 1, len(lines)) if ordered else named
    return {
        label: layer_color(value[1], value[2]) if isinstance(value, tuple) else color(value)
        for label, value in styles.items()
    }


def _are_numbers(settings: Sequence[Measured], option: str) -> bool:
    values = [m.point.values.get(option) for m in settings]
    return all(
        type(item) in (int, float) for value in values for item in (value if isinstance(value, list) else [value])
    )


# --- drawing ----------------------------------------------------------------------------------------------------------


def _draw_curves(
    axes: Axes, part: Part, metric: str, settings: Sequence[Measured], styles: Mapping[str, Any]
) -> list[str]:
    factor = _factor(metric)
    for label, (m,) in _lines(part, settings).items():
        where, means, deviations = m.curve(metric, part.against)
        means, deviations = ([factor * value for value in values] for values in (means, deviations))
        # Also a line without values, whose place in the legend tells that it is missing.
        plot_spread(axes, where, means, deviations, styles[label], label or None)
    counted(axes, f"{part.against} of the forward weights")
    _metric_axis(axes.set_ylabel, axes.set_ylim, part, metric)
    return _labels(part, settings)


def _draw_values(
    axes: Axes, part: Part, metric: str, settings: Sequence[Measured], styles: Mapping[str, Any]
) -> list[str]:
    from matplotlib.ticker import FixedLocator, NullLocator

    factor, ticks = _factor(metric), set()
    for label, line in _lines(part, settings).items():
        found = {_number(m, part.x): found.scaled(factor) for m in line if (found := statistic(m.last(metric)))}
        points = sorted(found.items(), key=lambda point: point[0])
        ticks |= set(found)
        axes.errorbar(
            [x for x, _ in points],
            [value.mean for _, value in points],
            [value.spread for _, value in points],
            color=styles[label],
            label=label or None,
            marker="o",
            markersize=4,
            linewidth=1.5,
            capsize=3,
        )
    if min(ticks) > 0 and max(ticks) > WIDE * min(ticks):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    named = {"depth": "hidden layers", "width": "units of the hidden layers"}
    axes.set_xlabel(named.get(part.x, part.x.replace("_", " ")))
    _metric_axis(axes.set_ylabel, axes.set_ylim, part, metric)
    return _labels(part, settings)


def _draw_final(
    axes: Axes, part: Part, metric: str, settings: Sequence[Measured], styles: Mapping[str, Any]
) -> list[str]:
    from matplotlib.ticker import MaxNLocator

    factor, lines = _factor(metric), _lines(part, settings)
    for row, (label, (m,)) in enumerate(lines.items()):
        found, shade = statistic(factor * value for value in m.last(metric)), styles.get(label, color(0))
        if found:
            axes.errorbar(found.mean, row, xerr=found.spread, color=shade, marker="o", markersize=7, capsize=3)
            axes.plot(found.values, [row] * found.n, "|", color="0.3", markersize=7, linestyle="none")
        else:
            inside = axes.get_yaxis_transform()
            axes.text(0.02, row, "no result", color="0.45", fontsize=8, va="center", transform=inside)
    axes.set_yticks(range(len(lines)), [label or m.point.name for label, (m,) in lines.items()], fontsize=9)
    axes.set_ylabel(_legend_title(part, settings) or "")
    # The first setting on top.
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    _metric_axis(axes.set_xlabel, axes.set_xlim, part, metric)
    return []


_DRAW = {"curves": _draw_curves, "values": _draw_values, "final": _draw_final}


def _metric_axis(set_label: Callable[..., Any], set_limits: Callable[..., Any], part: Part, metric: str) -> None:
    set_label(metric_name(metric))
    if part.range:
        set_limits(*(_factor(metric) * end for end in part.range))


def _factor(metric: str) -> int:
    return 100 if is_share(metric) else 1


def _number(m: Measured, x: str) -> float:
    """Where a setting lies on the horizontal axis of swept numbers."""
    value = m.point.values[_swept(x)]
    if x == "depth":
        return float(len(value))
    return float(value[0] if isinstance(value, list) else value)
