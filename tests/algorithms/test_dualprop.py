"""Dual propagation against transcriptions of both papers' forms, and its limits."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dtp.algorithms.dualprop import DualProp
from dtp.errors import UserError
from tests.algorithms.helpers import make, relative
from tests.algorithms.networks import Layers, linear_network, normalised_network, tanh_network
from tests.conftest import make_batch


def relu_network(*widths):
    network = tanh_network(*widths)
    for layer in list(network)[:-1]:
        layer[-1] = nn.ReLU()
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network


def bp_gradients(network, x, y, loss=F.cross_entropy):
    return torch.autograd.grad(loss(network(x), y), list(network.parameters()))


def by_hand(network, x, y, f, form, alpha, beta, order, squared=False, back=None):
    """The states of fully connected layers as the authors' code has them, and the gradients that follow.

    ``back``: weights of the feedback out of each layer from the second on, (in, out); None for the transposed ones.
    """
    W = [m.weight.detach() for m in network.modules() if isinstance(m, nn.Linear)]
    b = [m.bias.detach() for m in network.modules() if isinstance(m, nn.Linear)]
    N, label = len(W), F.one_hot(y, len(W[-1])).double()
    plus = [x.flatten(1)]
    for n in range(N):
        a = plus[-1] @ W[n].T + b[n]
        plus.append(a if n == N - 1 else f(a))
    minus, prediction = [s.clone() for s in plus], plus[-1].clone()

    def slope(s):
        return s - label if squared else s.softmax(1) - label

    for n in order:
        sbar = alpha * plus[n - 1] + (1 - alpha) * minus[n - 1]
        ff = sbar @ W[n - 1].T + b[n - 1]
        if n == N and form == "lagrangian":
            plus[n], minus[n] = (
                ff - (1 - alpha) * beta * slope(prediction),
                ff + alpha * beta * slope(prediction),
            )
        elif n == N and squared:
            # The minima of beta alpha |s - y|^2 / 2 + |s - ff|^2 / 2, and of the same with -beta (1 - alpha).
            up, down = alpha * beta, -(1 - alpha) * beta
            plus[n], minus[n] = (ff + up * label) / (1 + up), (ff + down * label) / (1 + down)
        elif n == N:
            plus[n], minus[n] = ff - alpha * beta * slope(ff), ff + (1 - alpha) * beta * slope(ff)
        else:
            fb = (plus[n + 1] - minus[n + 1]) @ (W[n] if back is None else back[n - 1].T)
            if form == "lagrangian":
                plus[n], minus[n] = f(ff + (1 - alpha) * fb), f(ff - alpha * fb)
            else:
                plus[n], minus[n] = f(ff + alpha * fb), f(ff - (1 - alpha) * fb)
    found = []
    for n in range(1, N + 1):
        sbar, delta = alpha * plus[n - 1] + (1 - alpha) * minus[n - 1], (plus[n] - minus[n]) / beta / len(x)
        found += [-delta.T @ sbar, -delta.sum(0)]
    return found


ORDERS = {
    ("bw", 1): [4, 3, 2, 1],
    ("bw", 2): [4, 3, 2, 1] * 2,
    ("fw", 4): [1, 2, 3, 4] * 4,
    ("fwbw", 2): [4, 3, 2, 1, 1, 2, 3, 4, 4, 3, 2, 1],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("form", ["lagrangian", "dyadic"])
@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_gradients_equal_the_authors_updates_written_by_hand(loss, form, alpha, order):
    network = relu_network(16, 12, 11, 10, 5)
    x, y = make_batch(network)
    rule = make("dualprop", network, loss=loss, form=form, mix=alpha, nudge=0.7, order=order[0], sweeps=order[1])
    expected = by_hand(network, x, y, torch.relu, form, alpha, 0.7, ORDERS[order], squared=loss == "squared")
    for ours, theirs in zip(rule.forward_gradients(x, y)[1], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_feedback_may_go_through_weights_of_its_own(order):
    network = relu_network(16, 12, 11, 10, 5)
    x, y = make_batch(network)
    rule = make("dualprop", network, backward="kolen-pollack", nudge=0.7, order=order[0], sweeps=order[1])
    back = [weight for layer in (2, 3, 4) for weight, _ in rule.feedback_weights()[layer]]
    expected = by_hand(network, x, y, torch.relu, "lagrangian", 0.5, 0.7, ORDERS[order], back=back)
    for ours, theirs in zip(rule.forward_gradients(x, y)[1], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("init, deviation", [("default", (3 * 200) ** -0.5), ("xavier-normal", (2 / 300) ** 0.5)])
def test_weights_of_the_feedback_begin_with_the_spread_that_is_asked_for(init, deviation):
    rule = make("dualprop", tanh_network(16, 200, 100, 5), backward="kolen-pollack", backward_init=init)
    weight, _ = rule.feedback_weights()[2][0]
    assert float(weight.std()) == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weights_of_the_feedback_come_to_the_forward_ones_by_their_own_steps_and_decay(optimizer, lenet):
    rule = make("dualprop", lenet, backward="kolen-pollack", optimizer=optimizer, lr=0.01, weight_decay=10.0)

    def distances():
        return [back - forward for pairs in rule.feedback_weights().values() for back, forward in pairs]

    first = [distance.clone() for distance in distances()]
    for _ in range(4):
        rule.training_batch(*make_batch(lenet))
    for distance, before in zip(distances(), first, strict=True):
        torch.testing.assert_close(distance, before * (1 - 0.01 * 10) ** 4)


def test_biases_decay_with_the_weights_as_in_the_code_of_2023(lenet):
    rule = make("dualprop", lenet, backward="kolen-pollack", optimizer="sgd", momentum=0.0, lr=0.01, weight_decay=10.0)
    batch = make_batch(lenet)
    gradients = rule.forward_gradients(*batch)[1]
    expected = [
        p * (1 - 0.01 * 10) - 0.01 * gradient for p, gradient in zip(rule.forward_parameters, gradients, strict=True)
    ]
    rule.training_batch(*batch)
    for parameter, value in zip(rule.forward_parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value.detach())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_it_is_backprop_in_a_linear_network_for_any_nudge(alpha):
    network = linear_network(40, 64, 64, 64, 64, 10)
    x, y = make_batch(network, size=64)
    found = make("dualprop", network, mix=alpha, nudge=1.0).forward_gradients(x, y)[1]
    for ours, theirs in zip(found, bp_gradients(network, x, y), strict=True):
        assert relative(ours, theirs) < 1e-12


@pytest.mark.parametrize("alpha, factor, tolerance", [(0.5, 100, 5), (0.0, 10, 0.5), (1.0, 10, 0.5)])
def test_the_distance_to_backprop_falls_with_the_nudge_as_the_papers_say(alpha, factor, tolerance):
    """Of second order for equal weights of the two states, else of first."""
    network = tanh_network(40, 64, 64, 64, 64, 10)
    x, y = make_batch(network, size=64)
    true = bp_gradients(network, x, y)[0]
    distances = [
        relative(
            make("dualprop", network, mix=alpha, nudge=nudge, order="fw", sweeps=16).forward_gradients(x, y)[1][0], true
        )
        for nudge in (0.1, 0.01)
    ]
    assert distances[0] / distances[1] == pytest.approx(factor, abs=tolerance)


def test_sweeps_upwards_bring_feedback_down_one_layer_each():
    network = tanh_network(16, 12, 11, 10, 9, 5)
    x, y = make_batch(network)
    for sweeps in range(1, 6):
        rule = make("dualprop", network, order="fw", sweeps=5)
        rule.options.sweeps = sweeps
        found = rule.forward_gradients(x, y)[1][::2]
        assert [bool(gradient.any()) for gradient in found] == [n > 5 - sweeps for n in range(1, 6)]
    with pytest.raises(UserError, match="--sweeps: expected at least 5"):
        make("dualprop", network, order="fw", sweeps=4)


def test_both_forms_agree_at_equal_weights_up_to_the_square_of_the_nudge():
    network = tanh_network(40, 64, 64, 64, 10)
    x, y = make_batch(network, size=64)
    distances = []
    for nudge in (1.0, 0.1, 0.01):
        found = [
            make("dualprop", network, form=form, nudge=nudge, order="fw", sweeps=16).forward_gradients(x, y)[1]
            for form in ("lagrangian", "dyadic")
        ]
        distances.append(relative(found[0][0], found[1][0]))
    assert 0 < distances[2] < 1e-5 and distances[1] / distances[2] == pytest.approx(100, rel=0.1)


def test_the_form_of_2024_is_the_nearer_to_backprop_at_unequal_weights_and_large_nudges():
    network = relu_network(40, 64, 64, 64, 64, 10)
    x, y = make_batch(network, size=64)
    true = bp_gradients(network, x, y)[0]
    for alpha in (0.0, 1.0):
        distances = [
            relative(
                make("dualprop", network, form=form, mix=alpha, nudge=1.0, order="fw", sweeps=16).forward_gradients(
                    x, y
                )[1][0],
                true,
            )
            for form in ("lagrangian", "dyadic")
        ]
        assert distances[0] < distances[1]


class CNNForm(torch.autograd.Function):
    """ReLU with the derivative of the convolutional networks of 2023: (relu(a + d) - relu(a - d)) / 2."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a.relu()

    @staticmethod
    def backward(ctx, d):
        (a,) = ctx.saved_tensors
        return ((a + d).relu() - (a - d).relu()) / 2


def test_the_convolutional_networks_of_2023_are_one_sweep_down_with_a_nudge_of_two_over_the_batch():
    class Their(nn.Module):
        def forward(self, a):
            return CNNForm.apply(a)

    def layers(function):
        return [
            nn.Sequential(nn.Conv2d(2, 6, 3), function(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(6, 8, 3), function()),
            nn.Sequential(nn.Flatten(), nn.Linear(72, 20), function()),
            nn.Sequential(nn.Linear(20, 5)),
        ]

    network = Layers(layers(nn.ReLU), (2, 12, 12)).double()
    theirs = nn.Sequential(*(module for layer in layers(Their) for module in layer)).double()
    for p, q in zip(theirs.parameters(), network.parameters(), strict=True):
        p.data.copy_(q)
    x, y = make_batch(network, size=20)
    found = make("dualprop", network, form="dyadic", nudge=2 / len(x)).forward_gradients(x, y)[1]
    expected = torch.autograd.grad(F.cross_entropy(theirs(x), y), list(theirs.parameters()))
    for ours, wanted in zip(found, expected, strict=True):
        # Their senders are the forward pass, ours the mean of the two states.
        assert F.cosine_similarity(ours.flatten(), wanted.flatten(), dim=0) > 0.999
    # The first layer's sender is the image in both.
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-12)


def test_a_convolutional_network_with_pooling_comes_near_to_backprop(lenet):
    lenet.double()
    x, y = make_batch(lenet)
    found = make("dualprop", lenet, nudge=1e-4).forward_gradients(x, y)[1]
    for ours, theirs in zip(found, bp_gradients(lenet, x, y), strict=True):
        assert relative(ours, theirs) < 1e-6


def test_statistics_are_those_of_the_forward_pass_and_counted_once():
    network = normalised_network().double()
    rule = make("dualprop", network, order="fw", sweeps=3).double()
    norm = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    rule.training_batch(*make_batch(network))
    assert int(norm.num_batches_tracked) == 1


def held(network: nn.Module) -> nn.Module:
    """The same network, in which the statistics of the batch are numbers that no gradient goes through."""
    network = copy.deepcopy(network)

    def hold(norm, inputs):
        over = [0, *range(2, inputs[0].dim())]
        norm.running_mean = inputs[0].detach().mean(over)
        norm.running_var = inputs[0].detach().var(over, unbiased=False)
        norm.eval()

    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.register_forward_pre_hook(hold)
    return network


@pytest.mark.parametrize("order", ["bw", "fwbw", "fw"])
def test_it_comes_near_to_backprop_with_statistics_held_in_every_layer(order):
    layers = [
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh()),
        nn.Sequential(nn.Flatten(), nn.Linear(147, 6), nn.Tanh(), nn.BatchNorm1d(6)),
        nn.Sequential(nn.Linear(6, 5)),
    ]
    network = Layers(layers, (2, 9, 9)).double()
    x, y = make_batch(network)
    found = make("dualprop", network, nudge=1e-4, order=order, sweeps=3).forward_gradients(x, y)[1]
    for ours, theirs in zip(found, bp_gradients(held(network), x, y), strict=True):
        assert relative(ours, theirs) < 1e-6


def test_the_squared_loss_of_2023_is_longer_than_backprops_gradient_by_the_factor_it_says():
    network = linear_network(16, 12, 5)
    x, y = make_batch(network)
    rule = make("dualprop", network, form="dyadic", loss="squared", nudge=1.0)
    assert rule.gradient_scale(1) == pytest.approx(4 / 3)
    true = bp_gradients(network, x, y, lambda output, y: rule.task_loss(output, y))
    torch.testing.assert_close(rule.forward_gradients(x, y)[1][0], 4 / 3 * true[0], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mix": 1.5}, "--mix: expected a number from 0 to 1, found 1.5."),
        ({"nudge": 0.0}, "--nudge: expected a number above 0, found 0.0."),
        ({"backward": "kolen-pollack", "lr": 0.1, "weight_decay": 10.0}, "--weight-decay: expected less than 1 / --lr"),
        (
            {"backward_init": "xavier"},
            "--backward-init xavier: expected --backward kolen-pollack, found transpose, which has no backward weights",
        ),
        ({"sweeps": 0}, "--sweeps: expected at least 1, found 0."),
        ({"form": "dyadic", "loss": "squared", "nudge": 2.0}, "--nudge: expected less than 1 / (1 - mix), 2"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError) as error:
        make("dualprop", tanh_network(16, 12, 5), **changes)
    assert str(error.value).startswith(message)


def test_kolen_pollack_steps_take_several_optimizers_but_none_that_decays_weights(mlp):
    class Own(DualProp):
        decay = 0.0

        def configure_optimizers(self):
            return [torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=self.decay) for layer in self.network]

    rule = Own(mlp, backward="kolen-pollack", weight_decay=0.5)
    before = {o.layer: o.backward_map.transpose_of(o.module) - o.backward_map.weight for o in rule.feedback.operations}
    rule.configure_optimizers()
    rule.training_batch(*make_batch(mlp))
    for o in rule.feedback.operations:
        after = o.backward_map.transpose_of(o.module) - o.backward_map.weight
        torch.testing.assert_close(after, 0.95 * before[o.layer])
    rule.decay = 0.1
    rule.configure_optimizers()
    with pytest.raises(UserError, match="optimizers with weight_decay=0, found 0.1"):
        rule.training_batch(*make_batch(mlp))


def test_below_a_normalisation_the_limit_is_backprop_with_constant_statistics():
    torch.manual_seed(0)
    first, norm, last = nn.Linear(6, 20), nn.LayerNorm(20), nn.Linear(20, 3)
    rule = DualProp(nn.Sequential(first, norm, nn.Tanh(), last), nudge=1e-4).double()
    x, y = torch.randn(16, 6, dtype=torch.float64), torch.arange(16) % 3
    a = first(x)
    mean, variance = a.detach().mean(1, keepdim=True), a.detach().var(1, unbiased=False, keepdim=True)
    normed = (a - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    losses = [F.cross_entropy(last(torch.tanh(h)), y) for h in (normed, norm(a))]
    constant, whole = (torch.autograd.grad(loss, first.weight, retain_graph=True)[0] for loss in losses)
    found = rule.forward_gradients(x, y)[1][0]
    assert relative(found, constant) < 1e-6
    assert relative(found, whole) > 0.1


def test_what_an_operation_that_was_not_cut_draws_is_the_same_in_all_sweeps():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.AlphaDropout(0.3), nn.Linear(20, 8), nn.Tanh())
    network.append(nn.Linear(8, 3))
    rule = DualProp(network, nudge=1e-3, order="fwbw", sweeps=2).double()
    x, y = torch.randn(9, 6, dtype=torch.float64), torch.arange(9) % 3
    torch.manual_seed(1)
    expected = torch.autograd.grad(F.cross_entropy(network(x), y), list(network.parameters()))
    torch.manual_seed(1)
    found = rule.forward_gradients(x, y)[1]
    assert all(relative(a, b) < 1e-6 for a, b in zip(found, expected, strict=True))
