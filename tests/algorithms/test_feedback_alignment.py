"""Feedback alignment and its relatives against backward passes written by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from dtp.algorithms import BP
from dtp.algorithms.feedback_alignment import KolenPollack
from dtp.algorithms.options import AlgorithmOptions
from dtp.diagnostics.alignment import feedback_alignment, update_alignment
from dtp.errors import UserError
from dtp.feedback import layer_operations
from dtp.feedback.initial import deviation, fans
from dtp.models import MODELS, modules
from tests.algorithms.helpers import changed, make, relative, same, small_network, state
from tests.algorithms.networks import Layers, normalised_network, shipped_network
from tests.conftest import make_batch

FAMILY = ["fa", "usf", "brsf", "frsf", "kp", "wm"]
SIGNS = ["usf", "frsf", "brsf"]


class Residual(nn.Module):
    """y = C2 elu(C1 x) + S x."""

    def __init__(self, channels_in, channels, stride=1):
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x):
        return self.second(F.elu(self.first(x))) + self.shortcut(x)


def residual():
    layers = [
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ELU()),
        nn.Sequential(Residual(3, 3), nn.ELU()),
        nn.Sequential(Residual(3, 4, stride=2), nn.ELU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    ]
    return Layers(layers, (2, 7, 7))


def shared():
    linear = nn.Linear(8, 8)
    layers = [
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ELU()),
        nn.Sequential(linear, nn.ELU(), linear, nn.ELU()),
        nn.Sequential(nn.Linear(8, 5)),
    ]
    return Layers(layers, (1, 4, 4))


NETWORKS = {
    "mlp": lambda: small_network("fa"),
    "lenet": lambda: small_network("fa", "lenet"),
    "batch-norm": normalised_network,
    "residual": residual,
    "shared": shared,
}


class ByHand:
    """A backward pass, operation by operation, with ``maps[module]`` where the transposed weight would be."""

    def __init__(self, maps, clamp=0.0):
        self.maps, self.clamp, self.gradients = maps, clamp, {}

    def gradient(self, parameter, value):
        self.gradients[id(parameter)] = self.gradients.get(id(parameter), 0) + value

    def clamped(self, error):
        return error.clamp(-self.clamp, self.clamp) if self.clamp else error

    def through(self, module, x):
        """The output for x, and a function from the error of the output to the error of x."""
        if isinstance(module, nn.Sequential | list):
            steps = []
            for part in module:
                x, back = self.through(part, x)
                steps.insert(0, back)

            def down(error):
                for back in steps:
                    # None goes down from the first weights.
                    error = None if error is None else back(error)
                return error

            return x, down
        return getattr(self, type(module).__name__)(module, x)

    def Linear(self, module, x):
        def down(error):
            self.gradient(module.weight, error.T @ x)
            self.gradient(module.bias, error.sum(0))
            b = self.maps.get(module)
            return None if b is None else self.clamped(error @ b.T)

        return x @ module.weight.T + module.bias, down

    def Conv2d(self, module, x):
        geometry = {"stride": module.stride, "padding": module.padding}

        def down(error):
            self.gradient(module.weight, nn.grad.conv2d_weight(x, module.weight.shape, error, **geometry))
            if module.bias is not None:
                self.gradient(module.bias, error.sum((0, 2, 3)))
            b = self.maps.get(module)
            return None if b is None else self.clamped(nn.grad.conv2d_input(x.shape, b, error, **geometry))

        return F.conv2d(x, module.weight, module.bias, **geometry), down

    def ELU(self, module, x):
        return F.elu(x), lambda error: error * torch.where(x > 0, 1.0, x.exp())

    def Flatten(self, module, x):
        return x.flatten(1), lambda error: error.view_as(x)

    def MaxPool2d(self, module, x):
        y, places = F.max_pool2d(x, module.kernel_size, module.stride, module.padding, return_indices=True)

        def down(error):
            zeros = torch.zeros_like(x).flatten(2)
            return zeros.scatter_add(2, places.flatten(2), error.flatten(2)).view_as(x)

        return y, down

    def AdaptiveAvgPool2d(self, module, x):
        return x.mean((2, 3), keepdim=True), lambda error: error.expand_as(x) / x[0, 0].numel()

    def BatchNorm2d(self, module, x):
        over = (0, 2, 3)
        spread = (x.var(over, unbiased=False, keepdim=True) + module.eps).sqrt()
        hat = (x - x.mean(over, keepdim=True)) / spread
        gamma = module.weight[:, None, None]

        def down(error):
            self.gradient(module.weight, (error * hat).sum(over))
            self.gradient(module.bias, error.sum(over))
            e = error * gamma
            return (e - e.mean(over, keepdim=True) - hat * (e * hat).mean(over, keepdim=True)) / spread

        return hat * gamma + module.bias[:, None, None], down

    def Residual(self, module, x):
        a, first = self.through(module.first, x)
        h, function = self.through(nn.ELU(), a)
        y, second = self.through(module.second, h)
        z, shortcut = self.through(module.shortcut, x)
        return y + z, lambda error: first(function(second(error))) + shortcut(error)

    def batch(self, network, x, y):
        """Gradients of the mean cross-entropy, by the identity of the parameter."""
        with torch.no_grad():
            output, down = self.through(list(network), x)
            down((output.softmax(1) - F.one_hot(y, output.shape[1])) / len(y))
        return [self.gradients[id(p)] for p in network.parameters()]


def maps_of(rule):
    return {operation.module: rule.backward_weight(operation).clone() for operation in rule.feedback.operations}


@pytest.mark.parametrize("of", NETWORKS)
@pytest.mark.parametrize("name", FAMILY)
def test_gradients_equal_those_of_a_backward_pass_written_by_hand(name, of):
    network = NETWORKS[of]().double()
    rule = make(name, network)
    x, y = make_batch(network)
    expected = ByHand(maps_of(rule)).batch(network, x, y)
    logits, gradients = rule.forward_gradients(x, y)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    # The test must tell it from backprop.
    backprop = BP(network).forward_gradients(x, y)[1]
    assert relative(gradients[0], backprop[0]) > 0.1


@pytest.mark.parametrize("name", ["fa", "usf", "brsf", "frsf", "wm"])
def test_weights_computed_from_others_have_the_gradients_of_those_that_are_there(name):
    """By the chain rule from a network that has the same weights as they are."""
    network = small_network("fa").double()
    plain = copy.deepcopy(network)
    normed = [weight_norm(module) for module in network.modules() if isinstance(module, nn.Linear)]
    rule, theirs = make(name, network), make(name, plain)
    assert len(rule.feedback.operations) == len(theirs.feedback.operations) == len(normed) - 1
    theirs.feedback.load_state_dict(rule.feedback.state_dict())
    x, y = make_batch(network)
    gradients = dict(zip(map(id, rule.forward_parameters), rule.forward_gradients(x, y)[1], strict=True))
    expected = dict(zip([n for n, _ in plain.named_parameters()], theirs.forward_gradients(x, y)[1], strict=True))
    for place, module in network.named_modules():
        if module in normed:
            raw = list(module.parametrizations.weight.parameters())
            by_chain = torch.autograd.grad(module.weight, raw, expected[f"{place}.weight"])
            for ours, wanted in zip([module.bias, *raw], [expected[f"{place}.bias"], *by_chain], strict=True):
                torch.testing.assert_close(gradients[id(ours)], wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("name", "options"), [("kp", {}), ("dualprop", {"backward": "kolen-pollack"})])
def test_backward_weights_that_take_steps_need_forward_weights_that_do(name, options):
    network = small_network(name)
    weight_norm(network[2][0])
    with pytest.raises(UserError, match="The weight of layers.1.0 is computed from others .* take another rule"):
        make(name, network, **options)


@pytest.mark.parametrize("of", ["lenet", "batch-norm"])
def test_errors_that_go_down_and_gradients_of_weights_and_biases_are_clamped(of):
    """As biotorch does with what the backward pass of an affine operation gives to its input, weights and bias."""
    network = NETWORKS[of]().double()
    rule = make("fa", network, error_clamp=0.01)
    x, y = make_batch(network)
    errors_alone = ByHand(maps_of(rule), clamp=0.01).batch(network, x, y)
    ours = rule.forward_gradients(x, y)[1]
    names = [name for name, _ in network.named_parameters()]
    clamped = set()
    for name, found, gradient in zip(names, ours, errors_alone, strict=True):
        module = network.get_submodule(name.rpartition(".")[0])
        expected = gradient if isinstance(module, nn.BatchNorm2d) else gradient.clamp(-0.01, 0.01)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
        if not torch.equal(expected, gradient):
            clamped.add(name.rpartition(".")[2])
    assert clamped == {"weight", "bias"}
    assert relative(errors_alone[0], ByHand(maps_of(rule)).batch(network, x, y)[0]) > 0.01


@pytest.mark.parametrize("shape", [(4,), (2, 4)])
def test_gradients_of_a_layer_normalisation_are_not_clamped_whatever_its_shape(shape):
    norm = nn.LayerNorm(shape)
    layers = [nn.Sequential(nn.Linear(3, 4), norm), nn.Sequential(nn.Flatten(), nn.Linear(8, 5))]
    rule = make("fa", Layers(layers, (2, 3)), error_clamp=1e-6)
    found = rule.forward_gradients(torch.randn(20, 2, 3), torch.randint(5, (20,)))[1]
    # Sums over images of errors that are clamped.
    for p, gradient in zip(rule.forward_parameters, found, strict=True):
        assert (gradient.abs().max() > 1.1e-6) == any(p is own for own in norm.parameters())


def test_the_bias_of_a_layer_whose_weight_is_computed_is_clamped_too():
    network = small_network("fa")
    weight_norm(network[2][0])
    rule = make("fa", network, error_clamp=3e-5)
    names = [name for name, _ in network.named_parameters()]
    gradients = dict(zip(names, rule.forward_gradients(*make_batch(network))[1], strict=True))
    assert float(gradients["layers.1.0.bias"].abs().max()) == pytest.approx(3e-5)


# A tied auto-encoder has no weights of the backward pass that could be others than the forward ones.
@pytest.mark.parametrize("model", [name for name in MODELS.entries if name != "tied-autoencoder"])
def test_with_transposed_weights_it_is_backprop_for_every_network(model):
    network = shipped_network(model).double()
    rule = make("fa", network)
    for operation in rule.feedback.operations:
        operation.backward_map.copy_transpose(operation.module)
    x, y = make_batch(network)
    gradients = []
    for algorithm in (rule, BP(network)):
        # For networks that draw, the same.
        torch.manual_seed(1)
        gradients.append(algorithm.forward_gradients(x, y)[1])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    # All but the operations that see the image itself.
    weights = [name for name, p in network.named_parameters() if p.dim() > 1 and name.endswith("weight")]
    assert len(rule.feedback.operations) == len(weights) - 1


def test_maps_have_the_distribution_of_the_first_forward_weights_and_never_change():
    network = Layers([nn.Sequential(nn.Flatten(), nn.Linear(16, 400), nn.ELU()), nn.Linear(400, 300)], (1, 4, 4), 300)
    for init in ("default", "xavier", "xavier-normal"):
        rule = make("fa", network, backward_init=init)
        (b,) = maps_of(rule).values()
        expected = 1 / math.sqrt(3 * 400) if init == "default" else math.sqrt(2 / 700)
        assert b.shape == (400, 300) and abs(b.mean()) < 1e-3
        assert b.std().item() == pytest.approx(expected, rel=0.02)
        assert (b.abs().max() <= math.sqrt(3) * expected * 1.0001) == (init != "xavier-normal")
        before = state(rule.feedback)
        rule.training_batch(*make_batch(network))
        assert same(before, rule.feedback.state_dict())
        assert not any(p.requires_grad for p in rule.feedback.parameters())


def test_no_error_goes_below_the_lowest_trained_layer():
    network = small_network("fa")
    network[1].requires_grad_(False)
    network[2].requires_grad_(False)
    assert [operation.layer for operation in make("fa", network).feedback.operations] == [4]


@pytest.mark.parametrize("of", ["lenet", "residual"])
@pytest.mark.parametrize("init", ["default", "xavier", "xavier-normal"])
@pytest.mark.parametrize("name", SIGNS)
def test_sign_rules_have_the_signs_of_the_transposed_weights_and_their_own_magnitudes(name, init, of):
    network = NETWORKS[of]()
    rule = make(name, network, backward_init=init)
    drawn = {operation.module: operation.backward_map.weight.clone() for operation in rule.feedback.operations}
    for _ in range(2):
        for operation in rule.feedback.operations:
            b, w = rule.backward_weight(operation), operation.module.weight
            # LinearFeedback holds matrices transposed, convolutions of both directions have one shape of kernel.
            transposed = w.T if w.dim() == 2 else w
            assert b.shape == transposed.shape and torch.equal(b.sign(), transposed.sign())
            if name == "usf":
                fan_in, fan_out = w[0].numel(), w[:, 0].numel()
                scale = 1 / math.sqrt(3 * fan_in) if init == "default" else math.sqrt(2 / (fan_in + fan_out))
                torch.testing.assert_close(b.abs(), torch.full_like(b, scale))
            if name == "frsf":
                assert torch.equal(b.abs(), drawn[operation.module].abs())
        rule.training_batch(*make_batch(network))


def test_magnitudes_of_brsf_are_a_function_of_the_seed_and_the_number_of_the_batch(lenet):
    first = state(lenet)

    def magnitudes(seed, data_seed):
        lenet.load_state_dict(first)
        rule = make("brsf", lenet, seed=seed)
        torch.manual_seed(data_seed)
        found = []
        for _ in range(3):
            rule.training_batch(*make_batch(lenet))
            found.append([b.abs() for b in maps_of(rule).values()])
        return rule, found

    rule, found = magnitudes(1, 0)
    # Others in every batch and every operation ...
    for a, b in zip(found, found[1:], strict=False):
        assert not any(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    # ... of the right size ...
    for operation, m in zip(rule.feedback.operations, found[0], strict=True):
        assert m.max() <= math.sqrt(3) * deviation(*fans(operation.module), "default")
    # ... whatever the images and the maps it began with, but not whatever the seed.
    for again, expected in zip(magnitudes(1, 5)[1], found, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(again, expected, strict=True))
    assert not torch.equal(magnitudes(2, 0)[1][0][0], found[0][0])


def test_fixed_maps_align_with_nothing_and_signs_do(mlp):
    angles = {name: [found.angle for found in feedback_alignment(make(name, mlp)).values()] for name in ("fa", "usf")}
    assert all(60 < found < 120 for found in angles["fa"])
    # Of uniform weights with their signs: acos(sqrt(3) / 2).
    assert all(abs(found - 30) < 6 for found in angles["usf"])


# --- Kolen-Pollack ----------------------------------------------------------------------------------------------------


def differences(rule):
    """W^T - B of every operation."""
    maps = [(operation.backward_map, operation.module) for operation in rule.feedback.operations]
    return [(backward.transpose_of(module) - backward.weight).detach() for backward, module in maps]


@pytest.mark.parametrize("of", ["mlp", "lenet", "residual"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lee-rmsprop"])
@pytest.mark.parametrize("decay", [0.5, 0.0])
def test_kolen_pollack_differences_shrink_by_one_minus_rate_times_decay_in_each_step(of, optimizer, decay):
    network = NETWORKS[of]().double()
    rule = make("kp", network, optimizer=optimizer, lr=0.02, momentum=0.9, weight_decay=decay, clip_norm=0.5)
    first = state(network)
    for step in range(6):
        # As a schedule would.
        rate = 0.02 / (1 + step)
        rule.forward_optimizer.param_groups[0]["lr"] = rate
        before = [
            operation.backward_map.transpose_of(operation.module) - operation.backward_map.weight
            for operation in rule.feedback.operations
        ]
        rule.training_batch(*make_batch(network))
        for difference, old in zip(differences(rule), before, strict=True):
            torch.testing.assert_close(difference, (1 - rate * decay) * old, rtol=1e-10, atol=1e-14)
            assert old.norm() > 0.1
    assert changed(first, network.state_dict()) == set(first)


def test_kolen_pollack_with_rates_for_each_layer(mlp):
    mlp.double()
    rates = [0.05, 0.04, 0.03, 0.02]
    rule = make("kp", mlp, layer_lr=rates, weight_decay=0.5)
    before = [
        operation.backward_map.transpose_of(operation.module) - operation.backward_map.weight
        for operation in rule.feedback.operations
    ]
    rule.training_batch(*make_batch(mlp))
    for operation, difference, old in zip(rule.feedback.operations, differences(rule), before, strict=True):
        torch.testing.assert_close(difference, (1 - rates[operation.layer - 1] * 0.5) * old, rtol=1e-10, atol=1e-14)


def test_kolen_pollack_by_several_optimizers_is_that_by_one_with_their_groups(mlp):
    """And weights that no optimizer has stay as they are."""
    first, found = state(mlp), []

    def of(several):
        class Own(KolenPollack):
            def configure_optimizers(self):
                groups = [{"params": list(mlp[n].parameters()), "lr": 0.1 * n} for n in (3, 2)]
                return [torch.optim.SGD([group]) for group in groups] if several else torch.optim.SGD(groups)

        return Own

    for several in (False, True):
        mlp.load_state_dict(first)
        torch.manual_seed(0)
        rule = of(several)(mlp, weight_decay=0.1, clip_norm=0.1)
        rule.configure_optimizers()
        for _ in range(2):
            rule.training_batch(*make_batch(mlp))
        found.append(state(rule))
    assert same(*found) and {name[:9] for name in changed(first, state(mlp))} == {"layers.1.", "layers.2."}


def of_optimizer(network, optimizer, **options):
    """Kolen-Pollack learning by a user's optimizer of the network."""

    class Own(KolenPollack):
        def configure_optimizers(self):
            return optimizer

    rule = Own(network, **options)
    rule.configure_optimizers()
    return rule


def test_kolen_pollack_refuses_an_optimizer_that_decays_weights_itself(mlp):
    """Its decay would be a step that both take, which does not bring them nearer."""
    rule = of_optimizer(mlp, torch.optim.AdamW(mlp.parameters(), lr=0.1))
    before = state(rule)
    with pytest.raises(UserError, match=r"optimizers with weight_decay=0, found 0\.01"):
        rule.training_batch(*make_batch(mlp))
    assert same(before, state(rule))


def test_kolen_pollack_takes_decays_of_what_has_no_backward_weight_or_does_not_learn(mlp):
    """Of biases, and of frozen weights, which stay where they are, as do their backward weights."""
    mlp[2].requires_grad_(False)
    biases = [p for p in mlp.parameters() if p.dim() == 1 and p.requires_grad]
    others = [p for p in mlp.parameters() if p.dim() > 1 and p.requires_grad]
    groups = [{"params": others, "weight_decay": 0}, {"params": [*biases, *mlp[2].parameters()]}]
    rule = of_optimizer(mlp, torch.optim.SGD(groups, lr=0.1, weight_decay=0.5), weight_decay=0.5)
    maps = {operation.layer: operation.backward_map.weight.clone() for operation in rule.feedback.operations}
    before = state(mlp)
    rule.training_batch(*make_batch(mlp))
    assert {name[:9] for name in changed(before, state(mlp))} == {"layers.0.", "layers.2.", "layers.3."}
    now = {operation.layer: operation.backward_map.weight for operation in rule.feedback.operations}
    assert torch.equal(maps[2], now[2]) and not torch.equal(maps[3], now[3])


def test_backward_weights_do_not_decay_in_the_step_of_another_optimizer(mlp):
    rule = make("kp", mlp, weight_decay=0.5)
    rule.configure_optimizers()
    other = nn.Parameter(torch.ones(3))
    before = state(rule)
    rule.step(torch.optim.SGD([other], lr=0.1), [other], [torch.ones(3)])
    assert same(before, state(rule)) and torch.equal(other, torch.full((3,), 0.9))


def test_kolen_pollack_forward_step_is_the_optimizers_after_the_decay_of_weights_but_not_of_biases(mlp):
    mlp.double()
    rule = make("kp", mlp, optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.2)
    x, y = make_batch(mlp)
    gradients = rule.forward_gradients(x, y)[1]
    before = [p.detach().clone() for p in rule.forward_parameters]
    rule.training_batch(x, y)
    for p, old, gradient in zip(rule.forward_parameters, before, gradients, strict=True):
        keep = 1 - 0.1 * 0.2 if p.dim() == 2 else 1
        torch.testing.assert_close(p.detach(), keep * old - 0.1 * gradient)
    assert any(old.norm() > 0.1 for old in before if old.dim() == 1)


def test_kolen_pollack_tends_to_backprop(mlp):
    rule = make("kp", mlp, lr=0.1, weight_decay=0.2)
    x, y = make_batch(mlp, 32)
    for _ in range(300):
        rule.training_batch(x, y)
    assert all(found.angle < 1 for found in feedback_alignment(rule).values())
    assert all(found.angle < 1 for found in update_alignment(rule, x, y).values())


# --- weight mirror ----------------------------------------------------------------------------------------------------


def narrow():
    return Layers(
        [
            nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ELU()),
            nn.Sequential(nn.Linear(4, 2), nn.ELU()),
            nn.Sequential(nn.Linear(2, 3), nn.ELU()),
            nn.Sequential(nn.Linear(3, 5)),
        ],
        (1, 4, 4),
    )


@pytest.mark.parametrize("of", ["mlp", "lenet", "residual", "narrow"])
def test_weight_mirror_finds_the_transposed_weights(of):
    network = narrow() if of == "narrow" else NETWORKS[of]()
    rule = make("wm", network)
    before = feedback_alignment(rule)
    forward = state(network)
    for _ in range(200):
        rule.mirror()
    after = feedback_alignment(rule)
    assert max(found.angle for found in before.values()) > 45
    assert all(found.angle < 10 for found in after.values())
    # Their size too: W^T times the mean slope of the nonlinearity.
    assert all(found.distance < 0.2 for found in after.values())
    assert same(forward, network.state_dict())


def test_weight_mirror_follows_a_relu_at_its_mean_slope():
    """The layer's own nonlinearity, whatever the network's option says."""
    layers = [nn.Sequential(nn.Flatten(), nn.Linear(16, 6)), nn.Sequential(nn.Linear(6, 7), nn.ReLU()), nn.Linear(7, 5)]
    network = Layers(layers, (1, 4, 4))
    rule = make("wm", network, mirror_lr=0.02)
    for _ in range(600):
        rule.mirror()
    relu, linear = (operation.backward_map.weight.detach() for operation in rule.feedback.operations)
    assert relative(relu, network[2][0].weight.detach().T / 2) < 0.1
    assert relative(linear, network[3].weight.detach().T) < 0.1


def test_weight_mirror_follows_the_nonlinearity_behind_each_weight_alone():
    """Of two weights in one layer the lower has none behind it; in a residual unit each has that of its chain."""
    branch = nn.Sequential(nn.Linear(6, 7), modules.InnerFunction(nn.ReLU()), nn.Linear(7, 6))
    layers = [
        nn.Sequential(nn.Flatten(), nn.Linear(16, 6)),
        nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 6), nn.ReLU()),
        nn.Sequential(modules.Residual(branch, nn.Sequential())),
        nn.Linear(6, 5),
    ]
    rule = make("wm", Layers(layers, (1, 4, 4)), mirror_lr=0.02)
    for _ in range(600):
        rule.mirror()
    slopes = [1, 0.5, 0.5, 1, 1]
    for operation, slope in zip(rule.feedback.operations, slopes, strict=True):
        found, expected = operation.backward_map.weight.detach(), slope * operation.module.weight.detach().T
        assert relative(found, expected) < 0.1


def test_weight_mirror_does_not_see_biases(lenet):
    found = []
    for shift in (0.0, 3.0):
        torch.manual_seed(1)
        network = small_network("wm", "lenet").double()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.endswith("bias"):
                    parameter.add_(shift)
        rule = make("wm", network)
        for _ in range(3):
            rule.mirror()
        found.append([b for b in maps_of(rule).values()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_weight_mirror_step_is_the_one_of_the_paper(mlp):
    """B <- (1 - lam) B + lam xi y^T / sigma^2 on average over patterns, for a layer without nonlinearity after it."""
    mlp.double()
    rule = make("wm", mlp, mirror_samples=50, mirror_lr=0.3, mirror_noise=0.2)
    operation = rule.feedback.operations[-1]
    old, seen = operation.backward_map.weight.clone(), {}
    original = rule.noise_streams.normal
    rule.noise_streams.normal = lambda i, *rest, **named: seen.setdefault(i, original(i, *rest, **named))
    rule.mirror()
    xi = seen[len(rule.feedback.operations) - 1]
    response = xi @ operation.module.weight.T
    response = response - response.mean(0)
    estimate = sum(torch.outer(a, b) for a, b in zip(xi, response, strict=True)) / 49 / 0.2**2
    torch.testing.assert_close(operation.backward_map.weight.detach(), (0.7 * old + 0.3 * estimate).detach())


def test_weight_mirror_warms_up_before_the_first_batch_and_then_takes_one_phase_per_batch(mlp, monkeypatch):
    rule = make("wm", mlp, mirror_warmup=4)
    phases, original = [], rule.mirror
    monkeypatch.setattr(rule, "mirror", lambda: phases.append(rule.batches_done) or original())
    for _ in range(3):
        rule.training_batch(*make_batch(mlp))
    assert phases == [0] * 5 + [1, 2]


@pytest.mark.parametrize(
    "changes, flag",
    [
        ({"mirror_noise": 0.0}, "--mirror-noise"),
        ({"mirror_lr": 1.0}, "--mirror-lr"),
        ({"mirror_samples": 1}, "--mirror-samples"),
        ({"mirror_warmup": -1}, "--mirror-warmup"),
        ({"error_clamp": -0.1}, "--error-clamp"),
    ],
)
def test_values_out_of_range_are_refused_by_name(mlp, changes, flag):
    with pytest.raises(UserError, match=flag + ":"):
        make("wm", mlp, **changes)


# --- what the backward passes leave behind, and what they meet --------------------------------------------------------


def hooks(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_hooks_are_gone_after_a_pass_and_after_one_that_failed(lenet):
    lenet.double()
    rule = make("fa", lenet)
    x, y = make_batch(lenet)
    expected = rule.forward_gradients(x, y)[1]
    assert hooks(lenet) == 0
    with pytest.raises(RuntimeError):
        # Too small for the linear layer: it fails in the middle of the network.
        rule.forward_gradients(x[:, :, :6, :6], y)
    assert hooks(lenet) == 0
    with pytest.raises(UserError, match="does not depend on all weights"):
        rule.task_loss = lambda *_: torch.full((), math.nan).requires_grad_()
        rule.forward_gradients(x, y)
    assert hooks(lenet) == 0
    del rule.task_loss
    for a, b in zip(rule.forward_gradients(x, y)[1], expected, strict=True):
        assert torch.equal(a, b)


def test_plain_passes_through_the_network_are_as_if_the_rule_were_not_there(lenet):
    x, y = make_batch(lenet)
    before = BP(lenet, AlgorithmOptions()).forward_gradients(x, y)[1]
    rule = make("fa", lenet)
    rule.training_batch(x, y)
    after = BP(lenet, AlgorithmOptions()).forward_gradients(x, y)
    assert torch.equal(rule(x).detach(), after[0]) and not torch.equal(before[0], after[1][0])


@pytest.mark.parametrize("name", FAMILY)
def test_nonlinearities_that_work_in_place_change_nothing(name):
    def build(inplace):
        torch.manual_seed(0)
        layers = [
            nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace)),
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace)),
            nn.Sequential(nn.Flatten(), nn.Linear(4 * 16, 6), nn.ReLU(inplace)),
            nn.Sequential(nn.Linear(6, 5)),
        ]
        return Layers(layers, (1, 8, 8)).double()

    results = []
    for inplace in (False, True):
        network = build(inplace)
        rule = make(name, network)
        results.append(rule.forward_gradients(*make_batch(network))[1])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_running_statistics_are_updated_once_per_batch():
    network, reference = normalised_network(), normalised_network()
    reference.load_state_dict(network.state_dict())
    x, y = make_batch(network)
    make("fa", network).forward_gradients(x, y)
    reference(x)
    for key, value in network.state_dict().items():
        if "running" in key or "tracked" in key:
            assert torch.equal(value, reference.state_dict()[key])


def test_a_layer_that_it_does_not_know_is_named(mlp):
    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            return x @ self.weight

    layers = [nn.Sequential(nn.Flatten(), nn.Linear(16, 8)), nn.Sequential(Bilinear()), nn.Sequential(nn.Linear(8, 5))]
    with pytest.raises(UserError, match="Bilinear"):
        make("fa", Layers(layers, (1, 4, 4)))


def test_layers_are_numbered_as_in_the_network(lenet):
    rule = make("fa", lenet)
    assert [operation.layer for operation in rule.feedback.operations] == [2, 3, 4]
    assert [operation.module for operation in rule.feedback.operations] == [
        next(m for m in layer_operations(lenet[n]) if list(m.parameters())) for n in (2, 3, 4)
    ]
    assert sorted(rule.feedback_weights()) == [2, 3, 4]
