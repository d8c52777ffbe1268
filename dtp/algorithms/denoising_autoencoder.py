"""A denoising auto-encoder trained by difference target propagation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dtp.algorithms.local_targets import Activations, LocalTargets
from dtp.algorithms.options import DenoisingAutoencoderOptions
from dtp.errors import UserError
from dtp.feedback import Context, layer_operations
from dtp.models.modules import TransposedLinear
from dtp.models.network import Network
from dtp.models.precision import full_precision, grad_enabled
from dtp.tasks import Autoencoder


@dataclass(frozen=True)
class NoisyActivations(Activations):
    """Activations of the clean image, with outputs of layers whose inputs were noisy."""

    @property
    def logits(self) -> Tensor:
        return self.s[-1]


class DenoisingAutoencoder(LocalTargets):
    """Denoising auto-encoder by difference target propagation (Lee 2018, section 3.2.4), for tied weights::

        h = f(x) = sigmoid(W x + b),    z = g(h) = sigmoid(W^T (h + eps) + c)
        t_2 = x,    t_1 = h + f(x) - f(z) = 2 h - f(z)
        losses |g(h) - t_2|^2 of the decoder and |f(x + eps') - t_1|^2 of the encoder

    with h and both targets held constant. f is the feedback of g; nothing else is trained. W gets the sum of the
    gradients of both losses, because it belongs to both decoder and encoder. Both losses are local: each sees only the
    two sides of one layer. The shared W is not local: what one layer learns is at once in the other.

    In f(z), z is treated as an image: it is normalised like the inputs of the network.

    Left out by the paper: both noise scales (here 0.3, which the authors' code has elsewhere), the optimizer (here
    their RMSprop), its rate, and whether the noise in z is the same as in the loss of the decoder (here it is).
    """

    Options = DenoisingAutoencoderOptions
    options: DenoisingAutoencoderOptions
    learns_any_loss = False

    def __init__(self, network: Network, options: DenoisingAutoencoderOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        self._require_no_step("the first target is the image itself")
        if network.depth != 2 or not isinstance(layer_operations(network[2])[0], TransposedLinear):
            raise UserError(
                f"dtp-dae: expected a network of two layers with one weight matrix, found {type(network).__name__}; "
                "use --model tied-autoencoder, or --algo dtp for others."
            )
        if not isinstance(self.task, Autoencoder):
            raise UserError(
                f"dtp-dae: expected a network of --task autoencoder, found one of {self.task.name}; make it with "
                "task=dtp.tasks.Autoencoder(input_shape)."
            )

    def activations(self, x: Tensor, gradients: bool = True) -> Activations:
        o, x = self.options, full_precision(x.detach())
        with grad_enabled(False):
            h = full_precision(self.network[1](x))
            output = full_precision(self.network[2](h))
        with grad_enabled(gradients):
            encoded = self.network[1](self._noisy(1, x, o.pixel_noise))
            decoded = self.network[2](self._noisy(2, h, o.hidden_noise))
        return NoisyActivations([x, h, output], [Context()] * 3, [x, encoded, decoded])

    def first_target(self, activations: Activations, y: Tensor) -> Tensor:
        return self.task.wanted(y, like=activations.s[2])

    def lower_target(self, n: int, targets: dict[int, Tensor], activations: Activations) -> Tensor:
        z = self.task.view(full_precision(activations.outputs[2].detach()))
        assert isinstance(self.task, Autoencoder)
        return 2 * activations.s[1] - self.network[1](self.task.as_input(z))

    def forward_loss(self, n: int, output: Tensor, target: Tensor) -> Tensor:
        return super().forward_loss(n, self.task.view(output) if n == 2 else output, target)

    def forward_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        with self.noise_streams.unchanged():
            return super().forward_gradients(x, y)

    def _noisy(self, n: int, v: Tensor, scale: float) -> Tensor:
        return v + self.noise_streams.normal(n, v.shape, scale, v) if scale else v
