"""Shapes that modules put out, found without data."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Size, Tensor, nn

from dtp.errors import UserError
from dtp.models.kept import Kept

# Functions of each value by itself; nn.ReLU6 is an nn.Hardtanh.
ELEMENTWISE = (
    *(nn.ELU, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Hardtanh, nn.Hardswish),
    *(nn.SELU, nn.CELU, nn.Mish, nn.Softsign, nn.LogSigmoid, nn.Hardsigmoid),
)
# What comes out has the shape of what goes in. torch evaluates most of these on the meta device in Python, which would
# be the better part of the time that a network takes to be made.
SHAPE_KEEPING = (*ELEMENTWISE, nn.Sigmoid, nn.Identity, nn.Dropout)
# What torch evaluates on a batch of no samples, which has the shape all the same: in a fiftieth of the time that it
# takes on the meta device, for an affine map. With the dimensions of a sample: torch takes a batch of one dimension
# less for a sample alone. Any is 0.
WITHOUT_SAMPLES = {
    nn.Linear: 0,
    nn.Conv1d: 2,
    nn.Conv2d: 3,
    nn.Conv3d: 4,
    nn.MaxPool1d: 2,
    nn.MaxPool2d: 3,
    nn.AvgPool2d: 3,
    nn.Flatten: 0,
}


@torch.no_grad()
def output_shape(module: nn.Module, in_shape: Iterable[int]) -> Size:
    """Shape of one output sample for input samples of ``in_shape``, both without the batch dimension.

    Evaluated on the meta device with meta copies of the tensors, so it costs no memory and leaves buffers as they are;
    with two samples, for batch normalisation refuses one.

    Raises:
        RuntimeError: from torch, when the module does not accept the shape.
        ValueError: the module makes other samples of those it is given, more of them say.
        NotOneTensor: the module, or one of an ``nn.Sequential``, puts out something else.
    """
    parts = list(module) if type(module) is nn.Sequential and not has_hooks(module) else [module]
    changing = [part for part in parts if not _is_plain(part, SHAPE_KEEPING)]
    shape = Size(in_shape)
    for part in changing:
        if not _is_plain(part, WITHOUT_SAMPLES) or WITHOUT_SAMPLES[type(part)] not in (0, len(shape)):
            break
        like = next(part.parameters(), torch.empty(0))
        output = part(like.new_empty(0, *shape))
        _require_tensor(part, (), output)
        shape = output.shape[1:]
    else:
        return shape
    whole = nn.Sequential(*changing)
    checks = [one.register_forward_hook(_require_tensor) for part in changing for one in _in_order(part)]
    try:
        found = meta_pass(whole, in_shape).shape
    finally:
        for check in checks:
            check.remove()
    if found[:1] != (2,):
        raise ValueError(f"it makes values of shape {tuple(found)} of two samples")
    return found[1:]


def meta_pass(module: nn.Module, in_shape: Iterable[int]) -> Tensor:
    """What ``module`` makes of a :func:`meta_batch`; what it holds stays as it is, also what is no buffer.

    Such as the weight that ``torch.nn.utils.weight_norm`` makes of its parameters before each pass.
    """
    kept = Kept(module)
    try:
        # Without ties: torch would leave a submodule that is used twice on the meta device.
        sample = meta_batch(module, in_shape)
        return torch.func.functional_call(module, meta_state(module), (sample,), tie_weights=False)
    finally:
        kept.restore()


def _is_plain(module: nn.Module, kinds: Container[type[nn.Module]]) -> bool:
    """Whether a module is of one of these kinds, and has neither hooks nor a ``forward`` of its own."""
    return type(module) in kinds and "forward" not in vars(module) and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its ``forward``."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def meta_batch(module: nn.Module, in_shape: Iterable[int]) -> Tensor:
    """Two samples as ``module`` takes them, without values: of its own precision, or whole numbers for an embedding."""
    first = next(part for part in module.modules() if next(part.children(), None) is None)
    dtype = next((tensor.dtype for tensor in module.state_dict().values() if tensor.is_floating_point()), None)
    dtype = torch.int64 if isinstance(first, nn.Embedding | nn.EmbeddingBag) else dtype
    return torch.empty(2, *in_shape, dtype=dtype, device="meta")


class NotOneTensor(Exception):
    """A module puts out something else than one tensor; the text is what."""


def _in_order(module: nn.Module) -> list[nn.Module]:
    return [module, *module] if isinstance(module, nn.Sequential) else [module]


def _require_tensor(module: nn.Module, inputs: tuple, output: Any) -> None:
    if not isinstance(output, Tensor):
        raise NotOneTensor(f"{'None' if output is None else type(output).__name__} of {type(module).__name__}")


def meta_state(module: nn.Module) -> dict[str, Tensor]:
    """Meta copies of the parameters and buffers by name; of a submodule that is used twice, by its first name.

    The count of batches alone keeps its value, which a batch normalisation with ``momentum=None`` divides by.
    """
    return {
        f"{prefix}.{name}".lstrip("."): tensor.detach().clone()
        if name == "num_batches_tracked"
        else tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        for prefix, part in module.named_modules()
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
    }


def channels_last(x: Tensor) -> bool:
    """Whether a batch of maps (B, C, H, W) lies in memory with the channels innermost."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def given_shape(given: Any) -> Size:
    """The shape of one sample that the user means: it, or a batch.

    Raises:
        UserError: it is neither.
    """
    if isinstance(given, Tensor):
        return given.shape[1:]
    if not isinstance(given, Sequence) or not all(isinstance(size, Integral) and int(size) > 0 for size in given):
        raise UserError(
            f"input_shape: expected the shape of one sample, such as (3, 32, 32), or a batch, found {repr(given)[:80]}."
        )
    return Size(int(size) for size in given)
