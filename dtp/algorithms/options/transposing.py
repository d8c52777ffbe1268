"""Rules whose feedback learns to transpose."""

from dataclasses import dataclass, field
from typing import Literal

from dtp.algorithms.options.base import OptimizerName, TargetPropagationOptions, rule
from dtp.fields import Iterations, option


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
    # Nodes of the quadrature over the noise with --probes expected, 1 to 200; 1 is the limit of small noise. Variances
    # take all of them, means of slopes half, for the same precision.
    probe_nodes: int = option(5, least=1, most=200, before=5)
    # What a nonlinearity comes back through in the feedback: itself, at what the feedback is given (own, as published),
    # or its slope in the clean pass (clean), with which a transposed feedback layer is exactly the adjoint, but for
    # normalisations, whose statistics stay fixed.
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
