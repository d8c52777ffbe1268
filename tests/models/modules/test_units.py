"""Nonlinearities with exact inverses, standardisation, selection of units."""

import math

import pytest
import torch
from torch import nn

from dtp.models.modules import FirstUnits, PaddedShortcut, ResidualUnit, SLReLU, Standardise, standardised

ALPHAS = [0.01, 0.1, 0.3, 0.5, 0.7]


def line():
    return torch.cat([torch.linspace(-60, 60, 4801), torch.linspace(-3, 3, 999)]).double()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_inverse_of_the_soft_leaky_relu_is_exact(alpha):
    f, x = SLReLU(alpha), line()
    assert (f.inverse(f(x)) - x).abs().max() < 3e-14


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_soft_leaky_relu_loses_nothing_for_large_values(alpha):
    """Value, slope, inverse and the gradients of both are those of its asymptotes, to the last digits."""
    f, far = SLReLU(alpha), torch.tensor([-1e300, -1e8, -800, -50, 50, 800, 1e8, 1e300], dtype=torch.float64)
    x = far.clone().requires_grad_()
    with torch.no_grad():
        expected = torch.where(far > 0, far - f.offset, alpha * (far + f.shift) - f.offset)
        assert ((f(x) - expected) / expected).abs().max() < 1e-14
        assert ((f.inverse(f(x)) - x) / x).abs().max() < 1e-14
    (slope,) = torch.autograd.grad(f(x).sum(), x)
    assert torch.allclose(slope, torch.where(far > 0, torch.ones_like(far), alpha), rtol=1e-14, atol=0)
    assert torch.allclose(f.derivative(far), slope, rtol=1e-14, atol=0)
    z = f(x).detach().requires_grad_()
    (back,) = torch.autograd.grad(f.inverse(z).sum(), z)
    assert torch.allclose(back, 1 / slope, rtol=1e-14, atol=0)


def test_the_slope_of_the_inverse_is_that_of_autograd_on_both_sides_of_the_knee():
    f, x = SLReLU(0.1), line()
    z = f(x).requires_grad_()
    (back,) = torch.autograd.grad(f.inverse(z).sum(), z)
    assert torch.allclose(back * f.derivative(x), torch.ones_like(x), atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_soft_leaky_relu_is_that_of_its_paper(alpha):
    """Dalm et al. 2021: lam, bet and del as printed; 0 at 0, and a slope that does not jump."""
    f, lam = SLReLU(alpha), math.log(alpha / (1 - alpha))
    softplus = math.log1p(math.exp(lam))
    # lrelu(lam) is lam above 0; the two pieces meet at lam for bet = softplus(lam) / alpha - lam.
    bet = softplus / alpha - lam
    delta = math.log(2) if lam < 0 else alpha * bet
    for x in (-5.0, lam - 0.1, lam + 0.1, 0.0, 2.0):
        expected = math.log1p(math.exp(x)) - delta if x > lam else alpha * (x + bet) - delta
        assert float(f(torch.tensor(x, dtype=torch.float64))) == pytest.approx(expected, abs=1e-12)
    assert float(f(torch.zeros((), dtype=torch.float64))) == pytest.approx(0, abs=1e-15)
    around = torch.tensor([lam - 1e-7, lam + 1e-7], dtype=torch.float64)
    assert float(f.derivative(around).diff()) == pytest.approx(0, abs=1e-6)
    assert float(f(around).diff()) == pytest.approx(2e-7 * alpha, rel=1e-3)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_its_derivative_is_what_autograd_says(alpha):
    f, x = SLReLU(alpha), line().requires_grad_()
    (slope,) = torch.autograd.grad(f(x).sum(), x)
    assert torch.allclose(slope, f.derivative(x), atol=1e-14)


def test_standardised_features_have_mean_0_and_unbiased_deviation_1():
    for x in (3 + 5 * torch.randn(9, 4).double(), 3 + 5 * torch.randn(9, 4, 3, 2).double()):
        over = [0, *range(2, x.dim())]
        y = standardised(x)
        assert torch.allclose(y.mean(over), torch.zeros(4).double(), atol=1e-12)
        assert torch.allclose(y.std(over), torch.ones(4).double())
        assert torch.allclose(Standardise(4).double()(x), y, atol=1e-14)


def test_evaluation_uses_running_statistics_unless_told_otherwise():
    module, as_published = Standardise(4), Standardise(4, batch_statistics_at_test=True)
    for _ in range(200):
        for m in (module, as_published):
            m(2 + 3 * torch.randn(64, 4))
    module.eval(), as_published.eval()
    x = torch.randn(64, 4)
    before = module.running_mean.clone()
    assert torch.allclose(module(x), (x - 2) / 3, atol=0.4)
    assert torch.allclose(module(x[:1]), module(x)[:1]) and torch.equal(before, module.running_mean)
    assert torch.allclose(as_published(x), standardised(x))


def test_running_statistics_are_exponential_means_of_those_of_the_batches():
    module, mean, std = Standardise(3, momentum=0.25).double(), torch.zeros(3).double(), torch.ones(3).double()
    for _ in range(5):
        x = torch.randn(7, 3).double() + 4
        assert torch.allclose(module(x), (x - x.mean(0)) / x.std(0))
        mean, std = 0.75 * mean + 0.25 * x.mean(0), 0.75 * std + 0.25 * x.std(0)
    assert torch.allclose(module.running_mean, mean) and torch.allclose(module.running_std, std)
    assert list(module.state_dict()) == ["running_mean", "running_std"] and not list(module.parameters())


def test_gradients_go_through_the_statistics_of_the_batch():
    module = Standardise(3).double()
    x = torch.randn(5, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(module, x)
    # Every feature of the result has mean 0 and deviation 1 whatever x is.
    assert torch.autograd.grad(module(x).sum(), x)[0].abs().max() < 1e-12


def test_features_that_do_not_vary_are_zero():
    assert not standardised(torch.full((6, 2), 3.0)).any()


def test_statistics_of_rounded_activations_are_in_full_precision():
    x = (100 + torch.randn(4096, 2)).bfloat16()
    assert torch.allclose(standardised(x).mean(0), torch.zeros(2), atol=1e-4) and standardised(x).dtype == torch.float32


def test_one_value_for_each_feature_cannot_be_standardised():
    with pytest.raises(ValueError, match=r"more than 1 value per feature .* got a batch of \(1, 3\)"):
        Standardise(3)(torch.randn(1, 3))
    x = torch.randn(1, 3)
    # The last batch of a test may hold one image.
    for module in (Standardise(3), Standardise(3, batch_statistics_at_test=True)):
        torch.testing.assert_close(module.eval()(x), x)


def test_first_units_are_the_first():
    x = torch.randn(3, 7)
    assert torch.equal(FirstUnits(4)(x), x[:, :4])


@pytest.mark.parametrize(("channels", "first"), [(3, 0), (5, 1), (6, 1), (7, 2)])
def test_a_padded_shortcut_has_every_second_pixel_between_channels_of_zeros(channels, first):
    x = torch.randn(2, 3, 7, 8)
    expected = torch.zeros(2, channels, 4, 4)
    for row in range(4):
        for column in range(4):
            expected[:, first : first + 3, row, column] = x[:, :, 2 * row, 2 * column]
    y = PaddedShortcut(3, channels, stride=2)(x)
    assert torch.equal(y, expected)
    # Back to fewer channels it leaves out those that it added.
    assert torch.equal(PaddedShortcut(channels, 3, stride=1)(y), x[:, :, ::2, ::2])


@pytest.mark.parametrize("kind", ["projection", "padding"])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_a_residual_unit_adds_its_input(channels, stride, batch_norm, kind):
    unit = ResidualUnit(3, channels, stride, nn.ELU(), batch_norm, kind).eval()
    x = torch.randn(2, 3, 7, 8)
    shortcut = x if (channels, stride) == (3, 1) else unit.shortcut(x)
    assert (len(unit.shortcut) == 0) == ((channels, stride) == (3, 1))
    assert kind == "projection" or not list(unit.shortcut.parameters())
    for parameter in unit.branch[-1].parameters():
        nn.init.zeros_(parameter)
    assert torch.allclose(unit(x), shortcut)
