"""A linear map with the transposed weight of another one."""

import copy

import torch
from torch import nn

from dtp.models.modules import TransposedLinear


def tied():
    linear = nn.Linear(5, 3)
    return nn.Sequential(linear, TransposedLinear(linear))


def test_it_is_the_transposed_map_with_a_bias_of_its_own():
    linear, transposed = tied()
    assert not transposed.bias.any() and transposed.bias.shape == (5,)
    nn.init.normal_(transposed.bias)
    h = torch.randn(4, 3)
    torch.testing.assert_close(transposed(h), h @ linear.weight + transposed.bias)


def test_the_weight_is_one_parameter_however_the_pair_is_handled():
    pair = tied()
    assert [name for name, _ in pair.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    loaded = tied()
    loaded.load_state_dict(pair.state_dict())
    for made in (pair, pair.double(), copy.deepcopy(pair), pair.to(memory_format=torch.channels_last), loaded):
        assert made[1].weight is made[0].weight
    assert torch.equal(loaded[1].weight.double(), pair[0].weight)


def test_gradients_of_both_uses_are_summed():
    pair = tied().double()
    x = torch.randn(4, 5, dtype=torch.float64)
    pair(x).square().sum().backward()
    W, c = (t.detach().clone().requires_grad_() for t in (pair[0].weight, pair[0].weight))
    ((x @ W.t() + pair[0].bias) @ c + pair[1].bias).square().sum().backward()
    torch.testing.assert_close(pair[0].weight.grad, W.grad + c.grad)
