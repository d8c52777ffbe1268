"""Fixed-weight DTP against a transcription of its equations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dtp.cli.arguments import parse
from dtp.errors import UserError
from dtp.models import MODELS
from tests.algorithms.helpers import make, same, state
from tests.algorithms.networks import Layers, tanh_network
from tests.conftest import make_batch


def published_network(standardise="all"):
    """As in the paper: tanh, orthogonal, no biases, standardised over the batch."""
    words = f"--widths 12 11 10 --activation tanh --init orthogonal --bias false --standardise {standardise}"
    config = parse(["--algo", "bp", "--model", "mlp", "--data", "imagefolder", *words.split()])
    return MODELS.resolve("mlp").load()(config.model, (1, 4, 4), 5).double()


def standardised(x):
    return (x - x.mean(0)) / (x.std(0) + 1e-12)


@pytest.mark.parametrize("standardise", ["none", "hidden", "all"])
def test_targets_losses_and_gradients_equal_the_equations(standardise):
    network = published_network(standardise)
    rule = make("fw-dtp", network, feedback_scale=0.5)
    x, y = make_batch(network, 20)
    hidden = standardised if standardise != "none" else lambda v: v
    last = standardised if standardise == "all" else lambda v: v
    weights = [p.detach().clone().requires_grad_() for p in network.parameters()]
    assert [w.shape for w in weights] == [(12, 16), (11, 12), (10, 11), (5, 10)]
    maps = [p.detach() for p in rule.feedback.parameters()]
    assert [b.shape for b in maps] == [(12, 11), (11, 10), (10, 5)]

    s = [x.flatten(1)]
    outputs = [s[0]]
    for n, w in enumerate(weights, 1):
        a = s[-1] @ w.T
        outputs.append(hidden(a.tanh()) if n < 4 else last(a))
        s.append(outputs[-1].detach())
    # The step is along the gradient of each sample's own loss.
    t = {4: s[4] - 0.04 * (s[4].softmax(1) - F.one_hot(y, 5))}
    for n in (4, 3, 2):
        G = lambda v, b=maps[n - 2]: hidden((v @ b.T).tanh())  # noqa: E731
        t[n - 1] = hidden(G(t[n]) + s[n - 1] - G(s[n]))
    # The whole squared distance, summed over features: the authors' step is lr / B times the sum over the batch.
    loss = sum(((outputs[n] - t[n]) ** 2).sum() / 20 for n in range(1, 5))
    expected = torch.autograd.grad(loss, weights)

    a = rule.activations(x)
    targets = rule.targets(a, y)
    for n in range(1, 5):
        torch.testing.assert_close(a.s[n], s[n])
        torch.testing.assert_close(targets[n], t[n])
    for ours, theirs in zip(rule.forward_gradients(x, y)[1], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_targets_without_standardisation_go_through_the_biased_networks_own_nonlinearity():
    network = tanh_network(9, 8, 7, 4)
    rule = make("fw-dtp", network, feedback_scale=0.5)
    x, y = make_batch(network)
    a = rule.activations(x)
    targets = rule.targets(a, y)
    for n in (3, 2):
        (b,) = rule.feedback[n].parameters()
        expected = (targets[n] @ b.T).tanh() + a.s[n - 1] - (a.s[n] @ b.T).tanh()
        torch.testing.assert_close(targets[n - 1], expected)


def test_feedback_never_changes_and_nothing_steps_it(lenet):
    rule = make("fw-dtp", lenet)
    before = state(rule.feedback)
    for _ in range(3):
        rule.training_batch(*make_batch(lenet))
    assert before and same(before, rule.feedback.state_dict())
    assert not any(p.requires_grad for p in rule.feedback.parameters())
    assert rule.feedback_optimizer_list() == []


@pytest.mark.parametrize("distribution", ["uniform", "normal", "orthogonal"])
def test_feedback_weights_have_the_distribution_asked_for(distribution):
    network = tanh_network(9, 300, 200, 4)
    rule = make("fw-dtp", network, feedback_distribution=distribution, feedback_scale=0.03)
    b = next(rule.feedback[2].parameters())
    assert b.shape == (300, 200) and not any("bias" in name for name in rule.feedback.state_dict())
    if distribution == "orthogonal":
        torch.testing.assert_close(b.T @ b, 0.03**2 * torch.eye(200, dtype=b.dtype))
    else:
        bound = 0.03 / 3**0.5 if distribution == "uniform" else 0.03
        assert abs(b.mean()) < 1e-3 and b.std().item() == pytest.approx(bound, rel=0.02)
        assert (b.abs().max() <= 0.03) == (distribution == "uniform")


@pytest.mark.parametrize("kind, size", [(nn.Conv1d, (10,)), (nn.Conv2d, (5, 5))])
def test_orthogonal_feedback_of_a_convolution_has_orthogonal_kernels(kind, size):
    first = nn.Sequential(kind(2, 8, 3, padding=1), nn.Tanh())
    second = nn.Sequential(kind(8, 6, 3, padding=1), nn.Tanh())
    last = nn.Sequential(nn.Flatten(), nn.Linear(6 * math.prod(size), 5))
    rule = make("fw-dtp", Layers([first, second, last], (2, *size)), feedback_distribution="orthogonal")
    kernels = next(rule.feedback[2].parameters()).flatten(1)
    torch.testing.assert_close(kernels @ kernels.T, 1e-6 * torch.eye(6), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize(
    "standardise, option, expected",
    [
        ("all", "auto", True),
        ("none", "auto", False),
        ("all", "no", False),
        ("none", "yes", True),
    ],
)
def test_hidden_targets_are_standardised_as_the_network_is_or_as_told(standardise, option, expected):
    network = published_network(standardise)
    rule = make("fw-dtp", network, standardise_targets=option)
    x, y = make_batch(network, 20)
    targets = rule.targets(rule.activations(x), y)
    for n in (1, 2, 3):
        assert torch.allclose(targets[n].std(0), torch.ones(1, dtype=torch.float64), atol=1e-9) == expected
    # Never the first one, which is the gradient's.
    assert not torch.allclose(targets[4].std(0), torch.ones(1, dtype=torch.float64), atol=1e-6)


def test_a_batch_is_evaluated_by_running_statistics_and_trained_by_its_own():
    network = published_network("all")
    rule = make("fw-dtp", network)
    x, y = make_batch(network, 20)
    for _ in range(60):
        rule.training_batch(x, y)
    rule.eval()
    with torch.no_grad():
        whole = rule(x)
        # One image alone, which has no statistics of its own.
        torch.testing.assert_close(torch.cat([rule(x[i : i + 1]) for i in range(20)]), whole)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_above_zero_is_refused(mlp, scale):
    with pytest.raises(UserError, match="--feedback-scale"):
        make("fw-dtp", mlp, feedback_scale=scale)
