"""Feedback of layers that hear signs or samples of the one below."""

import pytest
import torch
from torch import Size, nn

from dtp.feedback import (
    Context,
    DrawnContext,
    FeedbackSettings,
    ReducedLDRL,
    derive_feedback,
    forward_with_context,
    ldrl_loss,
    reconstruction_loss,
)
from dtp.feedback.noise import seeded_randomness
from dtp.models.modules import InputNoise, Probability, Sample, Sign
from tests.feedback.helpers import relative_difference

CPU = torch.device("cpu")


def pair(*before, function=nn.Tanh, **settings):
    """Two layers, 7 -> 6 -> 5 units, of which the second begins with ``before``, and its feedback; float64."""
    layers = [nn.Sequential(nn.Linear(7, 6), function()), nn.Sequential(*before, nn.Linear(6, 5), function())]
    feedback = derive_feedback(layers, [Size([7]), Size([6])], [2], FeedbackSettings(**settings))[2]
    return layers[1].double(), feedback.double()


def weights(feedback):
    (linear,) = [module for module in feedback.modules() if isinstance(module, nn.Linear)]
    return linear.weight, linear.bias


LEE = {"nonlinearity": "after", "bias": True}


def test_feedback_of_a_layer_that_hears_signs_hears_signs_too():
    """Lee 2018, eq. 3.26."""
    _, feedback = pair(Sign(), **LEE)
    y = torch.randn(4, 5, dtype=torch.float64)
    weight, bias = weights(feedback)
    sign = torch.where(y > 0, 1.0, -1.0).double()
    torch.testing.assert_close(feedback(y, Context([None] * 3)), torch.tanh(sign @ weight.t() + bias))


def test_signs_come_right_before_the_weights_where_the_nonlinearity_does_too():
    _, feedback = pair(Sign(), bias=True)
    y = torch.randn(4, 5, dtype=torch.float64)
    weight, bias = weights(feedback)
    torch.testing.assert_close(feedback(y, Context([None] * 3)), torch.sign(y) @ weight.t() + bias)


def test_signs_stand_behind_the_flatten_that_the_feedback_undoes_last():
    layer = nn.Sequential(Sign(), nn.Flatten(), nn.Linear(12, 5))
    feedback = derive_feedback([layer], [Size([3, 2, 2])], [1], FeedbackSettings())[1]
    y, context = forward_with_context(layer, torch.randn(4, 3, 2, 2))
    back = feedback(y, context)
    assert torch.equal(back, (torch.sign(y) @ weights(feedback)[0].t()).view(4, 3, 2, 2))


def test_where_training_has_no_signs_its_feedback_has_none():
    _, feedback = pair(Sign("test-only"), **LEE)
    y = torch.randn(4, 5, dtype=torch.float64)
    weight, bias = weights(feedback)
    torch.testing.assert_close(feedback(y, Context([None] * 3)), torch.tanh(y @ weight.t() + bias))


def test_probabilities_come_back_through_tanh_and_without_samples():
    """Lee 2018, after eq. 3.30."""
    _, feedback = pair(Sample(), function=Probability, **LEE)
    y = torch.rand(4, 5, dtype=torch.float64)
    weight, bias = weights(feedback)
    torch.testing.assert_close(feedback(y, Context([None] * 3)), torch.tanh(y @ weight.t() + bias))


@pytest.mark.parametrize("operation", [Sample(), InputNoise(0.4)])
def test_a_pass_that_is_compared_with_another_has_its_random_numbers(operation):
    layer = nn.Sequential(operation, nn.Linear(6, 5)).double()
    p = torch.rand(4, 6, dtype=torch.float64)
    y, context = forward_with_context(layer, p)
    state = torch.get_rng_state()
    again, same = forward_with_context(layer, p, given=context, routing="noisy")
    assert torch.equal(y, again) and torch.equal(same[0].numbers, context[0].numbers)
    assert torch.equal(torch.get_rng_state(), state)
    other, _ = forward_with_context(layer, p)
    assert not torch.equal(y, other)


def test_random_numbers_go_with_their_images():
    numbers = torch.rand(4, 3, 2)
    context = Context([DrawnContext(numbers), None])
    repeated = context.repeat(3)[0].numbers
    assert repeated.shape == (12, 3, 2) and torch.equal(repeated[4:8], numbers)
    assert torch.equal(context.select(slice(1, 3))[0].numbers, numbers[1:3])


def test_noisy_samples_have_the_distribution_of_fresh_ones():
    """The reconstruction's h ~ Bernoulli(p + eps): the clean pass's uniform numbers, seen for the first time."""
    layer = nn.Sequential(Sample(), nn.Identity())
    p = torch.rand(1, 5).expand(40_000, -1)
    _, context = forward_with_context(layer, p)
    eps = 0.3 * torch.randn_like(p)
    h, _ = forward_with_context(layer, p + eps, given=context)
    expected = (p + eps).clamp(0, 1).mean(0)
    assert ((h.mean(0) - expected).abs() <= 4.5 * 0.5 / 40_000**0.5).all()
    # And with the noise that they go with: mean of h (p + eps) as for independent draws.
    joint, independent = (h * (p + eps)).mean(0), ((p + eps).clamp(0, 1) * (p + eps)).mean(0)
    assert ((joint - independent).abs() <= 4.5 * 0.7 / 40_000**0.5).all()


@pytest.mark.parametrize("before, function", [(Sign(), nn.Tanh), (Sample(), Probability)])
def test_losses_are_pure_functions_and_train_the_feedback_weights_alone(before, function):
    layer, feedback = pair(before, function=function, **LEE)
    s = torch.rand(6, 6, dtype=torch.float64)
    y, context = forward_with_context(layer, s)
    eps, eta = 0.3 * torch.randn(12, 6, dtype=torch.float64), 0.3 * torch.randn(12, 5, dtype=torch.float64)
    everything = [*feedback.parameters(), *layer.parameters()]
    for loss in (
        lambda: reconstruction_loss(layer, feedback, s, context, eps, noise_samples=2),
        lambda: ldrl_loss(layer, feedback, s, y.detach(), context, eps, eta, noise_samples=2),
    ):
        first, second = loss(), loss()
        assert first.isfinite() and torch.equal(first, second)
        gradients = torch.autograd.grad(first, everything, allow_unused=True)
        assert all(g is not None and g.abs().sum() > 0 for g in gradients[:1])
        assert all(g is None for g in gradients[2:])


@pytest.mark.parametrize("before, function", [(Sign(), nn.Tanh), (Sample(), Probability)])
def test_reduced_form_of_ldrl_is_the_literal_one(before, function):
    layer, feedback = pair(before, function=function)
    s = torch.rand(6, 6, dtype=torch.float64)
    y, context = forward_with_context(layer, s)
    y, samples = y.detach(), 3
    noise = [
        (0.4 * torch.randn(18, 6, dtype=torch.float64), 0.4 * torch.randn(18, 5, dtype=torch.float64)) for _ in "ab"
    ]
    form = ReducedLDRL(layer, feedback, noise_samples=samples)
    clean = form.clean_pass(s, y, context)
    constants = form.constants(clean, noise)
    for i, (eps, eta) in enumerate(noise):
        loss = ldrl_loss(layer, feedback, s, y, context, eps, eta, noise_samples=samples)
        (expected,) = torch.autograd.grad(loss, list(feedback.parameters()))
        with torch.no_grad():
            found = constants.gradient[i] + form.scale(6) * form.quadratic_gradient(constants, i)
        assert expected.abs().sum() > 0 and relative_difference(found, expected) < 1e-12


# --- torch's global generators ----------------------------------------------------------------------------------------


def test_randomness_is_a_function_of_the_numbers_given_and_leaves_nothing_behind():
    state = torch.get_rng_state()
    drawn = []
    for numbers in ((1, "training", 5), (1, "training", 5), (1, "training", 6), (1, "val", 5), (2, "training", 5)):
        with seeded_randomness(CPU, *numbers):
            drawn.append(torch.rand(8))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn[0], drawn[1])
    assert all(not torch.equal(drawn[0], other) for other in drawn[2:])


def test_a_generator_that_cannot_be_put_back_does_not_hide_what_went_wrong(monkeypatch):
    """As that of a GPU cannot after a capture that has failed."""

    class Capturing:
        get_state = staticmethod(lambda: None)
        manual_seed = staticmethod(lambda seed: None)

        @staticmethod
        def set_state(state):
            raise RuntimeError("only if new seed is the same as the original seed")

    monkeypatch.setattr(torch.cuda, "default_generators", (Capturing,))
    with pytest.raises(ValueError, match="why"), seeded_randomness(torch.device("cuda", 0), 1):
        raise ValueError("why")
    # Where nothing went wrong before, that is what is wrong.
    with pytest.raises(RuntimeError, match="same as the original"), seeded_randomness(torch.device("cuda", 0), 1):
        pass


def test_randomness_is_put_back_after_an_error_too():
    state = torch.get_rng_state()
    with pytest.raises(ValueError), seeded_randomness(CPU, 1):
        torch.rand(3)
        raise ValueError
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
def test_randomness_of_a_gpu_is_a_function_of_the_numbers_given_too_and_leaves_nothing_behind():
    device, drawn = torch.device("cuda"), []
    state = torch.cuda.get_rng_state()
    for numbers in ((1, "training", 5), (1, "training", 5), (1, "training", 6)):
        with seeded_randomness(device, *numbers):
            drawn.append((torch.rand(8, device=device), torch.rand(8)))
        assert torch.equal(torch.cuda.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(*drawn[:2], strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(*drawn[1:], strict=True))
