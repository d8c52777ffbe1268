"""Rules whose feedback learns to invert."""

from dataclasses import dataclass, field
from typing import Literal

from dtp.algorithms.options.base import OptimizerName, Schedule, TargetPropagationOptions, rule
from dtp.fields import option


@dataclass
class VanillaDTPOptions(TargetPropagationOptions):
    """Difference target propagation (Lee et al. 2015): an inverse corrected by its own error on the activation."""

    optimizer: OptimizerName = "adam"
    lr: float = 3e-4
    weight_decay: float = 0.0
    lr_schedule: Literal["constant", "cosine", "step"] = "constant"
    feedback_optimizer: OptimizerName = "adam"
    feedback_lr: list[float] = field(default_factory=lambda: [1e-3])
    schedule: Schedule = "alternating"
    output_loss: Literal["mse", "task"] = "task"
    # Layer whose target comes from the loss gradient: the last but one, through the output layer (Lee), or the output.
    first_target: Literal["penultimate", "output"] = "penultimate"


@rule("tp", "tp:TP", "target propagation (Bengio 2014, Lee 2018)", family="Feedback learns to invert")
@dataclass
class TPOptions(VanillaDTPOptions):
    """Target propagation: the target itself goes through the feedback layer, which is trained to invert its layer."""

    schedule: Schedule = "sequential"
    first_target: Literal["penultimate", "output"] = "output"


rule(
    "vanilla-dtp",
    "vanilla_dtp:VanillaDTP",
    "difference target propagation (Lee et al. 2015)",
    family="Feedback learns to invert",
)(VanillaDTPOptions)


@rule(
    "sdtp",
    "sdtp:SDTP",
    "simplified DTP: no gradient, the label as target (Bartunov et al. 2018)",
    preset={"activation": "tanh", "lr": 0.003, "noise": [0.1]},
    family="Feedback learns to invert",
)
@dataclass
class SDTPOptions(VanillaDTPOptions):
    """Simplified difference target propagation (Bartunov et al. 2018): the first target is the label itself."""

    # The first target is one of probabilities, or of pixels in an auto-encoder.
    loss: Literal["cross-entropy", "squared", "binary-cross-entropy"] = "cross-entropy"
    # Without effect, for the first target is the label itself: always 1.
    beta: float = 1.0
    first_target: Literal["output"] = "output"
    # The last layer learns the task's cross-entropy: the target is one of probabilities, and the layer puts out logits.
    output_loss: Literal["task"] = "task"


@rule(
    "ao-sdtp",
    "sdtp:AOSDTP",
    "SDTP with auxiliary outputs (Bartunov et al. 2018)",
    preset={"activation": "tanh", "lr": 0.003, "noise": [0.1]},
    family="Feedback learns to invert",
)
@dataclass
class AOSDTPOptions(SDTPOptions):
    """SDTP whose output layer has further units, random and never trained, that diversify the targets below."""

    # Auxiliary output units, at least 1.
    auxiliary: int = option(512, least=1)


@rule(
    "hybrid",
    "hybrid:Hybrid",
    "DTP blended with the exact transpose (Bartunov et al. 2018)",
    family="Feedback learns to invert",
)
@dataclass
class HybridOptions(VanillaDTPOptions):
    """Difference target propagation whose differences are blended with the transposed Jacobian's."""

    # Weight of the exact transpose, from 0 (DTP) to 1 (backprop).
    alpha: float = option(0.5, least=0, most=1)
    schedule: Schedule = "sequential"
    first_target: Literal["penultimate", "output"] = "output"
    output_loss: Literal["mse", "task"] = "mse"
    beta: float = 1.0
