"""Networks that several tests of the rules are made on, and exact minimisation of losses on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from dtp.models import MODELS, Network
from dtp.models.options import ModelOptions
from tests.algorithms.helpers import chosen

# Words of the command line that make each shipped network small; one that is not here has its own size.
SMALL = {
    "mlp": "--widths 12 11 10",
    "lenet": "--channels 3 4 --hidden 8",
    "lenet5": "--channels 3 4 5 --kernel 3 --padding 5 --hidden 8",
    "vgg": "--channels 3 4 5",
    "resnet18": "--channels 3 3 4 5 6",
    "resnet34": "--channels 3 3 3 3 3 --batch-norm true",
    "resnet20": "--channels 3 3 4 6",
    "resnet56": "--channels 2 2 2 3",
    "lc": "--kernels 3 3 --channels 3 4 --strides 2 1 --hidden 8",
    "convnet": "--kernels 3 3 --channels 3 4 --strides 2 1 --hidden 8",
    "square": "--widths 16 12 8",
    "discrete": "--widths 12 11",
    "stochastic": "--widths 12 11",
}


def shipped_network(model: str) -> Network:
    """A small one of the network ``--model model``, for images of 2x16x16 and 5 classes."""
    _, options = chosen(f"--model {model} {SMALL.get(model, '')}")
    return MODELS.resolve(model).load()(options, (2, 16, 16), 5)


class Layers(Network):
    """A network of the layers given."""

    def __init__(self, layers: Iterable[nn.Sequential], input_shape: Sequence[int], classes: int = 5):
        self.given = layers
        super().__init__(ModelOptions(), input_shape, classes)

    def make_layers(self) -> Iterable[nn.Sequential]:
        yield from self.given


def linear_network(*widths: int) -> Network:
    """Linear layers alone, in float64, from ``widths[0]`` inputs to ``widths[-1]`` classes."""
    layers = [nn.Sequential(nn.Linear(i, o)) for i, o in zip(widths, widths[1:], strict=False)]
    layers[0].insert(0, nn.Flatten())
    return Layers(layers, (1, 1, widths[0]), widths[-1]).double()


def tanh_network(*widths: int) -> Network:
    """The same with tanh after every layer but the last."""
    layers = [nn.Sequential(nn.Linear(i, o), nn.Tanh()) for i, o in zip(widths, widths[1:], strict=False)]
    layers[0].insert(0, nn.Flatten())
    del layers[-1][-1]
    return Layers(layers, (1, 1, widths[0]), widths[-1]).double()


def normalised_network() -> Network:
    """Convolutions with batch normalisation, all of whose affine parameters matter."""
    layers = [
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ELU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ELU()),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 5)),
    ]
    network = Layers(layers, (2, 9, 9))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return network


def isotropic(size: int, scale: float) -> Tensor:
    """Noise patterns (size, size), float64, whose mean outer product is scale^2 I exactly."""
    orthogonal = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    return scale * size**0.5 * orthogonal


def minimise(loss: Callable[[], Tensor], parameters: list[Tensor], penalty: float = 0.0) -> None:
    """Bring a smooth function of a few parameters, plus penalty / 2 of their squares, to its minimum."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss() + penalty / 2 * sum((p**2).sum() for p in parameters)
        value.backward()
        return value

    optimizer.step(closure)
    optimizer.zero_grad()
