"""Simplified DTP, with and without auxiliary outputs, against transcriptions of its equations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dtp.algorithms.base import Algorithm
from dtp.algorithms.local_targets import LocalTargets
from dtp.cli.arguments import parse
from dtp.errors import UserError
from dtp.models import as_network
from dtp.models.modules import Sample
from tests.algorithms.helpers import make, same, state
from tests.algorithms.networks import linear_network, tanh_network
from tests.conftest import make_batch

WIDTHS = (9, 8, 7, 6, 4)
RULES = [pytest.param("sdtp", {}, id="sdtp"), pytest.param("ao-sdtp", {"auxiliary": 5}, id="ao-sdtp")]


def probabilities(rule, s):
    """s_N of s_{N-1}: class probabilities, and the auxiliary units of AO-SDTP."""
    output = rule.network[4][0]
    o = (s @ output.weight.T + output.bias).softmax(1)
    if not hasattr(rule, "auxiliary"):
        return o
    w, b = rule.auxiliary.weight, rule.auxiliary.bias
    return torch.cat([o, (s @ w.T + b).tanh()], 1)


def feedback_function(rule, n):
    affine = rule.feedback[n].operations[0].linear
    return lambda y: (y @ affine.weight.T + affine.bias).tanh()


@pytest.mark.parametrize("name, changes", RULES)
def test_targets_equal_the_equations(name, changes):
    network = tanh_network(*WIDTHS)
    rule = make(name, network, **changes)
    x, y = make_batch(network)
    with torch.no_grad():
        s = [x]
        for n in (1, 2, 3):
            s.append(network[n](s[-1]))
        s.append(probabilities(rule, s[-1]))
        t = {4: torch.cat([F.one_hot(y, 4).double(), s[4][:, 4:]], 1)}
        for n in (4, 3, 2):
            G = feedback_function(rule, n)
            t[n - 1] = s[n - 1] - G(s[n]) + G(t[n])
    a = rule.activations(x)
    targets = rule.targets(a, y)
    assert sorted(targets) == [1, 2, 3, 4] and s[4].shape[1] == 4 + changes.get("auxiliary", 0)
    for n in range(1, 5):
        torch.testing.assert_close(a.s[n], s[n])
        torch.testing.assert_close(targets[n], t[n])
    # The same auxiliary units in both, bit for bit, so that only the classes pull.
    assert torch.equal(targets[4][:, 4:], a.s[4][:, 4:])
    assert torch.equal(a.logits, network(x).detach())


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name, changes", RULES)
def test_feedback_losses_ask_for_the_clean_activation_from_a_noisy_pass(name, changes, samples):
    network = tanh_network(*WIDTHS)
    rule = make(name, network, noise_samples=samples, noise=[0.3], **changes)
    a = rule.activations(make_batch(network)[0])
    for n in (2, 3, 4):
        (eps,) = noise = rule.feedback_noise(n, a)
        clean = a.s[n - 1].repeat(samples, 1)
        with torch.no_grad():
            # Also through the softmax and the auxiliary units.
            above = probabilities(rule, clean + eps) if n == 4 else network[n](clean + eps)
        expected = ((feedback_function(rule, n)(above) - clean) ** 2).sum() / (6 * samples)
        torch.testing.assert_close(rule.feedback_loss(n, a, noise), expected)


@pytest.mark.parametrize("name, changes", RULES)
def test_output_layer_learns_the_cross_entropy_of_the_classes_and_the_others_their_distances(name, changes):
    network = tanh_network(*WIDTHS)
    rule = make(name, network, **changes)
    x, y = make_batch(network)
    a = rule.activations(x)
    targets = rule.targets(a, y)
    losses = rule.local_losses(a, targets, y)
    torch.testing.assert_close(losses[4].detach(), F.cross_entropy(network(x), y).detach())
    for n in (1, 2, 3):
        torch.testing.assert_close(losses[n].detach(), 0.5 * ((a.s[n] - targets[n]) ** 2).sum() / 6)


@pytest.mark.parametrize("name, changes", RULES)
def test_targets_use_no_gradient_and_do_not_know_the_task_loss(name, changes, monkeypatch):
    network = tanh_network(*WIDTHS)
    rule = make(name, network, **changes)
    x, y = make_batch(network)
    a = rule.activations(x)

    def refuse(*args, **kwargs):
        raise AssertionError("asked for")

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", refuse)
        patch.setattr(LocalTargets, "loss_gradient", refuse)
        patch.setattr(Algorithm, "task_loss", refuse)
        targets = rule.targets(a, y)
    _, expected = rule.forward_gradients(x, y)
    # A task loss a thousand times as large moves the output layer alone.
    monkeypatch.setattr(Algorithm, "task_loss", lambda self, *rest: 1000 * F.cross_entropy(*rest))
    for n, target in rule.targets(a, y).items():
        assert torch.equal(target, targets[n])
    _, found = rule.forward_gradients(x, y)
    for ours, theirs in zip(found[:-2], expected[:-2], strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found[-1], 1000 * expected[-1])


def test_auxiliary_units_are_random_and_never_trained(mlp):
    rule = make("ao-sdtp", mlp, schedule="sequential", auxiliary=7)
    before = state(rule.auxiliary)
    for _ in range(3):
        rule.training_batch(*make_batch(mlp))
    assert same(before, rule.auxiliary.state_dict())
    stepped = {
        id(p)
        for optimizer in (rule.forward_optimizer, *rule.feedback_optimizers.values())
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert not stepped & {id(p) for p in rule.auxiliary.parameters()}
    assert not any(p.requires_grad for p in rule.auxiliary.parameters())
    # As PyTorch begins a layer of these inputs; saved, for a resumed run must have the same.
    assert rule.auxiliary.weight.abs().max() <= 10**-0.5 and rule.auxiliary.weight.std() > 0.1
    assert "auxiliary.weight" in rule.state_dict()
    other = make("ao-sdtp", mlp, auxiliary=7)
    assert not torch.equal(other.auxiliary.weight, rule.auxiliary.weight)


def test_symmetric_feedback_of_the_output_layer_holds_the_auxiliary_weights_too(mlp):
    rule = make("ao-sdtp", mlp, feedback_init="symmetric", auxiliary=7)
    weight = rule.feedback[4].operations[0].linear.weight
    expected = torch.cat([mlp[4][0].weight, rule.auxiliary.weight]).T
    assert torch.equal(weight, expected)
    assert torch.equal(rule.feedback[3].operations[0].linear.weight, mlp[3][0].weight.T)


def test_auxiliary_outputs_make_targets_below_more_diverse():
    """With K classes the feedback of the output sees K different targets; what it makes of them has their rank."""
    network = tanh_network(9, 8, 20, 3)
    ranks = {}
    for name in ("sdtp", "ao-sdtp"):
        rule = make(name, network)
        x, y = make_batch(network, 40)
        a = rule.activations(x)
        t = rule.feedback[3](rule.first_target(a, y), a.contexts[3]).detach()
        ranks[name] = torch.linalg.matrix_rank(t).item()
    assert ranks["sdtp"] == 3 and ranks["ao-sdtp"] == 20


@pytest.mark.parametrize("drawn", [nn.Dropout(0.5), Sample()])
def test_auxiliary_units_cannot_see_what_is_drawn_in_the_output_layer(drawn):
    hidden, output = nn.Sequential(nn.Linear(9, 8), nn.Tanh()), nn.Linear(8, 3)
    with pytest.raises(UserError, match="before the output layer"):
        make("ao-sdtp", as_network([hidden, nn.Sequential(drawn, output)], (9,)))
    make("ao-sdtp", as_network([nn.Sequential(hidden, drawn), output], (9,)))


@pytest.mark.parametrize("changes", [{"auxiliary": 0}, {"auxiliary": -3}])
def test_a_number_of_auxiliary_units_below_one_is_refused(mlp, changes):
    with pytest.raises(UserError, match="--auxiliary"):
        make("ao-sdtp", mlp, **changes)


@pytest.mark.parametrize("name", ["sdtp", "ao-sdtp"])
def test_the_output_layer_cannot_learn_a_distance_of_logits_to_probabilities(name):
    with pytest.raises(UserError, match="--output-loss"):
        parse(["--algo", name, "--output-loss", "mse"])


@pytest.mark.parametrize("name", ["sdtp", "ao-sdtp"])
def test_a_network_of_one_layer_learns_its_task(name):
    network = linear_network(9, 3)
    rule = make(name, network, schedule="sequential")
    before = state(network)
    rule.training_batch(*make_batch(network))
    assert rule.feedback.numbers == [] and not same(before, network.state_dict())
