"""dtp on the mean over its noise probes, on several devices: ranks add a few means, and take the same steps."""

import pytest
import torch

from dtp.errors import UserError
from dtp.feedback import NotExpected
from tests.algorithms.helpers import make, make_trained, small_network, state
from tests.distributed.ranks import batches_of, counted_sums, fit, sums_of_batches, train_on_ranks

ITERATIONS = [20, 30, float("inf")]


def rule_of(**options):
    torch.manual_seed(0)
    network = small_network("dtp", "lenet")
    options = {"routing": "fixed", "lr_schedule": "constant", **options}
    trained = make if "schedule" in options else make_trained
    return trained("dtp", network.double(), probes="expected", **options).double()


def ended(folder, ranks, **options):
    """Weights and momenta after a few batches, by rank."""

    def train(trainer):
        rule = rule_of(**options)
        fit(trainer, rule, batches_of(rule.network, count=5))
        momenta = {
            f"{n}.{name}": value.clone()
            for n, optimizer in rule.feedback_optimizers.items()
            for values in optimizer.state.values()
            for name, value in values.items()
        }
        return {**state(rule), **momenta}

    return train_on_ranks(train, folder, ranks)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"feedback_iterations": ITERATIONS},
        {"feedback_iterations": [7], "feedback_slope": "clean", "feedback_weight_decay": 1e-3},
        {"feedback_optimizer": "adam", "feedback_lr": [1e-3], "feedback_iterations": [5]},
        {"engine": "literal", "feedback_iterations": [5, 7, 3]},
        {"ldrl_scale": "paper", "probe_nodes": 1},
        {"schedule": "parallel"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_ranks_give_the_weights_and_momenta_of_one_process(ranks, options, tmp_path):
    """To rounding, and bit for bit the same on all ranks."""
    (alone,) = ended(tmp_path, 1, **options)
    found = ended(tmp_path, ranks, **options)
    assert all(torch.equal(rank[name], found[0][name]) for rank in found for name in alone)
    assert max(float((found[0][n] - v).norm() / v.norm().clamp(min=1e-12)) for n, v in alone.items()) < 1e-9


@pytest.mark.parametrize("routing", ["fixed", "noisy"])
@pytest.mark.parametrize("engine", ["auto", "literal"])
def test_a_batch_takes_one_collective_of_a_few_numbers(routing, engine, tmp_path):
    """And one for the forward weights; whatever the number of iterations."""

    def train(trainer):
        rule = rule_of(engine=engine, feedback_iterations=[20, 30, 4], routing=routing)
        found = sums_of_batches(rule)
        fit(trainer, rule, batches_of(rule.network, count=5))
        return found, sum(p.numel() for p in rule.feedback.parameters())

    for found, weights in train_on_ranks(train, tmp_path, 2):
        assert all(len(sizes) == 2 for sizes in found)
        if routing == "fixed":
            # Two numbers for each of 25 taps and 4 channels of the convolution, and for each of 8 and 5 linear units.
            assert {sizes[0] for sizes in found} == {2 * (4 * 25 + 8 + 5)}
            assert found[0][0] < weights


def test_ranks_that_draw_their_first_term_stay_the_same(tmp_path):
    first, second = ended(tmp_path, 2, routing="noisy", noise_samples=3)
    assert all(torch.equal(first[name], second[name]) for name in first)
    (alone,) = ended(tmp_path, 1, routing="noisy", noise_samples=3)
    # Noise of their own: not those of one process.
    name = next(n for n in first if n.startswith("feedback") and n.endswith("weight"))
    assert 0 < (first[name] - alone[name]).norm() < 0.6 * alone[name].norm()


def test_layers_that_are_sampled_and_those_that_are_not_meet_each_in_their_way(tmp_path):
    """A rule of both: one collective for the means, and one for each iteration of what is sampled."""

    def train(trainer):
        rule = rule_of(feedback_iterations=[5])
        own = rule.expected_form

        def form(n):
            if n == 3:
                raise NotExpected("for this test")
            return own(n)

        rule.expected_form = form
        sizes = counted_sums()
        fit(trainer, rule, batches_of(rule.network, count=1))
        return state(rule), len(sizes), dict(rule.engine.used)

    (first, count, used), (second, _, _) = train_on_ranks(train, tmp_path, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert used == {2: "expected", 3: "reduced", 4: "expected"}
    assert count >= 1 + 5 + 1


@pytest.mark.parametrize(
    "strategy", [{"feedback_parallel": "layer"}, {"feedback_parallel": "hybrid"}, {"feedback_sync": "batch"}], ids=str
)
def test_other_ways_to_divide_are_refused(strategy, tmp_path):
    def train(trainer):
        rule = rule_of()
        with pytest.raises(UserError, match="--probes expected: expected --feedback-parallel data and.*step") as error:
            fit(trainer, rule, batches_of(rule.network, count=5))
        assert "\n" not in str(error.value)

    train_on_ranks(train, tmp_path, 2, **strategy)


def test_a_run_saved_on_two_ranks_goes_on_on_one_and_on_three(tmp_path):
    def save(trainer):
        rule = rule_of(feedback_iterations=ITERATIONS)
        fit(trainer, rule, batches_of(rule.network, count=5))
        trainer.save_checkpoint(tmp_path / "saved.ckpt")

    def go_on(trainer):
        rule = rule_of(feedback_iterations=ITERATIONS)
        trainer.fit_loop.max_epochs = 2
        fit(trainer, rule, batches_of(rule.network, count=5), ckpt_path=tmp_path / "saved.ckpt")
        return state(rule)

    train_on_ranks(save, tmp_path, 2)
    (alone,) = train_on_ranks(go_on, tmp_path, 1)
    for rank in train_on_ranks(go_on, tmp_path, 3):
        assert max(float((rank[n] - v).norm() / v.norm().clamp(min=1e-12)) for n, v in alone.items()) < 1e-9
