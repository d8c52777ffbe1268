"""Shape inference without data."""

import pytest
import torch
from torch import nn

from dtp.algorithms import DTP, FA
from dtp.models.cutting import as_network
from dtp.models.shapes import SHAPE_KEEPING, NotOneTensor, output_shape


def hooked(module, then):
    """A module whose outputs a hook of the user's changes."""
    module.register_forward_hook(lambda module, inputs, output: then(output))
    return module


@pytest.mark.parametrize(
    ("module", "in_shape"),
    [
        (nn.Linear(5, 3), (5,)),
        (nn.Conv2d(2, 3, (3, 2), stride=2, padding=1), (2, 9, 6)),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (4, 7, 10)),
        (nn.AdaptiveAvgPool2d((3, 2)), (4, 7, 10)),
        (nn.Sequential(nn.Conv2d(2, 3, 3).double(), nn.Flatten(2)), (2, 9, 6)),
        (nn.BatchNorm1d(4), (4,)),
        (nn.BatchNorm1d(4, momentum=None), (4,)),
        # torch takes two samples of these for one of another shape.
        (nn.MaxPool1d(2), (32,)),
        (nn.MaxPool2d(2), (8, 6)),
        (nn.Sequential(nn.Linear(5, 4), nn.MaxPool1d(2)), (5,)),
        (nn.Flatten(0), (4, 3)),
        *((kind(), (4, 3)) for kind in SHAPE_KEEPING),
        (
            nn.Sequential(nn.Conv2d(2, 3, 3), nn.ELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Tanh()),
            (2, 9, 6),
        ),
        (nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(5, 3)).double(), (5,)),
        (nn.Sequential(nn.ELU(), nn.Identity()), (2, 9, 6)),
        (nn.Sequential(), (2, 9, 6)),
        (hooked(nn.ELU(), nn.Flatten()), (4, 3)),
        (nn.Sequential(hooked(nn.ELU(), nn.Flatten()), nn.Linear(12, 2)), (4, 3)),
        (hooked(nn.Sequential(nn.ELU()), nn.Flatten()), (4, 3)),
    ],
    ids=str,
)
def test_output_shape_is_that_of_a_real_pass(module, in_shape):
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    expected = module(torch.randn(2, *in_shape, dtype=dtype)).shape[1:]
    assert output_shape(module, in_shape) == expected


def test_a_module_whose_own_forward_somebody_has_replaced_is_asked():
    layer = nn.Linear(6, 3)
    layer.forward = lambda x: x.view(x.shape[0], -1, 2)
    assert output_shape(layer, (6,)) == (3, 2)


@pytest.mark.parametrize("chain", [False, True])
def test_more_than_one_tensor_is_told(chain):
    pool = nn.MaxPool2d(2, return_indices=True)
    with pytest.raises(NotOneTensor, match="tuple of MaxPool2d"):
        output_shape(nn.Sequential(nn.Conv2d(2, 3, 3), pool) if chain else pool, (2, 9, 6))


def test_module_and_random_state_stay_as_they_are():
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    output_shape(module, (2, 5, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    for name, tensor in module.state_dict().items():
        assert tensor.device.type == "cpu" and torch.equal(tensor, before[name])


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weights_that_are_made_before_each_pass_stay_as_they_are():
    layer = torch.nn.utils.weight_norm(nn.Linear(4, 4))
    weight = layer.weight
    network = as_network(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 2)))
    for rule in (DTP, FA):
        rule(network)
        assert layer.weight is weight


@pytest.mark.parametrize(
    ("module", "in_shape"),
    [
        (nn.Linear(5, 3), (6,)),
        (nn.Conv2d(2, 3, 3), (3, 9, 6)),
        (nn.Conv2d(2, 3, 3), (2, 2, 6)),
        (nn.Conv2d(2, 3, 3), (18,)),
        (nn.MaxPool2d(3), (4, 2, 2)),
        (nn.AvgPool2d(3), (4, 2, 2)),
        (nn.Sequential(nn.Conv2d(2, 3, 3), nn.ELU(), nn.MaxPool2d(2)), (2, 3, 3)),
        (nn.BatchNorm1d(4), (5,)),
    ],
    ids=str,
)
def test_shape_that_does_not_fit_is_an_error(module, in_shape):
    with pytest.raises(RuntimeError):
        output_shape(module, in_shape)
