"""Rules whose networks are under feedback control (Meulemans et al. 2021, 2022)."""

from dataclasses import dataclass, field
from typing import Literal

from dtp.algorithms.options.base import OptimizerName, TargetPropagationOptions, rule
from dtp.fields import option


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
    # towards --max-epochs. With 0, and --schedule sequential or parallel, every batch trains both.
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
    # Units hear the control of the present step in it, not that of the one before.
    feedback_proactive: bool = option(False, before=False)
    # Least standard deviation by whose square the feedback's gradients are divided, above 0; as in the authors' code.
    noise_floor: float = option(0.01, above=0)
    # Learning rates of the feedback weights while they alone are trained at the start; left out: --feedback-lr.
    warmup_feedback_lr: list[float] = option([], least=0)
    # Standard deviations of the noise at that time; left out: --noise, with its decay.
    warmup_noise: list[float] = option([], least=0)
    # Clip the norm of the gradients of all feedback weights together to this value, in place of --clip-each; 0 for
    # that. One rank must have them all: not with --feedback-parallel layer or hybrid.
    clip_feedback: float = option(0.0, least=0, before=0.0)
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
    "dfc:DFC",
    "deep feedback control, learning all along the way (Meulemans et al. 2021)",
    family="Feedback control",
)
@dataclass
class DFCOptions(DynamicControlOptions):
    """Deep feedback control: forward weights learn from the mean over the times of the simulation."""


@rule(
    "dfc-ss",
    "dfc:DFCSS",
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
    "dfc:DFCSSA",
    "the same with the steady state linearised (Meulemans et al. 2021)",
    family="Feedback control",
)
@dataclass
class DFCSSAOptions(ControlOptions):
    """Deep feedback control at its linearised steady state: one small linear system for each image."""


@rule(
    "strong-dfc",
    "dfc:StrongDFC",
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
