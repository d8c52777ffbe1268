"""How well feedback weights match forward weights, and a rule's updates match backprop's. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtp.algorithms.base import Algorithm, full_precision
from dtp.feedback import FeedbackLayer, operations


@dataclass(frozen=True)
class Alignment:
    """``angle`` in degrees (90: unrelated) and relative ``distance`` |a - b| / |b| of a tensor a to a reference b."""

    angle: float
    distance: float


def alignment(a: Tensor, reference: Tensor) -> Alignment:
    """Angle and relative distance of two tensors of one shape, flattened; computed in float64."""
    a, b = a.detach().double().flatten(), reference.detach().double().flatten()
    norms = (a.norm() * b.norm()).clamp_min(torch.finfo(torch.float64).tiny)
    cosine = (a @ b / norms).clamp(-1.0, 1.0)
    # Near 0 degrees acos loses half the digits; the chord between the unit vectors does not.
    angle = torch.rad2deg(torch.acos(cosine))
    if cosine > 0.999:
        tiny = torch.finfo(torch.float64).tiny
        chord = (a / a.norm().clamp_min(tiny) - b / b.norm().clamp_min(tiny)).norm()
        angle = torch.rad2deg(2 * torch.asin((chord / 2).clamp(max=1.0)))
    distance = (a - b).norm() / b.norm().clamp_min(torch.finfo(torch.float64).tiny)
    return Alignment(float(angle), float(distance))


def transposed_weight(operation: nn.Module) -> Tensor | None:
    """The forward weight of an affine operation in the layout of its feedback weight; None if it has none."""
    if isinstance(operation, nn.Linear):
        return operation.weight.t()
    if isinstance(operation, nn.Conv2d):
        return operation.weight
    return None


def weight_alignment(layer: nn.Module, feedback: FeedbackLayer) -> Alignment | None:
    """Alignment of the feedback weights V of one layer with the transposed forward weights W^T.

    All affine operations of the layer are taken together. None where the feedback is not made of such operations.
    """
    forward, backward = [], []
    modules = operations(layer)
    for operation, position in zip(feedback.operations, feedback.positions, strict=True):
        reference = transposed_weight(modules[position]) if position is not None else None
        weights = [p for name, p in operation.named_parameters() if name.endswith("weight")]
        if reference is not None and len(weights) == 1 and weights[0].shape == reference.shape:
            forward.append(reference.flatten())
            backward.append(weights[0].flatten())
    return alignment(torch.cat(backward), torch.cat(forward)) if forward else None


def update_alignment(algorithm: Algorithm, x: Tensor, y: Tensor) -> dict[int, Alignment]:
    """Alignment of the rule's forward gradients with those of backprop on the mean cross-entropy, by layer.

    The rule's gradient is divided by the factor it stands for (beta), so ``distance`` compares lengths too. Leaves
    weights, gradients, buffers, noise and random state as they are.

    Args:
        x: images (B, C, H, W) on the algorithm's device.
        y: labels (B,).
    """
    network = algorithm.network
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.enable_grad():
        _, rule = algorithm.forward_gradients(x, y)
        parameters = algorithm.forward_parameters
        backprop = torch.autograd.grad(F.cross_entropy(full_precision(network(x)), y), parameters)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
    by_parameter = {id(p): (g, b) for p, g, b in zip(parameters, rule, backprop, strict=True)}
    found = {}
    for n in range(1, network.depth + 1):
        pairs = [by_parameter[id(p)] for p in network[n].parameters() if id(p) in by_parameter]
        if pairs:
            gradient = torch.cat([g.flatten() for g, _ in pairs]) / algorithm.gradient_scale(n)
            found[n] = alignment(gradient, torch.cat([b.flatten() for _, b in pairs]))
    return found
