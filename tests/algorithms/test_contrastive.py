"""Rules of networks that settle, against transcriptions of their equations, and against backprop."""

import copy
import csv

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from dtp.cli.train import main
from dtp.diagnostics.alignment import feedback_alignment, update_alignment
from dtp.errors import UserError
from dtp.models import MLP
from dtp.models.options import MLPOptions
from tests.algorithms.helpers import angle, changed, make, relative, same, state
from tests.algorithms.networks import Layers
from tests.conftest import make_batch

RULES = ["chl", "generec"]
FUNCTIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


def small(*widths, activation="sigmoid", bias=True, std=0.5):
    """A network in float64 for 16 inputs and 5 classes with weights of ``std`` / sqrt(inputs), and some biases."""
    network = MLP(MLPOptions(widths=list(widths), activation=activation, bias=bias), (1, 4, 4), 5).double()
    for parameter in network.parameters():
        fan_in = parameter.shape[1] if parameter.dim() == 2 else 1
        nn.init.normal_(parameter, std=std / fan_in**0.5)
    return network


def weights(network):
    """Matrix and bias (or zeros) of each layer, from 1; entry 0 is empty."""
    linears = [next(m for m in layer if isinstance(m, nn.Linear)) for layer in network]
    biases = [x.weight.new_zeros(len(x.weight)) if x.bias is None else x.bias.detach() for x in linears]
    return [(), *((x.weight.detach(), b) for x, b in zip(linears, biases, strict=True))]


def settle(network, feedback, x, label, start, o, f):
    """The units of one sample after ``o.settling_steps``, by the equations, unit vector by unit vector.

    ``feedback`` is U_k for k = 1..N-1, ``label`` None in the free phase, ``start`` the units to start from. After a
    free phase without feedback the clamped one feeds back differences to it.
    """
    W, N = weights(network), network.depth
    h = [x.flatten(), *start[1:]]
    if label is not None:
        h[N] = label
    for _ in range(o.settling_steps):
        old = list(h)
        for k in range(1, N + 1):
            if k == N and label is not None:
                continue
            a = W[k][0] @ old[k - 1] + W[k][1]
            if k < N:
                a = a + o.gain * feedback[k] @ (old[k + 1] - (start[k + 1] if o.free_phase == "feedforward" else 0))
            h[k] = old[k] + o.relaxation * ((torch.sigmoid if k == N else f)(a) - old[k])
    return h


def upwards(network, x, f):
    h = [x.flatten()]
    for k in range(1, network.depth + 1):
        W, b = weights(network)[k]
        h.append((torch.sigmoid if k == network.depth else f)(W @ h[-1] + b))
    return h


# --- settling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free_phase", ["settle", "feedforward"])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_both_phases_of_a_batch_equal_the_equations_for_each_sample(activation, free_phase):
    network, f = small(12, 11, 10, activation=activation, bias=activation != "tanh"), FUNCTIONS[activation]
    o = {"settling_steps": 7, "settling_tolerance": 0.0, "relaxation": 0.3, "gain": 0.7, "free_phase": free_phase}
    rule = make("generec", network, feedback_weights="random", **o)
    x, y = make_batch(network)
    free, clamped = rule.phases(x, y)
    feedback = {k: rule.feedback_weight(k) for k in (1, 2, 3)}
    for i in range(len(x)):
        minus = upwards(network, x[i], f)
        if free_phase == "settle":
            minus = settle(network, feedback, x[i], None, minus, rule.options, f)
        plus = settle(network, feedback, x[i], F.one_hot(y[i], 5).double(), minus, rule.options, f)
        for k in range(5):
            torch.testing.assert_close(free.h[k][i], minus[k])
            torch.testing.assert_close(clamped.h[k][i], plus[k])


def test_a_weight_of_two_layers_learns_the_sum_of_what_each_of_them_would():
    def network(shared):
        torch.manual_seed(0)
        first, middle = nn.Linear(16, 9), nn.Linear(9, 9)
        other = middle if shared else copy.deepcopy(middle)
        last = nn.Linear(9, 5)
        return layers((nn.Flatten(), first, nn.Sigmoid()), (middle, nn.Sigmoid()), (other, nn.Sigmoid()), (last,))

    tied, apart = network(shared=True), network(shared=False)
    batch = make_batch(tied)
    weight = {id(p): g for p, g in zip(tied.parameters(), make("chl", tied).forward_gradients(*batch)[1], strict=True)}
    each = {id(p): g for p, g in zip(apart.parameters(), make("chl", apart).forward_gradients(*batch)[1], strict=True)}
    for name in ("weight", "bias"):
        expected = sum(each[id(getattr(apart[k][0], name))] for k in (2, 3))
        torch.testing.assert_close(weight[id(getattr(tied[2][0], name))], expected)


@pytest.mark.parametrize("name", RULES)
def test_settled_units_are_at_rest_and_the_residual_says_so(name):
    network = small(12, 11, 10)
    rule = make(name, network, settling_steps=2000, settling_tolerance=1e-9)
    x, y = make_batch(network)
    W = weights(network)
    for phase, top in zip(rule.phases(x, y), (4, 3), strict=True):
        assert 0 < phase.residual <= 1e-9
        for k in range(1, top + 1):
            a = phase.h[k - 1] @ W[k][0].T + W[k][1]
            if k < 4:
                a = a + rule.options.gain * phase.h[k + 1] @ W[k + 1][0]
            torch.testing.assert_close(phase.h[k], a.sigmoid(), rtol=0, atol=1e-7)
    assert torch.equal(phase.h[4], F.one_hot(y, 5).double()) and torch.equal(phase.h[0], x.flatten(1))


def test_the_residual_is_the_largest_change_in_the_last_step_when_steps_run_out():
    network = small(12, 11)
    x, y = make_batch(network)
    found = {}
    for steps in (6, 7):
        # Full tolerance is never met.
        rule = make("chl", network, settling_steps=steps, settling_tolerance=0.0)
        found[steps] = rule.phases(x, y)
    # The clamped phase starts from the free one, which is another one after other numbers of steps.
    before, after = found[6][0], found[7][0]
    change = max((b - a).abs().max() for a, b in zip(before.h, after.h, strict=True))
    assert 0 < after.residual < before.residual
    torch.testing.assert_close(after.residual, change)


def test_a_relaxation_stops_at_the_tolerance():
    network = small(12, 11)
    rule = make("chl", network, settling_steps=100000, settling_tolerance=1e-3)
    applied = []
    network[1][1].register_forward_hook(lambda *_: applied.append(1))
    network[2][0].register_forward_hook(lambda *_: applied.append(2))
    rule.free_phase(make_batch(network)[0])
    assert 10 < applied.count(2) < 200


@pytest.mark.parametrize("name", RULES)
def test_samples_of_a_batch_do_not_see_each_other(name):
    network = small(12, 11, 10)
    rule = make(name, network, settling_tolerance=0.0)
    x, y = make_batch(network)
    together = rule.phases(x, y)
    alone = [rule.phases(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    for p in (0, 1):
        for k in range(5):
            torch.testing.assert_close(together[p].h[k], torch.cat([phases[p].h[k] for phases in alone]))
    _, whole = rule.forward_gradients(x, y)
    parts = [rule.forward_gradients(x[i : i + 1], y[i : i + 1])[1] for i in range(len(x))]
    for g, *each in zip(whole, *parts, strict=True):
        torch.testing.assert_close(g, torch.stack(each).mean(0))


# --- the rules --------------------------------------------------------------------------------------------------------


def outer(change, units):
    """Mean over samples of change units^T."""
    return torch.stack([torch.outer(c, u) for c, u in zip(change, units, strict=True)]).mean(0)


@pytest.mark.parametrize("gain", [0.5, 1.0])
@pytest.mark.parametrize("name, form", [("chl", ""), ("generec", "plain"), ("generec", "midpoint")])
def test_gradients_equal_the_equations(name, form, gain):
    network = small(12, 11, 10)
    rule = make(name, network, gain=gain, **({"generec_form": form} if form else {}))
    x, y = make_batch(network)
    free, clamped = (phase.h for phase in rule.phases(x, y))
    _, gradients = rule.forward_gradients(x, y)
    for k in range(1, 5):
        (h, v), (h_free, v_free) = (clamped[k], clamped[k - 1]), (free[k], free[k - 1])
        change = {
            "": outer(h, v) - outer(h_free, v_free),
            "plain": outer(h - h_free, v_free),
            "midpoint": outer(h - h_free, (v + v_free) / 2),
        }[form]
        torch.testing.assert_close(gradients[2 * k - 2], -(gain ** (k - 4)) * change)
        torch.testing.assert_close(gradients[2 * k - 1], -(gain ** (k - 4)) * (h - h_free).mean(0))


@pytest.mark.parametrize("gain", [0.3, 1.0])
def test_symmetrised_generec_is_contrastive_hebbian_learning(gain):
    network = small(12, 11, 10)
    x, y = make_batch(network)
    chl = make("chl", network, gain=gain).forward_gradients(x, y)[1]
    found = {}
    for form in ("plain", "midpoint", "symmetrised"):
        found[form] = make("generec", network, gain=gain, generec_form=form).forward_gradients(x, y)[1]
    for ours, theirs in zip(found["symmetrised"], chl, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    # They differ in the hidden layers' senders; into layer 1 and biases all are the same, for the input does not move.
    for form in ("plain", "midpoint"):
        assert [relative(g, c) > 1e-4 for g, c in zip(found[form], chl, strict=True)] == [
            False,
            False,
            *[True, False] * 3,
        ]


def test_chl_tends_to_backprop_of_the_cross_entropy_as_the_gain_goes_to_zero():
    network = small(12, 11, 10)
    x, y = make_batch(network, 20)
    output = network(x)
    loss = F.binary_cross_entropy(output.sigmoid(), F.one_hot(y, 5).double(), reduction="sum") / 20
    expected = torch.autograd.grad(loss, list(network.parameters()))
    worst = {}
    for gain in (0.5, 0.1, 0.01):
        settled = {"settling_steps": 5000, "settling_tolerance": 1e-13}
        gradients = make("chl", network, gain=gain, **settled).forward_gradients(x, y)[1]
        worst[gain] = max(angle(g, e) for g, e in zip(gradients, expected, strict=True))
        lengths = [float(g.norm() / e.norm()) for g, e in zip(gradients, expected, strict=True)]
        if gain < 0.05:
            assert lengths == pytest.approx([1.0] * 8, abs=0.02)
    # Cosines of at least .999 and .99999.
    assert worst[0.5] > worst[0.1] and worst[0.1] < 2.56 and worst[0.01] < 0.256


@pytest.mark.parametrize("form", ["chl", "plain", "midpoint", "symmetrised"])
def test_after_a_pass_upwards_the_clamped_phase_tends_to_backprop_too(form):
    network = small(12, 11, 10)
    x, y = make_batch(network, 20)
    o = {"free_phase": "feedforward", "gain": 0.01, "settling_steps": 5000, "settling_tolerance": 1e-13}
    rule = make("chl", network, **o) if form == "chl" else make("generec", network, generec_form=form, **o)
    expected = torch.autograd.grad(rule.task_loss(network(x), y), list(network.parameters()))
    for g, e in zip(rule.forward_gradients(x, y)[1], expected, strict=True):
        assert relative(g, e) < 0.03


@pytest.mark.parametrize("free_phase", ["settle", "feedforward"])
def test_a_network_that_is_right_has_nothing_to_learn(free_phase):
    """Feedback that is there in one phase alone would differ where the output does not."""
    network = small(12, 11, 10)
    x, y = make_batch(network)
    with torch.no_grad():
        # So far out that the sigmoids are the label, whatever the units below.
        network[4][0].bias.copy_(200.0 * F.one_hot(y[0], 5) - 100)
    rule = make("chl", network, free_phase=free_phase, gain=1.0, settling_steps=3000, settling_tolerance=1e-12)
    for g in rule.forward_gradients(x, y[:1].expand(len(x)))[1]:
        assert g.abs().max() < 1e-9


def test_the_angle_to_backprop_that_is_logged_is_that_of_the_sigmoids_cross_entropy():
    network = small(12, 11, 10)
    rule = make("chl", network, gain=0.01, settling_steps=5000, settling_tolerance=1e-13)
    for found in update_alignment(rule, *make_batch(network)).values():
        assert found.angle < 0.3 and found.distance < 0.03


def test_task_loss_is_the_cross_entropy_of_sigmoids_summed_over_classes():
    rule = make("chl", small(12))
    output, y = torch.randn(7, 5, dtype=torch.float64), torch.randint(5, (7,))
    p, label = output.sigmoid(), F.one_hot(y, 5).double()
    losses = -(label * p.log() + (1 - label) * (1 - p).log()).sum(1)
    torch.testing.assert_close(rule.task_loss(output, y), losses.mean())
    torch.testing.assert_close(rule.task_loss(output, y, reduction="sum"), losses.sum())


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("free_phase", ["settle", "feedforward"])
def test_evaluation_gives_the_logits_of_the_phase_that_is_trained(name, free_phase):
    network = small(12, 11)
    rule = make(name, network, free_phase=free_phase, gain=1.0)
    x, y = make_batch(network)
    logits = rule.forward_gradients(x, y)[0]
    assert torch.equal(rule(x), logits)
    # With feedback they are not those of a pass upwards.
    assert relative(logits, network(x)) > 1e-3 if free_phase == "settle" else torch.equal(logits, network(x))
    torch.testing.assert_close(rule.phases(x, y)[0].h[-1], logits.sigmoid(), rtol=0, atol=1e-3)


# --- feedback weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_symmetric_feedback_weights_follow_the_forward_ones(name):
    network = small(12, 11, 10)
    rule = make(name, network)
    first = rule.feedback_weight(2).clone()
    rule.training_batch(*make_batch(network))
    for k in (1, 2, 3):
        assert torch.equal(rule.feedback_weight(k), weights(network)[k + 1][0].T)
    assert not torch.equal(rule.feedback_weight(2), first)
    assert not [key for key in rule.state_dict() if not key.startswith("network.")]


def test_random_feedback_weights_are_independent_saved_and_never_change():
    network = MLP(MLPOptions(widths=[12, 300, 200]), (1, 4, 4), 5)
    rule = make("generec", network, feedback_weights="random")
    before = state(rule)
    for _ in range(2):
        rule.training_batch(*make_batch(network))
    saved = [key for key in before if not key.startswith("network.")]
    assert len(saved) == 3 and same({key: before[key] for key in saved}, rule.state_dict())
    assert all(key.startswith("network.") for key in changed(before, rule.state_dict()))
    # From layer 3 (200 units) to layer 2 (300 units): like the 200 x 300 matrix that goes up.
    U, W = rule.feedback_weight(2), network[3][0].weight
    assert U.shape == (300, 200) and U.abs().max() <= 300**-0.5
    assert U.std().item() == pytest.approx(W.std().item(), rel=0.02)
    assert sorted(feedback_alignment(rule)) == [2, 3, 4]
    assert 85 < feedback_alignment(rule)[3].angle < 95


# --- what is logged, and what is refused ------------------------------------------------------------------------------


def run(here, *words):
    common = "--data digits --model mlp --widths 12 --max-epochs 1 --limit-train-batches 2 --limit-val-batches 1"
    return main([*common.split(), "--run-dir", "run", "--log-every", "1", "--checkpoint-every", "0", *words])


def test_residuals_of_both_phases_are_logged(here):
    assert run(here, "--algo", "chl", "--settling-steps", "5") == 0
    with (here / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    assert len(rows) == 2
    for row in rows:
        assert float(row["train/settling_free"]) > 0 and float(row["train/settling_clamped"]) > 0


def layers(*given):
    return Layers([nn.Sequential(*layer) for layer in given], (1, 4, 4))


FIRST = (nn.Flatten(), nn.Linear(16, 9), nn.Sigmoid())


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "given, message",
    [
        ([FIRST, (nn.Linear(9, 5), nn.Sigmoid())], "found Linear, Sigmoid in layer 2: use --model mlp"),
        ([(nn.Flatten(), nn.Linear(16, 9)), (nn.Linear(9, 5),)], "found Linear in layer 1"),
        ([(nn.Flatten(), nn.Linear(16, 9), nn.BatchNorm1d(9)), (nn.Linear(9, 5),)], "BatchNorm1d in layer 1"),
        ([(nn.Flatten(), nn.Linear(16, 9), nn.Dropout()), (nn.Linear(9, 5),)], "Dropout in layer 1"),
        ([(nn.Conv2d(1, 2, 3), nn.ELU()), (nn.Flatten(), nn.Linear(8, 5))], "found Conv2d, ELU in layer 1"),
        ([FIRST, (weight_norm(nn.Linear(9, 5)),)], "The weight of layer 2 is computed from others"),
        (
            [FIRST, (prune.random_unstructured(nn.Linear(9, 5), "bias", 2),)],
            "The bias of layer 2 is computed from others",
        ),
        ([(nn.Linear(4, 4), nn.ELU()), (nn.Flatten(), nn.Linear(16, 5))], "found one in layer 1 for 4 of 16 values"),
    ],
)
def test_other_networks_are_refused(name, given, message):
    with pytest.raises(UserError, match=message):
        make(name, layers(*given))


@pytest.mark.parametrize(
    "option, value",
    [
        ("gain", 0.0),
        ("relaxation", 0.0),
        ("relaxation", 1.5),
        ("settling_steps", 0),
        ("settling_tolerance", -1.0),
    ],
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')}"):
        make("chl", small(12), **{option: value})
