"""The figure of a sweep, and the numbers beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtp.errors import UserError
from dtp.experiments.jobs import Job
from dtp.experiments.over_seeds import statistic
from dtp.experiments.sweep.plan import Part, Sweep, place_on_axis, swept_by, value_label
from dtp.experiments.sweep.results import Measured, collect, metric_name, write_results
from dtp.plots.style import color, counted, finish, layer_color, legend_beside, new_panels, plot_spread, save_figure
from dtp.run.reading import is_share
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
    height = max([PANEL[1], *(1.0 + ROW * len(panel.settings) for panel in panels if panel.part.kind == "final")])
    size = PANEL[0] * columns + 1.0, height * rows + 0.4
    figure, all_axes = new_panels(len(panels), columns, panel=(size[0] / columns, size[1] / rows), pad=0.08)
    figure.suptitle(sweep.title, fontsize=12, x=0.01, ha="left")
    styles = _styles(panels)
    # Rows in the colours of the lines are a legend by themselves.
    rows_named = [list(panel.lines) for panel in panels if panel.part.kind == "final"]
    for i, (axes, panel) in enumerate(zip(all_axes, panels, strict=True)):
        _DRAW[panel.part.kind](axes, panel, styles)
        if panel.title:
            axes.set_title(panel.title, loc="left", fontsize=10)
        finish(axes)
        ends_row = i + 1 == len(panels) or (i + 1) % columns == 0
        if panel.labels and panel.labels not in rows_named and (ends_row or panel.labels != panels[i + 1].labels):
            legend_beside(axes, panel.legend_title)
    _share_limits(list(zip(all_axes, panels, strict=True)))
    lines = textwrap.wrap(footnote(measured), int(size[0] * CHARACTERS_PER_INCH))
    # What runs failed of may have dollar signs, as of "$DATA_$SET", which are no formula.
    figure.supxlabel("\n".join(lines), fontsize=8, x=0.01, ha="left", color="0.35", parse_math=False)
    save_figure(figure, png)


def _share_limits(drawn: Sequence[tuple[Axes, Panel]]) -> None:
    """One scale for all panels of a part that show the same metric, so that they can be compared."""
    for _, first in drawn:
        group = [axes for axes, panel in drawn if panel.part is first.part and panel.metric == first.metric]
        which = "xlim" if first.part.kind == "final" else "ylim"
        lows, highs = zip(*(getattr(axes, f"get_{which}")() for axes in group), strict=True)
        for axes in group:
            axes.set(**{which: (min(lows), max(highs))})


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


@dataclass(frozen=True)
class Panel:
    """What a panel shows: the last values, or the course, of a metric in some settings."""

    part: Part
    metric: str
    title: str
    settings: list[Measured]

    @property
    def factor(self) -> int:
        """What values are multiplied with to be drawn: shares are drawn in per cent."""
        return 100 if is_share(self.metric) else 1

    @cached_property
    def options(self) -> list[str]:
        """What tells the lines apart: ``variant`` and options of the grid."""
        names = [
            name for name in self.settings[0].point.values if name not in (self.part.panels, swept_by(self.part.x))
        ]
        variants = self.part.panels != "variant" and len({m.point.variant for m in self.settings}) > 1
        return ["variant", *names] if variants else names

    @cached_property
    def lines(self) -> dict[str, list[Measured]]:
        """The settings of each line, by its label."""
        lines: dict[str, list[Measured]] = {}
        for m in self.settings:
            words = [
                _value(m, name)
                if len(self.options) == 1 or name == "variant"
                else f"{name.replace('_', ' ')} {_value(m, name)}"
                for name in self.options
            ]
            lines.setdefault(", ".join(words), []).append(m)
        return lines

    @property
    def labels(self) -> list[str]:
        """What a legend has to explain."""
        return [] if self.part.kind == "final" else [label for label in self.lines if label]

    @property
    def legend_title(self) -> str | None:
        """The option whose values label the lines, in words; None where they differ in more, or in the variant."""
        alone = len(self.options) == 1 and self.options != ["variant"]
        return self.options[0].replace("_", " ") if alone else None


def _panels(part: Part, measured: Sequence[Measured]) -> list[Panel]:
    groups: dict[str, list[Measured]] = {}
    for m in measured:
        groups.setdefault(_value(m, part.panels) if part.panels else "", []).append(m)
    option = "" if part.panels in ("", "variant") else f"{part.panels.replace('_', ' ')} "
    return [
        Panel(part, metric, f"{option}{value}", settings)
        for value, settings in groups.items()
        for metric in part.metric
        if any(m.last(metric) for m in settings)
    ]


def _value(m: Measured, name: str) -> str:
    return m.point.variant if name == "variant" else value_label(m.point.values[name])


def _styles(panels: Sequence[Panel]) -> dict[str, Any]:
    """One colour for each label in the whole figure; in order where the labels are those of a growing number."""
    styles: dict[str, Any] = {}
    named = 0
    for panel in panels:
        lines = () if panel.part.kind == "final" else panel.lines
        ordered = len(lines) > 2 and len(panel.options) == 1 and _are_numbers(panel.settings, panel.options[0])
        for i, label in enumerate(lines):
            if label not in styles:
                styles[label] = layer_color(i + 1, len(lines)) if ordered else color(named)
                named += not ordered
    return styles


def _are_numbers(settings: Sequence[Measured], option: str) -> bool:
    values = [m.point.values.get(option) for m in settings]
    return all(
        type(item) in (int, float) for value in values for item in (value if isinstance(value, list) else [value])
    )


# --- drawing ----------------------------------------------------------------------------------------------------------


def _draw_curves(axes: Axes, panel: Panel, styles: Mapping[str, Any]) -> None:
    against = panel.part.against
    for label, (m,) in panel.lines.items():
        where, *spread = m.curve(panel.metric, against)
        means, deviations = ([panel.factor * value for value in values] for values in spread)
        # Also a line without values, whose place in the legend tells that it is missing.
        plot_spread(axes, where, means, deviations, styles[label], label or None)
    counted(axes, f"{against} of the forward weights")
    _metric_axis(axes, "y", panel)


def _draw_values(axes: Axes, panel: Panel, styles: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks, x = set(), panel.part.x
    for label, line in panel.lines.items():
        found = {place_on_axis(x, m.point.values[swept_by(x)]): statistic(m.last(panel.metric)) for m in line}
        points = [(x, value.scaled(panel.factor)) for x, value in sorted(found.items()) if value]
        ticks |= {x for x, _ in points}
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
    axes.set_xlabel(named.get(panel.part.x, panel.part.x.replace("_", " ")))
    _metric_axis(axes, "y", panel)


def _draw_final(axes: Axes, panel: Panel, styles: Mapping[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    for row, (label, (m,)) in enumerate(panel.lines.items()):
        found = statistic(panel.factor * value for value in m.last(panel.metric))
        if found:
            shade = styles.get(label, color(0))
            axes.errorbar(found.mean, row, xerr=found.spread, color=shade, marker="o", markersize=7, capsize=3)
            axes.plot(found.values, [row] * found.n, "|", color="0.3", markersize=7, linestyle="none")
        else:
            inside = axes.get_yaxis_transform()
            axes.text(0.02, row, "no result", color="0.45", fontsize=8, va="center", transform=inside)
    names = [label or m.point.name for label, (m,) in panel.lines.items()]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylabel(panel.legend_title or "")
    # The first setting on top.
    axes.set_ylim(len(panel.settings) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    _metric_axis(axes, "x", panel)


_DRAW = {"curves": _draw_curves, "values": _draw_values, "final": _draw_final}


def _metric_axis(axes: Axes, which: str, panel: Panel) -> None:
    axes.set(**{f"{which}label": metric_name(panel.metric)})
    if panel.part.range:
        axes.set(**{f"{which}lim": [panel.factor * end for end in panel.part.range]})
