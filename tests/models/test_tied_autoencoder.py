"""The auto-encoder with one weight matrix: its maps, its training by backprop, and what it refuses."""

import json

import pytest
import torch
from torch import nn

from dtp.algorithms import BP
from dtp.cli.train import main
from dtp.errors import UserError
from dtp.models import TiedAutoencoder
from dtp.models.options import TiedAutoencoderOptions
from dtp.tasks import Autoencoder
from tests.algorithms.helpers import make
from tests.conftest import make_batch
from tests.runs import fails

SHAPE, PIXELS = (2, 3, 4), 24


def autoencoder(**options):
    options = TiedAutoencoderOptions(**{"hidden": 7, **options})
    return TiedAutoencoder.for_task(options, SHAPE, Autoencoder(SHAPE)).double()


def test_the_decoder_is_the_transpose_of_the_encoder():
    network = autoencoder()
    W, b, c = network.parameters()
    nn.init.normal_(c)
    x = torch.randn(5, *SHAPE, dtype=torch.float64)
    h = torch.sigmoid(x.flatten(1) @ W.t() + b)
    torch.testing.assert_close(network(x), h @ W + c)
    assert network.shapes == [SHAPE, (7,), (PIXELS,)]


@pytest.mark.parametrize("init", ["default", "orthogonal", "xavier"])
def test_both_layers_have_the_first_weights_that_are_asked_for(init):
    network = autoencoder(init=init)
    weight = network[1][1].weight
    assert network[2][0].weight is weight
    if init == "orthogonal":
        assert torch.allclose(weight @ weight.t(), torch.eye(7, dtype=torch.float64), atol=1e-5)
    assert not network[2][0].bias.any()


def test_backprop_trains_the_weight_for_both_of_its_uses():
    network = autoencoder()
    x, y = make_batch(network)
    rule = make("bp", network, loss="squared", optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)
    W, b, c = (p.detach().clone().requires_grad_() for p in network.parameters())
    z = torch.sigmoid(torch.sigmoid(x.flatten(1) @ W.t() + b) @ W + c)
    expected = torch.autograd.grad(0.5 * (z - y).square().sum() / len(x), [W, b, c])
    rule.training_batch(x, y)
    for p, old, gradient in zip(network.parameters(), (W, b, c), expected, strict=True):
        torch.testing.assert_close(p.detach(), old.detach() - 0.1 * gradient)


def test_a_weight_that_layers_share_has_one_rate_that_of_the_first():
    rule = BP(autoencoder(), BP.Options(loss="squared", layer_lr=[0.1, 0.2]))
    rule.configure_optimizers()
    groups = [(group["lr"], [tuple(p.shape) for p in group["params"]]) for group in rule.forward_optimizer.param_groups]
    assert groups == [(0.1, [(7, PIXELS), (7,)]), (0.2, [(PIXELS,)])]


def test_it_is_for_auto_encoders_alone(capsys):
    words = "--model tied-autoencoder --data digits --algo bp".split()
    fails(capsys, words, "expected --task autoencoder", "64 values of the image", "found 10 outputs")
    with pytest.raises(UserError, match="--hidden: expected at least 1, found 0"):
        autoencoder(hidden=0)


@pytest.mark.parametrize("algo", ["dtp", "fa", "dfa", "chl", "gait"])
def test_other_rules_train_it_or_say_why_not(algo, here, capsys):
    words = [
        "--algo",
        algo,
        "--task",
        "autoencoder",
        "--model",
        "tied-autoencoder",
        "--hidden",
        "8",
        "--data",
        "digits",
    ]
    status = main([*words, "--max-epochs", "1", "--limit-train-batches", "2", "--run-dir", "run"])
    error = capsys.readouterr().err
    assert status == 2 and "Traceback" not in error
    assert sum(line.startswith("error: ") for line in error.splitlines()) == 1


def test_its_encoder_is_where_a_classifier_may_start(here):
    run = ["--data", "digits", "--max-epochs", "1", "--limit-train-batches", "3"]
    first = ["--algo", "dtp-dae", "--model", "tied-autoencoder", "--hidden", "16", "--batch-size", "32"]
    assert main([*run, *first, "--run-dir", "dae"]) == 0
    # A rate at which nothing is learned: what is tested is where it started.
    second = ["--algo", "bp", "--model", "mlp", "--widths", "16", "--activation", "sigmoid", "--lr", "1e-30"]
    second += ["--weight-decay", "0", "--lr-schedule", "constant", "--optimizer", "sgd", "--momentum", "0"]
    assert main([*run, *second, "--init-weights", "dae", "--run-dir", "tuned"]) == 0
    (dae,), (tuned,) = (list((here / run / "checkpoints").glob("step=*.ckpt")) for run in ("dae", "tuned"))
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (dae, tuned))
    for name in ("network.layers.0.1.weight", "network.layers.0.1.bias"):
        assert torch.equal(before[name], after[name])
    assert json.loads((here / "tuned" / "summary.json").read_text())["task"] == "classification"
