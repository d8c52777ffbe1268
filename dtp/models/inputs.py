"""Checks that inputs fit the layers of a network, before torch fails with an error of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Size, Tensor, nn

from dtp.errors import UserError
from dtp.feedback.layers import layer_operations
from dtp.models.modules import Uncut
from dtp.models.network import Network
from dtp.models.shapes import NotOneTensor, output_shape


class DoesNotFit(Exception):
    """A layer cannot take what it receives; the text says which one and why."""


def shapes_through(layers: Iterable[nn.Module], input_shape: Sequence[int]) -> list[Size]:
    """Shape of one sample before the first layer and after each.

    Raises:
        DoesNotFit: there is none.
    """
    shapes = [Size(input_shape)]
    for number, layer in enumerate(layers, 1):
        try:
            shapes.append(output_shape(layer, shapes[-1]))
        except NotOneTensor as error:
            raise DoesNotFit(f"layer {number} ({kinds(layer)}) must put out one tensor, found {error}") from error
        except (RuntimeError, ValueError, TypeError) as error:
            raise DoesNotFit(
                f"layer {number} ({kinds(layer)}) receives {shape_text(shapes[-1])} and cannot take it "
                f"({str(error).strip().partition(chr(10))[0]})"
            ) from error
    return shapes


def require_inputs(network: Network, x: Tensor, made_for_shapes: str = "", made_for_inputs: bool = False) -> None:
    """Raise UserError unless ``network`` takes inputs like ``x`` (B, ...).

    Args:
        network: a chain of layers; one with a forward pass of its own may do anything before them.
        x: of any values, which are not looked at.
        made_for_shapes: name of a rule with feedback that was made for the network's shapes, so that samples must come
            to the same ones after each layer; empty where any that the network takes will do.
        made_for_inputs: whether that rule has something of the shape of the inputs too.
    """
    if type(network).forward is not Network.forward:
        return
    _require_precision(network, x)
    shape = x.shape[1:]
    if shape == network.input_shape:
        return
    expected, found = (", ".join(map(str, ("B", *sizes))) for sizes in (network.input_shape, shape))
    try:
        shapes = shapes_through(network, shape)
    except DoesNotFit as error:
        raise UserError(
            f"Expected inputs of shape ({expected}), found ({found}): {error}; bring the data to that shape, or give a "
            "network that takes theirs."
        ) from error
    # The inputs may be flat or not, and of another size where nothing of their shape is kept.
    flat = shape.numel() == network.input_shape.numel() and 1 in (len(shape), len(network.input_shape))
    if made_for_shapes and (shapes[1:] != network.shapes[1:] or (made_for_inputs and not flat)):
        raise UserError(
            f"Expected inputs of shape ({expected}), for which the feedback of {made_for_shapes} was made, found "
            f"({found}); bring the data to that shape, or make the rule for theirs, with input_shape={tuple(shape)}."
        )


def _require_precision(network: Network, x: Tensor) -> None:
    operations = layer_operations(network[1])
    first = next((i for i, o in enumerate(operations) if next(o.parameters(), None) is not None), None)
    if first is None or not all(type(o).__module__.startswith("torch.nn.") for o in operations[: first + 1]):
        # A module of the user's own may convert what it gets.
        return
    wanted = next(operations[first].parameters()).dtype
    converts = isinstance(operations[first], nn.Embedding | nn.EmbeddingBag)
    kind = x.device.type
    can_cast = x.is_floating_point() and torch.amp.is_autocast_available(kind)
    converts = converts or (can_cast and torch.is_autocast_enabled(kind))
    if x.dtype != wanted and not converts:
        name = str(wanted).removeprefix("torch.")
        raise UserError(
            f"Expected inputs in {name}, as the weights of the first layer are, found "
            f"{str(x.dtype).removeprefix('torch.')}; convert them in the data, or by "
            f"batch=lambda batch: (batch[0].to(torch.{name}), batch[1])."
        )


def kinds(layer: nn.Module) -> str:
    """Types of the operations of a layer, in order."""
    return ", ".join(type(m.module if isinstance(m, Uncut) else m).__name__ for m in layer_operations(layer))


def shape_text(shape: Iterable[int]) -> str:
    """A shape as 3x32x32."""
    return "x".join(map(str, shape)) or "()"
