"""The network of stochastic binary units, by every rule: Lee's equations, averaged evaluation, and its randomness."""

import csv
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dtp.algorithms import BP, VanillaDTP
from dtp.cli.arguments import parse
from dtp.cli.train import main
from dtp.diagnostics.alignment import update_alignment
from dtp.errors import UserError
from dtp.models import Stochastic
from dtp.models.options import StochasticOptions
from dtp.run.folder import newest_checkpoint
from dtp.system.signals import stop_request
from tests.algorithms.helpers import changed, make_trained, same, state
from tests.algorithms.rules import NAMES, facts
from tests.conftest import make_batch
from tests.run.test_resume import assert_identical, stop_after

exact = {"rtol": 1e-10, "atol": 1e-12}
# As for the network with signs; the auxiliary outputs of ao-sdtp would see other samples than the output.
REFUSE = {"gait", "chl", "generec", "hebb", "delta", "competitive", "dtp-dae", "ao-sdtp"}


def network(**options) -> Stochastic:
    return Stochastic(StochasticOptions(**{"widths": [12, 11], "passes": 7, **options}), (1, 4, 4), 5)


def lee(**changes) -> VanillaDTP:
    options = {"beta": 0.58, "local_loss_scale": 2.0, "noise": [0.5], **changes}
    return make_trained("vanilla-dtp", network().double(), **options).double()


def affine(x, layer):
    (linear,) = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    return F.linear(x, linear.weight, linear.bias)


class Pass:
    """One pass in training written out, with the random numbers that torch gives next."""

    def __init__(self, net, x):
        self.x = x.flatten(1) + 0.3 * torch.randn(x.shape).flatten(1).double()
        self.p1 = torch.sigmoid(affine(self.x, net[1]))
        self.u1 = torch.rand(self.p1.shape)
        self.h1 = (self.u1 < self.p1).double()
        self.p2 = torch.sigmoid(affine(self.h1, net[2]))
        self.h2 = (torch.rand(self.p2.shape) < self.p2).double()
        self.logits = affine(self.h2, net[3])


# --- the network ------------------------------------------------------------------------------------------------------


def test_a_pass_in_training_is_the_published_one():
    net = network().double()
    x, _ = make_batch(net)
    torch.manual_seed(5)
    found = net(x)
    torch.manual_seed(5)
    torch.testing.assert_close(found, Pass(net, x).logits, **exact)


def test_its_usual_size_is_the_published_one():
    net = Stochastic(StochasticOptions(), (1, 28, 28), 10)
    assert net.shapes == [(1, 28, 28), (200,), (200,), (10,)] and net.options.passes == 100
    # Glorot's uniform weights, as in the author's code.
    assert net[1][2].weight.abs().max().item() == pytest.approx((6 / 984) ** 0.5, rel=1e-3)


def test_evaluation_is_the_logarithm_of_the_mean_of_the_passes_probabilities():
    net = network().double().eval()
    x, _ = make_batch(net)
    torch.manual_seed(5)
    found = net(x)
    torch.manual_seed(5)
    # Without noise on the images.
    p1, total = torch.sigmoid(affine(x.flatten(1), net[1])), 0
    for _ in range(7):
        h1 = (torch.rand(6, 12) < p1).double()
        h2 = (torch.rand(6, 11) < torch.sigmoid(affine(h1, net[2]))).double()
        total = total + affine(h2, net[3]).softmax(1)
    torch.testing.assert_close(found, (total / 7).log(), **exact)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(6).double(), **exact)


def test_more_passes_come_nearer_to_the_exact_mean():
    """All samples of 4 + 3 units, each with its probability."""
    net = network(widths=[4, 3], passes=3000).double().eval()
    x, _ = make_batch(net)
    exact_mean = 0
    p1 = torch.sigmoid(affine(x.flatten(1), net[1]))
    for code in range(16):
        h1 = torch.tensor([code >> i & 1 for i in range(4)]).double().expand(6, -1)
        weight = torch.where(h1 > 0, p1, 1 - p1).prod(1, keepdim=True)
        p2 = torch.sigmoid(affine(h1, net[2]))
        for other in range(8):
            h2 = torch.tensor([other >> i & 1 for i in range(3)]).double().expand(6, -1)
            exact_mean += weight * torch.where(h2 > 0, p2, 1 - p2).prod(1, keepdim=True) * affine(h2, net[3]).softmax(1)
    torch.manual_seed(0)
    assert (net(x).exp() - exact_mean).abs().max() < 4.5 * 0.5 / 3000**0.5


def test_probabilities_too_small_for_the_type_do_not_become_zero():
    net = network().eval()
    with torch.no_grad():
        net[3][1].bias[0] = 500.0
    logits = net(torch.rand(2, 1, 4, 4))
    assert logits.isfinite().all() and (logits[:, 1:] < -400).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widths": []}, "--widths: .*at least one hidden layer"),
        ({"widths": [8, -1]}, "--widths: expected values of at least 1, found -1"),
        ({"passes": 0}, "--passes: expected at least 1, found 0"),
        ({"input_noise": -0.1}, "--input-noise: expected 0 or more, found -0.1"),
        ({"input_noise": math.nan}, "--input-noise: expected 0 or more, found nan"),
    ],
)
def test_what_makes_no_such_network_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        network(**options)


@pytest.mark.parametrize("loss", ["squared", "binary-cross-entropy"])
def test_a_loss_that_its_mean_probabilities_are_not_made_for_is_refused(loss):
    with pytest.raises(UserError, match=f"--loss: expected cross-entropy, which alone Stochastic .* found {loss}"):
        BP(network(), BP.Options(loss=loss))


# --- difference target propagation ------------------------------------------------------------------------------------


def test_targets_and_updates_are_lees():
    """Lee 2018, eq. 3.28 to 3.31, written out: one sample of each unit in all parts of a batch's update."""
    rule = lee()
    net, (x, y), beta = rule.network, make_batch(rule.network), rule.options.beta
    torch.manual_seed(5)
    gradients = rule.forward_gradients(x, y)[1]
    torch.manual_seed(5)
    a = Pass(net, x)

    def back(p):
        return torch.tanh(affine(p, rule.feedback[2]))

    h2 = a.h2.clone().requires_grad_()
    (error,) = torch.autograd.grad(F.cross_entropy(affine(h2, net[3]), y, reduction="sum"), h2)
    t2 = (a.p2 - beta * error).detach()
    t1 = (a.p1 + back(t2) - back(a.p2)).detach()
    loss = ((a.p1 - t1) ** 2).sum(1).mean() + ((a.p2 - t2) ** 2).sum(1).mean() + F.cross_entropy(a.logits, y)
    expected = torch.autograd.grad(loss, list(net.parameters()))
    for found, gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, gradient, **exact)


def test_feedback_learns_lees_reconstruction():
    """Lee 2018, eq. 3.31: q = p_1 + eps, h ~ Bernoulli(q), and G_2 of the probabilities that h gives is to be q."""
    rule = lee()
    x, _ = make_batch(rule.network)
    torch.manual_seed(5)
    a = rule.activations(x)
    torch.manual_seed(5)
    drawn = Pass(rule.network, x)
    noise = rule.feedback_noise(2, a)
    q = a.s[1] + noise[0]
    p2 = torch.sigmoid(affine((drawn.u1 < q).double(), rule.network[2]))
    expected = ((torch.tanh(affine(p2, rule.feedback[2])) - q) ** 2).sum(1).mean()
    torch.testing.assert_close(rule.feedback_loss(2, a, noise), expected, **exact)


def test_backprop_is_the_straight_through_estimator():
    """Lee 2018, eq. 3.29: the samples' derivatives are ignored, those of the sigmoids are not."""
    net = network().double()
    x, y = make_batch(net)
    torch.manual_seed(5)
    gradients = BP(net).forward_gradients(x, y)[1]
    torch.manual_seed(5)
    a = Pass(net, x)
    error = (a.logits.softmax(1) - F.one_hot(y, 5)) / len(y)
    d2 = error @ net[3][1].weight * a.p2 * (1 - a.p2)
    d1 = d2 @ net[2][1].weight * a.p1 * (1 - a.p1)
    expected = [d1.t() @ a.x, d1.sum(0), d2.t() @ a.h1, d2.sum(0), error.t() @ a.h2, error.sum(0)]
    for found, gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, gradient.detach(), **exact)


def test_exact_transposes_carry_what_backprop_would_through_the_very_same_samples():
    rule = make_trained("hybrid", network().double(), alpha=1.0).double()
    found = update_alignment(rule, *make_batch(rule.network))
    assert all(layer.distance < 1e-9 for layer in found.values())


# --- all rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vanilla-dtp", "dtp", "sdtp", "drl", "bp"])
@pytest.mark.parametrize("precision", ["64", "bf16"])
def test_it_works_in_other_precisions(name, precision):
    net = network().to(torch.float64 if precision == "64" else torch.float32)
    rule = make_trained(name, net).to(next(net.parameters()).dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits, _ = rule.training_batch(*make_batch(net))
        evaluated = rule.eval()(make_batch(net)[0])
    assert logits.isfinite().all() and all(p.isfinite().all() for p in rule.parameters())
    assert evaluated.dtype == next(net.parameters()).dtype


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSE])
def test_measuring_angles_changes_nothing_and_gives_the_same_again(name):
    rule = make_trained(name, network())
    x, y = make_batch(rule.network)
    before, randomness, noise = state(rule), torch.get_rng_state(), rule.noise_streams.state_dict()
    first = update_alignment(rule, x, y)
    torch.rand(3)
    second = update_alignment(rule, x, y)
    assert first == second and (first[3].distance < 1e-5 or facts(name).not_true)
    assert same(before, rule.state_dict()) and noise == rule.noise_streams.state_dict()
    torch.set_rng_state(randomness)
    update_alignment(rule, x, y)
    assert torch.equal(randomness, torch.get_rng_state())


# --- randomness of whole runs -----------------------------------------------------------------------------------------

RUN = "--model stochastic --widths 12 11 --passes 3 --data digits --batch-size 32 --max-epochs 2 --log-every 1".split()
RUN += "--limit-train-batches 5 --limit-val-batches 2 --test-weights last".split()


def run(name, folder, *words):
    return main(["--algo", name, *RUN, "--run-dir", str(folder), *words])


def final(folder):
    checkpoint = torch.load(newest_checkpoint(folder), weights_only=True)
    return {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "noise", "global_step")}


def metrics(folder):
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if "second" not in key and "share" not in key} for row in rows]


@pytest.mark.parametrize("name", ["vanilla-dtp", "dtp", "bp"])
def test_a_run_that_is_stopped_and_resumed_equals_one_never_stopped(name, here, monkeypatch):
    """Weights and numbers, bit for bit: samples, noise on the images, the averages of validation, the angles."""
    torch.manual_seed(1)
    assert run(name, here / "whole") == 0
    torch.manual_seed(2)
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        assert run(name, here / "stopped", "--resume", "auto") == 75
    stop_request.signum = None
    torch.manual_seed(3)
    assert run(name, here / "stopped", "--resume", "auto") == 0
    assert_identical(final(here / "whole"), final(here / "stopped"))
    whole, stopped = metrics(here / "whole"), metrics(here / "stopped")
    assert [row["val/loss"] for row in whole] == [row["val/loss"] for row in stopped]
    angles = [key for key in whole[0] if "angle" in key]
    assert angles and [[row[key] for key in angles] for row in whole] == [
        [row[key] for key in angles] for row in stopped
    ]


def test_measuring_more_often_changes_no_weight_and_another_seed_does(here):
    assert run("bp", here / "often", "--diagnostics-every", "1") == 0
    assert run("bp", here / "never", "--diagnostics-every", "0") == 0
    assert run("bp", here / "other", "--diagnostics-every", "0", "--seed", "1") == 0
    assert_identical(final(here / "often")["state_dict"], final(here / "never")["state_dict"])
    assert changed(final(here / "often")["state_dict"], final(here / "other")["state_dict"])


@pytest.mark.parametrize("precision", ["64", "bf16-mixed"])
def test_a_run_in_another_precision_works(precision, here):
    assert run("vanilla-dtp", here / "run", "--precision", precision) == 0


# --- presets ----------------------------------------------------------------------------------------------------------


def test_the_presets_are_lees_code():
    config = parse(["--config", "vanilla-dtp_stochastic_mnist"])
    assert config.algo.beta == pytest.approx(58.4385169576 / config.data.batch_size)
    assert (config.algo.lr, config.algo.feedback_lr) == (0.00308740019447, [2.71629261947e-6])
    assert (config.algo.noise, config.algo.noise_decay, config.model.input_noise) == ([0.5], 100.0, 0.3)
    # 1000 of his, each one pass of either kind.
    assert config.run.max_epochs == 2000 and config.algo.schedule == "alternating"
    config = parse(["--config", "bp_stochastic_mnist"])
    assert (config.algo.lr, config.algo.optimizer, config.run.max_epochs) == (0.00458495466364, "lee-rmsprop", 1000)
    assert config.model.passes == 100
