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
    of (s, m), the same for all steps. Its K-th power takes some log K products, and no minimum enters, for that may
    lie far away, or nowhere, where the curvature is small::

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
            factors = torch.from_numpy(_factors(np, h.numpy(), rate.numpy(), momentum, arrays))
    else:
        factors = _factors(torch, h, rate, momentum, masks)
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


# Below, ``xp`` is numpy or torch, and the others are its arrays.
#
# A step is z <- T z + b, z = (s, m). With r^2 = mu, the determinant of T, and the sign of its trace, M = sign T - r has
# M^2 = tau (M + r), tau = |trace| - 2 r. So powers of T and their sums are a + b M, pairs (a, b). Next to critical
# damping tau is nearly 0, and pairs keep the digits that products of matrices would lose there.


def _factors(xp: Any, h: Any, rate: Any, momentum: float, masks: Sequence[Any]) -> Any:
    """As :func:`momentum_moves`, (4, values), from masks of :func:`_digits`."""
    x, root = rate * h, math.sqrt(momentum)
    one, zero = xp.ones_like(h), xp.zeros_like(h)
    falls = x > 1 + momentum
    sign = xp.where(falls, -one, one)
    tau = xp.where(falls, x - (1 + root) ** 2, ((1 - momentum) / (1 + root)) ** 2 - x)
    # T^n by n = 2^i, and the sum of T^0 to T^(n-1); what is found so far of the one and the other.
    step, steps, power, powers = (sign * root, sign), (one, zero), (one, zero), (zero, zero)
    for n, mask in enumerate(masks):
        if n:
            steps = _plus(steps, _times(step, steps, root, tau))
            step = _times(step, step, root, tau)
        if mask is not False:
            # Before the first digit both are 1 and 0, with which nothing needs to be multiplied.
            begun, found = power[0] is not one, (*powers, *power)
            powers = _plus(powers, _times(power, steps, root, tau)) if begun else steps
            power = _times(power, step, root, tau) if begun else step
            if mask is not True:
                longer = (xp.where(mask, new, old) for new, old in zip((*powers, *power), found, strict=True))
                powers, power = (next(longer), next(longer)), (next(longer), next(longer))
    # M times (s, m) of a gradient of 1 and of a velocity of 1.
    g_s, g_m = -rate * (sign * (1 + momentum - x) - root), sign * (momentum - x) - root
    m_s, m_m = -momentum * rate * sign, sign * momentum - root
    (a, b), (c, d) = powers, power
    return xp.stack((b * g_s - a * rate, d * m_s, a + b * g_m, c + d * m_m))


def _plus(one: Any, other: Any) -> Any:
    return one[0] + other[0], one[1] + other[1]


def _times(one: Any, other: Any, root: float, tau: Any) -> Any:
    (a, b), (c, d) = one, other
    bd = tau * b * d
    return a * c + root * bd, a * d + b * c + bd
