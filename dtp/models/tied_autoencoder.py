"""Auto-encoders whose decoder has the weights of the encoder."""

from collections.abc import Iterable

from torch import nn

from dtp.errors import UserError
from dtp.models.modules import TransposedLinear
from dtp.models.network import Network
from dtp.models.options import TiedAutoencoderOptions


class TiedAutoencoder(Network):
    """``flatten -> linear -> activation``, then the transposed linear map with a separate bias (Lee 2018, 3.2.4).

    h = f(W x + b), output W^T h + c, whose sigmoid is the reconstruction. The weight is one tensor that both layers
    share. It is listed once among the parameters, in layer 1. When both layers are trained, it changes by the sum of
    their gradients.
    """

    Options = TiedAutoencoderOptions
    options: TiedAutoencoderOptions

    def make_layers(self) -> Iterable[nn.Sequential]:
        if self.num_classes != self.features:
            raise UserError(
                f"--model tied-autoencoder: expected --task autoencoder, whose outputs are the {self.features} values "
                f"of the image, found {self.num_classes} outputs; give that task, or another network."
            )
        encoder = nn.Linear(self.features, self.options.hidden)
        yield nn.Sequential(nn.Flatten(), encoder, self.activation())
        yield nn.Sequential(TransposedLinear(encoder))
