"""Data-parallel training for any number of optimizers and steps per batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.distributed import _distributed_is_initialized
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import Optimizer


class FeedbackDDPStrategy(DDPStrategy):
    """Averages gradients over ranks where an optimizer steps, for the parameters of that optimizer, and nowhere else.

    Lightning's ``ddp`` reduces gradients in backward hooks of a wrapped module. Rules that call ``torch.autograd.grad``
    pass by those hooks, so their ranks drift apart silently, and rules with several backward passes per batch need a
    search for unused parameters. Here nothing is wrapped: every rule is data-parallel as it is.
    """

    strategy_name = "feedback-ddp"

    def configure_ddp(self) -> None:
        # All ranks start from rank 0's parameters and buffers; the module itself stays unwrapped.
        _sync_module_states(self.lightning_module)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """One step on the averaged gradients. Hooks that see gradients before the step (clipping) see the averages."""

        def closure_then_average() -> Any:
            result = closure()
            average_gradients([p for group in optimizer.param_groups for p in group["params"]])
            return result

        return super().optimizer_step(optimizer, closure_then_average, model, **kwargs)


@torch.no_grad()
def average_gradients(parameters: list[Tensor]) -> None:
    """Replace each ``.grad`` by its mean over ranks, in one collective per dtype and device.

    A parameter whose gradient is None on every rank keeps None; one that has a gradient on some ranks counts as zero on
    the others. Every rank must call this with the same parameters in the same order.
    """
    if not _distributed_is_initialized() or dist.get_world_size() == 1:
        return
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        groups[parameter.dtype, parameter.device].append(parameter)
    for group in groups.values():
        missing = [i for i, p in enumerate(group) if p.grad is None]
        flags = group[0].new_ones(len(group))
        for i in missing:
            flags[i].zero_()
        gradients = [p.grad.flatten() if p.grad is not None else torch.zeros_like(p).flatten() for p in group]
        flat = torch.cat([flags, *gradients])
        dist.all_reduce(flat)
        # Only who lacks a gradient must know whether the others have it; nobody else waits for the device here.
        seen = flat[: len(group)].tolist() if missing else None
        means = (flat[len(group) :] / dist.get_world_size()).split([p.numel() for p in group])
        for i, (parameter, mean) in enumerate(zip(group, means, strict=True)):
            parameter.grad = mean.view_as(parameter) if seen is None or seen[i] else None
