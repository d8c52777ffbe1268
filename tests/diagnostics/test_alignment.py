"""Alignment of tensors, of feedback with forward weights, and of updates with backprop's."""

import math

import pytest
import torch
from torch import nn

from dtp.algorithms import ALGORITHMS, BP, DTP, FA
from dtp.algorithms.options import DTPOptions
from dtp.diagnostics.alignment import alignment, feedback_alignment, update_alignment
from dtp.models import MLP, LeNet, Network
from dtp.models.cutting import as_network
from dtp.models.options import LeNetOptions, MLPOptions, ModelOptions
from tests.algorithms.rules import facts
from tests.conftest import make_batch


class Normalised(Network):
    """Batch normalisation, and dropout that draws from torch's global generator."""

    Options = ModelOptions
    dropout = 0.0

    def make_layers(self):
        dropout = [nn.Dropout(self.dropout)] if self.dropout else []
        yield nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), *dropout, self.activation())
        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, 8), nn.BatchNorm1d(8), self.activation())
        yield nn.Sequential(nn.Linear(self.features, self.num_classes))


class Dropped(Normalised):
    dropout = 0.5


class NoisyTargets(DTP):
    """A rule that draws from its noise streams when it is asked for gradients."""

    def lower_target(self, n, targets, activations):
        target = super().lower_target(n, targets, activations)
        return target + self.noise_streams.normal(n, target.shape, 0.1, target)


def elu_mlp() -> Network:
    return MLP(MLPOptions(widths=[64, 64, 64]), (1, 6, 6), 10).double()


def snapshot(rule) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in [*rule.parameters(), *rule.buffers(), torch.get_rng_state()]]


def equal(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor, angle, distance", [(1.0, 0.0, 0.0), (-1.0, 180.0, 2.0), (3.0, 0.0, 2.0)])
def test_multiples_of_a_tensor_are_parallel_or_opposite_and_as_distant_as_their_lengths_differ(factor, angle, distance):
    a = torch.randn(4, 5, 6, dtype=torch.float64)
    found = alignment(factor * a, a)
    assert found.angle == pytest.approx(angle, abs=1e-12)
    assert found.distance == pytest.approx(distance, abs=1e-12)


def test_orthogonal_tensors_are_at_90_degrees():
    found = alignment(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
    assert found.angle == pytest.approx(90, abs=1e-12)
    assert found.distance == pytest.approx(math.sqrt(5))


@pytest.mark.parametrize("radians", [1e-10, 1e-6, 1e-3, 0.04, 1.0, math.pi - 1e-6])
def test_angles_near_0_and_180_degrees_are_accurate(radians):
    a = torch.tensor([math.cos(radians), math.sin(radians)], dtype=torch.float64)
    found = alignment(5 * a, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert math.radians(found.angle) == pytest.approx(radians, rel=1e-8)


def test_float32_tensors_are_measured_in_float64():
    a = torch.full((3,), 1e-30)
    found = alignment(2 * a, a)
    assert found.angle == pytest.approx(0, abs=1e-6)
    assert found.distance == pytest.approx(1)


@pytest.mark.parametrize(
    "a, b, angle, distance", [(0.0, 0.0, 0.0, 0.0), (0.0, 1.0, 90.0, 1.0), (1.0, 0.0, 90.0, math.inf)]
)
def test_zero_tensors_equal_each_other_and_are_unrelated_to_all_others(a, b, angle, distance):
    found = alignment(torch.full((3,), a), torch.full((3,), b))
    assert (found.angle, found.distance) == (angle, distance)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "lenet"], indirect=True)
def test_feedback_copied_from_the_forward_weights_is_at_0_degrees(network):
    rule = DTP(network, DTPOptions(feedback_init="symmetric"))
    found = feedback_alignment(rule)
    assert [*found] == rule.feedback.numbers
    assert all((each.angle, each.distance) == (0, 0) for each in found.values())


def test_random_feedback_is_at_about_90_degrees():
    network = LeNet(LeNetOptions(channels=[16, 32], hidden=64), (3, 16, 16), 10)
    assert all(found.angle == pytest.approx(90, abs=8) for found in feedback_alignment(DTP(network)).values())


# --- updates ----------------------------------------------------------------------------------------------------------


def spectral_mlp() -> Network:
    """Weights that change with each pass in training."""
    normalised = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(7, 6))
    return as_network(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), normalised, nn.Tanh(), nn.Linear(6, 4)))


@pytest.mark.parametrize(
    "network",
    [elu_mlp, lambda: Dropped(ModelOptions(), (2, 6, 6), 5), spectral_mlp],
    ids=["mlp", "dropout", "spectral"],
)
def test_updates_of_backprop_are_those_of_backprop(network):
    network = network()
    found = update_alignment(BP(network), *make_batch(network))
    assert sorted(found) == list(range(1, network.depth + 1))
    for layer in found.values():
        assert layer.angle == pytest.approx(0, abs=1e-10)
        assert layer.distance == pytest.approx(0, abs=1e-12)


def test_sparse_gradients_of_embeddings_are_compared_as_dense_ones_are():
    def found(sparse):
        torch.manual_seed(0)
        layers = nn.Embedding(10, 3, sparse=sparse), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)
        rule = FA(as_network(nn.Sequential(*layers), (4,)))
        return update_alignment(rule, torch.randint(10, (8, 4)), torch.randint(3, (8,)))

    dense = found(False)
    assert dense[1].angle > 1
    assert found(True) == dense


def test_symmetric_feedback_and_small_beta_give_nearly_the_updates_of_backprop():
    network = elu_mlp()
    rule = DTP(network, DTPOptions(beta=0.01, feedback_init="symmetric")).double()
    found = update_alignment(rule, *make_batch(network, 32))
    # Not exactly: the feedback's ELU has its slope at the activation, the forward ELU at what the activation came from.
    assert max(layer.angle for layer in found.values()) < 4
    assert max(layer.distance for layer in found.values()) < 0.1


def test_symmetric_feedback_gives_backprop_in_the_limit_where_activations_keep_their_slopes():
    network = MLP(MLPOptions(widths=[64, 64, 64], activation="leaky-relu"), (1, 6, 6), 10).double()
    rule = DTP(network, DTPOptions(beta=1e-6, feedback_init="symmetric")).double()
    found = update_alignment(rule, *make_batch(network, 32))
    assert max(layer.angle for layer in found.values()) < 1e-4
    assert max(layer.distance for layer in found.values()) < 1e-5


def test_random_feedback_gives_unrelated_updates_below_the_output_layer():
    network = elu_mlp()
    rule = DTP(network, DTPOptions(beta=0.01)).double()
    found = update_alignment(rule, *make_batch(network, 32))
    for n in range(1, network.depth - 1):
        assert found[n].angle == pytest.approx(90, abs=15)
    assert found[network.depth].angle == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [name for name in ALGORITHMS.names() if facts(name).any_network])
def test_measuring_any_rule_changes_no_weight_gradient_buffer_or_random_state(name, training):
    network = Normalised(ModelOptions(), (2, 6, 6), 5)
    entry = ALGORITHMS.resolve(name)
    rule = entry.load()(network, entry.load_options()())
    rule.train(training)
    batch = make_batch(network)
    gradients = [torch.randn_like(parameter) for parameter in rule.parameters()]
    for parameter, gradient in zip(rule.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    before = snapshot(rule)

    with torch.no_grad():
        found = update_alignment(rule, *batch)

    assert sorted(found) == [1, 2, 3]
    assert all(math.isfinite(layer.angle) and math.isfinite(layer.distance) for layer in found.values())
    assert equal(before, snapshot(rule))
    assert equal(gradients, [parameter.grad for parameter in rule.parameters()])


def test_measuring_a_network_that_draws_leaves_torchs_random_state():
    network = Dropped(ModelOptions(), (2, 6, 6), 5)
    rule, batch = BP(network), make_batch(network)
    before = snapshot(rule)
    update_alignment(rule, *batch)
    assert equal(before, snapshot(rule))


def test_measuring_a_rule_that_draws_noise_leaves_the_rest_of_its_noise_as_it_was(mlp):
    def later_noise(measured: bool) -> list[torch.Tensor]:
        rule, like = NoisyTargets(mlp, seed=3), torch.empty(0)
        # Layer 2 is in the midst of its stream, the others have not begun.
        rule.noise_streams.normal(2, (5,), 1.0, like)
        if measured:
            update_alignment(rule, *make_batch(mlp))
        return [rule.noise_streams.normal(n, (5,), 1.0, like) for n in rule.feedback.numbers]

    assert equal(later_noise(measured=False), later_noise(measured=True))


def test_a_rule_that_fails_leaves_its_buffers_and_noise(monkeypatch):
    rule = DTP(Normalised(ModelOptions(), (2, 6, 6), 5))
    before, streams = snapshot(rule), rule.noise_streams

    def fail(*args):
        raise ValueError("no target")

    monkeypatch.setattr(rule, "lower_target", fail)
    x, y = torch.zeros(4, 2, 6, 6), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="no target"):
        update_alignment(rule, x, y)
    assert equal(before, snapshot(rule))
    assert rule.noise_streams is streams
