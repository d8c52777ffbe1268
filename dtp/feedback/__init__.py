"""Feedback layers made from forward layers, the losses that train them, and the loop that does."""

from dtp.feedback.context import AffineContext, Context, ShapeContext, SwitchesContext
from dtp.feedback.layers import (
    FeedbackLayer,
    FeedbackNetwork,
    derive_feedback,
    forward_with_context,
    layer_operations,
    require_known_operations,
)
from dtp.feedback.loop import FeedbackProblem, train_feedback
from dtp.feedback.losses import ldrl_loss, per_sample_dot, reconstruction_loss
from dtp.feedback.noise import NoiseStreams
from dtp.feedback.operations import (
    Elementwise,
    FeedbackOperation,
    FeedbackSettings,
    Routing,
    register_feedback,
)

__all__ = [
    "AffineContext",
    "Context",
    "Elementwise",
    "FeedbackLayer",
    "FeedbackNetwork",
    "FeedbackOperation",
    "FeedbackProblem",
    "FeedbackSettings",
    "NoiseStreams",
    "Routing",
    "ShapeContext",
    "SwitchesContext",
    "derive_feedback",
    "forward_with_context",
    "ldrl_loss",
    "layer_operations",
    "per_sample_dot",
    "reconstruction_loss",
    "register_feedback",
    "require_known_operations",
    "train_feedback",
]
