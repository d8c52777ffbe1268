"""Dividing the feedback phase: collectives, resume, refusals."""

import pytest
import torch
import torch.distributed as dist

from dtp.errors import UserError
from tests.algorithms.helpers import make, make_trained, small_network, state
from tests.distributed.ranks import fit, train_on_ranks

ITERATIONS = [3, 5, 2]
FORWARD = 1


def _batches(network, count=3, images=12):
    torch.manual_seed(5)
    shape, classes = network.input_shape, network.num_classes
    return [(torch.randn(images, *shape, dtype=torch.float64), torch.randint(classes, (images,))) for _ in range(count)]


def _rule(name="dtp", **options):
    torch.manual_seed(0)
    network = small_network(name, "lenet").double()
    return make_trained(name, network, lr_schedule="constant", **options).double()


def _collectives_of_a_batch(folder, ranks=2, engine="reduced", **strategy):
    """How many sums over ranks a batch takes, and of how many numbers, after the first batch."""

    def train(trainer):
        rule = _rule(engine=engine, feedback_iterations=ITERATIONS)
        sizes, original = [], dist.all_reduce

        def counting(tensor, *args, **kwargs):
            sizes.append(tensor.numel())
            return original(tensor, *args, **kwargs)

        batches, learn = [], rule.training_batch

        def batch(x, y):
            sizes.clear()
            result = learn(x, y)
            batches.append(list(sizes))
            return result

        rule.training_batch, dist.all_reduce = batch, counting
        fit(trainer, rule, _batches(rule.network))
        weights = {n: sum(p.numel() for p in rule.feedback[n].parameters()) for n in rule.trained_feedback}
        return batches[-1], weights, sum(p.numel() for p in rule.forward_parameters)

    return train_on_ranks(train, folder, ranks, **strategy)[0]


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
        fit(trainer, rule, _batches(rule.network))
        return state(rule)

    first, second = train_on_ranks(train, tmp_path, 2, feedback_sync="batch")
    (exact, _) = train_on_ranks(train, tmp_path, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    name = next(n for n in first if n.startswith("feedback") and n.endswith("weight"))
    assert not torch.equal(first[name], exact[name])
    assert (first[name] - exact[name]).norm() < 0.2 * exact[name].norm()


@pytest.mark.parametrize("mode", ["data", "layer", "hybrid"])
def test_losses_of_all_layers_are_known_on_every_rank(mode, tmp_path):
    def train(trainer):
        (
            rule,
            found,
        ) = _rule(feedback_iterations=ITERATIONS), []
        learn = rule.training_batch

        def batch(x, y):
            logits, scalars = learn(x, y)
            found.append({name: float(value) for name, value in scalars.items()})
            return logits, scalars

        rule.training_batch = batch
        fit(trainer, rule, _batches(rule.network))
        return found

    (alone,) = train_on_ranks(train, tmp_path, 1)
    ranks = train_on_ranks(train, tmp_path, 2, feedback_parallel=mode)
    assert all(set(scalars) == {f"feedback_loss_{n}" for n in (2, 3, 4)} for rank in ranks for scalars in rank)
    if mode != "data":
        for rank in ranks:
            assert [list(s.values()) for s in rank] == [pytest.approx(list(s.values())) for s in alone]


@pytest.mark.parametrize("ranks, after", [(2, 2), (2, 3), (2, 1), (3, 2)])
@pytest.mark.parametrize("mode", ["layer", "hybrid"])
def test_a_checkpoint_of_layers_on_ranks_goes_on_on_any_number_of_ranks(mode, ranks, after, tmp_path):
    """As one process would have: optimizer states and noise streams come from the rank that has each layer."""

    def begin(trainer):
        rule = _rule()
        fit(trainer, rule, _batches(rule.network))
        trainer.save_checkpoint(tmp_path / "saved.ckpt")

    def go_on(trainer):
        rule = _rule()
        trainer.fit_loop.max_epochs = 2
        strategy = trainer.strategy
        fit(trainer, rule, _batches(rule.network), ckpt_path=tmp_path / "saved.ckpt")
        assert trainer.global_step == 6
        return state(rule), getattr(getattr(strategy, "division", None), "costs", None)

    def at_once(trainer):
        rule = _rule()
        trainer.fit_loop.max_epochs = 2
        fit(trainer, rule, _batches(rule.network))
        return state(rule)

    train_on_ranks(begin, tmp_path, ranks, feedback_parallel=mode)
    (expected,) = train_on_ranks(at_once, tmp_path, 1)
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    for found, costs in train_on_ranks(go_on, tmp_path, after, feedback_parallel=mode):
        distance = max(float((found[n] - expected[n]).norm() / expected[n].norm()) for n in found)
        assert distance < 1e-9
        # Not measured again: the assignment of a run that goes on is what it was.
        assert costs is None or costs == saved["division"]["costs"]
    assert len(saved["noise"]) == 1


def test_a_checkpoint_of_two_ranks_by_images_goes_on_on_one_and_on_three(tmp_path):
    def begin(trainer):
        rule = _rule()
        fit(trainer, rule, _batches(rule.network))
        trainer.save_checkpoint(tmp_path / "saved.ckpt")

    def go_on(trainer):
        rule = _rule()
        trainer.fit_loop.max_epochs = 2
        fit(trainer, rule, _batches(rule.network), ckpt_path=tmp_path / "saved.ckpt")
        return state(rule), rule.noise_streams.normal(2, (4,), 1.0, torch.zeros(0))

    train_on_ranks(begin, tmp_path, 2)
    for after in (1, 3):
        found = train_on_ranks(go_on, tmp_path, after)
        assert all(torch.equal(found[0][0][n], other[0][n]) for other in found for n in other[0])
        noise = [tuple(drawn.tolist()) for _, drawn in found]
        assert len(set(noise)) == after


@pytest.mark.parametrize(
    "name, options, strategy, message",
    [
        ("bp", {}, {"feedback_parallel": "layer"}, "bp|BP.*no feedback layers.*use data"),
        ("fw-dtp", {"feedback_scale": 0.5}, {"feedback_parallel": "hybrid"}, "no feedback layers.*use data"),
        ("drl", {"feedback_iterations": [2]}, {"feedback_parallel": "layer"}, "others' weights.*use data"),
        ("dtp", {"feedback_stop_distance": 0.1}, {"feedback_parallel": "data"}, "--feedback-stop-distance"),
        ("dtp", {"engine": "graph"}, {"feedback_parallel": "data"}, "--engine graph.*use --engine auto"),
    ],
)
def test_what_cannot_be_divided_is_refused(name, options, strategy, message, tmp_path):
    def train(trainer):
        torch.manual_seed(0)
        network = small_network(name).double()
        rule = make(name, network, **options).double()
        with pytest.raises(UserError, match=message):
            fit(trainer, rule, _batches(network))

    train_on_ranks(train, tmp_path, 2, **strategy)


def test_layers_on_ranks_may_stop_early_as_one_process_does(tmp_path):
    def train(trainer):
        torch.manual_seed(0)
        rule = make_trained("dtp", small_network("dtp").double(), feedback_stop_distance=0.9).double()
        fit(trainer, rule, _batches(rule.network))
        return state(rule)

    (alone,) = train_on_ranks(train, tmp_path, 1)
    found = train_on_ranks(train, tmp_path, 2, feedback_parallel="layer")
    assert all(torch.equal(rank[name], alone[name]) for rank in found for name in alone)
