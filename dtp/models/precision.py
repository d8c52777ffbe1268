"""Floating-point precision of tensors."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def no_autocast(x: Tensor) -> AbstractContextManager:
    """Context in which autocast, if there is one for the device of ``x``, is off."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


@contextmanager
def grad_enabled(wanted: bool) -> Iterator[None]:
    """Context with gradients or without, after which autocast rounds weights anew.

    Some releases of torch keep what was rounded without gradients for later passes, which then have none.
    """
    with torch.set_grad_enabled(wanted):
        yield
    if not wanted:
        torch.clear_autocast_cache()


def has_float64(device: torch.device) -> bool:
    """Whether the device computes with 64 bits."""
    return device.type != "mps"


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32 where autocast had rounded it to 16 bits; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
