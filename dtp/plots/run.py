"""The figure of one run, drawn from its metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dtp.plots.style import (
    counted,
    degrees,
    finish,
    layer_color,
    legend_beside,
    new_panels,
    plot_line,
    save_figure,
)
from dtp.run.reading import Series, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_metrics(metrics: Mapping[str, Series], figure: Path) -> bool:
    """Draw learning curves and alignment angles of a run against the batches.

    Panels for accuracy (or what the task has for it), loss, angle of updates to backprop's and angle of feedback to
    transposed forward weights; those without data are left out. Touches no global state of matplotlib and needs no
    display.

    Args:
        metrics: values at batches, by the names that the columns of ``metrics.csv`` have.
        figure: the PNG to write, replaced in one step.

    Returns:
        Whether there was anything to draw; if not, ``figure`` is left as it is.
    """
    panels = _panels(metrics)
    if not panels:
        return False
    drawing, all_axes = new_panels(len(panels), len(panels) if len(panels) < 4 else 2)
    for axes, draw in zip(all_axes, panels, strict=True):
        draw(axes)
        counted(axes, "batches")
        finish(axes)
    save_figure(drawing, figure)
    return True


# --- panels -----------------------------------------------------------------------------------------------------------


def _panels(metrics: Mapping[str, Series]) -> list[Callable[[Axes], None]]:
    """What draws each panel that has data."""
    panels: list[Callable[[Axes], None]] = []
    for name, title, unit, scale in (
        ("accuracy", "Accuracy", "%", 100.0),
        ("mse", "Reconstruction error", "mean square of a pixel", 1.0),
        ("purity", "Purity of clusters", "%", 100.0),
        # Metrics do not say which loss it is.
        ("loss", "Loss", "mean over images", 1.0),
    ):
        # The means of whole epochs; those of a few batches are fainter behind them, or stand in for them.
        windows = metrics.get(f"train/{name}", {})
        curves = {
            "training": metrics.get(f"train/{name}_epoch") or windows,
            "validation": metrics.get(f"val/{name}", {}),
        }
        curves = {label: _scaled(series, scale) for label, series in curves.items() if series}
        if curves:
            # So that a long run is not a solid band.
            faint = thinned(_scaled(windows, scale), 300)
            panels.append(lambda axes, a=(title, unit, curves, faint): _draw_curves(axes, *a))
    angles = [
        ("Angle of updates to backprop", _by_layer(metrics, "update_angle")),
        ("Angle of feedback to transposed weights", _by_layer(metrics, "feedback_angle")),
    ]
    probes = {n: _scaled(series, 100) for n, series in _by_layer(metrics, "probe_accuracy").items()}
    # A layer has one colour in the whole figure.
    depth = max((n for layers in (*(layers for _, layers in angles), probes) for n in layers), default=1)
    for title, layers in angles:
        if layers:
            panels.append(lambda axes, a=(title, layers, depth): _draw_angles(axes, *a))
    if probes:
        panels.append(lambda axes: _draw_layers(axes, "Accuracy of linear probes (0: the input)", probes, depth, "%"))
    return panels


def _scaled(series: Series, factor: float) -> Series:
    return {step: value * factor for step, value in series.items()}


def _by_layer(metrics: Mapping[str, Series], kind: str) -> dict[int, Series]:
    found = ((re.fullmatch(rf"{kind}/layer(\d+)", name), series) for name, series in metrics.items())
    return dict(sorted((int(match[1]), series) for match, series in found if match))


def _draw_curves(axes: Axes, title: str, unit: str, curves: dict[str, Series], faint: Series) -> None:
    colors = {"training": "tab:blue", "validation": "tab:orange"}
    axes.plot(list(faint), list(faint.values()), color=colors["training"], alpha=0.3, linewidth=0.8)
    for label, series in curves.items():
        plot_line(axes, list(series), list(series.values()), colors[label], label)
    axes.set_title(title, loc="left")
    axes.set_ylabel(unit)
    legend_beside(axes)


def _draw_angles(axes: Axes, title: str, layers: dict[int, Series], depth: int) -> None:
    _draw_layers(axes, title, layers, depth)
    degrees(axes, max(value for series in layers.values() for value in series.values()))


def _draw_layers(axes: Axes, title: str, layers: dict[int, Series], depth: int, unit: str = "") -> None:
    labelled = list(layers)[:: -(-len(layers) // 12)]
    for n, series in layers.items():
        label = f"{n}" if n in labelled else None
        plot_line(axes, list(series), list(series.values()), layer_color(n, depth), label)
    axes.set_title(title, loc="left")
    axes.set_ylabel(unit)
    legend_beside(axes, "layer")
