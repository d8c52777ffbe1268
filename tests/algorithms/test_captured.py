"""A batch that is captured once and replayed learns what it would have learned plainly."""

import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dtp.algorithms import BP, DTP
from dtp.algorithms.captured import PLAIN, CapturedBatches
from dtp.algorithms.options import AlgorithmOptions, DTPOptions
from dtp.errors import UserError
from dtp.models import VGG
from dtp.models.options import VGGOptions
from tests.algorithms.networks import Layers


def made(kind, **options):
    torch.manual_seed(0)
    rule = kind(
        VGG(VGGOptions(channels=[4, 6]), (3, 8, 8), 10), (DTPOptions if kind is DTP else AlgorithmOptions)(**options)
    )
    rule.double().configure_optimizers()
    return rule


def batches(count=8, size=6):
    generator = torch.Generator().manual_seed(1)
    for i in range(count):
        rows = size if i % 4 != 3 else 2
        yield torch.randn(rows, 3, 8, 8, generator=generator).double(), torch.randint(10, (rows,), generator=generator)


class Plain:
    """Stands in for a CUDA graph: the same addresses, a function in the place of a recording."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, function):
        self.captures += 1

        def replay():
            self.replays += 1
            function()

        return replay


EXPECTED = {"probes": "expected", "routing": "fixed"}


@pytest.mark.parametrize("kind, options", [(BP, {}), (DTP, EXPECTED), (DTP, {**EXPECTED, "feedback_warmup": 2})])
def test_replays_learn_what_plain_batches_do(kind, options):
    plain, replayed, capture = made(kind, **options), made(kind, **options), Plain()
    captured = CapturedBatches(replayed._learn, capture)
    for i, (x, y) in enumerate(batches()):
        if i == 6:
            for rule in (plain, replayed):
                rule.forward_optimizer.param_groups[0]["lr"] *= 0.5
        names, values = plain._learn(x, y)
        found_names, found = captured(x, y, replayed.kind_of_batch(), replayed.fixed_numbers())
        assert found_names == names and torch.equal(found, values)
    for a, b in zip(plain.parameters(), replayed.parameters(), strict=True):
        assert torch.equal(a, b)
    # Batch 3 and 7 are short, the rate changes before batch 6.
    if "feedback_warmup" not in options:
        assert (capture.captures, capture.replays) == (2, 6 - PLAIN)


def test_another_rate_and_weights_at_other_addresses_are_captured_anew():
    rule, capture = made(DTP, **EXPECTED), Plain()
    captured = CapturedBatches(rule._learn, capture)
    x, y = next(batches())
    for _ in range(PLAIN + 2):
        captured(x, y, None, rule.fixed_numbers())
    assert capture.captures == 1
    before = rule.fixed_numbers()
    rule.network[1][0].weight.data = rule.network[1][0].weight.data.clone()
    assert rule.fixed_numbers() != before


def test_only_rules_that_do_the_same_on_every_batch_are_captured():
    assert made(BP).fixed_sequence() and made(DTP, **EXPECTED).fixed_sequence()
    assert not made(DTP).fixed_sequence()
    assert not made(DTP, probes="expected", routing="noisy").fixed_sequence()

    class Mine(DTP):
        """May do anything on the host."""

    network = VGG(VGGOptions(channels=[4, 6]), (3, 8, 8), 10)
    assert not Mine(network, DTPOptions(**EXPECTED)).fixed_sequence()


class Skipped(nn.Module):
    """A user's own operation, which decides on the host."""

    def forward(self, x):
        return x if random.random() < 0.5 else 0 * x


class OwnPass(Layers):
    """A user's own network that does the same."""

    def forward(self, x):
        return super().forward(x) * random.random()


@pytest.mark.parametrize(
    "kind, more, repeats", [(Layers, [], True), (Layers, [Skipped()], False), (OwnPass, [], False)]
)
def test_modules_of_the_users_own_are_not_captured(kind, more, repeats, monkeypatch):
    network = kind([nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), nn.Sequential(*more, nn.Linear(5, 5))], (3, 2, 2))
    rule = BP(network)
    rule.configure_optimizers()
    rule.capture_batches = True
    monkeypatch.setattr(BP, "device", torch.device("cuda"))
    monkeypatch.setattr(BP, "trainer", SimpleNamespace(world_size=1))
    assert rule._may_capture() == repeats


def test_a_batch_that_cannot_be_captured_ends_in_one_sentence():
    def fail(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    rule = made(BP)
    captured = CapturedBatches(rule._learn, fail)
    x, y = next(batches())
    for _ in range(PLAIN):
        captured(x, y, None, None)
    with pytest.raises(UserError, match="--capture no"):
        captured(x, y, None, None)
