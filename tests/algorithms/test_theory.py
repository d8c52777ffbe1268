"""What the papers prove, in numbers, on small networks; and the schedules that their experiments follow."""

import pytest
import torch
from torch import nn

from dtp.algorithms import BP, DTP
from dtp.algorithms.local_targets import LocalTargets
from dtp.algorithms.options import DTPOptions
from dtp.algorithms.target_propagation import TargetPropagation
from dtp.cli.train import main
from dtp.diagnostics.alignment import update_alignment
from dtp.feedback import FeedbackNetwork
from dtp.models import LeNet
from dtp.models.options import LeNetOptions
from tests.algorithms.helpers import angle, make, relative, small_network
from tests.algorithms.networks import tanh_network
from tests.conftest import make_batch

# --- Ernoult et al., P1: minimising L-DRL transposes the Jacobian -----------------------------------------------------


def test_the_minimum_of_the_ldrl_loss_is_the_transposed_jacobian():
    """Of a network with pooling, switches fixed, at small noise; not only for the weights but as a map."""
    network = LeNet(LeNetOptions(channels=[3, 4], hidden=8), (2, 12, 12), 5)
    rule = make("dtp", network, routing="fixed", noise=[0.05], feedback_iterations=[300])
    x, _ = make_batch(network, 24)
    distances = [distance_of_jacobians(rule, x)]
    for rate in (1.0, 0.1):
        for n, optimizer in rule.feedback_optimizers.items():
            optimizer.param_groups[0]["lr"] = rate * rule.feedback_lr[n]
        rule.feedback_phase(rule.activations(x))
    distances.append(distance_of_jacobians(rule, x))
    for n in (2, 3, 4):
        assert distances[0][n] > 0.9
        # What is left is the nonlinearity's: f'(f(a)) is not f'(a).
        assert distances[1][n] < 0.25


def distance_of_jacobians(rule, x):
    """|J_G - J_F^T| / |J_F| by layer, estimated with a random vector for each sample."""
    a, found = rule.activations(x), {}
    for n in rule.feedback.numbers:
        v = torch.randn_like(a.s[n])
        s = a.s[n - 1].clone().requires_grad_()
        (transposed,) = torch.autograd.grad(rule.network[n](s), s, v)
        context = a.contexts[n]
        with torch.no_grad():
            _, back = torch.func.jvp(lambda y, n=n, c=context: rule.feedback[n](y, c), (a.s[n],), (v,))
        found[n] = relative(back, transposed)
    return found


def test_updates_after_ldrl_training_are_backprops_with_fixed_switches_and_less_so_with_noisy_ones():
    angles = {}
    for routing in ("fixed", "noisy"):
        torch.manual_seed(0)
        network = LeNet(LeNetOptions(channels=[6, 8], hidden=12), (2, 12, 12), 5)
        rule = make("dtp", network, routing=routing, beta=0.01, noise=[0.1], feedback_iterations=[400])
        x, y = make_batch(network, 32)
        rule.feedback_phase(rule.activations(x))
        angles[routing] = {n: found.angle for n, found in update_alignment(rule, x, y).items()}
    assert all(angles["fixed"][n] < 15 for n in (1, 2, 3)) and angles["fixed"][4] < 0.1
    # Only layer 2 has both pooling and feedback, which layer 1 learns from.
    assert angles["noisy"][1] > 2 * angles["fixed"][1]


# --- Ernoult et al., P2: with transposed Jacobians it is backprop in the limit of small beta --------------------------


class Curved(nn.Module):
    """A feedback layer whose Jacobian is the forward layer's transposed at the present activation, not elsewhere."""

    def __init__(self, layer):
        super().__init__()
        self.layer = (layer,)

    def look(self, s_in, s_out):
        self.s_in, self.s_out = s_in, s_out

    def forward(self, y, context=None):
        bent = y + 2 * (y - self.s_out) ** 2
        return torch.func.vjp(self.layer[0], self.s_in)[1](bent)[0]


class CurvedDTP(DTP):
    def make_feedback(self):
        return FeedbackNetwork({n: Curved(self.network[n]) for n in range(2, self.network.depth + 1)})


def test_targets_tend_to_the_gradients_of_backprop_as_beta_does_to_zero():
    """t_n - s_n = -beta d loss / d s_n + O(beta^2): the relative error falls with beta itself."""
    network = tanh_network(9, 8, 7, 6, 4)
    x, y = make_batch(network)
    errors = {}
    for beta in (1e-2, 1e-3, 1e-4):
        rule = CurvedDTP(network, DTPOptions(beta=beta, engine="literal"))
        a = rule.activations(x)
        for n in rule.feedback.numbers:
            rule.feedback[n].look(a.s[n - 1], a.s[n])
        targets = rule.targets(a, y)
        for n in range(1, 5):

            def upwards(s, n=n):
                for k in range(n + 1, 5):
                    s = network[k](s)
                return s

            gradient = rule.loss_gradient(a.s[n], y, upwards)
            errors.setdefault(n, []).append(relative((a.s[n] - targets[n]) / beta, gradient))
    for n in (1, 2, 3):
        large, medium, small = errors[n]
        assert 1e-5 < small < 0.05
        assert large / medium == pytest.approx(10, rel=0.2) and medium / small == pytest.approx(10, rel=0.05)
    assert max(errors[4]) < 1e-9


def test_transposed_weights_of_a_piecewise_linear_network_give_backprop_itself_at_small_beta():
    """A leaky ReLU has f'(f(a)) = f'(a), so the Jacobians are transposes exactly, overlapping pooling included."""
    network = LeNet(LeNetOptions(channels=[3, 4], hidden=8, activation="leaky-relu"), (2, 12, 12), 5).double()
    x, y = make_batch(network)
    rule = make("dtp", network, feedback_init="symmetric", beta=1e-7)
    _, ours = rule.forward_gradients(x, y)
    _, backprop = BP(network).forward_gradients(x, y)
    for gradient, expected in zip(ours, backprop, strict=True):
        torch.testing.assert_close(gradient / 1e-7, expected, rtol=1e-5, atol=1e-8)
    # A step that crosses kinks does not.
    _, large = make("dtp", network, feedback_init="symmetric", beta=30.0).forward_gradients(x, y)
    assert angle(large[0], backprop[0]) > 1


# --- schedules --------------------------------------------------------------------------------------------------------


def noise_scales(rule, epochs, monkeypatch):
    found = []
    for epoch in range(epochs):
        monkeypatch.setattr(type(rule), "current_epoch", epoch)
        found.append({n: rule.noise_scale(n) for n in rule.trained_feedback})
    return found


def test_noise_decays_as_in_the_authors_code(mlp, monkeypatch):
    """sigma_0 / (1 + e / e_0) in epochs e = 1, 2, ... of the feedback weights."""
    rule = make("vanilla-dtp", mlp, noise=[0.5, 0.4], noise_decay=50.0, schedule="sequential")
    scales = noise_scales(rule, 100, monkeypatch)
    assert scales[0] == {2: 0.5 / (1 + 1 / 50), 3: 0.4 / (1 + 1 / 50)}
    assert scales[49] == {2: 0.25, 3: 0.2}
    assert scales[99] == {2: pytest.approx(0.5 / 3), 3: pytest.approx(0.4 / 3)}


def test_an_epoch_of_the_noise_is_a_pair_of_ours_where_phases_alternate(mlp, monkeypatch):
    rule = make("vanilla-dtp", mlp, noise=[0.5], noise_decay=1.0, schedule="alternating")
    scales = [found[2] for found in noise_scales(rule, 6, monkeypatch)]
    assert scales == pytest.approx([0.25, 0.25, 0.5 / 3, 0.5 / 3, 0.125, 0.125])


def test_noise_does_not_decay_unless_asked_to_and_what_is_drawn_has_its_scale(mlp, monkeypatch):
    rule = make("dtp", mlp, noise=[0.3])
    assert {scale for found in noise_scales(rule, 50, monkeypatch) for scale in found.values()} == {0.3}
    rule = make("dtp", mlp, noise=[0.3], noise_decay=2.0)
    monkeypatch.setattr(type(rule), "current_epoch", 3)
    drawn = rule.draw_noise(2, torch.empty(5000, 12))
    assert drawn.std().item() == pytest.approx(0.1, rel=0.01)


def turns(rule, epochs, monkeypatch):
    """F for an epoch that trains feedback weights alone, W for one that trains forward weights alone, B for both."""
    words = {(True, False): "F", (False, True): "W", (True, True): "B"}
    text = ""
    for epoch in range(epochs):
        monkeypatch.setattr(type(rule), "current_epoch", epoch)
        text += words[rule.turns()]
    return text


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, "BBBBBBBB"),
        ({"schedule": "parallel"}, "BBBBBBBB"),
        ({"schedule": "alternating"}, "FWFWFWFW"),
        ({"extra_feedback_epochs": 1}, "BFBFBFBF"),
        ({"extra_feedback_epochs": 2}, "BFFBFFBF"),
        ({"feedback_warmup_epochs": 3}, "FFFBBBBB"),
        ({"feedback_warmup_epochs": 3, "extra_feedback_epochs": 1}, "FFFBFBFB"),
        ({"feedback_warmup_epochs": 1, "schedule": "alternating"}, "FFWFWFWF"),
    ],
)
def test_turns_of_the_epochs(mlp, monkeypatch, changes, expected):
    assert turns(make("dtp", mlp, **changes), 8, monkeypatch) == expected


def test_warm_up_by_batches_comes_before_the_turns_of_the_epochs(mlp, monkeypatch):
    rule = make("dtp", mlp, feedback_warmup=2)
    found = []
    for _ in range(4):
        found.append(rule.turns())
        rule.training_batch(*make_batch(mlp))
    assert found == [(True, False)] * 2 + [(True, True)] * 2


def test_a_run_follows_the_schedule_of_meulemans(here, monkeypatch):
    """Feedback alone, then both in each batch, with an epoch of feedback alone after each."""
    steps = []
    feedback_phase, forward_step = TargetPropagation.feedback_phase, LocalTargets.forward_step

    def watch(kind, original):
        def call(rule, *rest):
            steps.append((rule.current_epoch, kind))
            return original(rule, *rest)

        return call

    monkeypatch.setattr(TargetPropagation, "feedback_phase", watch("feedback", feedback_phase))
    monkeypatch.setattr(LocalTargets, "forward_step", watch("forward", forward_step))
    command = "--algo drl --model mlp --widths 12 --data digits --limit-train-batches 2 --max-epochs 6 --run-dir run"
    schedule = "--feedback-warmup-epochs 2 --extra-feedback-epochs 1 --diagnostics-every 0"
    assert main([*command.split(), *schedule.split()]) == 0
    both, alone = ["feedback", "forward"] * 2, ["feedback"] * 2
    for epoch, expected in enumerate([alone, alone, both, alone, both, alone]):
        assert [kind for when, kind in steps if when == epoch] == expected


@pytest.mark.parametrize("name", ["dtp", "drl", "ddtp-linear"])
def test_feedback_noise_depends_on_the_layer_and_not_on_the_order_of_the_layers(name):
    network = small_network(name)
    x, _ = make_batch(network)
    found = []
    for order in ((2, 3, 4), (4, 2, 3)):
        rule = make(name, network)
        a = rule.activations(x)
        found.append({n: rule.feedback_noise(n, a) for n in order})
    for n in (2, 3, 4):
        assert all(torch.equal(p, q) for p, q in zip(found[0][n], found[1][n], strict=True))
