"""The networks of the experiments: the published sizes, and which options they refuse."""

import subprocess
import sys

import pytest
from torch import nn

import dtp.models
from dtp.errors import UserError
from dtp.models import MLP, MODELS, VGG, LeNet, Network


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
    with pytest.raises(UserError, match=f"--{flag}: expected values of at least 1, found {found}"):
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
