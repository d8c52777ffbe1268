"""L-DRL finds the transposed forward weights: the theorem of Ernoult et al. (2022) on one layer at a time."""

import torch
from torch import nn

from dtp.feedback import FeedbackProblem, NoiseStreams, forward_with_context, ldrl_loss, train_feedback

from .helpers import undo


class Training:
    """Feedback training of one layer on one batch, by momentum SGD as in the published experiments."""

    def __init__(self, layer: nn.Module, s_in: torch.Tensor, sigma: float, lr: float, routing: str):
        self.layer, self.s_in, self.sigma, self.routing = layer, s_in, sigma, routing
        self.feedback = undo(layer, s_in.shape[1:])
        self.v = next(self.feedback.parameters())
        with torch.no_grad():
            self.s_out, self.context = forward_with_context(layer, s_in)
        self.streams = NoiseStreams(seed=0)
        self.optimizer = torch.optim.SGD(self.feedback.parameters(), lr, momentum=0.9)

    def draw(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.streams.normal(1, s.shape, self.sigma, s) for s in (self.s_in, self.s_out))

    def loss(self, noise: tuple[torch.Tensor, ...]) -> torch.Tensor:
        clean = self.s_in, self.s_out, self.context
        return ldrl_loss(self.layer, self.feedback, *clean, *noise, routing=self.routing)

    def step(self, gradients: dict[int, tuple[torch.Tensor, ...]]) -> None:
        (self.v.grad,) = gradients[1]
        self.optimizer.step()

    def run(self, iterations: int) -> None:
        train_feedback([FeedbackProblem(1, (self.v,), iterations, self.draw, self.loss)], self.step)

    def lower_lr(self) -> None:
        self.optimizer.param_groups[0]["lr"] *= 0.1


def degrees(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.rad2deg(torch.acos(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))).item()


def test_linear_layer_converges_to_its_transpose():
    """At the published noise of an output layer: within 5 per cent of W^T, the loss within 2 of its limit."""
    sigma = 0.08
    layer = nn.Linear(64, 10)
    w = layer.weight.detach()
    training = Training(layer, torch.randn(128, 64), sigma, lr=1e-3 / sigma**2, routing="noisy")
    training.run(2000)
    training.lower_lr()
    training.run(1000)
    assert (training.v - w.T).norm() < 0.05 * w.norm()

    with torch.no_grad():
        limit = torch.stack([training.loss(training.draw()) for _ in range(500)]).mean() / sigma**2
    assert abs(limit + w.square().sum()) < 0.02 * w.square().sum()


def test_convolution_with_pooling_comes_to_the_angle_of_the_theorem_with_fixed_routing():
    """From a right angle, of random weights, to less than the 8 degrees of the published test."""
    sigma, positions = 0.05, 16
    layer = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ELU(), nn.MaxPool2d(2))
    training = Training(layer, torch.randn(32, 8, 8, 8), sigma, lr=1e-3 / (sigma**2 * positions), routing="fixed")
    w = layer[0].weight.detach()
    # Cosines of random vectors have standard deviation 1 / sqrt(1152), 1.7 degrees.
    assert abs(degrees(training.v, w) - 90) < 8
    training.run(400)
    training.lower_lr()
    training.run(100)
    assert degrees(training.v, w) < 8
