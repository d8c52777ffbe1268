"""Dividing the feedback phase: collectives, resume, refusals."""

import pytest
import torch
from torch import nn

from dtp.algorithms import DTP, VanillaDTP
from dtp.algorithms.target_propagation import RulePhase
from dtp.distributed import division
from dtp.distributed.assignment import Assignment, Team, by_layer
from dtp.distributed.division import ByImages, ByLayers, Division
from dtp.errors import UserError
from dtp.feedback import per_sample_dot
from tests.algorithms.helpers import make, make_trained, small_network, state
from tests.algorithms.networks import Layers
from tests.conftest import make_batch
from tests.distributed.ranks import PATIENCE, batches_of, fit, sums_of_batches, train_on_ranks

ITERATIONS = [3, 5, 2]
FORWARD = 1


def _rule(name="dtp", **options):
    torch.manual_seed(0)
    network = small_network(name, "lenet").double()
    trained = make if "schedule" in options else make_trained
    return trained(name, network, lr_schedule="constant", **options).double()


def _save(folder, ranks, **strategy):
    """Train for an epoch on so many ranks, and save."""

    def train(trainer):
        rule = _rule()
        fit(trainer, rule, batches_of(rule.network))
        trainer.save_checkpoint(folder / "saved.ckpt")

    train_on_ranks(train, folder, ranks, **strategy)


def _gone_on(trainer, folder):
    """A rule trained for another epoch from what was saved."""
    rule = _rule()
    trainer.fit_loop.max_epochs = 2
    fit(trainer, rule, batches_of(rule.network), ckpt_path=folder / "saved.ckpt")
    return rule


def _collectives_of_a_batch(folder, engine="reduced", **strategy):
    """How many sums over ranks a batch takes, and of how many numbers, after the first batch."""

    def train(trainer):
        rule = _rule(engine=engine, feedback_iterations=ITERATIONS)
        batches = sums_of_batches(rule)
        fit(trainer, rule, batches_of(rule.network))
        weights = {n: sum(p.numel() for p in rule.feedback[n].parameters()) for n in rule.trained_feedback}
        return batches[-1], weights, sum(p.numel() for p in rule.forward_parameters)

    return train_on_ranks(train, folder, 2, **strategy)[0]


@pytest.mark.parametrize("engine", ["literal", "reduced"])
def test_a_batch_takes_as_many_collectives_as_the_layer_with_most_iterations(engine, tmp_path):
    """And not as many as all layers have together; each holds the layers that still iterate, and nothing else."""
    sizes, weights, forward = _collectives_of_a_batch(tmp_path, engine=engine)
    assert len(sizes) == max(ITERATIONS) + FORWARD
    still = [[n for n, k in zip(weights, ITERATIONS, strict=True) if k > i] for i in range(max(ITERATIONS))]
    assert sizes[:-1] == [sum(weights[n] for n in layers) for layers in still]
    # With one number for each weight that may lack a gradient.
    assert forward < sizes[-1] < forward + 100


def test_once_per_batch_takes_one_collective(tmp_path):
    sizes, weights, _ = _collectives_of_a_batch(tmp_path, feedback_sync="batch")
    # Weights and momentum.
    assert sizes[:-1] == [2 * sum(weights.values())]


def test_layers_on_ranks_take_one_collective_for_weights_and_one_for_losses(tmp_path):
    sizes, weights, _ = _collectives_of_a_batch(tmp_path, feedback_parallel="layer")
    assert sizes[:-1] == [2 * sum(weights.values()), 2 * len(weights)]


def test_ranks_that_average_once_per_batch_stay_identical_but_are_not_one_process(tmp_path):
    def train(trainer):
        rule = _rule()
        fit(trainer, rule, batches_of(rule.network))
        return state(rule)

    first, second = train_on_ranks(train, tmp_path, 2, feedback_sync="batch")
    (exact, _) = train_on_ranks(train, tmp_path, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    name = next(n for n in first if n.startswith("feedback") and n.endswith("weight"))
    assert not torch.equal(first[name], exact[name])
    assert (first[name] - exact[name]).norm() < 0.2 * exact[name].norm()


@pytest.mark.parametrize("mode", ["data", "layer", "hybrid"])
def test_losses_of_all_layers_are_known_on_every_rank(mode, tmp_path):
    """Of a layer that a team shares too, to double precision."""

    def train(trainer):
        if trainer.world_size > 1:
            division.hybrid = _team_of_all
        rule, found = _rule(feedback_iterations=ITERATIONS), []
        learn = rule.training_batch

        def batch(x, y):
            logits, scalars = learn(x, y)
            found.append({name: float(value) for name, value in scalars.items()})
            return logits, scalars

        rule.training_batch = batch
        fit(trainer, rule, batches_of(rule.network))
        return found

    (alone,) = train_on_ranks(train, tmp_path, 1)
    ranks = train_on_ranks(train, tmp_path, 2, feedback_parallel=mode)
    assert all(set(scalars) == {f"feedback_loss_{n}" for n in (2, 3, 4)} for rank in ranks for scalars in rank)
    if mode != "data":
        for rank in ranks:
            assert [list(s.values()) for s in rank] == [pytest.approx(list(s.values()), rel=1e-9) for s in alone]


def test_teams_are_weighed_by_what_was_measured_of_teams(tmp_path):
    """Each layer by one rank alone and by several, and the meetings of the layer with most iterations."""

    def train(trainer):
        weighed, groups, new_group = [], [], division.dist.new_group

        def plan(*measured):
            weighed.append(measured)
            return _team_of_all(*measured)

        def group(ranks, timeout):
            groups.append((ranks, timeout))
            return new_group(ranks, timeout=timeout)

        division.hybrid, division.dist.new_group, division.time_average = plan, group, lambda parameters: 0.25
        RulePhase.costs = lambda self, shared: {n: n + 0.5 * shared for n in self.layers}
        rule = _rule(feedback_iterations=ITERATIONS)
        fit(trainer, rule, batches_of(rule.network))
        return weighed, groups

    for weighed, groups in train_on_ranks(train, tmp_path, 2, feedback_parallel="hybrid"):
        assert weighed == [({2: 2, 3: 3, 4: 4}, 2, 0.25 * max(ITERATIONS), {2: 2.5, 3: 3.5, 4: 4.5})]
        assert groups == [((0, 1), PATIENCE)]


@pytest.mark.parametrize(
    "mode, ranks, after",
    [("layer", 2, 1), ("layer", 2, 3), ("layer", 3, 2), ("hybrid", 2, 2), ("hybrid", 3, 2), ("hybrid", 2, 1)],
)
def test_a_checkpoint_of_layers_on_ranks_goes_on_on_any_number_of_ranks(mode, ranks, after, tmp_path):
    """As one process would have: optimizer states and noise streams come from the rank that has each layer."""

    def go_on(trainer):
        rule = _rule()
        trainer.fit_loop.max_epochs = 2
        fit(trainer, rule, batches_of(rule.network), ckpt_path=tmp_path / "saved.ckpt")
        assert trainer.global_step == 6
        return state(rule), rule.division.state_dict()

    def at_once(trainer):
        rule = _rule()
        trainer.fit_loop.max_epochs = 2
        fit(trainer, rule, batches_of(rule.network))
        return state(rule)

    _save(tmp_path, ranks, feedback_parallel=mode)
    (expected,) = train_on_ranks(at_once, tmp_path, 1)
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    for found, learned in train_on_ranks(go_on, tmp_path, after, feedback_parallel=mode):
        distance = max(float((found[n] - expected[n]).norm() / expected[n].norm()) for n in found)
        assert distance < 1e-9
        # Not measured again: the assignment of a run that goes on is what it was. But more ranks take longer to meet.
        same = saved["division"].keys() if after == ranks else {"costs", "shared_costs"}
        assert after == 1 or all(learned[name] == saved["division"][name] for name in same)
        assert after == 1 or learned["meeting_ranks"] == (after if mode == "hybrid" else 0)
    assert len(saved["noise"]) == 1


def test_a_checkpoint_of_two_ranks_by_images_goes_on_on_one_and_on_three(tmp_path):
    def go_on(trainer):
        rule = _gone_on(trainer, tmp_path)
        return state(rule), rule.noise_streams.normal(2, (4,), 1.0, torch.zeros(0))

    _save(tmp_path, 2)
    for after in (1, 3):
        found = train_on_ranks(go_on, tmp_path, after)
        assert all(torch.equal(found[0][0][n], other[0][n]) for other in found for n in other[0])
        noise = [tuple(drawn.tolist()) for _, drawn in found]
        assert len(set(noise)) == after


@pytest.mark.parametrize(
    "name, options, strategy, message",
    [
        ("bp", {}, {"feedback_parallel": "layer"}, "BP has no feedback layers.*use data"),
        ("fw-dtp", {"feedback_scale": 0.5}, {"feedback_parallel": "hybrid"}, "no feedback layers.*use data"),
        ("drl", {"feedback_iterations": [2]}, {"feedback_parallel": "layer"}, "others' weights.*use data"),
        ("dtp", {"feedback_stop_distance": 0.1}, {"feedback_parallel": "data"}, "--feedback-stop-distance"),
        ("dtp", {"feedback_stop_distance": 0.1}, {"feedback_parallel": "hybrid"}, "--feedback-stop-distance"),
        ("dtp", {"feedback_stop_distance": 0.1}, {"feedback_sync": "batch"}, "--feedback-stop-distance"),
        ("dtp", {"engine": "graph"}, {"feedback_parallel": "data"}, "--engine graph.*use --engine auto"),
        ("dtp", {"engine": "graph"}, {"feedback_parallel": "hybrid"}, "--engine graph.*use --engine auto"),
    ],
)
def test_what_cannot_be_divided_is_refused(name, options, strategy, message, tmp_path):
    def train(trainer):
        torch.manual_seed(0)
        network = small_network(name).double()
        rule = make(name, network, **options).double()
        with pytest.raises(UserError, match=message):
            fit(trainer, rule, batches_of(network))

    train_on_ranks(train, tmp_path, 2, **strategy)


@pytest.mark.parametrize("mode", ["layer", "hybrid"])
@pytest.mark.parametrize("shares", [True, False])
def test_a_loader_that_gives_ranks_different_images_is_refused_where_all_are_to_have_all_images(shares, mode, tmp_path):
    """To each its share, as Lightning makes of a user's own loader, or all of them in an order of its own."""
    message = "expected all images on every rank.*use_distributed_sampler=False"

    def train(trainer):
        rule = _rule()
        x, y = (torch.cat(parts) for parts in zip(*batches_of(rule.network), strict=True))
        images = torch.utils.data.TensorDataset(x, y)
        if shares:
            sampler = torch.utils.data.DistributedSampler(images, trainer.world_size, trainer.global_rank)
        else:
            own = torch.Generator().manual_seed(trainer.global_rank)
            sampler = torch.utils.data.RandomSampler(images, generator=own)
        with pytest.raises(UserError, match=message if shares else "expected the same images on every rank"):
            trainer.fit(rule, torch.utils.data.DataLoader(images, 12, sampler=sampler))

    train_on_ranks(train, tmp_path, 2, feedback_parallel=mode)


@pytest.mark.parametrize("distance, init", [(0.9, "random"), (0.3, "symmetric")])
def test_layers_on_ranks_may_stop_early_as_one_process_does(distance, init, tmp_path):
    """Also before the first step, when there is no momentum yet."""
    options = {"feedback_stop_distance": distance, "feedback_init": init, "lr": 0.3}

    def train(trainer):
        torch.manual_seed(0)
        rule = make_trained("dtp", small_network("dtp").double(), **options).double()
        fit(trainer, rule, batches_of(rule.network, count=12))
        return state(rule)

    (alone,) = train_on_ranks(train, tmp_path, 1)
    found = train_on_ranks(train, tmp_path, 2, feedback_parallel="layer")
    assert all(torch.equal(rank[name], alone[name]) for rank in found for name in alone)


def _team_of_all(costs, ranks, meeting, shared):
    return Assignment(costs, ranks, (Team(tuple(range(ranks)), tuple(costs)),))


def _first_alone_others_together(costs, ranks, meeting, shared):
    first, *others = costs
    return Assignment(costs, ranks, (Team((0,), (first,)), Team(tuple(range(1, ranks)), tuple(others))))


SETTINGS = {
    "sgd": {},
    "adam": {"feedback_optimizer": "adam", "feedback_lr": [1e-3], "feedback_weight_decay": 1e-2},
    "lee": {"feedback_optimizer": "lee-rmsprop", "feedback_lr": [1e-3]},
    "samples": {"noise_samples": 3, "feedback_iterations": [3, 0, 2]},
    "literal": {"engine": "literal"},
    "parallel": {"schedule": "parallel"},
    "warmup": {"feedback_warmup": 1},
    "clipped": {"clip_norm": 0.01},
}


# A mixed plan has both a layer on one rank and a team, so the others are tried with what they do in another order.
@pytest.mark.parametrize(
    ("setting", "plan"),
    [
        *((setting, _first_alone_others_together) for setting in SETTINGS),
        *((setting, _team_of_all) for setting in ("sgd", "samples", "literal")),
        *((setting, None) for setting in ("sgd", "adam", "parallel")),
    ],
)
def test_teams_of_uneven_shares_give_the_weights_of_one_process(setting, plan, tmp_path):
    """13 images on two or three ranks; whatever the optimizer, the engine and the order of the phases."""
    ranks = 2 if plan is _team_of_all else 3

    def train(trainer):
        if plan is not None and trainer.world_size > 1:
            division.hybrid = plan
        rule = _rule(**SETTINGS[setting]).to(memory_format=torch.channels_last)
        fit(trainer, rule, batches_of(rule.network, images=13))
        return state(rule)

    (alone,) = train_on_ranks(train, tmp_path, 1)
    found = train_on_ranks(train, tmp_path, ranks, feedback_parallel="layer" if plan is None else "hybrid")
    for rank in found:
        assert all(torch.equal(rank[name], found[0][name]) for name in rank)
        assert max(float((rank[n] - alone[n]).norm() / alone[n].norm()) for n in rank) < 1e-9


def test_no_team_has_more_ranks_than_a_batch_has_images_and_one_rank_says_who_has_none(tmp_path):
    def train(trainer):
        rule, said = _rule(), []
        if trainer.world_size > 1:
            trainer.strategy.division.say = said.append
        fit(trainer, rule, batches_of(rule.network, images=1))
        return state(rule), said

    ((alone, _),) = train_on_ranks(train, tmp_path, 1)
    (first, told), (second, silent) = train_on_ranks(train, tmp_path, 2, feedback_parallel="hybrid")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert max(float((first[n] - alone[n]).norm() / alone[n].norm()) for n in alone) < 1e-9
    (line,) = told
    assert "layers 2, 3, 4 on rank 0 (100% of the work); 1 rank without a layer: balance 50%" in line and not silent


@pytest.mark.parametrize("plan, ranks", [(_team_of_all, 2), (_first_alone_others_together, 3)])
def test_a_batch_too_small_for_a_team_is_refused_on_every_rank(plan, ranks, tmp_path):
    def train(trainer):
        division.hybrid = plan
        rule = _rule()
        batches = batches_of(rule.network)
        x, y = batches[-1]
        with pytest.raises(UserError, match="at least 2 images.*found 1"):
            fit(trainer, rule, [*batches[:-1], (x[:1], y[:1])])

    train_on_ranks(train, tmp_path, ranks, feedback_parallel="hybrid")


@pytest.mark.parametrize("mode", ["layer", "hybrid"])
def test_no_iterations_leave_nothing_to_divide(mode, tmp_path):
    def train(trainer):
        rule = _rule(feedback_iterations=[0])
        fit(trainer, rule, batches_of(rule.network))

    train_on_ranks(train, tmp_path, 2, feedback_parallel=mode)


class Alone:
    """A feedback phase of layers that one process can only train by itself."""

    layers, images = (2, 3), 8

    def alone(self):
        return "alone"


@pytest.mark.parametrize("kind", [Division, ByImages, lambda: ByLayers(teams=False), lambda: ByLayers(teams=True)])
def test_one_process_trains_as_the_rule_does_by_itself(kind):
    assert kind().train(Alone()) == "alone"


def test_only_ranks_with_images_of_their_own_have_noise_of_their_own():
    assert Division().noise_states(["first", "second"]) == ["first"]
    assert ByImages().noise_states(["first", "second"]) == ["first", "second"]
    assert not Division().divides and ByImages().divides and ByLayers(teams=False).divides


def _turned(costs, ranks, *meeting):
    """Layers in turn to the ranks, where fewer are left to other ranks than before."""
    layers = [tuple(n for i, n in enumerate(costs) if (i + len(costs)) % ranks == rank) for rank in range(ranks)]
    return Assignment(costs, ranks, tuple(Team((rank,), own) for rank, own in enumerate(layers)))


def _to_teams(costs, ranks, meeting, shared):
    """All layers to a team of all ranks; where fewer are left, to the last."""
    return Assignment(costs, ranks, (Team(tuple(range(ranks)) if len(costs) == 3 else (ranks - 1,), tuple(costs)),))


@pytest.mark.parametrize("mode, plan", [("layer", _turned), ("hybrid", _turned), ("hybrid", _to_teams)])
def test_layers_that_others_take_over_go_on_as_in_one_process(mode, plan, tmp_path):
    """Where feedback is frozen or thawed the ranks share anew: optimizer states and noise come from who had it."""

    def train(trainer):
        if trainer.world_size > 1:
            division.by_layer = division.hybrid = plan
        rule = _rule()
        learn, taken = rule.training_batch, []

        def batch(x, y):
            rule.feedback[3].requires_grad_(len(taken) not in (0, 3))
            taken.append(x)
            return learn(x, y)

        rule.training_batch = batch
        fit(trainer, rule, batches_of(rule.network, count=5))
        return state(rule)

    (alone,) = train_on_ranks(train, tmp_path, 1)
    for found in train_on_ranks(train, tmp_path, 2, feedback_parallel=mode):
        assert max(float((found[n] - alone[n]).norm() / alone[n].norm()) for n in alone) < 1e-9


@pytest.mark.parametrize("mode", ["layer", "hybrid"])
def test_layers_that_others_take_over_in_a_second_fit_go_on_as_in_one_process(mode, tmp_path):
    def train(trainer):
        if trainer.world_size > 1:
            division.by_layer = division.hybrid = _turned
        rule = _rule()
        images = batches_of(rule.network, count=3)
        for trained in (False, True):
            rule.feedback[3].requires_grad_(trained)
            fit(trainer, rule, images)
            trainer.fit_loop.max_epochs += 1
        return state(rule)

    (alone,) = train_on_ranks(train, tmp_path, 1)
    for found in train_on_ranks(train, tmp_path, 2, feedback_parallel=mode):
        assert max(float((found[n] - alone[n]).norm() / alone[n].norm()) for n in alone) < 1e-9


class Quiet(VanillaDTP):
    """A rule without noise."""

    def feedback_noise(self, n, activations):
        return ()

    def feedback_loss(self, n, activations, noise):
        a = activations
        error = self.feedback[n](a.s[n], a.contexts[n]) - a.s[n - 1]
        return per_sample_dot(error, error)


class OwnStep(DTP):
    """A rule whose steps are its own."""

    def step(self, optimizer, parameters, gradients):
        super().step(optimizer, parameters, gradients)


class LopsidedNoise(DTP):
    """Noise that has no row for each image."""

    def feedback_noise(self, n, activations):
        return tuple(noise[:-1] for noise in super().feedback_noise(n, activations))


class Tied(DTP):
    """Two feedback layers with one weight."""

    def make_feedback(self):
        feedback = super().make_feedback()
        first, second = (next(m for m in feedback[n].modules() if "weight" in m._parameters) for n in (2, 3))
        second.weight = first.weight
        return feedback


def test_a_rule_without_noise_is_saved(tmp_path):
    def train(trainer):
        torch.manual_seed(0)
        rule = Quiet(small_network("dtp"), Quiet.Options(schedule="sequential")).double()
        fit(trainer, rule, batches_of(rule.network))
        trainer.save_checkpoint(tmp_path / "saved.ckpt")

    train_on_ranks(train, tmp_path, 2, feedback_parallel="layer")
    assert torch.load(tmp_path / "saved.ckpt", weights_only=True)["noise"][0]["states"] == {}


def test_a_checkpoint_keeps_the_noise_of_each_layer_as_its_rank_has_drawn_it_and_which_is_common():
    told = ByLayers(teams=False)
    told.assignment = by_layer({2: 1.0, 3: 1.0}, 2)
    # What belongs to no layer of the division is the same on all ranks.
    first = {"seed": 5, "epoch": 0, "states": {1: "all", 2: "first", 3: "early"}, "common": [1]}
    second = {"seed": 5, "epoch": 0, "states": {1: "all", 2: "early", 3: "second"}, "common": [3]}
    states = {1: "all", 2: "first", 3: "second"}
    assert told.noise_states([first, second]) == [{"seed": 5, "epoch": 0, "states": states, "common": [1, 3]}]


@pytest.mark.parametrize(
    "kind, mode, message",
    [
        (OwnStep, "layer", "OwnStep has a step of its own.*use data"),
        (LopsidedNoise, "hybrid", "one row for each of 12 images.*fix the rule's feedback_noise"),
        (Tied, "layer", "share weights.*use data"),
    ],
)
def test_a_rule_of_the_users_own_that_cannot_be_divided_is_told_so(kind, mode, message, tmp_path):
    def train(trainer):
        division.hybrid = _team_of_all
        # Not measured, for the noise has no right shape.
        division._of_first_rank = lambda function: {n: 1.0 for n in (2, 3, 4)}
        torch.manual_seed(0)
        square = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)]
        layers = [nn.Sequential(nn.Flatten(), nn.Linear(16, 8)), *square, nn.Sequential(nn.Linear(8, 5))]
        rule = kind(Layers(layers, (1, 4, 4)), kind.Options(engine="literal")).double()
        with pytest.raises(UserError, match=message):
            fit(trainer, rule, batches_of(rule.network))

    train_on_ranks(train, tmp_path, 2, feedback_parallel=mode)


def test_an_error_while_costs_are_measured_reaches_every_rank(tmp_path):
    def train(trainer):
        torch.manual_seed(0)
        rule = LopsidedNoise(small_network("dtp"), LopsidedNoise.Options(engine="literal")).double()
        with pytest.raises(
            RuntimeError, match="must match the size" if trainer.global_rank == 0 else "rank 0 could not"
        ):
            fit(trainer, rule, batches_of(rule.network))

    train_on_ranks(train, tmp_path, 2, feedback_parallel="layer")


MODES = [{"feedback_parallel": mode} for mode in ("data", "layer", "hybrid")] + [{"feedback_sync": "batch"}]


@pytest.mark.parametrize("before, after", [(0, 1), (1, 2), (2, 3), (3, 0)])
def test_a_run_goes_on_in_another_mode(before, after, tmp_path):
    def go_on(trainer):
        rule = _gone_on(trainer, tmp_path)
        assert trainer.global_step == 6
        return state(rule)

    _save(tmp_path, 2, **MODES[before])
    first, second = train_on_ranks(go_on, tmp_path, 2, **MODES[after])
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_one_trainer_trains_one_rule_after_another(mode, tmp_path):
    def train(trainer):
        for options in ({}, SETTINGS["adam"], {"feedback_iterations": [2, 0, 1]}):
            rule = _rule(**options)
            trainer.fit_loop.max_epochs += 1
            fit(trainer, rule, batches_of(rule.network))
        return state(rule)

    first, second = train_on_ranks(train, tmp_path, 2, **mode)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_loss_that_is_infinite_on_one_rank_stops_all(tmp_path):
    def train(trainer):
        rule = _rule("bp")
        learn, value = rule.training_batch, float("inf") if trainer.global_rank else 1.0
        rule.training_batch = lambda x, y: (learn(x, y)[0], {"own": torch.tensor(value)})
        with pytest.raises(UserError, match="Training diverged: own"):
            fit(trainer, rule, batches_of(rule.network))

    train_on_ranks(train, tmp_path, 2)


def test_without_a_trainer_a_rule_is_divided_as_it_is_told():
    class Counted(Division):
        phases = 0

        def train(self, phase):
            self.phases += 1
            return super().train(phase)

    network = small_network("dtp")
    rule, told = make_trained("dtp", network), Counted()
    rule.training_batch(*make_batch(network))
    rule.divide_by(told)
    rule.training_batch(*make_batch(network))
    assert rule.division is told and told.phases == 1
