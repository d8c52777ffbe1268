"""The reduced form of L-DRL against the literal loss, which is its specification: same weights after many steps."""

import copy
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dtp.algorithms import DTP, ParallelDTP
from dtp.algorithms.options import DTPOptions
from dtp.errors import UserError
from dtp.feedback import (
    Elementwise,
    FeedbackLayer,
    FeedbackNetwork,
    FeedbackOperation,
    FeedbackSettings,
    LinearMap,
    NoiseStreams,
    NotReducible,
    ReducedLDRL,
    derive_feedback,
    register_feedback,
)
from dtp.models import Network
from dtp.models.options import ModelOptions
from tests.conftest import make_batch

from .helpers import (
    LAYERS,
    MAPS,
    OF_MAPS,
    Task,
    assert_same_training,
    conv,
    norm,
    relative_difference,
    task,
    train_both,
    undo,
)

layers = pytest.mark.parametrize("name", LAYERS)
routings = pytest.mark.parametrize("routing", ["noisy", "fixed"])
# One of each way in which the form is evaluated.
kinds = pytest.mark.parametrize("name", ["linear", "linear-wide", "flatten-linear-elu", "conv", "conv-bn-elu-pool"])


# --- equality with the literal form -----------------------------------------------------------------------------------


@layers
@pytest.mark.parametrize(("routing", "samples"), [("noisy", 1), ("fixed", 3)])
def test_momentum_steps_leave_the_weights_of_the_literal_form(name, routing, samples):
    """And report its loss."""
    assert_same_training(task(name), routing=routing, noise_samples=samples)


@layers
def test_adam_steps_leave_the_weights_of_the_literal_form(name):
    assert_same_training(task(name), optimizer="adam")


@pytest.mark.parametrize("name", OF_MAPS)
@routings
def test_channels_last_changes_nothing_but_rounding(name, routing):
    of_maps = task(name, memory_format=torch.channels_last)
    assert not of_maps.s_in.is_contiguous()
    assert_same_training(of_maps, routing=routing, noise_samples=2)


@pytest.mark.parametrize("images", [torch.contiguous_format, torch.channels_last])
@routings
def test_layouts_of_images_and_weights_may_differ(images, routing):
    weights = torch.channels_last if images is torch.contiguous_format else torch.contiguous_format
    mixed = task("conv-elu-overlapping-pool", memory_format=images)
    mixed.layer.to(memory_format=weights), mixed.feedback.to(memory_format=weights)
    assert_same_training(mixed, routing=routing)


@kinds
@routings
@pytest.mark.parametrize("samples", [1, 3])
def test_papers_scale_is_that_of_the_literal_form(name, routing, samples):
    assert_same_training(task(name), routing=routing, noise_samples=samples, paper_scale=0.3)


@kinds
@pytest.mark.parametrize("at_once", [1, 4, 10])
@pytest.mark.parametrize("samples", [1, 3])
def test_number_of_iterations_computed_at_once_changes_nothing(name, at_once, samples, monkeypatch):
    computed, constants = [], ReducedLDRL.constants

    def count(form, clean, noise, iterations, **named):
        computed.append(iterations)
        return constants(form, clean, noise, iterations, **named)

    monkeypatch.setattr(ReducedLDRL, "constants", count)
    one = task(name)
    form = ReducedLDRL(one.layer, one.feedback, noise_samples=samples)
    one_iteration = form.bytes_per_iteration(form.clean_pass(*one.clean), one.s_in)
    assert_same_training(one, noise_samples=samples, memory=at_once * one_iteration)
    assert computed == {1: [1] * 10, 4: [4, 4, 2], 10: [10]}[at_once]


def test_memory_for_less_than_one_iteration_is_enough():
    assert_same_training(task("conv-elu-pool"), memory=1)


@kinds
def test_all_settings_together_leave_the_weights_of_the_literal_form(name):
    one = task(name, bias=True, batch=3)
    assert_same_training(one, routing="fixed", noise_samples=3, paper_scale=0.3, weight_decay=0.1, memory=50_000)


def test_sums_of_products_are_kept_where_they_are_cheaper():
    cheap, dear = task("linear"), task("linear-wide")
    for one, summed in ((cheap, True), (dear, False)):
        form = ReducedLDRL(one.layer, one.feedback)
        streams = NoiseStreams(0)
        constants = form.constants(form.clean_pass(*one.clean), [one.draw(streams) for _ in range(5)])
        assert form.gram(len(one.s_in)) == constants.summed == summed
        out = one.s_out.shape[1]
        assert constants.q.shape == ((5, out, out) if summed else (5, len(one.s_in), out))
        assert form.gram(len(one.s_in)) == summed


@layers
def test_running_statistics_activations_and_noise_stay_as_they_are(name):
    """In-place nonlinearities and the form's own in-place arithmetic must reach nothing that is not theirs."""
    one = task(name)
    form = ReducedLDRL(one.layer, one.feedback, noise_samples=2)
    streams = NoiseStreams(0)
    noise = [one.draw(streams, 2) for _ in range(3)]
    indices = [item.indices for item in one.context if hasattr(item, "indices")]
    tensors = [one.s_in, one.s_out, *indices, *(t for pair in noise for t in pair), *one.layer.state_dict().values()]
    before = [t.clone() for t in tensors]
    clean = form.clean_pass(*one.clean)
    kept = [clean.affine.clone(), clean.phi.clone()]
    for k in (1, 3):  # one iteration is not copied into a batch of several
        form.constants(clean, noise[:k])
    assert all(torch.equal(t, old) for t, old in zip(tensors, before, strict=True))
    assert torch.equal(clean.affine, kept[0]) and torch.equal(clean.phi, kept[1])


def test_costs_four_convolutions_per_iteration_where_the_literal_form_costs_seven():
    one = task("conv-elu-pool")
    forward = FlopCounterMode(display=False)
    with forward:
        one.layer(one.s_in)
    flops = {}
    for reduced in (False, True):
        with FlopCounterMode(display=False) as counter:
            one.train(reduced, iterations=20)
        flops[reduced] = counter.get_total_flops() / forward.get_total_flops()
    assert flops == {False: 20 * 7, True: 20 * 4 + 1}


# --- the bias ---------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_feedback_bias_has_no_gradient_in_either_form(name, optimizer):
    one = task(name, bias=True)
    streams = NoiseStreams(0)
    noise = one.draw(streams)
    weight, bias = torch.autograd.grad(one.loss(noise), one.parameters)
    assert bias.norm() < 1e-12 * weight.norm()
    literal, reduced = train_both(one, optimizer=optimizer)
    assert one.first[1].norm() > 0
    assert torch.equal(reduced.weights[1], one.first[1])
    # Adam divides the rounding errors of the literal form by 1e-8.
    torch.testing.assert_close(literal.weights[1], one.first[1], rtol=0, atol=1e-12 if optimizer != "adam" else 1e-6)


@kinds
def test_weight_decay_acts_on_the_feedback_bias_too(name):
    one = task(name, bias=True)
    assert_same_training(one, weight_decay=0.1)
    bias = one.train(reduced=True, weight_decay=0.1).weights[1]
    assert bias.norm() < 0.99 * one.first[1].norm()


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@routings
def test_float32_errors_are_no_larger_than_those_of_the_literal_form(routing, memory_format):
    """Against the literal form in float64, from the same float32 weights, images and noise."""
    in_shape = (8, 16, 16)
    layer = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ELU(), nn.MaxPool2d(2))
    feedback = undo(layer, in_shape)
    arguments = {"batch": 16, "memory_format": memory_format}
    exact = Task(copy.deepcopy(layer), in_shape, copy.deepcopy(feedback), **arguments)
    rounded = Task(layer, in_shape, feedback, dtype=torch.float32, **arguments)
    expected = exact.train(reduced=False, routing=routing).weights[0]
    literal, reduced = (
        relative_difference(trained.weights[0], expected) for trained in train_both(rounded, routing=routing)
    )
    assert reduced <= 2 * literal < 1e-5, f"errors: literal {literal:.2e}, reduced {reduced:.2e}"


# --- the distance of the Jacobians, and stopping at it ----------------------------------------------------------------


def true_distance(one: Task) -> float:
    """|J_G - J_F^T| / |J_F|, of whole matrices and over all samples of the batch."""
    difference = size = 0.0
    for i in range(len(one.s_in)):
        sample = one.context.select(slice(i, i + 1))
        j_f = jacrev(lambda s: one.layer(s[None])[0].flatten())(one.s_in[i]).flatten(1)
        j_g = jacrev(lambda y, c=sample: one.feedback(y[None], c)[0].flatten())(one.s_out[i]).flatten(1)
        difference += (j_g - j_f.T).square().sum().item()
        size += j_f.square().sum().item()
    return math.sqrt(difference / size)


def assert_distance_is_the_jacobians(name: str, alignment: float, routing: str, batch: int, sigma: float) -> None:
    """The mean of many estimates, squared, is the true one, for weights on the line from random to transposed ones."""
    make, in_shape, settings = LAYERS[name]
    layer = make()
    feedback, transposed = undo(layer, in_shape, **settings), undo(layer, in_shape, symmetric=True)
    with torch.no_grad():
        for v, w in zip(feedback.parameters(), transposed.parameters(), strict=True):
            v.mul_(1 - alignment).add_(w, alpha=alignment)
    one = Task(layer, in_shape, feedback, batch=batch, sigma=sigma)
    samples = 400 // batch
    form = ReducedLDRL(one.layer, one.feedback, routing=routing, noise_samples=samples, paper_scale=0.3)
    streams, clean = NoiseStreams(0), form.clean_pass(*one.clean)
    constants = form.constants(clean, [one.draw(streams, samples) for _ in range(20)], distance=True)
    with torch.no_grad():
        found = [form.distance(constants, i, form.quadratic_gradient(constants, i), batch) for i in range(20)]
    found, true = torch.stack(found).square(), true_distance(one) ** 2
    error = (found.std() / math.sqrt(len(found))).item()
    assert error < 0.05 * true, "enough samples to tell"
    assert abs(found.mean().item() - true) < 5 * error + 1e-3


@pytest.mark.parametrize(
    ("name", "routing"),
    [
        ("linear", "noisy"),
        ("linear-wide", "noisy"),
        ("conv-tanh", "noisy"),
        ("conv-elu-average", "noisy"),
        ("conv-elu-pool", "fixed"),
        ("conv-elu-overlapping-pool", "fixed"),
        ("conv-bn-eval-elu-pool", "fixed"),
    ],
)
@pytest.mark.parametrize("alignment", [0.0, 0.6, 2.0])
def test_distance_tends_to_that_of_the_jacobians_for_small_noise(name, routing, alignment):
    assert_distance_is_the_jacobians(name, alignment, routing, batch=4, sigma=1e-4)


@pytest.mark.parametrize(
    ("layer", "routing", "told"),
    [
        (conv(nn.ELU(), nn.MaxPool2d(2)), "noisy", False),
        (conv(nn.ELU(), nn.MaxPool2d(2)), "fixed", True),
        (conv(nn.ELU()), "noisy", True),
    ],
)
def test_maxima_that_move_with_the_noise_leave_the_distance_unknown(layer, routing, told):
    """They add as much to <eps, A_V(p)> as the Jacobians do, for any noise."""
    assert ReducedLDRL(layer, undo(layer, MAPS), routing=routing).tells_distance is told


def aligned(**options) -> Task:
    """A layer whose feedback has the transposed weights: with leaky ReLU its Jacobian is the transposed one."""
    layer = conv(nn.LeakyReLU(0.2), nn.MaxPool2d(2))
    return Task(layer, MAPS, undo(layer, MAPS, symmetric=True), batch=16, **options)


def test_an_aligned_layer_takes_no_step():
    one = aligned()
    trained = one.train(reduced=True, routing="fixed", stop_distance=0.4)
    assert trained.steps == 0
    assert torch.equal(trained.weights[0], one.first[0])
    # The loss is that of the iteration that found it aligned.
    noise = one.draw(NoiseStreams(seed=1))
    torch.testing.assert_close(trained.loss, one.loss(noise, routing="fixed").detach(), rtol=1e-10, atol=0)


def test_a_layer_far_from_aligned_takes_all_steps():
    one = task("conv-elu-pool", batch=64)
    trained = one.train(reduced=True, routing="fixed", iterations=5, stop_distance=0.1)
    assert trained.steps == 5
    assert torch.equal(trained.weights[0], one.train(reduced=True, routing="fixed", iterations=5).weights[0])


def test_an_aligned_layer_takes_all_steps_where_stopping_is_not_asked_for():
    assert aligned().train(reduced=True, routing="fixed").steps == 10


@pytest.mark.parametrize("memory", [1, 1 << 26])
@pytest.mark.parametrize("stop_distance", [0.8, 0.5])
def test_steps_end_at_the_first_iteration_that_finds_the_layer_aligned(stop_distance, memory, monkeypatch):
    seen, distance = [], ReducedLDRL.distance

    def watch(*arguments):
        seen.append(distance(*arguments).item())
        return torch.tensor(seen[-1])

    monkeypatch.setattr(ReducedLDRL, "distance", watch)
    one = task("conv-elu-pool", batch=32)
    stopped = one.train(reduced=True, routing="fixed", iterations=40, memory=memory, stop_distance=stop_distance)
    assert 0 < stopped.steps < 40
    assert len(seen) == stopped.steps + 1 and min(seen[:-1]) > stop_distance >= seen[-1]
    whole = one.train(reduced=True, routing="fixed", iterations=stopped.steps)
    assert torch.equal(stopped.weights[0], whole.weights[0])


def test_noise_drawn_does_not_depend_on_the_memory_where_a_layer_stops():
    """A run must not change with the memory it may take."""
    one = aligned()
    states = [
        one.train(reduced=True, routing="fixed", stop_distance=0.4, memory=m).noise["states"][2] for m in (1, 1 << 26)
    ]
    assert torch.equal(*states)


# --- the user's own affine operations ---------------------------------------------------------------------------------


class Scaling(nn.Module):
    """Multiply every channel by a weight of its own."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x):
        return x * self.gain


class ScalingFeedback(LinearMap):
    """Its feedback, a diagonal map."""

    def __init__(self, scaling: Scaling):
        super().__init__()
        self.gain = nn.Parameter(torch.rand_like(scaling.gain))

    def forward(self, y, context=None):
        return y * self.gain

    @property
    def weight(self):
        return self.gain

    def apply_weight(self, y, weight):
        return y * weight

    def weight_gradient(self, y, error):
        return (y * error).sum((0, 2, 3), keepdim=True)[0]


class Local(nn.Module):
    """A linear map of the channels with other weights at every position: (B, P, i) -> (B, P, o)."""

    def __init__(self, positions: int, features_in: int, features_out: int):
        super().__init__()
        self.maps = nn.Parameter(torch.randn(positions, features_out, features_in))

    def forward(self, x):
        return torch.einsum("bpi,poi->bpo", x, self.maps)


class LocalFeedback(LinearMap):
    """Its feedback, with a bias; it takes the weight gradients of several batches at once."""

    def __init__(self, local: Local):
        super().__init__()
        self.maps = nn.Parameter(torch.randn_like(local.maps))
        self.bias = nn.Parameter(torch.randn(local.maps.shape[2]))

    def forward(self, y, context=None):
        return self.apply_weight(y, self.maps) + self.bias

    @property
    def weight(self):
        return self.maps

    def apply_weight(self, y, weight):
        return torch.einsum("bpo,poi->bpi", y, weight)

    def weight_gradient(self, y, error):
        return self.weight_gradients(y[None], error[None])[0]

    def weight_gradients(self, y, error):
        return torch.einsum("kbpo,kbpi->kpoi", y, error)


class OwnMap(FeedbackOperation):
    """An affine operation that does not say how it depends on its weights."""

    def __init__(self, scaling: Scaling):
        super().__init__()
        self.gain = nn.Parameter(torch.rand_like(scaling.gain))

    def forward(self, y, context=None):
        return y * self.gain


USERS = {
    "scaling": (lambda: Scaling(2), MAPS),
    "scaling-elu-pool": (lambda: nn.Sequential(Scaling(2), nn.ELU(), nn.MaxPool2d(3, 2, 1)), MAPS),
    "local": (lambda: Local(5, 7, 6), (5, 7)),
    "local-elu": (lambda: nn.Sequential(Local(5, 7, 6), nn.ELU()), (5, 7)),
    "flatten-local": (lambda: nn.Sequential(nn.Flatten(2), Local(2, 42, 6), nn.Tanh()), MAPS),
}


@pytest.mark.parametrize("name", USERS)
@routings
@pytest.mark.parametrize("samples", [1, 3])
def test_users_linear_map_takes_part(name, routing, samples, registry):
    register_feedback(Scaling, lambda module, in_shape, settings: ScalingFeedback(module))
    register_feedback(Local, lambda module, in_shape, settings: LocalFeedback(module))
    make, in_shape = USERS[name]
    assert_same_training(Task(make(), in_shape), routing=routing, noise_samples=samples)


def test_users_map_for_a_convolution_that_pads_otherwise_takes_part(registry):
    """The forward layer is then evaluated as a whole."""

    class CircularFeedback(LinearMap):
        def __init__(self, made: nn.Conv2d, in_shape: torch.Size):
            super().__init__()
            self.kernel, self.in_shape = nn.Parameter(torch.randn_like(made.weight)), in_shape

        def forward(self, y, context=None):
            return self.apply_weight(y, self.kernel)

        @property
        def weight(self):
            return self.kernel

        def apply_weight(self, y, weight):
            zero = y.new_zeros(len(y), *self.in_shape)
            return torch.func.vjp(lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), weight), zero)[1](y)[0]

        def weight_gradient(self, y, error):
            return torch.nn.grad.conv2d_weight(F.pad(error, (1, 1, 1, 1), "circular"), self.kernel.shape, y)

    register_feedback(nn.Conv2d, lambda module, in_shape, settings: CircularFeedback(module, in_shape))
    assert_same_training(Task(conv(nn.ELU(), padding_mode="circular"), MAPS))


def test_users_nonlinearity_takes_part_and_is_not_moved_behind_the_pooling(registry):
    class Bump(nn.Module):
        def forward(self, x):
            return torch.exp(-x.square())

    register_feedback(Bump, lambda module, in_shape, settings: Elementwise(module))
    assert_same_training(Task(conv(Bump(), nn.MaxPool2d(2)), MAPS))


def test_subclass_of_a_known_type_is_evaluated_by_its_own_forward_pass():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, F.normalize(self.weight, dim=(1, 2, 3)), self.bias, self.stride, self.padding)

    class Decreasing(nn.ELU):
        def forward(self, x):
            return -super().forward(x)

    layer = nn.Sequential(Standardised(2, 4, 3, padding=1), Decreasing(), nn.MaxPool2d(2))
    assert_same_training(Task(layer, MAPS))


# --- forward modules that do more than their type says ----------------------------------------------------------------


def hooked(place: int, kind: str) -> Task:
    """Convolution, ELU, pooling, one of them with a hook that changes what it takes or gives."""
    layer = conv(nn.ELU(), nn.MaxPool2d(2))
    if kind == "output":
        layer[place].register_forward_hook(lambda module, args, output: -output.flip(-1))
    else:
        layer[place].register_forward_pre_hook(lambda module, args: (-args[0] + args[0].roll(1, -1),))
    return Task(layer, MAPS)


@pytest.mark.parametrize("kind", ["input", "output"])
@pytest.mark.parametrize("place", [0, 1, 2])
@routings
def test_hooks_of_forward_modules_are_part_of_the_layer(place, kind, routing):
    assert_same_training(hooked(place, kind), routing=routing)


@pytest.mark.parametrize("place", [0, 1])
def test_hooks_before_and_at_the_affine_map_are_part_of_the_layer(place):
    layer = nn.Sequential(nn.Flatten(), nn.Linear(84, 6), nn.ELU())
    layer[place].register_forward_hook(lambda module, args, output: output.sin())
    assert_same_training(Task(layer, MAPS))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["conv-elu-pool", "flatten-linear-elu", "linear"])
@pytest.mark.parametrize("parametrization", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_parametrized_forward_weights_are_part_of_the_layer(name, training, parametrization):
    make, in_shape, _ = LAYERS[name]
    layer = make().train(training)
    affine = next(module for module in layer.modules() if isinstance(module, nn.Linear | nn.Conv2d))
    parametrization(affine)
    assert_same_training(Task(layer, in_shape))


def test_spectral_norm_is_part_of_the_layer_in_evaluation():
    layer = conv(nn.ELU(), nn.MaxPool2d(2)).eval()
    parametrizations.spectral_norm(layer[0])
    assert_same_training(Task(layer, MAPS))


def test_spectral_norm_is_part_of_the_layer_in_training():
    """Every evaluation is a power iteration: forms that evaluate it equally often see the same weights."""
    layer = conv(nn.ELU(), nn.MaxPool2d(2))
    parametrizations.spectral_norm(layer[0])
    first = Task(layer, MAPS)
    state = copy.deepcopy(first.layer.state_dict())
    literal = first.train(reduced=False)
    first.layer.load_state_dict(state)
    reduced = first.train(reduced=True, memory=1)
    assert relative_difference(reduced.weights[0], literal.weights[0]) < 1e-10


# --- maxima that are equal after the nonlinearity but not before it ---------------------------------------------------


def test_ties_of_relu_change_nothing_where_the_pooling_comes_last():
    """Whichever of several zeros is the maximum, a zero is put back."""
    layer = conv(nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    nn.init.constant_(layer[0].bias, -1.0)
    one = Task(layer, MAPS)
    assert (one.s_out == 0).float().mean() > 0.1
    assert_same_training(one)


def test_ties_of_relu_are_settled_as_in_the_literal_form_before_a_normalisation():
    layer = conv(nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(4))
    nn.init.constant_(layer[0].bias, -1.0)
    nn.init.constant_(layer[3].bias, 2.0)
    assert_same_training(Task(layer, MAPS))


@pytest.mark.parametrize(("function", "gain"), [(nn.Tanh, 100.0), (nn.ELU, 300.0)])
def test_ties_of_saturated_nonlinearities_are_settled_as_in_the_literal_form(function, gain):
    layer = conv(function(), nn.MaxPool2d(2))
    with torch.no_grad():
        layer[0].weight.mul_(gain)
    assert_same_training(Task(layer, MAPS, batch=16))


# --- layers that have no reduced form ---------------------------------------------------------------------------------

NOT_REDUCIBLE = {
    "pool-conv": (
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 4, 3)),
        "its affine map is followed by MaxUnpool",
    ),
    "pool-flatten-linear": (
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 4)),
        "its affine map is followed by MaxUnpool",
    ),
    "average-conv": (lambda: nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(2, 4, 3)), "is followed by PoolingAdjoint"),
    "elu-conv": (lambda: nn.Sequential(nn.ELU(), nn.Conv2d(2, 4, 3)), "its affine map is followed by Elementwise"),
    "bn-conv": (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3)), "is followed by BatchNormAdjoint"),
    "conv-elu-conv": (
        lambda: conv(nn.ELU(), nn.Conv2d(4, 3, 3)),
        "its feedback has 2 operations with weights, not one",
    ),
    "own-map": (lambda: nn.Sequential(Scaling(2), nn.ELU()), "OwnMap does not say how it depends on its weights"),
}
not_reducible = pytest.mark.parametrize("name", NOT_REDUCIBLE)


@pytest.fixture
def own_map(registry):
    register_feedback(Scaling, lambda module, in_shape, settings: OwnMap(module))


@not_reducible
def test_layer_of_another_form_is_refused_with_the_reason(name, own_map):
    make, reason = NOT_REDUCIBLE[name]
    layer = make()
    with pytest.raises(NotReducible, match=reason):
        ReducedLDRL(layer, undo(layer, MAPS))


def test_feedback_with_the_nonlinearity_after_its_affine_map_is_refused_with_the_reason():
    layers = [conv(nn.ELU()), nn.Sequential(nn.Conv2d(4, 3, 3), nn.ELU())]
    shapes = [torch.Size(MAPS), torch.Size([4, 7, 6])]
    feedback = derive_feedback(layers, shapes, [2], FeedbackSettings(nonlinearity="after"))[2]
    with pytest.raises(NotReducible, match="its affine map is followed by Elementwise"):
        ReducedLDRL(layers[1], feedback)


def test_feedback_of_the_users_own_is_refused_with_the_reason():
    class Back(nn.Linear):
        def forward(self, y, context):
            return super().forward(y)

    with pytest.raises(NotReducible, match="Back is not made of known feedback operations"):
        ReducedLDRL(nn.Linear(4, 3), Back(3, 4))


def test_feedback_without_weights_is_refused_with_the_reason():
    with pytest.raises(NotReducible, match="its feedback has 0 operations with weights, not one"):
        ReducedLDRL(nn.MaxPool2d(2), undo(nn.MaxPool2d(2), MAPS))


class Doubled(FeedbackLayer):
    def forward(self, y, context):
        return 2 * super().forward(y, context)


def doubled(layer: nn.Module) -> nn.Module:
    made = undo(layer, MAPS)
    return Doubled(made.operations, made.positions)


def with_hook(place: int | None):
    def make(layer: nn.Module) -> nn.Module:
        made = undo(layer, MAPS)
        module = made if place is None else made.operations[place]
        module.register_forward_hook(lambda module, args, output: 2 * output)
        return made

    return make


def with_hooked_inner_module(layer: nn.Module) -> nn.Module:
    made = undo(layer, MAPS)
    made.operations[-1].transposed.register_forward_hook(lambda module, args, output: 2 * output)
    return made


def parametrized(layer: nn.Module) -> nn.Module:
    made = undo(layer, MAPS)
    parametrizations.weight_norm(made.operations[-1].transposed)
    return made


CHANGED_FEEDBACK = {
    "forward-of-its-own": doubled,
    "hook": with_hook(None),
    "hook-of-the-map": with_hook(-1),
    "hook-in-the-map": with_hooked_inner_module,
    "weight-norm": parametrized,
}


@pytest.mark.parametrize("name", CHANGED_FEEDBACK)
def test_feedback_that_does_more_than_its_operations_is_refused(name):
    layer = conv(nn.ELU(), nn.MaxPool2d(2))
    with pytest.raises(NotReducible):
        ReducedLDRL(layer, CHANGED_FEEDBACK[name](layer))


def test_hooks_of_the_feedback_before_its_map_are_part_of_it():
    layer = conv(nn.ELU(), nn.MaxPool2d(2))
    assert_same_training(Task(layer, MAPS, with_hook(0)(layer)))


# --- in the rule ------------------------------------------------------------------------------------------------------

CLASSES = 5


def network(*layers: nn.Module, in_shape: tuple[int, ...] = (2, 12, 12)) -> Network:
    """A float64 network of these layers and a linear one on top."""

    class Stack(Network):
        def make_layers(self):
            yield from layers
            yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, CLASSES))

    return Stack(ModelOptions(), in_shape, CLASSES).double()


def two_blocks() -> Network:
    return network(conv(nn.ELU(), nn.MaxPool2d(2)), nn.Sequential(nn.Conv2d(4, 3, 3), nn.Tanh(), nn.MaxPool2d(2)))


def trained(rule: DTP, batches: int = 3, memory_format: torch.memory_format = torch.contiguous_format) -> DTP:
    rule.configure_optimizers()
    torch.manual_seed(1)
    for _ in range(batches):
        x, y = make_batch(rule.network)
        rule.training_batch(x.contiguous(memory_format=memory_format), y)
    return rule


def assert_engines_agree(
    cls: type[DTP], make=two_blocks, prepare=None, memory_format=torch.contiguous_format, **changes
):
    """Both engines leave the same weights, forward and feedback, and the same state of the noise; returns the last."""
    rules = []
    for engine in ("literal", "reduced"):
        torch.manual_seed(0)
        options = {"feedback_iterations": [5], "engine": engine, **changes}
        rule = cls(make().to(memory_format=memory_format), cls.Options(**options), seed=3)
        if prepare is not None:
            prepare(rule)
        rules.append(trained(rule, memory_format=memory_format))
    literal, reduced = rules
    for (name, a), b in zip(reduced.named_parameters(), literal.parameters(), strict=True):
        assert relative_difference(a, b) < 1e-10, name
    streams = [rule.noise_streams.state_dict()["states"] for rule in rules]
    assert streams[0].keys() == streams[1].keys() != set()
    assert all(torch.equal(state, streams[1][n]) for n, state in streams[0].items())
    return reduced


@pytest.mark.parametrize(
    ("cls", "changes"),
    [
        (DTP, {}),
        (DTP, {"routing": "fixed", "noise_samples": 3}),
        (DTP, {"ldrl_scale": "paper", "noise": [0.1, 0.3]}),
        (DTP, {"feedback_optimizer": "adam", "feedback_weight_decay": 0.01}),
        (DTP, {"feedback_momentum": 0.0, "schedule": "parallel", "feedback_iterations": [7, 2]}),
        (DTP, {"memory_format": torch.channels_last}),
        (ParallelDTP, {"feedback_iterations": [1]}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_engines_train_alike_on_the_same_noise(cls, changes):
    rule = assert_engines_agree(cls, **changes)
    assert rule.feedback_forms() == {2: "reduced", 3: "reduced"}


def test_engines_train_alike_with_normalisations_that_learn():
    """The feedback reads gamma, which every forward step changes."""

    def make():
        return network(
            conv(nn.BatchNorm2d(4), nn.ELU()),
            nn.Sequential(nn.Conv2d(4, 3, 3, stride=2), norm(nn.BatchNorm2d(3)), nn.ReLU()),
        )

    rule = assert_engines_agree(DTP, make)
    assert rule.feedback_forms() == {2: "reduced", 3: "reduced"}


def losses_evaluated(monkeypatch) -> Counter:
    """Counts the evaluations of the literal loss by layer, from now on."""
    import dtp.algorithms.dtp as module

    counts, loss = Counter(), module.ldrl_loss

    def count(layer, *arguments, **settings):
        counts[layer] += 1
        return loss(layer, *arguments, **settings)

    monkeypatch.setattr(module, "ldrl_loss", count)
    return counts


@not_reducible
def test_rule_uses_the_literal_form_for_layers_of_another_form_alone(name, own_map, monkeypatch):
    make, reason = NOT_REDUCIBLE[name]
    stack = network(nn.Conv2d(2, 2, 3), make(), in_shape=(2, 9, 8))
    rule = DTP(stack, DTPOptions(feedback_iterations=[4]))
    assert rule._reduced(2) is None and isinstance(rule._reduced(3), ReducedLDRL)
    forms = rule.feedback_forms()
    assert forms[2].startswith("literal: ") and reason in forms[2] and forms[3] == "reduced"
    evaluated = losses_evaluated(monkeypatch)
    trained(rule)
    assert evaluated == {stack[2]: 3 * 4}


@not_reducible
def test_engines_train_alike_on_layers_of_another_form(name, own_map):
    def make():
        return network(nn.Conv2d(2, 2, 3), NOT_REDUCIBLE[name][0](), in_shape=(2, 9, 8))

    assert_engines_agree(DTP, make)


class After(DTP):
    feedback_settings = FeedbackSettings(nonlinearity="after")


class OwnFeedback(DTP):
    def make_feedback(self):
        class Back(nn.Module):
            def __init__(self, made):
                super().__init__()
                self.made = made

            def forward(self, y, context):
                return self.made(y, context)

        made = super().make_feedback()
        return FeedbackNetwork({n: Back(made[n]) for n in made.numbers})


class OwnLoss(DTP):
    def feedback_loss(self, n, activations, noise):
        return 0.5 * super().feedback_loss(n, activations, noise)


class OwnNoise(DTP):
    def feedback_noise(self, n, activations):
        return tuple(noise.clamp(-0.1, 0.1) for noise in super().feedback_noise(n, activations))


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (After, "literal: its affine map is followed by Elementwise"),
        (OwnFeedback, "literal: Back is not made of known feedback operations"),
        (OwnLoss, "literal: OwnLoss has a feedback_loss of its own"),
        (OwnNoise, "literal: OwnNoise has a feedback_noise of its own"),
    ],
)
def test_rule_uses_the_literal_form_where_a_subclass_changes_what_is_learned(cls, reason, monkeypatch):
    stack = two_blocks()
    rule = cls(stack, DTPOptions(feedback_iterations=[4]))
    assert rule.feedback_forms() == {2: reason, 3: reason}
    assert rule._reduced(2) is rule._reduced(3) is None
    evaluated = losses_evaluated(monkeypatch)
    trained(rule)
    assert evaluated == {stack[2]: 3 * 4, stack[3]: 3 * 4}
    assert_engines_agree(cls)


def test_rule_says_that_the_literal_form_was_asked_for(monkeypatch):
    stack = two_blocks()
    rule = DTP(stack, DTPOptions(feedback_iterations=[4], engine="literal"))
    assert rule.feedback_forms() == {2: "literal, as asked", 3: "literal, as asked"}
    evaluated = losses_evaluated(monkeypatch)
    trained(rule)
    assert evaluated == {stack[2]: 3 * 4, stack[3]: 3 * 4}


def test_rule_never_evaluates_the_literal_loss_where_all_layers_are_reducible(monkeypatch):
    evaluated = losses_evaluated(monkeypatch)
    trained(DTP(two_blocks(), DTPOptions(feedback_iterations=[4])))
    assert not evaluated


class Touched(TorchDispatchMode):
    """Notes the largest tensor that each operation has made or changed, by name."""

    def __init__(self):
        super().__init__()
        self.largest = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result, name = function(*arguments, **(named or {})), function.overloadpacket.__name__
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, Tensor):
                self.largest[name] = max(self.largest[name], made.numel())
        return result


@pytest.mark.parametrize("name", ["conv-elu-pool", "conv-elu-overlapping-pool"])
def test_differences_are_taken_before_unpooling_and_nothing_is_copied_together(name):
    """Where the maxima of both passes are the same: a quarter of the size."""
    one, drawn = task(name), []
    form = ReducedLDRL(one.layer, one.feedback, routing="fixed")
    clean, streams = form.clean_pass(*one.clean), NoiseStreams(0)
    shapes = [one.s_in.shape, one.s_out.shape]
    with Touched() as touched:
        drawn.append(tuple(streams.normals(2, shapes, 0.1, [one.s_in, one.s_out], 3)))
        found = form.constants(clean, drawn, 3)
    assert 0 < touched.largest["sub_"] <= 3 * one.s_out.numel() < 3 * clean.phi.numel()
    assert touched.largest["cat"] == touched.largest["stack"] == 0
    # The distance of the Jacobians is not measured unless it is asked for.
    assert found.output_change is None and touched.largest["sub"] == 0
    assert form.constants(clean, drawn, 3, distance=True).output_change.shape == (3,)


def test_subclass_that_changes_how_noise_is_drawn_keeps_the_reduced_form():
    """Either form is given the noise; only what is learned from it is tied to the form."""

    class Masked(DTP):
        def draw_noise(self, n, like):
            return super().draw_noise(n, like) * (like > 0)

    assert assert_engines_agree(Masked).feedback_forms() == {2: "reduced", 3: "reduced"}


class Annealed(DTP):
    """Noise that shrinks from batch to batch."""

    batches = 0

    def noise_scale(self, n):
        return super().noise_scale(n) / (1 + self.batches)

    def training_batch(self, x, y):
        self.batches += 1
        return super().training_batch(x, y)


@pytest.mark.parametrize(
    "scale",
    [
        "code",
        "paper",
    ],
)
def test_noise_that_changes_in_training_changes_both_forms_alike(scale):
    assert_engines_agree(Annealed, ldrl_scale=scale)


def hook_late(rule: DTP) -> None:
    rule.network[2][0].register_forward_hook(lambda module, args, output: output.sin())


def replace_layer_late(rule: DTP) -> None:
    rule.network[2][1] = nn.ReLU()


def replace_feedback_late(rule: DTP) -> None:
    rule.feedback = rule.make_feedback()


@pytest.mark.parametrize("change", [hook_late, replace_layer_late, replace_feedback_late])
def test_changes_to_the_modules_of_a_rule_change_both_forms_alike(change):
    assert_engines_agree(DTP, prepare=change)


def test_frozen_feedback_weights_are_not_stepped():
    rule = DTP(two_blocks(), DTPOptions(feedback_iterations=[4]))
    (weight,) = rule.feedback[2].parameters()
    weight.requires_grad_(False)
    before = weight.clone()
    trained(rule)
    assert torch.equal(weight, before)


def test_copied_rule_trains_its_own_feedback():
    rule = DTP(two_blocks(), DTPOptions(feedback_iterations=[4]), seed=3)
    other = copy.deepcopy(rule)
    first = [p.clone() for p in rule.feedback.parameters()]
    trained(other)
    for p, before, moved in zip(rule.feedback.parameters(), first, other.feedback.parameters(), strict=True):
        assert torch.equal(p, before) and not torch.equal(moved, before)
    trained(rule)
    assert all(torch.equal(a, b) for a, b in zip(rule.parameters(), other.parameters(), strict=True))


# --- stopping in the rule ---------------------------------------------------------------------------------------------


def leaky_blocks() -> Network:
    return network(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.LeakyReLU(0.2)),
        nn.Sequential(nn.Conv2d(4, 3, 3), nn.LeakyReLU(0.2), nn.MaxPool2d(2)),
    )


def feedback_scalars(**changes) -> dict[str, Tensor]:
    rule = DTP(leaky_blocks(), DTPOptions(feedback_iterations=[6], routing="fixed", **changes))
    rule.configure_optimizers()
    x, _ = make_batch(rule.network, size=32)
    return rule.feedback_phase(rule.activations(x))


def test_aligned_layers_report_no_steps():
    scalars = feedback_scalars(feedback_stop_distance=0.8, feedback_init="symmetric")
    assert {name: value.item() for name, value in scalars.items() if "steps" in name} == {
        "feedback_steps_2": 0,
        "feedback_steps_3": 0,
    }
    assert all(scalars[f"feedback_loss_{n}"] < 0 for n in (2, 3))


def test_layers_far_from_aligned_report_all_steps():
    scalars = feedback_scalars(feedback_stop_distance=0.1)
    assert scalars["feedback_steps_2"] == scalars["feedback_steps_3"] == 6


def test_steps_are_not_reported_where_none_is_saved():
    assert not any("steps" in name for name in feedback_scalars())


def test_stopping_is_refused_for_layers_of_the_literal_form():
    stack = network(nn.Conv2d(2, 2, 3), nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 4, 3)))
    with pytest.raises(UserError, match=r"--feedback-stop-distance: layer 2 .*followed by MaxUnpool"):
        DTP(stack, DTPOptions(feedback_stop_distance=0.1))
    with pytest.raises(UserError, match=r"--feedback-stop-distance: layer 2 .*literal, as asked"):
        DTP(two_blocks(), DTPOptions(feedback_stop_distance=0.1, engine="literal"))
