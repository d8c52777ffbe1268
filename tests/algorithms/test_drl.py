"""DTP with the difference reconstruction loss: a transcription of its chain, and the limit that it is made for."""

import pytest
import torch
import torch.nn.functional as F

from dtp.feedback import forward_with_context
from tests.algorithms.helpers import angle, make, relative, same, state
from tests.algorithms.networks import isotropic, linear_network, minimise, tanh_network
from tests.conftest import make_batch

WIDTHS = (9, 8, 7, 6, 4)


def feedback_function(rule, n):
    """G_n of a tanh network, from its weights: tanh(V y + c), for layer n-1 ends in tanh."""
    affine, *_ = rule.feedback[n].operations
    v, c = affine.linear.weight, affine.linear.bias
    return lambda y: (y @ v.T + c).tanh()


@pytest.mark.parametrize("samples", [1, 3])
def test_loss_equals_the_chain_of_the_paper(samples):
    network = tanh_network(*WIDTHS)
    rule = make("drl", network, noise=[0.3, 0.2, 0.1], noise_samples=samples)
    x, _ = make_batch(network)
    a = rule.activations(x)
    s = [value.repeat(samples, *(1 for _ in value.shape[1:])) for value in a.s]
    G = {n: feedback_function(rule, n) for n in (2, 3, 4)}
    for n, sigma in ((2, 0.3), (3, 0.2), (4, 0.1)):
        (eps,) = noise = rule.feedback_noise(n, a)
        v = s[n - 1] + eps
        r = v
        for k in range(n, 5):
            r = network[k](r)
        for k in range(4, n, -1):
            r = s[k - 1] + G[k](r) - G[k](s[k])
        r = r.detach()
        # It is the disturbed activation that is to come back.
        loss = ((s[n - 1] + G[n](r) - G[n](s[n]) - v.detach()) ** 2).mean() / sigma**2
        ours = rule.feedback_loss(n, a, noise)
        torch.testing.assert_close(ours, loss)
        weights = list(rule.feedback[n].parameters())
        for p, q in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(loss, weights), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-14)


def test_noisy_passes_of_a_network_with_pooling_go_to_the_output_and_targets_come_back_by_the_clean_switches(lenet):
    lenet.double()
    rule = make("drl", lenet)
    a = rule.activations(make_batch(lenet)[0])
    (eps,) = noise = rule.feedback_noise(2, a)
    r = a.s[1] + eps
    for k in (2, 3, 4):
        r = forward_with_context(lenet[k], r)[0]
    for k in (4, 3, 2):
        r = a.s[k - 1] + rule.feedback[k](r, a.contexts[k]) - rule.feedback[k](a.s[k], a.contexts[k])
    torch.testing.assert_close(rule.feedback_loss(2, a, noise), ((r - a.s[1] - eps) ** 2).mean() / 0.08**2)


def test_gradients_of_a_loss_reach_the_feedback_of_its_layer_alone_though_it_looks_at_all_above():
    network = tanh_network(*WIDTHS)
    rule = make("drl", network)
    a = rule.activations(make_batch(network)[0])
    for n in (2, 3, 4):
        noise = rule.feedback_noise(n, a)
        loss = rule.feedback_loss(n, a, noise)
        found = torch.autograd.grad(loss, list(rule.parameters()), allow_unused=True, retain_graph=True)
        own = {id(p) for p in rule.feedback[n].parameters()}
        assert {id(p) for p, g in zip(rule.parameters(), found, strict=True) if g is not None} == own
        # It does look: the loss is another with other feedback above.
        before = state(rule.feedback)
        with torch.no_grad():
            for k in range(n + 1, 5):
                rule.feedback[k].operations[0].linear.weight.mul_(1.5)
        assert torch.equal(rule.feedback_loss(n, a, noise), loss) == (n == 4)
        rule.feedback.load_state_dict(before)


def test_targets_are_those_of_the_difference_rule_from_an_output_target_per_sample():
    network = tanh_network(*WIDTHS)
    rule = make("drl", network, beta=0.2)
    x, y = make_batch(network)
    a = rule.activations(x)
    t = a.s[4] - 0.2 * (a.s[4].softmax(1) - F.one_hot(y, 4))
    targets = rule.targets(a, y)
    for n in (4, 3, 2):
        torch.testing.assert_close(targets[n], t)
        G = feedback_function(rule, n)
        t = (a.s[n - 1] + G(t) - G(a.s[n])).detach()
    torch.testing.assert_close(targets[1], t)
    # The whole squared distance, without one half, for all layers.
    losses = rule.local_losses(a, targets, y)
    for n in range(1, 5):
        torch.testing.assert_close(losses[n].detach(), ((a.s[n] - targets[n]) ** 2).sum() / 6)


def test_weights_that_ignore_everything_leave_the_whole_noise_as_the_loss():
    """A loss that asked for the clean activation, a known error in other code, would be zero here, its minimum."""
    network = tanh_network(*WIDTHS)
    rule = make("drl", network)
    a = rule.activations(make_batch(network)[0])
    for n in (2, 3, 4):
        torch.nn.init.zeros_(rule.feedback[n].operations[0].linear.weight)
        (eps,) = noise = rule.feedback_noise(n, a)
        torch.testing.assert_close(rule.feedback_loss(n, a, noise).detach(), (eps**2).mean() / 0.08**2)


def jacobian(network, n, s):
    """d s_N / d s_{n-1} at the one sample ``s``, flat."""

    def upwards(v):
        for k in range(n, network.depth + 1):
            v = network[k](v)
        return v

    return torch.func.jacrev(upwards)(s)[0, :, 0].detach()


def test_in_a_linear_network_targets_become_gauss_newton_steps():
    """J^+ (t_N - s_N), layer by layer from the output downwards."""
    network = linear_network(*WIDTHS)
    rule = make("drl", network)
    for n in (4, 3, 2):
        d = WIDTHS[n - 1]
        a = rule.activations(torch.randn(d, 1, 1, 9, dtype=torch.float64))
        noise = (isotropic(d, 0.08),)
        # A bias has no effect on a difference.
        weight = rule.feedback[n].operations[0].linear.weight
        minimise(lambda n=n, a=a, noise=noise: rule.feedback_loss(n, a, noise), [weight])
    x, y = make_batch(network)
    a = rule.activations(x)
    targets = rule.targets(a, y)
    for n in (2, 3, 4):
        J = jacobian(network, n, a.s[n - 1][:1])
        step = (targets[4] - a.s[4]) @ torch.linalg.pinv(J).T
        found = targets[n - 1] - a.s[n - 1]
        torch.testing.assert_close(found, step, rtol=1e-4, atol=1e-7)
        # Which backprop's are not.
        assert angle((targets[4] - a.s[4]) @ J, step) > 10


def test_weight_decay_of_the_feedback_damps_the_gauss_newton_steps():
    """J^T (J J^T + lam I)^-1 (t_N - s_N) at the output layer, with lam half the decay times the features averaged."""
    network = linear_network(*WIDTHS)
    rule = make("drl", network)
    a = rule.activations(torch.randn(6, 1, 1, 9, dtype=torch.float64))
    noise, weight = (isotropic(6, 0.08),), rule.feedback[4].operations[0].linear.weight
    minimise(lambda: rule.feedback_loss(4, a, noise), [weight], penalty=0.02)
    J = network[4][0].weight.detach()
    expected = J.T @ torch.linalg.inv(J @ J.T + 0.02 * 6 / 2 * torch.eye(4))
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-8)


def test_training_as_in_a_run_turns_targets_of_a_tanh_network_to_gauss_newton_steps():
    """At one sample, for which one pair of Jacobians holds, with small noise."""
    network = tanh_network(9, 8, 6, 4)
    rule = make(
        "drl", network, noise=[0.02], noise_samples=32, feedback_iterations=[600], feedback_lr=[0.02], beta=0.01
    )
    x, y = make_batch(network, 1)
    forward = state(network)
    for rate in (0.02, 0.004):
        for optimizer in rule.feedback_optimizers.values():
            optimizer.param_groups[0]["lr"] = rate
        rule.feedback_phase(rule.activations(x))
    assert same(forward, network.state_dict())
    a = rule.activations(x)
    targets = rule.targets(a, y)
    for n in (2, 3):
        J = jacobian(network, n, a.s[n - 1])
        step = (targets[3] - a.s[3]) @ torch.linalg.pinv(J).T
        assert angle(targets[n - 1] - a.s[n - 1], step) < 6
        assert relative(targets[n - 1] - a.s[n - 1], step) < 0.15
        # Which backprop's are not.
        assert angle((targets[3] - a.s[3]) @ J, step) > 15
