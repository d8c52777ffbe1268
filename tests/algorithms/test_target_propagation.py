"""Properties of the rules that are made on the template of target propagation, and of its options."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import register_parametrization

from dtp.algorithms import ALGORITHMS, BP, DTP, TP, TargetPropagation, VanillaDTP
from dtp.algorithms.feedback_control import FeedbackControl
from dtp.algorithms.options import DTPOptions, TPOptions, VanillaDTPOptions
from dtp.diagnostics.alignment import feedback_alignment, update_alignment
from dtp.distributed.division import ByImages, ByImagesOncePerBatch, ByLayers, Division
from dtp.errors import UserError
from dtp.feedback import ReducedLDRL
from dtp.models import VGG, Network
from dtp.models.options import ModelOptions, VGGOptions
from tests.algorithms.helpers import changed, make, make_trained, of_network, same, small_network, state
from tests.algorithms.networks import shipped_network
from tests.algorithms.rules import facts
from tests.conftest import make_batch

# What all rules share is in test_every_rule.py. The feedback of control learns from a simulation of the whole network,
# not from a loss of each layer: test_dfc.py.
TRAINED = [
    name
    for name, rule in ((entry.name, entry.load()) for entry in ALGORITHMS.entries.values())
    if issubclass(rule, TargetPropagation) and not issubclass(rule, FeedbackControl)
]


def variants():
    """Each of these rules with those of its options that change what depends on what."""
    for name in TRAINED:
        fields = ALGORITHMS.resolve(name).load_options().__dataclass_fields__
        yield name, {}
        yield name, {"schedule": "parallel"}
        yield name, {"noise_samples": 3}
        if "routing" in fields:
            yield name, {"routing": "fixed"}
        if "penultimate" in str(fields.get("first_target")):
            yield from ((name, {"first_target": first, "output_loss": "task"}) for first in ("output", "penultimate"))
        if "mse" in str(fields["output_loss"].type):
            output = {"first_target": "output"} if "first_target" in fields else {}
            yield from ((name, {"output_loss": loss, **output}) for loss in ("mse", "task"))


VARIANTS = [
    pytest.param(name, changes, id="-".join([name, *map(str, changes.values())])) for name, changes in variants()
]


def reached_by(loss, tensors):
    """Those of ``tensors`` that the loss has gradients for, by identity."""
    tensors = [t for t in tensors if t.requires_grad]
    found = torch.autograd.grad(loss, tensors, allow_unused=True)
    return {id(t) for t, gradient in zip(tensors, found, strict=True) if gradient is not None}


@pytest.mark.parametrize("name, changes", VARIANTS)
def test_the_local_loss_of_a_layer_reaches_the_weights_of_that_layer_alone(name, changes, network, batch):
    rule = make(name, network, **changes)
    x, y = batch
    x.requires_grad_()
    activations = rule.activations(x)
    losses = rule.local_losses(activations, rule.targets(activations, y), y)
    assert sorted(losses) == list(range(1, network.depth + 1))
    for n, loss in losses.items():
        assert reached_by(loss, [x, *rule.parameters()]) == {id(p) for p in network[n].parameters()}


@pytest.mark.parametrize("name, changes", VARIANTS)
def test_the_feedback_loss_of_a_layer_reaches_its_feedback_weights_alone(name, changes, network, batch):
    rule = make(name, network, **changes)
    activations = rule.activations(batch[0])
    for n in rule.feedback.numbers:
        loss = rule.feedback_loss(n, activations, rule.feedback_noise(n, activations))
        assert reached_by(loss, rule.parameters()) == {id(p) for p in rule.feedback[n].parameters()}


@pytest.mark.parametrize("name, changes", [variant for variant in VARIANTS if not facts(variant.values[0]).not_local])
def test_no_layer_receives_an_input_that_carries_gradients_during_training(name, changes, network, batch):
    """Watches the real training step from outside: what enters a layer must be cut from what made it."""
    rule = make(name, network, **{"schedule": "sequential", **changes})
    entered = []

    def watch(n):
        def hook(module, inputs):
            entered.append((n, inputs[0].requires_grad))

        return hook

    for n in range(1, network.depth + 1):
        network[n][0].register_forward_pre_hook(watch(n))
    rule.training_batch(*batch)
    assert {n for n, _ in entered} == set(range(1, network.depth + 1))
    with_gradient = {n for n, requires_grad in entered if requires_grad}
    # Lee's first target is a gradient through the output layer, and only there.
    allowed = {network.depth} if getattr(rule.options, "first_target", "output") == "penultimate" else set()
    assert with_gradient <= allowed


@pytest.mark.parametrize("name", ["dtp", "dfc"])
def test_on_one_device_the_feedback_phase_asks_no_division(name, monkeypatch):
    def refuse(*args):
        raise AssertionError("a division was asked")

    for division in (Division, ByImages, ByImagesOncePerBatch, ByLayers):
        monkeypatch.setattr(division, "train", refuse)
    rule = make(name, small_network(name))
    before = state(rule.feedback)
    rule.training_batch(*make_batch(rule.network))
    assert changed(before, rule.feedback.state_dict())


@pytest.mark.parametrize("engine", ["literal", "auto"])
def test_a_phase_of_other_lengths_and_rates_is_that_of_a_rule_with_these_options(engine, mlp):
    usual = {"feedback_iterations": [3], "feedback_lr": [0.02], "engine": engine}
    rule = make("dtp", mlp, **usual)
    other = make("dtp", copy.deepcopy(mlp), **{**usual, "feedback_iterations": [0, 5, 2], "feedback_lr": [0.002]})
    other.load_state_dict(rule.state_dict())
    x, _ = make_batch(mlp)
    before = state(rule)
    rule.train_feedback_for(rule.activations(x, gradients=False), {3: 5, 4: 2}, 0.1)
    other.feedback_phase(other.activations(x, gradients=False))
    for value, expected in zip(rule.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, expected)
    learned = changed(before, rule.state_dict())
    assert learned and all(name.startswith(("feedback.3.", "feedback.4.")) for name in learned)
    assert rule.feedback_iterations == {2: 3, 3: 3, 4: 3}
    assert {n: o.param_groups[0]["lr"] for n, o in rule.feedback_optimizers.items()} == dict.fromkeys((2, 3, 4), 0.02)


@pytest.mark.parametrize("name", TRAINED)
def test_forward_step_leaves_feedback_weights_bit_identical(name, network, batch):
    rule = make(name, network, feedback_iterations=[0], schedule="sequential")
    before = state(rule)
    rule.training_batch(*batch)
    found = changed(before, rule.state_dict())
    assert found and found == of_network(found)


@pytest.mark.parametrize("engine", ["literal", "auto"])
@pytest.mark.parametrize("name", TRAINED)
def test_noise_of_a_feedback_phase_is_drawn_in_the_same_amount_by_every_engine(name, engine, mlp):
    """Streams are saved and go on; an engine that drew more or less would change the run that it resumes."""
    rule = make(name, mlp, engine=engine, feedback_iterations=[3], noise_samples=2)
    rule.feedback_phase(rule.activations(make_batch(mlp)[0]))
    plain = make(name, mlp, noise_samples=2)
    a = plain.activations(make_batch(mlp)[0])
    for n in plain.trained_feedback:
        for _ in range(3):
            plain.feedback_noise(n, a)
    found, expected = (r.noise_streams.state_dict()["states"] for r in (rule, plain))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in found)


@pytest.mark.parametrize("engine", ["literal", "auto"])
@pytest.mark.parametrize("name", TRAINED)
def test_each_feedback_weights_own_gradient_is_clipped_in_every_step(name, engine):
    """With SGD at a rate of 1 a step is no longer than the limit, and of that length where the gradient was longer."""
    network = small_network(name).double()
    plain = {"feedback_optimizer": "sgd", "feedback_lr": [1.0], "feedback_momentum": 0.0, "feedback_weight_decay": 0.0}
    rule = make_trained(name, network, clip_each=1e-4, feedback_iterations=[1], engine=engine, **plain).double()
    before = state(rule.feedback)
    rule.feedback_phase(rule.activations(make_batch(network)[0], gradients=False))
    moved = [(value - before[key]).norm().item() for key, value in rule.feedback.named_parameters()]
    assert max(moved) == pytest.approx(1e-4, rel=2e-2) and max(moved) < 1e-4


@pytest.mark.parametrize("model", ["mlp", "lenet", "lc", "resnet20"])
@pytest.mark.parametrize("init", ["xavier", "xavier-normal", "orthogonal"])
def test_first_feedback_weights_are_drawn_as_first_forward_weights_are(model, init):
    network = shipped_network(model)
    rule = make("vanilla-dtp", network, feedback_init=init)
    biases = [value for key, value in rule.feedback.named_parameters() if key.endswith("bias")]
    assert biases and not any(bias.any() for bias in biases)
    for pairs in rule.feedback_weights().values():
        for weight, transposed in pairs:
            assert weight.shape == transposed.shape and weight.std() > 0
            # Of a locally connected layer one position's.
            matrix = (weight[0] if model == "lc" and weight.dim() == 3 else weight).flatten(1).double()
            if init == "orthogonal":
                gram = matrix @ matrix.t() if len(matrix) <= matrix.shape[1] else matrix.t() @ matrix
                torch.testing.assert_close(gram, torch.eye(len(gram), dtype=gram.dtype), atol=1e-5, rtol=0)
                continue
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight[0] if weight.dim() == 3 else weight)
            deviation = math.sqrt(2 / (fan_in + fan_out))
            assert weight.std().item() == pytest.approx(deviation, rel=0.5)
            # Few normal numbers may lie within the bounds of uniform ones.
            if init == "xavier" or weight.numel() >= 100:
                assert (weight.abs().max() <= math.sqrt(3) * deviation) == (init == "xavier")


@pytest.mark.parametrize("beta, limit", [(0.7, 4.0), (0.01, 1.5)])
def test_symmetric_feedback_gives_backprop_updates_on_an_elu_vgg(beta, limit):
    network = VGG(VGGOptions(channels=[16, 16, 32, 32, 64]), (3, 32, 32), 10)
    rule = DTP(network, DTPOptions(beta=beta, feedback_init="symmetric"))
    found = update_alignment(rule, torch.randn(64, 3, 32, 32), torch.randint(10, (64,)))
    assert all(found[n].angle <= limit for n in range(1, 7))
    # The two highest layers have no nonlinearity between target and loss; what is left is rounding.
    assert found[6].angle < 1e-3 and found[5].angle < 1e-2


def test_random_feedback_gives_unrelated_updates_below_the_output_layer():
    network = VGG(VGGOptions(channels=[16, 16, 32, 32, 64]), (3, 32, 32), 10)
    found = update_alignment(DTP(network), torch.randn(64, 3, 32, 32), torch.randint(10, (64,)))
    assert all(60 < found[n].angle < 120 for n in range(1, 6))
    assert found[6].angle < 1e-3


def test_output_gradient_of_dtp_is_beta_times_the_gradient_of_the_mean_cross_entropy(mlp):
    mlp.double()
    x, y = make_batch(mlp)
    _, rule = DTP(mlp, DTPOptions(beta=0.3)).double().forward_gradients(x, y)
    _, backprop = BP(mlp).forward_gradients(x, y)
    for ours, theirs in zip(rule[-2:], backprop[-2:], strict=True):
        torch.testing.assert_close(ours, 0.3 * theirs, rtol=1e-10, atol=1e-14)


def test_ldrl_training_turns_random_feedback_towards_backprop(mlp):
    x, y = make_batch(mlp, 64)
    rule = make("dtp", mlp, feedback_iterations=[400], noise=[0.1])
    before = update_alignment(rule, x, y)
    rule.feedback_phase(rule.activations(x))
    after = update_alignment(rule, x, y)
    for n in range(1, mlp.depth):
        assert before[n].angle > 45 and after[n].angle < 20


def test_difference_rule_returns_the_activation_when_the_target_is_the_activation(network, batch):
    rule = make("dtp", network)
    a = rule.activations(batch[0])
    for n in rule.feedback.numbers:
        torch.testing.assert_close(rule.lower_target(n, {n: a.s[n]}, a), a.s[n - 1])


def test_tp_hands_down_the_target_itself(network, batch):
    rule = make("tp", network)
    a = rule.activations(batch[0])
    targets = rule.targets(a, batch[1])
    for n in rule.feedback.numbers:
        torch.testing.assert_close(targets[n - 1], rule.feedback[n](targets[n], a.contexts[n]))


def test_penultimate_target_is_a_gradient_step_on_the_task_loss_of_each_sample(mlp):
    rule = make("vanilla-dtp", mlp, beta=0.2)
    x, y = make_batch(mlp)
    a = rule.activations(x)
    targets = rule.targets(a, y)
    assert sorted(targets) == [1, 2, 3] and rule.feedback.numbers == [2, 3]
    for b in range(len(x)):
        s = a.s[3][b : b + 1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(mlp[4](s), y[b : b + 1]), s)
        torch.testing.assert_close(targets[3][b : b + 1], (s - 0.2 * gradient).detach())


def test_activations_equal_the_plain_forward_pass(network, batch):
    a = make("dtp", network).activations(batch[0])
    assert torch.equal(a.s[-1], network(batch[0]))
    assert len(a.s) == len(a.contexts) == len(a.outputs) == network.depth + 1


def test_one_iteration_of_parallel_dtp_averages_its_noise_samples(mlp):
    from dtp.feedback import ldrl_loss

    mlp.double()
    rule = make("parallel-dtp", mlp).double()
    a = rule.activations(make_batch(mlp)[0])
    noise = [torch.randn(4 * 6, *mlp.shapes[n], dtype=torch.float64) for n in (1, 2)]
    args = (mlp[2], rule.feedback[2], a.s[1], a.s[2], a.contexts[2])
    together = ldrl_loss(*args, *noise, noise_samples=4)
    apart = [ldrl_loss(*args, *(part[6 * k : 6 * k + 6] for part in noise)) for k in range(4)]
    torch.testing.assert_close(together, sum(apart) / 4)


def test_parallel_schedule_uses_the_feedback_weights_from_before_their_step(mlp):
    x, y = make_batch(mlp)
    rule = make("vanilla-dtp", mlp, schedule="parallel", optimizer="sgd", lr=0.1, momentum=0.0)
    _, expected = rule.forward_gradients(x, y)
    before = [p.clone() for p in rule.forward_parameters]
    feedback_before = state(rule.feedback)
    rule.training_batch(x, y)
    assert not same(feedback_before, rule.feedback.state_dict())
    for p, old, gradient in zip(rule.forward_parameters, before, expected, strict=True):
        torch.testing.assert_close(p, old - 0.1 * gradient)


@pytest.mark.parametrize("epoch, moves", [(0, "feedback"), (1, "network"), (2, "feedback")])
def test_alternating_schedule_trains_one_kind_of_weights_per_epoch(mlp, epoch, moves, monkeypatch):
    rule = make("vanilla-dtp", mlp, schedule="alternating")
    monkeypatch.setattr(type(rule), "current_epoch", epoch)
    network_before, feedback_before = state(mlp), state(rule.feedback)
    rule.training_batch(*make_batch(mlp))
    assert same(network_before, mlp.state_dict()) == (moves == "feedback")
    assert same(feedback_before, rule.feedback.state_dict()) == (moves == "network")


@pytest.mark.parametrize("flag", ["noise", "feedback_iterations", "feedback_lr"])
@pytest.mark.parametrize("count", [2, 4, 5])
def test_lists_of_the_wrong_length_are_an_error_that_names_the_layers(mlp, flag, count):
    value = 1 if flag == "feedback_iterations" else 0.1
    with pytest.raises(UserError, match=r"expected 3 values.*layers 2, 3, 4.*found " + str(count)) as error:
        DTP(mlp, DTPOptions(**{flag: [value] * count}))
    assert "--" + flag.replace("_", "-") in str(error.value)


def test_lists_of_one_value_and_of_one_value_each_are_taken(mlp):
    assert DTP(mlp, DTPOptions(noise=[0.3])).noise == {2: 0.3, 3: 0.3, 4: 0.3}
    assert DTP(mlp, DTPOptions(noise=[0.3, 0.2, 0.1])).noise == {2: 0.3, 3: 0.2, 4: 0.1}
    # Lee's first target leaves layer 4 without feedback.
    assert VanillaDTP(mlp, VanillaDTPOptions(noise=[0.3, 0.2])).noise == {2: 0.3, 3: 0.2}


@pytest.mark.parametrize(
    "changes, flag",
    [
        ({"beta": 0.0}, "--beta"),
        ({"noise": [0.0]}, "--noise"),
        ({"noise": [-1.0, 0.1, 0.1]}, "--noise"),
        ({"feedback_iterations": [-1]}, "--feedback-iterations"),
        ({"feedback_lr": [0.0]}, "--feedback-lr"),
        ({"noise_samples": 0}, "--noise-samples"),
        ({"feedback_momentum": 1.0}, "--feedback-momentum"),
        ({"lr": -1.0}, "--lr"),
        ({"momentum": 1.5}, "--momentum"),
        ({"lr": float("nan")}, "--lr"),
    ],
)
def test_values_out_of_range_are_refused_by_name(mlp, changes, flag):
    with pytest.raises(UserError, match=flag + ":"):
        DTP(mlp, DTPOptions(**changes))


def test_usual_feedback_rates_come_near_the_tuned_ones_of_the_published_vgg():
    """Spec: 2 lr sigma^2 P is about 2e-3 for four of the five published layers, 6e-4 for the other."""
    network = VGG(VGGOptions(), (3, 32, 32), 10)
    rule = DTP(network, DTPOptions(noise=[0.4, 0.4, 0.2, 0.2, 0.08]))
    published = {2: 1e-4, 3: 3.5e-4, 4: 8e-3, 5: 8e-3, 6: 0.18}
    assert all(0.5 < rule.feedback_lr[n] / published[n] < 4 for n in published)


def test_a_network_of_one_layer_learns_without_feedback():
    from dtp.models import MLP
    from dtp.models.options import MLPOptions

    network = MLP(MLPOptions(widths=[]), (1, 4, 4), 5)
    for name in ("dtp", "tp", "vanilla-dtp"):
        rule = make(name, network, schedule="sequential")
        before = state(network)
        rule.training_batch(*make_batch(network))
        assert rule.feedback.numbers == [] and not same(before, network.state_dict())


@pytest.mark.parametrize("engine", ["literal", "reduced"])
def test_feedback_phase_runs_in_full_precision_under_autocast(lenet, engine, monkeypatch):
    rule = make("dtp", lenet, engine=engine)
    seen = []
    original, constants = rule.feedback_loss, ReducedLDRL.constants

    def watch_constants(form, clean, noise):
        found = constants(form, clean, noise)
        seen.append({t.dtype for t in (clean.phi, clean.affine, clean.s_out, found.gradient, found.q)})
        return found

    def watch(n, activations, noise):
        seen.append({t.dtype for t in (*activations.s, *noise)})
        loss = original(n, activations, noise)
        seen.append({loss.dtype})
        return loss

    rule.feedback_loss = watch
    monkeypatch.setattr(ReducedLDRL, "constants", watch_constants)
    x, y = make_batch(lenet)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lenet(x).dtype == torch.bfloat16
        rule.training_batch(x, y)
    assert seen and all(dtypes <= {torch.float32} for dtypes in seen)
    assert all(torch.isfinite(p).all() for p in rule.parameters())


def test_full_precision_activations_of_the_feedback_phase_are_consistent_under_autocast(lenet):
    """s_n must be F_n(s_{n-1}) in float32: bfloat16 rounding in it would enter r_eps - r as noise."""
    rule = make("dtp", lenet)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = rule.activations(make_batch(lenet)[0])
    exact = rule._in_full_precision(rounded)
    for n in range(1, lenet.depth + 1):
        torch.testing.assert_close(exact.s[n], lenet[n](exact.s[n - 1]))


def test_batch_statistics_of_the_feedback_phase_are_in_full_precision_under_autocast():
    class Normalised(Network):
        def make_layers(self):
            yield nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), self.activation())
            yield nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), self.activation())
            yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, self.num_classes))

    network = Normalised(ModelOptions(), (1, 8, 8), 5)
    rule = make("dtp", network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        activations = rule.activations(make_batch(network)[0])
    for n in (1, 2):
        context = activations.contexts[n][1]
        assert context.mean.dtype == context.inverse_std.dtype == torch.float32


@pytest.mark.parametrize("scale", ["code", "paper"])
def test_usual_feedback_rates_align_the_weights_for_both_scales_of_the_loss(scale, mlp):
    """The paper's loss divided by 2 sigma^2 needs rates that are smaller by it; with them both learn alike."""
    rule = make("dtp", mlp, ldrl_scale=scale, noise=[0.08], feedback_iterations=[300])
    rule.feedback_phase(rule.activations(make_batch(mlp, 64)[0]))
    assert all(found.angle < 30 for found in feedback_alignment(rule).values())


def test_template_without_a_feedback_loss_says_what_is_missing(mlp):
    rule = TargetPropagation(mlp)
    rule.configure_optimizers()
    with pytest.raises(UserError, match="define feedback_loss"):
        rule.training_batch(*make_batch(mlp))


def test_tp_options_let_the_first_target_be_chosen(mlp):
    assert TP(mlp, TPOptions()).top == 4
    assert TP(mlp, TPOptions(first_target="penultimate")).top == 3


def test_warm_up_trains_the_feedback_weights_alone_for_its_batches(mlp):
    rule = make("dtp", mlp, feedback_warmup=2)
    batch = make_batch(mlp)
    for number in range(4):
        forward, feedback = state(rule.network), state(rule.feedback)
        rule.training_batch(*batch)
        assert same(forward, rule.network.state_dict()) == (number < 2)
        assert not same(feedback, rule.feedback.state_dict())


def test_a_method_given_to_one_rule_alone_is_called(mlp):
    """The reduced form must not pass by a loss that somebody has put in the place of the rule's own."""
    rule = make("dtp", mlp)
    seen, original = [], rule.feedback_loss
    rule.feedback_loss = lambda n, *rest: seen.append(n) or original(n, *rest)
    rule.training_batch(*make_batch(mlp))
    assert set(seen) == set(rule.trained_feedback)
    assert "feedback_loss of its own" in rule.feedback_forms()[2]


def test_one_optimizer_for_all_feedback_layers_is_stepped_in_the_general_way(mlp):
    class Shared(DTP):
        def feedback_optimizer_list(self):
            shared = torch.optim.SGD(self.feedback.parameters(), lr=0.01)
            self.feedback_optimizers = dict.fromkeys(self.trained_feedback, shared)
            return [shared]

    rule = Shared(mlp, DTPOptions(feedback_iterations=[2]))
    rule.configure_optimizers()
    before = state(rule.feedback)
    rule.training_batch(*make_batch(mlp))
    assert not same(before, rule.feedback.state_dict())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name, computed", [("dtp", False), ("dtp", True), ("sdtp", False), ("ao-sdtp", False)])
def test_kolen_pollack_tracking_keeps_the_distance_of_the_feedback_to_the_transpose(name, computed, optimizer):
    # Both sides of a layer move by the same increment, momentum, decay and all, whatever the data. The forward weight
    # may be made anew at each look: where it is computed, and beside the auxiliary outputs of ao-sdtp.
    network = VGG(VGGOptions(channels=[4, 5]), (3, 8, 8), 6).double()
    for module in [module for module in network.modules() if computed and isinstance(module, nn.Conv2d | nn.Linear)]:
        weight_norm(module)
    options = {"feedback_tracking": "kolen-pollack", "feedback_iterations": [0], "optimizer": optimizer, "lr": 0.1}
    rule = make_trained(name, network, **options).double()

    def distances():
        return [v - w for found in rule.feedback_weights().values() for v, w in found]

    first, forward = distances(), state(rule.network)
    assert len(first) > 1
    for _ in range(3):
        rule.training_batch(*make_batch(network))
    assert not same(forward, rule.network.state_dict())
    torch.testing.assert_close(distances(), first, rtol=0, atol=1e-14)


@pytest.mark.parametrize("settings", [{}, {"probes": "expected", "routing": "fixed"}])
def test_feedback_that_is_trained_in_its_warm_up_alone_follows_the_forward_weights_afterwards(mlp, settings):
    rule = make("dtp", mlp, feedback_tracking="kolen-pollack", schedule="warmup", feedback_warmup=1, **settings)
    pairs = [pair for found in rule.feedback_weights().values() for pair in found]
    first, forward = [v.clone() for v, _ in pairs], state(rule.network)
    rule.training_batch(*make_batch(mlp))
    assert not any(torch.equal(v, old) for (v, _), old in zip(pairs, first, strict=True))
    assert same(forward, rule.network.state_dict())
    distances = [v - w.clone() for v, w in pairs]
    for _ in range(2):
        rule.training_batch(*make_batch(mlp))
    assert not same(forward, rule.network.state_dict())
    for (v, w), distance in zip(pairs, distances, strict=True):
        torch.testing.assert_close(v - w, distance, rtol=0, atol=1e-6)


def test_without_tracking_feedback_weights_stay_where_they_are_without_iterations(mlp):
    rule = make("dtp", mlp, feedback_iterations=[0])
    before = state(rule.feedback)
    rule.training_batch(*make_batch(mlp))
    assert same(before, rule.feedback.state_dict())


def test_tracking_with_feedback_weights_of_another_form_is_refused(mlp):
    class Own(DTP):
        def make_feedback(self):
            feedback = super().make_feedback()
            register_parametrization(feedback[2].operations[-1].linear, "weight", nn.Tanh())
            return feedback

    with pytest.raises(UserError, match="--feedback-tracking.*layer 2"):
        Own(mlp, DTPOptions(feedback_tracking="kolen-pollack"))


def test_a_run_whose_epochs_nobody_can_count_is_long_enough_for_all_that_is_known(mlp):
    """Of data without a length the first epoch may well end before ``max_steps``."""
    make("vanilla-dtp", mlp, schedule="alternating").check_length(-1, 50, math.inf)
