"""The recursion at fixed addresses: the same steps as the plain loop, and what happens when a capture is no good."""

import lightning.pytorch as pl
import pytest
import torch

from dtp.algorithms import DTP
from dtp.algorithms.options import DTPOptions
from dtp.algorithms.target_propagation import RulePhase
from dtp.errors import UserError
from dtp.feedback import ReducedLDRL
from dtp.feedback.graphs import MOST_GRAPHS, RecursionGraph, even_parts, plain, time_graph
from dtp.feedback.steppers import capturable_stepper, prepare_state, stepper
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
    try:
        raise RuntimeError("operation not permitted when stream is capturing")
    finally:
        # As the end of a capture does then.
        raise RuntimeError("operation failed due to a previous error during capture")


def wrong(function):
    def replay():
        function()
        function()

    return replay


def with_captures(rule: DTP, capture) -> DTP:
    """``rule`` with graphs that ``capture`` makes."""
    for n, optimizer in rule.feedback_optimizers.items():
        rule.engine._graphs[n] = RecursionGraph(tuple(rule.feedback[n].parameters()), optimizer, capture)
    return rule


def test_a_capture_that_is_wrong_leaves_the_plain_recursion_and_says_so():
    expected, rule = train(make_rule("literal")), with_captures(make_rule("graph"), wrong)
    with pytest.warns(UserWarning, match="differs from the plain"):
        found = train(rule)
    assert relative(found, expected) < 1e-10


def test_a_capture_that_fails_ends_in_one_sentence_without_touching_the_device_again():
    """What CUDA leaves behind is still in capture, so not even the weights may be copied back."""
    rule, after = with_captures(make_rule("graph"), failing), []

    def fails_and_looks(function):
        after.append([p._version for p in rule.parameters()])
        failing(function)

    with_captures(rule, fails_and_looks)
    with pytest.raises(
        UserError, match=r"could not be captured .*\(operation not permitted .*\); use --engine reduced"
    ):
        train(rule)
    assert [p._version for p in rule.parameters()] == after[0]


class OneBatch(torch.utils.data.Dataset):
    """Four images, for a fit of one batch."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.full((1, 12, 12), float(i)), i


def test_graphs_do_not_outlive_the_fit_that_made_them(tmp_path):
    rule, made = make_rule("graph").float(), []
    for _ in range(2):
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(rule, torch.utils.data.DataLoader(OneBatch(), batch_size=4))
        assert not rule.engine._graphs and set(rule.engine.used.values()) == {"graph"}
    # Nor does one that was made before it, or by a fit that ended with an error.
    with_captures(rule, made.append)
    rule.trainer = trainer
    rule.on_fit_start()
    assert not rule.engine._graphs and not made


def test_a_graph_is_refused_where_the_number_of_iterations_is_not_known():
    with pytest.raises(UserError, match=r"--engine graph: how many iterations --feedback-stop-distance"):
        make_rule("graph", feedback_stop_distance=0.2)


def test_a_graph_is_refused_for_a_rule_with_a_step_of_its_own():
    class Clipped(DTP):
        def on_before_optimizer_step(self, optimizer):
            super().on_before_optimizer_step(optimizer)

    rule = make_rule("graph")
    with pytest.raises(UserError, match="with --clip-each, or in a rule's own way"):
        Clipped(rule.network, DTPOptions(engine="graph"))
    clipped = Clipped(rule.network, DTPOptions()).double()
    clipped.configure_optimizers()
    clipped.training_batch(*make_batch(rule.network, 4))
    assert set(clipped.describe()["feedback_engines"].values()) == {"reduced"}


def test_optimizers_that_cannot_be_captured_step_plainly_with_the_same_numbers():
    class Dampened(DTP):
        def feedback_optimizer_list(self):
            made = super().feedback_optimizer_list()
            for optimizer in made:
                optimizer.param_groups[0]["dampening"] = 0.5
            return made

    found = []
    for engine in ("literal", "graph"):
        rule = make_rule(engine)
        rule = Dampened(rule.network, rule.options).double()
        rule.feedback.load_state_dict(make_rule(engine).feedback.state_dict())
        rule.configure_optimizers()
        found.append(train(rule))
    assert relative(*found) < 1e-10 and set(rule.engine.used.values()) == {"reduced"}


def test_adam_steps_of_a_graph_are_those_of_torch():
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4, dtype=torch.float64) for _ in range(30)]
    ends = []
    for captured in (False, True):
        p = torch.nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
        optimizer = torch.optim.Adam([p], lr=0.1, betas=(0.8, 0.99), weight_decay=0.1)
        if captured:
            prepare_state(optimizer, [p])
        step = capturable_stepper(optimizer, [p]) if captured else stepper(optimizer)
        for gradient in gradients:
            step([gradient.clone()])
        ends.append(p.detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=1e-13)


def test_graphs_of_many_batch_sizes_do_not_pile_up():
    rule = make_rule("graph")
    for size in range(3, 10):
        rule.training_batch(*make_batch(rule.network, size))
    assert all(len(graph._replays) <= MOST_GRAPHS for graph in rule.engine._graphs.values())


def test_plain_gives_the_function_itself():
    assert plain(failing) is failing


@pytest.mark.parametrize("options", [{}, {"feedback_optimizer": "adam", "feedback_lr": [1e-3]}])
@pytest.mark.parametrize("batches", [0, 2])
def test_layers_are_weighed_in_the_form_that_will_run_and_nothing_is_left_of_it(options, batches, monkeypatch):
    """Replayed graphs take less of what launches cost, so that the reduced form would weigh small layers too much."""
    timed = []
    monkeypatch.setattr(
        "dtp.feedback.engine.time_graph", lambda p, *given: timed.append(p.layer) or time_graph(p, *given)
    )
    weighed, other = (make_rule("graph", **options) for _ in range(2))
    for rule in (weighed, other):
        train(rule, batches)
    states = [optimizer.state_dict() for optimizer in weighed.feedback_optimizers.values()]
    states = [{k: {n: v.clone() for n, v in s.items()} for k, s in d["state"].items()} for d in states]
    phase = RulePhase(weighed, weighed.activations(batch(weighed)[0]))
    costs = phase.costs(shared=False)
    assert timed == [2, 3, 4] and costs.keys() == {2, 3, 4} and min(costs.values()) > 0
    found = [optimizer.state_dict()["state"] for optimizer in weighed.feedback_optimizers.values()]
    for before, after in zip(states, found, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(v, after[k][n]) for k, s in before.items() for n, v in s.items())
    assert not weighed.engine._graphs
    # Where ranks share layers they are not captured.
    with pytest.raises(UserError, match="several devices"):
        phase.costs(shared=True)
    weighed.engine.name = "auto"
    assert phase.costs(shared=True).keys() == {2, 3, 4} and timed == [2, 3, 4]
    weighed.engine.name = "graph"
    assert torch.equal(train(weighed, 2), train(other, 2))
