"""Feedback layers made from forward layers, the losses that train them, and the training loop."""

from dtp.feedback import adjoints as _adjoints  # noqa: F401 - registers the project's own modules
from dtp.feedback.context import AffineContext, Context, DrawnContext, ShapeContext, SlopeContext, SwitchesContext
from dtp.feedback.engine import FeedbackEngine
from dtp.feedback.expected import ExpectedLDRL, NotExpected
from dtp.feedback.layers import (
    FeedbackLayer,
    FeedbackNetwork,
    NotReducible,
    derive_feedback,
    forward_with_context,
    layer_operations,
    require_known_operations,
    require_own_weights,
    require_several_layers,
)
from dtp.feedback.loop import FeedbackProblem, FeedbackResult, train_feedback
from dtp.feedback.losses import drl_loss, ldrl_loss, per_sample_dot, reconstruction_loss, repeat_samples
from dtp.feedback.noise import NoiseStreams
from dtp.feedback.operations import (
    Elementwise,
    FeedbackOperation,
    FeedbackSettings,
    LinearMap,
    Routing,
    elementwise_feedback,
    is_elementwise,
    register_feedback,
)
from dtp.feedback.reduced import ReducedLDRL

__all__ = [
    "AffineContext",
    "Context",
    "DrawnContext",
    "Elementwise",
    "ExpectedLDRL",
    "FeedbackEngine",
    "FeedbackLayer",
    "FeedbackNetwork",
    "FeedbackOperation",
    "FeedbackProblem",
    "FeedbackResult",
    "FeedbackSettings",
    "LinearMap",
    "NoiseStreams",
    "NotExpected",
    "NotReducible",
    "ReducedLDRL",
    "Routing",
    "ShapeContext",
    "SlopeContext",
    "SwitchesContext",
    "derive_feedback",
    "drl_loss",
    "elementwise_feedback",
    "forward_with_context",
    "is_elementwise",
    "layer_operations",
    "ldrl_loss",
    "per_sample_dot",
    "reconstruction_loss",
    "register_feedback",
    "repeat_samples",
    "require_known_operations",
    "require_own_weights",
    "require_several_layers",
    "train_feedback",
]
