"""Short forms that the tests of the rules use."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from dtp.algorithms import ALGORITHMS
from dtp.algorithms.base import Algorithm
from dtp.cli.arguments import parse
from dtp.models import MODELS, LeNet, Network
from dtp.models.options import LeNetOptions, ModelOptions
from dtp.tasks import Autoencoder, Classification, Clustering
from tests.algorithms.rules import facts

CLASSES = 5


def small_network(name: str, kind: str = "small") -> Network:
    """A network for the rule ``name`` and its usual task: of the rule's own kind, or a small LeNet."""
    if kind == "lenet":
        return LeNet(LeNetOptions(channels=[3, 4], hidden=8), (2, 12, 12), CLASSES)
    shape, (usual, *_) = (1, 4, 4), ALGORITHMS.resolve(name).load_options().tasks
    task = {
        "classification": lambda: Classification(CLASSES),
        "autoencoder": lambda: Autoencoder(shape),
        "clustering": lambda: Clustering(CLASSES, 3),
    }[usual]()
    model, options = chosen(facts(name).network)
    return MODELS.resolve(model).load().for_task(options, shape, task)


@cache
def chosen(words: str) -> tuple[str, ModelOptions]:
    """The name and the options of the network that these words of a command line choose, always the same objects."""
    # Of a dataset that has no preset for such a network, whose options would mix in.
    config = parse(["--algo", "bp", "--data", "imagefolder", *words.split()])
    return config.run.model, config.model


def make(name: str, network: Network, seed: int = 3, **changes) -> Algorithm:
    """The rule ``name`` with its optimizers; ``changes`` of its options."""
    entry = ALGORITHMS.resolve(name)
    rule = entry.load()(network, entry.load_options()(**changes), seed=seed)
    rule.configure_optimizers()
    return rule


def make_trained(name: str, network: Network, seed: int = 3, **changes) -> Algorithm:
    """As :func:`make`, with every batch training the forward weights, where a rule would do so in some epochs only.

    With the options that the table of the rules has for small networks.
    """
    scheduled = "schedule" in ALGORITHMS.resolve(name).load_options().__dataclass_fields__
    usual = {"schedule": "sequential"} if scheduled else {}
    return make(name, network, seed, **{**usual, **facts(name).options, **changes})


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all its parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Whether all tensors of ``before`` are the same, bit for bit, in ``after``."""
    return all(torch.equal(before[name], after[name]) for name in before)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not the same."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def of_network(names: set[str]) -> set[str]:
    """Those names of a rule's tensors that belong to its forward network."""
    return {name for name in names if name.startswith("network.")}


def angle(a: Tensor, b: Tensor) -> float:
    """Degrees between two tensors of one shape, flattened."""
    u, v = (t.detach().flatten().double() for t in (a, b))
    return float(torch.rad2deg(torch.acos((u @ v / (u.norm() * v.norm())).clamp(-1, 1))))


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())
