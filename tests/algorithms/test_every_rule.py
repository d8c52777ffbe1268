"""Properties of every registered rule: a rule has these tests by being registered."""

import copy
import csv
import json
import math
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dtp.algorithms import ALGORITHMS, BP
from dtp.algorithms.base import Algorithm
from dtp.algorithms.feedback_alignment import WeightMirror
from dtp.algorithms.local_losses import LocalLosses
from dtp.algorithms.local_targets import LocalTargets
from dtp.algorithms.target_propagation import TargetPropagation
from dtp.cli.train import main
from dtp.diagnostics.alignment import update_alignment
from dtp.errors import UserError
from dtp.experiments.sweep.plan import SCORES, Part, require_metrics
from dtp.feedback import noise
from dtp.models import as_network
from dtp.run.folder import newest_checkpoint
from dtp.system.signals import stop_request
from tests.algorithms.helpers import changed, make, make_trained, of_network, same, small_network, state
from tests.algorithms.networks import shipped_network
from tests.algorithms.rules import CASES, NAMES, RULES, facts, is_single
from tests.conftest import make_batch
from tests.run.test_resume import assert_identical, stop_after

every_rule = pytest.mark.parametrize("name", NAMES)
every_network = pytest.mark.parametrize("name, kind", CASES)


def is_a(name, template):
    """Whether a rule is made from this template."""
    return issubclass(ALGORITHMS.resolve(name).load(), template)


def every_network_of(template):
    return pytest.mark.parametrize("name, kind", [case for case in CASES if is_a(case.values[0], template)])


def watch_steps(rule, monkeypatch):
    """What each call of ``rule.step`` changed: a list of (whether it was the forward step, names of tensors)."""
    steps, original = [], rule.step

    def step(optimizer, parameters, gradients):
        before = state(rule)
        original(optimizer, parameters, gradients)
        steps.append((optimizer is rule.forward_optimizer, changed(before, rule.state_dict())))

    monkeypatch.setattr(rule, "step", step)
    return steps


def test_the_table_of_the_tests_knows_registered_rules_alone():
    assert set(RULES) <= set(NAMES)


# --- what the rule's documentation says -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bp"])
def test_its_docstring_names_the_source_and_what_that_leaves_out(name):
    text = ALGORITHMS.resolve(name).load().__dict__.get("__doc__") or ""
    assert re.search(r"\b(19|20)\d\d\b", text), "no year"
    assert re.search(r"\b(left|leaves?)\s+out\b", text, re.IGNORECASE), "nothing on what the paper leaves out"


@every_rule
def test_its_class_takes_the_options_that_it_is_registered_with(name):
    entry = ALGORITHMS.resolve(name)
    assert entry.load().Options is entry.load_options()
    assert issubclass(entry.load(), Algorithm)


@every_network
def test_it_is_made_where_its_network_is(name, kind):
    """As by ``DTP(model.cuda())`` in a loop of one's own; meta stands for a device that tests may lack."""
    entry = ALGORITHMS.resolve(name)
    rule = entry.load()(small_network(name, kind).to("meta"), **facts(name).options)
    assert {t.device.type for t in [*rule.parameters(), *rule.buffers()]} == {"meta"} == {rule.device.type}


# --- one batch --------------------------------------------------------------------------------------------------------


@every_network
def test_it_trains_one_batch(name, kind):
    network = small_network(name, kind)
    rule = make_trained(name, network)
    x, y = make_batch(network)
    with torch.no_grad():
        expected = rule(x)
    before = state(network)
    logits, scalars = rule.training_batch(x, y)
    # Those from before the step, of which the training accuracy is made.
    assert logits.shape == (6, network.num_classes) and not logits.requires_grad
    torch.testing.assert_close(logits, expected)
    assert all(value.dim() == 0 and not value.requires_grad and value.isfinite() for value in scalars.values())
    assert changed(before, network.state_dict()) == set(before)
    assert all(p.grad is None for p in rule.parameters())
    assert rule.batches_done == 1


class Twice:
    """Learns from each batch twice, and is no rule by itself."""

    def training_batch(self, x, y):
        super().training_batch(x, y)
        return super().training_batch(x, y)


class TwiceBP(Twice, BP):
    pass


class OwnBatch(BP):
    def training_batch(self, x, y):
        if x.isnan().any():
            raise ValueError("no images")
        return self.checked_gradients(x, y)[0], {}


@pytest.mark.parametrize("rule", [TwiceBP, OwnBatch])
def test_a_batch_counts_once_whatever_a_rule_of_ones_own_makes_of_it(rule):
    network = small_network("bp")
    made = rule(network, rule.Options(), seed=0)
    made.configure_optimizers()
    for done in (1, 2):
        made.training_batch(*make_batch(network))
        assert made.batches_done == done


class TwiceBPThatSays(Twice, BP):
    def training_batch(self, x, y):
        logits, scalars = super().training_batch(x, y)
        return logits, {**scalars, "said": logits.new_ones(())}


def test_a_class_beside_another_with_the_same_training_batch_is_not_passed_over():
    network = small_network("bp")
    # By Python's order of methods, the second class comes before what both have in common.
    rule = type("Both", (TwiceBP, TwiceBPThatSays), {})(network, BP.Options(), seed=0)
    rule.configure_optimizers()
    assert "said" in rule.training_batch(*make_batch(network))[1]
    assert rule.batches_done == 1


def test_a_batch_that_failed_does_not_count():
    network = small_network("bp")
    rule = OwnBatch(network, OwnBatch.Options(), seed=0)
    x, y = make_batch(network)
    with pytest.raises(ValueError):
        rule.training_batch(x * math.nan, y)
    rule.training_batch(x, y)
    assert rule.batches_done == 1


def test_batches_after_a_trainer_are_counted_from_where_it_ended(tmp_path):
    """Also by a rule that is loaded: it would draw the same weights for each batch."""
    network = small_network("brsf")
    loader = DataLoader(TensorDataset(*make_batch(network)), batch_size=2)
    cls = ALGORITHMS.resolve("brsf").load()
    rule = cls(network)
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(rule, loader)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = cls.load_from_checkpoint(tmp_path / "a.ckpt", network=network)
    loaded.configure_optimizers()
    for made in (rule, loaded):
        drawn = []
        for batch in range(2):
            assert made.batches_done == len(loader) + batch
            made.training_batch(*make_batch(network))
            drawn.append([operation.backward_map.weight.clone() for operation in made.feedback.operations])
        assert not any(torch.equal(one, other) for one, other in zip(*drawn, strict=True))


def on_meta(rule, network):
    """A batch on a device that has no values, where reading one raises RuntimeError."""
    rule.to("meta").configure_optimizers()
    x, y = make_batch(network)
    for _ in range(2):
        rule.training_batch(x.to("meta"), y.to("meta"))


@pytest.fixture
def without_generators(monkeypatch):
    """There are none on that device."""
    own = noise.seeded_generator
    for module in [m for m in list(sys.modules.values()) if getattr(m, "seeded_generator", None) is own]:
        monkeypatch.setattr(module, "seeded_generator", lambda device, *numbers: own(torch.device("cpu"), *numbers))


@every_network
def test_it_reads_no_value_from_the_device_unless_it_says_why(name, kind, without_generators):
    """The host would wait for all that was asked of the device.

    The third step of a simulation asks for what the thousandth does, and the second iteration of feedback for what the
    last does.
    """
    network = small_network(name, kind)
    options = ALGORITHMS.resolve(name).load_options().__dataclass_fields__
    few = {"time_steps": 3, "feedback_time_steps": 3, "feedback_iterations": [2], "mirror_warmup": 2}
    rule = make_trained(name, network, **{option: value for option, value in few.items() if option in options})
    if rule.waits:
        with pytest.raises(RuntimeError, match="meta tensors"):
            on_meta(rule, network)
    else:
        on_meta(rule, network)


@pytest.mark.parametrize("options", [{"engine": e} for e in ("literal", "reduced")] + [{"probes": "expected"}])
def test_nor_does_an_engine_but_to_stop_early(options, without_generators):
    network = small_network("dtp", "lenet")
    on_meta(make("dtp", network, routing="fixed", feedback_iterations=[3], **options), network)
    if options == {"engine": "reduced"}:
        early = make("dtp", network, routing="fixed", feedback_iterations=[3], feedback_stop_distance=0.1)
        assert early.waits
        with pytest.raises(RuntimeError, match="meta tensors"):
            on_meta(early, network)


@pytest.mark.parametrize("model", ["vgg", "resnet18", "resnet20", "lc"])
@pytest.mark.parametrize("name", [name for name in NAMES if facts(name).any_network])
def test_it_trains_all_layers_of_other_networks(name, model):
    network = shipped_network(model)
    rule = make_trained(name, network)
    before = state(network)
    rule.training_batch(*make_batch(network))
    assert changed(before, network.state_dict()) == set(before)
    assert all(p.isfinite().all() for p in rule.parameters())


@every_network
def test_its_gradients_fit_the_parameters_and_are_what_a_step_descends(name, kind, monkeypatch):
    network = small_network(name, kind).double()
    rule = make_trained(name, network, optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.0).double()
    x, y = make_batch(network)
    # Feedback that learns in the batch would change them.
    for n in getattr(rule, "feedback_iterations", ()):
        rule.feedback_iterations[n] = 0
    if isinstance(rule, WeightMirror):
        monkeypatch.setattr(rule, "mirror", lambda: None)
    if facts(name).redraws:
        # Draw what this batch has.
        rule.training_batch(x, y)
        monkeypatch.setattr(type(rule), "batches_done", 0)
    logits, gradients = rule.forward_gradients(x, y)
    parameters = rule.forward_parameters
    assert [g.shape for g in gradients] == [p.shape for p in parameters]
    assert all(g.isfinite().all() and g.abs().sum() > 0 and not g.requires_grad for g in gradients)
    torch.testing.assert_close(logits, rule(x).detach())
    before = [p.detach().clone() for p in parameters]
    rule.training_batch(x, y)
    for p, old, gradient in zip(parameters, before, gradients, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.1 * gradient)


@pytest.mark.parametrize("name", [name for name in NAMES if not facts(name).any_network])
def test_a_rule_that_does_not_take_convolutions_says_so(name):
    with pytest.raises(UserError) as error:
        make(name, small_network(name, "lenet"))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


of_layers = pytest.mark.parametrize("name", [name for name in NAMES if not is_single(name) and name != "dtp-dae"])


def written(name, way):
    """One network of numbers, for the rule ``name``, in a ``way`` of writing it, and the shape of its samples."""
    torch.manual_seed(0)
    convolutions = facts(name).any_network

    def function():
        wholes = (nn.LeakyReLU(0.1, inplace=way == "in place"), *[nn.Identity()] * (way == "with identities"))
        return wholes if way != "nested" else (nn.Sequential(nn.Sequential(*wholes), nn.Sequential()),)

    below = (nn.Conv2d(2, 4, 3, padding=1), *function(), nn.MaxPool2d(2), nn.Flatten()) if convolutions else ()
    layers = (*below, nn.Linear(16, 16), *function(), nn.Linear(16, 16))
    return nn.Sequential(*layers), (2, 4, 4) if convolutions else (16,)


@of_layers
def test_it_learns_the_same_however_a_network_is_written(name):
    """Nonlinearities in place, as those of torchvision, identities for what an option switches off, containers."""
    ways, found = ("plainly", "in place", "with identities", "nested"), []
    for way in ways:
        model, shape = written(name, way)
        rule = make_trained(name, as_network(model, shape))
        torch.manual_seed(1)
        x, y = torch.randn(6, *shape), torch.arange(6)
        for _ in range(2):
            rule.training_batch(x, y)
        found.append([p.detach() for p in rule.network.parameters()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@of_layers
def test_a_weight_that_layers_share_gets_the_sum_of_what_each_would_get(name):
    x, y, found = torch.randn(6, 16), torch.arange(6), []
    for shared in (False, True):
        torch.manual_seed(0)
        # All square, for gait.
        first, below, above, last = (nn.Linear(16, 16) for _ in range(4))
        above.load_state_dict(below.state_dict())
        if shared:
            above.weight = below.weight
        layers = (first, nn.LeakyReLU(), below, nn.LeakyReLU(), above, nn.LeakyReLU(), last)
        rule = make_trained(name, as_network(nn.Sequential(*layers), [16]))
        names = [key.removeprefix("layers.") for key, _ in rule.network.named_parameters()]
        found.append(dict(zip(names, rule.forward_gradients(x, y)[1], strict=True)))
    apart, together = found
    above_alone = apart.pop("2.0.weight")
    assert above_alone.norm() > 0
    apart["1.0.weight"] = apart["1.0.weight"] + above_alone
    torch.testing.assert_close(together, apart)


@every_network
def test_asking_for_gradients_changes_nothing(name, kind):
    network = small_network(name, kind)
    rule = make_trained(name, network)
    x, y = make_batch(network)
    before, noise, randomness = state(rule), rule.noise_streams.state_dict(), torch.get_rng_state()
    first = rule.forward_gradients(x, y)[1]
    second = rule.forward_gradients(x, y)[1]
    assert same(before, rule.state_dict())
    assert noise == rule.noise_streams.state_dict()
    assert torch.equal(randomness, torch.get_rng_state())
    assert all(p.grad is None for p in rule.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_network
def test_its_gradients_are_means_over_the_batch(name, kind):
    """So that the learning rate means the same at every batch size, and ranks may average."""
    network = small_network(name, kind).double()
    rule = make_trained(name, network, **facts(name).linear).double()
    x, y = make_batch(network)
    if getattr(rule, "standardise", False):
        pytest.skip("standardised over the batch")
    whole = rule.forward_gradients(x, y)[1]
    halves = [rule.forward_gradients(x[part], y[part])[1] for part in (slice(0, 3), slice(3, 6))]
    for gradient, a, b in zip(whole, *halves, strict=True):
        torch.testing.assert_close(gradient, (a + b) / 2)


@every_network
def test_output_layer_learns_as_by_backprop_up_to_the_scale_that_the_rule_says(name, kind):
    """Nearly every rule has the true error there; networks that settle or are nudged have it for small gains only."""
    network = small_network(name, kind).double()
    fields = ALGORITHMS.resolve(name).load_options().__dataclass_fields__
    gain = {field: 1e-4 for field in ("gain", "nudge") if field in fields}
    rule = make_trained(name, network, **gain).double()
    x, y = make_batch(network)
    found = update_alignment(rule, x, y)
    assert sorted(found) == list(range(1, network.depth + 1))
    if facts(name).not_true:
        assert found[network.depth].distance > 1e-2
    else:
        assert found[network.depth].distance < (1e-2 if gain else 1e-8)


# --- phases -----------------------------------------------------------------------------------------------------------


@every_network
def test_a_step_of_either_kind_of_weights_leaves_the_other_bit_identical(name, kind, monkeypatch):
    network = small_network(name, kind)
    rule = make_trained(name, network)
    x, y = make_batch(network)
    rule.training_batch(x, y)
    steps = watch_steps(rule, monkeypatch)
    before = state(rule)
    rule.training_batch(x, y)
    forward = [names for is_forward, names in steps if is_forward]
    feedback = [names for is_forward, names in steps if not is_forward]
    assert len(forward) == 1 and of_network(forward[0])
    if facts(name).mirrors:
        # Kolen and Pollack: feedback weights take the same step as the forward ones.
        assert forward[0] - of_network(forward[0])
    else:
        assert forward[0] == of_network(forward[0])
    assert all(names and not of_network(names) for names in feedback)
    # And nothing changes forward weights apart from that step.
    assert of_network(changed(before, rule.state_dict())) == of_network(forward[0])
    others = changed(before, rule.state_dict()) - of_network(forward[0])
    others -= facts(name).remembers
    if not facts(name).redraws:
        assert others <= forward[0].union(*feedback)


@every_network
def test_a_feedback_phase_leaves_forward_weights_bit_identical_and_without_gradients(name, kind):
    network = small_network(name, kind)
    rule = make_trained(name, network)
    before = state(rule)
    x, y = make_batch(network)
    if isinstance(rule, TargetPropagation):
        rule.feedback_phase(rule.activations(x), *([y] if facts(name).feedback_sees_goals else []))
    elif isinstance(rule, WeightMirror):
        rule.mirror()
    after = changed(before, rule.state_dict())
    assert not of_network(after)
    # A rule with optimizers for its feedback has a phase that this test must know of.
    assert bool(after) == bool(rule.feedback_optimizer_list())
    assert all(p.grad is None for p in rule.parameters())


@every_network
def test_forward_and_feedback_tensors_share_no_storage(name, kind):
    network = small_network(name, kind)
    symmetric = "feedback_init" in ALGORITHMS.resolve(name).load_options().__dataclass_fields__
    for changes in [{}, *([{"feedback_init": "symmetric"}] if symmetric and "ddtp" not in name else [])]:
        rule = make(name, network, **changes)
        forward = {t.untyped_storage().data_ptr() for t in network.state_dict().values()}
        others = [t for key, t in rule.state_dict().items() if not key.startswith("network.") and t.numel()]
        others = {t.untyped_storage().data_ptr() for t in others}
        assert forward and not forward & others
        if isinstance(rule, TargetPropagation) and rule.feedback.numbers and list(rule.feedback.parameters()):
            assert others


@every_rule
def test_a_copy_of_it_learns_on_as_it_would_and_apart_from_it(name):
    rule = make_trained(name, small_network(name))
    x, y = make_batch(rule.network)
    rule.training_batch(x, y)
    before, copies = state(rule), [copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))]
    learned = []
    for each in (*copies, rule):
        assert same(before, rule.state_dict())
        torch.manual_seed(1)
        each.training_batch(x, y)
        learned.append(state(each))
    assert changed(before, learned[0])
    assert same(learned[0], learned[2]) and same(learned[1], learned[2])


@every_rule
@pytest.mark.parametrize("of_all", [False, True], ids=["network", "all"])
def test_an_optimizer_of_ones_own_trains_the_weights_that_the_rules_own_does(name, of_all):
    class Mine(ALGORITHMS.resolve(name).load()):
        def configure_optimizers(self):
            return torch.optim.SGD((self if of_all else self.network).parameters(), lr=0.1)

    learned = []
    for owner in (ALGORITHMS.resolve(name).load(), Mine):
        network = small_network(name)
        options = make_trained(name, network).options
        torch.manual_seed(0)
        rule = owner(network, options, seed=3)
        rule.configure_optimizers()
        before = state(rule)
        rule.training_batch(*make_batch(rule.network))
        learned.append(changed(before, state(rule)))
    assert learned[0] == learned[1]


@pytest.mark.parametrize("name", [name for name in NAMES if not is_single(name)])
def test_frozen_layers_stay_as_they_are_and_the_others_learn(name):
    network = small_network(name)
    rule = make_trained(name, network)
    x, y = make_batch(network)
    names = [key for key, _ in network.named_parameters()]
    of_all = dict(zip(names, rule.forward_gradients(x, y)[1], strict=True))
    network[2].requires_grad_(False)
    trained = [key for key, parameter in network.named_parameters() if parameter.requires_grad]
    of_others = dict(zip(trained, rule.forward_gradients(x, y)[1], strict=True))
    torch.testing.assert_close(of_others, {key: of_all[key] for key in trained})
    rule.configure_optimizers()
    before = state(network)
    for _ in range(2):
        rule.training_batch(x, y)
    moved = {key.split(".")[1] for key in changed(before, network.state_dict())}
    assert moved == {str(n - 1) for n in range(1, network.depth + 1)} - {"1"}


# --- locality ---------------------------------------------------------------------------------------------------------


@every_network_of(LocalLosses)
def test_the_local_loss_of_a_layer_reaches_the_weights_of_that_layer_alone(name, kind):
    network = small_network(name, kind)
    rule = make_trained(name, network)
    x, y = make_batch(network)
    x.requires_grad_()
    _, losses = rule.losses(x, y)
    assert sorted(losses) == list(range(1, network.depth + 1))
    # Of networks that learn in pairs, each loss reaches a layer of the other one too.
    forward = [x, *network.parameters()] if facts(name).mirrors else [x, *rule.parameters()]
    everything = [t for t in forward if t.requires_grad]
    for n, loss in losses.items():
        reached = torch.autograd.grad(loss, everything, allow_unused=True)
        own = {id(p) for p in network[n].parameters()}
        assert {id(t) for t, g in zip(everything, reached, strict=True) if g is not None} == own


@every_network_of(LocalTargets)
def test_targets_are_constants_of_the_shapes_of_the_activations(name, kind):
    network = small_network(name, kind)
    rule = make(name, network)
    x, y = make_batch(network)
    activations = rule.activations(x)
    targets = rule.targets(activations, y)
    assert sorted(targets) == list(range(1, rule.top + 1))
    assert all(not target.requires_grad and target.isfinite().all() for target in targets.values())
    assert all(target.shape == activations.s[n].shape for n, target in targets.items())


@every_network
def test_no_layer_receives_an_input_that_carries_gradients_unless_the_rule_is_said_not_to_be_local(name, kind):
    """Watches real training from outside: what enters a layer must be cut from what made it."""
    network = small_network(name, kind)
    rule = make_trained(name, network)
    entered = []

    def watch(n):
        # Prepended, so as to see what comes in before a rule's own hooks do.
        hook = lambda module, inputs: entered.append((n, inputs[0].requires_grad))  # noqa: E731
        network[n][0].register_forward_pre_hook(hook, prepend=True)

    for n in range(1, network.depth + 1):
        watch(n)
    rule.training_batch(*make_batch(network))
    with_gradient = {n for n, requires_grad in entered if requires_grad}
    if facts(name).not_local:
        assert with_gradient == set(range(2, network.depth + 1))
        return
    # Lee's first target is a gradient through the output layer, and only there.
    penultimate = getattr(rule.options, "first_target", "output") == "penultimate"
    assert with_gradient <= ({network.depth} if penultimate else set())


@pytest.mark.parametrize("name", [name for name in NAMES if not facts(name).not_local and not is_a(name, LocalLosses)])
def test_a_local_rule_without_local_losses_uses_no_gradients_at_all(name, monkeypatch):
    network = small_network(name)
    rule = make_trained(name, network)

    def refuse(*args, **kwargs):
        raise AssertionError("a gradient was asked for")

    for place, attribute in ((torch.autograd, "grad"), (torch.autograd, "backward"), (torch.Tensor, "backward")):
        monkeypatch.setattr(place, attribute, refuse)
    before = state(network)
    rule.training_batch(*make_batch(network))
    assert changed(before, network.state_dict()) == set(before)


# --- randomness and numbers -------------------------------------------------------------------------------------------


def train_from(name, kind, weights_seed, noise_seed):
    torch.manual_seed(weights_seed)
    rule = make_trained(name, small_network(name, kind), seed=noise_seed)
    batches = torch.Generator().manual_seed(0)
    randomness = torch.get_rng_state()
    for _ in range(3):
        x = torch.randn(6, *rule.network.input_shape, generator=batches)
        y = torch.randint(rule.network.num_classes, (6,), generator=batches)
        rule.training_batch(x, rule.task.goal(x, y))
    # Only the rule's own noise streams, which checkpoints save, may be drawn from.
    assert torch.equal(randomness, torch.get_rng_state())
    return state(rule)


@every_network
def test_weights_are_a_function_of_the_seed(name, kind):
    first = train_from(name, kind, 1, 1)
    assert_identical(first, train_from(name, kind, 1, 1))
    other = train_from(name, kind, 2, 2)
    assert of_network(changed(first, other)) == of_network(set(first))


@every_rule
def test_rules_that_train_feedback_on_noise_draw_other_noise_with_another_seed(name):
    first, other = train_from(name, "small", 1, 1), train_from(name, "small", 1, 2)
    learns = bool(make(name, small_network(name)).feedback_optimizer_list())
    assert bool(changed(first, other)) == (learns or facts(name).redraws or facts(name).noisy)


@every_network
def test_it_works_in_float64(name, kind):
    network = small_network(name, kind).double()
    rule = make_trained(name, network)
    logits, scalars = rule.training_batch(*make_batch(network))
    assert logits.dtype == torch.float64
    assert all(value.isfinite() for value in scalars.values())
    assert {t.dtype for t in rule.state_dict().values() if t.is_floating_point()} <= {torch.float64}


@every_network
def test_float32_gives_the_gradients_of_float64(name, kind):
    """A gradient that only comes out in double precision would be of no use in a run."""
    network = small_network(name, kind)
    rule = make_trained(name, network, **facts(name).linear)
    x, y = make_batch(network)
    single = rule.forward_gradients(x, y)[1]
    double = rule.double().forward_gradients(x.double(), y)[1]
    for a, b in zip(single, double, strict=True):
        assert (a.double() - b).norm() <= 1e-2 * b.norm()


@every_network
def test_it_trains_under_bfloat16_autocast(name, kind):
    network = small_network(name, kind)
    rule = make_trained(name, network)
    before = state(rule)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, scalars = rule.training_batch(*make_batch(network))
    assert all(value.isfinite().all() for value in (logits, *scalars.values(), *rule.parameters()))
    assert of_network(changed(before, rule.state_dict()))
    assert all(t.dtype == before[key].dtype for key, t in rule.state_dict().items())


def steps_when_clipped(name: str, **clipping: float) -> list[torch.Tensor]:
    """By how much each forward weight moves in a batch, by plain SGD at a rate of 1; none by a rule that refuses it."""
    network = small_network(name).double()
    plain = {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, **clipping}
    if not facts(name).clips:
        with pytest.raises(UserError, match=f"--{next(iter(clipping)).replace('_', '-')}: expected 0"):
            make_trained(name, network, **plain)
        return []
    rule = make_trained(name, network, **plain).double()
    before = [p.detach().clone() for p in rule.forward_parameters]
    rule.training_batch(*make_batch(network))
    return [p.detach() - old for p, old in zip(rule.forward_parameters, before, strict=True)]


@every_rule
def test_clip_norm_bounds_the_whole_forward_gradient(name):
    if moved := steps_when_clipped(name, clip_norm=1e-3):
        # torch adds 1e-6 to the norm that it divides by.
        assert torch.cat([step.flatten() for step in moved]).norm().item() == pytest.approx(1e-3, rel=1e-2)


@every_rule
def test_clip_each_bounds_the_gradient_of_each_weight(name):
    if moved := [step.norm().item() for step in steps_when_clipped(name, clip_each=1e-5)]:
        # torch adds 1e-6 to the norm that it divides by.
        assert max(moved) == pytest.approx(1e-5, rel=0.2) and max(moved) < 1e-5


# --- whole runs -------------------------------------------------------------------------------------------------------


@every_rule
def test_a_subclass_in_a_users_file_works_as_the_rule_does(name, tmp_path, monkeypatch):
    package, _, cls = ALGORITHMS.resolve(name).target.partition(":")
    text = f'from {package} import {cls}\n\n\nclass Mine({cls}):\n    """My own."""\n'
    (tmp_path / "file_of_a_user.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    # Another file of that name may have been imported by the test before.
    monkeypatch.delitem(sys.modules, "file_of_a_user", raising=False)
    network = small_network(name)
    entry = ALGORITHMS.resolve("file_of_a_user:Mine")
    first = state(network)
    batch = make_batch(network)
    results = []
    for made in (entry, ALGORITHMS.resolve(name)):
        network.load_state_dict(first)
        options = make_trained(name, network).options
        torch.manual_seed(0)
        rule = made.load()(network, options, seed=3)
        rule.configure_optimizers()
        rule.training_batch(*batch)
        results.append(state(rule))
    assert_identical(*results)


def run(name, folder, *words):
    """A run of two batches per epoch for two epochs; of large batches, so that testing takes few."""
    common = ["--data", "digits", "--batch-size", "128", "--max-epochs", "2", "--limit-train-batches", "2"]
    common += ["--limit-val-batches", "1", "--diagnostics-every", "0", "--log-every", "1", "--checkpoint-every", "0"]
    command = ["--algo", name, *facts(name).network.split(), *common, "--run-dir", str(folder), *words]
    return main(command)


def final_state(folder):
    checkpoint = torch.load(newest_checkpoint(folder), weights_only=True)
    assert checkpoint["global_step"] == 4
    return {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "noise")}


@every_rule
def test_a_run_from_the_command_line_that_is_stopped_and_resumed_equals_one_never_stopped(
    name, here, monkeypatch, capsys
):
    assert run(name, here / "whole") == 0
    summary = json.loads((here / "whole" / "summary.json").read_text())
    assert summary["algo"] == name and summary["steps"] == 4
    # Steps are batches, whatever a rule makes of one.
    with (here / "whole" / "metrics.csv").open() as file:
        losses = {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}
    assert list(losses) == [1, 2, 3, 4] and all(map(math.isfinite, losses.values()))
    with monkeypatch.context() as patch:
        # In the second epoch, which is the one that trains the forward weights where they take turns.
        stop_after(3, patch)
        assert run(name, here / "stopped", "--resume", "auto") == 75
    assert "after batch 3" in capsys.readouterr().err
    stop_request.signum = None
    assert run(name, here / "stopped", "--resume", "auto") == 0
    assert_identical(final_state(here / "whole"), final_state(here / "stopped"))
    first = torch.load(newest_checkpoint(here / "whole"), weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in first.values())


@pytest.mark.parametrize(
    "name", ["bp", "dtp", "vanilla-dtp", "drl", "fa", "dfa", "gait", "chl", "dfc", "ccl", "competitive", "dtp-dae"]
)
def test_a_run_in_64_bits_works(name, here):
    assert run(name, here / "run", "--precision", "64") == 0


def diagnostics(folder):
    """Angles of the updates to backprop's by layer, in each row of the metrics that has them."""
    with (folder / "metrics.csv").open() as file:
        rows = [
            {key: float(row[key]) for key in row if "update_angle" in key and row[key]} for row in csv.DictReader(file)
        ]
    return [row for row in rows if row]


@every_rule
def test_it_learns_digits_in_every_layer(name, here):
    """Random features and a trained output layer would pass for learning; so the lower updates are looked at too."""
    known = facts(name)
    epochs = str(known.epochs)
    words = [*known.network.split()[:2], *known.shorter.split()]
    command = ["--algo", name, "--data", "digits", *words, "--max-epochs", epochs, "--run-dir", "run"]
    assert main([*command, "--diagnostics-every", epochs, "--test-weights", "last", "--seed", "1"]) == 0
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["epochs"] == known.epochs
    task, error = summary["task"], -100 * summary.get("test_mse", 0)
    found = {"classification": "test_accuracy", "clustering": "test_purity"}.get(task)
    assert (100 * summary[found] if found else error) >= known.accuracy
    with (here / "run" / "metrics.csv").open() as file:
        columns = tuple(next(csv.reader(file)))[2:]
    # The figure of a sweep may show them all.
    require_metrics(Path("sweep.yaml"), [Part(metric=columns)], [task])
    assert {f"test/{name}" for name in SCORES[task][1]} | {f"train/{name}" for name in SCORES[task][0]} <= {*columns}
    measured = diagnostics(here / "run")
    if task == "clustering":
        assert not measured
        return
    _, last = measured
    assert last and (known.apart or all(found < 80 for found in last.values())), last
