"""SimpleVGG of the L-DRL experiments."""

from collections.abc import Iterable

from torch import nn

from dtp.errors import UserError
from dtp.models.network import Network
from dtp.models.options import VGGOptions


class VGG(Network):
    """Layers of 3x3 convolution, activation and 2x2 max-pooling; one linear layer (Ernoult et al.'s SimpleVGG)."""

    Options = VGGOptions
    options: VGGOptions

    def make_layers(self) -> Iterable[nn.Sequential]:
        if not self.options.channels:
            raise UserError("--channels: VGG needs at least one convolution, found no values.")
        for channels in self.options.channels:
            yield nn.Sequential(
                nn.Conv2d(self.shapes[-1][0], channels, kernel_size=3, padding=1),
                self.activation(),
                nn.MaxPool2d(kernel_size=2),
            )
        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, self.num_classes))
