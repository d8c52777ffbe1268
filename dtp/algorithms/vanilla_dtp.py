"""Difference target propagation as introduced by Lee et al."""

from typing import Literal

from torch import Tensor

from dtp.algorithms.local_targets import Activations, evaluate_purely
from dtp.algorithms.options import VanillaDTPOptions
from dtp.algorithms.target_propagation import TargetPropagation
from dtp.errors import UserError
from dtp.feedback import FeedbackSettings, reconstruction_loss
from dtp.models.network import Network


class VanillaDTP(TargetPropagation):
    """Difference target propagation (Lee, Zhang, Fischer, Bengio 2015): G_n is trained to invert F_n.

    The nonlinearity of the feedback comes after its affine map, with a bias: G(y) = f(V y + c). The reconstruction loss
    keeps the noise: its target is s_{n-1} + eps. With ``first_target="penultimate"`` the first target is s_{N-1} - beta
    d loss / d s_{N-1}, a gradient through the output layer alone; the output layer itself learns the task loss. With
    ``"output"`` the first target is s_N - beta d loss / d s_N.

    Left out by the paper: the order of the two phases (whole epochs in turn by default, as in the authors' code), and
    the first feedback weights (``feedback_init``).
    """

    Options = VanillaDTPOptions
    options: VanillaDTPOptions
    feedback_settings = FeedbackSettings(nonlinearity="after", bias=True)
    needs_noise = False
    # What the reconstruction is to give back: the noisy s_{n-1}, or the clean one.
    reconstructs: Literal["noisy", "clean"] = "noisy"

    def __init__(self, network: Network, options: VanillaDTPOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        if self.options.first_target == "penultimate" and self.options.output_loss != "task":
            raise UserError(
                "--output-loss mse: expected --first-target output, found penultimate, where the output layer has no "
                "target; give --output-loss task or --first-target output."
            )

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
            target=self.reconstructs,
            noise_samples=self.options.noise_samples,
            activation=lambda output, v: self.activation(n, output, v),
        )

    def first_target(self, activations: Activations, y: Tensor) -> Tensor:
        if self.options.first_target == "output":
            return super().first_target(activations, y)
        s = activations.s[-2]
        output_layer, context = self.network[self.network.depth], activations.contexts[-1]
        return s - self.options.beta * self.loss_gradient(s, y, lambda v: evaluate_purely(output_layer, v, context))
