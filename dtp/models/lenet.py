"""LeNet of the L-DRL experiments."""

from collections.abc import Iterable

from torch import nn

from dtp.errors import UserError
from dtp.models.network import Network
from dtp.models.options import LeNetOptions


class LeNet(Network):
    """Two layers of 5x5 convolution, activation and 3x3 max-pooling of stride 2; two linear layers (Ernoult et al.)."""

    Options = LeNetOptions
    options: LeNetOptions

    def make_layers(self) -> Iterable[nn.Sequential]:
        if len(self.options.channels) != 2:
            raise UserError(f"--channels: LeNet has 2 convolutions, found {len(self.options.channels)} values.")
        for channels in self.options.channels:
            yield nn.Sequential(
                nn.Conv2d(self.shapes[-1][0], channels, kernel_size=5, padding=2),
                self.activation(),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            )
        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, self.options.hidden), self.activation())
        yield nn.Sequential(nn.Linear(self.features, self.num_classes))
