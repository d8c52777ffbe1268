"""Checks of what a user's own rule, network or dataset returns. An error of one sentence names the culprit."""

from __future__ import annotations

import functools
import numbers
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dtp.errors import UserError


def shown(value: Any) -> str:
    """A value in a few words: what it is, and the shape of a tensor."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a tensor {kind} of shape {tuple(value.shape)}"
    if value is None:
        return "None"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a value of type {type(value).__name__}"


def handed_back(owner: Any, method: str, expected: str, found: Any) -> UserError:
    """The mistake that ``method`` of the class of ``owner`` returns something else than it must."""
    return UserError(
        f"{method} of {type(owner).__name__} must return {expected}, found {shown(found)}; fix {type(owner).__name__}."
    )


def no_gradients(owner: Any) -> UserError:
    """The mistake that gradients are switched off where the class of ``owner`` needs them."""
    return UserError(
        f"{type(owner).__name__} needs gradients to learn, found them switched off (torch.no_grad); take its batches "
        "out of that."
    )


def require_loss_value(owner: Any, method: str, found: Any, trained: bool = True) -> Tensor:
    """``found``, if it is a single number, and one that can be descended on where weights are ``trained``."""
    if not isinstance(found, Tensor) or found.numel() != 1 or found.dim() > 0:
        raise handed_back(owner, method, "a loss of one number, as a tensor of shape ()", found)
    if trained and not found.requires_grad:
        if not torch.is_grad_enabled():
            raise no_gradients(owner)
        raise UserError(
            f"{method} of {type(owner).__name__} must return a loss that depends on the weights, found one without "
            f"gradients (a detached tensor, or a constant); fix {type(owner).__name__}."
        )
    return found


@contextmanager
def unedited(owner: Any, method: str, tensors: Iterable[tuple[str, Any]]) -> Iterator[None]:
    """Raise UserError if ``method`` changes one of the named tensors in place: others read them after it."""
    before = [(name, tensor, tensor._version) for name, tensor in tensors if isinstance(tensor, Tensor)]
    yield
    for name, tensor, version in before:
        if tensor._version != version:
            raise UserError(
                f"{method} of {type(owner).__name__} changes {name} in place, which others read after it; have it "
                "make a new tensor (x = x + 1 in place of x += 1)."
            )


def gradients(owner: Any, network: nn.Module, losses: Iterable[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the sum of ``losses`` by ``weights``; the classes are named where that does not have them."""
    # Without the zero that sum() begins with: one operation less on the device, in every batch.
    loss = functools.reduce(operator.add, losses)
    try:
        return list(torch.autograd.grad(loss, weights))
    except RuntimeError as error:
        mine, theirs = type(owner).__name__, type(network).__name__
        if "modified by an inplace operation" in str(error):
            raise UserError(
                f"{mine} or a layer of {theirs} changes in place what the gradient needs (x += 1, x.relu_(), "
                "inplace=True after a nonlinearity); have it make a new tensor."
            ) from error
        if "appears to not have been used" in str(error):
            raise UserError(
                f"The loss of {mine} does not depend on all weights of {theirs}; leave out the layers that are not "
                "used, or freeze their weights (requires_grad_(False))."
            ) from error
        if "does not require grad" in str(error):
            if not torch.is_grad_enabled():
                raise no_gradients(owner) from error
            raise UserError(
                f"The loss of {mine} does not depend on the weights of {theirs}; find where a tensor is detached, or "
                "made without gradients (torch.no_grad)."
            ) from error
        raise


def require_mapping(owner: Any, method: str, found: Any, is_value: Callable[[Any], bool], values: str) -> dict:
    """``found``, if it is a dictionary whose values are as they must be."""
    wrong = [value for value in found.values() if not is_value(value)] if isinstance(found, dict) else [found]
    if wrong:
        raise handed_back(owner, method, f"a dictionary of {values}", wrong[0])
    return found


def require_losses(network: Any) -> Sequence[str]:
    """The losses that ``network`` is made for, if they are names."""
    found = network.losses
    if isinstance(found, str) or not isinstance(found, Sequence) or not all(isinstance(name, str) for name in found):
        name = type(network).__name__
        raise UserError(
            f"losses of {name} must be a tuple of names, such as ('cross-entropy',), found {shown(found)}; fix {name}."
        )
    return found


def require_layer_numbers(owner: Any, known: Iterable[int]) -> None:
    """Raise UserError unless ``owner.trained_feedback`` holds numbers of some of the ``known`` layers, each once."""
    found, known, name = owner.trained_feedback, list(known), type(owner).__name__
    numbers = list(found) if isinstance(found, Iterable) else [None]
    if not all(type(number) is int and number in known for number in numbers) or len(set(numbers)) < len(numbers):
        raise UserError(
            f"trained_feedback of {name} must hold numbers of layers out of {', '.join(map(str, known)) or 'none'}, "
            f"each once, found {str(found)[:100]}; fix {name}."
        )


def is_number(value: Any) -> bool:
    """Whether ``value`` is one number, in a tensor or not."""
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, numbers.Real)


def require_layer(owner: nn.Module, number: int, layer: Any) -> None:
    """Raise UserError unless ``layer`` is a module with weights that can be trained as they are."""
    name = type(owner).__name__
    if not isinstance(layer, nn.Module):
        raise UserError(
            f"make_layers of {name} must yield layers (nn.Sequential), found for layer {number} "
            f"{shown(layer) if not isinstance(layer, type) else f'the class {layer.__name__}'}; fix {name}."
        )
    before = ""
    for operation in _in_order(layer):
        if getattr(operation, "inplace", False) and (not before or before in _NEED_THEIR_OUTPUT):
            where = f"after {before}, whose gradient needs it" if before else "at the start of a layer"
            raise UserError(
                f"Layer {number} of {name} has {type(operation).__name__}(inplace=True) {where}: it would overwrite "
                "values that others read; leave inplace out."
            )
        if not isinstance(operation, MAY_ALIAS):
            before = type(operation).__name__
    for kind, tensor in [("weights", p) for p in layer.parameters()] + [("buffers", b) for b in layer.buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise UserError(
                f"Layer {number} of {name} is a lazy one, whose sizes are not known yet; use the type without Lazy "
                "and give the number of its inputs (self.features, or self.shapes[-1][0] for channels)."
            )
        # Whoever makes a network within a context of another device or dtype wants all of it there.
        usual = torch.empty(0)
        misplaced = tensor.is_meta and not usual.is_meta
        if misplaced or (tensor.is_floating_point() and tensor.dtype not in (torch.float32, usual.dtype)):
            found = "on the meta device" if misplaced else str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"Layer {number} of {name} must have {kind} in float32, found {found}; make it without a dtype or "
                "device (--precision chooses another one)."
            )


def _in_order(layer: nn.Module) -> Iterator[nn.Module]:
    if isinstance(layer, nn.Sequential):
        for part in layer:
            yield from _in_order(part)
    else:
        yield layer


# What comes out of them may be the very values that went in; out of dropout where nothing is dropped.
MAY_ALIAS = (nn.Flatten, nn.Unflatten, nn.Identity, _DropoutNd)
_NEED_THEIR_OUTPUT = ("ReLU", "Sigmoid", "Tanh", "Softmax", "LogSoftmax")


def require_batch(data: Any, loader: str, batch: Any, input_shape: Sequence[int]) -> None:
    """Raise UserError unless ``batch`` is a pair of images and labels."""
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise UserError(
            f"{loader} of {type(data).__name__} must give batches of two tensors, images and labels, found "
            f"{shown(batch)}; fix {type(data).__name__}."
        )
    x, y = batch
    shape = "x".join(map(str, input_shape))
    if not x.is_floating_point() or tuple(x.shape[1:]) != tuple(input_shape):
        raise UserError(
            f"{loader} of {type(data).__name__} must give images in floating point of shape (B, {shape}), found "
            f"{shown(x)}; fix {type(data).__name__}."
        )
    if y.dtype != torch.int64 or tuple(y.shape) != (len(x),):
        raise UserError(
            f"{loader} of {type(data).__name__} must give labels as int64 of shape ({len(x)},), one for each image, "
            f"found {shown(y)}; fix {type(data).__name__}."
        )
