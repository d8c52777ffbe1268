"""Rules for one layer, in which a weight sees only the activity on its two sides: Hebb, delta, competitive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dtp.algorithms.base import Algorithm
from dtp.algorithms.options import CompetitiveOptions, DeltaOptions, HebbOptions, SingleLayerOptions
from dtp.data.shares import training_share
from dtp.distributed.averaging import average_tensors
from dtp.errors import UserError
from dtp.feedback import layer_operations, require_own_weights
from dtp.feedback.noise import seeded_generator
from dtp.models.network import Network
from dtp.models.precision import full_precision, no_autocast

# What a rule remembers of a batch, by name.
Seen = dict[str, Tensor]


class SingleLayer(Algorithm):
    """Template of the rules of one linear layer, a = W x + b (Lee 2018, section 1.2).

    On every batch: outputs, the change of the weights that the rule asks for, and one step of the optimizer on its
    negative. Everything is products of activities: no automatic differentiation.

    Raises:
        UserError: the network is anything but one linear layer.
    """

    Options = SingleLayerOptions
    options: SingleLayerOptions
    learns_any_loss = False
    uses_autograd = False

    def __init__(self, network: Network, options: SingleLayerOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        require_own_weights(_only_layer(network), "the layer")

    @property
    def linear(self) -> nn.Linear:
        """The layer; not an attribute, which would register it a second time."""
        return _only_layer(self.network)

    # --- hooks --------------------------------------------------------------------------------------------------------

    def changes(self, x: Tensor, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Seen]:
        """Directions of W (K, d) and b (K,), before the learning rate, and what :meth:`remember` is to be told.

        Of images ``x`` (B, d), what the layer makes of them, ``output`` (B, K), and the goals ``y``; constants. Over
        ranks the mean of the directions is taken. Must change nothing.
        """
        raise UserError(f"{type(self).__name__} does not say what weights learn; define changes in it.")

    def remember(self, seen: Seen) -> dict[str, Tensor]:
        """Take the batch into running statistics, after the step. Returns what is logged, scalars."""
        return {}

    def hold(self) -> None:
        """Bring the weights to what they are held to, after every step; not at all by default."""

    # --- the template -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self._learned(x, y)[:2]

    @torch.no_grad()
    def training_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        output, gradients, seen = self._learned(x, y)
        self.step(self.forward_optimizer, self.forward_parameters, gradients)
        with no_autocast(x):
            scalars = self.remember(seen)
        return output, scalars

    def step(self, optimizer: Optimizer | None, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        super().step(optimizer, parameters, gradients)
        with torch.no_grad():
            self.hold()

    def _learned(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor], Seen]:
        """Outputs (B, K), gradients of the forward parameters, and what is to be remembered."""
        with no_autocast(x):
            x = full_precision(x).flatten(1)
            output = self.linear(x)
            weight, bias, seen = self.changes(x, output, y)
        by_parameter = {id(self.linear.weight): -weight}
        if self.linear.bias is not None:
            by_parameter[id(self.linear.bias)] = -bias
        return output, [by_parameter[id(parameter)] for parameter in self.forward_parameters], seen


class Hebb(SingleLayer):
    """Hebbian learning (Hebb 1949; Lee 2018, equation 1.6; Dayan and Abbott 2001 for the covariance)::

        dW = lr mean(h x^T),    or    dW = lr mean((h - <h>) (x - <x>)^T)

    with running means < >. Under classification h is the one-hot label, held at the outputs while the image is shown. A
    row of W becomes the mean image of its class, minus that of all classes. Under clustering h is the activity of the
    outputs: ``units`` that compete by softmax, or linear ones. A bias is the weight of an input of 1 from which no mean
    is taken. Weights grow without bound unless ``weight_decay`` or ``normalise_rows`` limits them.

    Left out by the sources: the rate of the running means (``mean_rate``, per batch), how units become different
    without labels (here by the softmax), and how weights stay bounded (as above).
    """

    Options = HebbOptions
    options: HebbOptions
    mean_input: Tensor
    mean_unit: Tensor

    def __init__(self, network: Network, options: HebbOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        like = self.linear.weight
        self.register_buffer("mean_input", like.new_zeros(self.linear.in_features))
        self.register_buffer("mean_unit", like.new_zeros(self.linear.out_features))
        self.hold()

    def changes(self, x: Tensor, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Seen]:
        h = self._units(output, y)
        seen = {"input": x.mean(0), "unit": h.mean(0)}
        if self.options.hebb_form == "covariance":
            h, x = h - self.mean_unit, x - self.mean_input
        return h.t() @ x / len(x), h.mean(0), seen

    def remember(self, seen: Seen) -> dict[str, Tensor]:
        rate: Any = self.options.mean_rate
        if not self.batches_done:
            # The first batch, of no earlier training, has nothing to be weighed against. Over ranks the means are
            # averaged after the batch.
            rate = self.mean_input.new_tensor(1.0).where(~self.mean_input.any(), rate)
        self.mean_input.lerp_(seen["input"], rate)
        self.mean_unit.lerp_(seen["unit"], rate)
        return {"weight_norm": self.linear.weight.norm(dim=1).mean()}

    @torch.no_grad()
    def hold(self) -> None:
        if not self.options.normalise_rows:
            return
        weight, bias = self.linear.weight, self.linear.bias
        squares = weight.square().sum(1) + (0 if bias is None else bias.square())
        lengths = _not_zero(squares.sqrt())
        weight.div_(lengths[:, None])
        if bias is not None:
            bias.div_(lengths)

    def _units(self, output: Tensor, y: Tensor) -> Tensor:
        if self.task.uses_labels:
            return self.task.wanted(y, like=output)
        return output.softmax(1) if self.options.units == "competing" else output


class Delta(SingleLayer):
    """The delta rule (Widrow, Hoff 1960; Lee 2018, equations 1.7 and 1.8)::

        dW = lr mean((y - h) f'(a) x^T),    h = f(a)

    The unit f and its slope follow from ``loss``: linear for the squared distance, softmax or sigmoid for their
    cross-entropies, which cancel f'. In an auto-encoder units are sigmoids, and the squared distance keeps the slope.
    So with ``slope`` auto the rule is backprop, which is local for one layer. ``slope`` no drops f' where the loss has
    it; yes keeps it where the cross-entropy of sigmoids cancels it.

    Left out by the sources: units that depend on each other. A softmax has no slope for each unit by itself, so
    ``slope`` yes is refused for it.
    """

    Options = DeltaOptions
    options: DeltaOptions

    def __init__(self, network: Network, options: DeltaOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        if self.options.slope == "yes" and self.options.loss == "cross-entropy":
            raise UserError(
                "--slope yes: expected units with a slope of their own, --loss squared or binary-cross-entropy, found "
                "the softmax of cross-entropy; give one of these, or leave --slope out."
            )

    def changes(self, x: Tensor, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Seen]:
        o, h = self.options, self.task.units(self.options.loss, output)
        error = self.task.wanted(y, like=output) - h
        # The slope of linear units is 1. A softmax has none: ``slope`` yes is refused for it.
        if not self.task.has_linear_units(o.loss) and (o.slope == "yes" or (o.slope == "auto" and o.loss == "squared")):
            error = error * (h * (1 - h))
        return error.t() @ x / len(x), error.mean(0), {}


class Competitive(SingleLayer):
    """Competitive learning, the winner takes all (Rumelhart, Zipser 1985; Lee 2018, equation 1.9)::

        dw_i = lr_i (x - w_i)    for the winner i of x alone

    The rows of W are prototypes. With ``winner`` distance the bias is held at -|w_i|^2 / 2. So the nearest prototype
    has the largest output, w_i x - |w_i|^2 / 2: minus half the squared distance, up to |x|^2 / 2. With product the bias
    is held at 0, which requires images and prototypes of about equal lengths. ``pull`` batch minimises the objective of
    k-means, half the mean squared distance to the winner. With ``pull`` count and ``lr`` 1 it is online k-means
    (MacQueen 1967). ``train/quantisation`` is that objective, ``train/prototypes`` the number of prototypes in use.

    Left out by the sources: what happens to prototypes that never win. ``conscience`` gives prototypes that win less
    than their share a head start of conscience (1 - K share) in squared distance (after DeSieno 1988). ``revive_below``
    moves them onto a random image. The winners of a batch are found with the prototypes from before the batch, unless
    ``one_by_one`` is set.
    """

    Options = CompetitiveOptions
    options: CompetitiveOptions
    share: Tensor
    won: Tensor
    waits = "whether a prototype has died out, and is put onto an image, is looked at in every batch"

    def __init__(self, network: Network, options: CompetitiveOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        o = self.options
        for flag in ("momentum", "weight_decay", "clip_norm", "clip_each"):
            if getattr(o, flag):
                raise UserError(
                    f"--{flag.replace('_', '-')}: expected 0, for prototypes move by a fraction of the way to images, "
                    f"found {getattr(o, flag)}; leave it out."
                )
        if self.linear.bias is None and o.winner == "distance" and not o.normalise_rows:
            raise UserError(
                "--winner distance: expected a layer with biases, which hold the lengths of the prototypes, found "
                "none; give --bias true, --normalise-rows true or --winner product."
            )
        if self.linear.bias is not None:
            # Held to the weights, not trained.
            self.linear.bias.requires_grad_(False)
        units, like = self.linear.out_features, self.linear.weight
        # Running share of the images won, and how many were won since the prototype was put where it is.
        self.register_buffer("share", like.new_full((units,), 1 / units))
        self.register_buffer("won", like.new_zeros(units))
        self._rank = 0
        self.hold()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.options.one_by_one and self.trainer.world_size > 1:
            raise UserError(
                "--one-by-one: expected one device, for each image sees what the one before has changed, found "
                f"{self.trainer.world_size}; leave it out, or use --devices 1."
            )
        self._rank, _ = training_share(self.trainer)

    def changes(self, x: Tensor, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Seen]:
        weight, o = self.linear.weight, self.options
        # Half the squared distance to the winner, by the prototypes from before the step.
        winners = (output + self._head_start()).argmax(1)
        seen = {"distance": 0.5 * (x - weight[winners]).square().sum(1).mean()}
        if o.one_by_one:
            moved, wins = self._one_by_one(x)
            direction = (moved - weight) / self._rate
        else:
            won = torch.zeros_like(output).scatter_(1, winners[:, None], 1.0)
            wins = won.sum(0)
            # The sum over the images won; below, in the mean over ranks, that over all ranks' images.
            direction = won.t() @ x - wins[:, None] * weight
        seen["wins"] = self._over_ranks(wins)
        if o.pull == "batch" and not o.one_by_one:
            direction /= len(x)
        elif not o.one_by_one:
            counted = seen["wins"] + (self.won if o.pull == "count" else 0)
            direction *= self._ranks / counted.clamp(min=1)[:, None]
        seen["revived"] = self._revived()
        if seen["revived"].any():
            self._put_onto_images(direction, seen["revived"].nonzero()[:, 0], x)
        return direction, torch.zeros_like(output[0]), seen

    def step(self, optimizer: Optimizer | None, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        # A user may have given it, with groups of any settings.
        groups = optimizer.param_groups if optimizer is not None else []
        plain = isinstance(optimizer, SGD | None) and not any(g["momentum"] or g["weight_decay"] for g in groups)
        if not plain:
            raise UserError(
                f"configure_optimizers of {type(self).__name__}: expected torch.optim.SGD without momentum and "
                "weight_decay, for prototypes move by a fraction of the way to images, found "
                f"{type(optimizer).__name__}{'' if not isinstance(optimizer, SGD) else ' with them'}; fix "
                f"{type(self).__name__}."
            )
        super().step(optimizer, parameters, gradients)

    def remember(self, seen: Seen) -> dict[str, Tensor]:
        wins, revived = seen["wins"], seen["revived"]
        self.share.lerp_(wins / wins.sum(), self.options.share_rate)
        self.won += wins
        # A prototype on its new image begins anew.
        self.share.masked_fill_(revived, 1 / len(self.share))
        self.won.masked_fill_(revived, 0)
        return {"quantisation": seen["distance"], "prototypes": (wins > 0).sum().to(wins)}

    @torch.no_grad()
    def hold(self) -> None:
        if self.options.normalise_rows:
            self.linear.weight.div_(_not_zero(self.linear.weight.norm(dim=1, keepdim=True)))
        if self.linear.bias is not None:
            self.linear.bias.copy_(self._bias(self.linear.weight))

    def _bias(self, weight: Tensor) -> Tensor:
        """What is added to the products of prototypes (K, d) with an image, (K,)."""
        lengths = weight.square().sum(1)
        return -0.5 * lengths if self.options.winner == "distance" else torch.zeros_like(lengths)

    def _head_start(self) -> Tensor | float:
        """What is added to outputs before the largest wins."""
        conscience = 0.5 * self.options.conscience
        return conscience * (1 - len(self.share) * self.share) if conscience else 0.0

    def _one_by_one(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The prototypes after one image of ``x`` (B, d) after the other, and how many each of them won."""
        o, weight, wins = self.options, self.linear.weight.clone(), torch.zeros_like(self.won)
        bias, head_start, rate = self._bias(weight), self._head_start(), self._rate
        for image in x:
            i = (weight @ image + bias + head_start).argmax()
            wins[i] += 1
            step = rate / (self.won[i] + wins[i]) if o.pull == "count" else rate
            weight[i] += step * (image - weight[i])
            if o.normalise_rows:
                weight[i] /= _not_zero(weight[i].norm())
            bias[i] = self._bias(weight[i][None])[0]
        return weight, wins

    def _revived(self) -> Tensor:
        """Which prototypes are to be put onto an image of this batch, (K,) bool."""
        rare = self.share * len(self.share) < self.options.revive_below
        if self.batches_done == 0 and self.options.first_prototypes == "images":
            # Those that have won images before, of an earlier training, are not the first.
            return rare | ~self.won.any()
        return rare

    def _put_onto_images(self, direction: Tensor, rows: Tensor, x: Tensor) -> None:
        """Make ``direction`` lead the prototypes ``rows`` onto random images, whichever rank has them."""
        ranks, images = self._ranks, len(x) * self._ranks
        # A function of the seed and the batch: the same on all ranks and after a resume.
        order = torch.randperm(
            images, generator=seeded_generator(torch.device("cpu"), self.noise_streams.seed, self.batches_done)
        ).to(rows.device)
        chosen = order[torch.arange(len(rows), device=rows.device) % images]
        # Image i of the batch is row i // ranks of rank i % ranks; the other ranks add nothing to the mean.
        own = (chosen % ranks == self._rank).to(x.dtype)[:, None]
        way = x[chosen // ranks] - self.linear.weight[rows]
        direction[rows] = own * (ranks / self._rate) * way

    def _over_ranks(self, counts: Tensor) -> Tensor:
        """The sum of ``counts`` over the ranks, which share the images."""
        if self._ranks > 1:
            counts = counts.clone()
            average_tensors([counts])
            counts *= self._ranks
        return counts

    @property
    def _rate(self) -> float:
        if self.forward_optimizer is None:
            return (self.options.layer_lr or [self.options.lr])[0]
        # A schedule may end at 0, where nothing moves.
        return max(self.forward_optimizer.param_groups[0]["lr"], 1e-12)


def _only_layer(network: Network) -> nn.Linear:
    """The linear map of a network that is nothing else.

    Raises:
        UserError: it is.
    """
    modules = [module for layer in network for module in layer_operations(layer) if not isinstance(module, nn.Flatten)]
    if len(modules) != 1 or not isinstance(modules[0], nn.Linear):
        found = ", ".join(type(module).__name__ for module in modules)
        raise UserError(
            f"Rules of a single layer take a network that is one linear layer, found {found}; use --model mlp --widths "
            "(without values)."
        )
    return modules[0]


def _not_zero(lengths: Tensor) -> Tensor:
    return lengths.clamp(min=torch.finfo(lengths.dtype).tiny)
