"""Rules whose feedback does not learn, or mirrors the forward weights."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dtp.algorithms.options.base import AlgorithmOptions, OptimizerName, TargetOptions, rule
from dtp.fields import option


@rule(
    "fw-dtp",
    "fw_dtp:FWDTP",
    "DTP with feedback weights that are never trained (Shibuya et al. 2023)",
    family="Feedback does not learn",
)
@dataclass
class FWDTPOptions(TargetOptions):
    """Fixed-weight difference target propagation."""

    search_origin: ClassVar[str] = (
        "Ours: no published domain; around the example of Shibuya et al. 2023. The scale of the fixed weights reaches "
        "up to what networks without --standardise need."
    )
    optimizer: OptimizerName = option("sgd", search="sgd")
    lr: float = option(0.1, search={"log-uniform": [0.003, 1.0]})
    momentum: float = option(0.0, search=0.0)
    weight_decay: float = option(0.0, search=0.0)
    lr_schedule: Literal["constant", "cosine", "step"] = option("constant", search="constant")
    beta: float = option(0.04, search={"log-uniform": [0.01, 0.3]})
    local_loss_scale: float = option(2.0, search=2.0)
    # Distribution of the fixed feedback weights: uniform from -scale to scale, normal of that deviation, or an
    # orthogonal matrix times it.
    feedback_distribution: Literal["uniform", "normal", "orthogonal"] = option(
        "uniform", search={"choice": ["uniform", "normal", "orthogonal"]}
    )
    # Scale of that distribution, above 0. The published 1e-3 is for networks with --standardise; in others float32
    # rounds the targets of the lower layers away, and 0.1 to 1 serves.
    feedback_scale: float = option(1e-3, above=0, search={"log-uniform": [1e-3, 1.0]})
    # Standardise each hidden target over the batch, as the code does for networks with --standardise; auto does so
    # for such networks.
    standardise_targets: Literal["auto", "yes", "no"] = "auto"


@dataclass
class FeedbackAlignmentOptions(AlgorithmOptions):
    """Backprop with other weights in the backward pass."""

    # Distribution of the backward weights: PyTorch's own of the layer, or Glorot's, uniform or normal.
    backward_init: Literal["default", "xavier", "xavier-normal"] = "default"
    # Clamp each error that goes down into a layer, and each gradient of an affine operation's weights and biases, to
    # this absolute value, as biotorch does; 0 for no clamp.
    error_clamp: float = option(0.0, least=0)


rule(
    "fa",
    "feedback_alignment:FA",
    "feedback alignment: fixed random backward weights (Lillicrap et al. 2016)",
    family="Feedback does not learn",
)(FeedbackAlignmentOptions)


@rule(
    "dfa",
    "direct:DFA",
    "direct feedback alignment: errors straight from the output (Nokland 2016)",
    family="Feedback does not learn",
)
@dataclass
class DFAOptions(TargetOptions):
    """Direct feedback alignment: fixed random maps from the output error to each hidden layer."""

    lr_schedule: Literal["constant", "cosine", "step"] = "cosine"
    beta: float = 1.0
    # Maps to convolutional layers: a full matrix (dense), or the error repeated over space (broadcast), which takes far
    # less memory: sent through a random transposed convolution, or evenly to what the next layer averages.
    dfa_form: Literal["dense", "broadcast"] = "dense"
    # Distribution of the fixed maps: PyTorch's own of a linear layer (of the transposed convolution for broadcast
    # maps), or Glorot's, uniform or normal.
    backward_init: Literal["default", "xavier", "xavier-normal"] = "default"


rule(
    "usf",
    "feedback_alignment:USF",
    "signs of the forward weights, one scale (Moskovitz et al. 2018)",
    family="Feedback does not learn",
)(FeedbackAlignmentOptions)
rule(
    "brsf",
    "feedback_alignment:BRSF",
    "signs of the forward weights, sizes drawn for each batch (ditto)",
    preset={"lr": 0.05},
    family="Feedback does not learn",
)(FeedbackAlignmentOptions)
rule(
    "frsf",
    "feedback_alignment:FRSF",
    "signs of the forward weights, sizes drawn once (ditto)",
    family="Feedback does not learn",
)(FeedbackAlignmentOptions)
rule(
    "kp",
    "feedback_alignment:KolenPollack",
    "backward weights that learn as the forward do (Kolen, Pollack 1994)",
    family="Mirroring, settling, exact inverses",
)(FeedbackAlignmentOptions)


@rule(
    "wm",
    "feedback_alignment:WeightMirror",
    "backward weights that mirror responses to noise (Akrout et al. 2019)",
    family="Mirroring, settling, exact inverses",
)
@dataclass
class WeightMirrorOptions(FeedbackAlignmentOptions):
    """Backward weights that learn, in a phase of their own, from the layer's response to noise."""

    # Standard deviation of the noise, above 0.
    mirror_noise: float = option(0.1, above=0)
    # Rate at which backward weights go towards the estimate, above 0 and below 1, and decay by as much.
    mirror_lr: float = option(0.05, above=0, below=1)
    # Noise patterns of each mirror phase, at least 2.
    mirror_samples: int = option(128, least=2)
    # Mirror phases before the first batch, 0 or more.
    mirror_warmup: int = option(20, least=0)
