"""Layers that draw from torch's global generators, dropout say: what they draw is part of the run."""

import pytest
import torch
from torch import nn

from dtp.algorithms import BP
from dtp.cli.train import main
from dtp.models import MLP
from dtp.models.options import MLPOptions
from dtp.run.folder import newest_checkpoint
from dtp.system.signals import stop_request
from tests.run.test_resume import assert_identical, stop_after

FILE = """
from torch import nn
from dtp.models import MLP


class Dropped(MLP):
    def make_layers(self):
        for layer in super().make_layers():
            yield nn.Sequential(*layer, nn.Dropout(0.3)) if len(layer) > 1 else layer
"""
RUN = "--algo bp --model with_dropout:Dropped --widths 12 11 --data digits --batch-size 32 --max-epochs 2".split()
RUN += "--limit-train-batches 5 --limit-val-batches 2 --log-every 1".split()


@pytest.fixture
def users_file(here, monkeypatch):
    (here / "with_dropout.py").write_text(FILE)
    monkeypatch.syspath_prepend(here)


def final(folder):
    checkpoint = torch.load(newest_checkpoint(folder), weights_only=True)
    return {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "global_step")}


def test_dropout_goes_on_in_a_resumed_run_as_it_would_have(users_file, here, monkeypatch):
    assert main([*RUN, "--run-dir", "whole"]) == 0
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        assert main([*RUN, "--run-dir", "stopped", "--resume", "auto"]) == 75
    stop_request.signum = None
    torch.rand(5)
    assert main([*RUN, "--run-dir", "stopped", "--resume", "auto"]) == 0
    assert_identical(final(here / "whole"), final(here / "stopped"))


def test_dropout_is_another_with_every_batch_and_with_another_seed(users_file, here, monkeypatch):
    masks = []
    original = nn.Dropout.forward

    def forward(self, x):
        y = original(self, x)
        if self.training and x.shape[1] == 12 and not x.is_meta:
            masks.append((y == 0) & (x != 0))
        return y

    monkeypatch.setattr(nn.Dropout, "forward", forward)
    for seed in ("0", "1"):
        assert main([*RUN, "--run-dir", seed, "--seed", seed, "--diagnostics-every", "0"]) == 0
    assert len(masks) == 20
    assert all(not torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


def test_devices_with_different_images_draw_differently_and_those_with_the_same_alike():
    rule = BP(MLP(MLPOptions(), (1, 4, 4), 5), seed=4)
    draws = []
    for rank in (0, 1, 0):
        rule.noise_streams.rank = rank
        with rule.randomness("training", 3):
            draws.append(torch.rand(5))
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])
