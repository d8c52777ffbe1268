"""GAIT-prop: local targets through exact inverses."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtp.algorithms.local_targets import Activations, LocalTargets
from dtp.algorithms.options import GAITOptions
from dtp.errors import UserError
from dtp.feedback import layer_operations
from dtp.models.modules import FirstUnits, SLReLU
from dtp.models.network import Network

_STEPS = {"normalised": 1e-4, "original": 1e-3}


class GAIT(LocalTargets):
    """GAIT-prop (Ahmad et al. 2020) with the normalised targets of Dalm et al. 2021, for networks of square layers.

    A small step from s_n towards its target, delta f'(a_n)^2 of the way, is sent through the exact inverse of layer n.
    The change that arrives, divided by delta again, gives the target of layer n-1. For orthogonal weights this is what
    backprop would send, except for units whose step crosses a kink of f. In terms of the differences d_n = s_n - t_n of
    the re-scaled targets::

        d_{n-1} = W_n^{-1} (f^{-1}(s_n) - f^{-1}(s_n - delta f'(a_n)^2 d_n)) / delta

    delta is ``gait_step`` / |d_n| for each sample (normalised), or ``gait_step`` to the power of N - n + 1 (original).
    The latter is too small for float32 three layers below the output, and for float64 (``--precision 64``) six layers
    below: no target arrives there. The loss is half the squared distance of the first units of the output to the
    one-hot label (``loss``). Other output units, and units that the next layer does not read, have their own activity
    as target. The feedback learns nothing; the inverses are computed anew in every batch. The rule is not local in its
    weights, because it inverts the forward weights themselves.

    The penalty on weights that are not orthogonal (``orthogonality``) is added in the step, like weight decay. So
    :meth:`forward_gradients`, and the angles to backprop, are those of the loss alone.

    Left out by the papers, or contradictory: Dalm et al. print a squared norm and describe the norm (the norm: the
    square loses the correlation with backprop); they do not say whether updates are re-scaled (they are), how long the
    step is (1e-4: longer ones cross more kinks of leaky ReLU, shorter ones are lost to rounding in float32), which
    learning rate they used (that of Ahmad et al.), or how 3072 inputs enter 500 units (a rectangular first layer, which
    needs no inverse). The code they made public in 2023 agrees in the norm, the re-scaling and the first layer; it has
    other widths, rates, steps and a penalty on |W^T W - 1|^2 (preset ``gait_square_cifar10_dalm-code``). The Adam of
    Ahmad et al. has no bias correction, so its first steps are up to twice as long as those of torch's Adam, which is
    used here.
    """

    Options = GAITOptions
    options: GAITOptions

    def __init__(self, network: Network, options: GAITOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        self.gait_step = self.options.gait_step or _STEPS[self.options.gait_targets]
        for n in range(2, network.depth + 1):
            _parts(n, network[n])
            if len(network.shapes[n]) > 1:
                raise UserError(
                    f"gait: expected vectors from layer {n}, found values of shape {tuple(network.shapes[n])}, to each "
                    "position of which its matrix goes; use --model square."
                )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        # Of the way that a target goes into the lowest layer; only now is the precision known.
        normalised = self.options.gait_targets == "normalised"
        step = self.gait_step ** (1 if normalised else max(self.network.depth - 1, 1))
        assert isinstance(self.dtype, torch.dtype)
        least = torch.finfo(self.dtype).eps
        if step < least:
            said = (
                f"--gait-step: {self.gait_step:g} comes to a step of {step:.1e} in the lowest layer, and this "
                f"precision rounds away what is below {least:.1e}"
            )
            if self.dtype == torch.float64 and not normalised:
                # What Dalm et al. show of original targets in six layers is just this.
                warnings.warn(f"{said}; as published, the lowest layers learn nothing.", stacklevel=2)
                return
            raise UserError(
                f"{said}; give a larger one, fewer layers{'' if normalised else ', --gait-targets normalised'} or "
                "--precision 64."
            )

    def lower_target(self, n: int, targets: dict[int, Tensor], activations: Activations) -> Tensor:
        s, below = activations.s[n], activations.s[n - 1]
        before, linear, function = _parts(n, self.network[n])
        a = linear(before(below))
        z, slope = function(a), _slope(function, a)
        # The units that are dropped after it have their own activity as target.
        d = F.pad(s - targets[n], (0, z.shape[1] - s.shape[1]))
        if self.options.gait_targets == "normalised":
            length = d.norm(dim=1, keepdim=True)
            # Without a difference any step does: none arrives below.
            delta = self.gait_step / length.masked_fill(length == 0, 1.0)
        else:
            delta = self.gait_step ** (self.network.depth - n + 1)
        # Both inverses of what is rounded alike, so that units without a difference, most of a wide output, have none.
        change = _inverse(function, z) - _inverse(function, z - delta * slope**2 * d)
        try:
            change = torch.linalg.solve(linear.weight, change.t()).t() / delta
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage] (torch documents it there)
            raise UserError(
                f"gait: expected weights that have an inverse, found a singular matrix in layer {n}; use --init "
                "orthogonal, a lower --lr or a higher --orthogonality."
            ) from error
        # As have units of the layer below that this one does not read.
        return below - F.pad(change, (0, below[0].numel() - change.shape[1])).view_as(below)

    def forward_step(self, activations: Activations, targets: dict[int, Tensor], y: Tensor) -> None:
        weights = self.forward_parameters
        gradients = self._local_gradients(activations, targets, y, weights)
        if self.options.orthogonality:
            pairs = zip(weights, gradients, strict=True)
            penalty = _PENALTIES[self.options.orthogonality_form]
            gradients = [g + self.options.orthogonality * penalty(w.detach()) if _square(w) else g for w, g in pairs]
        self.step(self.forward_optimizer, weights, gradients)


def _square(weight: Tensor) -> bool:
    return weight.dim() == 2 and weight.shape[0] == weight.shape[1]


def _overlap_gradient(weight: Tensor) -> Tensor:
    """Gradient of the sum over i != j of (W^T W)_ij^2, of the columns of W (d, d)."""
    gram = weight.t() @ weight
    return 4 * weight @ (gram - gram.diag().diag())


def _identity_gradient(weight: Tensor) -> Tensor:
    """Gradient of |W^T W - 1|^2, of W (d, d)."""
    return 4 * (weight @ (weight.t() @ weight) - weight)


_PENALTIES = {"overlaps": _overlap_gradient, "identity": _identity_gradient}


def _parts(n: int, layer: nn.Module) -> tuple[nn.Sequential, nn.Linear, nn.Module]:
    """What layer n does before its square map, that map, and its nonlinearity.

    Raises:
        UserError: the layer cannot be inverted, or not on all values.
    """
    modules = layer_operations(layer)
    place, linear = next(((i, m) for i, m in enumerate(modules) if isinstance(m, nn.Linear)), (0, None))
    if linear is None or not all(isinstance(m, nn.Flatten | FirstUnits) for m in modules[:place]):
        raise UserError(f"gait: layer {n} is not made of a square linear map and a nonlinearity; use --model square.")
    if linear.in_features != linear.out_features:
        raise UserError(
            f"gait: layer {n} has a {linear.out_features} x {linear.in_features} matrix, which has no inverse; "
            "expected a square one, as --model square has."
        )
    after = [module for module in modules[place + 1 :] if not isinstance(module, nn.Identity)]
    function = after.pop(0) if after and isinstance(after[0], nn.LeakyReLU | SLReLU) else nn.Identity()
    if isinstance(function, nn.LeakyReLU) and not function.negative_slope > 0:
        after.insert(0, function)
    unknown = [type(m).__name__ for m in after if not isinstance(m, FirstUnits)]
    if unknown:
        raise UserError(
            f"gait: layer {n} has {unknown[0]}, which has no inverse on all numbers; use --model square, with "
            "--activation leaky-relu or sl-relu."
        )
    return nn.Sequential(*modules[:place]), linear, function


def _slope(function: nn.Module, a: Tensor) -> Tensor:
    if isinstance(function, nn.LeakyReLU):
        return torch.where(a > 0, torch.ones_like(a), function.negative_slope)
    return function.derivative(a) if isinstance(function, SLReLU) else torch.ones_like(a)


def _inverse(function: nn.Module, z: Tensor) -> Tensor:
    if isinstance(function, nn.LeakyReLU):
        return torch.where(z > 0, z, z / function.negative_slope)
    return function.inverse(z) if isinstance(function, SLReLU) else z
