"""A batch that is captured once and replayed learns what it would have learned plainly."""

import gc
import random
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dtp.algorithms import BP, DTP
from dtp.algorithms.captured import PLAIN, CapturedBatches, _cuda_graph
from dtp.algorithms.options import AlgorithmOptions, DTPOptions
from dtp.errors import UserError
from dtp.models import VGG
from dtp.models.options import VGGOptions
from tests.algorithms.networks import Layers
from tests.algorithms.recorded import record


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """All is computed by torch, whose operations alone can be recorded."""
    monkeypatch.setattr("dtp.feedback.momentum._FEW", 0)


def made(kind, **options):
    torch.manual_seed(0)
    rule = kind(
        VGG(VGGOptions(channels=[4, 6]), (3, 8, 8), 10), (DTPOptions if kind is DTP else AlgorithmOptions)(**options)
    )
    rule.double().configure_optimizers()
    return rule


def batches(count=10, size=6):
    generator = torch.Generator().manual_seed(1)
    for i in range(count):
        rows = size if i % 4 != 3 else 2
        yield torch.randn(rows, 3, 8, 8, generator=generator).double(), torch.randint(10, (rows,), generator=generator)


class Recorder:
    """Stands in for CUDA graphs, and counts."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, function, generators):
        self.captures += 1
        recorded = record(function, generators)

        def replay():
            self.replays += 1
            recorded()

        return replay


EXPECTED = {"probes": "expected", "routing": "fixed"}
# The engine that a GPU has, and that on a CPU does the same without graphs.
DRAWN = {"engine": "graph", "feedback_iterations": [3, 2]}


@pytest.mark.parametrize(
    "kind, options",
    [
        (BP, {}),
        (DTP, EXPECTED),
        (DTP, {**EXPECTED, "feedback_warmup": 2}),
        (DTP, {"probes": "expected", "routing": "noisy", "noise_samples": 16}),
        (DTP, DRAWN),
        (DTP, {**DRAWN, "routing": "fixed", "noise_samples": 2, "feedback_momentum": 0.0}),
        (DTP, {**DRAWN, "feedback_warmup": 2}),
        (DTP, {**DRAWN, "feedback_iterations": [3, 0]}),
    ],
)
def test_replays_learn_what_plain_batches_do(kind, options):
    """Bit for bit, and draw the same noise, with other batches in between that are not replayed."""
    plain, replayed, capture = made(kind, **options), made(kind, **options), Recorder()
    assert replayed.fixed_sequence()
    captured = replayed.captured(capture)
    for i, (x, y) in enumerate(batches()):
        if i == 6:
            for rule in (plain, replayed):
                rule.forward_optimizer.param_groups[0]["lr"] *= 0.5
        names, values = plain._learn(x, y)
        found_names, found = captured(x, y, replayed.kind_of_batch(), replayed.fixed_numbers())
        assert found_names == names and torch.equal(found, values)
    for a, b in zip(plain.parameters(), replayed.parameters(), strict=True):
        assert torch.equal(a, b)
    states, found = (rule.noise_streams.state_dict()["states"] for rule in (plain, replayed))
    assert states.keys() == found.keys() and all(torch.equal(states[n], found[n]) for n in states)
    assert bool(states) == (options.get("routing") == "noisy" or "engine" in options)
    # Batch 3 and 7 are short, the rate changes before batch 6, which is learned from plainly.
    if "feedback_warmup" not in options:
        assert (capture.captures, capture.replays) == (2, 7 - PLAIN)


def test_replays_by_hand_are_counted_as_batches():
    """Else a warm-up that is longer than the plain batches would never end."""
    rule = made(DTP, **EXPECTED, feedback_warmup=PLAIN + 3)
    captured, before = rule.captured(Recorder()), [p.clone() for p in rule.network.parameters()]
    x, y = next(batches())
    for i in range(1, PLAIN + 6):
        captured(x, y, rule.kind_of_batch(), rule.fixed_numbers())
        assert rule.batches_done == i
        still = all(torch.equal(a, b) for a, b in zip(before, rule.network.parameters(), strict=True))
        assert still == (i <= PLAIN + 3)


def test_another_rate_and_weights_at_other_addresses_are_captured_anew():
    rule, capture = made(DTP, **EXPECTED), Recorder()
    captured = CapturedBatches(rule._learn, capture)
    x, y = next(batches())
    for _ in range(PLAIN + 2):
        captured(x, y, None, rule.fixed_numbers())
    assert capture.captures == 1
    before = rule.fixed_numbers()
    rule.network[1][0].weight.data = rule.network[1][0].weight.data.clone()
    assert rule.fixed_numbers() != before


def node(parameter):
    """What autograd keeps for a weight as long as something refers to it, made anew otherwise."""
    return parameter.expand_as(parameter).grad_fn.next_functions[0][0]


@pytest.fixture
def uncollected():
    """In it dead cycles are left lying."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "kind, options",
    [
        (BP, {}),
        (BP, {"clip_norm": 1.0}),
        (BP, {"clip_each": 1.0}),
        (DTP, DRAWN),
        (DTP, EXPECTED),
        (DTP, {**EXPECTED, "feedback_slope": "clean"}),
        (DTP, {**DRAWN, "feedback_tracking": "kolen-pollack", "schedule": "parallel"}),
    ],
)
def test_a_batch_leaves_no_node_of_autograd_behind(kind, options, uncollected, monkeypatch):
    """It would belong to the stream of that batch, for which a capture on another may not wait."""
    rule, seen = made(kind, **options), []

    def mark(self, parameters, gradients):
        for parameter in self.forward_parameters:
            node(parameter).metadata["seen"] = True
        seen.append(True)

    monkeypatch.setattr(kind, "_require_gradients", mark)
    rule._learn(*next(batches()))
    assert seen and not any("seen" in node(parameter).metadata for parameter in rule.forward_parameters)


def test_nor_does_a_dead_cycle_hold_one_when_a_batch_is_captured(uncollected):
    rule, found = made(BP), []
    parameter = rule.forward_parameters[0]
    cycle = [node(parameter)]
    cycle.append(cycle)
    cycle[0].metadata["seen"] = True
    del cycle

    def capture(function, generators):
        found.append("seen" in node(parameter).metadata)
        return record(function, generators)

    captured = CapturedBatches(rule._learn, capture)
    x, y = next(batches())
    for _ in range(PLAIN + 1):
        assert "seen" in node(parameter).metadata
        captured(x, y, None, None)
    assert found == [False]


def test_one_graph_is_held_at_a_time():
    rule, capture, held = made(BP), Recorder(), []
    captured = CapturedBatches(rule._learn, lambda *given: held.append(captured._graph) or capture(*given))
    x, y = next(batches())
    for values in (0, 1, 0):
        for _ in range(PLAIN + 2):
            captured(x, y, None, values)
    # None when another is made, which needs the memory of the one before.
    assert held == [None] * 3 and capture.captures == 3 and captured._graph is not None
    captured.forget()
    assert captured._graph is None


def test_generators_of_a_checkpoint_are_captured_anew():
    """A graph would go on with those that it was made with."""
    rule, capture = made(DTP, **DRAWN), Recorder()
    captured = rule.captured(capture)
    x, y = next(batches())
    for _ in range(PLAIN + 2):
        captured(x, y, None, None)
    assert capture.captures == 1
    rule.noise_streams.load_state_dict(rule.noise_streams.state_dict())
    # In the first nothing was drawn from them yet, in the second they are new.
    for captures in (1, 1, 2):
        captured(x, y, None, None)
        assert capture.captures == captures


def test_what_changes_with_every_batch_is_never_captured():
    """A capture takes as long as many batches; and what a new rate needs on the device is not yet there."""
    rule, capture = made(BP), Recorder()
    captured = CapturedBatches(rule._learn, capture)
    x, y = next(batches())
    for values in range(PLAIN + 4):
        captured(x, y, None, values)
    assert capture.captures == 0
    for _ in range(2):
        captured(x, y, None, values)
    assert (capture.captures, capture.replays) == (1, 2)
    # The rest of an epoch leaves the graph.
    captured(x[:2], y[:2], None, values)
    captured(x, y, None, values)
    assert (capture.captures, capture.replays) == (1, 3)


def test_what_draws_from_an_unknown_generator_is_not_captured():
    rule = made(DTP, **DRAWN)
    rule.engine.whole_batches = True
    captured = CapturedBatches(rule._learn, lambda function, generators: record(function))
    x, y = next(batches())
    for _ in range(PLAIN):
        captured(x, y, None, None)
    with pytest.raises(UserError, match=r"Offset increment .*--resume auto --capture no"):
        captured(x, y, None, None)


def test_generators_are_registered_before_the_capture_begins(monkeypatch):
    """Later torch takes none: a replay would draw the same numbers each time."""
    done = []

    class Graph:
        register_generator_state = staticmethod(lambda generator: done.append(("known", generator)))
        replay = staticmethod(lambda: done.append("replay"))

    @contextmanager
    def graph(made, capture_error_mode):
        done.append(("begin", capture_error_mode))
        yield
        done.append("end")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    some = [torch.Generator(), torch.Generator()]
    _cuda_graph(lambda: done.append("function"), some)()
    assert done == [*(("known", one) for one in some), ("begin", "thread_local"), "function", "end", "replay"]


@pytest.mark.parametrize("whole", [False, True])
def test_layers_have_graphs_of_their_own_only_where_the_batch_is_not_captured(whole):
    rule, (x, y) = made(DTP, **DRAWN), next(batches())
    rule.engine.whole_batches = whole
    rule._learn(x, y)
    assert [bool(graph._replays) for graph in rule.engine._graphs.values()] == [not whole] * 2
    assert set(rule.engine.used.values()) == {"graph"}
    said = "in batches replayed as one graph" if whole else "its recursion replayed as one graph"
    assert all(said in form for form in rule.feedback_forms().values())


def test_only_rules_that_do_the_same_on_every_batch_are_captured():
    assert made(BP).fixed_sequence() and made(DTP, **EXPECTED).fixed_sequence()
    assert made(DTP, engine="graph").fixed_sequence()
    # As asked, or as on a CPU.
    assert not any(made(DTP, engine=engine).fixed_sequence() for engine in ("auto", "literal", "reduced"))
    # Of another sequence in every batch, or of a loss that is differentiated as it is written.
    assert not made(DTP, routing="fixed", feedback_stop_distance=0.1).fixed_sequence()
    hooked = made(DTP, engine="graph")
    hooked.feedback[2].register_forward_hook(lambda *_: None)
    assert not hooked.fixed_sequence()

    class Mine(DTP):
        """May do anything on the host."""

    network = VGG(VGGOptions(channels=[4, 6]), (3, 8, 8), 10)
    assert not Mine(network, DTPOptions(**EXPECTED)).fixed_sequence()
    assert not Mine(network, DTPOptions(engine="graph")).fixed_sequence()


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
    def fail(function, generators):
        try:
            raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture.\nand more")
        finally:
            # As the end of a capture does then.
            raise RuntimeError("operation failed due to a previous error during capture")

    rule = made(BP)
    captured = CapturedBatches(rule._learn, fail)
    x, y = next(batches())
    for _ in range(PLAIN):
        captured(x, y, None, None)
    with pytest.raises(UserError, match=r"\(Cannot copy between .* capture\); .* --capture no\."):
        try:
            raise ValueError("of the caller")
        except ValueError:
            captured(x, y, None, None)
