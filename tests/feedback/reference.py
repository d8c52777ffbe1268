"""Layers and L-DRL written out from the equations with torch's functions alone: the oracle for the package's versions.

A :class:`Case` is a forward layer ``affine -> ELU -> max-pooling`` (the last two optional). Its feedback is
``G(y; c) = A_V(phi(y; c))`` with phi = ELU, then unpooling at the switches c, and A_V the adjoint of the affine map
with weights V of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    name: str
    in_shape: tuple[int, ...]
    out: int
    kernel: int = 0  # 0: linear
    stride: int = 1
    padding: int = 0
    elu: bool = True
    pool: tuple[int, int, int] | None = None  # kernel, stride, padding

    def layer(self) -> nn.Sequential:
        """The forward layer, float64, with random weights."""
        features = torch.Size(self.in_shape).numel()
        if self.kernel:
            modules = [nn.Conv2d(self.in_shape[0], self.out, self.kernel, self.stride, self.padding)]
        else:
            modules = [nn.Flatten()] if len(self.in_shape) > 1 else []
            modules.append(nn.Linear(features, self.out))
        if self.elu:
            modules.append(nn.ELU())
        if self.pool:
            modules.append(nn.MaxPool2d(*self.pool))
        return nn.Sequential(*modules).double()

    def forward(self, layer: nn.Sequential, x: Tensor, switches: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """F(x) and its switches; with ``switches`` the pooling gathers there instead of taking maxima."""
        weight, bias = layer.parameters()
        if self.kernel:
            a = F.conv2d(x, weight, bias, self.stride, self.padding)
        else:
            a = x.flatten(1) @ weight.T + bias
        a = F.elu(a) if self.elu else a
        if not self.pool:
            return a, None
        if switches is None:
            return F.max_pool2d(a, *self.pool, return_indices=True)
        return torch.einsum("bcs,bchws->bchw", a.flatten(2), one_hot(switches, a.shape[-2:])), switches

    def phi(self, y: Tensor, switches: Tensor | None, unpool: str) -> Tensor:
        """What A_V is applied to."""
        y = F.elu(y) if self.elu else y
        if not self.pool:
            return y
        size = self._conv_size()
        if unpool == "write":
            return last_wins(y, switches, size)
        return torch.einsum("bchw,bchws->bcs", y, one_hot(switches, size)).unflatten(2, size)

    def transposed(self, v: Tensor, u: Tensor) -> Tensor:
        """A_V(u): for a convolution the gradient that torch gives the input of a convolution with kernel V."""
        if not self.kernel:
            return (u @ v.T).unflatten(1, self.in_shape)
        return torch.nn.grad.conv2d_input((len(u), *self.in_shape), v, u, self.stride, self.padding)

    def weight_gradient(self, v: Tensor, p: Tensor, e: Tensor) -> Tensor:
        """WG(p, e): gradient of <e, A_V(p)>, summed over samples, with respect to V."""
        if not self.kernel:
            return e.flatten(1).T @ p
        return torch.nn.grad.conv2d_weight(e, v.shape, p, self.stride, self.padding)

    def _conv_size(self) -> tuple[int, int]:
        height, width = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in self.in_shape[1:])
        return height, width


def one_hot(switches: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) flat positions -> (B, C, h, w, H * W), 1 at each position."""
    return F.one_hot(switches, size[0] * size[1]).double()


def last_wins(y: Tensor, switches: Tensor, size: tuple[int, int]) -> Tensor:
    """Unpooling by writing, one window after the other: of several at one position the last in order stays."""
    unpooled = y.new_zeros(*y.shape[:2], size[0] * size[1])
    values, at = y.flatten(2), switches.flatten(2)
    for window in range(at.shape[2]):
        unpooled.scatter_(2, at[..., window : window + 1], values[..., window : window + 1])
    return unpooled.unflatten(2, size)


CASES = [
    Case("linear", (64,), 10, elu=False),
    Case("elu-linear-reshape", (6, 5, 5), 32),
    Case("conv-elu-pool", (3, 8, 8), 6, kernel=3, padding=1, pool=(2, 2, 0)),
    Case("conv-elu-overlapping-pool", (3, 9, 9), 5, kernel=5, padding=2, pool=(3, 2, 1)),
    Case("strided-conv", (3, 9, 8), 6, kernel=3, stride=2, padding=1),
]


def ldrl_by_sample(
    case: Case,
    layer: nn.Sequential,
    v: Tensor,
    s_in: Tensor,
    noise_in: Tensor,
    noise_out: Tensor,
    sigma: float,
    routing: str,
    unpool: str,
    detach_r: bool = False,
) -> Tensor:
    """The paper's loss, one sample and one noise draw after the other:

    L = -(1 / sigma^2) <eps, r_eps - r> + 1 / (2 sigma^2) |r_eta - r|^2
    """

    def g(y, switches):
        return case.transposed(v, case.phi(y, switches, unpool))

    losses = []
    for k, (eps, eta) in enumerate(zip(noise_in, noise_out, strict=True)):
        s = s_in[k % len(s_in)]
        y, c = case.forward(layer, s[None])
        y_eps, c_eps = case.forward(layer, (s + eps)[None], c if routing == "fixed" else None)
        r, r_eps, r_eta = g(y, c), g(y_eps, c_eps), g(y + eta, c)
        r = r.detach() if detach_r else r
        losses.append(-(eps * (r_eps - r)).sum() / sigma**2 + (r_eta - r).square().sum() / (2 * sigma**2))
    return sum(losses) / len(losses)


@torch.no_grad()
def reduced_ldrl_gradient(
    case: Case,
    layer: nn.Sequential,
    v: Tensor,
    s_in: Tensor,
    noise_in: Tensor,
    noise_out: Tensor,
    routing: str,
    unpool: str,
) -> Tensor:
    """Gradient of the loss in the published code's scale, without evaluating r, r_eps or r_eta:

    (1 / mB) sum [ -2 WG(p, eps) + 2 WG(q, A_V(q)) ],  p = phi(y_eps) - phi(y),  q = phi(y + eta) - phi(y)
    """
    s = s_in.repeat(len(noise_in) // len(s_in), *(1 for _ in case.in_shape))
    y, c = case.forward(layer, s)
    y_eps, c_eps = case.forward(layer, s + noise_in, c if routing == "fixed" else None)
    u = case.phi(y, c, unpool)
    p = case.phi(y_eps, c_eps, unpool) - u
    q = case.phi(y + noise_out, c, unpool) - u
    first = case.weight_gradient(v, p, noise_in)
    second = case.weight_gradient(v, q, case.transposed(v, q))
    return 2 * (second - first) / len(noise_in)
