"""Direct random target projection against a transcription of its equations, and its limits."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dtp.cli.train import main
from dtp.errors import UserError
from dtp.models import LeNet
from dtp.models.options import LeNetOptions
from tests.algorithms.helpers import make, relative
from tests.algorithms.networks import tanh_network
from tests.conftest import make_batch


def hidden_gradients(network, x, signal, maps):
    """(B_n signal) * f'(a_n) of the hidden layers, means over the batch, by hand."""
    s, found = x.flatten(1), []
    for n in range(1, network.depth):
        linear = next(m for m in network[n] if isinstance(m, nn.Linear))
        a = s @ linear.weight.T + linear.bias
        delta = (signal @ maps[n + 1].linear.weight.T) * (1 - a.tanh() ** 2) / len(x)
        found += [delta.T @ s, delta.sum(0)]
        s = a.tanh()
    return [gradient.detach() for gradient in found]


@pytest.mark.parametrize("projected", ["label", "error-sign", "nothing"])
def test_hidden_gradients_equal_those_written_by_hand(projected):
    network = tanh_network(16, 12, 11, 10, 5)
    rule = make("drtp", network, projected=projected)
    x, y = make_batch(network)
    label = F.one_hot(y, 5).double()
    signal = {
        "label": label,
        "error-sign": (network(x).softmax(1) - label).sign().detach(),
        "nothing": torch.zeros_like(label),
    }[projected]
    found = rule.forward_gradients(x, y)[1]
    for ours, theirs in zip(found, hidden_gradients(network, x, signal, rule.feedback), strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    # The output layer learns the task loss.
    true = torch.autograd.grad(F.cross_entropy(network(x), y), list(network[4].parameters()))
    for ours, theirs in zip(found[-2:], true, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_the_sign_of_the_error_is_that_of_the_losss_own_units():
    """The squared loss compares the output itself with the label, which it may overshoot; a probability never does."""
    output, y = torch.tensor([[1.5, -0.2, 0.3], [0.4, 1.2, -0.1]], dtype=torch.float64), torch.tensor([0, 0])
    for loss, units in {
        "squared": output,
        "cross-entropy": output.softmax(1),
        "binary-cross-entropy": output.sigmoid(),
    }.items():
        rule = make("drtp", tanh_network(16, 12, 3), projected="error-sign", loss=loss)
        assert torch.equal(rule.projected(output, y), (units - F.one_hot(y, 3)).sign())


def test_hidden_gradients_are_those_of_dfa_with_the_label_for_the_error(monkeypatch):
    network = tanh_network(16, 12, 11, 5)
    rule, dfa = make("drtp", network), make("dfa", network)
    dfa.feedback = rule.feedback
    x, y = make_batch(network)
    label = F.one_hot(y, 5).double()
    # DFA projects t_N - s_N, minus its error.
    monkeypatch.setattr(type(dfa), "first_target", lambda self, activations, y: activations.s[3] - label, raising=True)
    ours, theirs = rule.forward_gradients(x, y)[1], dfa.forward_gradients(x, y)[1]
    for a, b in zip(ours[:4], theirs[:4], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_hidden_updates_do_not_depend_on_the_layers_above():
    network = tanh_network(16, 12, 11, 5)
    rule = make("drtp", network)
    x, y = make_batch(network)
    before = rule.forward_gradients(x, y)[1]
    with torch.no_grad():
        for n in (2, 3):
            network[n][0].weight.mul_(-3)
    after = rule.forward_gradients(x, y)[1]
    assert all(torch.equal(a, b) for a, b in zip(before[:2], after[:2], strict=True))
    assert all(relative(a, b) > 0.1 for a, b in zip(before[2:], after[2:], strict=True))


def test_the_authors_sums_over_the_batch_are_a_local_loss_scale():
    """Their hook hands B y of each sample to a graph whose loss is a mean: hidden gradients are sums."""

    class Hook(torch.autograd.Function):
        @staticmethod
        def forward(ctx, s, projected):
            ctx.projected = projected
            return s.clone()

        @staticmethod
        def backward(ctx, grad):
            return ctx.projected, None

    network = tanh_network(16, 12, 11, 5)
    x, y = make_batch(network, size=100)
    rule = make("drtp", network, local_loss_scale=100.0)
    label, s = F.one_hot(y, 5).double(), x
    for n in (1, 2, 3):
        s = network[n](s)
        s = Hook.apply(s, label @ rule.feedback[n + 1].linear.weight.T) if n < 3 else s
    theirs = torch.autograd.grad(F.cross_entropy(s, y), list(network.parameters()))
    for a, b in zip(rule.forward_gradients(x, y)[1], theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_maps_have_the_distribution_of_the_authors_code():
    network = LeNet(LeNetOptions(channels=[8, 8], hidden=300), (1, 16, 16), 10)
    rule = make("drtp", network)
    for n in (3, 4):
        theirs = nn.init.kaiming_uniform_(torch.empty(10, *network.shapes[n - 1]))
        weight = rule.feedback[n].linear.weight
        assert weight.shape == (network.shapes[n - 1].numel(), 10) and not weight.requires_grad
        bound = (6 / network.shapes[n - 1].numel()) ** 0.5
        assert 0.9 * bound < theirs.abs().max() <= bound and 0.9 * bound < weight.abs().max() <= bound
        assert float(weight.std()) == pytest.approx(float(theirs.std()), rel=0.1)


@pytest.mark.parametrize("activation, warns", [("tanh", False), ("sigmoid", False), ("elu", True), ("relu", True)])
def test_a_network_that_does_not_saturate_is_warned_about(activation, warns, capsys):
    make("drtp", LeNet(LeNetOptions(channels=[3, 4], hidden=8, activation=activation), (2, 12, 12), 5))
    assert ("weights will grow without bound" in capsys.readouterr().err) == warns


def test_a_step_of_the_output_target_is_refused():
    with pytest.raises(UserError, match="--beta: expected 1"):
        make("drtp", tanh_network(16, 12, 5), beta=0.5)


def test_it_learns_more_than_random_features_and_less_than_by_errors(here):
    accuracies = {}
    for name, words in {
        "features": "--algo drtp --projected nothing",
        "labels": "--algo drtp --projected label",
        "errors": "--algo dfa --config drtp_mlp_digits",
    }.items():
        shared = ["--data", "digits", "--max-epochs", "12", "--diagnostics-every", "0", "--seed", "2"]
        assert main([*words.split(), *shared, "--test-weights", "last", "--run-dir", name]) == 0
        accuracies[name] = json.loads((here / name / "summary.json").read_text())["test_accuracy"]
    assert accuracies["features"] + 0.01 < accuracies["labels"] < accuracies["errors"]
