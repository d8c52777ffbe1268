"""The networks of the experiments: the published sizes, and which options they refuse."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dtp.models
from dtp.errors import UserError
from dtp.models import (
    MLP,
    MODELS,
    VGG,
    ConvNet,
    LeNet,
    LeNet5,
    LocallyConnected,
    Network,
    ResNet18,
    ResNet20,
    ResNet34,
    ResNet56,
    Square,
)
from dtp.models.modules import LocallyConnected2d, SameConv2d


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def layer_types(network: Network) -> list[list[type]]:
    return [[type(m) for m in layer] for layer in network.layers]


def test_lenet_has_the_published_size():
    network = LeNet(LeNet.Options(), (3, 32, 32), 10)
    assert parameters(network) == 2_156_490
    assert network.shapes == [(3, 32, 32), (32, 16, 16), (64, 8, 8), (512,), (10,)]
    convolution = [nn.Conv2d, nn.ELU, nn.MaxPool2d]
    assert layer_types(network) == [convolution, convolution, [nn.Flatten, nn.Linear, nn.ELU], [nn.Linear]]


def test_lenet_fits_mnist():
    assert LeNet(LeNet.Options(), (1, 28, 28), 10).shapes == [(1, 28, 28), (32, 14, 14), (64, 7, 7), (512,), (10,)]


CONVOLUTION = [nn.Conv2d, nn.ReLU, nn.MaxPool2d]


def test_lenet5_is_that_of_lecun_on_mnist():
    network = LeNet5(LeNet5.Options(), (1, 28, 28), 10)
    # As on 32 pixels without padding; 61,706 with connections between all maps.
    assert parameters(network) == 61_706
    assert network.shapes == [(1, 28, 28), (6, 14, 14), (16, 5, 5), (120, 1, 1), (84,), (10,)]
    last = [[nn.Conv2d, nn.ReLU], [nn.Flatten, nn.Linear, nn.ReLU], [nn.Linear]]
    assert layer_types(network) == [CONVOLUTION, CONVOLUTION, *last]


def test_lenet5_of_cifar_averages_the_last_map():
    options = LeNet5.Options(channels=[32, 64, 128], kernel=3, padding=0, hidden=256)
    network = LeNet5(options, (3, 32, 32), 10)
    assert network.shapes == [(3, 32, 32), (32, 15, 15), (64, 6, 6), (128, 4, 4), (256,), (10,)]
    last = [[nn.Conv2d, nn.ReLU], [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear, nn.ReLU], [nn.Linear]]
    assert layer_types(network) == [CONVOLUTION, CONVOLUTION, *last]
    x = torch.randn(2, 3, 32, 32)
    maps = network[3](network[2](network[1](x)))
    torch.testing.assert_close(network[4][2](maps.mean((2, 3))).relu(), network[4](maps))


@pytest.mark.parametrize("channels", [[], [6, 16], [6, 16, 120, 84]])
def test_lenet5_refuses_another_number_of_channels(channels):
    with pytest.raises(UserError, match=rf"--channels: LeNet-5 has 3 convolutions, found {len(channels)} values"):
        LeNet5(LeNet5.Options(channels=channels), (1, 28, 28), 10)


@pytest.mark.parametrize(("classes", "published"), [(10, 2_221_706), (1000, 2_729_576)])
def test_vgg_has_the_published_size(classes, published):
    network = VGG(VGG.Options(), (3, 32, 32), classes)
    assert parameters(network) == published
    hidden = [(128, 16, 16), (128, 8, 8), (256, 4, 4), (256, 2, 2), (512, 1, 1)]
    assert network.shapes == [(3, 32, 32), *hidden, (classes,)]
    assert layer_types(network) == [[nn.Conv2d, nn.ELU, nn.MaxPool2d]] * 5 + [[nn.Flatten, nn.Linear]]


def test_vgg_has_as_many_convolutions_as_channels():
    network = VGG(VGG.Options(channels=[3, 4]), (1, 20, 20), 10)
    assert network.shapes == [(1, 20, 20), (3, 10, 10), (4, 5, 5), (10,)]


def test_mlp_has_the_widths_asked_for():
    network = MLP(MLP.Options(widths=[20, 30]), (1, 28, 28), 10)
    assert network.shapes == [(1, 28, 28), (20,), (30,), (10,)]
    assert parameters(network) == 784 * 20 + 20 + 20 * 30 + 30 + 30 * 10 + 10
    assert layer_types(network) == [[nn.Flatten, nn.Linear, nn.ELU], [nn.Linear, nn.ELU], [nn.Linear]]


def test_mlp_may_have_no_bias_in_its_last_hidden_layer():
    network = MLP(MLP.Options(widths=[20, 30], last_hidden_bias=False), (1, 28, 28), 10)
    assert [name for name, _ in network.named_parameters() if name.endswith("bias")] == [
        "layers.0.1.bias",
        "layers.2.0.bias",
    ]
    assert parameters(network) == 784 * 20 + 20 + 20 * 30 + 30 * 10 + 10
    without = MLP(MLP.Options(widths=[20, 30], bias=False), (1, 28, 28), 10)
    assert parameters(without) == 784 * 20 + 20 * 30 + 30 * 10


def test_square_network_may_end_in_a_linear_layer():
    network = Square(Square.Options(widths=[12, 12], outputs=12, linear_output=True), (1, 4, 4), 5)
    assert [type(m).__name__ for m in network[3]] == ["Linear", "FirstUnits"]
    assert [type(m).__name__ for m in network[2]] == ["Linear", "LeakyReLU"]


def test_mlp_without_widths_is_one_linear_layer():
    network = MLP(MLP.Options(widths=[]), (3, 4, 5), 7)
    assert layer_types(network) == [[nn.Flatten, nn.Linear]]
    assert parameters(network) == 60 * 7 + 7


@pytest.mark.parametrize("channels", [[], [32], [32, 64, 128]])
def test_lenet_refuses_another_number_of_channels(channels):
    with pytest.raises(UserError, match=f"--channels: .*2 convolutions, found {len(channels)} values"):
        LeNet(LeNet.Options(channels=channels), (3, 32, 32), 10)


def test_vgg_refuses_no_channels():
    with pytest.raises(UserError, match="--channels: .*at least one"):
        VGG(VGG.Options(channels=[]), (3, 32, 32), 10)


@pytest.mark.parametrize("found", [0, -3])
@pytest.mark.parametrize(
    ("model", "flag", "arguments"),
    [
        (MLP, "widths", lambda n: {"widths": [8, n]}),
        (LeNet, "channels", lambda n: {"channels": [n, 8]}),
        (LeNet, "hidden", lambda n: {"hidden": n}),
        (VGG, "channels", lambda n: {"channels": [8, n]}),
    ],
)
def test_widths_below_one_are_refused(model, flag, arguments, found):
    with pytest.raises(UserError, match=f"--{flag}: expected (values of )?at least 1, found {found}"):
        model(model.Options(**arguments(found)), (3, 32, 32), 10)


# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "model"), [("mlp", MLP), ("lenet", LeNet), ("vgg", VGG)])
def test_name_on_the_command_line_stands_for_its_class(name, model):
    entry = MODELS.resolve(name)
    assert entry.load() is model and issubclass(model, Network)
    assert entry.load_options() is model.Options


def test_unknown_class_is_an_attribute_error():
    with pytest.raises(AttributeError, match="ResNet"):
        _ = dtp.models.ResNet


def test_options_load_without_torch():
    """``--help`` describes every option and must be quick."""
    code = "import sys; from dtp.models import MODELS; [e.load_options() for e in MODELS.entries.values()]"
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], check=True)


@pytest.mark.parametrize(
    ("kind", "layers", "stages", "published"), [(ResNet18, 10, 6, 11_164_362), (ResNet34, 18, 6, 21_265_098)]
)
def test_resnets_have_the_published_size(kind, layers, stages, published):
    with torch.device("meta"):
        network, by_stage = (kind(kind.Options(residual_layers=which), (3, 32, 32), 10) for which in ("unit", "stage"))
    assert parameters(network) == parameters(by_stage) == published
    assert (network.depth, by_stage.depth) == (layers, stages)
    assert by_stage.shapes == [(3, 32, 32), (64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (10,)]
    with torch.device("meta"):
        normalised = kind(kind.Options(batch_norm=True), (3, 32, 32), 10)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in network.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in normalised.modules()) == convolutions


def resnet_of_cifar(x, weights, units):
    """Logits of He et al. 2016, section 4.2, option A, in training; ``weights`` in the order of the layers."""
    weights = iter(weights)

    def convolution(x, stride=1):
        x = F.conv2d(x, next(weights), stride=stride, padding=1)
        return F.batch_norm(x, None, None, next(weights), next(weights), training=True)

    x = convolution(x).relu()
    for channels in (16, 32, 64):
        for unit in range(units):
            stride = 2 if channels > 16 and unit == 0 else 1
            passed = x
            if stride == 2:
                # As in biotorch, half of the new channels before those of the input, half behind them.
                zeros = torch.zeros(len(x), channels // 4, *x[0, 0, ::2, ::2].shape).to(x)
                passed = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
            x = (convolution(convolution(x, stride).relu()) + passed).relu()
    logits = F.linear(x.mean((2, 3)), next(weights), next(weights))
    assert not list(weights)
    return logits


@pytest.mark.parametrize(("kind", "units", "millions"), [(ResNet20, 3, 0.27), (ResNet56, 9, 0.85)])
def test_resnets_of_cifar_are_those_of_he_et_al(kind, units, millions):
    network = kind(kind.Options(), (3, 32, 32), 10).double()
    assert round(parameters(network) / 1e6, 2) == millions
    # Each unit and the stem are a layer, so is what averages and tells classes.
    assert network.depth == 3 * units + 2
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(network(x), resnet_of_cifar(x, network.parameters(), units), rtol=1e-10, atol=1e-10)


def test_the_locally_connected_networks_of_bartunov():
    mnist = LocallyConnected(LocallyConnected.Options(), (1, 28, 28), 10)
    assert mnist.shapes == [(1, 28, 28), (32, 14, 14), (64, 7, 7), (1024,), (10,)]
    shared = ConvNet(ConvNet.Options(), (1, 28, 28), 10)
    assert shared.shapes == mnist.shapes
    assert parameters(shared) < parameters(mnist)
    local, dense = [LocallyConnected2d, nn.Tanh], [nn.Flatten, nn.Linear, nn.Tanh]
    assert layer_types(mnist) == [local, local, dense, [nn.Linear]]
    assert layer_types(shared) == [[SameConv2d, nn.Tanh], [SameConv2d, nn.Tanh], dense, [nn.Linear]]


BARTUNOV = {  # input shape, classes, options, shapes of the strided layers
    "mnist": ((1, 28, 28), 10, {}, [(32, 14, 14), (64, 7, 7)]),
    "cifar10": (
        (3, 32, 32),
        10,
        {"kernels": [5, 5, 3], "channels": [64, 128, 256], "strides": [2, 2, 1]},
        [(64, 16, 16), (128, 8, 8), (256, 8, 8)],
    ),
    "imagenet": (
        (3, 224, 224),
        1000,
        {
            "kernels": [9, 3, 5, 3, 3, 3, 3],
            "channels": [48, 48, 96, 96, 192, 192, 384],
            "strides": [4, 2, 1, 2, 1, 2, 1],
            "hidden": [],
        },
        [(48, 56, 56), (48, 28, 28), (96, 28, 28), (96, 14, 14), (192, 14, 14), (192, 7, 7), (384, 7, 7)],
    ),
}


@pytest.mark.parametrize("data", BARTUNOV)
def test_sizes_of_the_locally_connected_networks(data):
    """By formula, and without the memory that ImageNet's would need: every position has kernels of its own."""
    shape, classes, options, expected = BARTUNOV[data]
    with torch.device("meta"):
        network = LocallyConnected(LocallyConnected.Options(**options), shape, classes)
        shared = ConvNet(ConvNet.Options(**options), shape, classes)
    strided = len(expected)
    assert network.shapes[1 : strided + 1] == shared.shapes[1 : strided + 1] == expected
    kernels, depths = network.options.kernels, [shape[0], *(channels for channels, *_ in expected)]
    kernel_sizes = [i * o * k * k for i, o, k in zip(depths, depths[1:], kernels, strict=False)]
    local = sum(size * height * width for size, (_, height, width) in zip(kernel_sizes, expected, strict=True))
    weights = [p for p in network.layers[:strided].parameters() if p.dim() == 3]
    assert sum(w.numel() for w in weights) == local
    assert sum(p.numel() for p in shared.layers[:strided].parameters() if p.dim() == 4) == sum(kernel_sizes)
    assert round(local / 1e6, 1) == {"mnist": 1.0, "cifar10": 33.2, "imagenet": 240.7}[data]
    assert all(p.device.type == "meta" for p in network.parameters())
    dense = [network.shapes[strided].numel(), *network.options.hidden, classes]
    inner = sum(i * o + o for i, o in zip(dense, dense[1:], strict=False))
    assert parameters(network) == local + sum(s.numel() for s in network.shapes[1 : strided + 1]) + inner


def test_square_networks_and_towers():
    tower = Square(Square.Options(widths=[784, 500, 200], outputs=10), (1, 28, 28), 10)
    matrices = [m.weight.shape for m in tower.modules() if isinstance(m, nn.Linear)]
    assert matrices == [(784, 784), (500, 500), (200, 200), (10, 10)]
    deep = Square(Square.Options(), (3, 32, 32), 10)
    assert [m.weight.shape for m in deep.modules() if isinstance(m, nn.Linear)] == [(500, 3072)] + [(500, 500)] * 6
    for weight in (m.weight for m in deep.modules() if isinstance(m, nn.Linear)):
        assert torch.allclose(weight @ weight.t(), torch.eye(500), atol=1e-4)


@pytest.mark.parametrize("init, deviation", [("xavier", (2 / 90) ** 0.5), ("xavier-normal", (2 / 90) ** 0.5)])
def test_glorots_weights(init, deviation):
    network = MLP(MLP.Options(widths=[50], init=init), (1, 5, 8), 10)
    weight = network[1][1].weight.detach()
    assert float(weight.std()) == pytest.approx(deviation, rel=0.05) and not network[1][1].bias.any()
    assert (float(weight.abs().max()) <= (6 / 90) ** 0.5) == (init == "xavier")


def test_networks_without_biases():
    network = MLP(MLP.Options(widths=[5, 4], bias=False, standardise="all"), (1, 5, 8), 10)
    assert [name for name, _ in network.named_parameters() if "bias" in name] == []
    assert [layer[-1].__class__.__name__ for layer in network] == ["Standardise"] * 3


WRONG = [
    (ResNet18, {"channels": [1, 2]}, "4 stages, 5 values, found 2"),
    (ResNet20, {"channels": [1, 2, 3, 4, 5]}, "3 stages, 4 values, found 5"),
    (LocallyConnected, {"kernels": [3]}, "--kernels: expected 2 values, as many as --channels, found 1"),
    (LocallyConnected, {"kernels": [3, 0]}, "--kernels: expected values of at least 1, found 0"),
    (LocallyConnected, {"strides": [1, 2, 2]}, "--strides: expected 2 values, as many as --channels, found 3"),
    (LocallyConnected, {"channels": [3, -1]}, "--channels: expected values of at least 1, found -1"),
    (ConvNet, {"hidden": [0]}, "--hidden: expected values of at least 1, found 0"),
    (ResNet34, {"channels": [1, 2, 0, 4, 5]}, "--channels: expected values of at least 1, found 0"),
    (ConvNet, {"strides": [1, 0]}, "--strides: expected values of at least 1, found 0"),
    (Square, {"widths": [10, 20]}, "widths that do not grow"),
    (Square, {"widths": [20], "outputs": 5}, "--outputs: expected at least 10 units, one for each class, found 5"),
    (Square, {"widths": []}, "at least one hidden layer"),
    (MLP, {"leaky_slope": 0.0}, "--leaky-slope: expected a number above 0 and below 1, found 0.0"),
]


@pytest.mark.parametrize(("kind", "options", "words"), WRONG)
def test_wrong_options_of_networks_are_refused(kind, options, words):
    with pytest.raises(UserError, match=words):
        kind(kind.Options(**options), (1, 8, 8), 10)
