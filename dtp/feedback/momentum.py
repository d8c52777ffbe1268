"""K steps of SGD with momentum on a gradient that is linear in the weights, in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

# On a CPU numpy takes half of torch's time for 500 values and two thirds for 2,000, since torch takes longer to begin
# each of some sixty operations. From 8,000 on nothing is gained, and torch has threads.
_FEW = 1 << 12


def momentum_moves(
    curvature: Tensor, rate: Tensor | float, momentum: float, steps: Tensor | float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What K steps of SGD with momentum make of a first gradient g and velocity m, where the gradient is linear in V.

    On a gradient h e the steps m <- mu m + h e, e <- e - lr m are linear: (e, m)_K = T^K (e, m)_0 with
    T = [[1 - lr h, -lr mu], [h, mu]], whose determinant is mu. Its powers are T^K = U_K T - mu U_{K-1}, U_K a Chebyshev
    polynomial of the trace. With g = h e::

        V <- V - (1 - T^K_11) / h g + T^K_12 m,    m <- U_K g + T^K_22 m

    Args:
        curvature: h, at least 0.
        rate: lr, above 0, a number or one for each value of h.
        momentum: mu, from 0 to below 1.
        steps: K, likewise; ``inf`` is the minimum itself, with no velocity, and no move where h is 0.

    Returns:
        The factors of g and of m in V, and of g and of m in the velocity, float64, in the shape of ``curvature``.
    """
    h = curvature.double()
    rate, steps = torch.as_tensor(rate, dtype=h.dtype), torch.as_tensor(steps, dtype=h.dtype)
    if h.numel() <= _FEW and all(map(_has_numbers, (h, rate, steps))):
        with np.errstate(all="ignore"):
            moves = _moves(np, h.numpy(), rate.numpy(), momentum, steps.numpy())
        by_g, by_m, g_to_m, m_to_m = map(torch.as_tensor, moves)
        return by_g, by_m, g_to_m, m_to_m
    return _moves(torch, h, rate.to(h.device, non_blocking=True), momentum, steps.to(h.device, non_blocking=True))


def _has_numbers(x: Tensor) -> bool:
    """Whether numpy can read it: not where it is on another device, stands for one that is, or is differentiated."""
    return type(x) is Tensor and x.device.type == "cpu" and not x.requires_grad


# Below, ``xp`` is numpy or torch, and h, rate and steps are its arrays.


def _moves(xp: Any, h: Any, rate: Any, momentum: float, steps: Any) -> tuple[Any, Any, Any, Any]:
    """As :func:`momentum_moves`."""
    forever = xp.isinf(steps)
    steps = xp.where(forever, 1.0, steps)
    factor = 1 - rate * h
    if momentum == 0:
        # The velocity is the last gradient, and no state.
        this = xp.abs(factor) ** (steps - 1) * xp.where((steps % 2 == 0) & (factor < 0), -1.0, 1.0)
        left, of_m, m_to_m = this * factor, xp.zeros_like(h), xp.zeros_like(h)
    else:
        root = math.sqrt(momentum)
        half = (factor + momentum) / (2 * root)
        this, before = _chebyshev(xp, half, root, steps)
        left, of_m, m_to_m = this * factor - momentum * before, -rate * momentum * this, momentum * (this - before)
    # Where a step is small, what is left of a distance is as good as 1, and its difference to 1 has no digits.
    small = rate * h < 0.5 * (1 - math.sqrt(momentum)) ** 2
    of_g = xp.where(small, _gone_over_curvature(xp, xp.where(small, h, 0.0), rate, momentum, steps), (1 - left) / h)
    of_g = xp.where(forever, xp.where(h > 0, 1 / h, 0.0), of_g)
    of_m, g_to_m, m_to_m = (xp.where(forever, 0.0, entry) for entry in (of_m, this, m_to_m))
    return -of_g, of_m, g_to_m, m_to_m


def _gone_over_curvature(xp: Any, h: Any, rate: Any, momentum: float, steps: Any) -> Any:
    """(1 - T^K_11) / h of overdamped steps, to all digits for small h, and for h = 0, from the eigenvalues of T."""
    x = rate * h
    gap = xp.sqrt((1 - momentum + x) ** 2 - 4 * x)
    # The larger eigenvalue is 1 - x per_x, the smaller one less by the gap, and their product is the momentum.
    per_x = 2 / (1 - momentum + x + gap)
    away = x * per_x
    larger = 1 - away
    smaller = momentum / larger
    slow = xp.where(away > 0, -xp.expm1(steps * xp.log1p(-away)) / away, steps)
    return rate * per_x * ((larger - momentum) * slow - smaller * (1 - smaller**steps)) / gap


def _chebyshev(xp: Any, c: Any, root: float, n: Any) -> tuple[Any, Any]:
    """U_n and U_{n-1}; U_n = root^(n-1) sin(n theta) / sin(theta), c = cos(theta), continued to |c| > 1.

    Nothing of it overflows.
    """
    size, negative, even = xp.abs(c), c < 0, n % 2 == 0
    inner = xp.arccos(xp.clip(size, None, 1.0))
    outer = xp.arccosh(xp.clip(size, 1.0, None))
    near, swings = size == 1, size <= 1
    sine, growth, log_root = xp.sin(inner), xp.expm1(-2 * outer), math.log(root)
    found = []
    for k, same_parity in ((n, even), (n - 1, ~even)):
        power = (k - 1) * log_root
        scale = xp.exp(power)
        swinging = scale * xp.sin(k * inner) / sine
        sliding = xp.exp(power + (k - 1) * outer) * xp.expm1(-2 * k * outer) / growth
        value = xp.where(near, scale * k, xp.where(swings, swinging, sliding))
        found.append(xp.where(negative & same_parity, -value, value))
    return found[0], found[1]
