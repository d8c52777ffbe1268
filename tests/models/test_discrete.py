"""The network with signs between layers, by every rule: Lee's equations, his baselines, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

from dtp.algorithms import BP, VanillaDTP
from dtp.cli.arguments import parse
from dtp.diagnostics.alignment import update_alignment
from dtp.errors import UserError
from dtp.models import MLP, Discrete
from dtp.models.modules import Sign
from dtp.models.options import DiscreteOptions, MLPOptions
from tests.algorithms.helpers import changed, make_trained, state
from tests.conftest import make_batch

exact = {"rtol": 1e-10, "atol": 1e-12}
# Rules of layers that have an inverse on all numbers, that settle, or of one layer alone.
REFUSE = {"gait", "chl", "generec", "hebb", "delta", "competitive", "dtp-dae"}


def network(**options) -> Discrete:
    return Discrete(DiscreteOptions(**{"widths": [12, 11], **options}), (1, 4, 4), 5)


def lee(**changes) -> VanillaDTP:
    """Lee's rule and values of the kind he has, in float64."""
    options = {"beta": 0.28, "local_loss_scale": 2.0, "noise": [0.5], **changes}
    return make_trained("vanilla-dtp", network().double(), **options).double()


def sgn(x):
    return torch.where(x > 0, 1.0, -1.0).to(x)


def affine(x, layer):
    (linear,) = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    return F.linear(x, linear.weight, linear.bias)


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_published_network(training):
    net = network().double().train(training)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    s1 = torch.tanh(affine(x.flatten(1), net[1]))
    expected = affine(torch.tanh(affine(sgn(s1), net[2])), net[3])
    torch.testing.assert_close(net(x), expected, **exact)
    # The activation itself stays continuous.
    torch.testing.assert_close(net[1](x), s1, **exact)


def test_its_usual_size_is_the_published_one():
    net = Discrete(DiscreteOptions(), (1, 28, 28), 10)
    assert net.shapes == [(1, 28, 28), (500,), (500,), (10,)]
    for n in (1, 2, 3):
        weight = next(p for p in net[n].parameters() if p.dim() == 2)
        gram = weight @ weight.t()
        assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-4)


@pytest.mark.parametrize("discretised", [[], [2], [1, 2], [1, 3]])
def test_signs_stand_where_they_are_asked_for(discretised):
    net = network(widths=[8, 7, 6], discretised=discretised)
    assert [n for n in range(1, 5) if isinstance(net[n][0], Sign)] == [n + 1 for n in discretised]


def test_without_signs_it_is_an_mlp():
    net = network(discretised=[])
    mlp = MLP(MLPOptions(widths=[12, 11], activation="tanh"), (1, 4, 4), 5)
    mlp.load_state_dict(dict(zip(mlp.state_dict(), net.state_dict().values(), strict=True)))
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(net(x), mlp(x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"discretised": [3]}, "--discretised: expected .*1 to 2, found 3"),
        ({"discretised": [0]}, "--discretised: expected .*1 to 2, found 0"),
        ({"widths": [8, 0]}, "--widths: expected values of at least 1, found 0"),
        ({"activation": "sigmoid"}, "--activation: expected .*both signs, found sigmoid"),
        ({"activation": "relu"}, "--activation: expected .*both signs, found relu"),
    ],
)
def test_what_makes_no_such_network_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        network(**options)


# --- difference target propagation ------------------------------------------------------------------------------------


def test_targets_and_updates_are_lees():
    """Lee 2018, eq. 3.24 to 3.27 and 3.15, written out."""
    rule = lee()
    net, (x, y), beta = rule.network, make_batch(rule.network), rule.options.beta
    weight, bias = (
        dict(rule.feedback[2].named_parameters())[f"operations.1.linear.{name}"] for name in ("weight", "bias")
    )

    def back(s):
        return torch.tanh(F.linear(sgn(s), weight, bias))

    s1 = torch.tanh(affine(x.flatten(1), net[1]))
    s2 = torch.tanh(affine(sgn(s1.detach()), net[2]))
    cut = s2.detach().requires_grad_()
    (error,) = torch.autograd.grad(F.cross_entropy(affine(cut, net[3]), y, reduction="sum"), cut)
    t2 = (s2 - beta * error).detach()
    t1 = (s1 + back(t2) - back(s2)).detach()
    assert not torch.equal(t1, s1), "no sign has changed: the test would show nothing"
    loss = ((s1 - t1) ** 2).sum(1).mean() + ((s2 - t2) ** 2).sum(1).mean()
    loss = loss + F.cross_entropy(affine(s2.detach(), net[3]), y)
    expected = torch.autograd.grad(loss, list(net.parameters()))
    for found, gradient in zip(rule.forward_gradients(x, y)[1], expected, strict=True):
        torch.testing.assert_close(found, gradient, **exact)


def test_feedback_learns_lees_reconstruction():
    """Lee 2018, eq. 3.27: the noisy activation from its own signs, with the feedback's own sign and tanh."""
    rule = lee()
    x, _ = make_batch(rule.network)
    a = rule.activations(x)
    noise = rule.feedback_noise(2, a)
    v = a.s[1] + noise[0]
    s2 = torch.tanh(affine(sgn(v), rule.network[2]))
    reconstructed = torch.tanh(affine(sgn(s2), rule.feedback[2]))
    expected = ((reconstructed - v) ** 2).sum(1).mean()
    torch.testing.assert_close(rule.feedback_loss(2, a, noise), expected, **exact)


# --- what differentiation makes of the signs --------------------------------------------------------------------------


def gradients(net, x, y):
    return BP(net).forward_gradients(x, y)[1]


def test_straight_through_gradients_are_those_of_a_network_whose_signs_are_the_identity_at_the_signs():
    net = network().double()
    x, y = make_batch(net)
    s1 = torch.tanh(affine(x.flatten(1), net[1]))
    s2 = torch.tanh(affine(sgn(s1), net[2]))
    error = (affine(s2, net[3]).softmax(1) - F.one_hot(y, 5)) / len(y)
    d2 = error @ net[3][0].weight * (1 - s2**2)
    d1 = d2 @ net[2][1].weight * (1 - s1**2)
    expected = [d1.t() @ x.flatten(1), d1.sum(0), d2.t() @ sgn(s1), d2.sum(0), error.t() @ s2, error.sum(0)]
    for found, gradient in zip(gradients(net, x, y), expected, strict=True):
        torch.testing.assert_close(found, gradient.detach(), **exact)


def test_with_the_true_gradient_backprop_leaves_the_first_layer_as_it_is_and_trains_the_others():
    net = network(sign_gradient="zero")
    rule = make_trained("bp", net, weight_decay=0.0, momentum=0.0)
    before = state(net)
    for _ in range(3):
        rule.training_batch(*make_batch(net))
    assert changed(before, net.state_dict()) == {key for key in before if not key.startswith("layers.0.")}


def test_target_propagation_trains_the_first_layer_whatever_differentiation_makes_of_the_signs():
    """Its gradients stop at layers: nothing of it goes through the sign."""
    results = []
    for gradient in ("straight-through", "zero"):
        torch.manual_seed(0)
        rule = lee()
        rule.network[2][0].gradient = rule.feedback[2].operations[0].function.gradient = gradient
        x, y = make_batch(rule.network)
        results.append(rule.forward_gradients(x, y)[1])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(g.abs().sum() > 0 for g in results[0])


def test_with_signs_in_the_test_only_training_is_that_of_the_continuous_network():
    torch.manual_seed(0)
    net, plain = network(sign_gradient="test-only").double(), network(discretised=[]).double()
    plain.load_state_dict(dict(zip(plain.state_dict(), net.state_dict().values(), strict=True)))
    x, y = make_batch(net)
    for found, expected in zip(gradients(net, x, y), gradients(plain, x, y), strict=True):
        torch.testing.assert_close(found, expected, **exact)
    s1 = torch.tanh(affine(x.flatten(1), net[1]))
    discrete = affine(torch.tanh(affine(sgn(s1), net[2])), net[3])
    torch.testing.assert_close(net.eval()(x), discrete, **exact)


# --- all rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vanilla-dtp", "dtp", "sdtp", "bp"])
@pytest.mark.parametrize("precision", ["64", "bf16"])
def test_it_works_in_other_precisions(name, precision):
    net = network().to(torch.float64 if precision == "64" else torch.float32)
    rule = make_trained(name, net).to(next(net.parameters()).dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits, _ = rule.training_batch(*make_batch(net))
    assert logits.isfinite().all() and all(p.isfinite().all() for p in rule.parameters())


def test_updates_are_compared_with_the_straight_through_estimator():
    rule = lee()
    found = update_alignment(rule, *make_batch(rule.network))
    assert found[3].distance < 1e-8 and found[2].distance < 1e-8
    assert 0 < found[1].angle < 120


# --- presets ----------------------------------------------------------------------------------------------------------


def test_the_presets_are_lees_code():
    config = parse(["--config", "vanilla-dtp_discrete_mnist"])
    assert config.algo.beta == pytest.approx(27.965482616 / config.data.batch_size)
    assert config.algo.lr == 0.000660055346131 and config.algo.feedback_lr == [0.000432831736994]
    assert (config.algo.noise, config.algo.noise_decay) == ([0.5], 50.0)
    # 500 of his, each one pass of either kind.
    assert config.run.max_epochs == 1000 and config.algo.schedule == "alternating"
    gradient = {"": "straight-through", "_test-only": "test-only", "_frozen": "zero"}
    rate = {"": 0.00324964515659, "_test-only": 0.00324964515659, "_frozen": 0.00254964515659}
    for variant in rate:
        config = parse(["--config", f"bp_discrete_mnist{variant}"])
        assert (config.model.sign_gradient, config.algo.lr) == (gradient[variant], rate[variant])
        assert config.algo.optimizer == "lee-rmsprop" and config.algo.weight_decay == 0
