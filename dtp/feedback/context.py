"""What a forward layer passes to its feedback layer: pooling switches, shapes, normalisation constants.

A context is made and returned by a forward pass and passed on as an argument. No module stores one. So the value of a
feedback layer depends on its arguments alone, not on earlier passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Size, Tensor

from dtp.models.shapes import channels_last


class OperationContext(Protocol):
    """What the forward pass of one operation hands to its feedback; a user's own needs these two methods and no base.

    It holds constants: no gradient goes through it.
    """

    def repeat(self, samples: int) -> OperationContext:
        """That of the batch repeated ``samples`` times, sample-major: what is (B, ...) becomes (samples * B, ...).

        What does not depend on the sample stays as it is.
        """
        ...

    def select(self, index: Any) -> OperationContext:
        """That of the samples ``index`` (int64 tensor, boolean mask or slice over the batch).

        What does not depend on the sample stays as it is.
        """
        ...


class SharedContext(OperationContext):
    """One whose values are the same for all samples."""

    def repeat(self, samples: int) -> Self:
        return self

    def select(self, index: Any) -> Self:
        return self


class SampleContext(OperationContext):
    """One whose fields are tensors (B, ...) alone."""

    def repeat(self, samples: int) -> Self:
        return type(self)(*(repeated(field, samples) for field in vars(self).values()))

    def select(self, index: Any) -> Self:
        return type(self)(*(field[index] for field in vars(self).values()))


@dataclass(frozen=True)
class ShapeContext(SharedContext):
    """Shape of one sample, without the batch dimension, before the operation changed it."""

    shape: Size


@dataclass(frozen=True)
class SwitchesContext(OperationContext):
    """Max-pooling switches.

    Attributes:
        indices: (B, C, *pooled) int64, flat position of each maximum in the unpooled map of its sample and channel.
        shape: (C, *unpooled), shape of one sample before pooling.
    """

    indices: Tensor
    shape: Size

    def repeat(self, samples: int) -> SwitchesContext:
        return SwitchesContext(repeated(self.indices, samples), self.shape)

    def select(self, index) -> SwitchesContext:
        return SwitchesContext(self.indices[index], self.shape)


@dataclass(frozen=True)
class AffineContext(SharedContext):
    """Statistics that a batch normalisation used: ``mean`` and ``inverse_std``, each of shape (C,)."""

    mean: Tensor
    inverse_std: Tensor


@dataclass(frozen=True)
class SampleAffineContext(SampleContext):
    """Statistics that each sample was normalised by: ``mean`` and ``inverse_std``, (B, ...), broadcastable."""

    mean: Tensor
    inverse_std: Tensor


@dataclass(frozen=True)
class SlopeContext(SampleContext):
    """``slope`` (B, *shape), the derivative of an elementwise nonlinearity where the clean pass evaluated it."""

    slope: Tensor


@dataclass(frozen=True)
class DrawnContext(SampleContext):
    """``numbers`` (B, *shape) that a random operation drew; a pass that is compared with this one has the same."""

    numbers: Tensor


@dataclass(frozen=True)
class RedrawnContext(OperationContext):
    """What an operation that draws unseen numbers needs to draw them again.

    Attributes:
        generator: state of torch's generator, of the device of the samples, before it drew.
        samples: how many it was given.
        rows: (B,) int64, which of them this is of; None for all.
    """

    generator: Tensor
    samples: int
    rows: Tensor | None

    def repeat(self, samples: int) -> RedrawnContext:
        return self

    def select(self, index) -> RedrawnContext:
        rows = torch.arange(self.samples) if self.rows is None else self.rows
        return RedrawnContext(self.generator, self.samples, rows[index])


@dataclass(frozen=True)
class BranchesContext(OperationContext):
    """Contexts of the two branches of a residual unit."""

    branch: Context
    shortcut: Context

    def repeat(self, samples: int) -> BranchesContext:
        return BranchesContext(self.branch.repeat(samples), self.shortcut.repeat(samples))

    def select(self, index) -> BranchesContext:
        return BranchesContext(self.branch.select(index), self.shortcut.select(index))


class Context(tuple):
    """Contexts of the operations of one layer, in forward order; ``None`` where an operation needs none.

    A user's own operation may put anything here that has the two methods of :class:`OperationContext`.

    Attributes:
        affine: (B, ...), value of the layer's affine map in this pass, a constant; None where nobody asked to keep it.
    """

    affine: Tensor | None = None

    def repeat(self, samples: int) -> Context:
        """Context of the batch repeated ``samples`` times, sample-major, as ``x.repeat(samples, ...)`` repeats it."""
        if samples == 1:
            return self
        return Context(None if item is None else item.repeat(samples) for item in self)

    def select(self, index) -> Context:
        """Context of the samples ``index`` (int64 tensor, boolean mask or slice over the batch)."""
        selected = Context(None if item is None else item.select(index) for item in self)
        selected.affine = None if self.affine is None else self.affine[index]
        return selected


def holds_statistics(context: Context) -> bool:
    """Whether something in the layer was normalised, within residual units too."""
    branches = [b for item in context if isinstance(item, BranchesContext) for b in (item.branch, item.shortcut)]
    return any(isinstance(item, AffineContext | SampleAffineContext) for item in context) or any(
        map(holds_statistics, branches)
    )


def repeated(x: Tensor, samples: int) -> Tensor:
    """(B, ...) -> (samples * B, ...), sample-major, in the memory format of ``x``, which torch's own would change."""
    if channels_last(x):
        return x.permute(0, 2, 3, 1).repeat(samples, 1, 1, 1).permute(0, 3, 1, 2)
    return x.repeat(samples, *(1 for _ in x.shape[1:]))
