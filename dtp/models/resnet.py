"""ResNet-18 and ResNet-34 for small images."""

from collections.abc import Iterable

from torch import nn

from dtp.errors import UserError
from dtp.models.modules import InnerFunction, ResidualUnit
from dtp.models.network import Network
from dtp.models.options import ResNetOptions


class ResNet18(Network):
    """A 3x3 stem, four stages of residual units, global average pooling, a linear layer (He et al. 2016).

    The form for small images in the code of Ernoult et al.: 11,164,362 parameters for 10 classes without batch
    normalisation.

    A layer of the learning rule is the stem, each residual unit with the nonlinearity after it, and the last linear
    layer with its pooling; with ``residual_layers="stage"`` a whole stage is one.
    """

    Options = ResNetOptions
    options: ResNetOptions
    units = (2, 2, 2, 2)

    def make_layers(self) -> Iterable[nn.Sequential]:
        o = self.options
        if len(o.channels) != 5:
            raise UserError(f"--channels: a ResNet has a stem and 4 stages, 5 values, found {len(o.channels)}.")
        stem, *stages = o.channels
        norm = [nn.BatchNorm2d(stem)] if o.batch_norm else []
        conv = nn.Conv2d(self.shapes[-1][0], stem, kernel_size=3, padding=1, bias=False)
        yield nn.Sequential(conv, *norm, self.activation())
        below = stem
        for stage, (channels, count) in enumerate(zip(stages, self.units, strict=True)):
            layer: list[nn.Module] = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                layer.append(ResidualUnit(below, channels, stride, self.activation(), o.batch_norm))
                below = channels
                if o.residual_layers == "unit" or i == count - 1:
                    yield nn.Sequential(*layer, self.activation())
                    layer = []
                else:
                    layer.append(InnerFunction(self.activation()))
        yield nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(below, self.num_classes))


class ResNet34(ResNet18):
    """As :class:`ResNet18`, with stages of 3, 4, 6 and 3 units; 21,265,098 parameters for 10 classes."""

    units = (3, 4, 6, 3)
