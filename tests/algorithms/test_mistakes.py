"""Mistakes that rules tell in one sentence, and side effects that they must not have."""

import math

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dtp.algorithms import BP, FA, PEPITA, SDTP, VanillaDTP
from dtp.algorithms.base import Algorithm
from dtp.cli.train import main
from dtp.diagnostics.alignment import feedback_alignment, update_alignment
from dtp.errors import UserError
from dtp.feedback.direct import BroadcastMap
from dtp.models import LocallyConnected
from dtp.models.options import LocallyConnectedOptions
from tests.algorithms.helpers import make, make_trained, same, small_network, state
from tests.algorithms.networks import Layers
from tests.conftest import make_batch


def _normalised_output():
    """Batch normalisation within the output layer."""
    layers = [
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh()),
        nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 5)),
    ]
    return Layers(layers, (1, 4, 4))


@pytest.mark.parametrize("name", ["bp", "dtp", "vanilla-dtp", "tp", "sdtp", "hybrid", "drl", "ddtp-linear", "fa"])
def test_running_statistics_are_updated_once_per_batch(name):
    network = _normalised_output()
    rule = make_trained(name, network)
    for _ in range(3):
        rule.training_batch(*make_batch(network))
    assert int(network[2][0].num_batches_tracked) == 3


def test_auxiliary_outputs_refuse_a_normalised_output_layer():
    with pytest.raises(UserError, match="no normalisation in the output layer.*BatchNorm1d"):
        make("ao-sdtp", _normalised_output())


@pytest.mark.parametrize(
    "name", ["bp", "kp", "wm", "ccl", "dfa", "dtp", "parallel-dtp", "vanilla-dtp", "tp", "drl", "dfc"]
)
def test_a_rule_without_optimizers_does_not_pretend_to_learn(name, mlp):
    """Without a trainer nobody makes them; the batch went by and no weight had changed."""
    made = make_trained(name, mlp)
    rule = type(made)(mlp, made.options)
    with pytest.raises(UserError, match="no optimizers yet; call its configure_optimizers"):
        rule.training_batch(*make_batch(mlp))


@pytest.mark.parametrize(
    "options", [{"schedule": "alternating"}, {"feedback_warmup_epochs": 1}, {"extra_feedback_epochs": 1}]
)
def test_a_schedule_by_epochs_is_refused_where_nobody_counts_them(options, mlp):
    """All batches were of the first epoch: the forward weights never learned, or always."""
    rule = make("vanilla-dtp", mlp, **{"schedule": "sequential", **options})
    with pytest.raises(UserError, match="without a trainer nobody counts them"):
        rule.training_batch(*make_batch(mlp))


def test_a_schedule_by_epochs_is_followed_where_a_subclass_says_itself_what_time_it_is(mlp):
    """By a count of epochs of its own, or of batches in the hook."""

    class Counted(VanillaDTP):
        current_epoch = 0

    class ByBatches(VanillaDTP):
        def turns(self):
            return self.batches_done % 2 == 0, self.batches_done % 2 == 1

    first = state(mlp)
    # A trainer that has ended says it of what does not depend on later epochs.
    ended = VanillaDTP(mlp, schedule="sequential", feedback_warmup_epochs=1)
    trainer = Trainer(max_epochs=2, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.fit(ended, DataLoader(TensorDataset(*make_batch(mlp)), batch_size=3))
    assert ended.turns() == (True, True)
    for cls in (Counted, ByBatches):
        mlp.load_state_dict(first)
        rule, moved = cls(mlp, schedule="alternating"), []
        rule.configure_optimizers()
        for batch in range(2):
            if cls is Counted:
                rule.current_epoch = batch
            before = state(mlp)
            rule.training_batch(*make_batch(mlp))
            moved.append(not same(before, state(mlp)))
        assert moved == [False, True]


@pytest.mark.parametrize("name", ["sdtp", "ao-sdtp"])
def test_a_step_towards_the_label_has_no_size(name, mlp):
    """The label is the whole step, and the updates' distance to backprop's is told for it."""
    with pytest.raises(UserError, match="--beta: expected 1"):
        make(name, mlp, beta=0.7)
    rule = make(name, mlp)
    assert [rule.gradient_scale(n) for n in (1, mlp.depth)] == [1.0, 1.0] and isinstance(rule, SDTP)
    with pytest.raises(UserError, match="--loss squared: expected cross-entropy"):
        make(name, mlp, loss="squared")


@pytest.mark.parametrize("name", ["vanilla-dtp", "tp", "hybrid"])
def test_an_output_layer_without_a_target_learns_the_task(name, mlp):
    with pytest.raises(UserError, match="--output-loss mse.*penultimate"):
        make(name, mlp, first_target="penultimate", output_loss="mse")


@pytest.mark.parametrize("init, scale", [("default", 1 / math.sqrt(3 * 6 * 9)), ("xavier", math.sqrt(2 / (16 * 9)))])
def test_broadcast_maps_have_the_fans_of_a_transposed_convolution(init, scale):
    torch.manual_seed(0)
    found = torch.cat(
        [
            BroadcastMap(10, (6, 8, 8), nn.Conv2d(6, 4, 3), (4, 6, 6), init).transposed.weight.flatten()
            for _ in range(20)
        ]
    )
    assert float(found.detach().std()) == pytest.approx(scale, rel=0.03)


def test_orthogonal_feedback_of_a_locally_connected_layer_is_orthogonal_at_each_position():
    network = LocallyConnected(
        LocallyConnectedOptions(kernels=[3, 3], channels=[3, 4], strides=[2, 1], hidden=[8]), (2, 12, 12), 5
    )
    rule = make("fw-dtp", network, feedback_distribution="orthogonal", feedback_scale=0.5)
    local = [w for w in rule.feedback.parameters() if w.dim() == 3]
    assert local
    for matrices in local:
        assert torch.linalg.svdvals(matrices.detach()).sub(0.5).abs().max() < 1e-5


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("bp", {"lr": 1e-6, "lr_schedule": "cosine"}, "--lr-min: expected at most --lr, 1e-06"),
        ("bp", {"beta2": 0.9}, "--beta2, --eps: expected --optimizer adam"),
        ("dtp", {"feedback_eps": 1e-3}, "--feedback-eps: expected --feedback-optimizer adam"),
        ("dtp", {"beta": math.inf}, "--beta"),
        ("chl", {"gain": math.inf}, "--gain"),
        ("wm", {"mirror_noise": math.inf}, "--mirror-noise"),
        ("fw-dtp", {"feedback_scale": math.inf}, "--feedback-scale"),
        ("kp", {"lr": 0.1, "weight_decay": 30.0}, "--weight-decay: expected less than 1 / --lr, 10"),
    ],
)
def test_options_that_would_do_nothing_or_harm_are_refused(name, changes, message):
    with pytest.raises(UserError, match=message):
        make(name, small_network(name), **changes)


def test_fixed_feedback_too_small_for_the_network_is_told():
    with pytest.warns(UserWarning, match="--feedback-scale 0.001 is for networks with --standardise"):
        make("fw-dtp", small_network("fw-dtp"))


def test_a_network_of_one_layer_has_nothing_to_mirror():
    network = Layers([nn.Sequential(nn.Flatten(), nn.Linear(16, 5))], (1, 4, 4))
    make("wm", network).training_batch(*make_batch(network))


class Gradients(Algorithm):
    """A user's rule with gradients that do not fit."""

    def forward_gradients(self, x, y):
        return self(x).detach(), [torch.zeros(1) for _ in self.forward_parameters]


class TooFew(Algorithm):
    """One gradient is missing."""

    def forward_gradients(self, x, y):
        return self(x).detach(), [torch.zeros_like(p) for p in self.forward_parameters[1:]]


class WrongMap(FA):
    """Backward weights of another shape."""

    def backward_weight(self, operation):
        return operation.backward_map.weight[:-1]


class NoMap(FA):
    """No backward weights."""

    def backward_weight(self, operation):
        pass


@pytest.mark.parametrize(
    "kind, message",
    [
        (Gradients, "fix Gradients"),
        (TooFew, "fix TooFew"),
        (WrongMap, "backward weight of.*fix the rule's"),
        (NoMap, "found None; fix the rule's"),
    ],
)
def test_a_rule_of_the_users_own_with_wrong_shapes_is_told_so(kind, message, mlp):
    rule = kind(mlp, kind.Options())
    rule.configure_optimizers()
    with pytest.raises(UserError, match=message):
        rule.training_batch(*make_batch(mlp))
    with pytest.raises(UserError, match=message):
        # What measures a run comes before its first batch.
        feedback_alignment(rule) or update_alignment(rule, *make_batch(mlp))


@pytest.mark.parametrize("wrong", [None, (0, {}), (0, {1: torch.ones(2)}), (0, [torch.ones(())])])
def test_a_rule_of_the_users_own_with_wrong_losses_is_told_so(wrong, mlp):
    class Mine(PEPITA):
        def losses(self, x, y):
            return wrong

    rule = Mine(mlp)
    rule.configure_optimizers()
    with pytest.raises(UserError, match="losses of Mine must return .*, found .*; fix Mine"):
        rule.training_batch(*make_batch(mlp))


@pytest.mark.parametrize("name", ["bp", "dtp", "fa", "pepita", "ccl", "dualprop", "dfc"])
def test_a_batch_without_gradients_is_not_called_a_mistake_of_the_rule(name, mlp):
    rule = make(name, mlp)
    before = state(rule)
    with torch.no_grad(), pytest.raises(UserError, match="needs gradients to learn, found them switched off"):
        rule.training_batch(*make_batch(mlp))
    assert same(before, rule.state_dict())


@pytest.mark.parametrize("name", ["fa", "dfc", "dtp"])
@pytest.mark.parametrize(
    "batch, message",
    [
        (lambda x, y: (x[:0], y[:0]), "must have samples, found none"),
        (lambda x, y: (x[:, :, :3], y), r"Expected inputs of shape \(B, 1, 4, 4\), found \(B, 1, 3, 4\)"),
        (lambda x, y: (x.double(), y), "Expected inputs in float32"),
        (lambda x, y: (x, y.float()), "Expected labels for classification"),
        (lambda x, y: (x, y[:2]), r"Expected labels .* of shape \(6,\)"),
        (lambda x, y: (x, y + 5), "Expected labels from 0 to 4"),
        (lambda x, y: (x, y.to("meta")), "Expected goals on cpu.*found them on meta"),
        (lambda x, y: (x, y.tolist()), "expected two tensors, inputs and goals"),
        (lambda x, y: (x,), "expected two tensors, inputs and goals, .* and None"),
    ],
)
def test_a_batch_given_by_hand_is_as_strictly_looked_at_as_a_trainers(name, batch, message, mlp):
    rule = make_trained(name, mlp)
    before = state(rule)
    with pytest.raises(UserError, match=message):
        rule.training_batch(*batch(*make_batch(mlp)))
    assert same(before, rule.state_dict())


@pytest.mark.parametrize("name", ["bp", "fa", "kp"])
def test_a_layer_that_the_networks_own_pass_leaves_out_is_told(name):
    class LeavesOut(Layers):
        def forward(self, x):
            return self[2](self[1](x))

    layers = [nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), nn.Sequential(nn.Linear(5, 5)), nn.Linear(5, 5)]
    network = LeavesOut(layers, (1, 4, 4))
    rule = make(name, network)
    with pytest.raises(UserError, match=f"The loss of {type(rule).__name__} does not depend on all weights of Leaves"):
        rule.training_batch(*make_batch(network))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chl", "layer 1 for 6 of 24 values"),
        ("generec", "layer 1 for 6 of 24 values"),
        ("gait", "vectors from layer 2, found .* shape .4, 6."),
    ],
)
def test_a_matrix_for_each_position_is_refused_by_rules_of_whole_layers(name, message):
    layers = [nn.Sequential(nn.Linear(6, 6), nn.LeakyReLU()) for _ in range(2)]
    network = Layers([*layers, nn.Sequential(nn.Flatten(), nn.Linear(24, 24))], (4, 6), 24)
    with pytest.raises(UserError, match=message):
        make(name, network)


def test_a_batch_after_a_fit_is_looked_at_too(mlp):
    rule, (x, y) = make("dtp", mlp), make_batch(mlp)
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, barebones=False, accelerator="cpu")
    trainer.fit(rule, DataLoader(TensorDataset(x, y), batch_size=3))
    with pytest.raises(UserError, match="must have samples, found none"):
        rule.training_batch(x[:0], y[:0])


def test_a_loop_of_ones_own_may_begin_after_the_test_of_a_trainer(mlp):
    rule, (x, y) = make("dtp", mlp, lr_schedule="cosine"), make_batch(mlp)
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    trainer.test(rule, DataLoader(TensorDataset(x, y), batch_size=3), verbose=False)
    before = state(mlp)
    rule.configure_optimizers()
    rule.training_batch(x, y)
    assert not same(before, state(mlp))


def test_a_training_batch_with_other_arguments_is_its_owners(mlp):
    class Weighted(BP):
        def training_batch(self, x, y, weight=None):
            self.weight = weight
            return super().training_batch(x, y)

    rule, (x, y) = Weighted(mlp), make_batch(mlp)
    rule.configure_optimizers()
    rule.training_batch(y=y, x=x, weight="seen")
    assert rule.weight == "seen"
    make("bp", mlp).training_batch(y=y, x=x)


@pytest.mark.parametrize("name", ["chl", "hebb", "delta", "competitive", "generec"])
def test_a_rule_without_gradients_learns_where_they_are_switched_off(name):
    network = small_network(name)
    rule = make_trained(name, network)
    before = state(rule)
    with torch.no_grad():
        rule.training_batch(*make_batch(network))
    assert not same(before, rule.state_dict())


@pytest.mark.parametrize("name", ["bp", "fa", "dfc", "chl"])
def test_within_inference_mode_no_rule_pretends_to_learn(name):
    network = small_network(name)
    rule = make_trained(name, network)
    with torch.inference_mode(), pytest.raises(UserError, match="torch.inference_mode, in which it cannot"):
        rule.training_batch(*make_batch(network))


@pytest.mark.parametrize(
    "words, message",
    [
        ("--algo sdtp --max-steps 8", "--max-steps: expected a run of more than the 10 batches"),
        (
            "--algo drl --feedback-warmup-epochs 2 --max-epochs 10 --max-steps 6",
            "--max-steps: expected a run of more than the 20",
        ),
        ("--algo gait --model square --gait-step 1e-30", "--gait-step: 1e-30"),
        ("--algo gait --model square --gait-targets original --widths 64 64 64 64 64", "--precision 64"),
        ("--algo fw-dtp --standardise hidden --batch-size 1", "--batch-size: expected at least 2"),
        ("--algo fa --lr 1e30 --lr-schedule constant", "Lower --lr, or look for such numbers in the data;"),
    ],
)
def test_a_run_that_could_not_learn_ends_with_one_sentence(words, message, here, capsys):
    assert main([*words.split(), "--limit-train-batches", "10", "--log-every", "5"]) == 2
    assert message in capsys.readouterr().err


def test_one_image_left_for_the_test_is_normalised_by_running_statistics(here):
    words = "--algo fw-dtp --standardise hidden --batch-statistics-at-test true --max-epochs 1 --batch-size 359"
    assert main([*words.split(), "--limit-train-batches", "2"]) == 0
