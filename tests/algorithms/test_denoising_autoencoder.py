"""The denoising auto-encoder by DTP: against its equations, and what it leaves as it is."""

import pytest
import torch

from dtp.algorithms.optimizers import LeeRMSprop
from dtp.errors import UserError
from dtp.models import MLP, TiedAutoencoder
from dtp.models.options import MLPOptions, TiedAutoencoderOptions
from dtp.tasks import Autoencoder
from tests.algorithms.helpers import make
from tests.conftest import make_batch

SHAPE, PIXELS = (2, 3, 4), 24


def autoencoder(mean=(0.0,), std=(1.0,), **options):
    task = Autoencoder(SHAPE, mean, std)
    return TiedAutoencoder.for_task(TiedAutoencoderOptions(hidden=7, **options), SHAPE, task).double()


def test_a_batch_is_the_published_update():
    """Equations 3.20 to 3.23 written out, with derivatives by hand: W learns from both losses."""
    network = autoencoder()
    rule = make("dtp-dae", network, pixel_noise=0.2, hidden_noise=0.4)
    x = torch.rand(5, *SHAPE, dtype=torch.float64)
    y = rule.task.goal(x, x)
    (W, b, c), flat = [p.detach().clone() for p in network.parameters()], x.flatten(1)
    assert W.shape == (7, PIXELS) and b.shape == (7,) and c.shape == (PIXELS,)
    same = make("dtp-dae", autoencoder(), pixel_noise=0.2, hidden_noise=0.4).noise_streams
    noise = same.normal(1, x.shape, 0.2, x).flatten(1), same.normal(2, (5, 7), 0.4, x)

    h = torch.sigmoid(flat @ W.t() + b)
    noisy_h, noisy_x = h + noise[1], flat + noise[0]
    z = torch.sigmoid(noisy_h @ W + c)
    h_hat = 2 * h - torch.sigmoid(z @ W.t() + b)
    f = torch.sigmoid(noisy_x @ W.t() + b)
    delta_g = 2 * (z - flat) * z * (1 - z)
    delta_f = 2 * (f - h_hat) * f * (1 - f)
    expected = [
        (noisy_h.t() @ delta_g + delta_f.t() @ noisy_x) / 5,
        delta_f.mean(0),
        delta_g.mean(0),
    ]
    logits, found = rule.forward_gradients(x, y)
    torch.testing.assert_close(logits, h @ W + c)
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)
    # And the step is Lee's RMSprop on them.
    assert isinstance(rule.forward_optimizer, LeeRMSprop)
    rule.training_batch(x, y)
    for p, old, g in zip(network.parameters(), (W, b, c), expected, strict=True):
        step = 1e-3 * g / (0.05 * g**2 - (0.05 * g) ** 2 + 1e-3).sqrt()
        torch.testing.assert_close(p.detach(), old - step)


def test_the_reconstruction_goes_up_again_as_the_input_that_it_stands_for():
    """With normalised inputs the encoder sees the normalised reconstruction: the update is the one without them."""
    torch.manual_seed(1)
    plain = autoencoder()
    x = torch.rand(5, *SHAPE, dtype=torch.float64)
    mean, std = (0.2, 0.5), (0.3, 2.0)
    normalised = autoencoder(mean, std)
    shift = torch.tensor(mean, dtype=torch.float64).repeat_interleave(12)
    scale = torch.tensor(std, dtype=torch.float64).repeat_interleave(12)
    # Of both networks' encoders the same function of pixels; their decoders then differ, so what is compared is f(z).
    with torch.no_grad():
        W = normalised[1][1].weight
        plain[1][1].weight.copy_(W / scale)
        plain[1][1].bias.copy_(normalised[1][1].bias - W @ (shift / scale))
    quiet = {"pixel_noise": 0.0, "hidden_noise": 0.0}
    rules = make("dtp-dae", plain, **quiet), make("dtp-dae", normalised, **quiet)
    inputs = x, rules[1].task.as_input(x.flatten(1))
    torch.testing.assert_close(rules[1].task.goal(inputs[1], x), x.flatten(1))
    outputs = torch.randn(5, PIXELS, dtype=torch.float64)
    targets = []
    for rule, given in zip(rules, inputs, strict=True):
        a = rule.activations(given)
        a.outputs[2] = outputs
        targets.append(rule.lower_target(2, {}, a))
    torch.testing.assert_close(*targets)


def test_the_noise_of_a_batch_is_fresh_and_that_of_a_measurement_is_not_lost():
    network = autoencoder()
    rule = make("dtp-dae", network)
    x, y = make_batch(network)
    first = rule.forward_gradients(x, y)[1]
    again = rule.forward_gradients(x, y)[1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    rule.activations(x)
    later = rule.forward_gradients(x, y)[1]
    assert not any(torch.equal(a, b) for a, b in zip(first, later, strict=True))


def test_it_learns_to_take_noise_away():
    """Reconstructions of noisy images come nearer to the images than the noisy images are."""
    generator = torch.Generator().manual_seed(0)
    patterns = (torch.rand(4, PIXELS, generator=generator) > 0.5).double()
    network = autoencoder()
    rule = make("dtp-dae", network, lr=5e-3)
    for _ in range(400):
        x = patterns[torch.randint(4, (32,), generator=generator)].view(-1, *SHAPE)
        rule.training_batch(x, x.flatten(1))
    x = patterns.repeat(50, 1)
    noisy = x + 0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    z = rule(noisy.view(-1, *SHAPE)).sigmoid()
    assert (z - x).square().mean() < 0.5 * (noisy - x).square().mean()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"beta": 0.5}, "--beta: expected 1, .* found 0.5"),
        ({"pixel_noise": -0.1}, "--pixel-noise: expected 0 or more, found -0.1"),
        ({"hidden_noise": float("inf")}, "--hidden-noise: expected finite values, found inf"),
    ],
)
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        make("dtp-dae", autoencoder(), **options)


def test_other_networks_are_refused():
    network = MLP.for_task(MLPOptions(widths=[7]), SHAPE, Autoencoder(SHAPE))
    with pytest.raises(UserError, match="dtp-dae: expected .* one weight matrix, found MLP; use --model tied-auto"):
        make("dtp-dae", network)


def test_a_network_of_another_task_is_refused():
    """Its first target was a one-hot label, and then an assertion failed."""
    network = TiedAutoencoder(TiedAutoencoderOptions(hidden=7), SHAPE, PIXELS)
    with pytest.raises(UserError, match="dtp-dae: expected a network of --task autoencoder, found one of classific"):
        make("dtp-dae", network)
