"""Rules that take labels, a second pass or a second network in place of errors."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dtp.algorithms.options.alignment import DFAOptions
from dtp.algorithms.options.base import AlgorithmOptions, OptimizerName, rule
from dtp.fields import option


@rule(
    "drtp",
    "drtp:DRTP",
    "direct random target projection: labels in place of errors (Frenkel et al. 2021)",
    family="Labels, second passes, pairs of states",
)
@dataclass
class DRTPOptions(DFAOptions):
    """Direct random target projection: fixed random maps from the label to each hidden layer."""

    search_origin: ClassVar[str] = "Ours: no published domain; around the values of the presets."
    optimizer: OptimizerName = option("sgd", search="sgd")
    lr: float = option(0.05, search={"log-uniform": [0.001, 0.2]})
    momentum: float = option(0.9, search={"choice": [0.0, 0.9]})
    weight_decay: float = option(1e-4, search=0.0)
    lr_schedule: Literal["constant", "cosine", "step"] = option("cosine", search={"choice": ["constant", "cosine"]})
    # Without effect, for no target is a step along a gradient: always 1.
    beta: float = 1.0
    # The output layer learns the task loss.
    output_loss: Literal["task"] = "task"
    # What the fixed maps project: the label (the rule), the sign of the output error (sDFA), or nothing, by which
    # hidden layers stay as they are, but for --weight-decay: the control that every figure of this rule needs.
    projected: Literal["label", "error-sign", "nothing"] = "label"
    # Distribution of the fixed maps: He's by the units that they lead to (as the authors' code), PyTorch's own of a
    # linear layer, or Glorot's, uniform or normal.
    backward_init: Literal["kaiming", "default", "xavier", "xavier-normal"] = "kaiming"


@rule(
    "pepita",
    "pepita:PEPITA",
    "a second forward pass in place of the backward one (Dellaferrera, Kreiman 2022)",
    family="Labels, second passes, pairs of states",
)
@dataclass
class PEPITAOptions(AlgorithmOptions):
    """Two forward passes, the second with the error added to the image."""

    search_origin: ClassVar[str] = "Ours: no published domain; around the values of the authors' code."
    optimizer: OptimizerName = option("sgd", search="sgd")
    lr: float = option(0.05, search={"log-uniform": [0.003, 1.0]})
    momentum: float = option(0.9, search={"choice": [0.0, 0.9]})
    weight_decay: float = option(0.0, search=0.0)
    lr_schedule: Literal["constant", "cosine", "step"] = option("constant", search="constant")
    # Scale of the fixed map from the error to the image, above 0: uniform within this times sqrt(6 / pixels).
    input_scale: float = option(0.05, above=0, search={"log-uniform": [0.01, 1.0]})
    # Update of a convolution over the positions that share its weights: their mean (as published), or their sum divided
    # by the square root of their number, or their sum.
    positions: Literal["mean", "root", "sum"] = "mean"


@rule(
    "ccl",
    "ccl:CCL",
    "counter-current learning: a feedback network that reads the label (Kao, Hariharan 2024)",
    family="Labels, second passes, pairs of states",
)
@dataclass
class CCLOptions(AlgorithmOptions):
    """Two networks that run against each other: images go up in one, classes go down in the other."""

    search_origin: ClassVar[str] = "Ours: wider than the authors' domain (rates 0.2 to 2, clipping at 0.5 or 1)."
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    optimizer: OptimizerName = option("sgd", search="sgd")
    lr: float = option(1.0, search={"log-uniform": [0.1, 2.0]})
    momentum: float = option(0.0, search={"choice": [0.0, 0.9]})
    weight_decay: float = option(0.0, search=0.0)
    lr_schedule: Literal["constant", "cosine", "step"] = option("constant", search={"choice": ["constant", "cosine"]})
    # What activations and class signals are compared by: inner products (inner, the code for fully connected networks),
    # or cosines, with the decorrelation of images and of classes (cosine, for convolutions; needs --decorrelation).
    similarity: Literal["inner", "cosine"] = "inner"
    # Weight of the comparison, above 0.
    correlation: float = option(0.5, above=0, search={"log-uniform": [0.1, 2.0]})
    # Weight of the decorrelation with --similarity cosine, 0 or more. It pushes images of one class apart as well.
    decorrelation: float = option(0.5, least=0)
    # Leave images out of the hidden layers' losses whose class has a probability above 0.9.
    flooding: bool = False
    # Subtract from the gradient of each weight its mean over all but the output dimension.
    centralise: bool = False
    # Clip the norm of the gradient of each layer, forward and feedback, to this value; 0 for none. --clip-norm clips
    # that of each whole network, as published.
    layer_clip: float = option(1.0, least=0, search={"choice": [0.3, 0.5, 1.0]})
    # Batches over which all losses rise to their full weight, 0 or more.
    loss_warmup: int = option(0, least=0)
    # Whether the feedback network learns; without, its random features are the control.
    train_feedback: bool = True


@rule(
    "dualprop",
    "dualprop:DualProp",
    "dual propagation: two states of each unit (Høier et al. 2023, 2024)",
    family="Labels, second passes, pairs of states",
)
@dataclass
class DualPropOptions(AlgorithmOptions):
    """Dual propagation: the mean of a unit's two states is its activity, their difference its error."""

    # Which form: that of the ICML 2024 paper, derived from a Lagrangian (lagrangian), or that of ICML 2023 (dyadic).
    # They differ in which state has which share of the feedback, and are the same for --mix 0.5 and small --nudge.
    form: Literal["lagrangian", "dyadic"] = "lagrangian"
    # Weight alpha of the first state in the mean, from 0 to 1.
    mix: float = option(0.5, least=0, most=1)
    # Step beta of the output states along the loss gradient, above 0. Large steps depart from backprop; float32 rounds
    # those below 1e-4 away.
    nudge: float = option(0.01, above=0)
    # Order of the updates: from the top down (bw), where one sweep reaches all layers; from the bottom up (fw, as in
    # the code of 2024), where feedback comes down one layer in each; or down, and then up and down (fwbw).
    order: Literal["bw", "fw", "fwbw"] = "bw"
    # Sweeps, at least 1; fw needs as many as the network has layers.
    sweeps: int = option(1, least=1)
    # Weights of the feedback: the forward ones (transpose), or others that take the same steps and decay with them by
    # --weight-decay (kolen-pollack, of the ICML 2023 paper).
    backward: Literal["transpose", "kolen-pollack"] = option("transpose", before="transpose")
    # Distribution of those others at first: PyTorch's own of the layer, or Glorot's, uniform or normal.
    backward_init: Literal["default", "xavier", "xavier-normal"] = option("default", before="default")
