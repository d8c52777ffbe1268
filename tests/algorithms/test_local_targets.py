"""What rules with local targets share."""

import torch
from torch import nn

from dtp.algorithms.local_targets import evaluate_purely
from dtp.feedback import forward_with_context
from dtp.models.modules import Residual


def test_what_is_evaluated_again_draws_what_it_drew_within_residual_units_too():
    unit = Residual(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), nn.Sequential(nn.Dropout(0.3)))
    layer, x = nn.Sequential(unit, nn.BatchNorm1d(6), nn.Dropout(0.4)), torch.randn(5, 6)
    y, context = forward_with_context(layer, x)
    running = layer[1].running_mean.clone()
    torch.testing.assert_close(evaluate_purely(layer, x, context), y)
    assert torch.equal(layer[1].running_mean, running)
