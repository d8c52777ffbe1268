"""PEPITA against a transcription of its two passes, and what it is to first order."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dtp.algorithms import PEPITA
from dtp.cli.train import main
from dtp.diagnostics.alignment import feedback_alignment
from dtp.errors import UserError
from dtp.models.modules import RandomOperation
from tests.algorithms.helpers import angle, make, relative, state
from tests.algorithms.networks import Layers, normalised_network, tanh_network
from tests.conftest import make_batch


def relu_network(*widths):
    """Without biases, as the paper has it, in float64."""
    layers = [nn.Sequential(nn.Linear(i, o, bias=False), nn.ReLU()) for i, o in zip(widths, widths[1:], strict=False)]
    layers[0].insert(0, nn.Flatten())
    del layers[-1][-1]
    return Layers(layers, (1, 1, widths[0]), widths[-1]).double()


def by_hand(weights, fixed, x, y, f=torch.relu):
    """The updates of the authors' fully connected code, as gradients: (outer products) / batch."""

    def forward(h):
        found = [h]
        for n, w in enumerate(weights, 1):
            a = found[-1] @ w.T
            found.append(a if n == len(weights) else f(a))
        return found

    h = forward(x)
    label = F.one_hot(y, len(weights[-1])).to(x)
    changed = forward(x + (h[-1].softmax(1) - label) @ fixed.T)
    errors = [h[n] - changed[n] for n in range(1, len(weights))] + [changed[-1].softmax(1) - label]
    return [error.T @ below / len(x) for error, below in zip(errors, changed, strict=False)]


@pytest.mark.parametrize("widths", [(16, 12, 11, 10, 5), (16, 12, 5), (16, 5)])
def test_gradients_equal_the_two_passes_written_by_hand(widths):
    network = relu_network(*widths)
    rule = make("pepita", network, input_scale=1.0)
    x, y = make_batch(network)
    expected = by_hand([p.detach() for p in network.parameters()], rule.feedback.linear.weight, x.flatten(1), y)
    for ours, theirs in zip(rule.forward_gradients(x, y)[1], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_without_a_perturbation_hidden_layers_stay_and_the_output_learns_by_backprop():
    network = relu_network(16, 12, 11, 5)
    rule = make("pepita", network)
    rule.feedback.linear.weight.data.zero_()
    x, y = make_batch(network)
    found = rule.forward_gradients(x, y)[1]
    assert not any(gradient.any() for gradient in found[:-1])
    (true,) = torch.autograd.grad(F.cross_entropy(network(x), y), network[3][0].weight)
    torch.testing.assert_close(found[-1], true, rtol=1e-12, atol=1e-15)


def test_to_first_order_it_is_direct_feedback_alignment_by_minus_the_product_of_weights_below():
    """The difference of the passes is J_n .. J_1 F e; what is left out falls with F."""
    network = tanh_network(30, 40, 40, 10)
    x, y = make_batch(network, size=50)
    rule = make("pepita", network)
    whole = rule.feedback.linear.weight.clone()
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Linear)]
    error = (network(x).softmax(1) - F.one_hot(y, 10)).detach()
    missing = []
    for scale in (20.0, 2.0, 0.2):
        rule.feedback.linear.weight.data = scale * whole
        with torch.no_grad():
            h1 = network[1](x)
            moved = network[1](x + rule.feedback(error)) - h1
            first_order = (error @ rule.feedback.linear.weight.T @ weights[0].T) * (1 - h1**2)
        missing.append(relative(moved, first_order))
        if scale == 0.2:
            # The update is that of DFA with B_1 = -W_1 F, of an input that is not changed.
            dfa = torch.einsum("bi,bj->ij", -first_order, x.flatten(1)) / len(x)
            assert angle(rule.forward_gradients(x, y)[1][0], dfa) < 1
    assert missing[0] / missing[1] == pytest.approx(10, rel=0.3)
    assert missing[1] / missing[2] == pytest.approx(10, rel=0.1)


class Dropout(RandomOperation):
    """Units kept with probability one half."""

    draws = True

    def draw(self, x):
        return (torch.rand_like(x) < 0.5).to(x) / 0.5

    def with_numbers(self, x, numbers):
        return x * numbers


def test_both_passes_have_the_same_dropout():
    layers = [
        nn.Sequential(nn.Flatten(), nn.Linear(16, 30, bias=False), nn.ReLU(), Dropout()),
        nn.Sequential(nn.Linear(30, 20, bias=False), nn.ReLU(), Dropout()),
        nn.Sequential(nn.Linear(20, 5, bias=False)),
    ]
    network = Layers(layers, (1, 4, 4)).double()
    rule = make("pepita", network)
    rule.feedback.linear.weight.data.zero_()
    found = rule.forward_gradients(*make_batch(network))[1]
    assert not found[0].any() and not found[1].any() and found[2].any()


def test_units_that_are_dropped_do_not_learn():
    """As in the authors' code: h and h~ are what dropout leaves of them."""
    dropout = nn.Dropout(0.25)
    layers = [nn.Sequential(nn.Flatten(), nn.Linear(16, 30, bias=False), nn.ReLU(), dropout)]
    layers.append(nn.Sequential(nn.Linear(30, 5, bias=False)))
    network = Layers(layers, (1, 4, 4)).double()
    rule = make("pepita", network, input_scale=1.0)
    x, y = make_batch(network)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        mask = dropout(torch.ones(len(x), 30, dtype=x.dtype))
    torch.manual_seed(5)
    found = rule.forward_gradients(x, y)[1]
    x, (W, V), goal = x.flatten(1), network.parameters(), torch.eye(5, dtype=x.dtype)[y]
    h = (x @ W.t()).relu() * mask
    below = x + ((h @ V.t()).softmax(1) - goal) @ rule.feedback.linear.weight.t()
    again = (below @ W.t()).relu() * mask
    expected = (h - again).t() @ below, ((again @ V.t()).softmax(1) - goal).t() @ again
    assert 0.1 < (mask == 0).double().mean() < 0.4
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b / len(x), rtol=1e-12, atol=1e-15)


def test_normalisations_use_the_statistics_of_the_first_pass_and_count_it_alone():
    network = normalised_network().double()
    rule = make("pepita", network, input_scale=5.0).double()
    x, y = make_batch(network)
    norm = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    inputs = []
    norm.register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach().clone()))
    before = state(network)
    rule.training_batch(x, y)
    # The second pass computes with the numbers of the first, without the module.
    assert len(inputs) == 1 and int(norm.num_batches_tracked) == int(before["layers.0.1.num_batches_tracked"]) + 1


@pytest.mark.parametrize("positions", ["mean", "root", "sum"])
def test_a_convolution_of_one_position_is_the_linear_layer(positions):
    """And over several positions its update is their mean, their sum over the root of their number, or their sum."""
    conv = Layers(
        [
            nn.Sequential(nn.Conv2d(3, 12, 4, bias=False), nn.ReLU()),
            nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False)),
        ],
        (3, 4, 4),
    ).double()
    dense = relu_network(48, 12, 5)
    with torch.no_grad():
        for p, q in zip(conv.parameters(), dense.parameters(), strict=True):
            q.copy_(p.flatten(1))
    rules = [make("pepita", network, positions=positions) for network in (conv, dense)]
    rules[1].feedback.linear.weight.data = rules[0].feedback.linear.weight.data
    x, y = make_batch(conv)
    ours = rules[0].forward_gradients(x, y)[1]
    theirs = rules[1].forward_gradients(x.flatten(1)[:, None, None], y)[1]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.flatten(1), b, rtol=1e-12, atol=1e-15)


def test_the_update_of_a_convolution_goes_over_positions_before_pooling():
    network = Layers(
        [
            nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False)),
        ],
        (2, 6, 6),
    ).double()
    x, y = make_batch(network)
    found = {
        positions: make("pepita", network, positions=positions, input_scale=1.0)
        for positions in ("mean", "root", "sum")
    }
    rule = found["sum"]
    for other in found.values():
        other.feedback = rule.feedback
    conv, label = network[1][0], F.one_hot(y, 5)
    with torch.no_grad():
        changed = x + rule.feedback(network(x).softmax(1) - label)
        difference = conv(x).relu() - conv(changed).relu()
        expected = torch.zeros_like(conv.weight)
        for row in range(4):
            for column in range(4):
                patch = changed[:, :, row : row + 3, column : column + 3]
                expected += torch.einsum("bo,bikl->oikl", difference[:, :, row, column], patch) / len(x)
    for positions, factor in (("sum", 1), ("root", 4), ("mean", 16)):
        gradient = found[positions].forward_gradients(x, y)[1][0]
        torch.testing.assert_close(gradient, expected / factor, rtol=1e-10, atol=1e-13)


def test_forward_weights_turn_against_the_fixed_map(here, capsys):
    words = ["--algo", "pepita", "--data", "digits", "--max-epochs", "16", "--diagnostics-every", "16", "--seed", "1"]
    assert main([*words, "--run-dir", "run"]) == 0
    rows = (here / "run" / "metrics.csv").read_text().splitlines()
    place = rows[0].split(",").index("feedback_angle/layer1")
    first, last = (float(row.split(",")[place]) for row in rows[1:] if row.split(",")[place])
    assert first == pytest.approx(90, abs=3) and last > 95


def test_the_angle_is_of_linear_layers_alone(lenet):
    network = relu_network(16, 12, 11, 5)
    rule = make("pepita", network)
    (w1, w2, w3), fixed = [p.detach() for p in network.parameters()], rule.feedback.linear.weight
    assert feedback_alignment(rule)[1].angle == pytest.approx(angle(fixed, (w3 @ w2 @ w1).T))
    assert make("pepita", lenet).feedback_weights() == {}
    # A map of each row of an image, of which the next layer sees the mean, is none of the whole image.
    rows = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.AdaptiveAvgPool2d((1, 6)), nn.Flatten())
    assert make("pepita", Layers([rows, nn.Sequential(nn.Linear(6, 5))], (1, 8, 8))).feedback_weights() == {}


def test_a_scale_out_of_range_is_refused():
    with pytest.raises(UserError, match="--input-scale: expected a number above 0, found 0.0."):
        make("pepita", relu_network(16, 12, 5), input_scale=0.0)


def test_whole_numbers_that_a_model_embeds_are_refused_wherever_it_does_so():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.last = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.embedding(x).mean(1))

    with pytest.raises(UserError, match=r"^pepita adds the error to its inputs, found a network that begins with an"):
        PEPITA(Mean(), input_shape=(5,))


def test_what_an_operation_that_was_not_cut_draws_is_the_same_in_both_passes():
    """Without an error to present the passes are one, so that hidden layers learn nothing."""
    network = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.AlphaDropout(0.5), nn.Linear(20, 8), nn.Tanh())
    rule = PEPITA(nn.Sequential(*network, nn.Linear(8, 3)))
    nn.init.zeros_(rule.feedback.linear.weight)
    gradients = rule.forward_gradients(torch.randn(7, 6), torch.arange(7) % 3)[1]
    assert all(not gradient.any() for gradient in gradients[:4])
    assert gradients[4].any()
