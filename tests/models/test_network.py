"""What every network promises: numbering, shapes, a chain of its layers; and how it refuses images."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Size, nn

from dtp.errors import UserError
from dtp.models import (
    MLP,
    MODELS,
    VGG,
    ConvNet,
    Discrete,
    LeNet,
    LeNet5,
    LocallyConnected,
    Network,
    ResNet18,
    ResNet20,
    ResNet34,
    ResNet56,
    Square,
    Stochastic,
    TiedAutoencoder,
)
from dtp.models.modules import LocallyConnected2d, ResidualUnit, SameConv2d, SLReLU
from dtp.models.network import ACTIVATIONS, initialise
from dtp.models.options import MLPOptions, ModelOptions

# Small networks of every kind, made with these options besides.
KINDS = {
    "mlp": (MLP, {"widths": [7, 9]}),
    "mlp-standardised": (MLP, {"widths": [7, 9], "standardise": "all", "bias": False}),
    "lenet": (LeNet, {"channels": [3, 4], "hidden": 9}),
    "lenet5": (LeNet5, {"channels": [3, 4, 5], "kernel": 3, "padding": 5, "hidden": 9}),
    "vgg": (VGG, {"channels": [3, 4, 5]}),
    "resnet18": (ResNet18, {"channels": [2, 3, 4, 4, 5]}),
    "resnet34": (ResNet34, {"channels": [2, 2, 3, 3, 4], "residual_layers": "stage", "batch_norm": True}),
    "resnet20": (ResNet20, {"channels": [2, 3, 4, 6]}),
    "resnet56": (ResNet56, {"channels": [2, 2, 3, 4]}),
    "lc": (LocallyConnected, {"channels": [2, 3], "hidden": [8]}),
    "convnet": (ConvNet, {"channels": [2, 3], "kernels": [4, 3], "hidden": []}),
    "square": (Square, {}),
    "discrete": (Discrete, {"widths": [7, 9], "init": "default"}),
}


def builder(kind: type[Network], options: dict):
    def build(shape, classes, **more):
        if kind is Square:
            units = max(12, classes)  # which may not be fewer than the classes
            more = {"widths": [units + 8, units + 8, units], "outputs": units, **more}
        if kind is Discrete and more.get("activation") in ("relu", "sigmoid"):
            more = {"discretised": [], **more}  # values that have no two signs
        return kind(kind.Options(**{"activation": "elu", **options, **more}), shape, classes)

    return build


BUILDERS = {name: builder(*kind) for name, kind in KINDS.items()}
builders = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


@builders
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 8, 8), (2, 9, 15), (4, 40, 11)])
@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_shapes_are_those_of_the_activations(build, shape, classes):
    network = build(shape, classes).eval()
    s = torch.randn(2, *shape)
    assert network.input_shape == Size(shape) and network.num_classes == classes
    assert len(network.shapes) == network.depth + 1
    for n in range(network.depth + 1):
        s = network[n](s) if n else s
        assert network.shapes[n] == s.shape[1:]
    assert network.shapes[-1] == (classes,)


@builders
def test_forward_is_the_chain_of_the_layers(build):
    network = build((3, 16, 16), 10)
    x = s = torch.randn(4, 3, 16, 16)
    for n in range(1, network.depth + 1):
        s = network[n](s)
    assert torch.equal(network(x), s)
    network(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_an_mlp_drops_units_of_each_hidden_layer_in_training_alone():
    network = MLP(MLP.Options(widths=[200, 300], activation="elu", dropout=0.25), (1, 4, 4), 10)
    s = torch.randn(50, 1, 4, 4)
    for n in range(1, network.depth + 1):
        s = network[n](s)
        assert (s == 0).float().mean().item() == pytest.approx(0.25 if n < 3 else 0.0, abs=0.02)
        evaluated = copy.deepcopy(network).eval()[n](torch.randn(5, *network.shapes[n - 1]))
        assert not (evaluated == 0).any()


@builders
def test_layers_are_numbered_from_one(build):
    network = build((3, 16, 16), 10)
    assert [network[n] for n in range(1, network.depth + 1)] == list(network.layers)
    for n in (0, network.depth + 1, -1):
        with pytest.raises(IndexError, match=f"layer {n}: .* 1 to {network.depth}"):
            network[n]


@builders
def test_iterating_gives_the_layers_in_forward_order(build):
    network = build((3, 16, 16), 10)
    assert list(network) == list(network.layers)


AFFINE = (nn.Linear, nn.Conv2d, LocallyConnected2d, SameConv2d, ResidualUnit)


@builders
def test_every_layer_has_one_affine_operation_and_all_but_the_last_a_nonlinearity_of_their_own(build):
    network = build((3, 16, 16), 10)
    if getattr(network.options, "residual_layers", "unit") == "stage":
        pytest.skip("its layers are of several residual units, each with a nonlinearity")
    nonlinearities = [[m for m in layer if isinstance(m, nn.ELU)] for layer in network.layers]
    # Outputs of square layers are values of their nonlinearity.
    last = int(isinstance(network, Square))
    assert [len(found) for found in nonlinearities] == [1] * (network.depth - 1) + [last]
    assert len({id(m) for found in nonlinearities for m in found}) == network.depth - 1 + last
    for layer in network.layers:
        assert sum(isinstance(m, AFFINE) for m in layer) == 1


FUNCTIONS = {
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "sl-relu": SLReLU,
}


@builders
@pytest.mark.parametrize(("name", "kind"), FUNCTIONS.items())
def test_activation_is_the_one_asked_for(build, name, kind):
    asked = build((3, 16, 16), 10, activation=name, leaky_slope=0.3)
    found = [m for m in asked.modules() if isinstance(m, tuple(FUNCTIONS.values()))]
    assert len(found) == sum(isinstance(m, nn.ELU) for m in build((3, 16, 16), 10).modules()) >= asked.depth - 1
    assert all(type(m) is kind for m in [*found, asked.activation()])
    slopes = {getattr(m, "negative_slope", getattr(m, "alpha", None)) for m in found}
    assert name not in ("leaky-relu", "sl-relu") or slopes == {0.3}
    assert set(FUNCTIONS) == set(ACTIVATIONS)


def test_every_network_is_tested_here():
    # Passes of stochastic networks differ, and their evaluation is no chain of layers; tied auto-encoders have as many
    # outputs as inputs: they have tests of their own.
    others = {Stochastic, TiedAutoencoder}
    assert {kind for kind, _ in KINDS.values()} | others == {entry.load() for entry in MODELS.entries.values()}


# --- first weights ----------------------------------------------------------------------------------------------------


@builders
def test_weights_are_reproducible_by_seed(build):
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(torch.cat([p.detach().flatten() for p in build((3, 16, 16), 10).parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.parametrize("name", ["mlp", "lenet", "vgg"])
def test_default_weights_are_pytorchs_drawn_in_forward_order(name):
    torch.manual_seed(5)
    network = BUILDERS[name]((3, 16, 16), 10)
    torch.manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            fresh = nn.Linear(module.in_features, module.out_features)
        elif isinstance(module, nn.Conv2d):
            fresh = nn.Conv2d(module.in_channels, module.out_channels, module.kernel_size)
        else:
            continue
        assert all(torch.equal(p, q) for p, q in zip(module.parameters(), fresh.parameters(), strict=True))


@builders
@pytest.mark.parametrize("init", ["xavier", "xavier-normal", "kaiming", "orthogonal"])
def test_every_network_honours_the_first_weights_asked_for(build, init):
    """Of every matrix, of filters, and of every position of locally connected layers by itself."""

    def fans_of(outputs, inputs):
        # That 2 / fans is the variance.
        return inputs if init == "kaiming" else inputs + outputs

    matrices = []
    for module in build((3, 16, 16), 10, init=init).modules():
        if isinstance(module, LocallyConnected2d):
            matrices += [(position, fans_of(*position.shape)) for position in module.weight]
        elif isinstance(module, nn.Linear | nn.Conv2d):
            places = module.weight[0, 0].numel()
            matrices.append((module.weight.flatten(1), fans_of(*module.weight.shape[:2]) * places))
        if isinstance(module, nn.Linear | nn.Conv2d | LocallyConnected2d):
            assert module.bias is None or not module.bias.any()
    assert len(matrices) > 2
    for matrix, fans in matrices:
        if init == "orthogonal":
            small = matrix if len(matrix) <= len(matrix.t()) else matrix.t()
            torch.testing.assert_close(small @ small.t(), torch.eye(len(small)), rtol=0, atol=1e-5)
        elif init in ("xavier", "kaiming"):
            assert matrix.abs().max() <= (6 / fans) ** 0.5
    if init != "orthogonal":
        # All as one sample, each in units of its own deviation.
        pooled = torch.cat([(m.detach() / (2 / fans) ** 0.5).flatten() for m, fans in matrices])
        assert float(pooled.square().mean()) == pytest.approx(1, abs=6 / len(pooled) ** 0.5)
        assert (pooled.abs().max() > 3**0.5 + 1e-6) == (init == "xavier-normal")


def test_initialising_by_default_leaves_weights_as_they_are():
    layer = nn.Sequential(nn.Linear(4, 3))
    before = [p.clone() for p in layer.parameters()]
    initialise(layer, "default")
    assert all(torch.equal(p, old) for p, old in zip(layer.parameters(), before, strict=True))


@pytest.mark.parametrize("slope", [0.0, 1.0, -0.1])
def test_a_leaky_slope_that_is_none_is_refused(slope):
    with pytest.raises(UserError, match=f"--leaky-slope: expected .* above 0 and below 1, found {slope}"):
        MLP(MLP.Options(leaky_slope=slope), (1, 4, 4), 3)


@dataclass
class OtherKinds(MLPOptions):
    """Options of one's own, of other kinds than ours."""

    widths: tuple[int, ...] = (8, 8)
    activation: str = "swish"


class OtherMLP(MLP):
    Options = OtherKinds

    def activation(self):
        return nn.SiLU()


def test_options_of_ones_own_may_be_of_other_kinds_and_stay_as_they_are():
    network = OtherMLP(OtherKinds(), (1, 4, 4), 3)
    assert network.options == OtherKinds() and network.depth == 3


@pytest.mark.parametrize(
    ("options", "shape", "classes", "told"),
    [
        ({}, 64, 10, "input_shape: expected the shape of one sample, .* found 64"),
        ({}, "1x8x8", 10, "input_shape: expected"),
        ({}, (1, 8, 8), "10", "num_classes: expected a whole number above 0, found '10'"),
        ({}, (1, 8, 8), 0, "num_classes: expected a whole number above 0, found 0"),
        ({"widths": "8"}, (1, 8, 8), 10, "--widths: expected a whole number, found '8'"),
        ({"activation": "swish"}, (1, 8, 8), 10, "--activation: expected one of elu, .* found 'swish'"),
    ],
)
def test_what_no_network_can_be_made_of_is_told(options, shape, classes, told):
    with pytest.raises(UserError, match=told):
        MLP(MLP.Options(**options), shape, classes)


def test_whole_numbers_of_numpy_are_sizes_and_counts_too():
    network = MLP(MLP.Options(), (1, np.int64(8), np.int32(8)), np.int64(10))
    assert network.input_shape == (1, 8, 8) and type(network.num_classes) is int and network.shapes[-1] == (10,)


def test_the_options_of_a_network_are_its_own():
    options = MLP.Options(widths=[6], activation="tanh")
    network = MLP(options, (1, 4, 4), 3)
    options.activation = "relu"
    options.widths.append(7)
    assert network.options == MLP.Options(widths=[6], activation="tanh")


# --- a user's network -------------------------------------------------------------------------------------------------


class Normalised(Network):
    """A user's own network, with buffers and with randomness."""

    def make_layers(self):
        channels = self.shapes[-1][0]
        yield nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), self.activation(), nn.Dropout())
        yield nn.Sequential(nn.Flatten(), nn.Linear(self.features, self.num_classes))


def test_a_users_network_lists_its_layers():
    network = Normalised(ModelOptions(activation="tanh"), (2, 6, 7), 5)
    assert network.depth == 2
    assert network.shapes == [(2, 6, 7), (4, 4, 5), (5,)]
    assert network(torch.randn(3, 2, 6, 7)).shape == (3, 5)


def test_shape_inference_leaves_buffers_and_the_random_state_alone():
    torch.manual_seed(0)
    network = Normalised(ModelOptions(), (2, 6, 7), 5)
    norm = network[1][1]
    assert norm.training
    assert not norm.running_mean.any() and (norm.running_var == 1).all() and norm.num_batches_tracked == 0
    assert all(t.device.type == "cpu" for t in [*network.parameters(), *network.buffers()])

    # The same draws, without a network around them: nothing but the weights took random numbers.
    after = torch.get_rng_state()
    torch.manual_seed(0)
    nn.Conv2d(2, 4, 3), nn.Linear(80, 5)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_network_without_layers_says_what_is_missing():
    with pytest.raises(UserError, match="define make_layers"):
        Network(ModelOptions(), (3, 8, 8), 10)


def test_too_small_images_are_refused_with_their_size():
    with pytest.raises(UserError, match=r"16x24 pixels do not fit VGG: layer 5 receives 256x1x1 .*too small.*larger"):
        VGG(VGG.Options(), (3, 16, 24), 10)


def test_the_smallest_images_that_fit_are_accepted():
    assert VGG(VGG.Options(channels=[2, 2, 2]), (3, 8, 8), 10).shapes[-2] == (2, 1, 1)
    with pytest.raises(UserError, match="8x7 pixels do not fit .*too small"):
        VGG(VGG.Options(channels=[2, 2, 2]), (3, 8, 7), 10)
