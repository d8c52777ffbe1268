"""Difference target propagation as Lee et al. introduced it."""

from torch import Tensor

from dtp.algorithms.options import VanillaDTPOptions
from dtp.algorithms.target_propagation import Activations, TargetPropagation
from dtp.feedback import FeedbackSettings, reconstruction_loss


class VanillaDTP(TargetPropagation):
    """Difference target propagation (Lee, Zhang, Fischer, Bengio 2015): G_n is trained to invert F_n.

    The feedback's nonlinearity comes after its affine map, with a bias: G(y) = f(V y + c). The reconstruction loss
    preserves the noise: it asks for s_{n-1} + eps back. With ``first_target="penultimate"`` the first target is
    s_{N-1} - beta d loss / d s_{N-1}, a gradient through the output layer alone, which itself learns the task loss;
    with ``"output"`` it is s_N - beta d loss / d s_N.
    """

    Options = VanillaDTPOptions
    feedback_settings = FeedbackSettings(nonlinearity="after", bias=True)

    @property
    def top(self) -> int:
        return self.network.depth - (self.options.first_target == "penultimate")

    def feedback_loss(self, n: int, activations: Activations, noise: tuple[Tensor, ...]) -> Tensor:
        a = activations
        return reconstruction_loss(
            self.network[n],
            self.feedback[n],
            a.s[n - 1],
            a.contexts[n],
            *noise,
            noise_samples=self.options.noise_samples,
        )

    def first_target(self, activations: Activations, y: Tensor) -> Tensor:
        if self.options.first_target == "output":
            return super().first_target(activations, y)
        s = activations.s[-2]
        return s - self.options.beta * self.loss_gradient(s, y, self.network[self.network.depth])
