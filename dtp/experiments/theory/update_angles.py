"""How far are updates from backprop's, by how the feedback was trained? Ernoult et al. 2022, figure 4.3."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dtp.algorithms import DRL, DTP, DDTPLinear
from dtp.algorithms.options import DDTPLinearOptions, DRLOptions, DTPOptions
from dtp.algorithms.target_propagation import TargetPropagation
from dtp.diagnostics.alignment import update_alignment
from dtp.experiments.over_seeds import Statistic
from dtp.experiments.theory.common import advance, each_seed, make_batch, rows_of, seeded
from dtp.experiments.theory.options import UpdateAnglesOptions
from dtp.models import LeNet
from dtp.models.options import LeNetOptions
from dtp.plots.style import degrees, finish, layer_color, legend_beside, new_figure, save_figure

VARIANTS = ("random", "symmetric", "L-DRL, fixed", "L-DRL, noisy", "DRL, chain", "DRL, direct")


class LeNetWithoutBiases(LeNet):
    """LeNet of the published experiment: biases would get updates of their own."""

    def make_layers(self) -> Iterable[nn.Sequential]:
        for layer in super().make_layers():
            for module in layer:
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.register_parameter("bias", None)
            yield layer


def measure(options: UpdateAnglesOptions) -> dict[str, Any]:
    """Angle and relative distance of each layer's update to backprop's, the update divided by beta.

    ``random``: feedback as drawn. ``symmetric``: transposed forward weights. ``L-DRL``: trained on the batch, maxima of
    the noisy pass undone where they are (noisy, as published) or where those of the clean pass are (fixed). ``DRL,
    chain``: layer by layer (Meulemans et al. 2020, DTPDRL). ``DRL, direct``: straight from the output (DDTP-linear),
    what Ernoult et al. compare with.

    Returns:
        ``angle`` and ``distance``: by beta, by variant, for each seed the list of the layers.
    """
    values: dict[str, Any] = {"angle": {}, "distance": {}}
    for seed in each_seed(options.seeds):
        x, y, classes = make_batch(options, seed)
        for variant in VARIANTS:
            rule = _rule(options, variant, seed, x, classes)
            if "DRL" in variant:
                drop = round(options.drop * options.iterations)
                advance(rule, rule.activations(x, gradients=False), 0, options.iterations, drop)
            for beta in options.betas:
                found = update_alignment(_with_step(rule, beta, seed), x, y)
                layers = [found[n] for n in sorted(found)]
                for kind, numbers in (
                    ("angle", [round(one.angle, 4) for one in layers]),
                    ("distance", [round(one.distance, 6) for one in layers]),
                ):
                    values[kind].setdefault(f"{beta:g}", {}).setdefault(variant, []).append(numbers)
    return values


def _rule(options: UpdateAnglesOptions, variant: str, seed: int, x: Tensor, classes: int) -> TargetPropagation:
    o = options
    with seeded(seed):
        # All variants have the same forward weights.
        network = LeNetWithoutBiases(LeNetOptions(channels=o.channels, hidden=o.hidden), x.shape[1:], classes)
        if variant.startswith("DRL"):
            kind, kind_options = (DRL, DRLOptions) if variant == "DRL, chain" else (DDTPLinear, DDTPLinearOptions)
            rule = kind(network, kind_options(noise=[o.drl_noise], feedback_lr=[o.drl_lr]), seed=seed)
        else:
            init = "symmetric" if variant == "symmetric" else "random"
            routing = "noisy" if variant == "L-DRL, noisy" else "fixed"
            settings = DTPOptions(
                noise=o.noise, feedback_lr=o.feedback_lr, routing=routing, feedback_init=init, unpool=o.unpool
            )
            rule = DTP(network, settings, seed=seed)
    rule.configure_optimizers()
    return rule


def _with_step(rule: TargetPropagation, beta: float, seed: int) -> TargetPropagation:
    """The rule with another step of the output target: of the same network, with the feedback as it is trained."""
    with seeded(seed):
        other = type(rule)(rule.network, rule.options, seed=seed, beta=beta)
    other.feedback.load_state_dict(rule.feedback.state_dict())
    return other


def table(values: dict[str, Any]) -> str:
    """Angles by layer, mean and deviation over seeds, for each beta."""
    blocks = []
    for beta, variants in values["angle"].items():
        layers = [f"layer {n}" for n in range(1, len(next(iter(variants.values()))[0]) + 1)]
        rows = [
            [name, *(Statistic.of(numbers).text(1, 1) for numbers in zip(*seeds, strict=True))]
            for name, seeds in variants.items()
        ]
        blocks.append(rows_of([f"degrees to backprop, beta {beta}", *layers], rows))
    return "\n\n".join(blocks)


def draw(values: dict[str, Any], path: Path) -> None:
    """A panel for each beta: bars of the layers for each variant, with deviations over seeds."""
    betas = list(values["angle"])
    figure, panels = new_figure(len(betas), 1, (7.6, 2.9))
    for panel, beta in zip(panels, betas, strict=True):
        variants = values["angle"][beta]
        depth = len(next(iter(variants.values()))[0])
        highest, width = 0.0, 0.8 / depth
        for n in range(1, depth + 1):
            found = [Statistic.of([layers[n - 1] for layers in seeds]) for seeds in variants.values()]
            means, deviations = [bar.mean for bar in found], [bar.spread for bar in found]
            places = [i + (n - (depth + 1) / 2) * width for i in range(len(variants))]
            bars = {"color": layer_color(n, depth), "label": f"{n}", "error_kw": {"linewidth": 0.8}}
            panel.bar(places, means, 0.92 * width, yerr=deviations, capsize=1.5, **bars)
            for place, mean, deviation in zip(places, means, deviations, strict=True):
                panel.annotate(
                    f"{mean:.0f}" if mean >= 9.5 else f"{mean:.1f}",
                    (place, mean + deviation),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6,
                )
            highest = max(highest, *(m + d for m, d in zip(means, deviations, strict=True)))
        panel.set_title(f"Angle of updates to backprop, beta {beta}", loc="left")
        panel.set_xticks(range(len(variants)), list(variants))
        degrees(panel, highest + 4)
        panel.set_ylim(bottom=0)
        finish(panel)
        panel.grid(visible=False, axis="x")
        legend_beside(panel, "layer")
    save_figure(figure, path)
