"""What all rules share, and where they register. Imports no torch, so that ``--help`` is quick."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dtp.fields import option
from dtp.registry import Registry

# Rules that reports draw together, in the order of the reports; those that are in none come last.
FAMILY_NAMES = (
    "Backprop",
    "Feedback learns to transpose",
    "Feedback learns to invert",
    "Difference reconstruction",
    "Feedback does not learn",
    "Feedback control",
    "Mirroring, settling, exact inverses",
    "Labels, second passes, pairs of states",
)

ALGORITHMS = Registry("algo", "dtp.algorithms.base:Algorithm")
rule = ALGORITHMS.register

# torch's SGD, Adam and RMSprop; the centred RMSprop with momentum of Lee's code.
OptimizerName = Literal["sgd", "adam", "rmsprop", "lee-rmsprop"]
Schedule = Literal["sequential", "parallel", "alternating", "warmup"]


@dataclass
class AlgorithmOptions:
    """The forward weights: loss, optimizer and learning-rate schedule."""

    # What the rule can be used for (--task); the first is what --task auto means.
    tasks: ClassVar[tuple[str, ...]] = ("classification", "autoencoder")
    # Where the domain comes from that the rule's fields give a search (search=), unless a file of spaces/ gives it.
    search_origin: ClassVar[str] = "Ours: no published domain."

    # What the network is to minimise: cross-entropy of the softmax, half the squared distance of the output to the
    # one-hot label, or cross-entropy of a sigmoid for each class. For --task autoencoder half the squared distance of
    # the output's sigmoid to the pixels (the usual one), or cross-entropy of a sigmoid for each pixel.
    loss: Literal["cross-entropy", "squared", "binary-cross-entropy"] = "cross-entropy"
    # Optimizer of the forward weights; lee-rmsprop is the centred RMSprop of Lee's code, its epsilon within the root.
    optimizer: OptimizerName = "sgd"
    # Learning rate of the forward weights, above 0. For rules with --beta the backprop equivalent is beta times this.
    lr: float = option(0.05, above=0)
    # Learning rate of each layer that has trained weights, in place of --lr; left out: --lr for all.
    layer_lr: list[float] = option([], above=0)
    # Momentum of SGD and RMSprop, from 0 to below 1; for Adam it is the first beta.
    momentum: float = option(0.9, least=0, below=1)
    # Decay of the running mean of squared gradients: Adam's second beta, RMSprop's alpha; from 0 to below 1. 0 is the
    # usual one: 0.999 for adam, 0.99 for rmsprop, 0.95 for lee-rmsprop.
    beta2: float = option(0.0, least=0, below=1)
    # Epsilon of Adam and RMSprop, one for all layers or one for each that has trained weights. Left out: 1e-8, for
    # lee-rmsprop 1e-3.
    eps: list[float] = option([], above=0)
    # L2 penalty added to the gradient of the forward weights, 0 or more. Where backward weights take their steps too
    # (kp) both decay by the product of it and the learning rate.
    weight_decay: float = option(1e-4, least=0)
    # Schedule of --lr, stepped once per epoch; the feedback learning rates stay constant.
    lr_schedule: Literal["constant", "cosine", "step"] = "cosine"
    # Cosine: epochs from the highest to the lowest rate, then it rises again. Step: epochs between two drops.
    # 0 means --max-epochs.
    lr_period: int = option(0, least=0, untimed=True, unlimited=True)
    # Epochs after which the step schedule drops, ascending, in place of every --lr-period.
    lr_milestones: list[int] = option(
        [], least=1, untimed=True, unlimited=True, before=[], only_with={"lr_schedule": "step", "lr_period": 0}
    )
    # Lowest learning rate of the cosine schedule.
    lr_min: float = option(1e-5, least=0)
    # Factor of each drop of the step schedule, above 0 and up to 1.
    lr_gamma: float = option(0.1, above=0, most=1)
    # Clip the norm of the whole forward gradient to this value; 0 for none.
    clip_norm: float = option(0.0, least=0)
    # Clip the norm of each weight's own gradient, of feedback weights that are trained too, to this value; 0 for none.
    # Feedback weights that are put to their minimum (--feedback-iterations inf) take no step that it could clip.
    clip_each: float = option(0.0, least=0, before=0.0)


rule("bp", "bp:BP", "backpropagation, the baseline", family="Backprop")(AlgorithmOptions)


@dataclass
class TargetOptions(AlgorithmOptions):
    """Local targets."""

    # Step of the output target along the loss gradient, above 0: t_N = s_N - beta * d loss / d s_N, per sample.
    beta: float = option(0.7, above=0)
    # What the last layer learns: squared distance to its target (mse) or the task's cross-entropy (task).
    output_loss: Literal["mse", "task"] = "mse"
    # Factor of the local losses, above 0: 1 is half the squared distance to the target, 2 the whole (Lee, Bartunov,
    # Meulemans). With SGD it multiplies the learning rate.
    local_loss_scale: float = option(1.0, above=0)


@dataclass
class TargetPropagationOptions(TargetOptions):
    """Targets and feedback weights. Lists take one value for all trained feedback layers, or one for each."""

    # Optimizer of the feedback weights.
    feedback_optimizer: OptimizerName = "sgd"
    # Learning rate of each feedback layer, n = 2..N, above 0. Empty: 1e-3 / (noise^2 * positions of the layer) for sgd,
    # 3e-4 for other optimizers.
    feedback_lr: list[float] = option([], above=0)
    # Momentum of the feedback SGD and RMSprop, from 0 to below 1; for Adam it is the first beta.
    feedback_momentum: float = option(0.9, least=0, below=1)
    # As --beta2, for the feedback weights.
    feedback_beta2: float = option(0.0, least=0, below=1)
    # As --eps, for the feedback weights; 0 is the usual one.
    feedback_eps: float = option(0.0, least=0)
    # L2 penalty on the feedback weights, 0 or more.
    feedback_weight_decay: float = option(0.0, least=0)
    # Feedback iterations of each feedback layer per batch, 0 or more; 0 leaves its weights as they are.
    feedback_iterations: list[int] = option([1], least=0)
    # Noise scale (standard deviation) of each feedback layer, above 0; 0 is for rules that reconstruct (vanilla-dtp,
    # tp, sdtp, ao-sdtp, hybrid), without noise then.
    noise: list[float] = option([0.1], least=0)
    # Epochs e0 of the decay of the noise scale, sigma / (1 + e / e0) in epoch e = 1, 2, ... of the feedback weights;
    # 0 for none.
    noise_decay: float = option(0.0, least=0)
    # Noise samples averaged in each feedback iteration, at least 1.
    noise_samples: int = option(1, least=1)
    # First feedback weights: PyTorch's own random ones (random), those of Glorot or orthogonal ones as --init has them,
    # or the transpose of the forward weights (symmetric).
    feedback_init: Literal["random", "xavier", "xavier-normal", "orthogonal", "symmetric"] = "random"
    # Whether each step of the forward weights also moves the feedback weights, by its transpose (Kolen and Pollack
    # 1994), so that those follow between their own iterations (kolen-pollack), or not (no, as published).
    feedback_tracking: Literal["no", "kolen-pollack"] = option("no", before="no")
    # Order of the two phases: feedback first in every batch (sequential), both from the same activations and old
    # weights (parallel), whole epochs of one and the other in turn (alternating; an epoch is one pass of either), or
    # feedback in its warm-up alone (warmup).
    schedule: Schedule = "sequential"
    # Batches at the start of a run that train the feedback weights alone, 0 or more.
    feedback_warmup: int = option(0, least=0)
    # Epochs at the start of a run that train the feedback weights alone, 0 or more; they count towards --max-epochs.
    feedback_warmup_epochs: int = option(0, least=0)
    # Epochs after each other epoch that train the feedback weights alone, 0 or more; they count towards --max-epochs.
    extra_feedback_epochs: int = option(0, least=0)
    # How the feedback phase is computed: from the loss as it is written (literal), by exact algebra for less work
    # wherever it holds (reduced), or that as a CUDA graph (graph), of the whole batch where --capture has it so; auto
    # takes the fastest that the device has.
    engine: Literal["auto", "literal", "reduced", "graph"] = "auto"
    # Memory in MiB that the feedback iterations of each layer may take when several are prepared at once; 0 is 64 on a
    # CPU, and on a GPU, where all layers have theirs at the same time, 4096 or, if that is less, a sixteenth of it.
    feedback_memory: int = option(0, least=0, unit="MiB", unlimited=True)
    # What stands between the two affine maps of a residual unit's feedback: the forward nonlinearity's slope, as in
    # the adjoint (forward), the nonlinearity itself (feedback, as in the code of Ernoult et al.), or nothing (linear).
    residual_gate: Literal["forward", "feedback", "linear"] = "forward"
    # How a maximum is put back by the feedback: added where pooling windows overlap (the adjoint), or written over.
    unpool: Literal["add", "write"] = "add"
