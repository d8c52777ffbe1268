"""The base of all rules with local losses: each layer minimises its own loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dtp.algorithms.base import Algorithm
from dtp.contracts import gradients, handed_back, require_mapping
from dtp.errors import UserError
from dtp.feedback import Context, forward_with_context, layer_operations
from dtp.feedback.context import DrawnContext
from dtp.feedback.layers import is_layer_function
from dtp.models.modules import LocallyConnected2d
from dtp.models.network import Network


class LocalLosses(Algorithm):
    """Template for rules in which each layer minimises a loss of its own output and of constants.

    No gradient crosses a layer boundary. A rule returns the loss of each layer from :meth:`losses`.
    """

    made_for_shapes = True

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The losses that the layers minimise on a batch.

        Args:
            x: images (B, C, H, W).
            y: labels (B,) int64, or what else the task has for goals.

        Returns:
            The logits (B, classes), detached, and the loss of each layer n = 1..N, scalars whose graphs are disjoint.
        """
        raise UserError(f"{type(self).__name__} does not say what its layers learn; define losses in it.")

    def forward_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        found = self.losses(x, y)
        if not isinstance(found, tuple | list) or len(found) != 2 or found[1] == {}:
            raise handed_back(self, "losses", "the logits and the loss of each layer by its number", found)
        logits, losses = found
        require_mapping(self, "losses", losses, lambda v: isinstance(v, Tensor) and v.dim() == 0, "scalar losses")
        return logits, gradients(self, self.network, losses.values(), self.forward_parameters)

    def loss_gradient(self, s: Tensor, y: Tensor, function=None) -> Tensor:
        """Gradient of each sample's own task loss with respect to ``s`` (B, *shape), not divided by B.

        ``function`` maps ``s`` to the output; None where ``s`` is the output. A constant.
        """
        s = s.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.task_loss(s if function is None else function(s), y, reduction="sum")
        return torch.autograd.grad(loss, s)[0]


_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, LocallyConnected2d)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def function_place(layer: nn.Module) -> int | None:
    """Place in a layer of its last elementwise nonlinearity; None where there is none.

    Raises:
        UserError: the layer has one with weights.
    """
    places = [i for i, module in enumerate(layer_operations(layer)) if is_layer_function(module)]
    return places[-1] if places else None


class Stages:
    """A network as stages h_n = f_n(A_n(h_{n-1})), for rules whose signals act before the nonlinearity, at A_n.

    A_n is what layer n does before its last nonlinearity f_n, after what layer n-1 does behind its own (pooling,
    standardisation), so that every f_n is elementwise and comes last; f_N is the identity. The modules are those of the
    network, and so are their weights. What is nonlinear within a layer (a residual unit) is part of A_n.
    """

    def __init__(self, network: Network):
        self._affine: dict[int, nn.Sequential] = {}
        self._functions: dict[int, nn.Module] = {}
        behind: list[nn.Module] = []
        for n, layer in enumerate(network, 1):
            modules = layer_operations(layer)
            place = function_place(layer)
            place = len(modules) if place is None or n == network.depth else place
            self._affine[n] = nn.Sequential(*behind, *modules[:place])
            self._functions[n] = modules[place] if place < len(modules) else nn.Identity()
            behind = modules[place + 1 :]

    def affine(self, n: int, h: Tensor, given: Context | None = None) -> tuple[Tensor, Context]:
        """A_n(h), (B, *shape), for h = h_{n-1}, and its context.

        With ``given``, the context of a clean pass, normalisations use its statistics and random operations its
        numbers, and nothing is changed.
        """
        return forward_with_context(self._affine[n], h, given)

    def function(self, n: int, a: Tensor) -> Tensor:
        """f_n(a), (B, *shape), elementwise."""
        function = self._functions[n]
        # In place it would overwrite what the loss of the layer is of.
        return function(a.clone() if getattr(function, "inplace", False) else a)

    def kept(self, n: int, context: Context | None) -> Tensor | float:
        """What the dropout right behind f_n multiplies h_n by, (B, *shape); 1 where it drops nothing.

        Args:
            context: of A_{n+1}, to which that dropout belongs.
        """
        factor: Tensor | float = 1.0
        for module, drawn in zip(self._affine[n + 1], context or (), strict=False):
            if not isinstance(module, _DROPOUT) or not isinstance(drawn, DrawnContext):
                break
            factor = drawn.numbers * factor
        return factor

    def positions(self, n: int, a: Tensor) -> int:
        """Number of positions of A_n's output ``a``, flat or not, that share its weights: of a convolution, else 1."""
        affine = [module for module in self._affine[n].modules() if isinstance(module, _AFFINE)]
        last = affine[-1] if affine else None
        return a[0].numel() // last.out_channels if isinstance(last, nn.Conv1d | nn.Conv2d) else 1
