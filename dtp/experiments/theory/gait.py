"""Does GAIT-prop update as backprop does? Correlations in untrained networks, as Dalm et al. measured them."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from dtp.algorithms import GAIT
from dtp.algorithms.options import GAITOptions
from dtp.experiments.over_seeds import Statistic
from dtp.experiments.theory.common import each_seed, over_seeds, rows_of, seeded
from dtp.experiments.theory.options import GaitOptions
from dtp.models import Square
from dtp.models.options import ActivationName, SquareOptions
from dtp.plots.style import color, finish, legend_beside, new_figure, plot_range, plot_spread, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASSES = 10
SLOPE = 0.1
ACTIVATIONS: Final = ("leaky-relu", "sl-relu")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
TARGETS = ("original", "normalised")


def measure(options: GaitOptions) -> dict[str, Any]:
    """Pearson correlation of each layer's weight update with backprop's, of the same half squared distance.

    Returns:
        ``targets``: by "targets, activation, dtype", the usual step of the targets; ``steps``: by "activation, dtype",
        of normalised targets, by step; ``departures``: by activation, in float64 with the shortest step, by size of
        what is added to the orthogonal weights, relative to them. In each, one list of the layers for each seed; null
        where no update arrives.
    """
    values: dict[str, Any] = {"targets": {}, "steps": {}, "departures": {}}
    for seed in each_seed(options.seeds):
        for activation in ACTIVATIONS:
            for precision in DTYPES:
                name = f"{activation}, {precision}"
                for targets in TARGETS:
                    found = _correlations(options, seed, activation, precision, gait_targets=targets)
                    values["targets"].setdefault(f"{targets}, {name}", []).append(found)
                for step in options.steps:
                    found = _correlations(options, seed, activation, precision, gait_step=step)
                    values["steps"].setdefault(name, {}).setdefault(f"{step:g}", []).append(found)
            for size in options.departures:
                found = _correlations(options, seed, activation, "float64", size, gait_step=min(options.steps))
                values["departures"].setdefault(activation, {}).setdefault(f"{size:g}", []).append(found)
    return values


def _correlations(
    options: GaitOptions, seed: int, activation: ActivationName, precision: str, departure: float = 0.0, **changes: Any
) -> list[float | None]:
    dtype = DTYPES[precision]
    with seeded(seed):
        # The same numbers for every variant: drawn in float32, orthogonal to the last digit of the dtype.
        widths = SquareOptions(
            widths=[options.width] * options.depth, outputs=options.width, activation=activation, leaky_slope=SLOPE
        )
        network = Square(widths, (1, 1, options.width), CLASSES).to(dtype)
        for layer in network:
            weight = next(m for m in layer if isinstance(m, nn.Linear)).weight
            _depart(weight, departure)
        x = torch.randn(options.batch_size, 1, 1, options.width).to(dtype)
        y = torch.randint(CLASSES, (options.batch_size,))
    rule = GAIT(network, GAITOptions(orthogonality=0.0, **changes))
    _, ours = rule.forward_gradients(x, y)
    backprop = torch.autograd.grad(rule.task_loss(network(x), y), rule.forward_parameters)
    return [_correlation(*pair) for pair in zip(ours, backprop, strict=True) if pair[0].dim() == 2]


@torch.no_grad()
def _depart(weight: Tensor, size: float) -> None:
    """Make ``weight`` (d, d) orthogonal to the last digit, then add Gaussian weights of ``size`` times its norm."""
    # Newton's iteration for the nearest orthogonal matrix; float32 ones are a few steps of it away.
    for _ in range(3):
        weight.copy_(1.5 * weight - 0.5 * weight @ weight.T @ weight)
    added = torch.randn(weight.shape).to(weight)
    weight.add_(added, alpha=size * (weight.norm() / added.norm()).item())


def _correlation(a: Tensor, b: Tensor) -> float | None:
    """Pearson's, of flattened tensors; None where one is constant, as where no update arrives."""
    a, b = (t.double().flatten() - t.double().mean() for t in (a, b))
    lengths = a.norm() * b.norm()
    return None if lengths == 0 or not math.isfinite(lengths) else round((a @ b / lengths).item(), 12)


# --- what is shown ----------------------------------------------------------------------------------------------------


def _arrived(series: list[list[float | None]]) -> list[list[float]]:
    """An update that does not arrive is no better than chance."""
    return [[0.0 if value is None else value for value in layers] for layers in series]


def _over_layers(series: list[list[float | None]]) -> list[float]:
    """For each seed, the mean over the layers below the output, whose own update holds no feedback."""
    return [statistics.fmean(layers[:-1]) for layers in _arrived(series)]


def table(values: dict[str, Any]) -> str:
    """Correlations by layer of the usual steps, and means over layers by step and by departure."""
    rows = []
    for name, series in values["targets"].items():
        mean, _ = over_seeds(_arrived(series))
        rows.append([name, *(f"{value:.4f}" for value in mean)])
    layers = [f"layer {n}" for n in range(1, len(rows[0]))]
    blocks = [rows_of(["mean correlation", *layers], rows)]
    for kind, title in (("steps", "normalised targets, step"), ("departures", "not orthogonal by")):
        sizes = list(next(iter(values[kind].values())))
        rows = [
            [name, *(Statistic.of(_over_layers(found[size])).text(1, 4) for size in sizes)]
            for name, found in values[kind].items()
        ]
        blocks.append(rows_of([title, *sizes], rows))
    return "\n\n".join(blocks)


def draw(values: dict[str, Any], path: Path) -> None:
    """Correlation by layer, in both precisions; what it lacks to 1 by length of the step, and by departure."""
    figure, (single, double, by_step, by_departure) = new_figure(2, 2, (4.9, 3.1))
    for panel, precision in ((single, "float32"), (double, "float64")):
        for i, (targets, activation) in enumerate((t, a) for t in TARGETS for a in ACTIVATIONS):
            mean, deviation = over_seeds(_arrived(values["targets"][f"{targets}, {activation}, {precision}"]))
            layers = range(1, len(mean) + 1)
            # Dashes show what lies below.
            style = "-" if activation == ACTIVATIONS[0] else "--"
            plot_spread(panel, layers, mean, deviation, color(i), f"{targets},\n{activation}", linestyle=style)
        panel.set_title(f"Usual step, {precision}", loc="left")
        panel.set_xlabel("layer (the last has no feedback)")
        panel.set_xticks(layers)
        panel.set_ylabel("correlation with backprop")
        panel.set_ylim(-0.05, 1.05)
    legend_beside(double)
    for i, activation in enumerate(ACTIVATIONS, start=2):
        for precision, style in (("float32", "--"), ("float64", "-")):
            found = values["steps"][f"{activation}, {precision}"]
            _draw_lack(by_step, found, color(i), f"{activation},\n{precision}", linestyle=style)
        _draw_lack(by_departure, values["departures"][activation], color(i), activation)
    by_step.set_title("Normalised targets, by step", loc="left")
    by_step.set_xlabel("length of the step")
    legend_beside(by_step)
    # 0 has no place on a logarithmic axis, and matplotlib fails to draw one without values.
    by_departure.set_visible(any(float(size) > 0 for found in values["departures"].values() for size in found))
    by_departure.set_title("Weights that are not orthogonal", loc="left")
    by_departure.set_xlabel("size of what is added to them (relative)")
    legend_beside(by_departure)
    for panel in (by_step, by_departure):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_ylabel("1 - correlation (median, range)")
    for panel in (single, double, by_step, by_departure):
        finish(panel)
    save_figure(figure, path)


def _draw_lack(panel: Axes, found: dict[str, list], line_color: Any, label: str, **style: Any) -> None:
    """Median over seeds and their range, cut off at the last digit kept; 0 has no place on a logarithmic axis."""
    sizes = sorted(float(size) for size in found if float(size) > 0)
    lacks = [[max(1 - value, 1e-12) for value in _over_layers(found[f"{size:g}"])] for size in sizes]
    low, middle, high = ([function(lack) for lack in lacks] for function in (min, statistics.median, max))
    plot_range(panel, sizes, low, middle, high, line_color, label, **style)
