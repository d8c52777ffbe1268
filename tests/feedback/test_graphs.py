"""The recursion at fixed addresses: the same steps as the plain loop, and what happens when a capture is no good."""

import pytest
import torch

from dtp.algorithms import DTP
from dtp.algorithms.options import DTPOptions
from dtp.errors import UserError
from dtp.feedback import ReducedLDRL
from dtp.feedback.graphs import RecursionGraph, even_parts, plain
from dtp.models import LeNet
from dtp.models.options import LeNetOptions
from tests.conftest import make_batch


def make_rule(engine: str, seed: int = 0, **options) -> DTP:
    torch.manual_seed(seed)
    network = LeNet(LeNetOptions(channels=[3, 4], hidden=8), (1, 12, 12), 5)
    settings = {"feedback_iterations": [7, 5, 6], "feedback_lr": [0.01], **options}
    rule = DTP(network, DTPOptions(engine=engine, **settings)).double()
    rule.configure_optimizers()
    return rule


def train(rule: DTP, batches: int = 3) -> torch.Tensor:
    torch.manual_seed(1)
    for _ in range(batches):
        rule.training_batch(*make_batch(rule.network, 6))
    return torch.cat([p.detach().flatten() for p in rule.parameters()])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"feedback_momentum": 0.0},
        {"feedback_weight_decay": 0.1},
        {"feedback_optimizer": "adam", "feedback_lr": [1e-3]},
        {"noise_samples": 2, "routing": "fixed", "ldrl_scale": "paper"},
        {"feedback_iterations": [0, 3, 1]},
    ],
)
def test_graph_engine_takes_the_steps_of_the_literal_form(options):
    literal, graph = make_rule("literal", **options), make_rule("graph", **options)
    before = torch.cat([p.detach().flatten() for p in graph.feedback.parameters()])
    expected, found = train(literal), train(graph)
    assert relative(found, expected) < 1e-10
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in graph.feedback.parameters()]))
    assert literal.noise_streams.state_dict()["states"].keys() == graph.noise_streams.state_dict()["states"].keys()


def test_losses_of_the_graph_engine_are_those_of_the_literal_form():
    rules = [make_rule(engine) for engine in ("literal", "graph")]
    for _ in range(3):
        expected, found = (rule.training_batch(*batch(rule))[1] for rule in rules)
        assert expected.keys() == found.keys() == {"feedback_loss_2", "feedback_loss_3", "feedback_loss_4"}
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=0)


def batch(rule):
    torch.manual_seed(3)
    return make_batch(rule.network, 6)


def test_each_shape_is_captured_once_and_replayed():
    captured = []

    def capture(function):
        captured.append(function)
        return function

    rule = make_rule("graph")
    for n, optimizer in rule.feedback_optimizers.items():
        parameters = tuple(rule.feedback[n].parameters())
        rule.engine._graphs[n] = RecursionGraph(parameters, optimizer, capture)
    train(rule, 4)
    assert len(captured) == 3
    torch.manual_seed(1)
    rule.training_batch(*make_batch(rule.network, 4))
    assert len(captured) == 6


def test_iterations_in_parts_by_memory_give_the_same_steps(monkeypatch):
    whole, parts = make_rule("graph"), make_rule("graph")
    assert {len(r.engine._graphs) for r in (whole, parts)} == {0}
    expected = train(whole)
    monkeypatch.setattr(ReducedLDRL, "bytes_per_iteration", lambda *arguments: 30 << 20)
    assert relative(train(parts), expected) < 1e-13
    # 64 MiB hold two such iterations: 7 = 1 + 2 + 2 + 2 come in two sizes.
    assert len(parts.engine._graphs[2]._replays) == 2 and len(whole.engine._graphs[2]._replays) == 1


@pytest.mark.parametrize(
    ("total", "most", "expected"), [(7, 2, [1, 2, 2, 2]), (6, 3, [3, 3]), (5, 9, [5]), (1, 1, [1]), (10, 4, [3, 3, 4])]
)
def test_parts_are_few_even_and_complete(total, most, expected):
    assert sorted(even_parts(total, most)) == sorted(expected)


def test_state_loaded_from_a_checkpoint_is_captured_anew():
    """A replay at the old addresses would step weights and momentum that nobody reads any more."""
    one, other = make_rule("graph"), make_rule("reduced")
    train(one, 2), train(other, 2)
    for rule in (one, other):
        for optimizer in rule.feedback_optimizers.values():
            optimizer.load_state_dict(optimizer.state_dict())
    assert relative(train(one, 2), train(other, 2)) < 1e-12


def failing(function):
    raise RuntimeError("operation not permitted when stream is capturing")


def wrong(function):
    def replay():
        function()
        function()

    return replay


@pytest.mark.parametrize(("capture", "words"), [(failing, "could not be captured"), (wrong, "differs from the plain")])
def test_a_capture_that_fails_or_is_wrong_leaves_the_plain_recursion_and_says_so(capture, words):
    expected, rule = train(make_rule("literal")), make_rule("graph")
    for n, optimizer in rule.feedback_optimizers.items():
        parameters = tuple(rule.feedback[n].parameters())
        rule.engine._graphs[n] = RecursionGraph(parameters, optimizer, capture)
    with pytest.warns(UserWarning, match=words):
        found = train(rule)
    assert relative(found, expected) < 1e-10


def test_a_graph_is_refused_where_the_number_of_iterations_is_not_known():
    with pytest.raises(UserError, match=r"--engine graph: how many iterations --feedback-stop-distance"):
        make_rule("graph", feedback_stop_distance=0.2)


def test_a_graph_is_refused_for_a_rule_with_a_step_of_its_own():
    class Clipped(DTP):
        def on_before_optimizer_step(self, optimizer):
            super().on_before_optimizer_step(optimizer)

    rule = make_rule("graph")
    with pytest.raises(UserError, match="a rule that steps in its own way"):
        Clipped(rule.network, DTPOptions(engine="graph"))
    assert Clipped(rule.network, DTPOptions()).describe()["engine"] == "reduced"


def test_plain_gives_the_function_itself():
    assert plain(failing) is failing
