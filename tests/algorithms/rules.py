"""What the common tests are told of rules that are unlike most, and how well each learns, in one place."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from dtp.algorithms import ALGORITHMS
from dtp.algorithms.options import SingleLayerOptions

THROUGH = "errors pass through the layers, from the top"


@dataclass(frozen=True)
class Facts:
    """Facts about a rule; the defaults are those of a rule that is not in the table.

    Attributes:
        accuracy: least test accuracy on digits in per cent, about 3 points below what was reached on one core; of
            clusters their purity, and of auto-encoders minus a hundred times the mean squared error of a pixel.
        epochs: of that run, on the rule's own preset.
        shorter: words of the command line that make a batch of that run cheaper.
        network: words of the command line that choose a network of small layers, 16 inputs or more, for all the rest.
        options: of the rule where its own are not for such networks.
        any_network: whether it takes convolutions and pooling too.
        not_local: why a layer's update depends on more than its own activations and target; empty where it does not.
        mirrors: whether the step of the forward weights changes feedback weights as well.
        redraws: whether feedback weights are drawn anew for every batch.
        noisy: whether the seed of the noise matters to the forward weights.
        linear: options under which its gradients are means over the images, where they are not by nature.
        not_true: why the output layer's update is not backprop's, up to a factor; empty where it is.
        remembers: tensors of the rule that a batch changes besides weights.
        apart: why its updates do not come near backprop's in training; empty where they do.
        clips: whether it takes --clip-norm.
        feedback_sees_goals: whether its feedback weights learn from the goals too.
    """

    accuracy: float = 90.0
    epochs: int = 16
    shorter: str = ""
    network: str = "--model mlp --widths 12 11 10"
    options: dict[str, Any] = field(default_factory=dict)
    any_network: bool = True
    not_local: str = ""
    mirrors: bool = False
    redraws: bool = False
    noisy: bool = False
    linear: dict[str, Any] = field(default_factory=dict)
    not_true: str = ""
    remembers: frozenset[str] = frozenset()
    apart: str = ""
    clips: bool = True
    feedback_sees_goals: bool = False


SIGMOID = "--model mlp --widths 12 11 10 --activation sigmoid"
ONE_LAYER = "--model mlp --widths"
CONTROL = "the control of all layers shares the error out among them"
SHORTER = "--feedback-time-steps 10"
TIED = "--model tied-autoencoder --hidden 12"

RULES = {
    "bp": Facts(93, 8, not_local=THROUGH),
    "dtp": Facts(90.5, 5),
    "parallel-dtp": Facts(86.5, 12),
    "vanilla-dtp": Facts(89.5, 20),
    "tp": Facts(77, 14),
    "sdtp": Facts(93, 10),
    "ao-sdtp": Facts(93.5, 10),
    "hybrid": Facts(93, 5, not_local="for alpha above 0 targets go through the layers' own transposed Jacobians"),
    "drl": Facts(90.5, 5),
    "ddtp-linear": Facts(91, 5),
    "ddtp-rhl": Facts(90.5, 5),
    "ddtp-control": Facts(91, 5),
    # Its usual feedback, of 1e-3, is for networks that standardise; the lower layers of others would get nothing.
    "fw-dtp": Facts(94, 8, options={"feedback_scale": 0.5}),
    "gait": Facts(95.5, 8, network="--model square --widths 16 12 10", any_network=False),
    "fa": Facts(92, 10, not_local=THROUGH),
    "usf": Facts(91.5, 10, not_local=THROUGH),
    "brsf": Facts(91.5, 10, not_local=THROUGH, redraws=True),
    "frsf": Facts(91.5, 10, not_local=THROUGH),
    "kp": Facts(93, 5, not_local=THROUGH, mirrors=True),
    "wm": Facts(90, 8, not_local=THROUGH),
    "dfa": Facts(92.5, 10),
    "chl": Facts(90.5, 7, network=SIGMOID, any_network=False),
    "generec": Facts(89, 7, network=SIGMOID, any_network=False),
    "hebb": Facts(
        82,
        10,
        network=ONE_LAYER,
        any_network=False,
        not_true="it learns from products of activities, not from errors",
        remembers=frozenset({"mean_input", "mean_unit"}),
    ),
    "delta": Facts(90, 10, network=ONE_LAYER, any_network=False),
    "competitive": Facts(
        82,
        10,
        network=ONE_LAYER,
        any_network=False,
        noisy=True,
        linear={"first_prototypes": "weights"},
        not_true="it has no labels",
        remembers=frozenset({"share", "won"}),
        clips=False,
    ),
    "dtp-dae": Facts(
        -2.7,
        12,
        network=TIED,
        any_network=False,
        noisy=True,
        linear={"pixel_noise": 0.0, "hidden_noise": 0.0},
        not_true="its weights are those of the first layer too",
    ),
    "drtp": Facts(90, 8),
    # Its usual perturbation hardly moves so few pixels.
    "pepita": Facts(90, 8, options={"input_scale": 1.0}, not_true="its layers learn in a pass with another input"),
    # The losses of its usual layers are shorter, and not clipped to a fraction; then smaller ones are needed.
    "ccl": Facts(
        93,
        8,
        options={"layer_clip": 0.0, "lr": 0.1},
        mirrors=True,
        apart="hidden layers learn what their class signals are",
    ),
    "dualprop": Facts(93, 8, not_local="feedback goes through the layers' own transposed Jacobians"),
    "dfc": Facts(
        90.5,
        8,
        "--time-steps 30 --feedback-time-steps 10",
        options={"time_steps": 20, "feedback_time_steps": 10},
        not_true=CONTROL,
    ),
    "dfc-ss": Facts(90, 8, SHORTER, options={"feedback_time_steps": 10}, not_true=CONTROL),
    "dfc-ssa": Facts(90, 8, SHORTER, options={"feedback_time_steps": 10}, not_true=CONTROL),
    "strong-dfc": Facts(
        89,
        8,
        "--feedback-time-steps 4",
        options={"feedback_time_steps": 10},
        not_true=CONTROL,
        feedback_sees_goals=True,
    ),
}


def facts(name: str) -> Facts:
    """The facts about a registered rule, those of most where nobody has written down others."""
    return RULES.get(name, Facts())


def is_single(name: str) -> bool:
    """Whether the networks of a rule are of one layer."""
    return issubclass(ALGORITHMS.resolve(name).load_options(), SingleLayerOptions)


NAMES = list(ALGORITHMS.entries)
# Every rule on a network of its own kind, and on LeNet where it takes any.
CASES = [
    pytest.param(name, kind, id=f"{name}-{kind}")
    for name in NAMES
    for kind in ("small", "lenet")
    if kind == "small" or facts(name).any_network
]
