"""A linear map that shares its weight with another one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TransposedLinear(nn.Module):
    """x (B, out) to W^T x + c (B, in), with the weight W of ``linear``, the same tensor, and a bias that is 0 first.

    Args:
        linear: in to out.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = linear.weight
        self.bias = nn.Parameter(torch.zeros_like(linear.weight[0]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[0]}, out_features={self.weight.shape[1]}, tied"
