"""L-DRL in expectation: against automatic differentiation, against many samples of the literal loss, and against steps
taken one by one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, jacrev

from dtp.feedback import (
    ExpectedLDRL,
    FeedbackLayer,
    NoiseStreams,
    NotExpected,
    forward_with_context,
    ldrl_loss,
    register_feedback,
)
from dtp.feedback.expected import _elu
from dtp.feedback.operations import ConvFeedback, LinearFeedback
from dtp.models.modules import (
    FirstUnits,
    InnerFunction,
    LocallyConnected2d,
    ResidualUnit,
    SameConv2d,
    SLReLU,
    Standardise,
)

from .helpers import LAYERS, MAPS, Task, conv, norm, relative_difference, undo

# --- layers whose mean over the noise is known ------------------------------------------------------------------------


def local(*rest: nn.Module, **arguments) -> nn.Sequential:
    """A locally connected layer of 2 to 4 maps, 3x3 with stride 2 and padding, and what follows it."""
    return nn.Sequential(LocallyConnected2d(2, 4, (7, 6), **{"kernel_size": 3, "stride": 2, "padding": 1}), *rest)


KNOWN = {name: LAYERS[name] for name in LAYERS if "average" not in name and "first-units" not in name}
# It pools twice.
del KNOWN["conv-elu-pool-elu-pool"]
KNOWN |= {
    "conv-5x5-elu-overlapping-pool": (
        lambda: conv(nn.ELU(), nn.MaxPool2d(3, 2, 1), kernel_size=5, padding=2),
        MAPS,
        {},
    ),
    "conv-everything-elu": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2), nn.ELU()
        ),
        (4, 7, 6),
        {},
    ),
    "conv-sl-relu": (lambda: conv(SLReLU()), MAPS, {}),
    "conv-sigmoid-pool": (lambda: conv(nn.Sigmoid(), nn.MaxPool2d(2)), MAPS, {}),
    "same-convolution-stride": (
        lambda: nn.Sequential(SameConv2d(2, 4, 5, 3), nn.ELU(), nn.MaxPool2d(2, 1)),
        MAPS,
        {},
    ),
    "local-overlapping-pool-write": (
        lambda: local(nn.ELU(), nn.MaxPool2d(2, 1)),
        MAPS,
        {"unpool": "write"},
    ),
    "conv-pool-bn-elu": (lambda: conv(nn.MaxPool2d(2), norm(nn.BatchNorm2d(4)), nn.ELU()), MAPS, {}),
    "conv-standardise-elu": (lambda: conv(Standardise(4), nn.ELU()), MAPS, {}),
    # As a network of the user's own is cut: what stands before a linear layer ends the convolution's.
    "conv-elu-pool-flatten-dropout": (
        lambda: conv(nn.ELU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Dropout(0.4)),
        MAPS,
        {},
    ),
    "conv-flatten-layer-norm-elu": (lambda: conv(nn.Flatten(), norm(nn.LayerNorm(168)), nn.ELU()), MAPS, {}),
    "conv-pool-flatten-bn1d-elu": (
        lambda: conv(nn.MaxPool2d(2), nn.Flatten(), norm(nn.BatchNorm1d(36)), nn.ELU()),
        MAPS,
        {},
    ),
}
# And with what makes the feedback linear.
KNOWN |= {
    f"{name}-clean": (KNOWN[name][0], KNOWN[name][1], {**KNOWN[name][2], "slope": "clean"})
    for name in (
        "linear-elu",
        "linear-positions",
        "conv-elu-pool",
        "conv-relu-in-place-pool",
        "conv-pool-elu",
        "conv-bn-elu-pool",
        "conv-elu-pool-bn",
        "conv-elu-overlapping-pool",
        "conv-elu-overlapping-pool-write",
        "conv-sigmoid-pool",
        "conv-elu-pool-flatten-dropout",
        "conv-pool-flatten-bn1d-elu",
        "local-elu-pool",
        "linear-sl-relu",
    )
}
KNOWN_MAPS = [name for name, (_, in_shape, _) in KNOWN.items() if len(in_shape) == 3]
known = pytest.mark.parametrize("name", KNOWN)


class Clean(Task):
    """A task whose clean pass keeps what the feedback asks for, as a rule's does."""

    def __init__(self, name: str, batch: int = 3, **options):
        make, in_shape, settings = {**LAYERS, **KNOWN}[name]
        super().__init__(make(), in_shape, batch=batch, **settings, **options)
        self.pass_again()

    def pass_again(self) -> None:
        with torch.no_grad():
            self.s_out, self.context = forward_with_context(
                self.layer, self.s_in, slopes=self.feedback.gated, affine=self.feedback.affine_position
            )

    def form(self, nodes: int = 5, **settings) -> ExpectedLDRL:
        return ExpectedLDRL(self.layer, self.feedback, self.sigma, nodes=nodes, **{"routing": "fixed", **settings})

    def gradient(self, nodes: int = 5, **settings) -> Tensor:
        form = self.form(nodes, **settings)
        return form.quadratic(form.moments(self.clean)).gradient()

    @property
    def weight(self) -> nn.Parameter:
        return self.form().weight

    @torch.no_grad()
    def balance(self) -> None:
        """Scale V so that both terms of its gradient have the same size."""
        form = self.form()
        moments = form.moments(self.clean)
        first, second = (moments.first * form.transpose).norm(), (moments.second * form.weight).norm()
        form.weight.mul_(first / second)


def small_noise_gradient(task: Clean) -> Tensor:
    """Gradient of sigma^2 |J_G - J_F^T|^2, mean over images, with the switches and statistics of the clean pass."""
    (name,) = [n for n, p in task.feedback.named_parameters() if p is task.weight]

    def distance(weight: Tensor) -> Tensor:
        total = 0.0
        for b in range(len(task.s_in)):
            one = slice(b, b + 1)
            context = task.context.select(one)

            def forward(s, context=context):
                return forward_with_context(task.layer, s, given=context, routing="fixed")[0].flatten()

            def feedback(y, context=context):
                return functional_call(task.feedback, {name: weight}, (y, context)).flatten()

            j_f = jacrev(forward)(task.s_in[one]).flatten(1).detach()
            # Forward mode: backwards, torch takes values that were overwritten for ones that count.
            j_g = jacfwd(feedback)(task.s_out[one]).flatten(1)
            total = total + (j_g - j_f.t()).square().sum()
        return task.sigma**2 * total / len(task.s_in)

    return torch.func.grad(distance)(task.weight.detach())


@known
def test_one_node_is_the_gradient_of_the_distance_of_the_jacobians(name):
    """To rounding, at any noise."""
    task = Clean(name)
    task.balance()
    assert relative_difference(task.gradient(nodes=1), small_noise_gradient(task)) < 1e-11


# A kink of the feedback at 0, where ReLU has its dead units, is one at any noise; so are those where Hardtanh ends.
@pytest.mark.parametrize(
    "name", [n for n in KNOWN if ("relu" not in n or "leaky" in n or "clean" in n) and "Hardtanh" not in n]
)
def test_five_nodes_come_to_the_same_for_small_noise(name):
    task = Clean(name, sigma=1e-5)
    task.balance()
    assert relative_difference(task.gradient(nodes=5), small_noise_gradient(task)) < 1e-4


def phi_of(task: Clean, y: Tensor, context) -> Tensor:
    return task.feedback.before_affine(y, context)


@torch.no_grad()
def left_out(task: Clean, nodes: int = 80) -> Tensor:
    """Gradient 2 f WG(mu, A_V mu) / B of the square of the mean of q, which the expected form leaves out."""
    form, (z, weights) = task.form(), np.polynomial.hermite_e.hermegauss(nodes)
    s_out, context, mean = task.s_out, task.context, 0.0
    for at, weight in zip(z, weights / weights.sum(), strict=True):
        # The value at a position that several windows chose is a sum, and its mean one of means: noise may be shared.
        mean = mean + weight * phi_of(task, s_out + task.sigma * at, context)
    mean = mean - phi_of(task, s_out, context)
    error = form.map.apply_weight(mean, form.weight)
    return form.map.weight_gradient(mean, error) * (2 * form.factor / len(s_out))


def literal_gradients(task: Clean, replicates: int, samples: int, **settings) -> Tensor:
    """Gradients of the literal loss, (replicates, *V), each a mean over so many noise samples."""
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(replicates):
        noise = [
            task.sigma * torch.randn(samples * len(s), *s.shape[1:], generator=generator, dtype=s.dtype)
            for s in (task.s_in, task.s_out)
        ]
        loss = ldrl_loss(
            task.layer,
            task.feedback,
            *task.clean,
            *noise,
            **{"routing": "fixed", "noise_samples": samples, **settings},
        )
        found += torch.autograd.grad(loss, task.weight)
    return torch.stack(found)


def compare_with_samples(gradient: Tensor, sampled: Tensor, precision: float) -> None:
    """``gradient`` is the mean of the sampled ones, as far as their standard error lets one say.

    No element is five standard errors off; squared, all of them together are as far off as errors are on average (1.7
    times that is beyond chance for the dozens of elements here, whose errors are nearly independent); and the standard
    error of them all is below ``precision`` of the gradient.
    """
    error = sampled.std(0) / len(sampled) ** 0.5
    off = gradient - sampled.mean(0)
    assert error.norm() < precision * gradient.norm()
    assert (off.abs() <= 5 * error + 1e-12 * gradient.abs().max()).all()
    assert off.square().sum() < 1.7 * error.square().sum()


@known
def test_gradient_is_the_mean_of_many_sampled_ones(name):
    """Of the literal loss at the published noise, with what is left out added; standard error below 6 per cent.

    With nodes enough for kinks and for steep functions.
    """
    task = Clean(name, sigma=0.2)
    task.balance()
    replicates, samples = (50, 500) if "linear" in name else (40, 200 if "local-tanh" in name else 80)
    sampled = literal_gradients(task, replicates, samples)
    compare_with_samples(task.gradient(nodes=80) + left_out(task), sampled, precision=0.06)


def test_what_nonlinearities_leave_out_at_the_published_noise():
    """The term of the means of q, relative to the second term, at the transpose of weights five times the usual ones: a
    thousandth or two at most here, it grows with the square of the noise, and is not there without a nonlinearity."""
    sizes = {}
    for sigma in (0.1, 0.2, 0.4):
        torch.manual_seed(0)
        task = Clean("conv-elu-pool", sigma=sigma)
        with torch.no_grad():
            task.layer[0].weight.mul_(5)
        task.feedback.copy_transpose(task.layer)
        task.pass_again()
        form = task.form()
        second = 2 * form.factor * sigma**2 * form.moments(task.clean).second * form.weight
        sizes[sigma] = (left_out(task).norm() / second.norm()).item()
    assert 1e-5 < sizes[0.1] < sizes[0.2] < sizes[0.4] < 0.003
    assert 8 < sizes[0.4] / sizes[0.1] < 20
    for name in ("conv", "conv-pool", "conv-elu-pool-clean"):
        assert left_out(Clean(name, sigma=0.4)).norm() < 1e-12


@pytest.mark.parametrize("paper_scale", [None, 0.2, 0.3])
def test_scale_of_the_paper(paper_scale):
    task = Clean("linear-elu", sigma=0.2)
    task.balance()
    sampled = literal_gradients(task, replicates=50, samples=500, paper_scale=paper_scale)
    scale = 1 if paper_scale is None else 1 / (2 * paper_scale**2)
    compare_with_samples(task.gradient(9, paper_scale=paper_scale) + scale * left_out(task), sampled, precision=0.06)


# A mask is drawn in the order of the memory.
@pytest.mark.parametrize("name", [name for name in KNOWN_MAPS if "dropout" not in name])
@pytest.mark.parametrize("nodes", [1, 5])
def test_channels_last_changes_nothing_but_rounding(name, nodes):
    of_maps, plain = (Clean(name, memory_format=layout) for layout in (torch.channels_last, torch.contiguous_format))
    assert not of_maps.s_in.is_contiguous()
    (
        of_maps.layer.load_state_dict(plain.layer.state_dict()),
        of_maps.feedback.load_state_dict(plain.feedback.state_dict()),
    )
    of_maps.pass_again()
    assert relative_difference(of_maps.gradient(nodes), plain.gradient(nodes)) < 1e-12


# --- the quadrature ---------------------------------------------------------------------------------------------------


def densely(function, centre: Tensor, std: Tensor | float) -> Tensor:
    """Mean of function(centre + std x, x) over standard normal x, by the trapezoidal rule at 4,001 places."""
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2)
    z = x.view(-1, *(1 for _ in centre.shape))
    values = function(centre + std * z, z)
    return torch.tensordot(density / density.sum(), values, 1)


def slopes_and_variances(task: Clean, nodes: int) -> tuple[Tensor, Tensor]:
    """d and v of a linear layer with one image, by unit."""
    moments = task.form(nodes).moments(task.clean)
    return moments.first.expand(moments.second.shape), moments.second


def dense_slopes_and_variances(task: Clean) -> tuple[Tensor, Tensor]:
    function, weight = task.layer[1], task.layer[0].weight
    a, std = task.context.affine[0], task.sigma * weight.norm(dim=1)
    twice = lambda x: function(function(x))  # noqa: E731
    d = densely(lambda x, z: twice(x) * z, a, std) / std
    mean = densely(lambda y, z: function(y), task.s_out[0], task.sigma)
    v = densely(lambda y, z: (function(y) - mean) ** 2, task.s_out[0], task.sigma) / task.sigma**2
    return d.detach(), v.detach()


def one_image(function: nn.Module, sigma: float) -> Clean:
    layer = nn.Sequential(nn.Linear(7, 200), function)
    task = Clean.__new__(Clean)
    Task.__init__(task, layer, (7,), batch=1, sigma=sigma)
    task.pass_again()
    return task


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.4])
def test_five_nodes_are_enough_for_elu(sigma):
    """Of 200 units, whose slopes are between 0.1 and 1: the error of each, and of their sum, which is what acts."""
    task = one_image(nn.ELU(), sigma)
    for found, true in zip(slopes_and_variances(task, 5), dense_slopes_and_variances(task), strict=True):
        assert (found - true).abs().max() < 0.15 * sigma
        assert relative_difference(found.sum(), true.sum()) < 0.02 * sigma


@pytest.mark.parametrize("function", [nn.ELU(), nn.LeakyReLU(0.1), SLReLU()], ids=str)
def test_more_nodes_converge(function):
    task = one_image(function, 0.4)
    true = dense_slopes_and_variances(task)
    errors = [
        [float((found - exact).square().mean().sqrt()) for found, exact in zip(of_nodes, true, strict=True)]
        for of_nodes in (slopes_and_variances(task, nodes) for nodes in (1, 5, 31, 150))
    ]
    for one, five, more, most in zip(*errors, strict=True):
        assert one > 2 * five > 4 * more > 4 * most


@pytest.mark.parametrize("function", [nn.Tanh(), nn.Sigmoid()], ids=str)
def test_smooth_functions_are_exact_with_a_few_nodes(function):
    task = one_image(function, 0.2)
    (d, _), (_, v) = slopes_and_variances(task, 17), slopes_and_variances(task, 9)
    torch.testing.assert_close((d, v), dense_slopes_and_variances(task), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "function, sigma", [(nn.ELU(), 0.1), (nn.ELU(), 0.4), (nn.LeakyReLU(0.1), 0.2), (nn.ReLU(), 0.4)], ids=str
)
def test_half_the_nodes_give_slopes_the_precision_of_variances(function, sigma):
    """Where functions have kinks."""
    task = one_image(function, sigma)
    (d, v), (true_d, true_v) = slopes_and_variances(task, 5), dense_slopes_and_variances(task)
    assert (d - true_d).norm() / true_d.norm() < 2 * (v - true_v).norm() / true_v.norm()


# --- the value of the affine map --------------------------------------------------------------------------------------


@known
def test_clean_pass_hands_out_the_value_of_its_affine_map(name):
    """Also where a nonlinearity overwrites it; and its images can be selected."""
    task = Clean(name)
    place = task.feedback.affine_position
    value = task.s_in
    for module in list(task.layer)[: place + 1] if isinstance(task.layer, nn.Sequential) else [task.layer]:
        value = module(value)
    assert torch.equal(task.context.affine, value) and not task.context.affine.requires_grad
    for index in (slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True])):
        assert torch.equal(task.context.select(index).affine, value[index])


def test_nobody_pays_for_what_nobody_asked_for():
    _, context = forward_with_context(conv(nn.ELU()), torch.randn(3, *MAPS))
    assert context.affine is None
    assert context.select(slice(0, 1)).affine is None


def test_what_pulls_at_the_weights_is_laid_out_as_they_are():
    """Else all that follows strides across memory: the transpose of a dense map lies across the feedback's weights."""
    task = Task(nn.Sequential(nn.Linear(12, 7), nn.ELU()), (12,))
    form = ExpectedLDRL(task.layer, task.feedback, task.sigma)
    assert form.transpose.stride() != form.weight.stride() == form.quadratic(form.moments(task.clean)).at_zero.stride()


# --- what is drawn, and what has no mean ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in KNOWN_MAPS if "pool" in n])
@pytest.mark.parametrize("samples", [1, 3])
def test_with_noisy_maxima_the_first_term_is_that_of_the_samples_drawn(name, samples):
    """The gradient of the literal loss without noise on the output; the second term is in expectation all the same."""
    task = Clean(name)
    form = task.form(routing="noisy", noise_samples=samples)
    assert "maxima" in form.drawn and not task.form().drawn
    noise = task.draw(NoiseStreams(0), samples)
    moments = form.moments(task.clean, noise)
    still = torch.zeros_like(noise[1])
    loss = task.loss((noise[0], still), routing="noisy", noise_samples=samples)
    (first,) = torch.autograd.grad(loss, task.weight)
    assert moments.drawn
    torch.testing.assert_close(moments.first, first, rtol=1e-10, atol=1e-13)
    assert torch.equal(moments.second, task.form().moments(task.clean).second)


@pytest.mark.parametrize("name", ["conv-elu-pool", "conv-pool-elu", "local-elu-pool", "conv-elu-pool-clean"])
def test_drawn_gradient_is_the_mean_of_many_sampled_ones(name):
    task = Clean(name, sigma=0.2)
    task.balance()
    form = task.form(nodes=80, routing="noisy", noise_samples=64)
    streams = NoiseStreams(7)
    with torch.no_grad():
        drawn = [form.quadratic(form.moments(task.clean, task.draw(streams, 64))).gradient() for _ in range(200)]
    sampled = literal_gradients(task, replicates=50, samples=64, routing="noisy")
    mean, error = torch.stack(drawn).mean(0) + left_out(task), torch.stack(drawn).std(0) / 200**0.5
    both = (error.square() + sampled.var(0) / len(sampled)).sqrt()
    off = mean - sampled.mean(0)
    assert both.norm() < 0.08 * mean.norm()
    assert (off.abs() < 5 * both + 1e-12).all() and off.square().sum() < 1.7 * both.square().sum()


@pytest.mark.parametrize("routing", ["fixed", "noisy"])
@pytest.mark.parametrize(
    "layer, in_shape, reason",
    [
        (conv(nn.ELU(), nn.AvgPool2d(2)), MAPS, "PoolingAdjoint"),
        (conv(nn.ELU(), nn.Flatten(2), nn.MaxPool1d(2)), MAPS, "flatten stands before its pooling"),
        (nn.Sequential(nn.Linear(7, 6), nn.ELU(), FirstUnits(4)), (7,), "FirstUnitsFeedback"),
        (
            conv(nn.ELU(), norm(nn.BatchNorm2d(4)), nn.MaxPool2d(3, 2, 1)),
            MAPS,
            "windows that overlap",
        ),
        (conv(nn.MaxPool2d(2), nn.MaxPool2d(2, 1)), MAPS, "MaxUnpool"),
        (conv(nn.LayerNorm([4, 7, 6]), nn.ELU(), nn.MaxPool2d(2)), MAPS, "LayerNorm.*before its pooling"),
        (nn.Sequential(ResidualUnit(2, 2, 1, nn.ELU()), nn.ELU()), MAPS, "operations with weights|does not say"),
    ],
)
def test_layers_whose_values_do_not_act_by_themselves_have_no_mean(layer, in_shape, reason, routing):
    feedback = undo(layer, in_shape)
    with pytest.raises(NotExpected, match=reason):
        ExpectedLDRL(layer, feedback, 0.2, routing=routing)


@pytest.mark.parametrize("routing", ["fixed", "noisy"])
def test_normalisation_behind_overlapping_windows_has_a_mean(routing):
    layer = conv(nn.ELU(), nn.MaxPool2d(3, 2, 1), norm(nn.BatchNorm2d(4)))
    ExpectedLDRL(layer, undo(layer, MAPS), 0.2, routing=routing)


def test_hooks_draw_the_first_term_or_all():
    layer, feedback = conv(nn.ELU()), undo(conv(nn.ELU()), MAPS)
    layer[1].register_forward_hook(lambda module, args, output: 2 * output)
    assert "hooks" in ExpectedLDRL(layer, feedback, 0.2, routing="fixed").drawn
    layer = conv(nn.ELU())
    feedback.operations[0].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(NotExpected, match="hooks"):
        ExpectedLDRL(layer, feedback, 0.2, routing="fixed")


class Twice(LinearFeedback):
    """A user's own map, whose weights act twice."""

    def apply_weight(self, y, weight):
        return 2 * super().apply_weight(y, weight)

    def forward(self, y, context=None):
        return 2 * super().forward(y)


def test_a_map_that_uses_its_weights_in_its_own_way_must_say_which_reach_where():
    """What it inherits is not true of it."""
    layer = nn.Linear(7, 6)
    feedback = FeedbackLayer([Twice(layer, False)], [0])
    with pytest.raises(NotExpected, match="Twice does not say which weights reach where"):
        ExpectedLDRL(layer, feedback, 0.2, routing="fixed")


@pytest.mark.parametrize("layer, base", [(nn.Linear(7, 6), LinearFeedback), (nn.Conv2d(2, 4, 3), ConvFeedback)])
def test_the_first_term_of_a_users_own_map_is_drawn(layer, base):
    """Which weights reach where says what the second term is, not how the first depends on them."""
    own = type("Own", (base,), {"over_positions": lambda self, values: 4 * base.over_positions(self, values)})
    made = own(layer, False) if base is LinearFeedback else own(layer, MAPS, False)
    assert "not one of the known ones" in ExpectedLDRL(layer, FeedbackLayer([made], [0]), 0.2, routing="fixed").drawn


def test_a_forward_pass_of_the_users_own_is_not_taken_for_the_modules(registry):
    feedback = undo(conv(nn.ELU()), MAPS)
    made = lambda module, in_shape, settings: ConvFeedback(module, in_shape, settings.bias)  # noqa: E731
    register_feedback(nn.Conv2d, made, lambda module, x, given, routing: (2 * module(x), None))
    assert "known" in ExpectedLDRL(conv(nn.ELU()), feedback, 0.2, routing="fixed").drawn


@pytest.mark.parametrize("gate", ["feedback", "linear"])
def test_gates_that_do_not_multiply_by_the_slope_have_no_mean(gate):
    layer = nn.Sequential(nn.Linear(7, 6), InnerFunction(nn.ELU())).double()
    with pytest.raises(NotExpected, match="Gate"):
        ExpectedLDRL(layer, undo(layer, (7,), gate=gate).double(), 0.2, routing="fixed")


def test_gates_that_multiply_by_the_slope_have_the_mean_of_many_samples():
    layer = nn.Sequential(nn.Linear(7, 6), InnerFunction(nn.ELU())).double()
    feedback = undo(layer, (7,), gate="forward").double()
    task = Task(layer, (7,), feedback, batch=3)
    with torch.no_grad():
        task.s_out, task.context = forward_with_context(layer, task.s_in, affine=0)
    form = ExpectedLDRL(layer, feedback, task.sigma, routing="fixed", nodes=80)
    task.weight = form.weight
    sampled = literal_gradients(task, replicates=50, samples=500)
    compare_with_samples(form.quadratic(form.moments(task.clean)).gradient(), sampled, precision=0.06)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_quicker_elu_is_elu_to_rounding(dtype, times):
    x = torch.cat([torch.linspace(-30, 5, 5000, dtype=dtype), torch.tensor([0, -1e-9, 1e-9, -1e30, 1e30], dtype=dtype)])
    kept = x.clone()
    expected = F.elu(x) if times == 1 else F.elu(F.elu(x))
    torch.testing.assert_close(_elu(x, times), expected, rtol=0, atol=times * float(torch.finfo(dtype).eps))
    assert torch.equal(x, kept)
