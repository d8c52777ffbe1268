"""Feedback layers derived from whole networks: shapes, order of operations, weights, Jacobians."""

import pytest
import torch
import torch.nn.functional as F
from torch import Size, nn
from torch.func import jacrev

from dtp.feedback import (
    FeedbackOperation,
    FeedbackSettings,
    NotReducible,
    derive_feedback,
    forward_with_context,
    register_feedback,
)
from dtp.feedback.operations import MaxUnpool
from dtp.models import MLP, VGG, LeNet

from .helpers import LAYERS, MAPS, OF_MAPS, storages, task, undo

NETWORKS = {
    "lenet-28": lambda: LeNet(LeNet.Options(channels=[4, 6], hidden=9), (1, 28, 28), 10),
    "lenet-32": lambda: LeNet(LeNet.Options(channels=[4, 6], hidden=9), (3, 32, 32), 10),
    "lenet-odd": lambda: LeNet(LeNet.Options(channels=[4, 6], hidden=9), (3, 33, 27), 10),
    "vgg-32": lambda: VGG(VGG.Options(channels=[4, 4, 5, 5, 6]), (3, 32, 32), 10),
    "vgg-64": lambda: VGG(VGG.Options(channels=[4, 4, 5, 5, 6]), (3, 64, 64), 7),
    "vgg-odd": lambda: VGG(VGG.Options(channels=[4, 5]), (3, 13, 22), 7),
    "mlp": lambda: MLP(MLP.Options(widths=[20, 30]), (1, 8, 8), 10),
    "mlp-linear": lambda: MLP(MLP.Options(widths=[]), (3, 4, 4), 10),
}


def derive(network, **settings):
    return derive_feedback(network.layers, network.shapes, range(1, network.depth + 1), FeedbackSettings(**settings))


# --- shapes and weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", ["before", "after"])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_feedback_layer_maps_back_to_the_shape_before_its_layer(name, nonlinearity):
    network = NETWORKS[name]()
    feedback = derive(network, nonlinearity=nonlinearity)
    s = torch.randn(2, *network.input_shape)
    for n in range(1, network.depth + 1):
        y, context = forward_with_context(network[n], s)
        assert feedback[n](y, context).shape == s.shape
        s = y
    assert s.shape == (2, network.num_classes)


def test_only_the_asked_layers_get_feedback():
    network = NETWORKS["vgg-32"]()
    feedback = derive_feedback(network.layers, network.shapes, [3, 2, 6], FeedbackSettings())
    assert feedback.numbers == [2, 3, 6]
    assert 3 in feedback and 4 not in feedback
    with pytest.raises(KeyError):
        feedback[4]


def test_numbers_are_sorted_as_numbers():
    layers = [nn.Linear(2, 2) for _ in range(11)]
    feedback = derive_feedback(layers, [Size([2])] * 11, range(2, 12), FeedbackSettings())
    assert feedback.numbers == list(range(2, 12))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bias", [False, True])
def test_feedback_has_a_bias_only_when_asked(name, bias):
    network = NETWORKS[name]()
    feedback = derive(network, bias=bias)
    for n in feedback.numbers:
        parameters = dict(feedback[n].named_parameters())
        biases = {name: p for name, p in parameters.items() if name.endswith("bias")}
        assert len(parameters) == 1 + bias and len(biases) == bias
        if bias:
            features = network.shapes[n - 1][0] if len(network.shapes[n]) > 1 else network.shapes[n - 1].numel()
            assert [p.numel() for p in biases.values()] == [features]


@pytest.mark.parametrize("name", NETWORKS)
def test_feedback_weights_are_fresh_and_share_no_memory_with_the_forward_weights(name):
    network = NETWORKS[name]()
    feedback = derive(network, bias=True)
    assert storages(network).isdisjoint(storages(feedback))
    for n in feedback.numbers:
        (forward, *_), (backward, *_) = network[n].parameters(), feedback[n].parameters()
        assert forward.numel() == backward.numel()
        assert not torch.equal(forward.flatten().sort().values, backward.flatten().sort().values)


def test_batch_norm_weights_belong_to_the_forward_layer_alone():
    layer = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ELU())
    feedback = undo(layer, (2, 5, 5))
    assert [name for name, _ in feedback.named_parameters()] == ["operations.2.transposed.weight"]
    assert storages(layer).isdisjoint(storages(feedback))


@pytest.mark.parametrize("name", NETWORKS)
def test_copy_transpose_copies_values_and_leaves_the_forward_weights(name):
    network = NETWORKS[name]()
    before = [p.detach().clone() for p in network.parameters()]
    feedback = derive(network, bias=True)
    for n in feedback.numbers:
        feedback[n].copy_transpose(network[n])
        (weight, _), (v, c) = network[n].parameters(), feedback[n].parameters()
        assert torch.equal(v, weight if weight.dim() == 4 else weight.T)
        assert not c.any()
    assert storages(network).isdisjoint(storages(feedback))
    with torch.no_grad():
        for p in feedback.parameters():
            p.add_(1)
    for p, old in zip(network.parameters(), before, strict=True):
        assert torch.equal(p, old) and p.requires_grad


def test_feedback_has_the_precision_of_its_layer():
    layer = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)).double()
    assert {p.dtype for p in undo(layer, (2, 5, 5), bias=True).parameters()} == {torch.float64}


# --- order of operations ----------------------------------------------------------------------------------------------

CONV_LAYER = [nn.Conv2d(2, 3, 3, padding=1), nn.ELU(), nn.MaxPool2d(2)]


def test_before_evaluates_the_nonlinearity_on_the_pooled_tensor():
    layer = nn.Sequential(*CONV_LAYER)
    feedback = undo(layer, (2, 8, 8))
    y, context = forward_with_context(layer, torch.randn(2, 2, 8, 8))
    shapes = []
    for module in feedback.modules():
        if isinstance(module, nn.ELU):
            module.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    feedback(y, context)
    assert shapes == [(2, 3, 4, 4)]


def test_before_equals_the_literal_reversal_where_windows_do_not_overlap():
    layer = nn.Sequential(*CONV_LAYER).double()
    feedback = undo(layer, (2, 8, 8))
    y, context = forward_with_context(layer, torch.randn(2, 2, 8, 8, dtype=torch.float64))
    target = torch.randn_like(y)
    unpooled = F.elu(F.max_unpool2d(target, context[2].indices, 2))
    expected = F.conv_transpose2d(unpooled, next(feedback.parameters()), padding=1)
    torch.testing.assert_close(feedback(target, context), expected, rtol=1e-12, atol=1e-14)


def test_before_adds_what_overlapping_windows_hold_after_the_nonlinearity():
    layer = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ELU(), nn.MaxPool2d(3, 2, 1)).double()
    feedback = undo(layer, (2, 8, 8))
    y, context = forward_with_context(layer, torch.randn(2, 2, 8, 8, dtype=torch.float64))
    target = torch.randn_like(y)
    unpooled = torch.zeros(2, 3, 64, dtype=torch.float64)
    for b, c, p in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(16)).tolist():
        unpooled[b, c, context[2].indices[b, c].flatten()[p]] += F.elu(target[b, c].flatten()[p])
    expected = F.conv_transpose2d(unpooled.unflatten(2, (8, 8)), next(feedback.parameters()), padding=1)
    torch.testing.assert_close(feedback(target, context), expected, rtol=1e-12, atol=1e-14)


def test_before_has_the_nonlinearity_of_its_own_layer():
    layers = [nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Sequential(nn.Linear(5, 4), nn.ELU()), nn.Linear(4, 3)]
    feedback = derive_feedback(layers, [Size([n]) for n in (6, 5, 4)], [1, 2, 3], FeedbackSettings(bias=True))
    functions = {1: torch.tanh, 2: F.elu, 3: lambda y: y}
    for n, function in functions.items():
        v, c = feedback[n].parameters()
        y = torch.randn(2, v.shape[1])
        _, context = forward_with_context(layers[n - 1], torch.randn(2, v.shape[0]))
        torch.testing.assert_close(feedback[n](y, context), F.linear(function(y), v, c))


def test_after_ends_with_the_nonlinearity_of_the_layer_below():
    """G_n(y) = f(V y + c), f the nonlinearity that made s_{n-1}; nothing made the input, so G_1 has none."""
    layers = [nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Sequential(nn.Linear(5, 4), nn.ELU()), nn.Linear(4, 3)]
    settings = FeedbackSettings(nonlinearity="after", bias=True)
    feedback = derive_feedback(layers, [Size([n]) for n in (6, 5, 4)], [1, 2, 3], settings)
    functions = {1: lambda y: y, 2: torch.tanh, 3: F.elu}
    for n, function in functions.items():
        v, c = feedback[n].parameters()
        y = torch.randn(2, v.shape[1])
        _, context = forward_with_context(layers[n - 1], torch.randn(2, v.shape[0]))
        torch.testing.assert_close(feedback[n](y, context), function(F.linear(y, v, c)))


def test_after_comes_behind_unpooling_convolution_and_reshape():
    layers = [
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ELU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(12, 4)),
    ]
    shapes = [Size([1, 8, 8]), Size([2, 4, 4]), Size([3, 2, 2])]
    feedback = derive_feedback(layers, shapes, [2, 3], FeedbackSettings(nonlinearity="after", bias=True))
    s2, context2 = forward_with_context(layers[1], torch.randn(2, 2, 4, 4))
    s3, context3 = forward_with_context(layers[2], s2)
    unpooled = F.max_unpool2d(s2, context2[2].indices, 2)
    v, c = feedback[2].parameters()
    torch.testing.assert_close(feedback[2](s2, context2), torch.tanh(F.conv_transpose2d(unpooled, v, c, padding=1)))
    v, c = feedback[3].parameters()
    torch.testing.assert_close(feedback[3](s3, context3), F.elu(F.linear(s3, v, c)).view(2, 3, 2, 2))


def test_after_moves_a_users_elementwise_operation_too(registry):
    class Tanhshrink(FeedbackOperation):
        kind = "elementwise"

        def forward(self, y, context):
            return F.tanhshrink(y)

    register_feedback(nn.Tanhshrink, lambda module, in_shape, settings: Tanhshrink())
    layers = [nn.Sequential(nn.Linear(6, 5), nn.Tanhshrink()), nn.Sequential(nn.Linear(5, 4), nn.Tanhshrink())]
    settings = FeedbackSettings(nonlinearity="after")
    feedback = derive_feedback(layers, [Size([6]), Size([5])], [2], settings)[2]
    y = torch.randn(2, 4)
    _, context = forward_with_context(layers[1], torch.randn(2, 5))
    torch.testing.assert_close(feedback(y, context), F.tanhshrink(F.linear(y, *feedback.parameters())))


# --- differences ------------------------------------------------------------------------------------------------------


def assert_difference_is_that_of_two_evaluations(feedback, y, reference, context) -> None:
    expected = feedback(y, context) - feedback(reference, context)
    torch.testing.assert_close(feedback.difference(y, reference, context), expected, rtol=1e-12, atol=1e-13)
    assert not feedback.difference(y, y, context).any()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bias", [False, True])
def test_difference_is_that_of_two_evaluations(name, bias):
    one = task(name, bias=bias)
    target = one.s_out + torch.randn_like(one.s_out)
    assert one.feedback.affine_place in (len(one.feedback.operations) - 1, len(one.feedback.operations) - 2)
    assert_difference_is_that_of_two_evaluations(one.feedback, target, one.s_out, one.context)


@pytest.mark.parametrize("name", OF_MAPS)
def test_difference_is_that_of_two_evaluations_of_channels_last_maps(name):
    one = task(name, memory_format=torch.channels_last)
    target = one.s_out + torch.randn_like(one.s_out)
    assert_difference_is_that_of_two_evaluations(one.feedback, target, one.s_out, one.context)


def test_a_difference_is_taken_before_what_is_linear_so_that_it_is_unpooled_once(monkeypatch):
    layer = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ELU(), nn.MaxPool2d(3, 2)).double()
    feedback = undo(layer, MAPS)
    s_out, context = forward_with_context(layer, torch.randn(4, *MAPS, dtype=torch.float64))
    unpooled = []
    forward = MaxUnpool.forward
    monkeypatch.setattr(MaxUnpool, "forward", lambda self, y, context: unpooled.append(y) or forward(self, y, context))
    feedback.difference(s_out + 1, s_out, context)
    assert [tuple(y.shape) for y in unpooled] == [tuple(s_out.shape)]


def test_a_difference_is_taken_after_what_a_hook_makes_of_an_unpooling():
    layer = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ELU(), nn.MaxPool2d(3, 2)).double()
    feedback = undo(layer, MAPS)
    unpooling = next(operation for operation in feedback.operations if type(operation) is MaxUnpool)
    unpooling.register_forward_hook(lambda module, args, output: output.square())
    s_out, context = forward_with_context(layer, torch.randn(4, *MAPS, dtype=torch.float64))
    assert_difference_is_that_of_two_evaluations(feedback, s_out + torch.randn_like(s_out), s_out, context)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 4, 3)),
        nn.Sequential(nn.ELU(), nn.Conv2d(2, 4, 3), nn.Tanh()),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.ELU(), nn.Conv2d(4, 3, 3), nn.ELU()),
        nn.Sequential(nn.ELU(), nn.MaxPool2d(3, 1)),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_difference_is_that_of_two_evaluations_where_it_has_no_short_form(layer, bias):
    layer = layer.double()
    feedback = undo(layer, MAPS, bias=bias)
    with pytest.raises(NotReducible):
        feedback.affine_place  # noqa: B018
    y, context = forward_with_context(layer, torch.randn(4, *MAPS, dtype=torch.float64))
    assert_difference_is_that_of_two_evaluations(feedback, y + torch.randn_like(y), y, context)


def test_difference_is_that_of_two_evaluations_with_the_nonlinearity_after_the_affine_map():
    layers = [nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh()), nn.Sequential(nn.Conv2d(2, 3, 3), nn.ELU())]
    layers = [layer.double() for layer in layers]
    settings = FeedbackSettings(nonlinearity="after", bias=True)
    feedback = derive_feedback(layers, [Size(MAPS)] * 2, [2], settings)[2]
    y, context = forward_with_context(layers[1], torch.randn(4, *MAPS, dtype=torch.float64))
    assert_difference_is_that_of_two_evaluations(feedback, y + torch.randn_like(y), y, context)


@pytest.mark.parametrize("name", ["linear-elu", "conv-elu-overlapping-pool", "conv-elu-average"])
def test_difference_passes_gradients_to_both_points_and_the_weights(name):
    one = task(name)
    reference = one.s_out.clone().requires_grad_()
    y = (one.s_out + torch.randn_like(one.s_out)).requires_grad_()
    to = (y, reference, *one.parameters)
    upward = torch.randn_like(one.s_in)
    found = torch.autograd.grad(one.feedback.difference(y, reference, one.context), to, upward)
    expected = torch.autograd.grad(one.feedback(y, one.context) - one.feedback(reference, one.context), to, upward)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_difference_rounds_less_than_two_evaluations():
    """The affine map acts on a small difference, not on two large activations."""
    one = task("conv-elu-pool", bias=True, dtype=torch.float32)
    exact = task("conv-elu-pool", bias=True)
    with torch.no_grad():
        for p, q in zip(exact.parameters, one.parameters, strict=True):
            p.copy_(q)
        y = one.s_out + 1e-4 * torch.randn_like(one.s_out)
        points = y.double(), one.s_out.double()
        expected = exact.feedback.difference(*points, one.context)
        short = (one.feedback.difference(y, one.s_out, one.context) - expected).norm()
        twice = (one.feedback(y, one.context) - one.feedback(one.s_out, one.context) - expected).norm()
    assert short < 0.5 * twice


# --- Jacobians --------------------------------------------------------------------------------------------------------


def jacobians(layer: nn.Module, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """J_F at one sample s and J_G at F(s), of the feedback layer with transposed weights; as matrices."""
    feedback = undo(layer, s.shape, symmetric=True)
    y, context = forward_with_context(layer, s[None])
    forward = jacrev(lambda s: layer(s[None])[0].flatten())(s).flatten(1)
    backward = jacrev(lambda y: feedback(y[None], context)[0].flatten())(y[0]).flatten(1)
    return forward, backward


LINEAR_LAYERS = {
    "output": (nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), (3, 4, 4)),
    "strided-conv": (nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1)), (2, 7, 6)),
    "conv-average": (nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d(2)), (2, 6, 7)),
    "conv-max": (nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(3, 2, 1)), (2, 6, 7)),
}


@pytest.mark.parametrize("name", LINEAR_LAYERS)
def test_symmetric_weights_match_jacobians_of_layers_without_nonlinearity(name):
    layer, in_shape = LINEAR_LAYERS[name]
    forward, backward = jacobians(layer.double(), torch.randn(in_shape, dtype=torch.float64))
    torch.testing.assert_close(backward, forward.T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("pool", [[], [nn.MaxPool2d(2)], [nn.MaxPool2d(3, 2, 1)]], ids=["none", "2", "overlapping"])
def test_symmetric_weights_match_jacobians_of_leaky_relu_layers(pool):
    """f(a) has the sign of a, and f' depends on the sign alone: f'(f(a)) = f'(a), for every random a != 0."""
    layer = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.LeakyReLU(0.2), *pool).double()
    forward, backward = jacobians(layer, torch.randn(2, 6, 7, dtype=torch.float64))
    torch.testing.assert_close(backward, forward.T, rtol=1e-12, atol=1e-14)


def elu_layer(bias: float, *pool: nn.Module) -> nn.Sequential:
    layer = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ELU(), *pool).double()
    nn.init.constant_(layer[0].bias, bias)
    return layer


@pytest.mark.parametrize("pool", [[], [nn.MaxPool2d(2)], [nn.MaxPool2d(3, 2, 1)]], ids=["none", "2", "overlapping"])
def test_symmetric_weights_match_jacobians_of_elu_layers_at_positive_pre_activations(pool):
    layer, s = elu_layer(5.0, *pool), torch.rand(2, 6, 7, dtype=torch.float64)
    assert layer[0](s[None]).min() > 0
    forward, backward = jacobians(layer, s)
    torch.testing.assert_close(backward, forward.T, rtol=1e-12, atol=1e-14)


def test_symmetric_weights_leave_the_known_mismatch_of_elu_at_negative_pre_activations():
    """J_G has f'(f(a)) = exp(exp(a) - 1) where J_F has f'(a) = exp(a)."""
    layer, s = elu_layer(-2.0), torch.rand(2, 6, 7, dtype=torch.float64)
    a = layer[0](s[None]).flatten()
    assert a.max() < 0
    forward, backward = jacobians(layer, s)
    torch.testing.assert_close(backward, (forward.T / a.exp()) * (a.exp() - 1).exp(), rtol=1e-12, atol=1e-14)
