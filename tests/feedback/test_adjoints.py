"""Feedback of the project's own modules: with transposed weights it is the adjoint."""

import pytest
import torch
from torch import nn

from dtp.algorithms import ALGORITHMS, DTP
from dtp.algorithms.options import DTPOptions
from dtp.diagnostics.alignment import feedback_alignment, update_alignment
from dtp.errors import UserError
from dtp.feedback import FeedbackSettings, derive_feedback, forward_with_context, is_elementwise, ldrl_loss
from dtp.feedback.adjoints import ResidualFeedback
from dtp.models import ConvNet, LocallyConnected, ResNet18, ResNet20, Square
from dtp.models.modules import (
    FirstUnits,
    InnerFunction,
    LocallyConnected2d,
    Residual,
    ResidualUnit,
    SameConv2d,
    Standardise,
)
from tests.feedback.helpers import storages, undo


def adjoint(layer, x, v):
    """J^T v at x by autograd, batch statistics held as they are."""
    x = x.detach().requires_grad_()
    _, context = forward_with_context(layer, x)
    y, _ = forward_with_context(layer, x, given=context)
    return torch.autograd.grad(y, x, v)[0]


RESIDUAL = [
    (size, stride, channels, norm) for size in (6, 7) for stride in (1, 2) for channels in (3, 4) for norm in (0, 1)
]
RESIDUAL = [(*shape, "projection") for shape in RESIDUAL] + [
    (size, stride, channels, 1, "padding") for size in (6, 7) for stride in (1, 2) for channels in (2, 4, 6)
]


@pytest.mark.parametrize(("size", "stride", "channels", "norm", "shortcut"), RESIDUAL)
def test_residual_feedback_with_transposed_weights_is_the_adjoint(size, stride, channels, norm, shortcut):
    """For an odd and an even size, with and without a shortcut of its own, and batch normalisation in training."""
    unit = ResidualUnit(3, channels, stride, nn.Tanh(), bool(norm), shortcut).double()
    layer = nn.Sequential(unit)
    feedback = undo(layer, (3, size, size), symmetric=True).double()
    feedback.copy_transpose(layer)
    x = torch.randn(5, 3, size, size, dtype=torch.float64)
    y, context = forward_with_context(layer, x)
    v = torch.randn_like(y)
    assert torch.allclose(feedback(v, context), adjoint(layer, x, v), atol=1e-12)


def test_other_gates_are_not_the_adjoint():
    layer = nn.Sequential(ResidualUnit(3, 3, 1, nn.Tanh())).double()
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    y, context = forward_with_context(layer, x)
    v = torch.randn_like(y)
    expected = adjoint(layer, x, v)
    for gate in ("feedback", "linear"):
        feedback = undo(layer, (3, 6, 6), gate=gate).double()
        feedback.copy_transpose(layer)
        assert (feedback(v, context) - expected).norm() > 0.01 * expected.norm()


def test_a_noisy_pass_uses_the_clean_statistics_and_leaves_the_running_ones():
    unit = ResidualUnit(3, 4, 2, nn.ELU(), batch_norm=True).train()
    layer, x = nn.Sequential(unit), torch.randn(5, 3, 6, 6)
    y, context = forward_with_context(layer, x)
    buffers = {name: b.clone() for name, b in unit.named_buffers()}
    same, _ = forward_with_context(layer, x, given=context)
    noisy, _ = forward_with_context(layer, x + 1, given=context)
    assert torch.allclose(same, y, atol=1e-5) and not torch.allclose(noisy, y, atol=0.1)
    assert all(torch.equal(buffers[name], b) for name, b in unit.named_buffers())


def test_a_sum_that_repeats_one_branch_over_space_is_refused():
    """Its adjoint is no sum of those of the branches; targets of such a layer ended in a traceback."""
    context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1))
    with pytest.raises(UserError, match="Layer 1: .*branches of one shape, found 3x1x1 and 3x6x6"):
        undo(nn.Sequential(Residual(context, nn.Sequential())), (3, 6, 6))


def test_a_sum_is_no_elementwise_nonlinearity_whatever_its_branches_take():
    assert not is_elementwise(Residual(nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential()))


@pytest.mark.parametrize("shortcut", ["projection", "padding"])
def test_contexts_of_residual_units_repeat_and_select(shortcut):
    layer = nn.Sequential(ResidualUnit(3, 4, 2, nn.ELU(), shortcut=shortcut))
    feedback, x = undo(layer, (3, 6, 6)), torch.randn(5, 3, 6, 6)
    y, context = forward_with_context(layer, x)
    r = feedback(y, context)
    assert torch.equal(feedback(y.repeat(2, 1, 1, 1), context.repeat(2)), r.repeat(2, 1, 1, 1))
    chosen = torch.tensor([3, 0])
    assert torch.allclose(feedback(y[chosen], context.select(chosen)), r[chosen], atol=1e-6)


@pytest.mark.parametrize("function", [nn.ELU, nn.Tanh])
def test_residual_feedback_learns_to_be_the_adjoint(function):
    """L-DRL on one unit with the forward gate. With the slopes of the noisy pass it would stay half its size away."""
    torch.manual_seed(1)
    layer = nn.Sequential(ResidualUnit(2, 3, 2, function())).double()
    feedback = undo(layer, (2, 6, 6))
    x, sigma = torch.randn(32, 2, 6, 6, dtype=torch.float64), 0.1
    s, context = forward_with_context(layer, x)
    optimizer = torch.optim.Adam(feedback.parameters(), lr=0.01)

    def mismatch():
        v = torch.randn(s.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        expected = adjoint(layer, x, v)
        return float((feedback(v, context).detach() - expected).norm() / expected.norm())

    before = mismatch()
    for i in range(800):
        optimizer.param_groups[0]["lr"] = 0.01 if i < 500 else 0.001
        noise = (sigma * torch.randn_like(x), sigma * torch.randn_like(s))
        loss = ldrl_loss(layer, feedback, x, s.detach(), context, *noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before > 0.8 and mismatch() < 0.2


@pytest.mark.parametrize("routing", ["noisy", "fixed"])
def test_slopes_are_those_of_the_clean_pass(routing):
    unit = ResidualUnit(2, 3, 1, nn.Tanh()).double()
    layer, x = nn.Sequential(unit), torch.randn(4, 2, 5, 6, dtype=torch.float64)
    _, context = forward_with_context(layer, x)
    slope = context[0].branch[1].slope
    assert torch.allclose(slope, 1 - unit.branch[0](x).tanh() ** 2, atol=1e-14)
    assert not slope.requires_grad
    _, noisy = forward_with_context(layer, x + torch.randn_like(x), given=context, routing=routing)
    assert noisy[0].branch[1].slope is slope


def test_slopes_are_found_without_gradients_and_of_nonlinearities_in_place():
    layer, x = nn.Sequential(ResidualUnit(2, 3, 1, nn.ELU(inplace=True))), torch.randn(4, 2, 5, 6)
    feedback, expected = undo(layer, (2, 5, 6)), layer(x)
    y, context = forward_with_context(layer, x)
    assert torch.equal(y, expected)
    slope = context[0].branch[1].slope
    assert torch.allclose(slope, layer[0].branch[0](x).clamp(max=0).exp())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            again, context = forward_with_context(layer, x)
            assert torch.equal(again, y) and torch.equal(context[0].branch[1].slope, slope)
            feedback(again, context)


@pytest.mark.parametrize("gate", ["forward", "feedback", "linear"])
def test_a_stage_keeps_what_is_between_its_units_when_the_nonlinearity_comes_after(gate):
    """G(y) = f(B gate(A y)): what is between two units is after the upper one's map already."""
    below = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Sigmoid())
    units = [ResidualUnit(3, 3, 1, nn.Tanh()), InnerFunction(nn.ELU()), ResidualUnit(3, 4, 2, nn.Tanh()), nn.Tanh()]
    layers = [below, nn.Sequential(*units)]
    settings = FeedbackSettings(nonlinearity="after", bias=True, gate=gate)
    feedback = derive_feedback(layers, [torch.Size([2, 6, 6]), torch.Size([3, 6, 6])], [2], settings)[2]
    x = torch.randn(4, 3, 6, 6)
    y, context = forward_with_context(layers[1], x)
    upper, lower = (operation for operation in feedback.operations if isinstance(operation, ResidualFeedback))
    gates = {
        "forward": lambda z: z * units[0](x).clamp(max=0).exp(),
        "feedback": nn.functional.elu,
        "linear": lambda z: z,
    }
    expected = lower(gates[gate](upper(y, context[2])), context[0]).sigmoid()
    assert torch.allclose(feedback(y, context), expected, atol=1e-6)


def test_a_nonlinearity_between_the_maps_of_a_users_layer_keeps_its_place():
    layers = [nn.Sequential(nn.Linear(5, 6), nn.Tanh())]
    layers.append(nn.Sequential(nn.Linear(6, 7), nn.ELU(), nn.Linear(7, 4), nn.LeakyReLU(0.3)))
    feedback = derive_feedback(
        layers, [torch.Size([5]), torch.Size([6])], [2], FeedbackSettings(nonlinearity="after", bias=True)
    )[2]
    y, context = forward_with_context(layers[1], torch.randn(3, 6))
    upper, lower = (operation for operation in feedback.operations if hasattr(operation, "linear"))
    assert torch.allclose(feedback(y, context), lower(nn.functional.elu(upper(y))).tanh(), atol=1e-6)


# A layer of two maps of 2, made for the size of its input.
STRIDED = {
    "local": lambda size, kernel, stride: LocallyConnected2d(2, 3, size, kernel, stride),
    "local-padding": lambda size, kernel, stride: LocallyConnected2d(2, 3, size, kernel, stride, kernel // 2),
    "local-valid": lambda size, kernel, stride: LocallyConnected2d(2, 3, size, kernel, stride, 0),
    "same-convolution": lambda size, kernel, stride: SameConv2d(2, 3, kernel, stride),
}
strided = pytest.mark.parametrize("make", STRIDED.values(), ids=STRIDED)
geometries = pytest.mark.parametrize("stride", [1, 2, 3])


@strided
@geometries
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_feedback_of_strided_layers_with_transposed_weights_is_the_adjoint(make, kernel, stride):
    for size in [(5, 5), (6, 9), (7, 6), (8, 8), (9, 10)]:
        layer = nn.Sequential(make(size, kernel, stride)).double()
        feedback = undo(layer, (2, *size), symmetric=True, bias=True)  # copying zeroes the bias
        x = torch.randn(3, 2, *size, dtype=torch.float64)
        y, context = forward_with_context(layer, x)
        v = torch.randn_like(y)
        assert torch.allclose(feedback(v, context), adjoint(layer, x, v), atol=1e-12)
        pairs = feedback.weight_pairs(layer)
        assert len(pairs) == 1 and torch.equal(*pairs[0])
        assert storages(layer).isdisjoint(storages(feedback))


@strided
@geometries
def test_weight_gradients_of_strided_feedback_are_those_of_autograd(make, stride):
    """Of one batch and of several, with other weights than its own."""
    k, batch, size = 3, 2, (7, 8)
    layer = make(size, 3, stride).double()
    operation = undo(layer, (2, *size), bias=True).operations[0]
    nn.init.normal_(operation.get_parameter("bias" if hasattr(operation, "layer") else "transposed.bias"))
    error = torch.randn(k * batch, 2, *size, dtype=torch.float64)
    y = torch.randn_like(layer(error))
    other = torch.randn_like(operation.weight).requires_grad_()
    r = operation.apply_weight(y, other)
    expected = [
        torch.autograd.grad((part * e).sum(), other, retain_graph=True)[0]
        for part, e in zip(r.split(batch), error.split(batch), strict=True)
    ]
    found = operation.weight_gradients(y.unflatten(0, (k, batch)), error.unflatten(0, (k, batch)))
    assert torch.allclose(found, torch.stack(expected), atol=1e-12)
    assert torch.allclose(operation.weight_gradient(y[:batch], error[:batch]), expected[0], atol=1e-12)
    bias = operation(y) - operation.apply_weight(y, operation.weight)
    assert torch.allclose(bias, bias[:1].expand_as(bias)) and bias.abs().sum() > 0


def test_units_that_were_not_read_get_zeros_back():
    layer = nn.Sequential(FirstUnits(3), nn.Linear(3, 3))
    feedback = undo(layer, (5,), symmetric=True)
    y, context = forward_with_context(layer, torch.randn(4, 5))
    r = feedback(y, context)
    assert torch.allclose(r[:, :3], y @ layer[1].weight, atol=1e-6) and not r[:, 3:].any()


def test_standardisation_of_the_feedback_follows_its_nonlinearity():
    """Shibuya et al. 2023: G(y) = BN(tanh(B y)), with nothing that undoes the standardisation of its own layer."""
    layers = [nn.Sequential(nn.Linear(i, o), nn.Tanh(), Standardise(o)) for i, o in ((6, 5), (5, 4))]
    settings = FeedbackSettings(nonlinearity="after", bias=False)
    feedback = derive_feedback(layers, [torch.Size([6]), torch.Size([5])], [2], settings)[2]
    y, context = forward_with_context(layers[1], torch.randn(8, 5))
    raw = (y @ feedback.operations[0].weight.t()).tanh()
    assert torch.allclose(feedback(y, context), (raw - raw.mean(0)) / raw.std(0), atol=1e-5)


NETWORKS = {
    "resnet18": lambda: ResNet18(ResNet18.Options("leaky-relu", channels=[3, 3, 4, 4, 5]), (3, 9, 8), 5),
    "resnet18-stages": lambda: ResNet18(
        ResNet18.Options("leaky-relu", channels=[3, 3, 4, 4, 5], residual_layers="stage"), (3, 8, 7), 5
    ),
    "resnet20": lambda: ResNet20(ResNet20.Options("leaky-relu", channels=[3, 3, 4, 6], batch_norm=False), (3, 9, 8), 5),
    "lc": lambda: LocallyConnected(LocallyConnected.Options("leaky-relu", channels=[3, 4], hidden=[9]), (2, 9, 8), 5),
    "convnet": lambda: ConvNet(ConvNet.Options("leaky-relu", channels=[3, 4], hidden=[9]), (2, 9, 8), 5),
    "square": lambda: Square(Square.Options(widths=[20, 12, 12], outputs=8), (2, 4, 4), 5),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_transposed_weights_give_backprop_in_the_limit_where_activations_keep_their_slopes(network):
    """Through whole networks: targets go down as errors do, for f'(f(a)) = f'(a)."""
    network = network().double()
    rule = DTP(network, DTPOptions(beta=1e-8, feedback_init="symmetric")).double()
    x, y = torch.randn(6, *network.input_shape, dtype=torch.float64), torch.randint(5, (6,))
    for found in feedback_alignment(rule).values():
        assert (found.angle, found.distance) == (0, 0)
    assert set(feedback_alignment(rule)) == set(range(2, network.depth + 1))
    for found in update_alignment(rule, x, y).values():
        assert found.angle < 0.01 and found.distance < 1e-4


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_fresh_feedback_weights_are_unrelated_to_the_forward_weights(network):
    rule = DTP(network())
    pairs = [pair for layer in rule.feedback_weights().values() for pair in layer if pair[0].numel() > 100]
    assert pairs
    for v, w in pairs:
        assert abs(torch.cosine_similarity(v.flatten(), w.flatten(), 0)) < 5 / v.numel() ** 0.5
    assert storages(rule.network).isdisjoint(storages(rule.feedback))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("layers", ["unit", "stage"])
def test_l_drl_trains_a_small_resnet(layers, batch_norm):
    network = ResNet18(
        ResNet18.Options(channels=[3, 3, 4, 4, 5], batch_norm=batch_norm, residual_layers=layers), (3, 9, 8), 5
    )
    entry = ALGORITHMS.resolve("dtp")
    rule = entry.load()(network, entry.load_options()(feedback_optimizer="adam", feedback_iterations=[2]), seed=0)
    rule.configure_optimizers()
    x, y = torch.randn(6, 3, 9, 8), torch.randint(5, (6,))
    first = rule.task_loss(network(x), y)
    for _ in range(15):
        rule.training_batch(x, y)
    assert rule.task_loss(network(x), y) < first
    assert set(rule.feedback_weights()) == set(range(2, network.depth + 1))
