"""Optimizers by name, settings of single layers, and schedules."""

import math
import re

import pytest
import torch
from torch import nn

from dtp.algorithms import BP
from dtp.algorithms.optimizers import LeeRMSprop, check_rates, make_optimizer, make_schedule
from dtp.algorithms.options import AlgorithmOptions
from dtp.cli.arguments import parse
from dtp.errors import UserError
from dtp.models import MLP, as_network
from dtp.models.options import MLPOptions
from tests.algorithms.helpers import make, state
from tests.conftest import make_batch


def gradients(count, shape=(5, 3)):
    generator = torch.Generator().manual_seed(4)
    # Of very different sizes, so that epsilon matters for some and not for others.
    sizes = 10.0 ** torch.arange(-4, 1)[:, None]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) * sizes for _ in range(count)]


def run(optimizer, parameter, given):
    for gradient in given:
        parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("alpha, momentum, eps, decay", [(0.95, 0.9, 1e-3, 0.0), (0.9, 0.5, 1e-2, 0.1)])
def test_lee_rmsprop_equals_the_loop_of_the_authors_code(alpha, momentum, eps, decay):
    p = torch.ones(5, 3, dtype=torch.float64)
    parameter = torch.nn.Parameter(p.clone())
    given = gradients(20)
    run(LeeRMSprop([parameter], 0.03, alpha, momentum, eps, decay), parameter, given)
    m = v = u = torch.zeros_like(p)
    for g in given:
        g = g + decay * p
        m = alpha * m + (1 - alpha) * g
        v = alpha * v + (1 - alpha) * g**2
        u = momentum * u - 0.03 * g / torch.sqrt(v - m**2 + eps)
        p = p + u
    torch.testing.assert_close(parameter.detach(), p, rtol=1e-12, atol=1e-12)


def test_lee_rmsprop_is_sgd_for_small_gradients_and_has_its_epsilon_within_the_root():
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    run(LeeRMSprop([parameter], 0.03, momentum=0.0), parameter, [torch.full((1,), 1e-6, dtype=torch.float64)])
    assert parameter.item() == pytest.approx(-0.03 * 1e-6 / math.sqrt(1e-3), rel=1e-6)


def test_lee_rmsprop_usual_settings_are_the_codes():
    optimizer = make_optimizer("lee-rmsprop", [torch.nn.Parameter(torch.zeros(1))], 0.1, 0.9, 0.0)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["alpha"], group["momentum"], group["eps"]) == (0.1, 0.95, 0.9, 1e-3)


def test_lee_rmsprop_takes_no_step_for_a_parameter_without_gradient_and_returns_what_the_closure_does():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = LeeRMSprop([parameter], 0.1)
    assert optimizer.step(lambda: 7) == 7
    assert torch.equal(parameter, torch.ones(2)) and not optimizer.state


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop", "lee-rmsprop"])
def test_a_saved_and_loaded_optimizer_goes_on_as_if_nothing_had_been(name):
    given = gradients(10)

    def fresh():
        parameter = torch.nn.Parameter(torch.ones(5, 3, dtype=torch.float64))
        return parameter, make_optimizer(name, [parameter], 0.01, 0.9, 0.01, 0.97, 1e-4)

    whole, optimizer = fresh()
    run(optimizer, whole, given)
    first, optimizer = fresh()
    run(optimizer, first, given[:4])
    second, resumed = fresh()
    second.data.copy_(first.data)
    resumed.load_state_dict(optimizer.state_dict())
    run(resumed, second, given[4:])
    assert torch.equal(second, whole)


@pytest.mark.parametrize(
    "name, given, usual",
    [
        ("adam", {"betas": (0.8, 0.95), "eps": 1e-3}, {"betas": (0.8, 0.999), "eps": 1e-8}),
        ("rmsprop", {"alpha": 0.95, "momentum": 0.8, "eps": 1e-3}, {"alpha": 0.99, "momentum": 0.8, "eps": 1e-8}),
        ("lee-rmsprop", {"alpha": 0.95, "momentum": 0.8, "eps": 1e-3}, {"alpha": 0.95, "momentum": 0.8, "eps": 1e-3}),
        ("sgd", {"momentum": 0.8}, {"momentum": 0.8}),
    ],
)
def test_betas_and_epsilons_of_the_command_line_reach_both_kinds_of_optimizers(mlp, name, given, usual):
    words = f"--algo vanilla-dtp --optimizer {name} --feedback-optimizer {name} --momentum 0.8 --feedback-momentum 0.8"
    words += " --lr 0.02 --feedback-lr 0.03 0.04 --weight-decay 0.1 --feedback-weight-decay 0.2"
    set_too = "--beta2 0.95 --eps 1e-3 --feedback-beta2 0.95 --feedback-eps 1e-3"
    for more, expected in (("", usual), ("" if name == "sgd" else set_too, given)):
        options = parse([*words.split(), *more.split()]).algo
        rule = make("vanilla-dtp", mlp, **vars(options))
        optimizers = [rule.forward_optimizer, *rule.feedback_optimizers.values()]
        assert [o.param_groups[0]["lr"] for o in optimizers] == [0.02, 0.03, 0.04]
        assert [o.param_groups[0]["weight_decay"] for o in optimizers] == [0.1, 0.2, 0.2]
        for optimizer in optimizers:
            assert {key: optimizer.param_groups[0][key] for key in expected} == expected


def test_rates_and_epsilons_of_single_layers_reach_their_groups(mlp):
    rates, epsilons = [0.1, 0.2, 0.3, 0.4], [1e-1, 1e-2, 1e-3, 1e-4]
    rule = make("bp", mlp, optimizer="adam", layer_lr=rates, eps=epsilons)
    groups = rule.forward_optimizer.param_groups
    assert [group["lr"] for group in groups] == rates and [group["eps"] for group in groups] == epsilons
    for layer, group in zip(mlp, groups, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in layer.parameters()]
    # One of them for all, one of them left out.
    groups = make("bp", mlp, optimizer="adam", layer_lr=rates, eps=[1e-2]).forward_optimizer.param_groups
    assert [(group["lr"], group["eps"]) for group in groups] == [(rate, 1e-2) for rate in rates]
    groups = make("bp", mlp, optimizer="adam", lr=0.5, eps=epsilons).forward_optimizer.param_groups
    assert [(group["lr"], group["eps"]) for group in groups] == [(0.5, eps) for eps in epsilons]
    (group,) = make("bp", mlp, optimizer="adam", eps=[1e-2]).forward_optimizer.param_groups
    assert group["eps"] == 1e-2


def test_layers_move_at_their_own_rates(mlp):
    x, y = make_batch(mlp)
    rule = make("bp", mlp, layer_lr=[0.1, 0.2, 0.3, 0.4], momentum=0.0, weight_decay=0.0)
    expected = rule.forward_gradients(x, y)[1]
    before = state(mlp)
    rule.training_batch(x, y)
    for i, (name, p) in enumerate(mlp.named_parameters()):
        rate = 0.1 * (1 + int(name.split(".")[1]))
        torch.testing.assert_close(p.detach(), before[name] - rate * expected[i])


def test_frozen_layers_have_no_rate(mlp):
    mlp[2].requires_grad_(False)
    rule = make("bp", mlp, layer_lr=[0.1, 0.3, 0.4])
    assert [group["lr"] for group in rule.forward_optimizer.param_groups] == [0.1, 0.3, 0.4]
    with pytest.raises(UserError, match="--layer-lr: expected 3 values"):
        make("bp", mlp, layer_lr=[0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("option", ["layer_lr", "eps"])
def test_layers_that_are_frozen_after_the_rule_was_made_do_not_pass_their_values_on(mlp, option):
    rule = make("bp", mlp, optimizer="adam", **{option: [0.1, 0.2, 0.3, 0.4]})
    mlp[1].requires_grad_(False)
    with pytest.raises(UserError, match="expected 3 values, one for each layer with trained weights"):
        rule.configure_optimizers()


@pytest.mark.parametrize(
    "changes, flag",
    [
        ({"layer_lr": [0.1]}, "--layer-lr"),
        ({"layer_lr": [0.1, 0.2, 0.0, 0.1]}, "--layer-lr"),
        ({"eps": [1e-3, 1e-3]}, "--eps"),
        ({"eps": [0.0]}, "--eps"),
        ({"eps": [float("inf")]}, "--eps"),
        ({"beta2": 1.0}, "--beta2"),
        ({"beta2": -0.1}, "--beta2"),
    ],
)
def test_values_out_of_range_are_refused_by_name(mlp, changes, flag):
    with pytest.raises(UserError, match=flag + ":"):
        make("bp", mlp, **changes)


def rates(options, epochs, groups):
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in groups]
    optimizer = make_optimizer("sgd", parameters, groups[0], 0.0, 0.0)
    schedule = make_schedule(optimizer, options, epochs)
    found = []
    for _ in range(epochs):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


class Scaled(MLP):
    """With a weight that is in none of its layers."""

    def __init__(self, *given, **kwargs):
        super().__init__(*given, **kwargs)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * super().forward(x)


@pytest.mark.parametrize("name", ["bp", "fa"])
@pytest.mark.parametrize("rates", [[], [0.1, 0.2]])
def test_weights_beside_the_layers_take_the_steps_of_their_gradients(name, rates):
    network = Scaled(MLPOptions(widths=[6]), (1, 4, 4), 5)
    rule = make(name, network, lr=0.3, layer_lr=rates, momentum=0.0, weight_decay=0.0)
    x, y = make_batch(network)
    output = MLP.forward(network, x).detach()
    scale = torch.ones((), requires_grad=True)
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(scale * output, y), scale)
    rule.training_batch(x, y)
    assert gradient != 0
    torch.testing.assert_close(network.scale.detach(), 1 - 0.3 * gradient)


def test_schedules_scale_every_group_from_its_own_rate():
    groups = [0.4, 0.04]
    constant = rates(AlgorithmOptions(lr_schedule="constant"), 4, groups)
    assert constant == [groups] * 4
    step = rates(AlgorithmOptions(lr_schedule="step", lr_period=2, lr_gamma=0.1), 6, groups)
    for epoch, found in enumerate(step):
        assert found == pytest.approx([lr * 0.1 ** (epoch // 2) for lr in groups])
    cosine = rates(AlgorithmOptions(lr_schedule="cosine", lr_min=1e-3), 5, groups)
    for epoch, found in enumerate(cosine):
        expected = [1e-3 + (lr - 1e-3) * (1 + math.cos(math.pi * epoch / 5)) / 2 for lr in groups]
        assert found == pytest.approx(expected)


def test_a_step_schedule_drops_at_its_milestones_whatever_the_length():
    options = AlgorithmOptions(lr_schedule="step", lr_milestones=[2, 3], lr_gamma=0.1)
    for epochs in (3, 6):
        found = rates(options, epochs, [0.4, 0.04])
        drops = [0, 0, 1, 2, 2, 2][:epochs]
        assert [pytest.approx([0.4 * 0.1**n, 0.04 * 0.1**n]) for n in drops] == found


@pytest.mark.parametrize(
    "options, found",
    [
        ({"lr_schedule": "cosine", "lr_milestones": [1]}, "found cosine"),
        ({"lr_schedule": "step", "lr_milestones": [1], "lr_period": 3}, "found --lr-period 3"),
        ({"lr_schedule": "step", "lr_milestones": [2, 1]}, "ascending order, found [2, 1]"),
        ({"lr_schedule": "step", "lr_milestones": [1, 1]}, "ascending order, found [1, 1]"),
    ],
)
def test_milestones_that_would_have_no_effect_are_refused(options, found):
    with pytest.raises(UserError, match=rf"^--lr-milestones: expected .*{re.escape(found)}\.$"):
        check_rates(AlgorithmOptions(**options), [1])


def test_cosine_of_another_period_rises_again_after_it():
    """The published runs have 90 epochs at a period of 85."""
    found = [rate for (rate,) in rates(AlgorithmOptions(lr_schedule="cosine", lr_period=85), 91, [0.05])]
    assert found[85] == pytest.approx(1e-5) and found[90] == pytest.approx(4.4e-4, rel=0.02)


def test_rates_by_layer_that_an_optimizer_of_ones_own_leaves_out_are_refused():
    class Own(BP):
        def configure_optimizers(self):
            weights = self.forward_groups() if self.uses_groups else self.network.parameters()
            return torch.optim.SGD(weights, lr=0.5)

    rule = Own(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), layer_lr=[0.1, 0.2])
    rule.uses_groups = True
    rule.configure_optimizers()
    assert [group["lr"] for group in rule.forward_optimizer.param_groups] == [0.1, 0.2]
    rule.uses_groups = False
    with pytest.raises(UserError, match=r"^--layer-lr: expected none beside configure_optimizers of Own.* rate 0\.5,"):
        rule.configure_optimizers()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sparse_gradients_of_embeddings_are_stepped_as_dense_ones_are(momentum):
    """No fused step takes them."""

    def weights(sparse):
        torch.manual_seed(0)
        layers = nn.Embedding(10, 3, sparse=sparse), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)
        rule = BP(as_network(nn.Sequential(*layers), (4,)), optimizer="sgd", momentum=momentum, weight_decay=0.0)
        rule.configure_optimizers()
        for _ in range(3):
            rule.training_batch(torch.randint(10, (8, 4)), torch.randint(3, (8,)))
        return rule.network.state_dict()

    dense = weights(False)
    for name, value in weights(True).items():
        torch.testing.assert_close(value, dense[name])
