"""Networks of Bartunov et al. 2018 for images."""

from collections.abc import Iterable

from torch import nn

from dtp.errors import UserError
from dtp.models.modules import LocallyConnected2d, SameConv2d
from dtp.models.network import Network
from dtp.models.options import LocallyConnectedOptions


class LocallyConnected(Network):
    """Strided locally connected layers, then fully connected ones (Bartunov et al. 2018, table of architectures).

    Padding is "same" as in TensorFlow; there is no pooling. The paper does not give the last stride of the network for
    CIFAR-10.
    """

    Options = LocallyConnectedOptions
    options: LocallyConnectedOptions

    def make_layers(self) -> Iterable[nn.Sequential]:
        o = self.options
        for flag, values in (("kernels", o.kernels), ("strides", o.strides)):
            if len(values) != len(o.channels):
                raise UserError(
                    f"--{flag}: expected {len(o.channels)} values, as many as --channels, found {len(values)}."
                )
        for kernel, channels, stride in zip(o.kernels, o.channels, o.strides, strict=True):
            yield nn.Sequential(self.operation(channels, kernel, stride), self.activation())
        for i, units in enumerate([*o.hidden, self.num_classes]):
            flatten = [nn.Flatten()] if len(self.shapes[-1]) > 1 else []
            function = [self.activation()] if i < len(o.hidden) else []
            yield nn.Sequential(*flatten, nn.Linear(self.features, units), *function)

    def operation(self, channels: int, kernel: int, stride: int) -> nn.Module:
        """The affine operation of a strided layer on what the layers so far give."""
        depth, *size = self.shapes[-1]
        return LocallyConnected2d(depth, channels, size, kernel, stride)


class ConvNet(LocallyConnected):
    """The same network with convolutions: weights shared over positions ("BP ConvNet" of Bartunov et al. 2018)."""

    def operation(self, channels: int, kernel: int, stride: int) -> nn.Module:
        return SameConv2d(self.shapes[-1][0], channels, kernel, stride)
