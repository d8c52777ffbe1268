"""Several ranks compute what one process does."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from dtp.algorithms import BP
from dtp.feedback.noise import NoiseStreams
from dtp.run.progress import EpochLines
from tests.algorithms.helpers import make_trained, small_network, state
from tests.algorithms.networks import normalised_network, shipped_network
from tests.algorithms.rules import NAMES
from tests.distributed.ranks import Shares, batches_of, fit, train_on_ranks


class SharedNoise(NoiseStreams):
    """The noise that one process would draw for the whole batch, of which each rank takes its rows."""

    def __init__(self, seed, samples=1, share=0, shares=1):
        super().__init__(seed)
        self.samples, self.share, self.shares = samples, share, shares

    # All ranks draw all of it.
    rank = property(lambda self: 0, lambda self, rank: None)

    def normal(self, n, shape, scale, like, common=False):
        if common:
            return super().normal(n, shape, scale, like, common)
        samples = self.samples if shape[0] % self.samples == 0 else 1
        whole = super().normal(n, (shape[0] * self.shares, *shape[1:]), scale, like)
        return whole.unflatten(0, (samples, -1))[:, self.share :: self.shares].flatten(0, 1)

    def normals(self, n, shapes, scale, likes, times):
        if times == len(shapes) == 1:
            return super().normals(n, shapes, scale, likes, times)
        pairs = list(zip(shapes, likes, strict=True))
        drawn = [[self.normal(n, shape, scale, like) for shape, like in pairs] for _ in range(times)]
        return [torch.cat(parts) for parts in zip(*drawn, strict=True)]


def _trained(name, folder, ranks, noise=None, compare=True, kind="small", options=None, **strategy):
    """Weights after some batches, by rank."""

    def train(trainer):
        torch.manual_seed(0)
        network = small_network(name, kind).double()
        rule = make_trained(name, network, **(options or {})).double()
        if noise is not None:
            share, shares = trainer.strategy.training_share if ranks > 1 else (0, 1)
            rule.noise_streams = noise(share, shares, getattr(rule.options, "noise_samples", 1))
        if compare and ranks > 1:
            rule.training_batch = _compared(rule, rule.training_batch)
        fit(trainer, rule, batches_of(network, count=6))
        return state(rule)

    return train_on_ranks(train, folder, ranks, **strategy)


def _compared(rule, training_batch):
    """After every batch, fail if the ranks are not bit-identical."""

    def batch(x, y):
        result = training_batch(x, y)
        named = dict(rule.named_parameters())
        weights = torch.cat([value.detach().flatten() for value in named.values()])
        first = weights.clone()
        dist.broadcast(first, src=0)
        parts = (first != weights).split([value.numel() for value in named.values()])
        apart = [name for name, differs in zip(named, parts, strict=True) if differs.any()]
        assert not apart, f"ranks drifted apart in {apart}"
        return result

    return batch


def _noise(share, shares, samples):
    return SharedNoise(3, samples, share, shares)


def _furthest(a, b):
    """Largest relative distance of two tensors of the same name."""
    return max(float((a[n] - b[n]).norm() / b[n].norm().clamp(min=1e-30)) for n in a if a[n].is_floating_point())


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_equal_one_process_on_the_whole_batch(name, tmp_path):
    """The noise given, whatever the rule; and the ranks are bit-identical after every batch."""
    (alone,) = _trained(name, tmp_path, 1, _noise)
    first, second = _trained(name, tmp_path, 2, _noise)
    assert _furthest(first, second) == 0
    assert _furthest(first, alone) < 1e-9


class Several(BP):
    """An optimizer for each of the weights."""

    def configure_optimizers(self):
        return [torch.optim.SGD([parameter], lr=0.1) for parameter in self.network.parameters()]


def test_gradients_of_several_optimizers_are_clipped_on_two_ranks_as_in_one_process(tmp_path):
    def train(trainer):
        torch.manual_seed(0)
        rule = Several(small_network("bp").double(), BP.Options(clip_norm=0.01)).double()
        fit(trainer, rule, batches_of(rule.network))
        return state(rule)

    (alone,) = train_on_ranks(train, tmp_path, 1)
    first, second = train_on_ranks(train, tmp_path, 2)
    assert _furthest(first, second) == 0
    assert _furthest(first, alone) < 1e-9


@pytest.mark.parametrize("engine", ["literal", "reduced"])
@pytest.mark.parametrize("mode", ["data", "layer", "hybrid"])
def test_convolutions_and_engines_in_every_mode(engine, mode, tmp_path):
    options = {"engine": engine, "noise_samples": 2, "feedback_iterations": [3, 5, 2]}
    (alone,) = _trained("dtp", tmp_path, 1, _noise, kind="lenet", options=options)
    ranks = _trained("dtp", tmp_path, 2, _noise, kind="lenet", options=options, feedback_parallel=mode)
    assert _furthest(ranks[0], ranks[1]) == 0
    assert _furthest(ranks[0], alone) < 1e-9


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("mode", ["layer", "hybrid"])
@pytest.mark.parametrize("name", ["dtp", "vanilla-dtp", "sdtp", "ddtp-linear"])
def test_layers_on_ranks_give_the_weights_of_one_process(name, mode, ranks, tmp_path):
    """With the same seed and no noise given from outside, on fewer and on more ranks than feedback layers."""
    (alone,) = _trained(name, tmp_path, 1)
    found = _trained(name, tmp_path, ranks, feedback_parallel=mode)
    assert all(_furthest(found[0], other) == 0 for other in found)
    assert _furthest(found[0], alone) < 1e-9
    assert any("feedback" in name for name in alone)


@pytest.mark.parametrize("kind", ["normalised", "residual"])
@pytest.mark.parametrize("mode", ["layer", "hybrid"])
def test_contexts_of_a_batch_are_divided_by_images(kind, mode, tmp_path):
    """Normalisation constants belong to the batch, pooling switches and slopes to their images."""

    def train(trainer):
        torch.manual_seed(0)
        network = normalised_network() if kind == "normalised" else shipped_network("resnet18")
        rule = make_trained("dtp", network.double(), feedback_iterations=[2]).double()
        fit(trainer, rule, batches_of(rule.network, count=2))
        return state(rule)

    (alone,) = train_on_ranks(train, tmp_path, 1)
    found = train_on_ranks(train, tmp_path, 3, feedback_parallel=mode)
    assert all(_furthest(found[0], other) == 0 for other in found)
    assert _furthest(found[0], alone) < 1e-9


def test_running_statistics_of_batch_normalisation_are_the_same_on_all_ranks(tmp_path):
    def train(trainer):
        torch.manual_seed(0)
        rule = make_trained("bp", normalised_network().double()).double()
        fit(trainer, rule, batches_of(rule.network, count=6))
        return state(rule)

    first, second = train_on_ranks(train, tmp_path, 2)
    assert any("running_mean" in name for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_line_of_an_epoch_says_on_two_ranks_what_it_says_in_one_process(tmp_path, monkeypatch):
    """Each rank has seen other images."""
    lines = []
    monkeypatch.setattr(EpochLines, "_print", lambda self, trainer, where, shown: lines.append(shown))

    def train(trainer):
        trainer.callbacks.append(EpochLines())
        torch.manual_seed(0)
        rule = make_trained("bp", small_network("bp").double()).double()
        fit(trainer, rule, batches_of(rule.network))
        return [(line["loss"], line["acc"]) for line in lines]

    (alone,) = train_on_ranks(train, tmp_path, 1)
    lines.clear()
    first, _ = train_on_ranks(train, tmp_path, 2)
    assert len(alone) == 1 and first == alone


@pytest.mark.parametrize("name", ["bp", "dtp-dae", "competitive"])
def test_the_loss_of_images_that_ranks_do_not_share_evenly_is_that_of_one_process(name, tmp_path):
    """For classification, an auto-encoder and clusters; and it is the mean over images."""

    def evaluate(trainer):
        torch.manual_seed(0)
        rule = make_trained(name, small_network(name).double()).double()
        batches = [*batches_of(rule.network, images=7), *batches_of(rule.network, count=1, images=4)]
        shares = trainer.distributed_sampler_kwargs if trainer.world_size > 1 else {"rank": 0, "num_replicas": 1}
        loader = torch.utils.data.DataLoader(Shares(batches, shares["rank"], shares["num_replicas"]), batch_size=None)
        (tested,) = trainer.test(rule, loader, verbose=False)
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        with torch.no_grad():
            losses = rule.task_loss(rule(x), rule.task.goal(x, y, training=False), reduction="sum")
        return tested["test/loss"], float(losses / len(x))

    ((alone, mean),) = train_on_ranks(evaluate, tmp_path, 1)
    assert alone == pytest.approx(mean, rel=1e-9)
    assert [loss for loss, _ in train_on_ranks(evaluate, tmp_path, 2)] == pytest.approx([mean] * 2, rel=1e-9)
