"""Difference target propagation with the difference reconstruction loss."""

import torch
from torch import Tensor

from dtp.algorithms.local_targets import Activations
from dtp.algorithms.options import DRLOptions
from dtp.algorithms.target_propagation import TargetPropagation
from dtp.feedback import FeedbackSettings, drl_loss, repeat_samples


class DRL(TargetPropagation):
    """DTP with the difference reconstruction loss, DTPDRL (Meulemans et al. 2020, section 4).

    Feedback layers G(y) = f(V y + c) are trained so that the chain of difference corrections, from the output down to
    s_{n-1}, reconstructs a disturbance of s_{n-1}. This makes targets damped Gauss-Newton steps, even in networks that
    cannot be inverted. The loss of layer n uses the feedback layers above it, but they get no gradient from it.

    All layers minimise the whole squared distance to their target, not half of it (``local_loss_scale`` 2). The
    authors' code makes the output target from mean gradients: their beta is ours times the batch size, and their
    learning rate is divided by it.

    Left out by the paper: the pooling switches (here those of the clean pass, as for targets). The authors compute
    targets with the feedback weights from before the batch (``schedule`` parallel, as in the presets of their
    experiments). Here feedback is trained first by default (sequential).
    """

    Options = DRLOptions
    options: DRLOptions
    feedback_settings = FeedbackSettings(nonlinearity="after", bias=True)
    independent_feedback = False

    def feedback_loss(self, n: int, activations: Activations, noise: tuple[Tensor, ...]) -> Tensor:
        a, m = activations, self.options.noise_samples
        (eps,) = noise

        def down(k: int, r: Tensor) -> Tensor:
            s, context = repeat_samples(a.s[k], m), a.contexts[k].repeat(m)
            below = repeat_samples(a.s[k - 1], m)
            return below + self.feedback[k](r, context) - self.feedback[k](s, context)

        def backward(r: Tensor) -> Tensor:
            with torch.no_grad():
                for k in range(self.network.depth, n, -1):
                    r = down(k, r)
            return down(n, r)

        return drl_loss(
            a.s[n - 1],
            eps,
            lambda v: self.output_from(n, v, a, m),
            backward,
            scale=self.noise_scale(n),
            noise_samples=m,
        )
