"""A network: a stack of layers, each an affine map with the operations that follow it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from numbers import Integral
from typing import Self

import torch
from torch import Size, Tensor, nn

from dtp.contracts import handed_back, require_layer
from dtp.errors import UserError, first_line
from dtp.fields import checked, is_ours, own, require_options, require_ranges
from dtp.models.modules import LocallyConnected2d, SLReLU
from dtp.models.options import ModelOptions
from dtp.models.shapes import NotOneTensor, given_shape, output_shape
from dtp.tasks import Classification, Task

ACTIVATIONS: dict[str, Callable[[float], nn.Module]] = {
    "elu": lambda slope: nn.ELU(),
    "relu": lambda slope: nn.ReLU(),
    "leaky-relu": nn.LeakyReLU,
    "tanh": lambda slope: nn.Tanh(),
    "sigmoid": lambda slope: nn.Sigmoid(),
    "sl-relu": SLReLU,
}


class Network(nn.Module):
    """Layers F_1 .. F_N: ``network[n]`` is layer n, ``network.shapes[n]`` the shape of one sample of s_n.

    A subclass lists its layers in :meth:`make_layers`. Each layer is an ``nn.Sequential`` of an affine operation with
    its nonlinearity and pooling; a flatten belongs to the affine operation after it. The last layer gives the logits.

    Args:
        options: the dataclass named by ``Options``.
        input_shape: (C, H, W) of one image.
        num_classes: number of outputs: classes, or pixels of an auto-encoder, or clusters.
        task: what the outputs are for; left out, classification.

    Raises:
        UserError: the images are too small for the network, or an option is out of range.
    """

    Options = ModelOptions
    options: ModelOptions
    # Losses (--loss) that its outputs are made for; empty for all.
    losses: Sequence[str] = ()

    def __init__(
        self, options: ModelOptions, input_shape: Sequence[int], num_classes: int, *, task: Task | None = None
    ):
        super().__init__()
        require_options(self.Options, options, type(self).__name__)
        require_ranges(options)
        # Whoever gave them may change theirs for the next. What values a user's own may have, we do not know.
        self.options = checked(options) if is_ours(type(options)) else own(options)
        self.input_shape = given_shape(input_shape)
        if not isinstance(num_classes, Integral) or num_classes < 1:
            raise UserError(f"num_classes: expected a whole number above 0, found {num_classes!r}.")
        self.num_classes = int(num_classes)
        self.task: Task = task or Classification(self.num_classes)
        self.shapes = [self.input_shape]
        self.layers = nn.ModuleList()
        made = self.make_layers()
        if not isinstance(made, Iterable) or isinstance(made, Tensor):
            raise handed_back(self, "make_layers", "the layers in their order (yield them)", made)
        for number, layer in enumerate(made, 1):
            require_layer(self, number, layer)
            initialise(layer, options.init)
            self.layers.append(layer)
            self.shapes.append(self._shape_after(layer))
        if not self.layers or self.shapes[-1] != Size([self.num_classes]):
            found = "x".join(map(str, self.shapes[-1])) if self.layers else "no layers"
            raise UserError(
                f"{type(self).__name__} must end in {num_classes} values, one for each class (or pixel, or cluster); "
                f"found {found}."
            )
        if not any(True for _ in self.parameters()):
            raise UserError(
                f"{type(self).__name__} must have weights to train, found none; give it a layer that has, such as "
                "nn.Linear."
            )

    @classmethod
    def for_task(cls, options: ModelOptions, input_shape: Sequence[int], task: Task) -> Self:
        """A network with as many outputs as the task has, whether or not its own constructor takes a task."""
        given = {"task": task} if "task" in inspect.signature(cls).parameters else {}
        network = cls(options, input_shape, task.outputs, **given)
        # A constructor that takes one may still not hand it on.
        network.task = task
        return network

    def make_layers(self) -> Iterable[nn.Sequential]:
        """Yield the layers in forward order. ``self.shapes[-1]`` is the shape that the next layer receives."""
        raise UserError(f"{type(self).__name__} does not say what its layers are; define make_layers in it.")

    def activation(self) -> nn.Module:
        """A new instance of the nonlinearity that the options name."""
        return ACTIVATIONS[self.options.activation](self.options.leaky_slope)

    @property
    def features(self) -> int:
        """Number of features that the next layer receives, flattened. For use in :meth:`make_layers`."""
        return self.shapes[-1].numel()

    @property
    def depth(self) -> int:
        """N, the number of layers."""
        return len(self.layers)

    def __getitem__(self, n: int) -> nn.Module:
        """Layer n, counted from 1."""
        if not 1 <= n <= self.depth:
            raise IndexError(f"layer {n}: layers are numbered 1 to {self.depth}")
        return self.layers[n - 1]

    def __iter__(self) -> Iterator[nn.Module]:
        """Layers 1 .. N. Without it Python would iterate by ``network[0]``, and find no layers."""
        return iter(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes); gradients flow through all layers."""
        for layer in self.layers:
            x = layer(x)
        return x

    def _shape_after(self, layer: nn.Module) -> Size:
        try:
            return output_shape(layer, self.shapes[-1])
        except NotOneTensor as error:
            kinds = ", ".join(dict.fromkeys(type(module).__name__ for module in layer.modules()))
            raise UserError(
                f"Layer {len(self.layers)} of {type(self).__name__} ({kinds}) must put out one tensor, and each of "
                f"its operations too, found {error}; a recurrent layer, say, needs a module around it that picks one."
            ) from error
        except RuntimeError as error:
            size = "x".join(map(str, self.input_shape[1:]))
            received = "x".join(map(str, self.shapes[-1]))
            raise UserError(
                f"Images of {size} pixels do not fit {type(self).__name__}: layer {len(self.layers)} receives "
                f"{received} values and cannot take them ({first_line(error)}); use larger images or fewer layers."
            ) from error


@torch.no_grad()
def initialise(layer: nn.Module, init: str) -> None:
    """Draw the weights of a layer, forward or feedback, anew, as ``--init`` says; biases become 0.

    ``default`` leaves all as it is.
    """
    if init == "default":
        return
    fill = {
        "xavier": nn.init.xavier_uniform_,
        "xavier-normal": nn.init.xavier_normal_,
        "kaiming": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
        "orthogonal": nn.init.orthogonal_,
    }[init]
    for module in layer.modules():
        if isinstance(module, LocallyConnected2d):
            # Every position is a small dense layer.
            for position in module.weight:
                fill(position)
        elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d):
            fill(module.weight)
        else:
            continue
        if module.bias is not None:
            module.bias.zero_()
