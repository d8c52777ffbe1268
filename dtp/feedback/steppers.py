"""Optimizer steps without the overhead of the optimizer, which is most of the cost of a step on small weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

Stepper = Callable[[Sequence[Tensor]], None]


def stepper(optimizer: Optimizer) -> Stepper:
    """A function of the gradients that takes one step of ``optimizer``, the same numbers as its own ``step``.

    The gradients are those of the optimizer's parameters that require one, in their order. State is kept where the
    optimizer keeps it, so checkpoints are the optimizer's own. No ``.grad`` is left behind.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if is_plain(optimizer, SGD):
        return lambda gradients: _sgd_step(optimizer, parameters, gradients)

    def step(gradients: Sequence[Tensor]) -> None:
        with in_one_pass([optimizer]):
            set_gradients([optimizer], parameters, gradients)
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    return step


def set_gradients(optimizers: Sequence[Optimizer], parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Give each parameter its ``.grad``, for the steps of ``optimizers``.

    Fused ones go through weight and gradient in the order in which they lie in memory, and say nothing where the two
    differ (torch 2.14, on a CPU). Autograd lays out the gradient of a convolution as its images are.
    """
    fused = any(group.get("fused") for optimizer in optimizers for group in optimizer.param_groups)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if fused and gradient.stride() != parameter.stride():
            gradient = torch.empty_like(parameter).copy_(gradient)
        parameter.grad = gradient


@contextmanager
def in_one_pass(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Within, plain SGD and Adam on a CPU step in one pass over the weights, unless their user chose another way.

    Such a step takes a third of the time on large weights, with the same numbers but for rounding. Gradients are to be
    given within (:func:`set_gradients`). Nothing of it stays in the optimizers or gets into their checkpoints.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups if _may_be_fused(optimizer, group)]
    for group in groups:
        group["fused"] = True
    try:
        yield
    finally:
        for group in groups:
            group["fused"] = None


def _may_be_fused(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    plain = any(is_plain(optimizer, kind, groups=True) for kind in (SGD, Adam))
    chosen = any(group.get(name) is not None for name in ("fused", "foreach"))
    if not plain or chosen or group.get("differentiable"):
        return False
    weights = group["params"]
    if not all(w.is_floating_point() and w.device.type == "cpu" and _without_gaps(w) for w in weights):
        return False
    # State of another layout (of a run on another device, of other steps) would be taken in its order in memory. Of SGD
    # torch takes momenta of all weights or of none.
    states = [
        [t for name, t in optimizer.state.get(w, {}).items() if isinstance(t, Tensor) and name != "step"]
        for w in weights
    ]
    alike = all(t.stride() == w.stride() for w, tensors in zip(weights, states, strict=True) for t in tensors)
    return alike and len({len(tensors) for tensors in states}) < 2


def _without_gaps(weight: Tensor) -> bool:
    """Whether its values lie side by side in memory; those of a part of another tensor (``w[:, :3]``) may not."""
    return weight.is_contiguous() or torch.empty_like(weight).stride() == weight.stride()


def steps_of(optimizers: dict[int, Optimizer]) -> Callable[[dict[int, tuple[Tensor, ...]]], None]:
    """One step of each optimizer, by layer, on the gradients given."""
    steppers = {n: stepper(optimizer) for n, optimizer in optimizers.items()}

    def step(gradients: dict[int, tuple[Tensor, ...]]) -> None:
        for n, values in gradients.items():
            steppers[n](values)

    return step


def capturable(optimizer: Optimizer) -> bool:
    """Whether the steps of this optimizer can be part of a graph: SGD with momentum, and Adam, without extras."""
    return is_plain(optimizer, SGD) or is_plain(optimizer, Adam)


def capturable_stepper(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Stepper:
    """:func:`stepper` by operations on tensors alone, for a :func:`capturable` optimizer with its state prepared."""
    step = _sgd_step if isinstance(optimizer, SGD) else _adam_step
    return lambda gradients: step(optimizer, parameters, gradients)


def prepare_state(optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
    """Make the state that a :func:`capturable` optimizer has before its first step, on the device of the parameters."""
    for parameter in parameters:
        state = optimizer.state[parameter]
        if isinstance(optimizer, SGD):
            if optimizer.param_groups[0]["momentum"] and state.get("momentum_buffer") is None:
                # Zero times the momentum plus the gradient is the gradient, which is how SGD begins.
                state["momentum_buffer"] = torch.zeros_like(parameter)
        elif not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        else:
            # Where torch keeps it on the host it also takes it from the device.
            state["step"] = state["step"].to(parameter.device)


def is_plain(optimizer: Optimizer, kind: type[Optimizer], groups: bool = False) -> bool:
    """Whether an optimizer is one of ``kind`` without extras.

    That is: no hooks, no variant of its step, and one group unless ``groups``.
    """
    group = optimizer.param_groups[0]
    hooked = (
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )
    special = any(
        group.get(name)
        for name in (
            "nesterov",
            "dampening",
            "maximize",
            "fused",
            "amsgrad",
            "differentiable",
            "decoupled_weight_decay",
        )
    )
    plain = not special and not hooked and isinstance(group["lr"], float | int)
    return type(optimizer) is kind and (groups or len(optimizer.param_groups) == 1) and plain


@torch.no_grad()
def _sgd_step(optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    group = optimizer.param_groups[0]
    lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if decay:
            gradient = gradient.add(parameter, alpha=decay)
        if momentum:
            state = optimizer.state[parameter]
            velocity = state.get("momentum_buffer")
            if velocity is None:
                state["momentum_buffer"] = velocity = gradient.clone()
            else:
                velocity.mul_(momentum).add_(gradient)
            gradient = velocity
        parameter.add_(gradient, alpha=-lr)


@torch.no_grad()
def _adam_step(optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    group = optimizer.param_groups[0]
    (beta, beta_square), lr, epsilon, decay = group["betas"], group["lr"], group["eps"], group["weight_decay"]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        state = optimizer.state[parameter]
        if decay:
            gradient = gradient.add(parameter, alpha=decay)
        mean = state["exp_avg"].lerp_(gradient, 1 - beta)
        square = state["exp_avg_sq"].mul_(beta_square).addcmul_(gradient, gradient, value=1 - beta_square)
        # The count is exact in float32; the corrections made of it need float64.
        count = state["step"].add_(1).double()
        correction, correction_square = 1 - beta**count, 1 - beta_square**count
        denominator = (square.sqrt() / correction_square.sqrt().to(square.dtype)).add_(epsilon)
        parameter.sub_((lr / correction).to(parameter.dtype) * mean / denominator)
