"""Steps without the optimizer's overhead against the optimizer's own: plain ones of SGD are equal bit for bit."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RMSprop
from torch.optim.optimizer import register_optimizer_step_post_hook

from dtp.feedback.steppers import in_one_pass, set_gradients, stepper

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
            p.grad = gradient if p.requires_grad else None
        optimizer.step()
        optimizer.zero_grad()


def quick_steps(optimizer: Optimizer, steps: range) -> None:
    step = stepper(optimizer)
    for k in steps:
        step(gradients(k, optimizer))


def one_pass_steps(optimizer: Optimizer, steps: range) -> None:
    for k in steps:
        with in_one_pass([optimizer]):
            trained = [(p, g) for p, g in zip(of(optimizer), gradients(k, optimizer), strict=True) if p.requires_grad]
            set_gradients([optimizer], [p for p, _ in trained], [g for _, g in trained])
            optimizer.step()
        optimizer.zero_grad()


def assert_same(ours: Tensor, theirs: Tensor, optimizer: Optimizer) -> None:
    """Of the plain SGD bit for bit, else but for what a step in one pass rounds differently."""
    exact = type(optimizer) is SGD and len(optimizer.param_groups) == 1
    torch.testing.assert_close(ours, theirs, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6)


def assert_same_weights(a: Optimizer, b: Optimizer) -> None:
    for p, q in zip(of(a), of(b), strict=True):
        assert_same(p, q, a)
    assert not any(torch.equal(p, q) for p, q in zip(of(a), parameters(), strict=True)), "no step was taken"


def assert_same_state(a: Optimizer, b: Optimizer) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for i, state in theirs["state"].items():
        assert ours["state"][i].keys() == state.keys()
        for key, value in state.items():
            assert_same(ours["state"][i][key], value, a)


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


def kinds_of_steps(optimizer: Optimizer) -> list[bool | None]:
    """By group, whether its steps are fused; also that nothing of it is left behind."""
    with in_one_pass([optimizer]):
        found = [group["fused"] for group in optimizer.param_groups]
    assert all(group["fused"] is None for group in optimizer.param_groups)
    return found


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_steps_on_a_cpu_go_over_the_weights_once(kind):
    optimizer = kind([{"params": part} for part in (parameters()[:1], parameters()[1:])], 0.1)
    assert kinds_of_steps(optimizer) == [True, True]
    quick_steps(optimizer, range(1))
    assert kinds_of_steps(optimizer) == [True, True]


@pytest.mark.parametrize("name", ["foreach", "lr-tensor", "nesterov", "amsgrad", "maximize", "rmsprop"])
def test_steps_of_another_kind_are_left_as_they_are(name):
    optimizer = make(name)
    with in_one_pass([optimizer]):
        assert not optimizer.param_groups[0].get("fused")


def test_an_optimizer_with_hooks_that_may_change_gradients_is_left_as_it_is():
    optimizer = make("adam")
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: None)
    assert kinds_of_steps(optimizer) == [None]


def test_momenta_of_some_weights_only_and_complex_weights_are_stepped_as_usual():
    """Torch ends a fused step of either in an error."""
    some, expected = make("momentum"), make("momentum")
    for one in (some, expected):
        of(one)[1].requires_grad_(False)
        (own_steps if one is expected else one_pass_steps)(one, range(2))
        of(one)[1].requires_grad_(True)
    one_pass_steps(some, range(2, 4))
    own_steps(expected, range(2, 4))
    for p, q in zip(of(some), of(expected), strict=True):
        torch.testing.assert_close(p, q)
    assert kinds_of_steps(Adam([nn.Parameter(torch.ones(2, dtype=torch.complex64))], 0.1)) == [None]


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_state_of_another_layout_than_its_weight_is_read_by_its_places(kind):
    """A checkpoint keeps how its state lay in memory, which fused steps would take for the order of the weight."""
    made = [kind(parameters()[:1], 0.1, betas=(0.9, 0.99)) if kind is Adam else kind(parameters()[:1], 0.1, 0.9)]
    made.append(copy.deepcopy(made[0]))
    for one in made:
        own_steps(one, range(1))
    for state in made[1].state.values():
        for name, value in state.items():
            state[name] = value.contiguous(memory_format=torch.channels_last) if value.dim() else value
    for one in made:
        one_pass_steps(one, range(1, 3))
    torch.testing.assert_close(of(made[1])[0], of(made[0])[0])


def test_a_step_that_ends_in_an_error_leaves_the_optimizer_as_it_was():
    optimizer = make("adam")
    with pytest.raises(RuntimeError), in_one_pass([optimizer]):
        raise RuntimeError
    assert optimizer.param_groups[0]["fused"] is None


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", [SGD, Adam])
def test_weights_that_are_a_part_of_another_tensor_are_stepped_by_their_places(kind, momentum):
    """A fused step would go on into what lies between them, and beyond."""
    whole = torch.arange(24.0).reshape(4, 6)
    ours, expected = (
        kind([nn.Parameter(part)], 0.1, **({"momentum": momentum} if kind is SGD else {"betas": (momentum, 0.9)}))
        for part in (whole[:, :3], whole[:, :3].clone())
    )
    for one, steps in ((ours, one_pass_steps), (expected, own_steps)):
        steps(one, range(3))
    torch.testing.assert_close(of(ours)[0], of(expected)[0])
    assert torch.equal(whole[:, 3:], torch.arange(24.0).reshape(4, 6)[:, 3:])


def test_momenta_of_some_single_numbers_are_stepped_as_usual():
    numbers = [nn.Parameter(torch.tensor(value)) for value in (1.0, 2.0)]
    optimizer = SGD(numbers, 0.5, 0.5)
    for trained in (numbers[:1], numbers):
        with in_one_pass([optimizer]):
            set_gradients([optimizer], trained, [torch.tensor(1.0)] * len(trained))
            optimizer.step()
        optimizer.zero_grad()
    assert [p.item() for p in numbers] == [1 - 0.5 - 0.75, 2 - 0.5]


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
