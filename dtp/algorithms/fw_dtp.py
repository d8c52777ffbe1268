"""Difference target propagation with fixed feedback weights."""

import warnings

import torch
from torch import Tensor, nn

from dtp.algorithms.local_targets import Activations, LocalTargets
from dtp.algorithms.options import FWDTPOptions
from dtp.feedback import FeedbackSettings, derive_feedback
from dtp.models.modules import LocallyConnected2d, Standardise, standardised
from dtp.models.network import Network


class FWDTP(LocalTargets):
    """Fixed-weight DTP (Shibuya et al. 2023): the difference rule with random feedback that is never trained::

        G_n(y) = [BN] tanh(B_n y),    t_{n-1} = [BN](G_n(t_n) + s_{n-1} - G_n(s_n))

    with the nonlinearity of the lower layer in place of tanh. [BN] is standardisation over the batch without
    parameters, if the network has it (``--standardise``). All layers minimise the whole squared distance to their
    target, not half of it.

    Left out by the paper, or changed: evaluation uses running statistics (the authors' code uses those of the test
    batch). B_n of convolutions is drawn in the same way as for matrices.
    """

    Options = FWDTPOptions
    options: FWDTPOptions

    def __init__(self, network: Network, options: FWDTPOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        o = self.options
        settings = FeedbackSettings(nonlinearity="after", bias=False)
        self.feedback = derive_feedback(list(network), network.shapes, range(2, network.depth + 1), settings)
        self.feedback.requires_grad_(False)
        for module in self.feedback.modules():
            for weight in module.parameters(recurse=False):
                # Locally connected weights are one matrix for each position.
                _draw(weight, o.feedback_distribution, o.feedback_scale, isinstance(module, LocallyConnected2d))
        has = any(isinstance(module, Standardise) for module in network.modules())
        if not has and o.feedback_scale < 0.05:
            warnings.warn(
                f"fw-dtp: --feedback-scale {o.feedback_scale:g} is for networks with --standardise; lower layers of "
                "this one may get no target that float32 can tell from their activation. 0.1 to 1 serves.",
                stacklevel=2,
            )
        self.standardise = has if o.standardise_targets == "auto" else o.standardise_targets == "yes"

    def lower_target(self, n: int, targets: dict[int, Tensor], activations: Activations) -> Tensor:
        s, context = activations.s, activations.contexts[n]
        target = s[n - 1] + (self.feedback[n](targets[n], context) - self.feedback[n](s[n], context))
        return standardised(target) if self.standardise else target


@torch.no_grad()
def _draw(weight: Tensor, distribution: str, scale: float, each: bool) -> None:
    """Fill a weight; orthogonal is ``each`` of the matrices that it holds, or the whole."""
    if distribution == "uniform":
        weight.uniform_(-scale, scale)
    elif distribution == "normal":
        weight.normal_(0, scale)
    else:
        for matrix in weight if each else [weight]:
            nn.init.orthogonal_(matrix, gain=scale)
