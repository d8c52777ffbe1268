"""Optimizer steps without the optimizer's own overhead, which is most of the cost of a step on small weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

Stepper = Callable[[Sequence[Tensor]], None]


def stepper(optimizer: Optimizer) -> Stepper:
    """A function of the gradients that takes one step of ``optimizer``, the same numbers as its own ``step``.

    The gradients are those of the optimizer's parameters that require one, in their order. State is kept where the
    optimizer keeps it, so checkpoints are the optimizer's own. No ``.grad`` is left behind.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if _is_plain_sgd(optimizer):
        return lambda gradients: _sgd_step(optimizer, parameters, gradients)

    def step(gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    return step


def _is_plain_sgd(optimizer: Optimizer) -> bool:
    group = optimizer.param_groups[0]
    hooked = (
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )
    special = any(group.get(name) for name in ("nesterov", "dampening", "maximize", "fused"))
    plain = not special and not hooked and isinstance(group["lr"], float | int)
    return type(optimizer) is SGD and len(optimizer.param_groups) == 1 and plain


@torch.no_grad()
def _sgd_step(optimizer: SGD, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
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
