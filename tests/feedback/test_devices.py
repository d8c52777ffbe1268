"""The feedback phase on a GPU, as far as it can be seen without one: on fake tensors that know their device alone."""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dtp.algorithms.metrics
import dtp.feedback.momentum
import dtp.feedback.noise
import dtp.feedback.operations
from dtp.algorithms import DTP
from dtp.algorithms.options import DTPOptions
from dtp.feedback.graphs import RecursionGraph
from dtp.models import LeNet
from dtp.models.options import LeNetOptions

EXPECTED = {"probes": "expected", "routing": "fixed"}


@pytest.fixture
def fake(monkeypatch):
    """In it tensors on a GPU have no values, and what asks the driver for something is left out."""
    seeded = dtp.feedback.noise.seeded_generator
    monkeypatch.setattr(dtp.feedback.noise, "seeded_generator", lambda device, *a: seeded(torch.device("cpu"), *a))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    # The derivatives are where what they are taken of is; to compute them autograd needs a driver.
    monkeypatch.setattr(torch.autograd, "grad", lambda outputs, inputs, *a, **k: tuple(map(torch.empty_like, inputs)))
    monkeypatch.setattr(RecursionGraph, "stream", lambda self, device: None)
    # What was made of values on another device stays out, and so do fakes of what is kept for later.
    kept = dtp.feedback.operations._inside, dtp.feedback.momentum._repeated, dtp.feedback.momentum._digits
    for cache in kept:
        cache.cache_clear()
    with FakeTensorMode() as mode:
        try:
            torch.empty(1).to("cuda")
        except RuntimeError as error:
            pytest.skip(f"this torch needs a driver for tensors without values: {error}")
        yield mode
    for cache in kept:
        cache.cache_clear()


def on_the_gpu(engine: str, layout: torch.memory_format, **options) -> tuple[DTP, torch.Tensor, torch.Tensor]:
    settings = {"feedback_iterations": [3], "feedback_lr": [0.01], "feedback_memory": 64, **options}
    with torch.device("cuda"):
        network = LeNet(LeNetOptions(channels=[3, 4], hidden=8), (2, 12, 12), 5)
        rule = DTP(network, DTPOptions(engine=engine, **settings))
    rule.engine.whole_batches = True
    rule.feedback_timer.measure = lambda device: nullcontext()
    rule.configure_optimizers()
    x = torch.empty(6, 2, 12, 12, device="cuda").to(memory_format=layout)
    return rule, x, torch.empty(6, dtype=torch.long, device="cuda")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("engine", "options", "used"),
    [
        ("literal", {}, "literal"),
        ("reduced", {}, "reduced"),
        ("reduced", {"routing": "fixed", "unpool": "write", "noise_samples": 2}, "reduced"),
        ("graph", {}, "graph"),
        ("graph", {"feedback_optimizer": "adam"}, "graph"),
        ("graph", {"clip_norm": 1.0, "feedback_tracking": "kolen-pollack", "ldrl_scale": "paper"}, "graph"),
        ("auto", {}, "graph"),
        ("auto", {**EXPECTED, "feedback_slope": "own"}, "expected"),
        ("auto", {**EXPECTED, "feedback_slope": "clean"}, "expected"),
        ("auto", {**EXPECTED, "probe_nodes": 1, "feedback_momentum": 0.0}, "expected"),
        ("auto", {**EXPECTED, "feedback_optimizer": "adam"}, "expected"),
        ("auto", {"probes": "expected", "routing": "noisy", "noise_samples": 16}, "expected"),
        ("auto", {**EXPECTED, "feedback_iterations": [float("inf")]}, "expected"),
    ],
)
def test_a_batch_mixes_no_devices_and_reads_no_value(fake, engine, options, used, layout):
    """A fake tensor raises where two devices meet, and where a value is asked for.

    Nor does a second batch copy between host and device what a capture may not copy.
    """
    rule, x, y = on_the_gpu(engine, layout, **options)
    captured = rule.fixed_sequence() and options.get("feedback_optimizer") != "adam"
    for second in (False, True):
        # Which trains a batch, and takes what is logged of it.
        with NothingFromTheHost() if captured and second else nullcontext():
            rule._learn(x, y)
    assert set(rule.engine.used.values()) == {used}
    states = [
        v for o in rule.feedback_optimizers.values() for s in o.state.values() for v in s.values() if v is not None
    ]
    assert {p.device.type for p in rule.parameters()} == {"cuda"}
    assert {v.device.type for v in states if v.dim()} <= {"cuda"}


class NothingFromTheHost(TorchDispatchMode):
    """As a capture does: raises where something is copied from the host to the device or back."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        given, made = (
            {t.device.type for t in tree_leaves(of) if isinstance(t, torch.Tensor)}
            for of in ((arguments, named), result)
        )
        if {"cpu", "cuda"} <= given | made:
            raise RuntimeError(f"{function} copies between host and device")
        return result


def test_copies_between_host_and_device_are_noticed(fake):
    with NothingFromTheHost():
        torch.empty(3, device="cuda") + 1.0
        for copy in (lambda: torch.empty(3).to("cuda"), lambda: torch.empty(3, device="cuda").copy_(torch.empty(3))):
            with pytest.raises(RuntimeError, match="between host and device"):
                copy()
    rule, x, y = on_the_gpu("auto", torch.contiguous_format, **EXPECTED)
    rule._learn(x, y)
    # Rates that are new on the device.
    rule.feedback_optimizers[2].param_groups[0]["lr"] = 0.02
    with NothingFromTheHost(), pytest.raises(RuntimeError, match="between host and device"):
        rule._learn(x, y)


def test_devices_that_meet_are_noticed(fake):
    with pytest.raises(RuntimeError, match="device"):
        torch.empty(3, device="cuda") + torch.empty(3)


class NoFloat64(TorchDispatchMode):
    """As a device without 64 bits does: raises where a tensor of them would lie on it."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, torch.Tensor) and (made.device.type, made.dtype) == ("cuda", torch.float64):
                raise TypeError("the device has no float64")
        return result


@pytest.mark.parametrize("options", [{}, {"feedback_iterations": [float("inf")]}, {"feedback_momentum": 0.0}])
def test_a_batch_in_expectation_needs_no_float64_of_its_device(fake, options, monkeypatch):
    for module in (dtp.feedback.momentum, dtp.algorithms.metrics):
        monkeypatch.setattr(module, "has_float64", lambda device: device.type == "cpu")
    rule, x, y = on_the_gpu("auto", torch.contiguous_format, **EXPECTED, **options)
    with NoFloat64():
        for _ in range(2):
            rule._learn(x, y)
    with pytest.raises(TypeError), NoFloat64():
        x.double()


def test_the_closed_form_on_the_host_gives_the_same_weights(monkeypatch):
    ends = []
    for known in (True, False):
        monkeypatch.setattr(dtp.feedback.momentum, "has_float64", lambda device, known=known: known)
        torch.manual_seed(0)
        network = LeNet(LeNetOptions(channels=[3, 4], hidden=8), (2, 12, 12), 5)
        rule = DTP(network, DTPOptions(**EXPECTED))
        rule.configure_optimizers()
        rule.training_batch(torch.randn(6, 2, 12, 12), torch.arange(6) % 5)
        ends.append([p.detach() for p in rule.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
