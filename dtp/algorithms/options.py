"""The learning rules: name, class, one line, command-line options. Imports no torch, so that ``--help`` is quick.

This is where a rule is registered: :func:`rule` before the dataclass of its options.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dtp.fields import Iterations, option
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
Schedule = Literal["sequential", "parallel", "alternating"]


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
    # L2 penalty added to the gradient of the forward weights, 0 or more.
    weight_decay: float = option(1e-4, least=0)
    # Schedule of --lr, stepped once per epoch; the feedback learning rates stay constant.
    lr_schedule: Literal["constant", "cosine", "step"] = "cosine"
    # Cosine: epochs from the highest to the lowest rate, then it rises again. Step: epochs between two drops.
    # 0 means --max-epochs.
    lr_period: int = option(0, least=0, unlimited=True)
    # Epochs after which the step schedule drops, ascending, in place of every --lr-period.
    lr_milestones: list[int] = option([], least=1, unlimited=True, before=[])
    # Lowest learning rate of the cosine schedule.
    lr_min: float = option(1e-5, least=0)
    # Factor of each drop of the step schedule, above 0 and up to 1.
    lr_gamma: float = option(0.1, above=0, most=1)
    # Clip the norm of the whole forward gradient to this value; 0 for none.
    clip_norm: float = option(0.0, least=0)


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
    # First feedback weights: PyTorch's own random ones, or the transpose of the forward weights.
    feedback_init: Literal["random", "symmetric"] = "random"
    # Whether each step of the forward weights also moves the feedback weights, by its transpose (Kolen and Pollack
    # 1994), so that those follow between their own iterations (kolen-pollack), or not (no, as published).
    feedback_tracking: Literal["no", "kolen-pollack"] = option("no", before="no")
    # Order of the two phases: feedback first in every batch (sequential), both from the same activations and old
    # weights (parallel), or whole epochs of one and the other in turn (alternating; an epoch is one pass of either).
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


@rule("dtp", "dtp:DTP", "DTP with L-DRL (Ernoult et al. 2022)", family="Feedback learns to transpose")
@dataclass
class DTPOptions(TargetPropagationOptions):
    """DTP with L-DRL (Ernoult et al. 2022): feedback Jacobians are trained to be transposes of the forward ones."""

    # Feedback iterations of each feedback layer per batch, 0 or more; 0 leaves its weights as they are. With --probes
    # expected also inf: the weights at which the mean loss of the batch is least.
    feedback_iterations: list[Iterations] = field(default_factory=lambda: [20])
    noise: list[float] = field(default_factory=lambda: [0.2])
    # Noise probes of the feedback phase: drawn anew in each iteration (sampled, as published), or the mean over
    # infinitely many of them, known in closed form, for about the price of backprop (expected). That is a simulation of
    # the rule in the limit of many probes: it looks at the forward weights, which sampled probes only see the effect
    # of. Layers with --routing noisy and max-pooling then draw their first term with --noise-samples once per batch.
    probes: Literal["sampled", "expected"] = option("sampled", before="sampled")
    # Nodes of the quadrature over the noise with --probes expected, 1 to 200; 1 is the limit of small noise.
    probe_nodes: int = option(5, least=1, most=200, before=5)
    # What a nonlinearity comes back through in the feedback: itself, at what the feedback is given (own, as published),
    # or its slope in the clean pass (clean), with which a transposed feedback layer is exactly the adjoint.
    feedback_slope: Literal["own", "clean"] = option("own", before="own")
    # Max-pooling positions of the noisy pass: its own (noisy, as published) or those of the clean pass (fixed, as the
    # theory assumes; its feedback weights align far better).
    routing: Literal["noisy", "fixed"] = "noisy"
    # Relative distance of the feedback layer's Jacobian to the transpose of the forward layer's, estimated from the
    # noise of each iteration, at which a layer takes no more feedback iterations in this batch; 0 for never. Where
    # layers have max-pooling it needs --routing fixed.
    feedback_stop_distance: float = option(0.0, least=0)
    # Scale of the L-DRL loss: the published code's (code) or the paper's, divided by 2 noise^2 (paper), which needs
    # feedback learning rates that are smaller by that factor.
    ldrl_scale: Literal["code", "paper"] = "code"


@rule(
    "parallel-dtp",
    "dtp:ParallelDTP",
    "DTP with L-DRL, one feedback step per batch on many noise samples",
    family="Feedback learns to transpose",
)
@dataclass
class ParallelDTPOptions(DTPOptions):
    """DTP with L-DRL in one feedback step per batch: many noise samples instead of many iterations, and Adam."""

    optimizer: OptimizerName = "adam"
    lr: float = 3e-4
    lr_schedule: Literal["constant", "cosine", "step"] = "constant"
    feedback_optimizer: OptimizerName = "adam"
    feedback_lr: list[float] = field(default_factory=lambda: [3e-4])
    feedback_iterations: list[Iterations] = field(default_factory=lambda: [1])
    noise_samples: int = 10


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
    # Maps to convolutional layers: a full matrix (dense), or the error repeated over space and sent through a random
    # transposed convolution (broadcast), which takes far less memory.
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
    # Gain of the feedback into each hidden layer, above 0; small gains come near to backprop.
    gain: float = option(0.5, above=0, search={"log-uniform": [0.05, 0.5]})
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


@dataclass
class SingleLayerOptions(AlgorithmOptions):
    """One linear layer (``--model mlp --widths``, without values), every weight by what its two sides do."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    lr_schedule: Literal["constant", "cosine", "step"] = "constant"


@rule("hebb", "single_layer:Hebb", "Hebbian learning of one layer, from labels or by itself (Hebb 1949)")
@dataclass
class HebbOptions(SingleLayerOptions):
    """Hebbian learning of one layer."""

    search_origin: ClassVar[str] = "Ours: no published domain; rates over three decades, and both forms of the rule."
    tasks: ClassVar[tuple[str, ...]] = ("classification", "clustering")
    optimizer: OptimizerName = option("sgd", search="sgd")
    lr: float = option(0.01, search={"log-uniform": [1e-4, 0.1]})
    # What a weight grows with: the product of its two sides (plain), which may grow without bound, or of their
    # differences from running means (covariance).
    hebb_form: Literal["plain", "covariance"] = option("covariance", search={"choice": ["plain", "covariance"]})
    # Weight of each batch in those running means, above 0 and up to 1.
    mean_rate: float = option(0.01, above=0, most=1, search={"log-uniform": [1e-3, 0.1]})
    # Bring the weights of each unit, its bias among them, to length 1 after every step.
    normalise_rows: bool = False
    # Units under --task clustering: they share one unit of activity by softmax (competing), or each is its own weighted
    # sum (linear), and all learn the same direction.
    units: Literal["competing", "linear"] = "competing"


@rule("delta", "single_layer:Delta", "the delta rule of one layer (Widrow, Hoff 1960)")
@dataclass
class DeltaOptions(SingleLayerOptions):
    """The delta rule."""

    search_origin: ClassVar[str] = (
        "Ours: no published domain; rates over three decades, with the slope of the units and without."
    )
    optimizer: OptimizerName = option("sgd", search="sgd")
    lr: float = option(0.05, search={"log-uniform": [1e-3, 1.0]})
    # Multiply each error by the slope of its unit: as the loss has it (auto, which is backprop), always or never.
    slope: Literal["auto", "yes", "no"] = option("auto", search={"choice": ["auto", "yes", "no"]})


@rule("competitive", "single_layer:Competitive", "competitive learning, the winner takes all (Rumelhart, Zipser 1985)")
@dataclass
class CompetitiveOptions(SingleLayerOptions):
    """Prototypes that compete for images, and move towards those that they win."""

    search_origin: ClassVar[str] = (
        "Ours: no published domain; the rate, and what keeps units from never winning. Not who wins (--winner): trials "
        "are judged by the loss, which is another one with each."
    )
    tasks: ClassVar[tuple[str, ...]] = ("clustering",)
    # Prototypes move by fractions of their distance to images.
    optimizer: Literal["sgd"] = "sgd"
    # Fraction of the way to the images won, above 0 and up to 1.
    lr: float = option(0.5, above=0, most=1, search={"log-uniform": [0.01, 1.0]})
    # Fraction for each layer, of which there is one, in place of --lr.
    layer_lr: list[float] = option([], above=0, most=1)
    # Who wins an image: the prototype at the least distance to it, or of the largest product with it.
    winner: Literal["distance", "product"] = "distance"
    # How far a prototype moves: by --lr times the mean over the batch, where images lost count as no movement (batch);
    # times the mean over the images of the batch that it won (won); or times the sum over these, divided by the number
    # of images that it ever won (count): with --lr 1 it then is the mean of them all, which is online k-means.
    pull: Literal["batch", "won", "count"] = "batch"
    # Take the images of a batch one after the other, each with the prototypes as the one before has left them; --pull
    # batch and won are the same then. One device only, and slow.
    one_by_one: bool = False
    # Bring each prototype to length 1 after every step.
    normalise_rows: bool = False
    # First prototypes: random images of the first batch, or the first weights of the network.
    first_prototypes: Literal["images", "weights"] = "images"
    # Head start of a prototype that has won nothing of late, in squared distance (twice a product), 0 or more; one that
    # wins an equal share has none, one that wins more a handicap.
    conscience: float = option(0.0, least=0, search={"uniform": [0.0, 10.0]})
    # Put a prototype onto a random image once its share of the images won falls below this part of an equal share;
    # from 0, for never, to below 1.
    revive_below: float = option(0.01, least=0, below=1, search={"choice": [0.0, 0.01, 0.1]})
    # Weight of each batch in the running shares of the images won, above 0 and up to 1.
    share_rate: float = option(0.02, above=0, most=1)


@rule("dtp-dae", "denoising_autoencoder:DenoisingAutoencoder", "denoising auto-encoder by DTP, tied weights (Lee 2018)")
@dataclass
class DenoisingAutoencoderOptions(TargetOptions):
    """Denoising auto-encoder with tied weights (``--model tied-autoencoder``)."""

    search_origin: ClassVar[str] = "Ours: no published domain; around the values of Lee 2018 that the preset holds."
    tasks: ClassVar[tuple[str, ...]] = ("autoencoder",)
    loss: Literal["squared"] = "squared"
    optimizer: OptimizerName = "lee-rmsprop"
    lr: float = option(1e-3, search={"log-uniform": [1e-4, 1e-2]})
    weight_decay: float = 0.0
    lr_schedule: Literal["constant", "cosine", "step"] = "constant"
    # Without effect, for the first target is the image itself: always 1.
    beta: float = 1.0
    output_loss: Literal["mse"] = "mse"
    local_loss_scale: float = 2.0
    # Standard deviation of the noise on the images that the encoder learns from, as normalised, 0 or more.
    pixel_noise: float = option(0.3, least=0, search={"uniform": [0.0, 0.5]})
    # Standard deviation of the noise on the hidden units that the decoder sees, 0 or more.
    hidden_noise: float = option(0.3, least=0, search={"uniform": [0.0, 0.5]})


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


@dataclass
class ControlOptions(TargetPropagationOptions):
    """Deep feedback control: the controller, and how its maps to the layers, n = 1..N, learn."""

    optimizer: OptimizerName = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    lr_schedule: Literal["constant", "cosine", "step"] = "constant"
    beta: float = 0.1
    output_loss: Literal["mse"] = "mse"
    local_loss_scale: float = 2.0
    feedback_optimizer: OptimizerName = "adam"
    feedback_lr: list[float] = field(default_factory=lambda: [1e-3])
    feedback_weight_decay: float = 1e-3
    # Standard deviation of the noise on the feedback into each layer, 0 or more.
    noise: list[float] = field(default_factory=lambda: [0.01])
    # First feedback weights: random, the output layer's the identity; or transposed products of the forward weights
    # above (symmetric), which with --feedback-iterations 0 is the published fixed feedback.
    feedback_init: Literal["random", "symmetric"] = "random"
    # Epochs after each epoch of the forward weights that train the feedback weights alone, 0 or more; they count
    # towards --max-epochs. With 0, and no alternating schedule, every batch trains both.
    extra_feedback_epochs: int = 0
    # Without effect: maps from the output pass by residual units and pooling.
    residual_gate: Literal["forward"] = "forward"
    unpool: Literal["add"] = "add"
    # Leak of the controller while the forward weights learn, above 0: at rest the error is alpha times the control.
    alpha: float = option(1e-3, above=0)
    # The same while the feedback weights learn, 0 or more.
    feedback_alpha: float = option(0.6, least=0)
    # Proportional part of the control while the feedback weights learn, 0 or more.
    feedback_proportional: float = option(0.15, least=0)
    # Step of the simulation in which the feedback weights learn, above 0; this and all times are in units of the
    # controller's own time constant.
    feedback_time_step: float = option(0.002, above=0)
    # Times of that simulation, the start among them, at least 3.
    feedback_time_steps: int = option(50, least=3)
    # Time constant of the units in it, at least its step.
    feedback_voltage_time: float = option(0.006, above=0)
    # Time constant of the feedback that they receive in it, at least its step; 0 is the step itself.
    feedback_apical_time: float = option(0.3, least=0)
    # Least standard deviation by whose square the feedback's gradients are divided, above 0; as in the authors' code.
    noise_floor: float = option(0.01, above=0)
    # Learning rates of the feedback weights while they alone are trained at the start; left out: --feedback-lr.
    warmup_feedback_lr: list[float] = option([], least=0)
    # Standard deviations of the noise at that time; left out: --noise.
    warmup_noise: list[float] = option([], least=0)
    # Clip the norm of each weight's own gradient, forward and feedback, to this value; 0 for none.
    clip_each: float = option(0.0, least=0)
    # Residual, relative to the output's length, below which an image counts as settled, 0 or more.
    settling_tolerance: float = option(1e-5, least=0)
    # Leave out images that have not settled, or whose error is still above a quarter of what it was.
    skip_unsettled: bool = False


@dataclass
class DynamicControlOptions(ControlOptions):
    """The dynamics of the network under control."""

    # Step of the simulation in which the forward weights learn, above 0.
    time_step: float = option(0.02, above=0)
    # Times of that simulation, the start among them, at least 3.
    time_steps: int = option(300, least=3)
    # Time constant of the units, at least the step.
    voltage_time: float = option(0.2, above=0)
    # Proportional part of the control, 0 or more.
    proportional: float = option(2.0, least=0)
    # Units hear the control of the present step, not that of the one before.
    proactive: bool = False
    # What leaks: the whole control (total, as in the authors' code) or its integral part (integral, as in the paper).
    leak: Literal["total", "integral"] = "total"


@rule(
    "dfc",
    "feedback_control:DFC",
    "deep feedback control, learning all along the way (Meulemans et al. 2021)",
    family="Feedback control",
)
@dataclass
class DFCOptions(DynamicControlOptions):
    """Deep feedback control: forward weights learn from the mean over the times of the simulation."""


@rule(
    "dfc-ss",
    "feedback_control:DFCSS",
    "the same, learning from its steady state (Meulemans et al. 2021)",
    family="Feedback control",
)
@dataclass
class DFCSSOptions(DynamicControlOptions):
    """Deep feedback control at its steady state."""

    # How that is found: by a few iterations (iterate), or as the end of the simulation (dynamics, as published).
    steady_state: Literal["iterate", "dynamics"] = "iterate"
    # Most iterations, at least 1; fewer where all images have settled.
    settling_steps: int = option(5, least=1)


@rule(
    "dfc-ssa",
    "feedback_control:DFCSSA",
    "the same with the steady state linearised (Meulemans et al. 2021)",
    family="Feedback control",
)
@dataclass
class DFCSSAOptions(ControlOptions):
    """Deep feedback control at its linearised steady state: one small linear system for each image."""


@rule(
    "strong-dfc",
    "feedback_control:StrongDFC",
    "DFC with the label as target, strong control (Meulemans et al. 2022)",
    family="Feedback control",
)
@dataclass
class StrongDFCOptions(DFCSSOptions):
    """Deep feedback control whose output is led to the label itself."""

    # Without effect, for the target is the label itself: always 1.
    beta: float = 1.0
    # How the network under control is found: by a few iterations (iterate), as the end of a simulation (dynamics), or
    # by one with noise, from which forward and feedback weights learn at once (single-phase).
    steady_state: Literal["iterate", "dynamics", "single-phase"] = "iterate"
    settling_steps: int = 15
    # Target of the right class, above 0 and up to 1; the others share what is left.
    label_confidence: float = option(0.99, above=0, most=1)
    # Time constant of the filter of the noise in a single phase, at least the step.
    noise_time: float = option(0.07, above=0)
    # Time constant of the running mean that is taken off the control in a single phase, at least the step.
    filter_time: float = option(0.5, above=0)


# The rules of each family, in the order in which they are registered.
FAMILIES = {
    family: tuple(entry.name for entry in ALGORITHMS.entries.values() if entry.family == family)
    for family in FAMILY_NAMES
}
