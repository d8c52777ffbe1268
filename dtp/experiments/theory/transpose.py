"""Do feedback weights become the transposes of frozen forward weights? By L-DRL, through the library's own loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from dtp.algorithms import DTP
from dtp.algorithms.options import DTPOptions
from dtp.diagnostics.alignment import Alignment, feedback_alignment
from dtp.experiments.over_seeds import Statistic
from dtp.experiments.theory.common import advance, each_seed, make_batch, marks, over_seeds, rows_of, seeded
from dtp.experiments.theory.options import TransposeOptions
from dtp.models import VGG
from dtp.models.options import VGGOptions
from dtp.plots.style import color, counted, finish, legend_beside, new_figure, plot_line, plot_spread, save_figure

ROUTINGS: Final = ("noisy", "fixed")
# Not a routing: what the fixed one comes to in the mean over infinitely many noise probes, in closed form.
EXPECTED: Final = "expected"
Variant = Literal["noisy", "fixed", "expected"]
KINDS = ("angle", "distance")


def measure(options: TransposeOptions) -> dict[str, Any]:
    """Angle and relative distance of V to W^T against iterations, of a convolutional and of the linear layer.

    Returns:
        ``iterations``, a list; ``layers``, by title ``{routing: {"angle": [series of each seed], "distance": ...}}``,
        with ``expected`` in place of a routing for the mean of the ``fixed`` one over its noise.
    """
    taken = marks(options.iterations, options.points)
    drop = round(options.drop * options.iterations)
    layers: dict[str, dict[str, dict[str, list]]] = {}
    for seed in each_seed(options.seeds):
        for routing in (*ROUTINGS, EXPECTED):
            series = _run(options, seed, routing, taken, drop)
            for title, found in series.items():
                into = layers.setdefault(title, {}).setdefault(routing, {"angle": [], "distance": []})
                into["angle"].append([round(one.angle, 4) for one in found])
                into["distance"].append([round(one.distance, 6) for one in found])
    return {"iterations": taken, "drop_at": drop, "layers": layers}


def _run(
    options: TransposeOptions, seed: int, routing: Variant, taken: list[int], drop: int
) -> dict[str, list[Alignment]]:
    x, _, classes = make_batch(options, seed)
    with seeded(seed):
        # Of both routings the same weights; and, from streams of their own, the same noise.
        network = VGG(VGGOptions(channels=options.channels), x.shape[1:], classes)
        rule = _rule(options, network, seed, routing)
    layers = {_title(2, network): 2, _title(network.depth, network): network.depth}
    activations = rule.activations(x, gradients=False)
    found: dict[str, list[Alignment]] = {title: [] for title in layers}
    done = 0
    for mark in taken:
        advance(rule, activations, done, mark, drop, layers.values())
        done = mark
        alignments = feedback_alignment(rule)
        for title, n in layers.items():
            found[title].append(alignments[n])
    return found


def _title(n: int, network: VGG) -> str:
    (below, above) = ("x".join(map(str, network.shapes[k])) for k in (n - 1, n))
    return f"layer {n}, {'linear' if n == network.depth else 'convolution, ELU, max-pooling'}, {below} to {above}"


def _rule(options: TransposeOptions, network: VGG, seed: int, routing: Variant) -> DTP:
    numbers = range(2, network.depth + 1)

    def per_layer(values: list[float]) -> list[float]:
        # Those between the two are not trained.
        return values if len(values) < 2 else [values[1] if n == network.depth else values[0] for n in numbers]

    rule = DTP(
        network,
        DTPOptions(
            routing="fixed" if routing == EXPECTED else routing,
            probes="expected" if routing == EXPECTED else "sampled",
            noise=per_layer(options.noise),
            feedback_lr=per_layer(options.feedback_lr),
            ldrl_scale=options.ldrl_scale,
            engine=options.engine,
        ),
        seed=seed,
    )
    rule.configure_optimizers()
    return rule


def table(values: dict[str, Any]) -> str:
    """Angles and distances at the end, and how far apart sampled and expected curves come, over seeds."""
    rows = []
    for title, routings in values["layers"].items():
        for routing, found in routings.items():
            angles, distances = ([series[-1] for series in found[kind]] for kind in KINDS)
            rows.append([f"{title}; {routing}", Statistic.of(angles).text(1, 1), Statistic.of(distances).text(1, 3)])
        # Measurements before there was an expectation have none.
        if EXPECTED in routings:
            angles, distances = (_farthest(routings["fixed"][kind], routings[EXPECTED][kind]) for kind in KINDS)
            rows.append(
                [
                    "  most between fixed and expected",
                    Statistic.of(angles).text(1, 2),
                    Statistic.of(distances).text(1, 4),
                ]
            )
    return rows_of([f"after {values['iterations'][-1]} iterations", "angle to W^T", "distance"], rows)


def _farthest(some: list[list[float]], others: list[list[float]]) -> list[float]:
    """Largest difference of two series, seed by seed."""
    return [max(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in zip(some, others, strict=True)]


def draw(values: dict[str, Any], path: Path) -> None:
    """A column for each layer: angle above, relative distance below, against iterations."""
    steps, layers = values["iterations"], values["layers"]
    figure, axes = new_figure(2, len(layers), (4.4, 2.9))
    for column, (title, routings) in enumerate(layers.items()):
        for row, kind in enumerate(KINDS):
            panel = axes[row * len(layers) + column]
            for i, routing in enumerate(ROUTINGS):
                mean, deviation = over_seeds(routings[routing][kind])
                # Without maxima to route, both are one line.
                plot_spread(panel, steps, mean, deviation, color(i), routing, linestyle="-" if i == 0 else "--")
            if EXPECTED in routings:
                mean, _ = over_seeds(routings[EXPECTED][kind])
                plot_line(panel, steps, mean, "black", EXPECTED, linestyle="--", linewidth=0.8, marker=None)
            if 0 < values["drop_at"] < steps[-1]:
                panel.axvline(values["drop_at"], color="0.6", linewidth=1, linestyle=":", label="rate / 10")
            counted(panel, "feedback iterations")
            finish(panel)
            if column == len(layers) - 1:
                legend_beside(panel, "routing")
        above, below = axes[column], axes[len(layers) + column]
        above.set_title(title.replace(", ", ": ", 1).replace("pooling, ", "pooling,\n"), loc="left", fontsize=10)
        above.set_ylabel("angle to W$^T$, degrees")
        above.set_ylim(0, 95)
        above.set_yticks(range(0, 91, 15))
        below.set_yscale("log")
        below.set_ylabel("|V - W$^T$| / |W|")
        # In the mean a linear layer goes to 0, below all that noise leaves to be seen.
        lowest = min(min(over_seeds(routings[routing]["distance"])[0]) for routing in ROUTINGS)
        if lowest > 0:
            below.set_ylim(bottom=lowest / 4)
    save_figure(figure, path)
