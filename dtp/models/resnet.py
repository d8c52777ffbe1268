"""ResNets for small images."""

from collections.abc import Iterable, Sequence

from torch import nn

from dtp.errors import UserError
from dtp.models.modules import InnerFunction, ResidualUnit
from dtp.models.network import Network
from dtp.models.options import CifarResNetOptions, ResNetOptions


class ResNet18(Network):
    """A 3x3 stem, four stages of residual units, global average pooling, a linear layer (He et al. 2016).

    The form for small images in the code of Ernoult et al.: 11,164,362 parameters for 10 classes without batch
    normalisation.

    A layer of the learning rule is the stem, each residual unit with the nonlinearity after it, and the last linear
    layer with its pooling; with ``residual_layers="stage"`` a whole stage is one.
    """

    Options = ResNetOptions
    options: ResNetOptions
    # In each stage.
    units: Sequence[int] = (2, 2, 2, 2)

    def make_layers(self) -> Iterable[nn.Sequential]:
        o = self.options
        stages = len(self.units)
        if len(o.channels) != stages + 1:
            raise UserError(
                f"--channels: {type(self).__name__} has a stem and {stages} stages, {stages + 1} values, found "
                f"{len(o.channels)}."
            )
        stem, *widths = o.channels
        norm = [nn.BatchNorm2d(stem)] if o.batch_norm else []
        conv = nn.Conv2d(self.shapes[-1][0], stem, kernel_size=3, padding=1, bias=False)
        yield nn.Sequential(conv, *norm, self.activation())
        below = stem
        for stage, (channels, count) in enumerate(zip(widths, self.units, strict=True)):
            layer: list[nn.Module] = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                layer.append(ResidualUnit(below, channels, stride, self.activation(), o.batch_norm, o.shortcut))
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


class ResNet20(ResNet18):
    """As :class:`ResNet18`, with three stages of 3 units, batch normalisation and shortcuts without weights.

    That of He et al. 2016, section 4.2, for CIFAR-10, in the form of Sanfiz and Akrout 2021 (biotorch): 269,722
    parameters for 10 classes.
    """

    Options = CifarResNetOptions
    options: CifarResNetOptions
    units = (3, 3, 3)


class ResNet56(ResNet20):
    """As :class:`ResNet20`, with stages of 9 units; 853,018 parameters for 10 classes."""

    units = (9, 9, 9)
