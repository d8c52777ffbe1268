"""The feedback phase: how often, in which order, and on what the losses are stepped."""

from types import SimpleNamespace

import pytest
import torch
from torch import Size, nn

from dtp.feedback import (
    FeedbackEngine,
    FeedbackProblem,
    FeedbackSettings,
    NoiseStreams,
    derive_feedback,
    forward_with_context,
    ldrl_loss,
    train_feedback,
)


def counting_problem(n: int, iterations: int, events: list) -> FeedbackProblem:
    """A problem that notes when its loss is evaluated: |w|^2."""
    weight = torch.ones(2, requires_grad=True)

    def loss(noise):
        assert noise == ("noise", n)
        events.append(("loss", n))
        return weight.square().sum()

    return FeedbackProblem(n, (weight,), iterations, lambda: ("noise", n), loss)


def noting_step(events):
    """A step that notes for which layers it is called."""
    return lambda gradients: events.extend(("step", n) for n in gradients)


def test_each_problem_takes_its_own_number_of_iterations():
    events = []
    problems = [counting_problem(n, iterations, events) for n, iterations in [(2, 3), (3, 1), (4, 5)]]
    train_feedback(problems, noting_step(events))
    for n, iterations in [(2, 3), (3, 1), (4, 5)]:
        assert events.count(("loss", n)) == events.count(("step", n)) == iterations


def test_the_kth_step_of_every_layer_comes_before_the_next_of_any():
    events = []
    problems = [counting_problem(n, iterations, events) for n, iterations in [(2, 3), (3, 1), (4, 2)]]
    train_feedback(problems, noting_step(events))
    assert [n for event, n in events if event == "step"] == [2, 3, 4, 2, 4, 2]
    # All losses of an iteration are evaluated before any layer steps, at the weights that the iteration before left.
    first = [event for event, _ in events[:6]]
    assert first == ["loss"] * 3 + ["step"] * 3
    for n in (2, 3, 4):
        own = [event for event, layer in events if layer == n]
        assert own == ["loss", "step"] * (len(own) // 2)


def test_step_receives_the_gradients_of_its_problems_loss():
    weights = (torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True))
    problem = FeedbackProblem(2, weights, 1, tuple, lambda noise: (weights[0] * weights[1]).sum())
    received = []
    train_feedback([problem], lambda gradients: received.extend(gradients.items()))
    ((n, (first, second)),) = received
    assert n == 2
    assert torch.equal(first, torch.tensor([3.0, 3.0])) and torch.equal(second, torch.tensor(3.0))


def test_no_iterations_and_no_problems_are_allowed():
    events = []
    step = noting_step(events)
    assert train_feedback([], step).losses == {}
    assert train_feedback([counting_problem(2, 0, events)], step).losses == {}
    assert events == []
    result = train_feedback([counting_problem(2, 0, events), counting_problem(3, 1, events)], step)
    assert list(result.losses) == [3] and result.steps == {3: 1}


def test_returned_losses_are_the_last_ones_detached():
    weight = torch.tensor(8.0, requires_grad=True)
    problem = FeedbackProblem(2, (weight,), 3, tuple, lambda noise: weight**2)

    def halve(gradients):
        with torch.no_grad():
            weight.mul_(0.5)

    losses = train_feedback([problem], halve).losses
    assert losses[2].item() == 4.0  # evaluated at 8, 4, 2
    assert not losses[2].requires_grad and losses[2].grad_fn is None


class Phase:
    """The feedback phase of a small network on one batch, with momentum SGD."""

    def __init__(self):
        torch.manual_seed(0)
        self.layers = [
            nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ELU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ELU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Flatten(), nn.Linear(16, 5)),
        ]
        shapes = [Size([1, 8, 8]), Size([3, 4, 4]), Size([4, 2, 2])]
        self.feedback = derive_feedback(self.layers, shapes, [2, 3], FeedbackSettings())
        self.streams = NoiseStreams(seed=0)
        self.optimizers = {n: torch.optim.SGD(self.feedback[n].parameters(), 0.01, 0.9) for n in (2, 3)}
        s, self.problems = torch.randn(6, 1, 8, 8), []
        for n, layer in enumerate(self.layers, start=1):
            y, context = forward_with_context(layer, s)
            if n > 1:
                self.problems.append(self.problem(n, s, y, context))
            s = y

    def problem(self, n, s_in, s_out, context):
        def draw():
            return tuple(self.streams.normal(n, s.shape, 0.1, s) for s in (s_in, s_out))

        def loss(noise):
            return ldrl_loss(self.layers[n - 1], self.feedback[n], s_in, s_out, context, *noise)

        return FeedbackProblem(n, tuple(self.feedback[n].parameters()), 2 + n, draw, loss)

    def step(self, gradients):
        for n, values in gradients.items():
            for p, gradient in zip(self.feedback[n].parameters(), values, strict=True):
                p.grad = gradient
            self.optimizers[n].step()
            self.optimizers[n].zero_grad()

    def weights(self):
        return [p.detach().clone() for p in self.feedback.parameters()]


def test_order_of_the_layers_changes_nothing():
    one, other = Phase(), Phase()
    before = one.weights()
    losses = train_feedback(one.problems, one.step).losses
    reversed_losses = train_feedback(other.problems[::-1], other.step).losses
    assert all(torch.equal(losses[n], reversed_losses[n]) for n in (2, 3))
    for old, a, b in zip(before, one.weights(), other.weights(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, old)


def test_feedback_phase_leaves_the_forward_weights_bit_identical():
    phase = Phase()
    forward = [p for layer in phase.layers for p in layer.parameters()]
    before = [p.detach().clone() for p in forward]
    train_feedback(phase.problems, phase.step)
    assert all(torch.equal(p, old) for p, old in zip(forward, before, strict=True))


def test_no_grad_attribute_is_touched():
    phase = Phase()
    parameters = [p for module in (*phase.layers, phase.feedback) for p in module.parameters()]
    marks = [torch.full_like(p, 7.0) for p in parameters]
    for p, mark in zip(parameters, marks, strict=True):
        p.grad = mark
    train_feedback(phase.problems, lambda gradients: None)
    for p, mark in zip(parameters, marks, strict=True):
        assert p.grad is mark and (mark == 7).all()


@pytest.mark.parametrize(
    ("asked", "device", "total", "expected"),
    [
        (0, "cpu", 0, 64 << 20),
        (7, "cpu", 0, 7),
        (0, "cuda", 80 << 30, 4096 << 20),
        (0, "cuda", 16 << 30, 1 << 30),
        (7, "cuda", 80 << 30, 7),
    ],
)
def test_memory_of_the_iterations_follows_the_device(asked, device, total, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=total))
    assert FeedbackEngine("auto", asked)._memory_on(torch.device(device)) == expected
