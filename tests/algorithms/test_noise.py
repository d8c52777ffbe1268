"""Noise of nothing: rules that reconstruct do so without it, for the others it is what they learn from."""

import pytest
import torch

from dtp.algorithms import ALGORITHMS, TargetPropagation, VanillaDTP
from dtp.errors import UserError
from tests.algorithms.helpers import make, make_trained
from tests.conftest import make_batch

TRAINED = [entry.name for entry in ALGORITHMS.entries.values() if issubclass(entry.load(), TargetPropagation)]
RECONSTRUCT = [name for name in TRAINED if issubclass(ALGORITHMS.resolve(name).load(), VanillaDTP)]


@pytest.mark.parametrize("name", RECONSTRUCT)
def test_without_noise_the_feedback_reconstructs_the_activations_themselves(name, mlp):
    rule = make_trained(name, mlp, noise=[0.0])
    x, _ = make_batch(mlp)
    activations = rule.activations(x)
    n = rule.trained_feedback[0]
    (noise,) = rule.feedback_noise(n, activations)
    assert noise.shape == activations.s[n - 1].shape and not noise.any()
    found = rule.feedback_loss(n, activations, (noise,))
    back = rule.feedback[n](activations.s[n], activations.contexts[n])
    expected = (back - activations.s[n - 1]).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(found, expected)
    before = [p.clone() for p in rule.feedback[n].parameters()]
    rule.feedback_phase(activations)
    assert any(not torch.equal(a, b) for a, b in zip(before, rule.feedback[n].parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in TRAINED if ALGORITHMS.resolve(name).load().needs_noise])
def test_rules_that_learn_from_the_noise_refuse_to_go_without(name, mlp):
    with pytest.raises(UserError, match="--noise: expected values above 0, found 0.0"):
        make(name, mlp, noise=[0.1, 0.1, 0.0])


def test_negative_noise_and_learning_rates_made_for_noise_are_refused(mlp):
    with pytest.raises(UserError, match="--noise: expected values of at least 0, found -0.1"):
        make("vanilla-dtp", mlp, noise=[-0.1])
    with pytest.raises(UserError, match="--feedback-lr: expected learning rates"):
        make("vanilla-dtp", mlp, noise=[0.0], feedback_optimizer="sgd", feedback_lr=[])
