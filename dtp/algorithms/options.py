"""Command-line options of the learning rules. Imports no torch, so that ``--help`` is quick."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class AlgorithmOptions:
    """The forward weights: optimizer and learning-rate schedule."""

    # Optimizer of the forward weights.
    optimizer: Literal["sgd", "adam", "rmsprop"] = "sgd"
    # Learning rate of the forward weights, above 0. For rules with --beta the backprop equivalent is beta times this.
    lr: float = 0.05
    # Momentum of SGD and RMSprop, from 0 to below 1; for Adam it is the first beta.
    momentum: float = 0.9
    # L2 penalty added to the gradient of the forward weights, 0 or more.
    weight_decay: float = 1e-4
    # Schedule of --lr, stepped once per epoch; the feedback learning rates stay constant.
    lr_schedule: Literal["constant", "cosine", "step"] = "cosine"
    # Cosine: epochs from the highest to the lowest rate, then it rises again. Step: epochs between two drops.
    # 0 means --max-epochs.
    lr_period: int = 0
    # Lowest learning rate of the cosine schedule.
    lr_min: float = 1e-5
    # Factor of each drop of the step schedule, from 0 to 1.
    lr_gamma: float = 0.1
    # Clip the norm of the whole forward gradient to this value; 0 for none.
    clip_norm: float = 0.0


@dataclass
class TargetPropagationOptions(AlgorithmOptions):
    """Targets and feedback weights. Lists take one value for all trained feedback layers, or one for each."""

    # Step of the output target along the loss gradient, above 0: t_N = s_N - beta * d loss / d s_N, per sample.
    beta: float = 0.7
    # Optimizer of the feedback weights.
    feedback_optimizer: Literal["sgd", "adam"] = "sgd"
    # Learning rate of each feedback layer, n = 2..N, above 0. Left out: 1e-3 / (noise^2 * positions of the
    # layer) for sgd, 3e-4 for adam.
    feedback_lr: list[float] = field(default_factory=list)
    # Momentum of the feedback SGD, from 0 to below 1; for Adam it is the first beta.
    feedback_momentum: float = 0.9
    # L2 penalty on the feedback weights, 0 or more.
    feedback_weight_decay: float = 0.0
    # Feedback iterations of each feedback layer per batch, 0 or more; 0 leaves its weights as they are.
    feedback_iterations: list[int] = field(default_factory=lambda: [1])
    # Noise scale (standard deviation) of each feedback layer, above 0.
    noise: list[float] = field(default_factory=lambda: [0.1])
    # Noise samples averaged in each feedback iteration, at least 1.
    noise_samples: int = 1
    # First feedback weights: PyTorch's own random ones, or the transpose of the forward weights.
    feedback_init: Literal["random", "symmetric"] = "random"
    # Order of the two phases: feedback first in every batch (sequential), both from the same activations and old
    # weights (parallel), or whole epochs of one and the other in turn (alternating; an epoch is one pass of either).
    schedule: Literal["sequential", "parallel", "alternating"] = "sequential"
    # What the last layer learns: squared distance to its target (mse) or the task's cross-entropy (task).
    output_loss: Literal["mse", "task"] = "mse"
    # Batches at the start of a run that train the feedback weights alone, 0 or more.
    feedback_warmup: int = 0
    # How the feedback phase is computed: from the loss as it is written (literal), by exact algebra for less work
    # wherever it holds (reduced), or that as a CUDA graph (graph); auto takes the fastest that the device has.
    engine: Literal["auto", "literal", "reduced", "graph"] = "auto"
    # Memory in MiB that the feedback iterations of each layer may take when several are prepared at once; 0 is 64 on a
    # CPU and 512 on a GPU, where all layers have theirs at the same time.
    feedback_memory: int = 0
    # How a maximum is put back by the feedback: added where pooling windows overlap (the adjoint), or written over.
    unpool: Literal["add", "write"] = "add"


@dataclass
class DTPOptions(TargetPropagationOptions):
    """DTP with L-DRL (Ernoult et al. 2022): feedback Jacobians are trained to be transposes of the forward ones."""

    feedback_iterations: list[int] = field(default_factory=lambda: [20])
    noise: list[float] = field(default_factory=lambda: [0.2])
    # Max-pooling positions of the noisy pass: its own (noisy, as published) or those of the clean pass (fixed, as the
    # theory assumes; its feedback weights align far better).
    routing: Literal["noisy", "fixed"] = "noisy"
    # Relative distance of the feedback layer's Jacobian to the transpose of the forward layer's, estimated from the
    # noise of each iteration, at which a layer takes no more feedback iterations in this batch; 0 for never. Where
    # layers have max-pooling it needs --routing fixed.
    feedback_stop_distance: float = 0.0
    # Scale of the L-DRL loss: the published code's (code) or the paper's, divided by 2 noise^2 (paper), which needs
    # feedback learning rates that are smaller by that factor.
    ldrl_scale: Literal["code", "paper"] = "code"


@dataclass
class ParallelDTPOptions(DTPOptions):
    """DTP with L-DRL in one feedback step per batch: many noise samples instead of many iterations, and Adam."""

    optimizer: Literal["sgd", "adam", "rmsprop"] = "adam"
    lr: float = 3e-4
    lr_schedule: Literal["constant", "cosine", "step"] = "constant"
    feedback_optimizer: Literal["sgd", "adam"] = "adam"
    feedback_lr: list[float] = field(default_factory=lambda: [3e-4])
    feedback_iterations: list[int] = field(default_factory=lambda: [1])
    noise_samples: int = 10


@dataclass
class VanillaDTPOptions(TargetPropagationOptions):
    """Difference target propagation (Lee et al. 2015): an inverse corrected by its own error on the activation."""

    optimizer: Literal["sgd", "adam", "rmsprop"] = "adam"
    lr: float = 3e-4
    weight_decay: float = 0.0
    lr_schedule: Literal["constant", "cosine", "step"] = "constant"
    feedback_optimizer: Literal["sgd", "adam"] = "adam"
    feedback_lr: list[float] = field(default_factory=lambda: [1e-3])
    schedule: Literal["sequential", "parallel", "alternating"] = "alternating"
    output_loss: Literal["mse", "task"] = "task"
    # Layer whose target comes from the loss gradient: the last but one, through the output layer (Lee), or the output.
    first_target: Literal["penultimate", "output"] = "penultimate"


@dataclass
class TPOptions(VanillaDTPOptions):
    """Target propagation: the target itself goes through the feedback layer, which is trained to invert its layer."""

    schedule: Literal["sequential", "parallel", "alternating"] = "sequential"
    first_target: Literal["penultimate", "output"] = "output"
