"""Signs between layers."""

import pytest
import torch

from dtp.models.modules import Sign

X = torch.tensor([[-2.0, -0.0, 0.0, 1e-30, 0.3, 5.0]])
SIGNS = torch.tensor([[-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("gradient", ["straight-through", "zero"])
def test_values_are_minus_one_and_one_with_the_threshold_above_zero(gradient, dtype):
    for training in (True, False):
        y = Sign(gradient).train(training)(X.to(dtype).requires_grad_())
        assert y.dtype == dtype and torch.equal(y.detach(), SIGNS.to(dtype))


@pytest.mark.parametrize("gradient, slope", [("straight-through", 1.0), ("zero", 0.0)])
def test_its_derivative_is_that_of_the_identity_or_zero_but_it_is_there(gradient, slope):
    x = X.clone().requires_grad_()
    upward = torch.randn_like(x)
    (found,) = torch.autograd.grad(Sign(gradient)(x), x, upward)
    assert torch.equal(found, slope * upward)
    _, pull = torch.func.vjp(Sign(gradient), X)
    assert torch.equal(pull(upward)[0], slope * upward)


def test_with_test_only_training_passes_values_and_evaluation_signs():
    sign, x = Sign("test-only"), X.clone().requires_grad_()
    assert torch.equal(sign(x), x) and torch.autograd.grad(sign(x).sum(), x)[0].eq(1).all()
    assert torch.equal(sign.eval()(x).detach(), SIGNS)


def test_values_stay_exact_where_large_numbers_would_round_them():
    y = Sign()(torch.tensor([1e30, -3e38, 3.3e7]).requires_grad_())
    assert torch.equal(y.detach(), torch.tensor([1.0, -1.0, 1.0]))
