"""LeNet of the L-DRL experiments, and LeNet-5."""

from collections.abc import Iterable

from torch import nn

from dtp.errors import UserError
from dtp.models.network import Network
from dtp.models.options import LeNet5Options, LeNetOptions


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


class LeNet5(Network):
    """Three convolutions without padding, the first two with 2x2 max-pooling; two linear layers (LeCun et al. 1998).

    In the form of Sanfiz and Akrout 2021 (biotorch). What the third convolution leaves of the image is averaged: one
    pixel of MNIST's 32, 4x4 of CIFAR's with kernels of 3.
    """

    Options = LeNet5Options
    options: LeNet5Options

    def make_layers(self) -> Iterable[nn.Sequential]:
        o = self.options
        if len(o.channels) != 3:
            raise UserError(f"--channels: LeNet-5 has 3 convolutions, found {len(o.channels)} values.")
        for place, channels in enumerate(o.channels):
            padding = o.padding if place == 0 else 0
            pool = [nn.MaxPool2d(kernel_size=2)] if place < 2 else []
            yield nn.Sequential(
                nn.Conv2d(self.shapes[-1][0], channels, o.kernel, padding=padding), self.activation(), *pool
            )
        average = [nn.AdaptiveAvgPool2d(1)] if self.shapes[-1][1:] != (1, 1) else []
        yield nn.Sequential(*average, nn.Flatten(), nn.Linear(o.channels[-1], o.hidden), self.activation())
        yield nn.Sequential(nn.Linear(o.hidden, self.num_classes))
