"""Rules whose targets go straight from the output to every layer, against transcriptions of their equations."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dtp.algorithms import BP, DDTPRHL, PEPITA
from dtp.cli.arguments import parse
from dtp.errors import UserError
from dtp.feedback import direct as maps
from dtp.feedback import forward_with_context
from dtp.models import LeNet, Network
from dtp.models.modules import Residual
from dtp.models.options import LeNetOptions, ModelOptions
from tests.algorithms.helpers import angle, make, relative, same, state
from tests.algorithms.networks import Layers, isotropic, linear_network, minimise, tanh_network
from tests.conftest import make_batch

DDTP = ["ddtp-linear", "ddtp-rhl", "ddtp-control"]


# --- DFA --------------------------------------------------------------------------------------------------------------


def test_dfa_gradients_of_an_mlp_equal_those_written_by_hand():
    """(B_n e) * f'(a_n), with e the gradient of the mean cross-entropy at the output."""
    network = tanh_network(16, 12, 11, 10, 5)
    rule = make("dfa", network)
    x, y = make_batch(network)
    linears = [next(m for m in layer if isinstance(m, nn.Linear)) for layer in network]
    with torch.no_grad():
        s = [x.flatten(1)]
        for n, linear in enumerate(linears):
            a = s[-1] @ linear.weight.T + linear.bias
            s.append(a.tanh() if n < 3 else a)
        e = (s[-1].softmax(1) - F.one_hot(y, 5)) / len(y)
        expected = []
        for n in range(1, 5):
            delta = e if n == 4 else (e @ rule.feedback[n + 1].linear.weight.T) * (1 - s[n] ** 2)
            expected += [delta.T @ s[n - 1], delta.sum(0)]
    for ours, theirs in zip(rule.forward_gradients(x, y)[1], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("form", ["dense", "broadcast"])
def test_dfa_gradients_of_lenet_are_those_of_each_layer_for_the_error_sent_to_it(lenet, form):
    lenet.double()
    rule = make("dfa", lenet, dfa_form=form)
    x, y = make_batch(lenet)
    output = lenet(x)
    e = (output.softmax(1) - F.one_hot(y, 5)).detach() / len(y)
    s, expected = x, []
    for n in range(1, 5):
        z = lenet[n](s.detach())
        delta = e if n == 4 else rule.feedback[n + 1](e)
        assert delta.shape == z.shape
        expected += torch.autograd.grad(z, list(lenet[n].parameters()), delta)
        s = z
    for ours, theirs in zip(rule.forward_gradients(x, y)[1], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_output_layer_of_dfa_gets_its_true_gradient(lenet):
    lenet.double()
    x, y = make_batch(lenet)
    ours, backprop = make("dfa", lenet).forward_gradients(x, y)[1], BP(lenet).forward_gradients(x, y)[1]
    for a, b in zip(ours[-2:], backprop[-2:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    assert relative(ours[0], backprop[0]) > 0.1


def test_broadcast_map_is_the_input_gradient_of_a_convolution_for_the_repeated_error():
    """As biotorch does it: one kernel (K, C, k, k), the error the same in every place of the convolution's output."""
    conv = nn.Conv2d(3, 7, 3, stride=2, padding=1)
    broadcast = maps.BroadcastMap(5, torch.Size((3, 9, 8)), conv, torch.Size((7, 5, 4)))
    error = torch.randn(6, 5)
    kernel = broadcast.transposed.weight
    assert kernel.shape == (5, 3, 3, 3)
    repeated = error[:, :, None, None].repeat(1, 1, 5, 4)
    expected = nn.grad.conv2d_input((6, 3, 9, 8), kernel, repeated, stride=2, padding=1)
    torch.testing.assert_close(broadcast(error), expected)


def test_broadcast_error_reaches_what_a_layer_averages_by_the_gradient_of_the_mean():
    """As biotorch does it: the map goes to the input of the linear layer, behind the average."""
    layers = [nn.Sequential(nn.Conv2d(1, 3, 1), nn.Tanh())]
    layers.append(nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)))
    rule = make("dfa", Layers(layers, (1, 4, 2)).double(), dfa_form="broadcast", backward_init="xavier")
    maps_, error = rule.feedback[2], torch.randn(6, 5, dtype=torch.float64)
    assert [p.shape for p in maps_.parameters()] == [(3, 5)]
    s = torch.randn(6, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(s.mean((2, 3)), s, error @ maps_.to_mean.linear.weight.T)
    torch.testing.assert_close(maps_(error), expected)
    rule.training_batch(*make_batch(rule.network))


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(2), nn.AvgPool2d(2)])
def test_what_is_averaged_in_several_places_has_a_dense_map(pool):
    layers = [nn.Sequential(nn.Conv2d(1, 3, 1), nn.Tanh()), nn.Sequential(pool, nn.Flatten(), nn.Linear(12, 5))]
    rule = make("dfa", Layers(layers, (1, 4, 4)), dfa_form="broadcast")
    assert type(rule.feedback[2]).__name__ == "DirectMap"


def test_broadcast_form_equals_the_dense_one_with_the_matrices_that_it_stands_for(lenet):
    lenet.double()
    broadcast, dense = (make("dfa", lenet, dfa_form=form) for form in ("broadcast", "dense"))
    # Only layer 2 is a convolution; what goes to the flattened maps and to the hidden layer is dense in both.
    assert [type(broadcast.feedback[n]).__name__ for n in (2, 3, 4)] == ["BroadcastMap", "DirectMap", "DirectMap"]
    with torch.no_grad():
        for n in (2, 3, 4):
            columns = broadcast.feedback[n](torch.eye(5, dtype=torch.float64)).flatten(1)
            dense.feedback[n].linear.weight.copy_(columns.T)
    x, y = make_batch(lenet)
    for a, b in zip(*(rule.forward_gradients(x, y)[1] for rule in (broadcast, dense)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten()),
        nn.Sequential(
            Residual(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential()),
            nn.Conv2d(3, 4, 2, stride=2),
            nn.Tanh(),
            nn.Flatten(),
        ),
    ],
    ids=["smaller maps", "another operation with weights"],
)
def test_a_convolution_that_does_not_read_the_layers_input_has_a_dense_map(layer):
    layers = [nn.Sequential(nn.Conv2d(1, 3, 1), nn.Tanh()), layer, nn.Sequential(nn.Linear(16, 5))]
    rule = make("dfa", Layers(layers, (1, 4, 4)), dfa_form="broadcast")
    assert type(rule.feedback[2]).__name__ == "DirectMap"
    rule.training_batch(*make_batch(rule.network))


def test_dfa_maps_have_their_distribution_and_never_change(lenet):
    network = LeNet(LeNetOptions(channels=[8, 8], hidden=300), (1, 16, 16), 10)
    expected = {"default": (1 / 30) ** 0.5, "xavier": (2 / 310) ** 0.5, "xavier-normal": (2 / 310) ** 0.5}
    for init, deviation in expected.items():
        rule = make("dfa", network, backward_init=init)
        assert rule.feedback[4].linear.weight.std().item() == pytest.approx(deviation, rel=0.05)
        assert rule.feedback[4].linear.bias is None
    before = state(rule.feedback)
    rule.training_batch(*make_batch(network))
    assert same(before, rule.feedback.state_dict())
    assert not any(p.requires_grad for p in rule.feedback.parameters())


@pytest.mark.parametrize("form", ["dense", "broadcast"])
def test_memory_is_asked_for_before_it_is_taken(form, monkeypatch):
    network = LeNet(LeNetOptions(channels=[3, 4], hidden=8), (2, 12, 12), 4)
    # Layers 2, 3, 4 receive 3x6x6, 4x3x3 and 8 values; only the first of them is that of a convolution.
    numbers = 4 * (3 * 36 if form == "dense" else 3 * 25) + 4 * 36 + 4 * 8
    taken = []
    for cls in (maps.DirectMap, maps.BroadcastMap):
        monkeypatch.setattr(cls, "__init__", lambda *args, **kwargs: taken.append(args))
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 4 * numbers - 1}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    with pytest.raises(UserError, match="--dfa-form") as error:
        make("dfa", network, dfa_form=form)
    assert not taken
    assert f"{4 * numbers / 2**20:.1f} MiB" in str(error.value)
    monkeypatch.undo()
    pages["SC_PHYS_PAGES"] += 1
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    rule = make("dfa", network, dfa_form=form)
    assert sum(p.numel() for p in rule.feedback.parameters()) == numbers


def test_memory_of_a_network_that_no_machine_could_hold_is_refused_in_words():
    """The locally connected ImageNet network of Bartunov et al. has such maps: their run was out of memory."""

    class Huge(Network):
        def make_layers(self):
            for _ in range(4):
                yield nn.Sequential(nn.Conv2d(self.shapes[-1][0], 64, 1), nn.ELU())
            self.layers[-1].append(nn.AdaptiveAvgPool2d(1))
            self.shapes[-1] = torch.Size((64, 1, 1))
            yield nn.Sequential(nn.Flatten(), nn.Linear(64, self.num_classes))

    network = Huge(ModelOptions(), (3, 4000, 4000), 1000)
    with pytest.raises(UserError, match=r"would take 11718750\.2 MiB, more than .* --dfa-form broadcast"):
        make("dfa", network)
    assert make("dfa", network, dfa_form="broadcast").feedback[2].transposed.weight.shape == (1000, 64, 1, 1)


# --- DDTP -------------------------------------------------------------------------------------------------------------


def logits_from(network, n, v):
    """The output for inputs v of layer n."""
    for k in range(n, network.depth + 1):
        v = network[k](v)
    return v


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", DDTP)
def test_ddtp_losses_and_targets_equal_the_equations(name, samples):
    network = tanh_network(16, 12, 11, 10, 5)
    rule = make(name, network, noise=[0.3], noise_samples=samples, **({"hidden_feedback": 9} if "rhl" in name else {}))
    x, y = make_batch(network)
    a = rule.activations(x)
    s, N = a.s, 4
    t_N = s[N] - 0.1 * (s[N].softmax(1) - F.one_hot(y, 5))
    torch.testing.assert_close(rule.targets(a, y)[N], t_N)
    for n in (2, 3, 4):
        q, bias = rule.feedback[n].linear.weight, rule.feedback[n].linear.bias

        if name == "ddtp-linear":
            assert bias is None
            bias = torch.zeros(q.shape[0], dtype=q.dtype)
        else:
            assert not bias.any()
            with torch.no_grad():
                # As a bias that has learned.
                bias.normal_(std=0.3)

        def Q(o, n=n, q=q, bias=bias):
            if name != "ddtp-rhl" or n == N:
                return o @ q.T + bias
            R, r = rule.random_hidden.linear.weight, rule.random_hidden.linear.bias
            return ((o @ R.T + r).tanh() @ q.T + bias).tanh()

        targets = rule.targets(a, y)

        torch.testing.assert_close(targets[n - 1], (s[n - 1] + Q(t_N) - Q(s[N])).detach())
        (eps,) = noise = rule.feedback_noise(n, a)
        assert eps.shape == (6 * samples, *network.shapes[n - 1])
        v = s[n - 1].repeat(samples, 1) + eps
        o = logits_from(network, n, v)
        if name == "ddtp-control":
            expected = ((Q(o) - v) ** 2).mean()
        else:
            expected = (((s[n - 1] - Q(s[N])).repeat(samples, 1) + Q(o) - v) ** 2).mean() / 0.3**2
        torch.testing.assert_close(rule.feedback_loss(n, a, noise), expected)


def test_random_hidden_layer_of_rhl_is_far_from_linear_as_in_the_authors_code():
    """R and r as torch's nn.Linear draws them: uniform within 1 / sqrt(10), whose deviation is .183."""
    network = tanh_network(16, 12, 10)
    rule = make("ddtp-rhl", network, hidden_feedback=4000)
    bound = 10**-0.5
    for drawn in (rule.random_hidden.linear.weight, rule.random_hidden.linear.bias):
        assert drawn.abs().max() <= bound and drawn.abs().max() > 0.99 * bound
        assert drawn.std().item() == pytest.approx(0.1826, rel=0.03)
        assert abs(drawn.mean()) < 0.01
    # Glorot's normal would have a deviation of .022.
    assert rule.feedback[2].linear.weight.std().item() == pytest.approx((2 / 22) ** 0.5, rel=0.3)


def test_maps_of_the_control_have_a_bias_where_they_lead_to_a_fully_connected_layer(lenet):
    rule = make("ddtp-control", lenet)
    assert [rule.feedback[n].linear.bias is not None for n in (2, 3, 4)] == [False, False, True]
    assert not rule.feedback[4].linear.bias.any()
    rule.training_batch(*make_batch(lenet))
    assert rule.feedback[4].linear.bias.any()


def test_ddtp_maps_of_lenet_have_the_shapes_of_the_maps_that_they_lead_to(lenet):
    lenet.double()
    for name in DDTP:
        rule = make(name, lenet)
        x, y = make_batch(lenet)
        a = rule.activations(x)
        targets = rule.targets(a, y)
        assert [targets[n].shape[1:] for n in (1, 2, 3)] == [lenet.shapes[n] for n in (1, 2, 3)]
        # Its noisy passes pool by themselves.
        (eps,) = noise = rule.feedback_noise(2, a)
        v = a.s[1] + eps
        o = v
        for n in (2, 3, 4):
            o = forward_with_context(lenet[n], o)[0]
        direct = rule.direct(2, o)
        expected = direct - v if name == "ddtp-control" else a.s[1] + direct - rule.direct(2, a.s[4]) - v
        scale = 1 if name == "ddtp-control" else 0.08**2
        torch.testing.assert_close(rule.feedback_loss(2, a, noise), (expected**2).mean() / scale)


@pytest.mark.parametrize("penalty", [0.0, 0.02])
def test_linear_maps_tend_to_the_damped_pseudo_inverse_of_the_jacobian(penalty):
    """Regression of eps on J eps: Q = J^T (J J^T + lam I)^-1, lam from the weight decay of Q."""
    network = linear_network(9, 8, 7, 6, 3)
    rule = make("ddtp-linear", network, noise=[0.3])
    jacobian = torch.eye(3, dtype=torch.float64)
    for n in (4, 3, 2):
        jacobian = jacobian @ network[n][-1].weight.detach()
        d = jacobian.shape[1]
        a = rule.activations(torch.randn(d, 1, 1, 9, dtype=torch.float64))
        noise = (isotropic(d, 0.3),)
        q = rule.feedback[n].linear.weight
        minimise(lambda n=n, a=a, noise=noise: rule.feedback_loss(n, a, noise), [q], penalty)
        # The loss is a mean over d features: |Q J - I|^2 / d.
        damping = penalty * d / 2 * torch.eye(3, dtype=torch.float64)
        expected = jacobian.T @ torch.linalg.inv(jacobian @ jacobian.T + damping)
        assert relative(q.detach(), expected) < 1e-5
        if not penalty:
            assert relative(q.detach(), torch.linalg.pinv(jacobian)) < 1e-5
            x, y = make_batch(network)
            a = rule.activations(x)
            targets = rule.targets(a, y)
            step = (targets[4] - a.s[4]) @ torch.linalg.pinv(jacobian).T
            torch.testing.assert_close(targets[n - 1] - a.s[n - 1], step, rtol=1e-3, atol=1e-6)


def test_training_as_in_a_run_comes_to_the_pseudo_inverse_too():
    network = linear_network(9, 6, 5, 3).float()
    rule = make("ddtp-linear", network, feedback_iterations=[800], noise=[0.1], feedback_lr=[0.02])
    x, _ = make_batch(network, 64)
    for rate in (0.02, 0.002):
        for optimizer in rule.feedback_optimizers.values():
            optimizer.param_groups[0]["lr"] = rate
        rule.feedback_phase(rule.activations(x))
    jacobian = network[3][-1].weight.detach()
    for n in (3, 2):
        expected = torch.linalg.pinv(jacobian)
        assert angle(rule.feedback[n].linear.weight.detach(), expected) < 5
        jacobian = jacobian @ network[n - 1][-1].weight.detach()


def test_the_control_finds_another_map_which_also_has_to_bring_back_the_activation_itself():
    """Without the difference it regresses s + eps on the whole output: for small noise, s on s_N."""
    network = linear_network(9, 8, 7, 6, 3)
    x, _ = make_batch(network, 40)
    found = {}
    for name in ("ddtp-linear", "ddtp-control"):
        rule = make(name, network, noise=[0.001])
        a = rule.activations(x)
        noise = rule.feedback_noise(4, a)
        minimise(lambda rule=rule, a=a, noise=noise: rule.feedback_loss(4, a, noise), [rule.feedback[4].linear.weight])
        found[name] = rule.feedback[4].linear.weight.detach()
    a = rule.activations(x)
    regression = torch.linalg.lstsq(a.s[4], a.s[3]).solution.T
    assert relative(found["ddtp-control"], regression) < 0.02
    assert angle(found["ddtp-linear"], torch.linalg.pinv(network[4][-1].weight.detach())) < 30
    assert relative(found["ddtp-control"], found["ddtp-linear"]) > 0.5


def test_random_hidden_layer_is_shared_by_all_layers_and_never_trained(mlp):
    rule = make("ddtp-rhl", mlp, hidden_feedback=9, feedback_iterations=[3])
    before = state(rule.random_hidden)
    learned = state(rule.feedback)
    for _ in range(3):
        rule.training_batch(*make_batch(mlp))
    assert same(before, rule.random_hidden.state_dict())
    unchanged = [key for key, value in rule.feedback.state_dict().items() if torch.equal(learned[key], value)]
    # The last map is affine, so that differences do not see its bias.
    assert unchanged == [key for key in learned if key.endswith(f"{mlp.depth}.linear.bias")]
    assert len(unchanged) == 1
    assert not any(p.requires_grad for p in rule.random_hidden.parameters())
    trained = {id(p) for o in rule.feedback_optimizers.values() for group in o.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in rule.random_hidden.parameters()}
    # It is saved, for a resumed run must have the same one.
    assert any(key.startswith("random_hidden") for key in rule.state_dict())


def test_ddtp_linear_with_the_maps_of_dfa_left_as_they_are_is_dfa(lenet):
    """How the authors of DDTP define DFA."""
    lenet.double()
    dfa = make("dfa", lenet)
    ddtp = make("ddtp-linear", lenet, beta=1.0, local_loss_scale=1.0, feedback_iterations=[0])
    ddtp.feedback.load_state_dict(dfa.feedback.state_dict())
    x, y = make_batch(lenet)
    for a, b in zip(ddtp.forward_gradients(x, y)[1], dfa.forward_gradients(x, y)[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", DDTP)
def test_direct_maps_have_no_transpose_to_start_from(name):
    """There is no forward map that they could be the transpose of; the option must not be taken in silence."""
    with pytest.raises(UserError, match="--feedback-init"):
        parse(["--algo", name, "--feedback-init", "symmetric"])


@pytest.mark.parametrize("name", ["dfa", *DDTP])
def test_a_network_of_one_layer_learns_without_maps(name):
    network = linear_network(9, 3)
    rule = make(name, network)
    before = state(network)
    rule.training_batch(*make_batch(network))
    assert rule.feedback.numbers == [] and not same(before, network.state_dict())


@pytest.mark.parametrize("rule", [DDTPRHL, PEPITA])
def test_complex_weights_are_refused_by_rules_with_maps_from_the_output(rule):
    class Lengths(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 5, dtype=torch.complex64), nn.Linear(5, 3)

        def forward(self, x):
            return self.last(self.first(x).abs())

    with pytest.raises(UserError, match=r"^Maps from the output .* found a network with complex weights; use bp or fa"):
        rule(Lengths(), input_shape=(6,))
