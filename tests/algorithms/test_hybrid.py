"""DTP blended with the transposed Jacobian: backprop at one end, Lee's DTP at the other."""

import pytest
import torch

from dtp.algorithms import BP
from dtp.errors import UserError
from tests.algorithms.helpers import make, relative, same, small_network, state
from tests.algorithms.networks import normalised_network, shipped_network
from tests.conftest import make_batch

NETWORKS = {
    "mlp": lambda: small_network("hybrid"),
    "lenet": lambda: small_network("hybrid", "lenet"),
    "batch-norm": normalised_network,
    "resnet18": lambda: shipped_network("resnet18"),
    "lc": lambda: shipped_network("lc"),
}
of_networks = pytest.mark.parametrize("of", NETWORKS)


@of_networks
def test_alpha_1_is_backprop(of):
    network = NETWORKS[of]().double()
    first = state(network)
    x, y = make_batch(network)
    logits, expected = BP(network).forward_gradients(x, y)
    after = state(network)
    network.load_state_dict(first)
    ours, gradients = make("hybrid", network, alpha=1.0).forward_gradients(x, y)
    torch.testing.assert_close(ours, logits, rtol=1e-12, atol=1e-14)
    for gradient, backprop in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, backprop, rtol=1e-10, atol=1e-14)
    # Running statistics have seen the batch once, as in backprop.
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, after[key], rtol=1e-12, atol=0)


@of_networks
def test_alpha_1_is_backprop_for_any_step_in_the_limit_of_its_linearity(of):
    """Nothing in the targets but the transposes: beta scales the gradients, whatever its size."""
    network = NETWORKS[of]().double()
    x, y = make_batch(network)
    _, expected = BP(network).forward_gradients(x, y)
    _, gradients = make("hybrid", network, alpha=1.0, beta=7.0).forward_gradients(x, y)
    for gradient, backprop in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, 7 * backprop, rtol=1e-10, atol=1e-13)


@of_networks
def test_alpha_0_is_difference_target_propagation(of):
    network = NETWORKS[of]().double()
    x, y = make_batch(network)
    hybrid = make("hybrid", network, alpha=0.0, beta=0.3)
    dtp = make("vanilla-dtp", network, beta=0.3, first_target="output", output_loss="mse")
    dtp.feedback.load_state_dict(hybrid.feedback.state_dict())
    for ours, theirs in zip(hybrid.forward_gradients(x, y)[1], dtp.forward_gradients(x, y)[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    a = hybrid.activations(x)
    noise = hybrid.feedback_noise(2, a)
    assert torch.equal(hybrid.feedback_loss(2, a, noise), dtp.feedback_loss(2, a, noise))


@of_networks
def test_between_them_a_target_is_the_blend_of_both_for_the_same_target_above(of):
    network = NETWORKS[of]().double()
    x, y = make_batch(network)
    rules = {alpha: make("hybrid", network, alpha=alpha) for alpha in (0.0, 0.3, 1.0)}
    for rule in rules.values():
        rule.feedback.load_state_dict(rules[0.3].feedback.state_dict())
    a = rules[0.3].activations(x)
    targets = rules[0.3].targets(a, y)
    for n in range(2, network.depth + 1):
        found = {alpha: rule.lower_target(n, targets, a) for alpha, rule in rules.items()}
        torch.testing.assert_close(found[0.3], 0.3 * found[1.0] + 0.7 * found[0.0])
        torch.testing.assert_close(targets[n - 1], found[0.3])
        assert relative(found[0.0] - a.s[n - 1], found[1.0] - a.s[n - 1]) > 0.1


def test_a_step_of_its_exact_end_is_a_step_of_backprop(lenet):
    lenet.double()
    first = state(lenet)
    x, y = make_batch(lenet)
    settings = {"optimizer": "adam", "lr": 0.01}
    make("bp", lenet, weight_decay=0.0, **settings).training_batch(x, y)
    expected = state(lenet)
    lenet.load_state_dict(first)
    make("hybrid", lenet, alpha=1.0, **settings).training_batch(x, y)
    assert not same(first, lenet.state_dict())
    for key, value in lenet.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-9)


def test_its_transpose_leaves_no_gradients_and_no_hooks_behind():
    network = normalised_network()
    rule = make("hybrid", network, alpha=1.0)
    x, y = make_batch(network)
    a = rule.activations(x)
    before = state(rule)
    rule.targets(a, y)
    assert same(before, rule.state_dict())
    assert all(p.grad is None for p in rule.parameters())


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_out_of_range_is_refused(mlp, alpha):
    with pytest.raises(UserError, match="--alpha"):
        make("hybrid", mlp, alpha=alpha)
