"""K steps of SGD with momentum on a gradient that is linear in the weights, at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtp.models.precision import has_float64

# On a CPU numpy takes a third of torch's time for some hundred values, since torch takes longer to begin each
# operation. With many more nothing is gained, and torch has threads.
_FEW = 1 << 14


def momentum_moves(
    curvatures: Sequence[Tensor], rates: Sequence[float], momentum: float, steps: Sequence[int | float]
) -> list[Tensor]:
    """What K steps of SGD with momentum make of a first gradient g and velocity m, where the gradient is linear in V.

    With the curvature h and the way s = V - V_0, one step is ``m <- mu m + g + h s``, ``s <- s - lr m``: an affine map
    of (s, m), the same for all steps. Its K-th power, by repeated squaring, takes some log K products, and no minimum
    enters, for that may lie far away, or nowhere, where the curvature is small::

        V <- V + f_0 g + f_1 m,    m <- f_2 g + f_3 m

    Args:
        curvatures: h of some weights, at least 0, of any shapes.
        rates: lr of each of them, above 0.
        momentum: mu, from 0 to below 1.
        steps: K of each, likewise; ``inf`` is the minimum itself, with no velocity, and no move where h is 0.

    Returns:
        The factors f of each, (4, *h), float64 (on the CPU, where the device of h has no such numbers).
    """
    sizes = tuple(h.numel() for h in curvatures)
    h = torch.cat([h.flatten() for h in curvatures])
    # Small next to the batch; without so many digits powers of nearly 1 have none left.
    h = (h if has_float64(h.device) else h.cpu()).double()
    rate = _repeated(tuple(rates), sizes, torch.float64, h.device)
    masks = _digits(tuple(0 if math.isinf(k) else int(k) for k in steps), sizes, h.device)
    if h.numel() <= _FEW and _has_numbers(h):
        with np.errstate(all="ignore"):
            arrays = [mask.numpy() if isinstance(mask, Tensor) else mask for mask in masks]
            factors = torch.from_numpy(_power(np, _step(np, h.numpy(), rate.numpy(), momentum), arrays))
    else:
        factors = _power(torch, _step(torch, h, rate, momentum), masks)
    parts = list(factors.split(sizes, 1))
    for n, k in enumerate(steps):
        if math.isinf(k):
            its, nothing = h.split(sizes)[n], torch.zeros_like(parts[n][0])
            parts[n] = torch.stack([torch.where(its > 0, -1 / its, 0.0), nothing, nothing, nothing])
    return [part.view(4, *curvature.shape) for part, curvature in zip(parts, curvatures, strict=True)]


def _has_numbers(x: Tensor) -> bool:
    """Whether numpy can read it: not where it is on another device, stands for one that is, or is differentiated."""
    return type(x) is Tensor and x.device.type == "cpu" and not x.requires_grad


@lru_cache(maxsize=64)
def _repeated(
    values: tuple[float | bool, ...], sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Each value as many times as its size says. To the cache True is 1.0: the type of numbers tells them apart."""
    return torch.cat([torch.full((n,), value, dtype=dtype) for value, n in zip(values, sizes, strict=True)]).to(device)


@lru_cache(maxsize=64)
def _digits(steps: tuple[int, ...], sizes: tuple[int, ...], device: torch.device) -> list[bool | Tensor]:
    """By binary digit of the numbers of steps, lowest first, where it is 1: a mask, or one answer for all."""
    digits = [tuple(bool(k >> n & 1) for k in steps) for n in range(max(steps).bit_length())]
    return [_repeated(digit, sizes, torch.bool, device) if len({*digit}) > 1 else digit[0] for digit in digits]


# Below, ``xp`` is numpy or torch, and the others are its arrays. An affine map of (s, m) is (2, 3, values): what s and
# m become, of s, of m, and of g.


def _step(xp: Any, h: Any, rate: Any, momentum: float) -> Any:
    new_s, new_m = (1 - rate * h, -momentum * rate, -rate), (h, xp.full_like(h, momentum), xp.ones_like(h))
    return xp.stack(new_s + new_m).reshape(2, 3, len(h))


def _then(first: Any, second: Any) -> Any:
    """The map that is one after the other."""
    both = second[:, 0, None] * first[0]
    both += second[:, 1, None] * first[1]
    both[:, 2] += second[:, 2]
    return both


def _power(xp: Any, step: Any, masks: Sequence[Any]) -> Any:
    """The factors of powers of a map, (4, values).

    Args:
        xp, step: the map, and whose arrays they are.
        masks: of :func:`_digits`, for the exponents.
    """
    one, zero = xp.ones_like(step[0, 0]), xp.zeros_like(step[0, 0])
    power, begun = xp.stack((one, zero, zero, zero, one, zero)).reshape(step.shape), False
    for n, mask in enumerate(masks):
        step = _then(step, step) if n else step
        if mask is not False:
            longer = _then(power, step) if begun else step
            power, begun = longer if mask is True else xp.where(mask, longer, power), True
    return xp.stack((power[0, 2], power[0, 1], power[1, 2], power[1, 1]))
