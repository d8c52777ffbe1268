"""Steps without the optimizer's overhead against the optimizer's own: equal bit for bit."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RMSprop
from torch.optim.optimizer import register_optimizer_step_post_hook

from dtp.feedback.steppers import stepper

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]

PLAIN: dict[str, MakeOptimizer] = {
    "sgd": lambda ps: SGD(ps, 0.1),
    "decay": lambda ps: SGD(ps, 0.1, weight_decay=0.03),
    "momentum": lambda ps: SGD(ps, 0.1, 0.9),
    "momentum-decay": lambda ps: SGD(ps, 0.1, 0.9, weight_decay=0.03),
    "foreach": lambda ps: SGD(ps, 0.1, 0.9, weight_decay=0.03, foreach=True),
    "lr-tensor": lambda ps: SGD(ps, torch.tensor(0.1), 0.9, weight_decay=0.03),
}
OTHERS: dict[str, MakeOptimizer] = {
    "nesterov": lambda ps: SGD(ps, 0.1, 0.9, nesterov=True),
    "dampening": lambda ps: SGD(ps, 0.1, 0.9, dampening=0.3),
    "maximize": lambda ps: SGD(ps, 0.1, 0.9, weight_decay=0.03, maximize=True),
    "groups": lambda ps: SGD([{"params": ps[:1], "lr": 0.2}, {"params": ps[1:], "momentum": 0.5}], 0.1, 0.9),
    "adam": lambda ps: Adam(ps, 0.1, weight_decay=0.03),
    "amsgrad": lambda ps: Adam(ps, 0.1, amsgrad=True),
    "rmsprop": lambda ps: RMSprop(ps, 0.1, momentum=0.9),
}
every = pytest.mark.parametrize("name", {**PLAIN, **OTHERS})


def make(name: str) -> Optimizer:
    return {**PLAIN, **OTHERS}[name](parameters())


def parameters() -> list[nn.Parameter]:
    """Weights of three shapes, one of them channels last, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in [(5, 4, 3, 3), (6, 4, 3, 2), (7,)]]
    weights[1] = weights[1].contiguous(memory_format=torch.channels_last)
    return [nn.Parameter(w) for w in weights]


def of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def gradients(k: int, optimizer: Optimizer) -> list[Tensor]:
    """Gradients of step k."""
    generator = torch.Generator().manual_seed(k)
    return [torch.randn(p.shape, generator=generator) for p in of(optimizer)]


def own_steps(optimizer: Optimizer, steps: range) -> None:
    for k in steps:
        for p, gradient in zip(of(optimizer), gradients(k, optimizer), strict=True):
            p.grad = gradient
        optimizer.step()
        optimizer.zero_grad()


def quick_steps(optimizer: Optimizer, steps: range) -> None:
    step = stepper(optimizer)
    for k in steps:
        step(gradients(k, optimizer))


def assert_same_weights(a: Optimizer, b: Optimizer) -> None:
    assert all(torch.equal(p, q) for p, q in zip(of(a), of(b), strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(of(a), parameters(), strict=True)), "no step was taken"


def assert_same_state(a: Optimizer, b: Optimizer) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for i, state in theirs["state"].items():
        assert ours["state"][i].keys() == state.keys()
        assert all(torch.equal(ours["state"][i][key], value) for key, value in state.items())


@every
def test_steps_are_the_optimizers_own(name):
    own, quick = make(name), make(name)
    own_steps(own, range(6))
    quick_steps(quick, range(6))
    assert_same_weights(quick, own)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_fused_steps_are_those_of_the_unfused_optimizer_however_gradients_lie_in_memory(kind):
    """By itself a fused step takes weight and gradient in the order in memory, which differs here for one weight."""
    unfused, fused = (kind(parameters(), 0.1, weight_decay=0.03, fused=value) for value in (False, True))
    own_steps(unfused, range(6))
    quick_steps(fused, range(6))
    for a, b in zip(of(fused), of(unfused), strict=True):
        torch.testing.assert_close(a, b)


@every
def test_state_is_where_the_optimizer_keeps_it(name):
    own, quick = make(name), make(name)
    own_steps(own, range(4))
    quick_steps(quick, range(4))
    assert_same_state(quick, own)


@every
@pytest.mark.parametrize("first, second", [(quick_steps, own_steps), (own_steps, quick_steps), (quick_steps,) * 2])
def test_state_passes_through_a_checkpoint_in_the_middle(name, first, second):
    expected = make(name)
    own_steps(expected, range(7))
    before, after = make(name), make(name)
    first(before, range(3))
    with torch.no_grad():
        for p, q in zip(of(after), of(before), strict=True):
            p.copy_(q)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    second(after, range(3, 7))
    assert_same_weights(after, expected)
    assert_same_state(after, expected)


def test_one_stepper_follows_a_state_that_is_loaded_and_a_rate_that_changes():
    """Its parameters are fixed when it is made; all else is read from the optimizer in every step."""
    expected, optimizer = make("momentum"), make("momentum")
    own_steps(expected, range(3))
    state = copy.deepcopy(expected.state_dict())
    step = stepper(optimizer)
    step(gradients(9, optimizer))
    with torch.no_grad():
        for p, q in zip(of(optimizer), of(expected), strict=True):
            p.copy_(q)
    optimizer.load_state_dict(state)
    for one in (expected, optimizer):
        one.param_groups[0].update(lr=0.02, momentum=0.5, weight_decay=0.1)
    own_steps(expected, range(3, 6))
    for k in range(3, 6):
        step(gradients(k, optimizer))
    assert_same_weights(optimizer, expected)


@every
def test_hooks_of_the_optimizer_run_with_the_gradients_in_place(name):
    expected, optimizer = make(name), make(name)
    events = []

    def halve(optimizer, args, kwargs):
        events.append("pre")
        for p in of(optimizer):
            p.grad.mul_(0.5)

    for one in (expected, optimizer):
        one.register_step_pre_hook(halve)
        one.register_step_post_hook(lambda optimizer, args, kwargs: events.append("post"))
    own_steps(expected, range(3))
    quick_steps(optimizer, range(3))
    assert events == ["pre", "post"] * 6
    assert_same_weights(optimizer, expected)


def test_hooks_of_all_optimizers_run():
    seen = []
    handle = register_optimizer_step_post_hook(lambda optimizer, args, kwargs: seen.append(optimizer))
    try:
        optimizer = make("momentum")
        quick_steps(optimizer, range(3))
    finally:
        handle.remove()
    assert seen == [optimizer] * 3


def test_subclass_of_sgd_takes_its_own_steps():
    class Halving(SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for p in of(self):
                p.mul_(0.5)

    optimizer = Halving(parameters(), 0.1)
    quick_steps(optimizer, range(1))
    for p, first in zip(of(optimizer), parameters(), strict=True):
        assert torch.equal(p, 0.5 * first)


@every
def test_no_gradient_is_left_behind(name):
    optimizer = make(name)
    quick_steps(optimizer, range(2))
    assert all(p.grad is None for p in of(optimizer))


@every
def test_gradients_given_stay_as_they_are(name):
    """They may be views of tensors that are still needed."""
    optimizer = make(name)
    given = gradients(0, optimizer)
    kept = [gradient.clone() for gradient in given]
    step = stepper(optimizer)
    step(given)
    step(gradients(1, optimizer))  # nor may the momentum be kept in them
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_another_number_of_gradients_is_refused(name):
    optimizer = make(name)
    with pytest.raises(ValueError, match="zip"):
        stepper(optimizer)(gradients(0, optimizer)[:2])


@pytest.mark.parametrize("name", ["momentum-decay", "adam"])
def test_graphs_are_not_recorded(name):
    """Weights stay leaves that ask for gradients, also where steps are taken with gradients enabled."""
    optimizer = make(name)
    quick_steps(optimizer, range(2))
    assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in of(optimizer))
    assert all(
        not value.requires_grad
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    )
