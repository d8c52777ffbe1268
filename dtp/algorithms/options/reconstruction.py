"""Rules that learn by difference reconstruction (Meulemans et al. 2020)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dtp.algorithms.options.base import OptimizerName, TargetPropagationOptions, rule
from dtp.fields import option


@dataclass
class MeulemansOptions(TargetPropagationOptions):
    """What the rules of Meulemans et al. 2020 share."""

    search_origin: ClassVar[str] = (
        "Ours: no published domain; around the values of Meulemans et al. 2020 that the presets hold."
    )
    optimizer: OptimizerName = option("adam", search="adam")
    lr: float = option(3e-4, search={"log-uniform": [1e-5, 1e-2]})
    momentum: float = option(0.9, search={"choice": [0.9, 0.99]})
    beta2: float = option(0.0, search={"choice": [0.9, 0.99, 0.999]})
    eps: list[float] = option([], search={"log-uniform": [1e-8, 1e-4]})
    weight_decay: float = option(0.0, search=0.0)
    lr_schedule: Literal["constant", "cosine", "step"] = option("constant", search="constant")
    beta: float = option(0.1, search={"log-uniform": [0.01, 0.3]})
    local_loss_scale: float = option(2.0, search=2.0)
    feedback_optimizer: OptimizerName = option("adam", search="adam")
    feedback_lr: list[float] = option([1e-3], search={"log-uniform": [1e-5, 1e-2]})
    feedback_momentum: float = option(0.9, search={"choice": [0.9, 0.99]})
    feedback_beta2: float = option(0.0, search={"choice": [0.9, 0.99, 0.999]})
    feedback_eps: float = option(0.0, search={"log-uniform": [1e-8, 1e-4]})
    feedback_weight_decay: float = option(0.0, search={"choice": [0.0, 1e-6, 1e-4]})
    noise: list[float] = option([0.08], search={"log-uniform": [0.01, 0.3]})


@rule(
    "drl",
    "drl:DRL",
    "DTP with the difference reconstruction loss, DTPDRL (Meulemans et al. 2020)",
    preset={"activation": "tanh", "lr": 0.003},
    family="Difference reconstruction",
)
@dataclass
class DRLOptions(MeulemansOptions):
    """DTP whose feedback layers learn to reconstruct together, along the chain of differences from the output."""


@dataclass
class DDTPOptions(MeulemansOptions):
    """What the rules with maps straight from the output share."""

    # First feedback weights: random, for there is no forward weight that they could be the transpose of.
    feedback_init: Literal["random"] = "random"
    # Without effect: maps from the output pass by residual units and pooling.
    residual_gate: Literal["forward"] = "forward"
    unpool: Literal["add"] = "add"


@rule(
    "ddtp-linear",
    "direct:DDTPLinear",
    "targets straight from the output by linear maps (Meulemans et al. 2020)",
    preset={"activation": "tanh", "lr": 0.003},
    family="Difference reconstruction",
)
@dataclass
class DDTPLinearOptions(DDTPOptions):
    """Direct DTP: one linear map from the output to each hidden layer, trained with the difference reconstruction."""


@rule(
    "ddtp-rhl",
    "direct:DDTPRHL",
    "the same through a random hidden layer (Meulemans et al. 2020)",
    preset={"activation": "tanh", "lr": 0.003},
    family="Difference reconstruction",
)
@dataclass
class DDTPRHLOptions(DDTPOptions):
    """Direct DTP through one random hidden layer, shared by all maps and never trained."""

    # Units of the random hidden layer, at least 1.
    hidden_feedback: int = option(1024, least=1)


@rule(
    "ddtp-control",
    "direct:DDTPControl",
    "ddtp-linear trained without the difference (Meulemans et al. 2020)",
    family="Difference reconstruction",
)
@dataclass
class DDTPControlOptions(DDTPOptions):
    """The control of ddtp-linear: the same maps, trained to reconstruct by themselves."""
