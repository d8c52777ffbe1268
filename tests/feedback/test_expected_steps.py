"""Steps on the mean of L-DRL over its noise: the closed form against steps one by one, and what a phase computes."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dtp.feedback import (
    FeedbackProblem,
)
from dtp.feedback.expected import Moments
from dtp.feedback.expected_steps import train_in_expectation
from dtp.feedback.momentum import momentum_moves
from dtp.feedback.steppers import steps_of
from tests.feedback.test_expected import KNOWN, Clean

from .helpers import Task, relative_difference

MOMENTA = [0.0, 0.5, 0.9, 0.99]
STEPS = [1, 2, 7, 55, 400]


def rates(momentum: float) -> list[float]:
    """lr h: nothing, slow, critically damped and next to it, oscillating, critical again, and with changing sign."""
    critical = (1 - momentum**0.5) ** 2, (1 + momentum**0.5) ** 2
    near = [c * (1 + d) for c in critical for d in (0, 1e-15, -1e-15, 1e-12, -1e-12, 1e-6, -1e-6)]
    # From 2 (1 + mu) on they diverge.
    beyond = (critical[1] + 2 * (1 + momentum)) / 2 if momentum else 1.9
    return [0.0, 1e-16, 1e-12, 1e-8, 1e-3, *near, 0.02, 0.3, 1.0, 1 + momentum, beyond]


class Known(Clean):
    """A linear layer whose moments are set by hand: lr h is of :func:`rates`, one output unit for each."""

    LR = 0.7

    def __init__(self, momentum: float, drawn: bool = False, decay: float = 0.0):
        values = torch.tensor(rates(momentum), dtype=torch.float64)
        units = len(values)
        Task.__init__(self, nn.Sequential(nn.Linear(3, units), nn.ELU()), (3,), batch=2)
        self.pass_again()
        self.one = self.form()
        second = values / self.LR / (2 * self.one.factor * self.sigma**2)
        first = torch.rand(3, units, dtype=torch.float64) if drawn else second * torch.rand(units, dtype=torch.float64)
        moments = Moments(first, second, drawn)
        self.moments, self.one.moments = moments, lambda clean, noise=(): moments
        velocity = torch.randn(3, units, dtype=torch.float64)
        self.optimizer = torch.optim.SGD(self.parameters, self.LR, momentum, weight_decay=decay)
        if momentum:
            self.optimizer.state[self.parameters[0]]["momentum_buffer"] = velocity

    @property
    def velocity(self) -> Tensor:
        return self.optimizer.state[self.parameters[0]].get("momentum_buffer", torch.zeros(()))

    def problem(self, iterations):
        draw, loss = (lambda: ()), (lambda noise: None)
        return FeedbackProblem(2, self.parameters, iterations, draw, loss, None, self.clean, 0.0, self.one)

    def by_itself(self, steps: int) -> float:
        """Torch's own steps on the mean gradient; the largest weight or velocity on the way."""
        (v,), most = self.parameters, 0.0
        for _ in range(steps):
            v.grad = self.one.quadratic(self.moments).gradient().detach()
            self.optimizer.step()
            most = max(most, v.abs().max().item(), self.velocity.abs().max().item())
        return most


def twins(momentum: float, **options) -> tuple[Known, Known]:
    torch.manual_seed(3)
    one = Known(momentum, **options)
    torch.manual_seed(3)
    return one, Known(momentum, **options)


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("drawn, decay", [(False, 0.0), (False, 0.03), (True, 0.0), (True, 0.03)])
def test_closed_form_is_that_many_steps_of_sgd(momentum, steps, drawn, decay):
    """From a velocity that is not 0, at every rate; 1e-12 of the largest weight or velocity on the way.

    With a momentum of .99 the critical rate is 2.5e-5, of whose digits 1 - lr h keeps eleven.
    """
    tolerance = 1e-12 if momentum < 0.95 else 3e-11
    leaping, walking = twins(momentum, drawn=drawn, decay=decay)
    first = leaping.weight.detach().clone()
    result = train_in_expectation([leaping.problem(steps)], {2: leaping.optimizer})
    most = walking.by_itself(steps)
    assert (leaping.weight - walking.weight).abs().max() < tolerance * most
    assert (leaping.velocity - walking.velocity).abs().max() < tolerance * most or not momentum
    assert (leaping.weight - first).abs().max() > 0.01
    assert result.steps == {2: steps}
    torch.testing.assert_close(
        result.losses[2], leaping.one.quadratic(leaping.moments).loss().detach(), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("momentum", MOMENTA)
def test_many_leaps_are_one(momentum):
    """The velocity is handed on: 7 + 48 steps are 55."""
    once, twice = twins(momentum)
    train_in_expectation([once.problem(55)], {2: once.optimizer})
    for steps in (7, 48):
        train_in_expectation([twice.problem(steps)], {2: twice.optimizer})
    torch.testing.assert_close(once.weight, twice.weight, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(once.velocity, twice.velocity, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("momentum", MOMENTA)
def test_very_many_steps_are_finite_and_end_at_the_minimum(momentum):
    task = Known(momentum)
    loss = task.one.quadratic(task.moments)
    aim, h = loss.minimiser().detach(), loss.curvature
    before = task.weight.detach().clone()
    train_in_expectation([task.problem(100_000)], {2: task.optimizer})
    assert task.weight.isfinite().all() and task.velocity.isfinite().all()
    # Above 1e-3 the rates are far enough from both ends.
    fast = h * task.LR >= min(1e-3, (1 - momentum**0.5) ** 2)
    assert (task.weight - aim)[:, fast].abs().max() < 1e-10
    # Nothing pulls: the velocity runs out.
    still = h == 0
    gone = task.LR * momentum / (1 - momentum) if momentum else 0.0
    assert still.sum() == 1
    if not momentum:
        assert torch.equal(task.weight[:, still], before[:, still])
    else:
        assert (task.weight - before)[:, still].abs().max() < 10 * gone


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.03])
@pytest.mark.parametrize("explicit", [False, True])
def test_unlimited_steps_are_the_minimum(momentum, drawn, decay, explicit):
    """Where the gradient is 0, with the penalty's; weights that nothing pulls stay. However steps are taken."""
    task = Known(momentum, drawn, decay)
    before = task.weight.detach().clone()
    step = steps_of({2: task.optimizer}) if explicit else None
    result = train_in_expectation([task.problem(math.inf)], {2: task.optimizer}, step)
    gradient = task.one.quadratic(task.moments).gradient() + decay * task.weight
    still = (task.moments.second == 0) & (decay == 0)
    assert gradient[:, ~still].abs().max() < 1e-12
    assert torch.equal(task.weight[:, still], before[:, still])
    assert result.steps == {2: math.inf} and result.losses[2].isfinite()


def test_the_minimum_is_that_of_the_penalty_of_the_weights_own_group():
    """An optimizer of the user's own may decay biases at another rate, or not at all."""
    task = Clean.__new__(Clean)
    Task.__init__(task, nn.Sequential(nn.Linear(7, 6), nn.ELU()), (7,), bias=True)
    task.pass_again()
    form = task.form()
    (bias,) = (p for p in task.parameters if p is not form.weight)
    groups = [{"params": [bias], "weight_decay": 0.0}, {"params": [form.weight], "weight_decay": 0.3}]
    optimizer = torch.optim.SGD(groups, 0.1)
    problem = FeedbackProblem(2, task.parameters, math.inf, lambda: (), lambda noise: None, None, task.clean, 0.0, form)
    train_in_expectation([problem], {2: optimizer})
    gradient = form.quadratic(form.moments(task.clean)).gradient() + 0.3 * form.weight
    assert gradient.norm() < 1e-12 < form.weight.norm()


@pytest.mark.parametrize("momentum", [1e-6, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("steps", [1, 3, 20, 1000])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_moves_are_those_of_so_many_steps(momentum, steps, library, monkeypatch):
    """One by one; where the curvature is 0 the gradient stays what it is."""
    if library == "torch":
        # Of so many values that torch computes with them.
        monkeypatch.setattr("dtp.feedback.momentum._FEW", 0)
    rate, tolerance = 0.3, 1e-11 if momentum < 0.95 else 1e-8
    h = torch.tensor(rates(momentum), dtype=torch.float64) / rate
    (moves,) = momentum_moves([h], [rate], momentum, [steps])
    for value, found in zip(h.tolist(), moves.t(), strict=True):
        # Of (V - V_0, m), beginning with a gradient alone, and with a velocity alone.
        expected = []
        for gradient, start in ((1.0, 0.0), (0.0, 1.0)):
            way, velocity = 0.0, start
            for _ in range(steps):
                velocity = momentum * velocity + gradient + value * way
                way -= rate * velocity
            expected.append((way, velocity))
        (way_g, velocity_g), (way_m, velocity_m) = expected
        expected = torch.tensor([way_g, way_m, velocity_g, velocity_m], dtype=torch.float64)
        assert ((found - expected).abs() <= tolerance * expected.abs().max().clamp(min=1)).all(), (value, found)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_moves_of_several_weights_are_those_of_each(library, monkeypatch):
    """Whose numbers of steps have other binary digits, and one of which has none."""
    if library == "torch":
        monkeypatch.setattr("dtp.feedback.momentum._FEW", 0)
    h = [torch.rand(shape, dtype=torch.float64) for shape in [(3,), (2, 1, 2), (1,), (4,), (2,)]]
    rates, steps = [0.1, 0.3, 0.2, 0.2, 0.5], [55, 20, math.inf, 1, 6]
    for one, *found in zip(h, momentum_moves(h, rates, 0.9, steps), rates, steps, strict=True):
        together, rate, count = found
        (alone,) = momentum_moves([one], [rate], 0.9, [count])
        torch.testing.assert_close(together, alone, rtol=1e-14, atol=0)
        assert together.shape == (4, *one.shape)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("digits_first", [False, True])
def test_rates_of_1_and_0_are_not_taken_for_binary_digits(library, digits_first, monkeypatch):
    """In a cache True is the number 1, and False 0. A rate may fall to 0."""
    if library == "torch":
        monkeypatch.setattr("dtp.feedback.momentum._FEW", 0)
    # Sizes that no other case has left in the cache.
    sizes = (3 + digits_first, 7 + (library == "torch"))
    h = [torch.rand(size, dtype=torch.float64) for size in sizes]
    for digits in (digits_first, not digits_first):
        if digits:
            # Of which the lowest digits are 1 and 0.
            found = momentum_moves(h, [0.5, 0.25], 0.9, [1, 2])
            torch.testing.assert_close(found[1][0], -0.25 * (2.9 - 0.25 * h[1]))
        else:
            first, second = momentum_moves(h, [1.0, 0.0], 0.9, [2, 2])
            torch.testing.assert_close(first[0], h[0] - 2.9)
            assert not second[:2].any()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_moves_of_tensors_that_numpy_cannot_read_are_the_same(momentum):
    h = torch.tensor([0.0, 0.1, 0.5, 2.0], dtype=torch.float64)
    (usual,) = momentum_moves([h], [0.3], momentum, [3])
    (differentiated,) = momentum_moves([h.clone().requires_grad_()], [0.3], momentum, [3])
    torch.testing.assert_close(differentiated.detach(), usual)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        (standing_for_some,) = momentum_moves([mode.from_tensor(h)], [0.3], momentum, [3])
    assert (standing_for_some.shape, standing_for_some.dtype) == (usual.shape, usual.dtype)


def test_layers_may_differ_in_rate_momentum_decay_and_number_of_steps():
    together, apart = [], []
    for n, (momentum, decay, steps) in enumerate([(0.9, 0.0, 5), (0.5, 0.03, 7), (0.0, 0.0, math.inf), (0.0, 0.1, 3)]):
        one, other = twins(momentum, decay=decay)
        one.optimizer.param_groups[0]["lr"] = other.optimizer.param_groups[0]["lr"] = 0.1 + 0.1 * n
        problem, alone = one.problem(steps), other.problem(steps)
        together.append((one, FeedbackProblem(**{**vars(problem), "layer": n + 2})))
        train_in_expectation([alone], {2: other.optimizer})
        apart.append(other)
    train_in_expectation([p for _, p in together], {p.layer: one.optimizer for one, p in together})
    for (one, _), other in zip(together, apart, strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-12, atol=1e-14)


def test_steps_one_by_one_may_differentiate():
    """As those on drawn probes may: a rule's own step, or an optimizer's, is not within no_grad."""
    task, seen = Known(0.9), []

    def step(gradients):
        seen.append(torch.is_grad_enabled())
        assert not any(gradient.requires_grad for values in gradients.values() for gradient in values)

    train_in_expectation([task.problem(2)], {2: task.optimizer}, step)
    assert seen == [True, True]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, dampening=0.5),
        lambda p: torch.optim.SGD(p, torch.tensor(0.1), 0.9),
    ],
    ids=["adam", "rmsprop", "nesterov", "dampened", "tensor-rate"],
)
@pytest.mark.parametrize("bias", [False, True])
def test_other_optimizers_take_their_own_steps(make, bias):
    """The same as a plain loop with torch's own optimizer; the bias has no gradient but the penalty's."""
    tasks = []
    for _ in range(2):
        torch.manual_seed(0)
        task = Clean.__new__(Clean)
        Task.__init__(task, nn.Sequential(nn.Linear(7, 6), nn.ELU()), (7,), bias=bias)
        task.pass_again()
        tasks.append((task, make(task.parameters)))
    (one, its), (other, own) = tasks
    form = one.form()
    problem = FeedbackProblem(2, one.parameters, 30, lambda: (), lambda noise: None, None, one.clean, 0.0, form)
    train_in_expectation([problem], {2: its})
    plain = other.form()
    loss = plain.quadratic(plain.moments(other.clean))
    for _ in range(30):
        for p in other.parameters:
            p.grad = loss.gradient().detach() if p is other.weight else torch.zeros_like(p)
        own.step()
    assert relative_difference(other.weight, other.first[0]) > 0.01
    for p, q in zip(one.parameters, other.parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-15)
        assert p.grad is None


@pytest.mark.parametrize("name", ["linear", "linear-elu", "conv-elu-pool", "local-elu-pool", "conv-elu-pool-clean"])
def test_loss_is_what_its_gradient_is_of(name):
    task = Clean(name)
    form = task.form()
    loss = form.quadratic(form.moments(task.clean))
    (gradient,) = torch.autograd.grad(loss.loss(), task.weight)
    torch.testing.assert_close(gradient, loss.gradient().detach())


@pytest.mark.parametrize("name", KNOWN)
def test_minimiser_is_where_the_gradient_is_zero(name):
    task = Clean(name)
    form = task.form()
    loss = form.quadratic(form.moments(task.clean))
    size = loss.gradient().norm()
    with torch.no_grad():
        form.weight.copy_(loss.minimiser())
    assert (loss.gradient() * (loss.curvature > 0)).norm() < 1e-12 * size
