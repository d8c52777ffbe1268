"""Floating-point precision of tensors."""

import torch
from torch import Tensor


def no_autocast(x: Tensor) -> torch.autocast:
    """Context in which autocast, if it is on for the device of ``x``, is off."""
    return torch.autocast(x.device.type, enabled=False)


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32 where autocast had rounded it to 16 bits; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
