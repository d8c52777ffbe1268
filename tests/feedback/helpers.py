"""Short forms that several tests of this folder use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Size, Tensor, nn

from dtp.feedback import (
    FeedbackLayer,
    FeedbackProblem,
    FeedbackSettings,
    NoiseStreams,
    ReducedLDRL,
    derive_feedback,
    forward_with_context,
    ldrl_loss,
    train_feedback,
)
from dtp.models.modules import FirstUnits, LocallyConnected2d, SameConv2d, SLReLU, Standardise

MAPS = (2, 7, 6)


def undo(layer: nn.Module, in_shape: tuple[int, ...], symmetric: bool = False, **settings) -> FeedbackLayer:
    """The feedback layer of one forward layer, as layer 1 of a network of its own."""
    feedback = derive_feedback([layer], [Size(in_shape)], [1], FeedbackSettings(**settings))[1]
    if symmetric:
        feedback.copy_transpose(layer)
    return feedback


def storages(module: nn.Module) -> set[int]:
    """Addresses of the memory of all parameters and buffers."""
    return {t.untyped_storage().data_ptr() for t in [*module.parameters(), *module.buffers()]}


def relative_difference(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b| of two tensors, in float64."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@dataclass(frozen=True)
class Trained:
    """What a feedback phase left: the weights, the last loss, how many steps, and the state of the noise streams."""

    weights: list[Tensor]
    loss: Tensor
    steps: int
    noise: dict


class Task:
    """A feedback layer with one batch; each training starts from the same weights and draws the same noise.

    Images and noise are drawn in float32 from generators of their own, so that tasks in either precision see the same.
    """

    def __init__(
        self,
        layer: nn.Module,
        in_shape: tuple[int, ...],
        feedback: nn.Module | None = None,
        batch: int = 4,
        sigma: float = 0.2,
        dtype: torch.dtype = torch.float64,
        memory_format: torch.memory_format = torch.contiguous_format,
        **settings,
    ):
        made = undo(layer, in_shape, **settings) if feedback is None else feedback
        self.layer = layer.to(dtype=dtype, memory_format=memory_format)
        self.feedback = made.to(dtype=dtype, memory_format=memory_format)
        self.parameters = tuple(self.feedback.parameters())
        self.first = [p.detach().clone() for p in self.parameters]
        self.sigma = sigma
        s_in = torch.randn(batch, *in_shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        self.s_in = s_in.contiguous(memory_format=memory_format) if s_in.dim() == 4 else s_in
        with torch.no_grad():
            self.s_out, self.context = forward_with_context(layer, self.s_in)

    @property
    def clean(self):
        """(s_in, s_out, context)."""
        return self.s_in, self.s_out, self.context

    def draw(self, streams: NoiseStreams, samples: int = 1) -> tuple[Tensor, ...]:
        """Noise of one iteration, (m B, *in) and (m B, *out)."""
        likes = [s.float() for s in (self.s_in, self.s_out)]
        shapes = [(samples * len(like), *like.shape[1:]) for like in likes]
        drawn = [streams.normal(2, shape, self.sigma, like) for shape, like in zip(shapes, likes, strict=True)]
        return tuple(noise.to(self.s_in.dtype) for noise in drawn)

    def loss(self, noise: tuple[Tensor, ...], **settings) -> Tensor:
        """The literal loss at the present weights."""
        return ldrl_loss(self.layer, self.feedback, *self.clean, *noise, **settings)

    def problem(
        self, form: ReducedLDRL | None, streams: NoiseStreams, iterations: int, stop_distance: float, **settings
    ):
        samples = settings.get("noise_samples", 1)
        return FeedbackProblem(
            2,
            self.parameters,
            iterations,
            lambda: self.draw(streams, samples),
            lambda noise: self.loss(noise, **settings),
            form,
            self.clean,
            stop_distance,
        )

    def train(
        self,
        reduced: bool,
        iterations: int = 10,
        optimizer: str = "momentum",
        weight_decay: float = 0.0,
        memory: int = 1 << 26,
        stop_distance: float = 0.0,
        **settings,
    ) -> Trained:
        """Train from the first weights on the first noise, in the reduced or the literal form."""
        with torch.no_grad():
            for parameter, first in zip(self.parameters, self.first, strict=True):
                parameter.copy_(first)
        if optimizer == "adam":
            stepping = torch.optim.Adam(self.parameters, 3e-3, weight_decay=weight_decay)
        else:
            # About a tenth of the highest stable rate, for either scale of the loss.
            scale = 2 * settings["paper_scale"] ** 2 if settings.get("paper_scale") else 1.0
            rate = 0.02 * scale / (self.sigma**2 * self.s_out.shape[2:].numel())
            stepping = torch.optim.SGD(self.parameters, rate, 0.9, weight_decay=weight_decay)

        def step(gradients):
            for parameter, gradient in zip(self.parameters, gradients[2], strict=True):
                parameter.grad = gradient
            stepping.step()
            stepping.zero_grad()

        streams = NoiseStreams(seed=1)
        form = ReducedLDRL(self.layer, self.feedback, **settings) if reduced else None
        problem = self.problem(form, streams, iterations, stop_distance, **settings)
        result = train_feedback([problem], step, memory)
        weights = [p.detach().clone() for p in self.parameters]
        return Trained(weights, result.losses[2], result.steps[2], streams.state_dict())


def train_both(task: Task, **options) -> tuple[Trained, Trained]:
    """The task in the literal and in the reduced form."""
    return task.train(reduced=False, **options), task.train(reduced=True, **options)


def assert_same_training(task: Task, **options) -> None:
    """Reduced and literal form leave the same weights, loss and noise, and moved the weights far beyond rounding."""
    literal, reduced = train_both(task, **options)
    assert relative_difference(literal.weights[0], task.first[0]) > 0.01
    for a, b, first in zip(reduced.weights, literal.weights, task.first, strict=True):
        assert (a - b).norm() <= 1e-10 * (b.norm() + first.norm())
    torch.testing.assert_close(reduced.loss, literal.loss, rtol=1e-10, atol=0)
    assert reduced.steps == literal.steps
    assert all(torch.equal(state, literal.noise["states"][n]) for n, state in reduced.noise["states"].items())


# --- forward layers of every type that feedback is known for ----------------------------------------------------------


def norm(module: nn.Module, training: bool = True) -> nn.Module:
    """A batch normalisation with random statistics and weights, in training or in evaluation mode."""
    for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
        nn.init.uniform_(tensor, 0.5, 2.0)
    return module.train(training)


def conv(*rest: nn.Module, **arguments) -> nn.Sequential:
    """A convolution of 2 to 4 maps, 3x3 with padding unless told, and what follows it."""
    return nn.Sequential(nn.Conv2d(2, 4, **{"kernel_size": 3, "padding": 1, **arguments}), *rest)


# Name: how the layer is made, its input's shape, settings of its feedback. Sums of q q^T are what "linear" keeps, for 4
# images, and q itself what "linear-wide" does.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict]] = {
    "linear": (lambda: nn.Linear(40, 3), (40,), {}),
    "linear-wide": (lambda: nn.Linear(4, 50), (4,), {}),
    "linear-no-bias": (lambda: nn.Linear(7, 6, bias=False), (7,), {}),
    "linear-elu": (lambda: nn.Sequential(nn.Linear(7, 6), nn.ELU()), (7,), {}),
    "linear-bn1d-elu": (lambda: nn.Sequential(nn.Linear(7, 6), norm(nn.BatchNorm1d(6)), nn.ELU()), (7,), {}),
    "linear-elu-bn1d-eval": (
        lambda: nn.Sequential(nn.Linear(7, 6), nn.ELU(), norm(nn.BatchNorm1d(6), False)),
        (7,),
        {},
    ),
    "linear-positions": (lambda: nn.Sequential(nn.Linear(7, 6), nn.Tanh()), (5, 7), {}),
    "linear-positions-bn1d": (lambda: nn.Sequential(nn.Linear(7, 6), norm(nn.BatchNorm1d(5)), nn.ELU()), (5, 7), {}),
    "flatten-linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(84, 6)), MAPS, {}),
    "flatten-linear-elu": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(84, 6), nn.ELU()), MAPS, {}),
    "identity-linear-identity": (lambda: nn.Sequential(nn.Identity(), nn.Linear(7, 6), nn.Identity()), (7,), {}),
    "conv": (lambda: conv(), MAPS, {}),
    "conv-alone": (lambda: nn.Conv2d(2, 4, 3), MAPS, {}),
    "conv-no-bias": (lambda: conv(bias=False), MAPS, {}),
    "conv-5x5": (lambda: conv(kernel_size=5, padding=2), MAPS, {}),
    "conv-3x2": (lambda: conv(kernel_size=(3, 2), padding=(0, 1), stride=(2, 3)), MAPS, {}),
    "conv-output-padding": (lambda: conv(stride=2), (2, 7, 8), {}),
    "conv-dilation": (lambda: conv(dilation=2), MAPS, {}),
    "conv-groups": (lambda: conv(groups=2), MAPS, {}),
    "conv-same": (lambda: conv(kernel_size=(5, 3), padding="same", dilation=(1, 2)), MAPS, {}),
    "conv-valid": (lambda: conv(padding="valid"), MAPS, {}),
    "identity-conv-flatten": (lambda: nn.Sequential(nn.Identity(), *conv(), nn.Flatten()), MAPS, {}),
    "conv-elu": (lambda: conv(nn.ELU()), MAPS, {}),
    "conv-elu-0.5": (lambda: conv(nn.ELU(0.5)), MAPS, {}),
    "conv-relu": (lambda: conv(nn.ReLU()), MAPS, {}),
    "conv-leaky-relu": (lambda: conv(nn.LeakyReLU(0.2)), MAPS, {}),
    "conv-tanh": (lambda: conv(nn.Tanh()), MAPS, {}),
    "conv-pool": (lambda: conv(nn.MaxPool2d(2)), MAPS, {}),
    "conv-elu-pool": (lambda: conv(nn.ELU(), nn.MaxPool2d(2)), MAPS, {}),
    "conv-elu-1.5-pool": (lambda: conv(nn.ELU(1.5), nn.MaxPool2d(2)), MAPS, {}),
    "conv-elu-negative-pool": (lambda: conv(nn.ELU(-0.5), nn.MaxPool2d(2)), MAPS, {}),
    "conv-relu-pool": (lambda: conv(nn.ReLU(), nn.MaxPool2d(2)), MAPS, {}),
    "conv-relu-in-place-pool": (lambda: conv(nn.ReLU(inplace=True), nn.MaxPool2d(2)), MAPS, {}),
    "conv-leaky-relu-pool": (lambda: conv(nn.LeakyReLU(0.2), nn.MaxPool2d(2)), MAPS, {}),
    "conv-leaky-relu-negative-pool": (lambda: conv(nn.LeakyReLU(-0.5), nn.MaxPool2d(2)), MAPS, {}),
    "conv-tanh-pool": (lambda: conv(nn.Tanh(), nn.MaxPool2d(2)), MAPS, {}),
    "conv-pool-elu": (lambda: conv(nn.MaxPool2d(2), nn.ELU()), MAPS, {}),
    "conv-elu-pool-elu-pool": (lambda: conv(nn.ELU(), nn.MaxPool2d(2), nn.ELU(), nn.MaxPool2d(3, 1)), MAPS, {}),
    "conv-elu-overlapping-pool": (lambda: conv(nn.ELU(), nn.MaxPool2d(3, 2, 1)), MAPS, {}),
    "conv-elu-overlapping-pool-write": (lambda: conv(nn.ELU(), nn.MaxPool2d(3, 2, 1)), MAPS, {"unpool": "write"}),
    "conv-relu-overlapping-pool-write": (lambda: conv(nn.ReLU(), nn.MaxPool2d(3, 1)), MAPS, {"unpool": "write"}),
    "conv-elu-dilated-pool": (lambda: conv(nn.ELU(), nn.MaxPool2d(2, dilation=2, ceil_mode=True)), MAPS, {}),
    "conv-elu-average": (lambda: conv(nn.ELU(), nn.AvgPool2d(2)), MAPS, {}),
    "conv-tanh-adaptive-average": (lambda: conv(nn.Tanh(), nn.AdaptiveAvgPool2d(3)), MAPS, {}),
    "conv-elu-pool-flatten": (lambda: conv(nn.ELU(), nn.MaxPool2d(2), nn.Flatten()), MAPS, {}),
    "conv-bn-elu-pool": (lambda: conv(norm(nn.BatchNorm2d(4)), nn.ELU(), nn.MaxPool2d(2)), MAPS, {}),
    "conv-bn-eval-elu-pool": (lambda: conv(norm(nn.BatchNorm2d(4), False), nn.ELU(), nn.MaxPool2d(2)), MAPS, {}),
    "conv-bn-plain-relu": (
        lambda: conv(nn.BatchNorm2d(4, affine=False, track_running_stats=False), nn.ReLU()),
        MAPS,
        {},
    ),
    "conv-elu-bn-pool": (lambda: conv(nn.ELU(), norm(nn.BatchNorm2d(4)), nn.MaxPool2d(2)), MAPS, {}),
    "conv-elu-pool-bn": (lambda: conv(nn.ELU(), nn.MaxPool2d(2), norm(nn.BatchNorm2d(4))), MAPS, {}),
    "conv-identity-elu-identity-pool": (
        lambda: conv(nn.Identity(), nn.ELU(), nn.Identity(), nn.MaxPool2d(2)),
        MAPS,
        {},
    ),
}
# And of the project's own.
LAYERS |= {
    "local": (lambda: nn.Sequential(LocallyConnected2d(2, 4, (7, 6), 3, 2, 1)), MAPS, {}),
    "local-same-elu": (lambda: nn.Sequential(LocallyConnected2d(2, 4, (7, 6), 3, 2), nn.ELU()), MAPS, {}),
    "local-elu-pool": (
        lambda: nn.Sequential(LocallyConnected2d(2, 4, (7, 6), 3), nn.ELU(), nn.MaxPool2d(2)),
        MAPS,
        {},
    ),
    "local-tanh-flatten": (
        lambda: nn.Sequential(LocallyConnected2d(2, 4, (7, 6), 5, 1, 2), nn.Tanh(), nn.Flatten()),
        MAPS,
        {},
    ),
    "same-convolution-elu": (lambda: nn.Sequential(SameConv2d(2, 4, 4, 2), nn.ELU()), MAPS, {}),
    "linear-elu-first-units": (lambda: nn.Sequential(nn.Linear(7, 6), nn.ELU(), FirstUnits(4)), (7,), {}),
    "linear-sl-relu": (lambda: nn.Sequential(nn.Linear(7, 6), SLReLU()), (7,), {}),
    "linear-sigmoid": (lambda: nn.Sequential(nn.Linear(7, 6), nn.Sigmoid()), (7,), {}),
    "linear-tanh-standardise": (lambda: nn.Sequential(nn.Linear(7, 6), nn.Tanh(), Standardise(6)), (7,), {}),
}
# And of types that other networks have: torchvision's, those for sequences.
LAYERS |= {
    **{
        f"linear-{function}": (lambda function=function: nn.Sequential(nn.Linear(7, 6), function), (7,), {})
        for function in (
            nn.GELU(),
            nn.GELU("tanh"),
            nn.SiLU(),
            nn.Softplus(2.0),
            nn.Hardtanh(-0.4, 0.6),
            nn.Hardswish(),
        )
    },
    "conv-relu6-pool": (lambda: conv(nn.ReLU6(), nn.MaxPool2d(2)), MAPS, {}),
    "conv-gelu-pool": (lambda: conv(nn.GELU(), nn.MaxPool2d(2)), MAPS, {}),
    "conv-silu-in-place": (lambda: conv(nn.SiLU(inplace=True)), MAPS, {}),
    "linear-elu-dropout": (lambda: nn.Sequential(nn.Linear(7, 6), nn.ELU(), nn.Dropout(0.4)), (7,), {}),
    "linear-dropout-elu": (lambda: nn.Sequential(nn.Linear(7, 6), nn.Dropout(0.4, inplace=True), nn.ELU()), (7,), {}),
    "linear-elu-dropout-eval": (
        lambda: nn.Sequential(nn.Linear(7, 6), nn.ELU(), nn.Dropout(0.4)).eval(),
        (7,),
        {},
    ),
    "conv-elu-pool-dropout": (lambda: conv(nn.ELU(), nn.MaxPool2d(2), nn.Dropout(0.4)), MAPS, {}),
    "conv-elu-dropout-pool": (lambda: conv(nn.ELU(), nn.Dropout(0.4), nn.MaxPool2d(2)), MAPS, {}),
    "conv-dropout2d-elu-pool": (lambda: conv(nn.Dropout2d(0.4), nn.ELU(), nn.MaxPool2d(2)), MAPS, {}),
    "linear-layer-norm-elu": (lambda: nn.Sequential(nn.Linear(7, 6), norm(nn.LayerNorm(6)), nn.ELU()), (7,), {}),
    "linear-layer-norm-plain": (
        lambda: nn.Sequential(nn.Linear(7, 6), nn.ELU(), nn.LayerNorm(6, elementwise_affine=False)),
        (7,),
        {},
    ),
    "linear-positions-layer-norm": (
        lambda: nn.Sequential(nn.Linear(7, 6), norm(nn.LayerNorm(6, bias=False)), nn.Tanh()),
        (5, 7),
        {},
    ),
    "conv-layer-norm-elu": (lambda: conv(norm(nn.LayerNorm([4, 7, 6])), nn.ELU()), MAPS, {}),
    "conv-elu-pool-layer-norm": (lambda: conv(nn.ELU(), nn.MaxPool2d(2), norm(nn.LayerNorm([3, 3]))), MAPS, {}),
    "conv-group-norm-elu-pool": (lambda: conv(norm(nn.GroupNorm(2, 4)), nn.ELU(), nn.MaxPool2d(2)), MAPS, {}),
    "conv-elu-group-norm-plain": (lambda: conv(nn.ELU(), nn.GroupNorm(4, 4, affine=False)), MAPS, {}),
    "conv-elu-adaptive-max": (lambda: conv(nn.ELU(), nn.AdaptiveMaxPool2d((3, 2))), MAPS, {}),
    "conv-elu-adaptive-max-write": (lambda: conv(nn.ELU(), nn.AdaptiveMaxPool2d((4, 4))), MAPS, {"unpool": "write"}),
    "conv1d-elu": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ELU()), (2, 9), {}),
    "conv1d-everything": (
        lambda: nn.Sequential(nn.Conv1d(4, 6, 4, stride=3, padding=2, dilation=2, groups=2), nn.Tanh()),
        (4, 14),
        {},
    ),
    "conv1d-bn1d-elu-pool": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), norm(nn.BatchNorm1d(4)), nn.ELU(), nn.MaxPool1d(2)),
        (2, 11),
        {},
    ),
    "conv1d-elu-overlapping-pool": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ELU(), nn.MaxPool1d(3, 2, 1)),
        (2, 11),
        {},
    ),
    "conv1d-elu-adaptive-max": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ELU(), nn.AdaptiveMaxPool1d(4)),
        (2, 11),
        {},
    ),
    "conv1d-elu-average": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ELU(), nn.AvgPool1d(2)), (2, 11), {}),
    "conv1d-elu-adaptive-average": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ELU(), nn.AdaptiveAvgPool1d(4)),
        (2, 11),
        {},
    ),
}
OF_MAPS = [name for name, (_, in_shape, _) in LAYERS.items() if len(in_shape) == 3]


def task(name: str, **options) -> Task:
    """The task of a layer of :data:`LAYERS`."""
    make, in_shape, settings = LAYERS[name]
    return Task(make(), in_shape, **settings, **options)
