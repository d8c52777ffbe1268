"""What rules with local targets share."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dtp.algorithms.local_targets import LocalTargets, evaluate_purely
from dtp.errors import UserError
from dtp.feedback import forward_with_context
from dtp.models.modules import Residual
from tests.algorithms.networks import tanh_network


class Doubled(LocalTargets):
    """A rule whose activations are twice what layers put out, and whose targets begin at the last hidden layer."""

    @property
    def top(self):
        return self.network.depth - 1

    def activation(self, n, output, s_in):
        return 2 * output

    def first_target(self, activations, y):
        return activations.s[self.top]

    def lower_target(self, n, targets, activations):
        return activations.s[n - 1]


def test_the_output_for_other_inputs_goes_through_the_activations_of_the_rule():
    network, x = tanh_network(4, 3, 2), torch.randn(5, 1, 1, 4, dtype=torch.float64)
    rule = Doubled(network)
    activations, v = rule.activations(x), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(rule.output_from(2, v, activations), 2 * network[2](v))
    torch.testing.assert_close(rule.output_from(1, x, activations), 2 * network[2](2 * network[1](x)))


@pytest.mark.parametrize("top", [0, 1, 4])
def test_targets_begin_at_the_last_layer_or_the_one_below(top):
    class Elsewhere(Doubled):
        top = None

    Elsewhere.top = top
    rule, x = Elsewhere(tanh_network(4, 3, 3, 2)), torch.randn(3, 1, 1, 4, dtype=torch.float64)
    with pytest.raises(UserError, match=f"top: expected 3, the last layer, or 2, .* found {top}; fix Elsewhere"):
        rule.training_batch(x, torch.tensor([0, 1, 1]))


def test_the_size_of_updates_is_told_with_all_that_scales_the_local_losses():
    network, y = tanh_network(4, 3, 2), torch.tensor([0, 1, 1])
    x = torch.randn(3, 1, 1, 4, dtype=torch.float64)

    class Plain(LocalTargets):
        def lower_target(self, n, targets, activations):
            return activations.s[n - 1]

    rule = Plain(network, Plain.Options(beta=0.3, local_loss_scale=2.0, output_loss="mse"))
    expected = torch.autograd.grad(F.cross_entropy(network(x), y), list(network[2].parameters()))
    found = rule.forward_gradients(x, y)[1][-2:]
    torch.testing.assert_close([gradient / rule.gradient_scale(2) for gradient in found], list(expected))


def test_an_output_layer_above_the_first_target_learns_the_task_whatever_its_loss_is_said_to_be():
    network, y = tanh_network(4, 3, 2), torch.tensor([0, 1, 1])
    rule, x = Doubled(network, Doubled.Options(output_loss="mse")), torch.randn(3, 1, 1, 4, dtype=torch.float64)
    _, losses = rule.losses(x, y)
    torch.testing.assert_close(losses[2], F.cross_entropy(network[2](2 * network[1](x)), y))


def test_what_is_evaluated_again_draws_what_it_drew_within_residual_units_too():
    unit = Residual(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), nn.Sequential(nn.Dropout(0.3)))
    layer, x = nn.Sequential(unit, nn.BatchNorm1d(6), nn.Dropout(0.4)), torch.randn(5, 6)
    y, context = forward_with_context(layer, x)
    running = layer[1].running_mean.clone()
    torch.testing.assert_close(evaluate_purely(layer, x, context), y)
    assert torch.equal(layer[1].running_mean, running)
