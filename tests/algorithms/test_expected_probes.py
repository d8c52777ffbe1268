"""dtp on the mean over its noise probes (--probes expected): what it learns, computes, says, and refuses."""

import json
import math
import warnings

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils._python_dispatch import TorchDispatchMode

from dtp.algorithms import BP, DTP
from dtp.algorithms.local_targets import Activations
from dtp.algorithms.options import DTPOptions
from dtp.cli.arguments import parse
from dtp.cli.train import main
from dtp.errors import UserError
from dtp.feedback import Context, ExpectedLDRL, forward_with_context
from dtp.models import LeNet, as_network
from dtp.models.options import LeNetOptions
from dtp.run.folder import newest_checkpoint
from tests.algorithms.helpers import changed, make, relative, same, state
from tests.algorithms.networks import Layers, normalised_network, shipped_network, tanh_network
from tests.conftest import make_batch
from tests.runs import fails

EXPECTED = {"probes": "expected", "routing": "fixed"}


def vgg_like(function=nn.ELU) -> Layers:
    """Convolutions with pooling that overlaps or not, and linear layers, in float64."""
    layers = [
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), function(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), function(), nn.MaxPool2d(3, 2, 1)),
        nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), function()),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 7), function()),
        nn.Sequential(nn.Linear(7, 5)),
    ]
    return Layers(layers, (2, 16, 16)).double()


def rule_of(network, **options) -> DTP:
    return make("dtp", network, **{**EXPECTED, **options}).to(next(network.parameters()).dtype)


def trained(rule: DTP, x: Tensor, batches: int = 1) -> dict[str, Tensor]:
    for _ in range(batches):
        rule.feedback_phase(rule.activations(x))
    return state(rule.feedback)


# --- what it learns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("engine", ["auto", "literal"])
def test_unlimited_iterations_leave_the_weights_at_the_minimum_of_the_batch(optimizer, engine):
    network = vgg_like()
    options = {"feedback_optimizer": optimizer, "feedback_lr": [1e-3], "feedback_weight_decay": 1e-4}
    rule = rule_of(network, feedback_iterations=[math.inf], engine=engine, **options)
    activations = rule.activations(make_batch(network)[0])
    before = state(rule)
    scalars = rule.feedback_phase(activations)
    assert changed(before, state(rule)) == {f"feedback.{name}" for name in state(rule.feedback)}
    assert all(value.isfinite() for value in scalars.values()) and len(scalars) == 4
    for n in rule.trained_feedback:
        form = rule.expected_form(n)
        moments = form.moments((activations.s[n - 1], activations.s[n], activations.contexts[n]))
        gradient = form.quadratic(moments).gradient() + 1e-4 * form.weight
        assert gradient.norm() < 1e-12 * (moments.second * form.weight).norm()


@pytest.mark.parametrize("engine", ["auto", "reduced"])
@pytest.mark.parametrize("routing", ["fixed", "noisy"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_literal_engine_takes_its_steps_one_by_one_to_the_same_weights(engine, routing, momentum):
    found = []
    for name in (engine, "literal"):
        torch.manual_seed(0)
        network = vgg_like()
        rule = rule_of(
            network, routing=routing, engine=name, feedback_momentum=momentum, feedback_iterations=[20, 30, 0, 55]
        )
        steps = []
        rule.step = lambda *args, steps=steps, own=rule.step: (steps.append(1), own(*args))
        if name != "literal":
            del rule.step
        x = make_batch(network)[0]
        before = state(rule.feedback)
        found.append(trained(rule, x, batches=2))
        assert len(steps) == (2 * (20 + 30 + 55) if name == "literal" else 0)
        assert len(changed(before, found[-1])) == 3
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "options, nodes, scale, decay",
    [
        ({}, 5, None, 1.0),
        ({"probe_nodes": 9}, 9, None, 1.0),
        ({"probe_nodes": 1, "ldrl_scale": "paper"}, 1, "paper", 1.0),
        # In the first epoch.
        ({"noise_decay": 4.0}, 5, None, 1.25),
    ],
    ids=str,
)
def test_each_layer_steps_on_its_own_noise_with_the_nodes_and_the_scale_that_were_asked_for(
    options, nodes, scale, decay
):
    noise, rates, network = [0.1, 0.2, 0.3, 0.4], [0.01, 0.02, 0.03, 0.04], vgg_like()
    rule = rule_of(network, noise=noise, feedback_lr=rates, feedback_iterations=[1], feedback_momentum=0, **options)
    a = rule.activations(make_batch(network)[0])
    aims = {}
    for n, given, rate in zip(rule.trained_feedback, noise, rates, strict=True):
        sigma = given / decay
        paper = sigma if scale == "paper" else None
        form = ExpectedLDRL(network[n], rule.feedback[n], sigma, routing="fixed", paper_scale=paper, nodes=nodes)
        gradient = form.quadratic(form.moments((a.s[n - 1], a.s[n], a.contexts[n]))).gradient()
        aims[n] = (form, (form.weight - rate * gradient).detach(), gradient.norm())
    rule.feedback_phase(a)
    for n, (form, aim, size) in aims.items():
        assert (form.weight - aim).norm() < 1e-12 * size, n


def test_many_samples_per_iteration_come_to_the_same_weights():
    """Distance from the weights of 64 samples per iteration, relative to the way; one sample is further off."""
    ends = {}
    x = None
    for samples in (1, 64, None):
        torch.manual_seed(0)
        network = vgg_like()
        x = make_batch(network, 16)[0] if x is None else x
        options = {"feedback_iterations": [20], "noise": [0.2], "routing": "fixed"}
        how = {"probes": "expected"} if samples is None else {"probes": "sampled", "noise_samples": samples}
        rule = make("dtp", network, **options, **how).double()
        first = state(rule.feedback)
        ends[samples] = trained(rule, x, batches=2)
    for name, start in first.items():
        way = (ends[64][name] - start).norm()
        one, expected = ((ends[k][name] - ends[64][name]).norm() / way for k in (1, None))
        assert expected < 0.5 * one and expected < 0.06


@pytest.mark.parametrize("function", [nn.ELU, nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("unpool", ["add"])
def test_transposes_gated_by_the_clean_slopes_are_backprop(function, unpool):
    """To rounding and for any beta, as the feedback is linear: gradients divided by beta (times the scale of the local
    loss) are those of the mean cross-entropy."""
    network = vgg_like(function)
    x, y = make_batch(network)
    _, backprop = BP(network).forward_gradients(x, y)
    for beta in (0.1, 5.0):
        rule = DTP(network, DTPOptions(feedback_slope="clean", feedback_init="symmetric", beta=beta, unpool=unpool))
        _, found = rule.double().forward_gradients(x, y)
        scale = beta * rule.options.local_loss_scale
        for ours, theirs in zip(found, backprop, strict=True):
            torch.testing.assert_close(ours / scale, theirs, rtol=1e-10, atol=1e-14)


def test_gated_feedback_has_the_transpose_for_its_minimum_where_noise_is_small():
    for network in (vgg_like(nn.ELU), tanh_network(16, 12, 8, 5)):
        rule = rule_of(network, feedback_slope="clean", feedback_iterations=[math.inf], noise=[1e-4])
        x = make_batch(network)[0]
        trained(rule, x)
        for pairs in rule.feedback_weights().values():
            for v, w in pairs:
                assert relative(v, w) < 1e-4


def test_own_slopes_of_elu_have_no_such_minimum():
    network = tanh_network(16, 12, 8, 5)
    rule = rule_of(network, feedback_iterations=[math.inf], noise=[1e-4])
    trained(rule, make_batch(network)[0])
    (((v, w),), *_) = rule.feedback_weights().values()
    assert relative(v, w) > 0.005


def test_parallel_dtp_steps_on_the_mean():
    """Adam, one iteration, ten samples, of which nothing is left but the price."""
    found = []
    for samples in (10, 1):
        torch.manual_seed(0)
        network = vgg_like()
        rule = make("parallel-dtp", network, noise_samples=samples, **EXPECTED).double()
        x, y = make_batch(network)
        before = state(rule)
        for _ in range(3):
            rule.training_batch(x, y)
        found.append(state(rule))
        assert changed(before, found[-1]) == set(before)
    assert same(*found)


class LearnedHybrid(DTP):
    """A rule with targets of its own."""

    def lower_target(self, n, targets, activations):
        s = activations.s
        _, transpose = torch.func.vjp(self.network[n], s[n - 1])
        (exact,) = transpose(targets[n] - s[n])
        learned = super().lower_target(n, targets, activations) - s[n - 1]
        return s[n - 1] + 0.5 * exact + 0.5 * learned


def test_a_rule_with_other_targets_is_trained_in_expectation():
    network = vgg_like()
    rule = LearnedHybrid(network, DTPOptions(**EXPECTED)).double()
    rule.configure_optimizers()
    before = state(rule)
    rule.training_batch(*make_batch(network))
    assert changed(before, state(rule)) == set(before)
    assert set(rule.engine.used.values()) == {"expected"}


class OwnPass(DTP):
    """A rule with a clean pass of its own, which keeps nothing for anybody."""

    def activations(self, x, gradients=True):
        s, contexts, outputs = [x], [Context()], [x]
        for layer in self.network:
            output, context = forward_with_context(layer, s[-1])
            outputs.append(output)
            contexts.append(context)
            s.append(output.detach())
        return Activations(s, contexts, outputs)


def test_a_clean_pass_that_keeps_nothing_trains_the_same_weights():
    found = []
    for kind in (DTP, OwnPass):
        torch.manual_seed(0)
        network = vgg_like()
        rule = kind(network, DTPOptions(**EXPECTED)).double()
        rule.configure_optimizers()
        found.append(trained(rule, make_batch(network)[0]))
        assert set(rule.engine.used.values()) == {"expected"}
    assert same(*found)


# --- what it computes -------------------------------------------------------------------------------------------------

IMAGES = 23


class Dispatched(TorchDispatchMode):
    """Notes every operation that torch carries out, with the shapes of its operands."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        self.calls.append((func.__name__.partition(".")[0], [t.shape for t in tensors]))
        return func(*args, **(kwargs or {}))

    def products(self) -> list[tuple[str, list[torch.Size]]]:
        """Matrix products and convolutions."""
        words = ("conv", "mm", "matmul", "bmm", "mv", "dot", "einsum", "linear")
        return [(name, shapes) for name, shapes in self.calls if any(word in name for word in words)]


@pytest.mark.parametrize("slope", ["own", "clean"])
@pytest.mark.parametrize("iterations", [20, math.inf])
@pytest.mark.parametrize(
    "make_network",
    [vgg_like, normalised_network, lambda: tanh_network(16, 12, 8, 5), lambda: shipped_network("lc").double()],
    ids=["vgg", "normalised", "linear", "local"],
)
def test_no_product_of_a_phase_has_the_size_of_the_batch(make_network, iterations, slope):
    """No convolution, and no matrix product with activations: what it takes are sums of them, and a few of weights. Nor
    does anything wait for the device, from the second batch on."""
    network = make_network().double()
    rule = rule_of(network, feedback_iterations=[iterations], feedback_slope=slope)
    x = make_batch(network, IMAGES)[0]
    activations = rule.activations(x)
    rule.feedback_phase(activations)
    assert set(rule.engine.used.values()) == {"expected"}
    with Dispatched() as seen:
        rule.feedback_phase(activations)
    assert len(seen.calls) > 20
    names = {name for name, _ in seen.calls}
    assert not {name for name in names if "conv" in name}
    for name, shapes in seen.products():
        # Weighted sums over the nodes of the quadrature are no products to speak of.
        if shapes[0] != (1, 4):
            assert not any(size % IMAGES == 0 for shape in shapes for size in shape), (name, shapes)
    assert not names & {"_local_scalar_dense", "nonzero", "item", "equal"}


def test_the_literal_engine_samples_nothing_either():
    network = vgg_like()
    rule = rule_of(network, engine="literal", feedback_iterations=[3])
    activations = rule.activations(make_batch(network, IMAGES)[0])
    with Dispatched() as seen:
        rule.feedback_phase(activations)
    assert not {name for name, _ in seen.calls if "conv" in name or "normal" in name or "rand" in name}


def test_nothing_is_drawn_where_means_are_known_and_once_per_batch_elsewhere():
    network = vgg_like()
    for routing, expected in (("fixed", {}), ("noisy", {2: 1, 3: 0, 4: 0, 5: 0})):
        rule = rule_of(network, routing=routing, feedback_iterations=[20])
        drawn, own = [], rule.feedback_noise
        rule.feedback_noise = lambda n, a, drawn=drawn, own=own: (drawn.append(n), own(n, a))[1]
        rule.feedback_phase(rule.activations(make_batch(network)[0]))
        assert drawn == [n for n, count in expected.items() for _ in range(count)]


def test_what_is_kept_for_the_mean_the_forward_pass_keeps_anyway():
    """For its own gradients, or as its output, where the nonlinearity is differentiated at what it was given."""
    network = vgg_like(nn.ELU)
    rule, kept = rule_of(network), set()

    def keep(tensor: Tensor) -> Tensor:
        kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        a = rule.activations(make_batch(network)[0])
    kept |= {output.data_ptr() for output in a.outputs}
    values = [a.contexts[n].affine for n in rule.trained_feedback]
    assert len(values) == 4 and all(value is not None and value.data_ptr() in kept for value in values)


# --- layers whose mean is not known -----------------------------------------------------------------------------------


def mixed() -> Layers:
    """Of the layers that have feedback: average pooling, a residual unit, one with a mean."""
    network = shipped_network("resnet18")
    layers = [
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ELU()),
        nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ELU(), nn.AvgPool2d(2)),
        network[2],
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ELU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),
    ]
    return Layers(layers, (2, 16, 16))


def test_layers_without_a_mean_are_sampled_as_before_and_say_why():
    torch.manual_seed(0)
    network = mixed().double()
    rule = rule_of(network)
    forms = rule.feedback_forms()
    assert forms[2].startswith("reduced") and "its noise is drawn" in forms[2] and "PoolingAdjoint" in forms[2]
    assert "its noise is drawn" in forms[3]
    assert forms[4] == forms[5] == "in expectation"
    before = state(rule.feedback)
    x = make_batch(network)[0]
    rule.feedback_phase(rule.activations(x))
    assert changed(before, state(rule.feedback)) == set(before)
    assert rule.engine.used == {2: "reduced", 3: "literal", 4: "expected", 5: "expected"}
    described = rule.describe()
    assert described["feedback_forms"]["2"] == rule.feedback_forms()[2]
    assert described["feedback_engines"]["5"] == "expected"
    # The same as without, for those that are sampled.
    torch.manual_seed(0)
    sampled = make("dtp", mixed().double(), routing="fixed").double()
    sampled.feedback_phase(sampled.activations(x))
    names = [name for name in before if name.startswith(("2.", "3."))]
    assert len(names) > 2
    found = state(rule.feedback)
    assert all(torch.equal(value, found[name]) for name, value in state(sampled.feedback).items() if name in names)


def test_a_network_of_the_users_own_is_all_in_expectation():
    """What stands before its linear layer, a flatten and a dropout, ends the layer below when it is cut."""
    convolutions = [nn.Conv2d(2, 3, 3), nn.ELU(), nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    network = as_network(nn.Sequential(*convolutions, nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 5)), (2, 8, 8))
    assert any(isinstance(module, nn.Flatten) for module in network[2])
    rule = rule_of(network)
    assert set(rule.feedback_forms().values()) == {"in expectation"}
    before = state(rule)
    rule.training_batch(*make_batch(network))
    assert set(rule.engine.used.values()) == {"expected"} and changed(before, state(rule)) == set(before)


def test_noisy_maxima_are_said_to_be_drawn():
    forms = rule_of(vgg_like(), routing="noisy", noise_samples=4).feedback_forms()
    assert forms[2].startswith("in expectation; its first term from 4 noise samples per batch: the maxima move")
    assert forms[3] == forms[4] == forms[5] == "in expectation"


class Positive(nn.Module):
    """A parametrisation by the absolute value."""

    def forward(self, weight):
        return weight.abs()


def test_weights_parametrised_after_the_rule_was_made_are_sampled_and_trained():
    network = tanh_network(16, 12, 8, 5)
    rule = rule_of(network)
    assert rule.feedback_forms()[2] == "in expectation"
    register_parametrization(rule.feedback[2].operations[-1].linear, "weight", Positive())
    rule.configure_optimizers()
    assert "not linear in one weight" in rule.feedback_forms()[2]
    before = state(rule.feedback)
    assert changed(before, trained(rule, make_batch(network)[0])) == set(before)


def test_the_warning_of_few_samples_says_why_they_are_drawn_and_what_can_be_done():
    with pytest.warns(UserWarning, match=r"once per batch \(the maxima move.*use --routing fixed, or about as many"):
        rule_of(vgg_like(), routing="noisy")
    network = tanh_network(16, 12, 8, 5)
    nn.utils.parametrizations.weight_norm(network[2][0])
    with pytest.warns(UserWarning, match=r"\(its affine map is not one of the known ones.*diverge; use about as many"):
        rule_of(network, routing="noisy")


def test_layers_that_take_no_iterations_draw_nothing_to_be_warned_of():
    with pytest.warns(UserWarning, match="the first term of layer 2 is drawn from 1"):
        rule_of(vgg_like(), routing="noisy")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        rule_of(vgg_like(), routing="noisy", feedback_iterations=[0, 20, 20, 20])


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_network", [vgg_like, mixed], ids=["vgg", "mixed"])
@pytest.mark.parametrize("routing", ["fixed", "noisy"])
@pytest.mark.parametrize("slope", ["own", "clean"])
def test_forward_passes_in_bfloat16_train_about_the_same_weights(make_network, routing, slope):
    """Also where some layers are sampled, for which the pass is taken again in full precision."""
    found = []
    for rounded in (False, True):
        torch.manual_seed(0)
        network = make_network().float()
        rule = rule_of(network, routing=routing, feedback_slope=slope)
        x = make_batch(network)[0]
        first = state(rule.feedback)
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            rule.feedback_phase(rule.activations(x))
        found.append(state(rule.feedback))
    for name, value in first.items():
        assert found[1][name].dtype == torch.float32
        assert relative(found[1][name] - value, found[0][name] - value) < 0.15


def test_forward_passes_in_bfloat16_are_not_taken_again():
    network = vgg_like().float()
    rule = rule_of(network)
    x = make_batch(network)[0]
    with torch.autocast("cpu", torch.bfloat16):
        activations = rule.activations(x)
        assert activations.contexts[2].affine.dtype == torch.bfloat16
        with Dispatched() as seen:
            rule.feedback_phase(activations)
    assert not {name for name, _ in seen.calls if "conv" in name}


class Tied(DTP):
    """Two feedback layers with one weight."""

    def make_feedback(self):
        feedback = super().make_feedback()
        feedback[3].operations[-1].linear.weight = feedback[2].operations[-1].linear.weight
        return feedback


def square_layers() -> Layers:
    """Two of the same shape above each other."""
    layers = [nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ELU()), *(nn.Sequential(nn.Linear(6, 6)) for _ in "23")]
    return Layers([*layers, nn.Sequential(nn.Linear(6, 5))], (2, 2, 2)).double()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_layers_that_share_weights_take_their_steps_together(momentum):
    """Each iteration's gradients before any step, as in the literal form; no layer leaps past the others."""
    network = square_layers()
    rule = Tied(network, DTPOptions(**EXPECTED, feedback_iterations=[4], feedback_lr=[0.5], feedback_momentum=momentum))
    rule.double().configure_optimizers()
    x, _ = make_batch(network)
    a = rule.activations(x)
    forms = {n: rule.expected_form(n) for n in (2, 3)}
    losses = {n: form.quadratic(form.moments((a.s[n - 1], a.s[n], a.contexts[n]))) for n, form in forms.items()}
    v = forms[2].weight
    assert forms[3].weight is v
    expected, velocities = v.detach().clone(), {n: torch.zeros_like(v) for n in forms}
    for _ in range(4):
        gradients = {n: loss.curvature * expected + loss.at_zero for n, loss in losses.items()}
        for n, gradient in gradients.items():
            velocities[n] = momentum * velocities[n] + gradient
            expected = expected - 0.5 * velocities[n]
    before = v.detach().clone()
    rule.feedback_phase(a)
    assert relative(v.detach(), expected) < 1e-12 < relative(v.detach(), before)


def test_layers_that_share_weights_are_not_captured_apart():
    """Their recursions would run at the same time on a GPU; steps are those of the literal form."""
    ends = []
    for engine in ("literal", "graph"):
        torch.manual_seed(2)
        network = square_layers()
        rule = Tied(network, DTPOptions(engine=engine, feedback_iterations=[4], feedback_lr=[0.05])).double()
        rule.configure_optimizers()
        rule.feedback_phase(rule.activations(make_batch(network)[0]))
        ends.append(torch.cat([p.detach().flatten() for p in rule.feedback.parameters()]))
    assert relative(*ends) < 1e-11 and set(rule.engine.used.values()) == {"reduced"}


def test_what_is_least_for_two_layers_with_one_weight_is_refused():
    options = DTPOptions(**EXPECTED, feedback_iterations=[math.inf])
    with pytest.raises(UserError, match="inf for layer 2, which shares feedback weights with layer 3"):
        Tied(square_layers(), options)


def test_nothing_of_the_way_to_the_minimum_is_left_in_an_optimizer():
    """A velocity or moments would be those of weights that are no longer there."""
    network = vgg_like()
    x, _ = make_batch(network)
    rule = rule_of(network, feedback_optimizer="adam")
    trained(rule, x)
    assert all(optimizer.state for optimizer in rule.feedback_optimizers.values())
    rule.feedback_iterations = dict.fromkeys(rule.feedback_iterations, math.inf)
    trained(rule, x)
    assert not any(optimizer.state for optimizer in rule.feedback_optimizers.values())


class KeepsNothing(DTP):
    def kept(self, n):
        return {}


def test_a_rule_that_keeps_no_slopes_where_they_are_asked_for_is_told_so():
    network = vgg_like()
    rule = KeepsNothing(network, DTPOptions(**EXPECTED, feedback_slope="clean")).double()
    rule.configure_optimizers()
    with pytest.raises(UserError, match=r"Expected the slope of ELU.*super\(\).kept\(n\)"):
        rule.training_batch(*make_batch(network))


# --- what is refused --------------------------------------------------------------------------------------------------


class OtherLoss(DTP):
    def feedback_loss(self, n, activations, noise):
        return 2 * super().feedback_loss(n, activations, noise)


class OtherNoise(DTP):
    def feedback_noise(self, n, activations):
        return super().feedback_noise(n, activations)


class OtherDraw(DTP):
    def draw_noise(self, n, like):
        return super().draw_noise(n, like).sign()


@pytest.mark.parametrize(
    "kind, hook", [(OtherLoss, "feedback_loss"), (OtherNoise, "feedback_noise"), (OtherDraw, "draw_noise")]
)
def test_a_rule_with_a_loss_or_noise_of_its_own_is_refused(kind, hook, mlp):
    with pytest.raises(
        UserError, match=f"--probes expected: {kind.__name__} has a {hook} of its own.*--probes sampled"
    ):
        rule = kind(mlp, DTPOptions(**EXPECTED))
        rule.configure_optimizers()
    kind(mlp, DTPOptions()).configure_optimizers()


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--feedback-iterations inf", "--feedback-iterations: expected whole numbers, found inf for layer 2"),
        ("--probes expected --probe-nodes 0", "--probe-nodes: expected a number from 1 to 200, found 0"),
        ("--probes expected --probe-nodes 400", "--probe-nodes: expected a number from 1 to 200, found 400"),
        ("--probe-nodes 7", "--probe-nodes: expected --probes expected"),
        ("--probes expected --feedback-stop-distance 0.1", "--feedback-stop-distance: expected 0 with"),
        ("--probes expected --feedback-iterations -1", "--feedback-iterations: expected values of at least 0"),
        ("--probes expected --feedback-iterations 1.5", "--feedback-iterations: expected a whole number or inf"),
        ("--probes expected --feedback-iterations nan", "--feedback-iterations: expected a whole number or inf"),
        ("--probes all", "--probes"),
        ("--feedback-slope forward", "--feedback-slope"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(words, expected, capsys, here):
    fails(capsys, ["--algo", "dtp", "--model", "mlp", *words.split()], expected)


def test_unlimited_iterations_of_a_rule_that_samples_are_refused(capsys, here):
    fails(capsys, ["--algo", "vanilla-dtp", "--feedback-iterations", "inf"], "--feedback-iterations")


def test_unlimited_iterations_are_refused_for_layers_without_a_mean():
    with pytest.raises(UserError, match="found inf for layer 2.*PoolingAdjoint.*give a number"):
        rule_of(mixed(), feedback_iterations=[math.inf])
    rule_of(mixed(), feedback_iterations=[2, 3, math.inf, math.inf])


# --- whole runs -------------------------------------------------------------------------------------------------------

RUN = "--algo dtp --data digits --model mlp --widths 32 16 --probes expected --routing fixed --batch-size 128".split()


@pytest.mark.parametrize("iterations", ["20", "inf"])
def test_digits_are_learned(iterations, here):
    words = ["--algo", "dtp", "--probes", "expected", "--routing", "fixed", "--feedback-iterations", iterations]
    assert main([*words, "--max-epochs", "8", "--run-dir", "run"]) == 0
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.92
    assert set(summary["feedback_forms"].values()) == {"in expectation"}
    assert set(summary["feedback_engines"].values()) == {"expected"}


@pytest.mark.filterwarnings("ignore:--probes expected. the first term")
def test_verbose_and_the_summary_say_how_each_layer_is_trained_and_why(here, capsys):
    words = "--algo dtp --data digits --model lenet --channels 2 2 --hidden 4 --probes expected --routing noisy"
    assert main([*words.split(), "--max-steps", "1", "--batch-size", "8", "--verbose", "--run-dir", "run"]) == 0
    forms = json.loads((here / "run" / "summary.json").read_text())["feedback_forms"]
    assert forms["2"].endswith("1 noise samples per batch: the maxima move with the noise (--routing noisy)")
    assert forms["3"] == forms["4"] == "in expectation"
    said = capsys.readouterr().out.splitlines()
    assert all(f"  feedback of layer {n}: {form}" in said for n, form in forms.items())


@pytest.mark.parametrize("given, meant", [("inf", [math.inf]), ("20 inf", [20, math.inf]), ("7", [7])])
def test_iterations_survive_the_saved_configuration(given, meant, here):
    words = [*RUN, "--max-epochs", "1", "--feedback-iterations", *given.split()]
    assert main([*words, "--run-dir", "run"]) == 0
    again = parse(["--config", "run/config.yaml"])
    assert again.algo.feedback_iterations == meant
    assert [type(k) for k in again.algo.feedback_iterations] == [type(k) for k in meant]
    saved = yaml.safe_load((here / "run" / "config.yaml").read_text())
    assert saved["feedback_iterations"] == meant
    assert main(["--config", "run/config.yaml", "--run-dir", "again"]) == 0
    first, second = (json.loads((here / run / "summary.json").read_text()) for run in ("run", "again"))
    assert first["test_loss"] == second["test_loss"]


@pytest.mark.parametrize("more", ["--feedback-iterations inf", "--feedback-iterations 7 20", "--routing noisy"])
def test_a_run_that_is_resumed_equals_one_at_once(more, here):
    words = [*RUN, "--max-epochs", "2", *more.split()]
    assert main([*words, "--run-dir", "whole"]) == 0
    assert main([*words, "--run-dir", "parts", "--resume", "auto", "--max-steps", "13"]) == 0
    assert main([*words, "--run-dir", "parts", "--resume", "auto"]) == 0
    whole, parts = (torch.load(newest_checkpoint(here / run), weights_only=True) for run in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"]
    assert all(torch.equal(value, parts["state_dict"][name]) for name, value in whole["state_dict"].items())
    for one, other in zip(whole["optimizer_states"], parts["optimizer_states"], strict=True):
        for n, values in one["state"].items():
            assert all(torch.equal(value, other["state"][n][name]) for name, value in values.items())


def test_optimizer_states_are_the_same_for_both_kinds_of_probes():
    lenet = LeNet(LeNetOptions(channels=[3, 4], hidden=8), (2, 12, 12), 5).double()
    sampled, expected = make("dtp", lenet, routing="fixed").double(), rule_of(lenet)
    x = make_batch(lenet)[0]
    for one, other in ((sampled, expected), (expected, sampled)):
        trained(one, x)
        other.feedback.load_state_dict(one.feedback.state_dict())
        for n, optimizer in one.feedback_optimizers.items():
            other.feedback_optimizers[n].load_state_dict(optimizer.state_dict())
            (momentum,) = other.feedback_optimizers[n].state.values()
            assert momentum["momentum_buffer"].norm() > 0
        before = state(other.feedback)
        assert len(changed(before, trained(other, x))) == len(before)
