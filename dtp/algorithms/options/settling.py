"""Rules whose networks settle, and that of exact inverses."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dtp.algorithms.options.base import AlgorithmOptions, OptimizerName, TargetOptions, rule
from dtp.fields import option


@dataclass
class ContrastiveOptions(AlgorithmOptions):
    """Networks that settle with feedback, once freely and once with the label held at the output."""

    search_origin: ClassVar[str] = "Ours: no published domain; around the values of the presets."
    optimizer: OptimizerName = option("sgd", search="sgd")
    # The phases stand for this loss alone.
    loss: Literal["binary-cross-entropy"] = "binary-cross-entropy"
    weight_decay: float = option(0.0, search=0.0)
    momentum: float = option(0.0, search={"choice": [0.0, 0.9]})
    lr_schedule: Literal["constant", "cosine", "step"] = option("constant", search="constant")
    # Gain of the feedback into each hidden layer, above 0; small gains come near to backprop, where the settling
    # tolerance is small too: what a relaxation leaves counts 1 / gain times more in each layer further down.
    # A search tries 0.2 and more, with which three layers still follow backprop at the usual tolerance.
    gain: float = option(0.5, above=0, search={"log-uniform": [0.2, 0.5]})
    # Step of the relaxation of the units, above 0 and up to 1.
    relaxation: float = option(0.1, above=0, most=1, search={"uniform": [0.1, 0.5]})
    # Most steps of each relaxation, at least 1.
    settling_steps: int = option(100, least=1)
    # Largest change of a unit in a step at which a relaxation is taken as settled, 0 or more.
    settling_tolerance: float = option(1e-5, least=0)
    # How the free phase is computed: to rest with feedback (settle), or by one pass upwards without it (feedforward),
    # after which feedback is that of the difference to this pass.
    free_phase: Literal["settle", "feedforward"] = "settle"


@rule(
    "chl",
    "contrastive:CHL",
    "contrastive Hebbian learning (Movellan 1991; Xie and Seung 2003)",
    family="Mirroring, settling, exact inverses",
)
@dataclass
class CHLOptions(ContrastiveOptions):
    """Contrastive Hebbian learning."""

    lr: float = option(0.05, search={"log-uniform": [0.005, 0.5]})


@rule(
    "generec",
    "contrastive:GeneRec",
    "generalised recirculation (O'Reilly 1996)",
    family="Mirroring, settling, exact inverses",
)
@dataclass
class GeneRecOptions(ContrastiveOptions):
    """Generalised recirculation."""

    lr: float = option(0.1, search={"log-uniform": [0.005, 0.5]})
    # Feedback weights: the transposes of the forward ones, or fixed random ones of their own.
    feedback_weights: Literal["symmetric", "random"] = "symmetric"
    # Sender of the update: the free activity (plain), the mean of both (midpoint), or that made symmetric over both
    # directions, which equals chl where the feedback is symmetric (symmetrised).
    generec_form: Literal["plain", "midpoint", "symmetrised"] = option(
        "plain", search={"choice": ["plain", "midpoint", "symmetrised"]}
    )


@rule(
    "gait",
    "gait:GAIT",
    "GAIT-prop: targets through exact inverses (Ahmad et al. 2020; Dalm et al. 2021)",
    family="Mirroring, settling, exact inverses",
)
@dataclass
class GAITOptions(TargetOptions):
    """GAIT-prop for networks of invertible layers (--model square); nothing is learned in the feedback."""

    search_origin: ClassVar[str] = (
        "Ours: no published domain; around the values of Ahmad et al. 2020 and Dalm et al. 2021."
    )
    loss: Literal["cross-entropy", "squared", "binary-cross-entropy"] = "squared"
    optimizer: OptimizerName = option("adam", search="adam")
    lr: float = option(1e-4, search={"log-uniform": [1e-5, 1e-3]})
    momentum: float = option(0.9, search=0.9)
    beta2: float = option(0.99, search={"choice": [0.99, 0.999]})
    weight_decay: float = option(0.0, search=0.0)
    lr_schedule: Literal["constant", "cosine", "step"] = option("constant", search="constant")
    beta: float = 1.0
    # Step towards the target in each layer: of the same length for every sample (normalised, Dalm et al.), or a
    # fixed fraction of the way (original, Ahmad et al.), which needs --precision 64 in deep networks.
    gait_targets: Literal["normalised", "original"] = "normalised"
    # Length of that step (normalised) or fraction of the way (original), above 0; 0 is the usual one: 1e-4 normalised,
    # 1e-3 original. Small steps cross fewer kinks of leaky-relu, large ones are rounded less; 1e-3 suits sl-relu.
    gait_step: float = option(0.0, least=0)
    # Weight of the penalty on weights that are not orthogonal, 0 or more: it times the sum over i != j of (W^T W)_ij^2
    # of every square layer.
    orthogonality: float = option(0.1, least=0, search={"log-uniform": [1e-3, 1.0]})
    # What that penalty is on: overlaps alone, as above (Ahmad et al.), or the whole difference to the identity,
    # |W^T W - 1|^2, which holds lengths at 1 too (identity, the code of Dalm et al.).
    orthogonality_form: Literal["overlaps", "identity"] = option("overlaps", before="overlaps")
