"""The losses against their equations, written out sample by sample in ``reference.py``."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtp.feedback import (
    FeedbackSettings,
    derive_feedback,
    forward_with_context,
    ldrl_loss,
    per_sample_dot,
    reconstruction_loss,
)

from .helpers import undo
from .reference import CASES, Case, ldrl_by_sample, reduced_ldrl_gradient

SIGMA = 0.3
BATCH = 4

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
routings = pytest.mark.parametrize("routing", ["noisy", "fixed"])
unpools = pytest.mark.parametrize("unpool", ["add", "write"])


class Problem:
    """A layer, its feedback, a clean pass and noise, all random and float64."""

    def __init__(self, case: Case, unpool: str = "add", samples: int = 1, bias: bool = False):
        self.layer = case.layer()
        self.feedback = undo(self.layer, case.in_shape, unpool=unpool, bias=bias)
        self.v = next(self.feedback.parameters())
        self.s_in = torch.randn(BATCH, *case.in_shape, dtype=torch.float64)
        with torch.no_grad():
            self.s_out, self.context = forward_with_context(self.layer, self.s_in)
        self.noise_in = SIGMA * torch.randn(samples * BATCH, *case.in_shape, dtype=torch.float64)
        self.noise_out = SIGMA * torch.randn(samples * BATCH, *self.s_out.shape[1:], dtype=torch.float64)
        self.samples = samples

    def ldrl(self, **options) -> Tensor:
        noise = self.noise_in, self.noise_out
        clean = self.s_in, self.s_out, self.context
        return ldrl_loss(self.layer, self.feedback, *clean, *noise, noise_samples=self.samples, **options)

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.v)[0]


def relative_difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_per_sample_dot_sums_features_and_averages_samples():
    a, b = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    expected = sum(torch.dot(a[i].flatten(), b[i].flatten()) for i in range(3)) / 3
    torch.testing.assert_close(per_sample_dot(a, b), expected)


# --- L-DRL: value and gradient ----------------------------------------------------------------------------------------


@cases
@routings
@unpools
@pytest.mark.parametrize("samples", [1, 3])
def test_ldrl_is_the_papers_equation(case, routing, unpool, samples):
    problem = Problem(case, unpool, samples)
    noise = problem.noise_in, problem.noise_out
    expected = ldrl_by_sample(case, problem.layer, problem.v, problem.s_in, *noise, SIGMA, routing, unpool)

    paper = problem.ldrl(routing=routing, paper_scale=SIGMA)
    torch.testing.assert_close(paper, expected, rtol=1e-10, atol=1e-10)
    code = problem.ldrl(routing=routing)
    torch.testing.assert_close(code, 2 * SIGMA**2 * expected, rtol=1e-10, atol=1e-10)
    assert relative_difference(problem.gradient(paper), problem.gradient(expected)) < 1e-10


@cases
@routings
@unpools
@pytest.mark.parametrize("samples", [1, 3])
def test_reduced_algebra_gives_the_same_gradient(case, routing, unpool, samples):
    """What a faster engine may use; equal but for rounding, which was measured to differ by 1e-15."""
    problem = Problem(case, unpool, samples)
    noise = problem.noise_in, problem.noise_out
    expected = reduced_ldrl_gradient(case, problem.layer, problem.v, problem.s_in, *noise, routing, unpool)
    assert relative_difference(problem.gradient(problem.ldrl(routing=routing)), expected) < 1e-10


def test_gradient_agrees_with_finite_differences():
    """The loss is quadratic in the feedback weights, so central differences are exact but for rounding."""
    problem = Problem(CASES[3], unpool="add")
    direction = torch.randn_like(problem.v)
    values = []
    for step in (0.5, -0.5):
        with torch.no_grad():
            problem.v.add_(step * direction)
            values.append(problem.ldrl())
            problem.v.sub_(step * direction)
    slope = (problem.gradient(problem.ldrl()) * direction).sum()
    torch.testing.assert_close(slope, values[0] - values[1], rtol=1e-10, atol=1e-10)


def test_routings_differ_where_noise_moves_a_maximum():
    problem = Problem(CASES[2])
    assert problem.ldrl(routing="noisy") != problem.ldrl(routing="fixed")


def test_routings_agree_while_noise_moves_no_maximum():
    problem = Problem(CASES[2])
    problem.noise_in *= 1e-9
    _, noisy = forward_with_context(problem.layer, problem.s_in + problem.noise_in)
    assert torch.equal(noisy[2].indices, problem.context[2].indices)
    assert problem.ldrl(routing="noisy") == problem.ldrl(routing="fixed")


# --- L-DRL: where gradients go ----------------------------------------------------------------------------------------


@cases
@routings
def test_ldrl_gradient_reaches_the_feedback_weights_alone(case, routing):
    problem = Problem(case)
    problem.s_in.requires_grad_()
    problem.noise_in.requires_grad_(), problem.noise_out.requires_grad_()
    problem.s_out, problem.context = forward_with_context(problem.layer, problem.s_in)  # with its graph
    problem.ldrl(routing=routing).backward()
    assert problem.v.grad.abs().sum() > 0
    assert problem.s_in.grad is None
    assert all(p.requires_grad and p.grad is None for p in problem.layer.parameters())


@cases
def test_ldrl_gradient_flows_through_the_clean_reconstruction(case):
    problem = Problem(case)
    rest = problem.s_in, problem.noise_in, problem.noise_out, SIGMA, "noisy", "add"
    detached = ldrl_by_sample(case, problem.layer, problem.v, *rest, detach_r=True)
    gradient = problem.gradient(problem.ldrl(paper_scale=SIGMA))
    # With r constant, dr_eps and dr_eta stay whole where they should be small differences: O(1 / sigma) too much.
    assert relative_difference(gradient, problem.gradient(detached)) > 0.1


@cases
@routings
def test_ldrl_does_not_train_the_feedback_bias(case, routing):
    """The bias cancels in both differences: its gradient is a sum of rounding errors."""
    problem = Problem(case, bias=True)
    weight, bias = torch.autograd.grad(problem.ldrl(routing=routing), list(problem.feedback.parameters()))
    assert bias.norm() < 1e-12 * weight.norm()


def test_ldrl_leaves_running_statistics_alone():
    layer = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ELU(), nn.MaxPool2d(2))
    feedback = undo(layer, (2, 8, 8))
    s_in = torch.randn(4, 2, 8, 8)
    s_out, context = forward_with_context(layer, s_in)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    noise = torch.randn(8, 2, 8, 8), torch.randn(8, *s_out.shape[1:])
    ldrl_loss(layer, feedback, s_in, s_out, context, *noise, noise_samples=2)
    reconstruction_loss(layer, feedback, s_in, context, noise[0], noise_samples=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


# --- L-DRL: expectation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_expected_ldrl_loss_is_the_jacobian_mismatch(sigma):
    """E[L] / sigma^2 = |J_G - J_F^T|^2 - |J_F|^2, exactly and for any sigma where both layers are linear."""
    layer = nn.Linear(12, 5).double()
    feedback = undo(layer, (12,))
    w, v = layer.weight.detach(), next(feedback.parameters()).detach()
    expected = (v - w.T).square().sum() - w.square().sum()

    losses = []
    s_in = torch.randn(500, 12, dtype=torch.float64)
    s_out, context = forward_with_context(layer, s_in)
    for _ in range(400):
        noise = sigma * torch.randn_like(s_in), sigma * torch.randn_like(s_out)
        losses.append(ldrl_loss(layer, feedback, s_in, s_out, context, *noise).detach() / sigma**2)
    losses = torch.stack(losses)
    error = losses.std() / math.sqrt(len(losses))
    assert error < 0.01 * expected.abs(), "enough samples to tell the identity from a wrong one"
    assert (losses.mean() - expected).abs() < 5 * error


# --- reconstruction ---------------------------------------------------------------------------------------------------


@cases
@unpools
@pytest.mark.parametrize("target", ["noisy", "clean"])
@pytest.mark.parametrize("samples", [1, 2])
def test_reconstruction_loss_is_its_equation(case, unpool, target, samples):
    problem = Problem(case, unpool, samples)
    losses = []
    for k, eps in enumerate(problem.noise_in):
        s = problem.s_in[k % BATCH]
        y, switches = case.forward(problem.layer, (s + eps)[None])
        reconstruction = case.transposed(problem.v, case.phi(y, switches, unpool))[0]
        losses.append((reconstruction - (s + eps if target == "noisy" else s)).square().sum())
    found = reconstruction_loss(
        problem.layer,
        problem.feedback,
        problem.s_in,
        problem.context,
        problem.noise_in,
        target=target,
        noise_samples=samples,
    )
    expected = sum(losses) / len(losses)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert relative_difference(problem.gradient(found), problem.gradient(expected)) < 1e-10


def test_reconstruction_loss_of_lees_feedback():
    """|tanh(V tanh(W v + b) + c) - v|^2, with gradients for V and c."""
    layers = [nn.Sequential(nn.Linear(7, 6), nn.Tanh()), nn.Sequential(nn.Linear(6, 4), nn.Tanh())]
    settings = FeedbackSettings(nonlinearity="after", bias=True)
    feedback = derive_feedback(layers, [torch.Size([7]), torch.Size([6])], [2], settings)[2]
    s, noise = torch.randn(5, 6), torch.randn(5, 6)
    _, context = forward_with_context(layers[1], s)
    v, c = feedback.parameters()
    code = torch.tanh(F.linear(s + noise, *layers[1][0].parameters())).detach()
    expected = (torch.tanh(code @ v.T + c) - s - noise).square().sum(1).mean()
    found = reconstruction_loss(layers[1], feedback, s, context, noise)
    torch.testing.assert_close(found, expected)
    pairs = zip(torch.autograd.grad(found, (v, c)), torch.autograd.grad(expected, (v, c)), strict=True)
    for gradient, expected_gradient in pairs:
        torch.testing.assert_close(gradient, expected_gradient)


@cases
@pytest.mark.parametrize("target", ["noisy", "clean"])
def test_reconstruction_gradient_reaches_the_feedback_weights_alone(case, target):
    problem = Problem(case)
    problem.s_in.requires_grad_()
    _, context = forward_with_context(problem.layer, problem.s_in)
    loss = reconstruction_loss(problem.layer, problem.feedback, problem.s_in, context, problem.noise_in, target=target)
    loss.backward()
    assert problem.v.grad.abs().sum() > 0
    assert problem.s_in.grad is None
    assert all(p.requires_grad and p.grad is None for p in problem.layer.parameters())
