"""What every network promises: numbering, shapes, a chain of its layers; and how it refuses images."""

import pytest
import torch
from torch import Size, nn

from dtp.errors import UserError
from dtp.models import MLP, VGG, LeNet, Network
from dtp.models.options import ModelOptions

BUILDERS = {
    "mlp": lambda shape, classes: MLP(MLP.Options(widths=[7, 9]), shape, classes),
    "lenet": lambda shape, classes: LeNet(LeNet.Options(channels=[3, 4], hidden=9), shape, classes),
    "vgg": lambda shape, classes: VGG(VGG.Options(channels=[3, 4, 5]), shape, classes),
}
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


@builders
def test_every_layer_has_one_affine_operation_and_all_but_the_last_a_nonlinearity_of_their_own(build):
    network = build((3, 16, 16), 10)
    nonlinearities = [[m for m in layer if isinstance(m, nn.ELU)] for layer in network.layers]
    assert [len(found) for found in nonlinearities] == [1] * (network.depth - 1) + [0]
    assert len({id(m) for found in nonlinearities for m in found}) == network.depth - 1
    for layer in network.layers:
        assert sum(isinstance(m, (nn.Linear, nn.Conv2d)) for m in layer) == 1


@builders
@pytest.mark.parametrize(
    ("name", "kind"), [("elu", nn.ELU), ("relu", nn.ReLU), ("leaky-relu", nn.LeakyReLU), ("tanh", nn.Tanh)]
)
def test_activation_is_the_one_asked_for(build, name, kind):
    made = build((3, 16, 16), 10)
    made.options.activation = name
    network = type(made)(made.options, (3, 16, 16), 10)
    assert all(sum(type(m) is kind for m in layer) == 1 for layer in network.layers[:-1])
    assert not any(isinstance(m, nn.ELU) for m in network.modules()) or name == "elu"


@builders
def test_weights_are_reproducible_by_seed(build):
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(torch.cat([p.detach().flatten() for p in build((3, 16, 16), 10).parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


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
