"""A batch looks at no value on the device, which would make the host wait for all that was asked of it."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dtp.algorithms import DTP
from dtp.algorithms.options import DTPOptions
from dtp.models import LeNet
from dtp.models.options import LeNetOptions
from tests.conftest import make_batch

# What reads values, or has a result whose shape depends on them.
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}


class Counted(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.count[function.overloadpacket.__name__] += 1
        return function(*arguments, **(named or {}))


EXPECTED = {"probes": "expected", "routing": "fixed"}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("engine", "options", "used"),
    [
        ("literal", {}, "literal"),
        ("reduced", {}, "reduced"),
        ("reduced", {"routing": "fixed", "unpool": "write", "noise_samples": 2}, "reduced"),
        ("graph", {}, "graph"),
        ("graph", {"feedback_optimizer": "adam"}, "graph"),
        ("auto", {**EXPECTED, "feedback_slope": "own"}, "expected"),
        ("auto", {**EXPECTED, "feedback_slope": "clean"}, "expected"),
        ("auto", {"probes": "expected", "routing": "noisy"}, "expected"),
        ("auto", {**EXPECTED, "feedback_iterations": [float("inf")]}, "expected"),
    ],
)
def test_the_second_batch_waits_for_nothing(engine, options, used, layout):
    torch.manual_seed(0)
    network = LeNet(LeNetOptions(channels=[3, 4], hidden=8), (1, 12, 12), 5)
    settings = {"feedback_iterations": [3], "feedback_lr": [0.01], **options}
    rule = DTP(network, DTPOptions(engine=engine, **settings)).to(memory_format=layout)
    rule.configure_optimizers()
    rule.training_batch(*make_batch(network, 6))
    batch = make_batch(network, 6)
    with Counted() as counted:
        rule.training_batch(*batch)
    assert set(rule.engine.used.values()) == {used} and sum(counted.count.values()) > 50
    assert {name: counted.count[name] for name in WAITING if counted.count[name]} == {}


def test_a_look_at_a_value_is_counted():
    with Counted() as counted:
        assert float(torch.ones(()).add(1)) == 2 and torch.ones(2).nonzero().shape == (2, 1)
    assert counted.count["_local_scalar_dense"] == 1 and counted.count["nonzero"] == 1
