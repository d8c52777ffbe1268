"""A user's model as layers: the same numbers, the same weights, cut where the rule says, refused with a way on."""

import copy
import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from dtp.algorithms import BP, DFA, DTP, FA
from dtp.errors import UserError
from dtp.feedback import layer_operations, register_feedback
from dtp.feedback.operations import PassThrough
from dtp.models import MLP, Network
from dtp.models.cutting import CutNetwork, as_network, layers
from dtp.models.modules import InnerFunction, Residual, Uncut
from dtp.models.options import MLPOptions
from tests.algorithms.helpers import changed, make, state

from .slim import CLASSES, SIDES, torchvision_network

torchvision_networks = pytest.mark.parametrize("name", SIDES)


def images(name: str, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIDES[name], SIDES[name])


def kinds(network: Network) -> list[list[str]]:
    """Types of the operations of each layer."""
    return [[type(operation).__name__ for operation in layer_operations(layer)] for layer in network]


def readme_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ELU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 16),
        nn.ELU(),
        nn.Linear(16, 10),
    )


# --- the same numbers and the same weights ----------------------------------------------------------------------------


def require_the_same_pass(network, model, x):
    """In training and in evaluation, what is drawn included."""
    for mode in (True, False):
        network.train(mode), model.train(mode)
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        assert torch.equal(network(x), expected)


@torchvision_networks
def test_forward_pass_of_torchvision_networks_is_their_own(name):
    """In training and in evaluation, running statistics and draws of dropout included."""
    model = torchvision_network(name)
    twin = copy.deepcopy(model)
    network = as_network(model, (3, SIDES[name], SIDES[name]))
    require_the_same_pass(network, twin, images(name))
    theirs, ours = twin.state_dict(), network.model.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)


@torchvision_networks
def test_gradients_of_torchvision_networks_are_their_own(name):
    model = torchvision_network(name).double()
    twin = copy.deepcopy(model)
    network = as_network(model.float(), (3, SIDES[name], SIDES[name])).double()
    x, y = images(name).double(), torch.randint(CLASSES, (2,))
    for one in (network, twin):
        torch.manual_seed(1)
        F.cross_entropy(one(x), y).backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-9)


@torchvision_networks
def test_weights_are_the_models_own(name):
    model = torchvision_network(name)
    network = as_network(model, images(name))
    assert {id(p) for p in network.parameters()} == {id(p) for p in model.parameters()}
    assert {id(b) for b in network.buffers()} == {id(b) for b in model.buffers()}
    assert network.model is model


def test_training_the_layers_trains_the_model():
    model = readme_model()
    before = state(model)
    rule = make("bp", as_network(model, (1, 8, 8)))
    rule.training_batch(torch.randn(3, 1, 8, 8), torch.randint(10, (3,)))
    assert changed(before, model.state_dict()) == set(before)


def test_a_copy_of_the_network_has_a_model_of_its_own():
    """As is made by copy.deepcopy and in worker processes."""
    network = as_network(readme_model(), (1, 8, 8))
    twin = copy.deepcopy(network)
    ours, theirs = ({id(p) for p in one.parameters()} for one in (network, twin))
    assert ours.isdisjoint(theirs)
    assert {id(p) for p in twin.model.parameters()} == theirs


def test_modes_reach_the_models_containers():
    """F.dropout asks its container."""
    model = torchvision_network("resnet18")
    network = as_network(model, images("resnet18"))
    network.eval()
    assert not any(module.training for module in model.modules())
    network.train()
    assert all(module.training for module in model.modules())


def test_modes_are_left_as_they_were():
    model = torchvision_network("resnet18")
    model.layer1.eval()
    before = [module.training for module in model.modules()]
    as_network(model, images("resnet18"))
    assert [module.training for module in model.modules()] == before


class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g = nn.Linear(6, 50), nn.Linear(50, 3)

    def forward(self, x):
        return self.g(F.dropout(self.f(x), 0.5, self.training))


@pytest.mark.parametrize("training", [True, False])
def test_dropout_that_is_a_function_is_in_the_mode_of_its_model(training):
    model, x = FunctionalDropout().train(training), torch.randn(4, 6)
    network = as_network(model)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.equal(network(x), expected)


def test_what_is_computed_and_not_used_hinders_no_cut():
    class Recording(FunctionalDropout):
        def forward(self, x):
            y = self.f(x)
            torch.relu(y)
            y.detach()
            return self.g(y)

    class InPlaceElsewhere(FunctionalDropout):
        """As by the head of a task that is not asked for."""

        def __init__(self):
            super().__init__()
            self.head = nn.Sequential(nn.Linear(50, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))

        def forward(self, x):
            y = self.f(x)
            torch.tanh(y).mul_(2)
            self.head(y)
            return self.g(y)

    for model in (Recording(), InPlaceElsewhere()):
        assert kinds(as_network(model)) == [["Linear"], ["Linear"]]


def test_our_own_networks_are_returned_unchanged():
    network = MLP(MLPOptions(), (1, 8, 8), 10)
    assert as_network(network) is network


# --- where it is cut --------------------------------------------------------------------------------------------------


def test_a_layer_begins_with_an_affine_map_and_a_flatten_before_it():
    assert kinds(as_network(readme_model(), (1, 8, 8))) == [
        ["Conv2d", "ELU", "MaxPool2d"],
        ["Flatten", "Linear", "ELU"],
        ["Linear"],
    ]


def test_what_comes_first_belongs_to_the_first_layer():
    model = nn.Sequential(
        nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4)
    )
    expected = [["BatchNorm2d", "Flatten", "Linear", "BatchNorm1d", "Tanh"], ["Linear"]]
    assert kinds(as_network(model, (2, 3, 3))) == expected


def test_containers_and_normalisations_with_matrices_begin_no_layer():
    norm = nn.LayerNorm([4, 5, 5])
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3)), nn.Sequential(norm, nn.ReLU()), nn.Flatten(), nn.Linear(100, 3)
    )
    assert [len(layer) for layer in as_network(model, (2, 7, 7))] == [3, 2]


VGG_UNIT = ["Conv2d", "ReLU"]
CUTS = {
    "alexnet": [
        [*VGG_UNIT, "MaxPool2d"],
        [*VGG_UNIT, "MaxPool2d"],
        VGG_UNIT,
        VGG_UNIT,
        [*VGG_UNIT, "MaxPool2d", "AdaptiveAvgPool2d", "Flatten", "Dropout"],
        ["Linear", "ReLU", "Dropout"],
        ["Linear", "ReLU"],
        ["Linear"],
    ],
    "resnet18": [
        ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"],
        *[["Residual", "ReLU"]] * 7,
        ["Residual", "ReLU", "AdaptiveAvgPool2d"],
        ["Flatten", "Linear"],
    ],
    "squeezenet1_1": [
        ["Conv2d", "ReLU", "MaxPool2d"],
        *[["Fire"], ["Fire", "MaxPool2d"]] * 2,
        *[["Fire"]] * 3,
        ["Fire", "Dropout"],
        ["Conv2d", "ReLU", "AdaptiveAvgPool2d", "Flatten"],
    ],
}


@pytest.mark.parametrize("name", CUTS)
def test_torchvision_networks_are_cut_as_documented(name):
    table = layers(torchvision_network(name), images(name))
    assert [row.modules.split(", ") for row in table] == CUTS[name]


@pytest.mark.parametrize(
    "name, depth, units",
    [("vgg11_bn", 11, 0), ("vgg16", 16, 0), ("resnet34", 18, 16), ("resnet50", 18, 16), ("mobilenet_v2", 33, 10)],
)
def test_depth_is_the_number_of_affine_maps_and_residual_units(name, depth, units):
    network = as_network(torchvision_network(name), images(name))
    assert network.depth == depth
    assert sum(isinstance(layer[0], Residual) for layer in network) == units


@pytest.mark.parametrize("name, convolutions", [("resnet18", 2), ("resnet50", 3)])
def test_blocks_are_residual_units_with_inner_functions(name, convolutions):
    """Of the last stage's first block, which has a convolution in its shortcut."""
    network = as_network(torchvision_network(name), images(name))
    units = [layer[0] for layer in network if isinstance(layer[0], Residual) and len(layer[0].shortcut)]
    unit = units[-1]
    assert unit.shortcut[0].stride == (2, 2)
    conv = ["Conv2d", "BatchNorm2d"]
    inner = [*conv, "InnerFunction"] * (convolutions - 1)
    assert [type(m).__name__ for m in unit.branch] == [*inner, *conv]
    assert [type(m).__name__ for m in unit.shortcut] == conv


class Functional(nn.Module):
    """A forward of functions, methods and modules that are used twice."""

    def __init__(self, flatten):
        super().__init__()
        self.conv, self.again, self.norm = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
        )
        self.linear, self.output = nn.Linear(16, 6), nn.Linear(6, 3)
        self.flatten = flatten

    def forward(self, x, unused=None):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        x = F.avg_pool2d(torch.tanh(self.again(x)), kernel_size=2)
        x = self.flatten(F.dropout(x, 0.3, training=self.training))
        return self.output(F.leaky_relu(self.linear(x).tanh(), 0.2))


FLATTENS = {
    "flatten": lambda x: x.flatten(1),
    "torch.flatten": lambda x: torch.flatten(x, 1),
    "start_dim": lambda x: torch.flatten(x, start_dim=1),
    "view-size": lambda x: x.view(x.size(0), -1),
    "view-shape": lambda x: x.view(x.shape[0], -1),
    "view-features": lambda x: x.view(-1, 16),
    "reshape-both": lambda x: x.reshape((x.size()[0], 16)),
    "torch.reshape": lambda x: torch.reshape(x, (-1, 16)),
}


@pytest.mark.parametrize("name", FLATTENS)
def test_functions_become_modules(name):
    model = Functional(FLATTENS[name])
    twin, x = copy.deepcopy(model), torch.randn(3, 1, 8, 8)
    network = as_network(model, (1, 8, 8))
    assert kinds(network) == [
        ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"],
        ["Conv2d", "Tanh", "AvgPool2d", "Dropout"],
        ["Flatten", "Linear", "Tanh", "LeakyReLU"],
        ["Linear"],
    ]
    require_the_same_pass(network, twin, x)


class Rows(nn.Module):
    """``middle`` sees each channel by itself, as a sample would be."""

    def __init__(self, middle):
        super().__init__()
        self.conv, self.middle, self.output = nn.Conv2d(1, 3, 3), middle, nn.Linear(48, 3)

    def forward(self, x):
        return self.output(self.middle(self.conv(x).view(-1, 16)).view(-1, 48))


@pytest.mark.parametrize("middle", [nn.Softmax(1), nn.Linear(16, 16), nn.LayerNorm(16), nn.BatchNorm1d(16)], ids=str)
def test_a_view_that_makes_rows_of_channels_is_no_flatten(middle):
    model, x = Rows(middle), torch.randn(2, 1, 6, 6)
    network = as_network(model, (1, 6, 6))
    assert kinds(network) == [["Uncut"]]
    require_the_same_pass(network, copy.deepcopy(model), x)


def test_a_shape_that_does_not_fit_is_told_of_layers_where_views_flatten():
    told = r"1x13x13 do not fit Functional: layer 3 \(Flatten, Linear, Tanh, LeakyReLU\)"
    with pytest.raises(UserError, match=told):
        as_network(Functional(FLATTENS["view-features"]), (1, 13, 13))


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 56, 56)])
def test_samples_that_a_view_takes_for_several_are_refused(shape):
    """There would be more outputs than labels."""

    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g = nn.Linear(784, 16), nn.Linear(16, 10)

        def forward(self, x):
            return self.g(torch.relu(self.f(x.view(-1, 784))))

    assert kinds(as_network(Viewing(), (1, 28, 28))) == [["Flatten", "Linear", "ReLU"], ["Linear"]]
    with pytest.raises(UserError, match=f"Samples of shape {'x'.join(map(str, shape))} do not fit Viewing"):
        as_network(Viewing(), shape)


class Mean(nn.Module):
    def __init__(self, *dims):
        super().__init__()
        self.conv, self.output, self.dims = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), dims

    def forward(self, x):
        return self.output(self.conv(x).relu().mean(self.dims))


@pytest.mark.parametrize("dims", [(2, 3), (-1, -2)])
def test_a_mean_over_space_is_a_pooling(dims):
    model = Mean(*dims)
    network, x = as_network(model, (1, 8, 8)), torch.randn(3, 1, 8, 8)
    assert kinds(network) == [["Conv2d", "ReLU", "AdaptiveAvgPool2d"], ["Flatten", "Linear"]]
    assert torch.equal(network(x), model(x))


class PreActivation(nn.Module):
    """A residual unit within a residual unit, the outer one with a sum in both branches."""

    def __init__(self, inplace=False):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.act, self.output = nn.ELU(inplace=inplace), nn.Linear(75, 4)

    def forward(self, x):
        inner = self.a(self.act(x)) + x
        x = torch.add(self.b(inner), self.c(x))
        return self.output(self.act(x).flatten(1))


def test_units_may_hold_units():
    model, x = PreActivation(), torch.randn(2, 3, 5, 5)
    network = as_network(model, (3, 5, 5))
    assert kinds(network) == [["Residual", "ELU"], ["Flatten", "Linear"]]
    unit = network[1][0]
    assert [type(m) for m in unit.branch] == [Residual, nn.Conv2d] and [type(m) for m in unit.shortcut] == [nn.Conv2d]
    assert [type(m) for m in unit.branch[0].branch] == [InnerFunction, nn.Conv2d] and not len(unit.branch[0].shortcut)
    assert torch.equal(network(x), model(x))


# --- what cannot be cut -----------------------------------------------------------------------------------------------


class Concatenating(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return torch.cat([self.left(x), self.right(x)], 1)


class Crossing(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.f(x)
        return self.g(y) + x + y


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.f(x) if x.shape[1] > 2 else self.f(-x)


class DifferentInTraining(Deciding):
    def forward(self, x):
        return self.f(x) if self.training else torch.tanh(self.f(x))


class AlwaysDropping(Deciding):
    def forward(self, x):
        return F.dropout(self.f(x), 0.5)


class OwnTensor(Deciding):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x):
        return self.f(x) * self.scale


class BeginsInPlace(Deciding):
    def forward(self, x):
        return self.f(F.relu(x, inplace=True)) + x


class SumInPlace(Deciding):
    def forward(self, x):
        y = before = self.f(x)
        y += self.f(torch.tanh(y))
        return self.f(y) + before


class FunctionInPlace(Deciding):
    def forward(self, x):
        y = self.f(x)
        F.relu(y, inplace=True)
        return y


class MethodInPlace(Deciding):
    def forward(self, x):
        y = self.f(x)
        y.mul_(torch.tanh(y))
        return y


class ViewInPlace(Deciding):
    def forward(self, x):
        y = self.f(x)
        F.relu(y.flatten(1), inplace=True)
        return y


class OperatorInPlace(Deciding):
    def forward(self, x):
        y = z = self.f(x)
        z *= torch.tanh(x)
        return y


class ModuleInPlace(Deciding):
    def __init__(self):
        super().__init__()
        self.g = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.f(x)
        self.g(y)
        return y


UNCUT = {
    Concatenating: "cat",
    Crossing: "cross",
    Deciding: "torch.fx cannot follow it",
    DifferentInTraining: "in training than in evaluation",
    AlwaysDropping: "dropout",
    OwnTensor: "a tensor of its own|mul",
    BeginsInPlace: "in place",
    SumInPlace: "in place",
    FunctionInPlace: "calls relu and does not use what that returns",
    ViewInPlace: "calls relu and does not use what that returns",
    MethodInPlace: "calls mul_ and does not use what that returns",
    OperatorInPlace: "calls imul and does not use what that returns",
    ModuleInPlace: "calls 0.2.g and does not use what that returns",
}


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledPool(nn.MaxPool2d):
    def forward(self, x):
        return 2 * super().forward(x)


def doubled(module):
    module.register_forward_hook(lambda module, inputs, output: 2 * output)
    return module


CONV = (nn.Conv2d(1, 4, 3), nn.Tanh())


@pytest.mark.parametrize(
    "first",
    [
        nn.Sequential(Doubled(*CONV), nn.MaxPool2d(2)),
        Doubled(*CONV, nn.MaxPool2d(2)),
        doubled(nn.Sequential(*CONV, nn.MaxPool2d(2))),
        nn.Sequential(*CONV, DoubledPool(2)),
        nn.Sequential(*CONV, doubled(nn.MaxPool2d(2))),
    ],
)
@pytest.mark.parametrize("given", [list, lambda layers: nn.Sequential(*layers)])
def test_rules_with_feedback_compute_what_modules_with_a_forward_or_hooks_of_their_own_do(first, given):
    network = as_network(given([copy.deepcopy(first), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))]), (1, 6, 6))
    x = torch.randn(2, 1, 6, 6)
    expected = network(x)
    logits, _ = make("dtp", network).training_batch(x, torch.tensor([0, 2]))
    torch.testing.assert_close(logits, expected)


def test_a_normalisation_over_other_dimensions_than_its_base_class_has_no_feedback():
    """LayerNorm2d is an nn.LayerNorm of the channels, which it takes to the end and back."""
    norm = torchvision.models.convnext.LayerNorm2d(4)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 1), norm, nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(UserError, match="3, a LayerNorm2d, has no feedback: its forward has permute"):
        make("dtp", as_network(model, (1, 6, 6)))


def around(module: nn.Module) -> nn.Sequential:
    """A model with the module in its middle."""
    features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), module, nn.Tanh())
    return nn.Sequential(features, nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.Tanh(), nn.Linear(6, 3)))


@pytest.mark.parametrize("kind", UNCUT, ids=lambda kind: kind.__name__)
def test_a_module_that_cannot_be_cut_stays_one_operation(kind):
    """Its neighbours are cut all the same; the numbers are the model's, in both modes."""
    model, x = around(kind()), torch.randn(2, 1, 6, 6)
    model(x)
    twin = copy.deepcopy(model)
    network = as_network(model, (1, 6, 6))
    assert kinds(network) == [["Conv2d", "Tanh"], ["Uncut", "Tanh"], ["Flatten", "Linear", "Tanh"], ["Linear"]]
    assert isinstance(network[2][0].module, kind)
    require_the_same_pass(network, twin, x)


@pytest.mark.parametrize("kind", UNCUT, ids=lambda kind: kind.__name__)
def test_rules_with_feedback_layers_refuse_it_and_say_the_two_ways_on(kind):
    model = around(kind())
    model(torch.randn(2, 1, 6, 6))
    with pytest.raises(
        UserError, match=f"Layer 2: 0.2, a {kind.__name__}, has no feedback: .*({UNCUT[kind]})"
    ) as raised:
        DTP(as_network(model, (1, 6, 6)))
    text = str(raised.value)
    assert (
        "as a list" in text and f"register_feedback({kind.__name__}, make_feedback)" in text and "fa, dfa, bp" in text
    )


def test_the_list_is_a_way_on():
    """The same operations as a list in which the module is not one of its own."""
    made = Concatenating()
    given = [
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), made, nn.Tanh()),
        nn.Sequential(nn.Flatten(), nn.Linear(80, 6), nn.Tanh()),
        nn.Linear(6, 3),
    ]
    rule = make("dtp", as_network(given, (1, 6, 6)), feedback_iterations=[2])
    before = state(rule)
    rule.training_batch(torch.randn(3, 1, 6, 6), torch.randint(3, (3,)))
    assert len(changed(before, rule.state_dict())) == len(list(rule.parameters()))


def test_registering_is_a_way_on(monkeypatch):
    import dtp.feedback.operations as table

    monkeypatch.setattr(table, "_OPERATIONS", dict(table._OPERATIONS))

    class Halve(nn.Module):
        def forward(self, x):
            return x.split(x.shape[0])[0] / 2

    model = nn.Sequential(nn.Linear(4, 5), Halve(), nn.Linear(5, 5), Halve(), nn.Linear(5, 3))
    with pytest.raises(UserError, match="Layer 2: 3, a Halve"):
        DTP(as_network(model))
    register_feedback(Halve, lambda module, in_shape, settings: PassThrough())
    network = as_network(model)
    assert kinds(network) == [["Linear", "Halve"], ["Linear", "Halve"], ["Linear"]]
    DTP(network)


def test_a_model_that_does_not_give_one_tensor_is_refused():
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(UserError, match="do not fit Two: .* must put out one tensor, found tuple .* return one"):
        as_network(Two(3, 4), (3,))


class Whole(nn.Module):
    """A model of two layers that meet in a way of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.a(x) * self.b(x)


def test_a_model_that_is_one_uncut_layer_is_no_network_for_rules_with_feedback():
    """They would train it by backprop, and say nothing."""
    network = as_network(Whole())
    assert network.depth == 1 and not layers(Whole())[0].feedback.startswith("none")
    with pytest.raises(UserError, match="Layer 1: a Whole, has no feedback: its forward has mul"):
        DTP(network)
    FA(network)


def test_a_first_layer_may_be_what_the_user_says():
    """Of a list; and a module with one weight matrix hides nothing."""
    DTP(as_network([nn.Sequential(Whole(), nn.Tanh()), nn.Linear(3, 2)], (4,)))
    DTP(as_network(nn.Sequential(OwnTensor(), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)), (4, 3, 3)))


def test_a_compiled_model_is_cut_as_the_model():
    model = readme_model()
    network = as_network(torch.compile(model), (1, 8, 8))
    assert network.model is model and network.depth == 3


# --- lists of layers --------------------------------------------------------------------------------------------------


def test_the_layers_of_a_list_are_those_given():
    given = [nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 5)), nn.Linear(5, 4)]
    network = as_network(given, (1, 3, 3))
    assert list(network) == given and network.model is None


def test_modules_of_a_list_are_layers_made_of_their_operations():
    model = torchvision_network("resnet18")
    given = [nn.Sequential(model.conv1, model.bn1, model.relu), model.layer1, model.layer2]
    given += [nn.Sequential(model.layer3, model.layer4, model.avgpool), nn.Sequential(nn.Flatten(), model.fc)]
    network = as_network(given, (3, 32, 32))
    assert kinds(network) == [
        ["Conv2d", "BatchNorm2d", "ReLU"],
        ["Residual", "ReLU"] * 2,
        ["Residual", "ReLU"] * 2,
        [*["Residual", "ReLU"] * 4, "AdaptiveAvgPool2d"],
        ["Flatten", "Linear"],
    ]


@pytest.mark.parametrize("given", [[], [nn.Linear(2, 2), "tanh"], 3, nn.Linear, torch.zeros(2)])
def test_something_else_is_refused(given):
    with pytest.raises(UserError, match="Expected a torch.nn.Module or a list of layers"):
        as_network(given)


def test_a_list_holds_whole_layers():
    with pytest.raises(UserError, match=r"whole layers, found Tanh, which has no weights; .*nn.Sequential\(\*layers\)"):
        as_network([nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)])


def test_lazy_modules_are_refused():
    with pytest.raises(UserError, match="Sequential has lazy modules.*call it on one batch before"):
        as_network(nn.Sequential(nn.LazyLinear(3)), (4,))


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, shape",
    [
        (nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2)), (7,)),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2)), (7,)),
        (nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 28 * 28, 2)), (3, 32, 32)),
        (readme_model(), (1, 8, 8)),
    ],
)
def test_the_shape_of_a_sample_is_told_by_the_network(model, shape):
    assert as_network(model).input_shape == shape


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 5 * 9, 2)),
    ],
)
def test_a_shape_that_the_network_leaves_open_is_asked_for(model):
    with pytest.raises(UserError, match="needs the shape of one sample.*input_shape"):
        as_network(model)


def test_a_batch_tells_the_shape():
    assert as_network(Mean(2, 3), torch.zeros(5, 1, 9, 7)).input_shape == (1, 9, 7)


def test_a_shape_that_does_not_fit_is_refused_with_the_layer():
    with pytest.raises(UserError, match=r"shape 1x9x9 do not fit Sequential: layer 1 .*2 \(Flatten, Linear|layer 2"):
        as_network(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 5)), (1, 9, 9))


def test_outputs_must_be_vectors():
    with pytest.raises(UserError, match="Sequential must put out one vector for each sample, found values of shape 4x"):
        as_network(nn.Sequential(nn.Conv2d(1, 4, 3)), (1, 9, 9))


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_shows_layers_shapes_and_feedback():
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    table = layers(readme_model_without_drawing(), (1, 8, 8))
    assert torch.equal(torch.rand(3), expected), "drawing nothing"
    assert [(row.layer, row.in_shape, row.out_shape, row.parameters) for row in table] == [
        (1, (1, 8, 8), (4, 4, 4), 40),
        (2, (4, 4, 4), (16,), 1040),
        (3, (16,), (10,), 170),
    ]
    assert [row.feedback for row in table] == ["needs none", "ELU, Linear, Unflatten", "Linear"]
    lines = str(table).splitlines()
    assert len(lines) == 4 and repr(table) == str(table)
    assert re.split(r" {2,}", lines[2]) == [
        "2",
        "Flatten, Linear, ELU",
        "4x4x4",
        "16",
        "1,040",
        "ELU, Linear, Unflatten",
    ]


def readme_model_without_drawing() -> nn.Sequential:
    with torch.random.fork_rng():
        return readme_model()


def test_the_table_says_what_has_no_feedback():
    row = layers(torchvision_network("squeezenet1_1"), images("squeezenet1_1"))[1]
    assert row.modules == "Fire" and row.feedback.startswith("none: features.3, a Fire, has no feedback")


# --- rules on them ----------------------------------------------------------------------------------------------------


@torchvision_networks
@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_rules_without_feedback_layers_train_torchvision_networks_as_they_are(name, rule):
    network = as_network(torchvision_network(name), images(name))
    trained = make(rule, network)
    before = {key: value.clone() for key, value in network.model.named_parameters()}
    logits, _ = trained.training_batch(images(name), torch.randint(CLASSES, (2,)))
    assert logits.shape == (2, CLASSES) and logits.isfinite().all()
    moved = changed(before, dict(network.model.named_parameters()))
    weights = {key for key, value in before.items() if value.dim() > 1}
    assert len(weights - moved) < 0.2 * len(weights)


@torchvision_networks
def test_dtp_trains_torchvision_networks_that_can_be_cut(name):
    """One batch: feedback weights of every layer and forward weights move; concatenations are refused, see below."""
    network = as_network(torchvision_network(name), images(name))
    if name == "squeezenet1_1":
        with pytest.raises(UserError, match="features.3, a Fire"):
            DTP(network)
        return
    rule = make("dtp", network, feedback_iterations=[1])
    before = state(rule)
    logits, scalars = rule.training_batch(images(name), torch.randint(CLASSES, (2,)))
    assert logits.isfinite().all() and len(scalars) == network.depth - 1
    moved = changed(before, rule.state_dict())
    feedback = {key for key, _ in rule.feedback.named_parameters()}
    assert feedback and {f"feedback.{key}" for key in feedback} <= moved
    weights = {f"network.{key}" for key, value in network.named_parameters() if value.dim() > 1}
    assert len(weights - moved) < 0.2 * len(weights)


def test_target_rules_refuse_networks_that_concatenate():
    name = "squeezenet1_1"
    with pytest.raises(UserError, match="has no feedback: .*as a list.*register_feedback.*fa, dfa, bp"):
        DTP(as_network(torchvision_network(name), images(name)))


def test_target_rules_say_of_a_softmax_at_the_end_that_the_loss_is_one_of_logits():
    with pytest.raises(UserError, match="Layer 2: 3, a Softmax, has no feedback; leave it out at the end"):
        DTP(nn.Sequential(nn.Linear(4, 3), nn.ELU(), nn.Linear(3, 2), nn.Softmax(1)))


def test_feedback_alignment_with_transposed_weights_is_backprop():
    """Through units, concatenations and all: the errors take the way that the forward pass took."""
    network = as_network(torchvision_network("squeezenet1_1"), images("squeezenet1_1")).double().eval()
    rule, x, y = FA(network), images("squeezenet1_1").double(), torch.randint(CLASSES, (2,))
    rule.double()
    for operation in rule.feedback.operations:
        operation.backward_map.copy_transpose(operation.module)
    for ours, theirs in zip(rule.forward_gradients(x, y)[1], BP(network).forward_gradients(x, y)[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_direct_feedback_takes_uncut_layers():
    network = as_network(torchvision_network("squeezenet1_1"), images("squeezenet1_1"))
    assert any(isinstance(module, Uncut) for module in network.modules())
    assert DFA(network).feedback.numbers == list(range(2, network.depth + 1))


def test_the_cut_network_names_its_nonlinearity():
    """Which the weight mirror puts after operations within residual units."""
    network = as_network(torchvision_network("resnet18"), images("resnet18"))
    assert isinstance(network, CutNetwork) and isinstance(network.activation(), nn.ReLU)


class Texts(nn.Module):
    """Words (B, T) to classes, by a mean of embeddings."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.output = nn.EmbeddingBag(20, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.output(F.gelu(self.hidden(self.embedding(x))))


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "dtp", "drl"])
@pytest.mark.parametrize(
    "model",
    [Texts, lambda: nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(28, 5), nn.Tanh(), nn.Linear(5, 3))],
    ids=["bag", "flatten"],
)
def test_embeddings_may_come_first(model, rule):
    """They take whole numbers, and are trained; errors and targets end above them."""
    words = torch.randint(20, (4, 7))
    network = as_network(model(), words)
    trained = make(rule, network)
    before = state(network)
    trained.training_batch(words, torch.randint(3, (4,)))
    assert len(changed(before, network.state_dict())) == len(before)


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "dtp", "drl", "kp"])
def test_sequences_of_convolutions_norms_and_dropout_are_trained(rule):
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(4, 4, 3, padding=1),
        nn.LayerNorm([4, 5]),
        nn.GELU(),
        nn.AdaptiveMaxPool1d(3),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(12, 6),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(6, 3),
    )
    network = as_network(model, (2, 13))
    trained = make(rule, network)
    before = state(network)
    trained.training_batch(torch.randn(6, 2, 13), torch.randint(3, (6,)))
    assert len(changed(before, network.state_dict())) == len(before)


def test_original_torchvision_code_is_what_is_cut():
    """At full width, once: the narrow ones of these tests are made from it."""
    with torch.device("meta"):
        model = torchvision.models.resnet18(num_classes=CLASSES)
    assert [type(m) for m in model.modules()] == [type(m) for m in torchvision_network("resnet18").modules()]


# --- what a forward does beside its output ----------------------------------------------------------------------------


class Beside(nn.Module):
    """Two linear layers, and ``what`` is done with the hidden activation, by a function of model and activation."""

    def __init__(self, what):
        super().__init__()
        self.first, self.last, self.what = nn.Linear(6, 5), nn.Linear(5, 3), what
        self.register_buffer("seen", torch.zeros(5))
        self.count, self.notes = 0, []

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(self.what(self, h))


def counts_in_a_buffer(model, h):
    model.seen += 1
    return h


def counts(model, h):
    model.count += 1
    return h if model.count < 3 else 2 * h


def keeps_a_running_mean(model, h):
    model.seen = 0.9 * model.seen + 0.1 * h.detach().mean(0)
    return h - model.seen


def begins_otherwise(model, h):
    model.count, first = 1, model.count == 0
    return 2 * h if first else h


@pytest.mark.parametrize("what", [counts_in_a_buffer, counts, keeps_a_running_mean, begins_otherwise])
def test_a_model_that_changes_what_it_holds_stays_one_operation_and_is_not_changed_by_cutting(what):
    model = Beside(what)
    alone = copy.deepcopy(model)
    network = as_network(model)
    assert kinds(network) == [["Uncut"]]
    assert model.count == 0 and torch.equal(model.seen, torch.zeros(5))
    for _ in range(4):
        x = torch.randn(2, 6)
        assert torch.equal(network(x), alone(x))
    assert torch.equal(model.seen, alone.seen) and model.count == alone.count


def test_what_a_model_notes_down_is_no_part_of_it():
    def note(model, h):
        model.latest = h
        model.notes.append(h)
        return h

    model = Beside(note)
    assert kinds(as_network(model)) == [["Linear", "Tanh"], ["Linear"]]
    assert not hasattr(model, "latest") and model.notes == []


def notes_in_a_new_dictionary(model, h):
    model.latest = {"hidden": h}


def notes_in_an_empty_dictionary(model, h):
    model.latest = {}
    model.latest["hidden"] = h


def makes_a_mask_once(model, h):
    if not hasattr(model, "mask"):
        model.mask = torch.ones(5)


def notes_the_mode(model, h):
    model.count = model.training


@pytest.mark.parametrize(
    "what", [notes_in_a_new_dictionary, notes_in_an_empty_dictionary, makes_a_mask_once, notes_the_mode]
)
def test_a_model_is_cut_where_the_next_pass_does_the_same(what):
    model = Beside(lambda model, h: (what(model, h), h)[1])
    before = list(vars(model))
    assert kinds(as_network(model)) == [["Linear", "Tanh"], ["Linear"]]
    assert list(vars(model)) == before and model.count == 0


@pytest.mark.parametrize("draw", [lambda: torch.rand(1).item(), random.random, np.random.rand])
def test_a_model_that_draws_what_it_does_stays_one_operation(draw):
    def skip(model, h):
        return torch.relu(h) if draw() < 0.5 else h

    for seed in range(4):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        model = Beside(skip)
        expected = copy.deepcopy([torch.get_rng_state().tolist(), random.getstate(), np.random.rand()])
        np.random.seed(seed)
        assert kinds(as_network(model)) == [["Uncut"]]
        assert [torch.get_rng_state().tolist(), random.getstate(), np.random.rand()] == expected


@pytest.mark.parametrize("rule", ["dfa", "drtp", "pepita", "ccl", "dualprop"])
def test_a_rule_between_layers_refuses_a_model_that_stays_one_operation(rule):
    """It would be backprop. Feedback alignment goes on within."""
    message = (
        "network of several layers.* found a Beside, which stays one operation: its forward changes count.* use fa"
    )
    with pytest.raises(UserError, match=message):
        make(rule, Beside(counts))
    network = as_network(Beside(counts))
    assert [type(o.module).__name__ for o in make("fa", network).feedback.operations] == ["Linear"]
