"""Optimizers and schedules by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR

from dtp.algorithms.options import AlgorithmOptions
from dtp.errors import UserError


class LeeRMSprop(Optimizer):
    """Centred RMSprop with momentum as in the code of Lee et al. 2015 ("rms_prop")::

        m = a m + (1 - a) g;   v = a v + (1 - a) g^2
        u = momentum u - lr g / sqrt(v - m^2 + eps);   p = p + u

    with m, v, u zero at first and no correction of that. ``torch.optim.RMSprop`` adds its epsilon outside the root;
    here eps dominates for small gradients, where a step is one of SGD with lr / sqrt(eps).

    Args:
        parameters: tensors, or groups of them.
        lr: learning rate.
        alpha: a, decay of the running means.
        momentum: of the steps.
        eps: within the root.
        weight_decay: L2 penalty, added to the gradient.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        alpha: float = 0.95,
        momentum: float = 0.9,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
    ):
        super().__init__(
            parameters, {"lr": lr, "alpha": alpha, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure=None):
        """One step on the ``.grad`` of the parameters that have one; returns the value of ``closure``, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            keep = group["alpha"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                if group["weight_decay"]:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                state = self.state[parameter]
                if not state:
                    for name in ("mean", "square", "update"):
                        state[name] = torch.zeros_like(parameter)
                state["mean"].lerp_(gradient, 1 - keep)
                state["square"].mul_(keep).addcmul_(gradient, gradient, value=1 - keep)
                spread = (state["square"] - state["mean"] ** 2 + group["eps"]).sqrt_()
                state["update"].mul_(group["momentum"]).addcdiv_(gradient, spread, value=-group["lr"])
                parameter.add_(state["update"])
        return loss


def make_optimizer(
    name: str,
    parameters: Iterable[Any],
    lr: float,
    momentum: float,
    weight_decay: float,
    beta2: float = 0.0,
    eps: float = 0.0,
) -> Optimizer:
    """An optimizer by its name on the command line.

    Args:
        name: ``sgd``, ``adam``, ``rmsprop`` or ``lee-rmsprop``.
        parameters: tensors, or groups of them with settings of their own.
        lr: learning rate.
        momentum: Adam's first beta.
        weight_decay: L2 penalty, added to the gradient.
        beta2: Adam's second beta, RMSprop's alpha; 0 for the usual one.
        eps: epsilon; 0 for the usual one.
    """
    parameters = list(parameters)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name == "adam":
        betas = (momentum, beta2 or 0.999)
        return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=eps or 1e-8, weight_decay=weight_decay)
    kind, alpha, epsilon = (LeeRMSprop, 0.95, 1e-3) if name == "lee-rmsprop" else (torch.optim.RMSprop, 0.99, 1e-8)
    return kind(
        parameters, lr=lr, alpha=beta2 or alpha, momentum=momentum, eps=eps or epsilon, weight_decay=weight_decay
    )


def make_schedule(optimizer: Optimizer, options: AlgorithmOptions, max_epochs: int) -> LRScheduler:
    """The schedule of the forward learning rate, to be stepped once per epoch; constant for 0 epochs and no period."""
    if options.lr_milestones:
        return MultiStepLR(optimizer, milestones=options.lr_milestones, gamma=options.lr_gamma)
    period = options.lr_period or max_epochs
    if period and options.lr_schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=period, eta_min=options.lr_min)
    if period and options.lr_schedule == "step":
        return StepLR(optimizer, step_size=period, gamma=options.lr_gamma)
    # Not LambdaLR, which fails when a group is added to the optimizer later on, as Lightning's BaseFinetuning does.
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def layer_groups(
    layers: dict[int, list[Tensor]], lr: list[float], eps: list[float]
) -> list[Tensor] | list[dict[str, Any]]:
    """Parameters of the layers for :func:`make_optimizer`, in groups where layers have rates or epsilons of their own.

    Args:
        layers: trained parameters by layer number.
        lr, eps: one for each of these layers; fewer than two are no reason for groups.
    """
    if len(lr) < 2 and len(eps) < 2:
        return [parameter for parameters in layers.values() for parameter in parameters]
    groups = [{"params": parameters, "name": f"layer{n}"} for n, parameters in layers.items()]
    for name, values in (("lr", lr), ("eps", eps)):
        for group, value in zip(groups, values if len(values) > 1 else values * len(groups), strict=False):
            group[name] = value
    return groups


def check_rates(options: AlgorithmOptions, layers: list[int]) -> None:
    """Compare what options say of the forward optimizer with each other, and with the numbers of the trained layers.

    Raises:
        UserError: they do not go together.
    """
    o = options
    for flag, values in (("layer-lr", o.layer_lr), ("eps", o.eps)):
        if len(values) not in ((0, len(layers)) if flag == "layer-lr" else (0, 1, len(layers))):
            raise UserError(
                f"--{flag}: expected {len(layers)} values, one for each layer with trained weights, found "
                f"{len(values)}."
            )
    lowest, whose = (min(o.layer_lr), "the lowest of --layer-lr") if o.layer_lr else (o.lr, "--lr")
    if o.lr_schedule == "cosine" and lowest < o.lr_min:
        raise UserError(
            f"--lr-min: expected at most {whose}, {lowest}, found {o.lr_min}; the schedule would raise the rate."
        )
    if o.lr_milestones and (o.lr_schedule != "step" or o.lr_period):
        found = f"--lr-period {o.lr_period}" if o.lr_schedule == "step" else o.lr_schedule
        raise UserError(f"--lr-milestones: expected --lr-schedule step without --lr-period, found {found}.")
    if o.lr_milestones != sorted(set(o.lr_milestones)):
        raise UserError(f"--lr-milestones: expected epochs in ascending order, found {o.lr_milestones}.")
    # A default for another optimizer is no mistake of the user's.
    if o.optimizer == "sgd" and (o.beta2 not in (0, type(o).beta2) or o.eps):
        raise UserError("--beta2, --eps: expected --optimizer adam, rmsprop or lee-rmsprop, found sgd; leave them out.")
