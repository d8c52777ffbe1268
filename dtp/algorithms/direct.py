"""Rules whose targets go straight from the output to every hidden layer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from dtp.algorithms.local_targets import Activations, LocalTargets
from dtp.algorithms.options import DDTPControlOptions, DDTPLinearOptions, DDTPRHLOptions, DFAOptions
from dtp.algorithms.target_propagation import TargetPropagation
from dtp.errors import UserError
from dtp.feedback import FeedbackNetwork, drl_loss, layer_operations, repeat_samples, require_several_layers
from dtp.feedback.direct import AverageMap, BroadcastMap, DirectMap, kernel_positions
from dtp.feedback.layers import has_matrix
from dtp.models.modules import SameConv2d
from dtp.models.shapes import output_shape


class DDTPLinear(TargetPropagation):
    """Direct DTP with linear maps, DDTP-linear (Meulemans et al. 2020, section 4)::

        t_{n-1} = s_{n-1} + Q_n t_N - Q_n s_N                        n = 2 .. N

    Each Q_n learns by itself, with the difference reconstruction loss, to reconstruct a disturbance of s_{n-1} from its
    effect on the output. The minimiser is a damped pseudo-inverse of d s_N / d s_{n-1}.

    Left out by the paper: a bias of Q_n. There is none here; it would have no effect. beta and ``local_loss_scale`` are
    as in ``drl``.
    """

    Options = DDTPLinearOptions
    options: DDTPLinearOptions

    def make_feedback(self) -> FeedbackNetwork:
        dtype, shapes = next(self.network.parameters()).dtype, self.network.shapes
        return FeedbackNetwork(
            {
                n: DirectMap(self.network.num_classes, shapes[n - 1], self.has_bias(n), dtype, "xavier-normal")
                for n in range(2, self.top + 1)
            }
        )

    def has_bias(self, n: int) -> bool:
        """Whether the map to s_{n-1} has a bias."""
        return False

    def direct(self, n: int, y: Tensor) -> Tensor:
        """Q_n y, (B, *shape of s_{n-1}), of an output y (B, classes)."""
        return self.feedback[n](y)

    def lower_target(self, n: int, targets: dict[int, Tensor], activations: Activations) -> Tensor:
        N, s = self.network.depth, activations.s
        return s[n - 1] + self.direct(n, targets[N]) - self.direct(n, s[N])

    def feedback_loss(self, n: int, activations: Activations, noise: tuple[Tensor, ...]) -> Tensor:
        a, m = activations, self.options.noise_samples
        (eps,) = noise
        return drl_loss(
            a.s[n - 1],
            eps,
            lambda v: self.output_from(n, v, a, m),
            lambda y: self.reconstruction(n, y, a),
            scale=self.loss_scale(n),
            noise_samples=m,
        )

    def loss_scale(self, n: int) -> float:
        """What the loss is divided by the square of."""
        return self.noise_scale(n)

    def reconstruction(self, n: int, y: Tensor, activations: Activations) -> Tensor:
        """What is to be the disturbed s_{n-1}, of the output y (m B, classes) that the disturbance led to."""
        m, s = self.options.noise_samples, activations.s
        return repeat_samples(s[n - 1] - self.direct(n, s[self.network.depth]), m) + self.direct(n, y)


class DDTPControl(DDTPLinear):
    """The control of DDTP-linear (Meulemans et al. 2020): Q_n learns to reconstruct without the difference, as Q_n y.

    Its loss is the mean of (Q_n y - v)^2, not divided by sigma^2. The authors' CIFAR-10 configuration for it actually
    selects DDTP-linear. The rule here is what their text describes.

    Left out by the paper: a bias of Q_n, which here has an effect. As in the authors' code, maps to fully connected
    layers have one, which starts at 0, and maps to convolutional layers have none.
    """

    Options = DDTPControlOptions
    options: DDTPControlOptions

    def has_bias(self, n: int) -> bool:
        return len(self.network.shapes[n - 1]) == 1

    def loss_scale(self, n: int) -> float:
        return 1.0

    def reconstruction(self, n: int, y: Tensor, activations: Activations) -> Tensor:
        return self.direct(n, y)


class DDTPRHL(DDTPLinear):
    """Direct DTP through a random hidden layer, DDTP-RHL (Meulemans et al. 2020)::

        u(y) = tanh(R y + r),    t_{n-1} = s_{n-1} + tanh(Q_n u(t_N)) - tanh(Q_n u(s_N))

    R and r are shared, random and never trained. Q_n has a bias. The map of the last hidden layer is affine in the
    output itself, as the comments in the authors' code say (the code applies tanh to it as well). So its bias has no
    effect.

    Left out by the paper: the distribution of R and r. As in the authors' code it is PyTorch's for a linear layer,
    uniform within 1 / sqrt(classes) for both. With Glorot's distribution R would be so small that u is nearly linear.
    """

    Options = DDTPRHLOptions
    options: DDTPRHLOptions

    def make_feedback(self) -> FeedbackNetwork:
        o, classes, dtype = self.options, self.network.num_classes, next(self.network.parameters()).dtype
        self.random_hidden = DirectMap(classes, (o.hidden_feedback,), True, dtype)
        self.random_hidden.requires_grad_(False)
        maps = {
            n: DirectMap(o.hidden_feedback, self.network.shapes[n - 1], True, dtype, "xavier-normal")
            for n in range(2, self.top)
        }
        last = DirectMap(classes, self.network.shapes[self.top - 1], True, dtype, "xavier-normal")
        return FeedbackNetwork({**maps, **({self.top: last} if self.top > 1 else {})})

    def direct(self, n: int, y: Tensor) -> Tensor:
        if n == self.network.depth:
            return self.feedback[n](y)
        return self.feedback[n](self.random_hidden(y).tanh()).tanh()


class DFA(LocalTargets):
    """Direct feedback alignment (Nokland 2016): t_{n-1} = s_{n-1} - B_n d loss / d s_N, with fixed random B_n.

    The layer's own nonlinearity and pooling are differentiated, and the output layer gets its true gradient. Dense maps
    need (sum of hidden units) x classes numbers. With ``dfa_form="broadcast"`` the error is repeated over space and
    goes through a random kernel where the next layer is a convolution, and is the same in every place of a channel
    where the next layer averages over space (biotorch). The memory for the maps is reported before it is allocated, and
    refused if it exceeds that of the machine.

    Left out by the paper: the distribution of B_n (``backward_init``: that of a linear
    layer from the output, or of the transposed convolution).
    """

    Options = DFAOptions
    options: DFAOptions

    def __init__(self, network, options: DFAOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        require_several_layers(list(network))
        self.feedback = self.make_feedback()

    def make_feedback(self) -> FeedbackNetwork:
        """The fixed maps from the output to s_{n-1}, for n = 2..N."""
        maps = {n: self._map(n) for n in range(2, self.network.depth + 1)}
        itemsize = next(self.network.parameters()).dtype.itemsize
        self._require_memory(sum(numbers for numbers, _ in maps.values()) * itemsize)
        return FeedbackNetwork({n: make() for n, (_, make) in maps.items()}).requires_grad_(False)

    def lower_target(self, n: int, targets: dict[int, Tensor], activations: Activations) -> Tensor:
        N, s = self.network.depth, activations.s
        return s[n - 1] + self.feedback[n](targets[N] - s[N])

    def _map(self, n: int) -> tuple[int, Callable[[], nn.Module]]:
        """How many numbers the map to s_{n-1} holds, and what makes it."""
        classes, shape, init = self.network.num_classes, self.network.shapes[n - 1], self.options.backward_init
        dtype, reader = next(self.network.parameters()).dtype, self._reader(n)
        if isinstance(reader, nn.AdaptiveAvgPool2d):
            return classes * shape[0], lambda: AverageMap(classes, shape, dtype, init)
        if reader is None:
            return classes * shape.numel(), lambda: DirectMap(classes, shape, False, dtype, init)
        numbers = classes * shape[0] * kernel_positions(reader)
        return numbers, lambda: BroadcastMap(classes, shape, reader, output_shape(reader, shape), init)

    def _reader(self, n: int) -> nn.Conv2d | SameConv2d | nn.AdaptiveAvgPool2d | None:
        """The convolution that reads the input of layer n, or what averages it over space, for a broadcast map."""
        shape = self.network.shapes[n - 1]
        for module in layer_operations(self.network[n]) if self.options.dfa_form == "broadcast" else ():
            if isinstance(module, nn.Conv2d | SameConv2d):
                return module
            if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
                return module
            # What stands before it may not change the shape: the map goes to the layer's own input.
            if has_matrix(module) or output_shape(module, shape) != shape:
                break
        return None

    def _require_memory(self, needed: int) -> None:
        text = f"{needed / 2**20:.1f} MiB"
        say(f"{type(self).__name__.lower()}: the fixed maps ({self.options.dfa_form}) take {text}.")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > memory:
            less = "" if self.options.dfa_form == "broadcast" else "--dfa-form broadcast or "
            raise UserError(
                f"--dfa-form {self.options.dfa_form}: the fixed maps would take {text}, more than the "
                f"{memory / 2**20:.1f} MiB of this machine; use {less}a smaller network."
            )


@rank_zero_only
def say(text: str) -> None:
    """Print to the standard error of the first process."""
    print(text, file=sys.stderr)
