"""Backward passes in which errors go down through other weights than the transposed forward ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Size, Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from dtp.contracts import shown
from dtp.errors import UserError
from dtp.feedback.operations import FeedbackSettings, LinearMap, operation_of
from dtp.models.shapes import meta_pass

if TYPE_CHECKING:
    from dtp.models.network import Network


@dataclass(frozen=True)
class AffineOperation:
    """An affine operation of a network, and the map that takes errors down past it.

    Attributes:
        name: of the operation in the network.
        layer: number n of the layer that it is in.
        module: the forward operation, which has a ``weight``.
        backward_map: from the error of its output to that of its input, with weights of its own.
        in_shape: of one sample of its input.
    """

    name: str
    layer: int
    module: Any
    backward_map: LinearMap
    in_shape: Size


class BackwardMaps(nn.ModuleDict):
    """One map for every affine operation of a network that errors go down through; none below the first layer.

    The maps are registered here, by the names of the operations with dots replaced; they have no bias and are not
    trained by gradients. The network is not registered.

    Raises:
        UserError: errors would go down through an operation whose adjoint is not known.
    """

    def __init__(self, network: Network):
        super().__init__()
        self.operations: list[AffineOperation] = []
        for name, (module, in_shape) in _operations_with_errors(network).items():
            backward_map = _backward_map(name, module, in_shape).requires_grad_(False)
            self[name.replace(".", "_")] = backward_map
            self.operations.append(
                AffineOperation(name, _layer_number(network, module), module, backward_map, in_shape)
            )

    def beside_forward(self, weight: Callable[[AffineOperation], Tensor]) -> dict[int, list[tuple[Tensor, Tensor]]]:
        """By layer, ``weight(operation)`` of each of its operations and the forward weight transposed, of one shape."""
        pairs: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for operation in self.operations:
            forward = operation.backward_map.transpose_of(operation.module)
            pairs.setdefault(operation.layer, []).append((self._taken(weight, operation), forward))
        return pairs

    @staticmethod
    def _taken(weight: Callable[[AffineOperation], Tensor], operation: AffineOperation) -> Tensor:
        """``weight(operation)``, or UserError where it is no tensor of the shape of the backward map's."""
        found, expected = weight(operation), operation.backward_map.weight.shape
        if not isinstance(found, Tensor) or found.shape != expected:
            raise UserError(
                f"The backward weight of {operation.name}: expected a tensor of shape {tuple(expected)}, found "
                f"{shown(found)}; fix the rule's backward_weight."
            )
        return found

    @contextmanager
    def in_place(self, weight: Callable[[AffineOperation], Tensor], clamp: float = 0.0) -> Iterator[None]:
        """Within it, what is backpropagated through the network uses ``weight(operation)`` where W^T would be.

        Every forward weight still gets the gradient of its own operation, for the error that arrives there. The
        weights, in the shape of the backward map's, are taken when the forward pass reaches the operation. ``clamp``
        limits the errors that go down to that absolute value; 0 for no limit.
        """
        handles = []
        for operation in self.operations:
            inputs: list[Tensor] = []

            def cut(module, args, inputs=inputs):
                inputs.append(args[0])
                return (args[0].detach(), *args[1:])

            def send_down(module, args, output, inputs=inputs, operation=operation):
                x, b = inputs.pop(), self._taken(weight, operation)

                def down(error: Tensor) -> Tensor:
                    r = operation.backward_map.apply_weight(error, b.to(error.dtype)).to(x.dtype)
                    return r.clamp_(-clamp, clamp) if clamp > 0 else r

                return _SendDown.apply(output, x, down) if x.requires_grad else output

            handles += [
                operation.module.register_forward_pre_hook(cut),
                operation.module.register_forward_hook(send_down),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _SendDown(torch.autograd.Function):
    """The output as it is; backwards its error goes on to the operation, and through ``down`` to the input."""

    @staticmethod
    def forward(ctx, output: Tensor, x: Tensor, down: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.down = down
        # Not a view, which a nonlinearity in place after it could not overwrite; nor a copy.
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx, error: Tensor):
        return error, ctx.down(error), None


def _operations_with_errors(network: Network) -> dict[str, tuple[nn.Module, Size]]:
    """Operations with weight matrices whose input depends on trained weights below, and the shapes of their inputs."""
    found: dict[str, tuple[nn.Module, Size]] = {}
    handles = []
    for name, module in network.named_modules():
        # The weights of a normalisation are no map that errors go down through, whatever their shape.
        norm = isinstance(module, nn.LayerNorm | nn.RMSNorm)
        # A parametrisation (weight_norm) holds the matrix of the operation that it makes it for.
        weights: Iterable[Tensor] = module.parameters(recurse=False)
        if is_parametrized(module, "weight"):
            weights = [cast(Tensor, module.weight)]
        within_one = "parametrizations" in name.split(".")
        if not norm and not within_one and any(p.dim() > 1 for p in weights):

            def note(module, args, name=name):
                if args[0].requires_grad:
                    found[name] = (module, args[0].shape[1:])

            handles.append(module.register_forward_pre_hook(note))
    try:
        with torch.enable_grad():
            meta_pass(network, network.input_shape)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _backward_map(name: str, module: nn.Module, in_shape: Size) -> LinearMap:
    backward_map = operation_of(module).make_feedback(module, in_shape, FeedbackSettings())
    if not isinstance(backward_map, LinearMap):
        raise UserError(
            f"No backward weights are known for {name}, a {type(module).__name__}; use Linear, Conv2d or a type that "
            "is registered with dtp.feedback.register_feedback and a LinearMap."
        )
    return backward_map


def _layer_number(network: Network, module: nn.Module) -> int:
    return next(n for n, layer in enumerate(network, 1) if any(module is part for part in layer.modules()))
