"""Feedback alignment and its relatives: backprop that sends errors down through weights other than the forward ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer

from dtp.algorithms.base import Algorithm
from dtp.algorithms.options import FeedbackAlignmentOptions, WeightMirrorOptions
from dtp.contracts import gradients, require_loss_value
from dtp.errors import UserError
from dtp.feedback import is_elementwise, layer_operations
from dtp.feedback.backward import AffineOperation, BackwardMaps
from dtp.feedback.initial import deviation, fans, init_map
from dtp.feedback.layers import has_matrix, require_known_functions
from dtp.feedback.noise import seeded_generator
from dtp.feedback.operations import sum_over_images
from dtp.models.modules import InnerFunction, Residual
from dtp.models.network import Network
from dtp.models.precision import full_precision, no_autocast


class FA(Algorithm):
    """Feedback alignment (Lillicrap et al. 2016): errors go down through fixed random weights B_n.

    In every affine operation of a network, inside residual units too, the error goes from output to input through B_n
    instead of W_n^T. Weights and biases get the gradients of their own operation for the error that arrives. The first
    operation needs no B. The rule is not local in time: as in backprop, each layer waits for the error from above.
    ``error_clamp`` limits the errors that go down and the gradients of weights and biases, as in biotorch.

    Left out by the papers: the distribution of B_n. Here it is that of the forward weights (``backward_init``). Batch
    normalisation keeps its true gradient.
    """

    Options = FeedbackAlignmentOptions
    options: FeedbackAlignmentOptions

    def __init__(self, network: Network, options: FeedbackAlignmentOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        self.feedback = BackwardMaps(network)
        for operation in self.feedback.operations:
            init_map(operation.backward_map.weight, *fans(operation.module), self.options.backward_init)

    def forward_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        with self.feedback.in_place(self.backward_weight, self.options.error_clamp):
            logits = self.network(x)
            loss = require_loss_value(self, "task_loss", self.task_loss(full_precision(logits), y))
            found = gradients(self, self.network, [loss], self.forward_parameters)
        if clamp := self.options.error_clamp:
            affine = {id(p) for m in self.network.modules() if _has_own_matrix(m) for p in m.parameters(recurse=False)}
            pairs = zip(self.forward_parameters, found, strict=True)
            found = [g.clamp(-clamp, clamp) if id(p) in affine else g for p, g in pairs]
        return logits.detach(), found

    def backward_weight(self, operation: AffineOperation) -> Tensor:
        """B of one operation for this batch, in the shape of the weight of its backward map; must change nothing."""
        return operation.backward_map.weight

    def feedback_weights(self) -> dict[int, list[tuple[Tensor, Tensor]]]:
        return self.feedback.beside_forward(self.backward_weight)


def _has_own_matrix(module: nn.Module) -> bool:
    # A weight that is computed (weight_norm, ...) is that of a module within.
    return has_matrix(module, recurse=is_parametrized(module))


class USF(FA):
    """Uniform sign-concordant feedback (Moskovitz et al. 2018): B = scale sign(W^T).

    Left out by the paper: the scale. Here it is the standard deviation of the initial weights (``backward_init``), as
    in biotorch.
    """

    def backward_weight(self, operation: AffineOperation) -> Tensor:
        scale = deviation(*fans(operation.module), self.options.backward_init)
        return scale * operation.backward_map.transpose_of(operation.module).detach().sign()


class FRSF(FA):
    """Fixed random-magnitude sign-concordant feedback (Moskovitz et al. 2018): B = |M| sign(W^T), M drawn once.

    Left out by the paper: the distribution of M. Here it is that of the initial weights (``backward_init``), as in
    biotorch.
    """

    def backward_weight(self, operation: AffineOperation) -> Tensor:
        return (
            operation.backward_map.weight.abs() * operation.backward_map.transpose_of(operation.module).detach().sign()
        )


class BRSF(FRSF):
    """Batchwise random-magnitude sign-concordant feedback (Moskovitz et al. 2018): as ``frsf``, M drawn every batch.

    M is a function of the seed, the number of the batch and the operation. So it is the same on all devices and after a
    resume.

    Left out by the paper: the distribution of M. Here it is that of ``frsf``.
    """

    def training_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        for i, operation in enumerate(self.feedback.operations):
            generator = seeded_generator(x.device, self.noise_streams.seed, self.batches_done, i)
            init_map(operation.backward_map.weight, *fans(operation.module), self.options.backward_init, generator)
        return super().training_batch(x, y)


class KolenPollackSteps(Algorithm):
    """Steps of the forward weights that backward weights take too, and a decay of both: see :class:`KolenPollack`."""

    feedback: BackwardMaps
    # Whether biases of the forward maps, which have no backward weight, decay too.
    biases_decay = False

    @property
    def mirrors_steps(self) -> bool:
        """Whether there are backward weights that take the forward weights' steps."""
        return True

    def require_steps(self) -> None:
        """Raise UserError for weights that take no steps of their own, or a decay of more than all of a weight."""
        for operation in self.feedback.operations:
            if not isinstance(operation.module.weight, nn.Parameter):
                raise UserError(
                    f"The weight of {operation.name} is computed from others (weight_norm, or another "
                    "parametrisation); expected one that takes steps, which the backward weights of "
                    f"{type(self).__name__} take too. Remove it (torch.nn.utils.parametrize.remove_parametrizations), "
                    "or take another rule, such as fa."
                )
        o = self.options
        rate = max(o.layer_lr or [o.lr])
        if not rate * o.weight_decay < 1:
            raise UserError(
                f"--weight-decay: expected less than 1 / --lr, {1 / rate:g}, for each step decays weights by their "
                f"product, found {o.weight_decay}."
            )

    def configure_optimizers(self):
        configured = super().configure_optimizers()
        if not self.mirrors_steps:
            return configured
        assert self.forward_optimizer is not None
        for group in self.forward_optimizer.param_groups:
            group["weight_decay"] = 0.0
        return configured

    @torch.no_grad()
    def step(self, optimizer: Optimizer | None, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        if optimizer is None or not self.mirrors_steps:
            return super().step(optimizer, parameters, gradients)
        stepped = set(map(id, parameters))
        groups = [
            (group, stepped & set(map(id, group["params"])))
            for each in self._forward_optimizers
            for group in each.param_groups
        ]
        keep = {i: 1 - group["lr"] * self.options.weight_decay for group, numbers in groups for i in numbers}
        trained = [operation for operation in self.feedback.operations if id(operation.module.weight) in keep]
        mirrored = {id(operation.module.weight) for operation in trained}
        decay = max((group.get("weight_decay", 0) for group, numbers in groups if numbers & mirrored), default=0)
        if decay:
            raise UserError(
                f"{type(self).__name__}: expected optimizers with weight_decay=0, found {decay:g}, which backward "
                "weights would copy as a step; set it to 0, and give the rule weight_decay, which decays both."
            )
        biases = {id(p) for name, p in self.network.named_parameters() if name.rpartition(".")[2] == "bias"}
        for parameter in parameters:
            if id(parameter) in keep and (self.biases_decay or id(parameter) not in biases):
                parameter.mul_(keep[id(parameter)])
        before = [operation.backward_map.transpose_of(operation.module).clone() for operation in trained]
        super().step(optimizer, parameters, gradients)
        for operation, old in zip(trained, before, strict=True):
            change = operation.backward_map.transpose_of(operation.module) - old
            operation.backward_map.weight.mul_(keep[id(operation.module.weight)]).add_(change)


class KolenPollack(KolenPollackSteps, FA):
    """Kolen-Pollack learning (Kolen, Pollack 1994; Akrout et al. 2019): B_n changes as W_n^T does, and both decay.

    W <- (1 - lam) W + D and B <- (1 - lam) B + D^T. D is the increment of the optimizer, momentum included, and lam =
    lr ``weight_decay``. So W^T - B shrinks by the factor 1 - lam in each step, whatever the data.

    Left out by the papers: the decay under momentum or Adam. Here it is separate from the optimizer; inside it, W and B
    would get different increments. Biases do not decay, as in the code of Akrout et al.
    """

    def __init__(self, network: Network, options: FeedbackAlignmentOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        self.require_steps()


class WeightMirror(FA):
    """Weight mirror (Akrout et al. 2019): B_n learns in a separate phase from the layer's response to noise.

    After each batch every operation by itself gets zero-mean noise xi and answers y = f(W xi), without biases. f is the
    network's nonlinearity (none in the last layer), and y is centred over the noise patterns. Then B <- (1 - lam) B +
    lam xi y^T / (sigma^2 positions). For linear f the expectation of B is W^T.

    Left out by the paper, or changed: the estimate is divided by the variance of the noise and, for convolutions, by
    the number of positions that see a weight. So one rate fits all layers, and B converges to W^T times the mean slope.
    There is one mirror phase per batch, and ``mirror_warmup`` of them before the first batch.
    """

    Options = WeightMirrorOptions
    options: WeightMirrorOptions

    def __init__(self, network: Network, options: WeightMirrorOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        require_known_functions(network, network.shapes, with_weights=True)
        self.mirror_optimizer: Optimizer | None = None

    def training_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with self.feedback_timer.measure(self.device), no_autocast(x):
            for _ in range(1 if self.batches_done else 1 + self.options.mirror_warmup):
                self.mirror()
        return super().training_batch(x, y)

    @torch.no_grad()
    def mirror(self) -> None:
        """One mirror phase: each B_n takes one step towards its estimate of W_n^T."""
        if not self.feedback.operations:
            return
        o = self.options
        weights, gradients = [], []
        for i, operation in enumerate(self.feedback.operations):
            like = operation.module.weight
            xi = self.noise_streams.normal(
                i, (o.mirror_samples, *operation.in_shape), o.mirror_noise, like, common=True
            )
            response = operation.module(xi) - operation.module(torch.zeros_like(xi[:1]))
            response = self._function_after(operation)(response)
            response = response - sum_over_images(response) / len(response)
            # A weight that is shared over positions answers in each of them; at the border of a map, in fewer.
            ones = torch.ones_like(response[:1]), torch.ones_like(xi[:1])
            positions = operation.backward_map.weight_gradient(*ones).clamp_(min=1)
            estimate = operation.backward_map.weight_gradient(response, xi)
            estimate = estimate / ((o.mirror_samples - 1) * o.mirror_noise**2 * positions)
            weights.append(operation.backward_map.weight)
            gradients.append(operation.backward_map.weight - estimate)
        self.step(self.mirror_optimizer, weights, gradients)

    def _function_after(self, operation: AffineOperation) -> nn.Module:
        """The nonlinearity that the operation's output goes to; none where other weights, or none, follow."""
        for module in _following(layer_operations(self.network[operation.layer]), operation.module):
            if isinstance(module, InnerFunction):
                return module.function
            if is_elementwise(module):
                return module
            if has_matrix(module):
                break
        return nn.Identity()

    def feedback_optimizer_list(self) -> list[Optimizer]:
        # As a step of plain SGD, which the strategy keeps the same on all devices.
        weights = [operation.backward_map.weight for operation in self.feedback.operations]
        if not weights:
            return []
        self.mirror_optimizer = torch.optim.SGD([{"params": weights, "name": "mirror"}], lr=self.options.mirror_lr)
        return [self.mirror_optimizer]


def _following(operations: Sequence[nn.Module], sought: nn.Module) -> list[nn.Module]:
    """What the output of ``sought``, one of ``operations`` or within a residual unit of them, goes through in turn."""
    for place, operation in enumerate(operations):
        after = list(operations[place + 1 :])
        if isinstance(operation, Residual):
            for chain in (operation.branch, operation.shortcut):
                if any(module is sought for module in chain.modules()):
                    return _following(list(chain), sought) + after
        elif any(module is sought for module in operation.modules()):
            return after
    return []
