"""Counter-current learning against a transcription of the authors' losses, and what each of them reaches."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dtp.algorithms import CCL
from dtp.cli.train import main
from dtp.diagnostics.alignment import feedback_alignment
from dtp.errors import UserError
from dtp.models import as_network
from tests.algorithms.helpers import changed, make, of_network, state
from tests.algorithms.networks import Layers, shipped_network
from tests.conftest import make_batch


def elu_network(*widths):
    """Without biases, as theirs, in float64."""
    layers = [nn.Sequential(nn.Linear(i, o, bias=False), nn.ELU()) for i, o in zip(widths, widths[1:], strict=False)]
    layers[0].insert(0, nn.Flatten())
    del layers[-1][-1]
    return Layers(layers, (1, 1, widths[0]), widths[-1]).double()


def signals_by_hand(rule, x):
    """Activations and class signals with all inputs detached, of fully connected networks."""
    up = [m.weight for m in rule.network.modules() if isinstance(m, nn.Linear)]
    down = [m.weight for m in rule.feedback.modules() if isinstance(m, nn.Linear)]
    a, b = [x.flatten(1)], [torch.eye(len(up[-1]), dtype=torch.float64)]
    for n, weight in enumerate(up, 1):
        z = a[-1].detach() @ weight.T
        a.append(z if n == len(up) else F.elu(z))
    for n in range(len(down), 0, -1):
        z = b[-1].detach() @ down[n - 1].T
        b.append(z if n == 1 else F.elu(z))
    return a, b[::-1]


def losses_by_hand(a, b, y, form, c=0.5, q=0.5, flooding=False):
    """As the authors' two loss functions."""
    N, found = len(a) - 1, {}
    match = (y[:, None] == torch.arange(len(b[0]))[None]).double()
    heard = torch.ones(len(y), dtype=torch.float64)
    if flooding:
        heard = ((a[N].softmax(1) - match).abs() * match).sum(1).ge(0.1).double().detach()
    for n in range(N):
        s, t = a[n] * heard[:, None], b[n]
        if form == "inner":
            found[n] = F.mse_loss(s @ t.T, match) / s.shape[1] * c * 256
        else:
            s, t = s / (s.norm(dim=1, keepdim=True) + 1e-8), t / (t.norm(dim=1, keepdim=True) + 1e-8)
            own = F.mse_loss(s @ s.T, torch.eye(len(s)).double()) + F.mse_loss(t @ t.T, torch.eye(len(t)).double())
            found[n] = c * F.mse_loss(s @ t.T, match) + q * own
    return found | {N: F.cross_entropy(a[N], y)}


@pytest.mark.parametrize("flooding", [False, True])
@pytest.mark.parametrize("form", ["inner", "cosine"])
def test_losses_and_gradients_equal_those_of_the_authors_code(form, flooding):
    network = elu_network(16, 12, 11, 5)
    rule = make("ccl", network, similarity=form, flooding=flooding, correlation=0.7, decorrelation=0.3)
    x, y = make_batch(network)
    if flooding:
        # Some are certain of their class.
        with torch.no_grad():
            network[3][0].weight.mul_(40)
        y[:3] = network(x).argmax(1)[:3]
    a, b = signals_by_hand(rule, x)
    expected = losses_by_hand(a, b, y, form, c=0.7, q=0.3, flooding=flooding)
    if flooding:
        plain = losses_by_hand(a, b, y, form, c=0.7, q=0.3)
        assert abs(expected[1] - plain[1]) > 1e-6
    _, ours = rule.all_losses(x, y)
    assert ours.keys() == expected.keys()
    for n in expected:
        torch.testing.assert_close(ours[n], expected[n], rtol=1e-10, atol=1e-12)
    weights = [*network.parameters(), *rule.feedback.parameters()]
    theirs = torch.autograd.grad(sum(expected.values()), weights)
    for gradient, wanted in zip(torch.autograd.grad(sum(ours.values()), weights), theirs, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)
    for gradient, wanted in zip(rule.forward_gradients(x, y)[1], theirs, strict=False):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "lenet", "resnet18", "resnet20", "lc", "vgg"])
def test_each_loss_reaches_a_layer_of_either_network(kind):
    network = shipped_network(kind)
    rule = make("ccl", network)
    _, losses = rule.all_losses(*make_batch(network))
    N = network.depth
    names = {id(p): f"U{n}" for n in range(1, N + 1) for p in network[n].parameters()}
    names |= {id(p): f"V{n}" for n in range(1, N + 1) for p in rule.feedback[n - 1].parameters()}
    weights = list(rule.parameters())
    assert len(names) == len(weights)
    for n, loss in losses.items():
        reached = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
        found = {names[id(p)] for p, g in zip(weights, reached, strict=True) if g is not None}
        assert found == {0: {"V1"}, N: {f"U{N}"}}.get(n, {f"U{n}", f"V{n + 1}"})


def test_the_feedback_network_sees_each_class_once_whatever_the_batch():
    network = elu_network(16, 12, 11, 5)
    rule = make("ccl", network)
    rows = []
    rule.feedback[1].register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    for size in (3, 30):
        rule.training_batch(*make_batch(network, size=size))
    assert rows == [5, 5]


@pytest.mark.parametrize("form", ["inner", "cosine"])
def test_losses_do_not_depend_on_the_order_of_the_images(form):
    network = elu_network(16, 12, 11, 5)
    rule = make("ccl", network, similarity=form)
    x, y = make_batch(network, size=20)
    order = torch.randperm(20)
    first, second = rule.all_losses(x, y)[1], rule.all_losses(x[order], y[order])[1]
    for n in first:
        torch.testing.assert_close(first[n], second[n], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["mlp", "lenet", "vgg", "resnet18", "resnet34", "resnet20", "lc", "convnet", "square"])
def test_mirrors_bring_class_signals_to_the_shapes_of_the_activations(kind):
    network = shipped_network(kind)
    signals = make("ccl", network).class_signals(like=torch.zeros(()))
    assert [signal.shape[1:] for signal in signals] == network.shapes


def test_the_mirror_of_a_pooled_convolution_is_that_of_the_authors():
    network = shipped_network("vgg")
    mirror = make("ccl", network).feedback[1]
    conv = mirror[1]
    b = torch.randn(5, *network.shapes[2])
    expected = F.elu(F.conv2d(F.interpolate(b, scale_factor=2, mode="nearest"), conv.weight, padding=1))
    torch.testing.assert_close(mirror(b), expected)
    assert conv.weight.shape[:2] == network[2][0].weight.shape[:2][::-1] and conv.bias is None


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_mirror_that_is_the_adjoint_is_at_no_angle(groups):
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=groups, bias=False)
    layers = [nn.Sequential(nn.Conv2d(2, 4, 1), nn.ELU()), nn.Sequential(conv, nn.ELU())]
    rule = make("ccl", Layers([*layers, nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 5))], (2, 6, 6)).double())
    mirror = rule.feedback[1][0]
    # By autograd, one weight at a time: the mirror is linear in its own.
    x, y = torch.randn(2, 4, 6, 6, dtype=torch.float64, requires_grad=True), torch.randn(2, 8, 6, 6).double()
    (wanted,) = torch.autograd.grad(conv(x), x, y)
    columns = torch.func.jacrev(lambda w: torch.func.functional_call(mirror, {"weight": w}, y))(mirror.weight)
    found = torch.linalg.lstsq(columns.reshape(wanted.numel(), -1).detach(), wanted.flatten()[:, None]).solution
    with torch.no_grad():
        mirror.weight.copy_(found.view_as(mirror.weight))
    torch.testing.assert_close(mirror(y), wanted)
    assert feedback_alignment(rule)[2].distance < 1e-8


def test_gradients_are_centred_over_all_but_the_output_dimension():
    network = shipped_network("vgg").double()
    x, y = make_batch(network)
    rules = [make("ccl", network, centralise=on) for on in (False, True)]
    rules[1].feedback = rules[0].feedback
    plain, centred = (rule.double().forward_gradients(x, y)[1] for rule in rules)
    for before, after in zip(plain, centred, strict=True):
        if before.dim() == 1:
            assert torch.equal(before, after)
        else:
            over = tuple(range(1, before.dim()))
            torch.testing.assert_close(after, before - before.mean(over, keepdim=True), rtol=1e-12, atol=1e-15)


def moved(rule, x, y):
    """How far a step with rate 1 takes the weights of each layer: ({n: forward}, {n: feedback})."""
    before = state(rule)
    rule.training_batch(x, y)
    lengths = []
    for name, layers in (("network.layers", rule.network), ("feedback", rule.feedback)):
        found = {}
        for n in range(1, len(list(layers)) + 1):
            keys = [key for key in before if key.startswith(f"{name}.{n - 1}.")]
            found[n] = torch.cat([(rule.state_dict()[key] - before[key]).flatten() for key in keys]).norm().item()
        lengths.append(found)
    return lengths


def test_clipping_is_of_each_layer_or_of_each_network():
    x, y = make_batch(elu_network(16, 12, 11, 5))
    plain = moved(make("ccl", elu_network(16, 12, 11, 5), layer_clip=0.0), x, y)
    limit = 0.5 * min(min(lengths.values()) for lengths in plain)
    for lengths in moved(make("ccl", elu_network(16, 12, 11, 5), layer_clip=limit), x, y):
        assert list(lengths.values()) == pytest.approx([limit] * 3, rel=1e-3)
    for lengths in moved(make("ccl", elu_network(16, 12, 11, 5), layer_clip=0.0, clip_norm=limit), x, y):
        assert sum(length**2 for length in lengths.values()) ** 0.5 == pytest.approx(limit, rel=1e-3)


def test_optimizers_of_ones_own_step_on_what_one_would(limit=1e-3):
    """Clipping divides by the length and a little more, so that gradients that are clipped again get shorter."""

    class Several(CCL):
        def configure_optimizers(self):
            return [torch.optim.SGD([weight], lr=1.0) for weight in self.forward_parameters]

    x, y = make_batch(elu_network(16, 12, 11, 5))
    for options in ({"layer_clip": limit}, {"layer_clip": 0.0, "clip_norm": limit}):
        network = elu_network(16, 12, 11, 5)
        rule, other = CCL(network, seed=0, **options), Several(copy.deepcopy(network), seed=0, **options)
        other.load_state_dict(rule.state_dict())
        for each in (rule, other):
            each.configure_optimizers()
            each.training_batch(x, y)
        for value, expected in zip(other.parameters(), rule.parameters(), strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)


def test_losses_rise_over_the_first_batches():
    network = elu_network(16, 12, 11, 5)
    rule, plain = (make("ccl", network, loss_warmup=batches) for batches in (4, 0))
    plain.feedback = rule.feedback
    x, y = make_batch(network)
    for done in range(6):
        rule.batches_by_hand = done
        factor = min((done + 1) / 4, 1.0)
        assert rule.gradient_scale(1) == factor
        for ours, whole in zip(rule.forward_gradients(x, y)[1], plain.forward_gradients(x, y)[1], strict=True):
            torch.testing.assert_close(ours, factor * whole, rtol=1e-12, atol=1e-15)


def test_a_feedback_network_that_does_not_learn_stays_as_it_is():
    network = elu_network(16, 12, 11, 5)
    rule = make("ccl", network, train_feedback=False)
    before = state(rule)
    rule.training_batch(*make_batch(network))
    names = changed(before, rule.state_dict())
    assert names == of_network(names) == of_network(set(before))


@pytest.mark.parametrize("layers", [[], [0], [1], [0, 1, 2]])
def test_feedback_weights_that_an_optimizer_of_ones_own_does_not_hold_are_trained_too(layers):
    class Mine(CCL):
        def configure_optimizers(self):
            held = [p for n in layers for p in self.feedback[n].parameters()]
            return torch.optim.SGD([*self.network.parameters(), *held], lr=0.1)

    rule = Mine(elu_network(6, 5, 4, 3), CCL.Options(), seed=0)
    rule.configure_optimizers()
    before = state(rule)
    rule.training_batch(*make_batch(rule.network))
    assert changed(before, state(rule)) == set(before)


def test_rates_of_layers_are_those_of_the_forward_network():
    network = elu_network(16, 12, 11, 5)
    rule = make("ccl", network, layer_lr=[0.1, 0.2, 0.3], lr=0.7)
    assert [group["lr"] for group in rule.forward_optimizer.param_groups] == [0.1, 0.2, 0.3, 0.7]


def test_it_learns_more_than_with_random_features(here):
    accuracies = {}
    for learns in ("true", "false"):
        words = ["--algo", "ccl", "--data", "digits", "--max-epochs", "12", "--diagnostics-every", "0", "--seed", "0"]
        assert main([*words, "--train-feedback", learns, "--test-weights", "last", "--run-dir", learns]) == 0
        accuracies[learns] = json.loads((here / learns / "summary.json").read_text())["test_accuracy"]
    assert accuracies["true"] > max(0.93, accuracies["false"] + 0.01)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"correlation": 0.0}, "--correlation: expected a number above 0, found 0.0."),
        ({"decorrelation": -1.0}, "--decorrelation: expected 0 or more, found -1.0."),
        ({"layer_clip": -1.0}, "--layer-clip: expected 0 or more, found -1.0."),
        ({"loss_warmup": -1}, "--loss-warmup: expected 0 or more, found -1."),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError) as error:
        make("ccl", elu_network(16, 12, 5), **changes)
    assert str(error.value) == message


def test_a_sum_that_repeats_a_branch_has_no_mirror_and_needs_none():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.context, self.last = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 1), nn.Linear(108, 5)

        def forward(self, x):
            h = self.first(x).relu()
            h = (h + self.context(F.adaptive_avg_pool2d(h, 1))).tanh()
            return self.last(h.flatten(1))

    network = as_network(Pooled(), (1, 8, 8))
    rule = CCL(network)
    rule.configure_optimizers()
    before = state(network)
    rule.training_batch(*make_batch(network))
    assert {name[:8] for name in changed(before, state(network))} == {"layers.0", "layers.1", "layers.2"}


@pytest.mark.parametrize(
    "first, features",
    [
        (nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.PixelShuffle(2), nn.ReLU()), 128),
        (nn.Sequential(nn.Unfold(3), nn.Conv1d(9, 4, 1), nn.ReLU()), 16),
    ],
)
def test_what_moves_values_without_a_way_back_is_refused(first, features):
    with pytest.raises(UserError, match=r"^Layer 1: ccl knows no way back .* to 1x4x4; use another network, or a rule"):
        CCL(nn.Sequential(first, nn.Flatten(), nn.Linear(features, 3)), input_shape=(1, 4, 4))


def test_images_are_left_out_by_the_probability_that_the_loss_takes():
    """With a sigmoid for each class, outputs of 3 are probabilities of 0.95; their softmax is a third."""
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    nn.init.zeros_(network[2].weight), nn.init.constant_(network[2].bias, 3.0)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    rule = CCL(network, loss="binary-cross-entropy", flooding=True)
    assert all(not gradient.any() for gradient in rule.forward_gradients(x, y)[1][:2])
    with pytest.raises(UserError, match=r"^--flooding: expected outputs that are prob.* found --loss squared"):
        CCL(network, loss="squared", flooding=True)
