"""Difference target propagation with the local difference reconstruction loss (L-DRL)."""

from torch import Tensor

from dtp.algorithms.options import DTPOptions, ParallelDTPOptions
from dtp.algorithms.target_propagation import Activations, TargetPropagation
from dtp.feedback import ldrl_loss


class DTP(TargetPropagation):
    """DTP with L-DRL (Ernoult et al. 2022, Towards Scaling DTP by Learning Backprop Targets).

    Feedback layers are trained until their Jacobians are the transposes of the forward ones; then the difference rule
    carries, for small beta, what backprop would.
    """

    Options = DTPOptions

    def feedback_noise(self, n: int, activations: Activations) -> tuple[Tensor, Tensor]:
        return self.draw_noise(n, activations.s[n - 1]), self.draw_noise(n, activations.s[n])

    def feedback_loss(self, n: int, activations: Activations, noise: tuple[Tensor, ...]) -> Tensor:
        a, o = activations, self.options
        return ldrl_loss(
            self.network[n],
            self.feedback[n],
            a.s[n - 1],
            a.s[n],
            a.contexts[n],
            *noise,
            routing=o.routing,
            noise_samples=o.noise_samples,
            paper_scale=self.noise_scale(n) if o.ldrl_scale == "paper" else None,
        )

    def usual_feedback_lr(self, n: int) -> float:
        # The paper's loss is the code's divided by 2 sigma^2, and so are its gradients.
        sgd_on_paper = self.options.ldrl_scale == "paper" and self.options.feedback_optimizer == "sgd"
        return super().usual_feedback_lr(n) * (2 * self.noise[n] ** 2 if sgd_on_paper else 1.0)


class ParallelDTP(DTP):
    """DTP with L-DRL in one feedback step per batch on many noise samples (code of Ernoult et al., "ParallelDTP").

    The block losses are independent and Adam acts on each weight alone, so one optimizer per layer equals one for all.
    """

    Options = ParallelDTPOptions
