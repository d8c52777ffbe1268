"""Classification: its losses, and which units these are about."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy, cross_entropy, one_hot

from dtp.tasks import Classification


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_of_classification_are_those_of_torch(reduction):
    output, y = torch.randn(7, 4, dtype=torch.float64), torch.randint(4, (7,))
    factor = 7 if reduction == "sum" else 1
    task, label = Classification(4), one_hot(y, 4).double()
    found = {kind: task.loss(kind, output, y, reduction) for kind in task.losses}
    torch.testing.assert_close(found["cross-entropy"], factor * cross_entropy(output, y))
    torch.testing.assert_close(found["squared"], factor * 0.5 * (output - label).square().sum(1).mean())
    expected = binary_cross_entropy(output.sigmoid(), label, reduction="sum") / 7
    torch.testing.assert_close(found["binary-cross-entropy"], factor * expected)


@pytest.mark.parametrize("kind", Classification.losses)
def test_the_gradient_of_every_loss_is_the_difference_of_units_and_label(kind):
    output, y = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.randint(4, (6,))
    task = Classification(4)
    (gradient,) = torch.autograd.grad(task.loss(kind, output, y, "sum"), output)
    torch.testing.assert_close(gradient, task.units(kind, output) - task.wanted(y, output))
    assert task.has_linear_units(kind) == torch.equal(task.units(kind, output), output)
