"""Lee's two theorems in numbers: exact inverses stay in a cone around backprop; lower targets lead to upper ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtp.algorithms import BP, TP, VanillaDTP
from dtp.algorithms.options import TPOptions, VanillaDTPOptions
from dtp.experiments.over_seeds import Statistic
from dtp.experiments.theory.common import advance, each_seed, marks, over_seeds, rows_of, seeded
from dtp.experiments.theory.options import LeeOptions
from dtp.feedback import FeedbackNetwork
from dtp.models import MLP, Network
from dtp.models.options import MLPOptions, ModelOptions
from dtp.plots.style import (
    color,
    counted,
    finish,
    layer_color,
    legend_beside,
    new_figure,
    plot_range,
    plot_spread,
    save_figure,
)

CLASSES = 10


def measure(options: LeeOptions) -> dict[str, Any]:
    """Both theorems.

    Returns:
        ``theorem1``: ``cosine`` and ``bound`` for each seed, lists of the layers. ``theorem2``: ``iterations``, and by
        kind of layer, for each seed and measurement, of the samples: the median ``eigenvalue``, the ``largest`` and the
        ``smallest``, the part that meets the ``premise``, the part for which the ``conclusion`` holds, and the part of
        ``broken`` ones, with the premise and without the conclusion.
    """
    values: dict[str, Any] = {"theorem1": {"cosine": [], "bound": []}, "theorem2": {"iterations": [], "layers": {}}}
    for seed in each_seed(options.seeds):
        cosines, bounds = _cone(options, seed)
        values["theorem1"]["cosine"].append(cosines)
        values["theorem1"]["bound"].append(bounds)
        for kind, (below, above) in _kinds(options).items():
            taken, found = _descent(options, seed, below, above)
            values["theorem2"]["iterations"] = taken
            into = values["theorem2"]["layers"].setdefault(f"{kind}, {below} to {above}", {})
            for name, series in found.items():
                into.setdefault(name, []).append(series)
    return values


# --- theorem 1 --------------------------------------------------------------------------------------------------------


class TanhFirst(Network):
    """The theorem's layers, F(h) = W tanh(h) of one width, with a plain linear map at the bottom; in float64."""

    def __init__(self, depth: int, units: int, spread: float):
        self.depth_wanted, self.units = depth, units
        super().__init__(ModelOptions(), (1, 1, units), units)
        self.double()
        with torch.no_grad():
            for layer in self:
                weight = layer[1].weight
                nn.init.orthogonal_(weight).add_(torch.randn(units, units), alpha=spread)

    def make_layers(self) -> Iterable[nn.Sequential]:
        for n in range(self.depth_wanted):
            yield nn.Sequential(nn.Tanh() if n else nn.Flatten(), nn.Linear(self.units, self.units, bias=False))


class ExactInverse(nn.Module):
    """The inverse of F(h) = W tanh(h)."""

    def __init__(self, layer: nn.Sequential):
        super().__init__()
        # In a tuple, so that its weights are not this module's.
        self.layer = (layer,)

    def forward(self, y: Tensor, context: Any = None) -> Tensor:
        return torch.linalg.solve(self.layer[0][1].weight, y.T).T.atanh()


class ExactTP(TP):
    """Target propagation by exact inverses, which nothing trains."""

    def make_feedback(self) -> FeedbackNetwork:
        return FeedbackNetwork({n: ExactInverse(self.network[n]) for n in range(2, self.network.depth + 1)})


def _cone(options: LeeOptions, seed: int) -> tuple[list[float], list[float]]:
    """Cosine of each layer's update to backprop's for one sample, and the ratio of extreme singular values above it."""
    with seeded(seed):
        network = TanhFirst(options.depth, options.units, options.spread)
        x = 0.5 * torch.randn(1, 1, 1, options.units, dtype=torch.float64)
        y = torch.randint(options.units, (1,))
    rule = ExactTP(network, TPOptions(beta=options.step, output_loss="mse"))
    _, ours = rule.forward_gradients(x, y)
    _, backprop = BP(network).forward_gradients(x, y)
    s, cosines, bounds = rule.activations(x).s, [], []
    for n in range(1, network.depth + 1):

        def upwards(v: Tensor, n: int = n) -> Tensor:
            for k in range(n + 1, network.depth + 1):
                v = network[k](v)
            return v

        values = torch.linalg.svdvals(_jacobian(upwards, s[n][0]).detach())
        bounds.append((values[-1] / values[0]).item())
        cosines.append(torch.cosine_similarity(ours[n - 1].flatten(), backprop[n - 1].flatten(), dim=0).item())
    return cosines, bounds


def _jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Matrix of the Jacobian at one flat sample (d,) of a function of batches."""
    return torch.func.jacrev(lambda v: function(v[None])[0])(at)


# --- theorem 2 --------------------------------------------------------------------------------------------------------


def _kinds(options: LeeOptions) -> dict[str, tuple[int, int]]:
    narrow, wide = options.widths
    return {"narrowing": (wide, narrow), "equal": (wide, wide), "widening": (narrow, wide)}


def _descent(options: LeeOptions, seed: int, below: int, above: int) -> tuple[list[int], dict[str, list[float]]]:
    """Premise and conclusion for the layer from ``below`` to ``above`` units while its feedback learns to invert it."""
    with seeded(seed):
        widths = MLPOptions(widths=[below, above], activation="tanh", init="orthogonal")
        network = MLP(widths, (1, 1, below), CLASSES).double()
        x = torch.randn(options.samples, 1, 1, below, dtype=torch.float64)
        directions = torch.randn(options.samples, above, dtype=torch.float64)
        rule = VanillaDTP(network, VanillaDTPOptions(noise=[0.1], feedback_lr=[3e-3]), seed=seed)
    rule.configure_optimizers()
    activations = rule.activations(x, gradients=False)
    steps = options.distance * directions / directions.norm(dim=1, keepdim=True)
    taken = marks(options.iterations, options.points)
    found: dict[str, list[float]] = {}
    done = 0
    for mark in taken:
        advance(rule, activations, done, mark, options.iterations)
        done = mark
        targets = {2: activations.s[2] + steps}
        with torch.no_grad():
            reached = network[2](rule.lower_target(2, targets, activations))
        holds = (targets[2] - reached).square().sum(1) < steps.square().sum(1)
        eigenvalues = _eigenvalues(rule, activations.s[1], activations.s[2])
        premise = eigenvalues < 1
        for name, value in (
            ("eigenvalue", eigenvalues.median()),
            ("largest", eigenvalues.max()),
            ("smallest", eigenvalues.min()),
            ("premise", premise.double().mean()),
            ("conclusion", holds.double().mean()),
            ("broken", (premise & ~holds).double().mean()),
        ):
            found.setdefault(name, []).append(round(value.item(), 12))
    return taken, found


def _eigenvalues(rule: VanillaDTP, s_in: Tensor, s_out: Tensor) -> Tensor:
    """Largest eigenvalue of (I - J_F J_G)^T (I - J_F J_G) of layer 2, for each sample."""
    context = [None] * len(rule.network[2])
    forward = torch.func.vmap(lambda s: _jacobian(rule.network[2], s))(s_in)
    back = torch.func.vmap(lambda s: _jacobian(lambda y: rule.feedback[2](y, context), s))(s_out)
    rest = torch.eye(s_out.shape[1], dtype=s_out.dtype) - forward @ back
    return torch.linalg.matrix_norm(rest.detach(), 2).square()


# --- what is shown ----------------------------------------------------------------------------------------------------


def table(values: dict[str, Any]) -> str:
    """Cosines with their bounds by layer; eigenvalue, premise and conclusion of each kind of layer."""
    first, second = values["theorem1"], values["theorem2"]
    cosines, bounds = (list(zip(*first[kind], strict=True)) for kind in ("cosine", "bound"))
    rows = [
        [
            f"layer {n}",
            Statistic.of(cosine).text(1, 3),
            Statistic.of(bound).text(1, 3),
            # Not -0.000 of a layer whose bound is 1.
            f"{round(min(c - b for c, b in zip(cosine, bound, strict=True)), 3) + 0.0:.3f}",
        ]
        for n, (cosine, bound) in enumerate(zip(cosines, bounds, strict=True), start=1)
    ]
    blocks = [rows_of(["theorem 1", "cosine to backprop", "its bound", "least difference"], rows)]
    rows = []
    for kind, found in second["layers"].items():
        for place, when in ((0, "at first"), (-1, f"after {second['iterations'][-1]}")):
            rows.append(
                [
                    f"{kind}, {when}",
                    Statistic.of([series[place] for series in found["eigenvalue"]]).text(1, 3),
                    *(
                        f"{100 * statistics.fmean(series[place] for series in found[name]):.1f} %"
                        for name in ("premise", "conclusion", "broken")
                    ),
                ]
            )
    blocks.append(
        rows_of(["theorem 2, feedback iterations", "median eigenvalue", "premise", "conclusion", "broken"], rows)
    )
    return "\n\n".join(blocks)


def draw(values: dict[str, Any], path: Path) -> None:
    """Cosines against their bounds; eigenvalues and parts of the samples against feedback iterations."""
    figure, (cone, eigenvalue, part) = new_figure(1, 3, (4.9, 3.3))
    first, second = values["theorem1"], values["theorem2"]
    depth = len(first["cosine"][0])
    for n in range(1, depth + 1):
        points = [[layers[n - 1] for layers in first[kind]] for kind in ("bound", "cosine")]
        cone.scatter(*points, s=18, color=layer_color(n, depth), label=f"{n}", zorder=3)
    cone.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle="--")
    cone.annotate("forbidden", (0.97, 0.02), ha="right", color="0.5")
    cone.set_xlim(0, 1.03)
    cone.set_ylim(0, 1.03)
    cone.set_title("Theorem 1: exact inverses", loc="left")
    cone.set_xlabel("smallest / largest singular value above")
    cone.set_ylabel("cosine to backprop's update")
    legend_beside(cone, "layer")
    steps = second["iterations"]
    for i, (kind, found) in enumerate(second["layers"].items()):
        low, _ = over_seeds(found["smallest"])
        middle, _ = over_seeds(found["eigenvalue"])
        high, _ = over_seeds(found["largest"])
        plot_range(eigenvalue, steps, low, middle, high, color(i), kind.replace(", ", "\n"))
        mean, deviation = over_seeds([[100 * value for value in series] for series in found["conclusion"]])
        plot_spread(part, steps, mean, deviation, color(i), kind.replace(", ", "\n"))
    eigenvalue.axhline(1, color="0.5", linewidth=1, linestyle="--")
    eigenvalue.set_ylim(bottom=0)
    eigenvalue.set_title("Theorem 2: premise", loc="left")
    eigenvalue.set_ylabel("eigenvalue (median, range)")
    part.set_ylim(-3, 103)
    part.set_title("Theorem 2: conclusion", loc="left")
    part.set_ylabel("samples led closer, %")
    legend_beside(part, "layer")
    for panel in (eigenvalue, part):
        counted(panel, "feedback iterations")
    for panel in (cone, eigenvalue, part):
        finish(panel)
    save_figure(figure, path)
