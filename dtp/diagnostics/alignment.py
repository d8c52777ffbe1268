"""How well feedback weights match forward weights, and a rule's updates match backprop's. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dtp.algorithms.base import Algorithm
from dtp.contracts import handed_back, is_number, require_mapping
from dtp.models.precision import full_precision


@dataclass(frozen=True)
class Alignment:
    """``angle`` in degrees (90: unrelated) and relative ``distance`` |a - b| / |b| of a tensor a to a reference b.

    Zero tensors have no direction. Two of them are equal, so both numbers are 0; one alone is at 90 degrees to anything
    else, and the distance to a zero reference is infinite. Neither number is NaN for finite tensors.
    """

    angle: float
    distance: float


def alignment(a: Tensor, reference: Tensor) -> Alignment:
    """Angle and relative distance of two tensors of one shape, flattened; computed in float64."""
    a, b = _flat(a), _flat(reference)
    length, reference_length = a.norm(), b.norm()
    if reference_length == 0:
        return Alignment(0.0, 0.0) if length == 0 else Alignment(90.0, math.inf)
    if length == 0:
        return Alignment(90.0, 1.0)
    u, v = a / length, b / reference_length
    # acos of the cosine loses half the digits near 0 and 180 degrees; this form loses none anywhere (Kahan).
    angle = 2 * torch.rad2deg(torch.atan2((u - v).norm(), (u + v).norm()))
    return Alignment(float(angle), float((a - b).norm() / reference_length))


def _flat(x: Tensor) -> Tensor:
    # Apple's devices have no float64.
    x = x.detach().cpu() if x.device.type == "mps" else x.detach()
    return x.double().flatten()


def feedback_alignment(algorithm: Algorithm) -> dict[int, Alignment]:
    """Alignment of the feedback weights with the transposed forward weights, by layer, all of a layer's together."""
    weights = algorithm.feedback_weights()
    pairs = "lists of pairs (feedback weights, transposed forward weights)"
    require_mapping(algorithm, "feedback_weights", weights, lambda found: isinstance(found, list), pairs)
    return {n: _aligned(pairs) for n, pairs in weights.items()}


def _aligned(pairs: list[tuple[Tensor, Tensor]]) -> Alignment:
    feedback, forward = zip(*pairs, strict=True)
    return alignment(torch.cat([v.flatten() for v in feedback]), torch.cat([w.flatten() for w in forward]))


def update_alignment(algorithm: Algorithm, x: Tensor, y: Tensor) -> dict[int, Alignment]:
    """Alignment of the rule's forward gradients with those of backprop on the mean cross-entropy, by layer.

    The rule's gradient is divided by the factor it stands for (beta), so ``distance`` compares lengths too. Leaves
    weights, gradients, buffers, noise and random state as they are.

    Args:
        x: images (B, C, H, W) on the algorithm's device.
        y: labels (B,).
    """
    network, parameters = algorithm.network, algorithm.forward_parameters
    # Both from the same random state and buffers: a layer that draws (dropout) draws the same for both, and one whose
    # weights are of buffers that each pass changes (spectral normalisation) has the same.
    with torch.enable_grad():
        with _untouched(algorithm), algorithm.randomness("alignment", algorithm.batches_done):
            _, rule = algorithm.checked_gradients(x, y)
        with _untouched(algorithm), algorithm.randomness("alignment", algorithm.batches_done):
            backprop = torch.autograd.grad(algorithm.task_loss(full_precision(network(x)), y), parameters)
    # Those of an embedding may be sparse.
    rule, backprop = ([gradient.to_dense() for gradient in gradients] for gradients in (rule, backprop))
    by_parameter = {id(p): (g, b) for p, g, b in zip(parameters, rule, backprop, strict=True)}
    found = {}
    for n in range(1, network.depth + 1):
        pairs = [by_parameter[id(p)] for p in network[n].parameters() if id(p) in by_parameter]
        if pairs:
            scale = algorithm.gradient_scale(n)
            if not is_number(scale):
                raise handed_back(algorithm, "gradient_scale", "a number", scale)
            gradient = torch.cat([g.flatten() for g, _ in pairs]) / scale
            found[n] = alignment(gradient, torch.cat([b.flatten() for _, b in pairs]))
    return found


@contextmanager
def _untouched(algorithm: Algorithm) -> Iterator[None]:
    """Put buffers back afterwards (running statistics), and let noise come from copies of the streams."""
    buffers = [(buffer, buffer.clone()) for buffer in algorithm.buffers()]
    try:
        with algorithm.noise_streams.unchanged():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
