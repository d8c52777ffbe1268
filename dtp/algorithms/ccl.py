"""Counter-current learning: a feedback network that reads the label."""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.optim import Optimizer

from dtp.algorithms.local_losses import LocalLosses, function_place
from dtp.algorithms.options import CCLOptions
from dtp.contracts import gradients
from dtp.errors import UserError
from dtp.feedback import FeedbackSettings, LinearMap, layer_operations, require_several_layers
from dtp.feedback.layers import require_known_functions
from dtp.feedback.operations import not_in_place, operation_of
from dtp.models.inputs import kinds, shape_text
from dtp.models.modules import InnerFunction, PaddedShortcut, Residual, ResidualUnit, SameConv2d
from dtp.models.network import Network
from dtp.models.precision import full_precision
from dtp.models.shapes import output_shape


class CCL(LocalLosses):
    """Counter-current learning (Kao and Hariharan 2024): images go up in one network, classes down in another::

        a_0 = x,  a_n = F_n(a_{n-1});        b_N = the one-hot classes,  b_{n-1} = G_n(b_n)
        L_n = (256 c / d_n) mean over images i, classes k of (<a_n^i, b_n^k> - T_ik)^2,    n = 0 .. N-1
        L_N = cross-entropy(a_N, y)

    with T_ik = 1 if image i is of class k, else 0. Every input of a layer is a constant, so L_n trains F_n and G_{n+1}
    only. The two networks learn to agree on each class, layer by layer. All classes go down once, whatever the batch. c
    is ``correlation``. With ``similarity`` cosine, the loss of the convolutional networks, a and b are divided by their
    lengths, and L_n = c mean (a^ b^T - T)^2 + q (mean (a^ a^T - I)^2 + mean (b^ b^T - I)^2), q being ``decorrelation``;
    this is not a mean over images. The rule is backprop in no limit.

    G_n mirrors F_n with separate weights and without biases: linear maps, convolutions of stride 1 (after nearest
    upsampling where F_n pools or strides), and the nonlinearity that made a_{n-1}. One optimizer steps both networks;
    each is clipped by itself. With rates (``layer_lr``) or ``eps`` by layer the feedback network has ``lr`` and the
    first ``eps``. Where the user gives the optimizer of the forward weights, the feedback network has one of its own,
    by the options.

    Where paper and code differ, this follows the code; the paper normalises all products and compares with the identity
    over the batch. The authors clip the gradient of a whole network (``clip_norm``), which couples its layers;
    ``layer_clip`` clips layer by layer. Their warmup of the losses counts the batches of an epoch, ours
    (``loss_warmup``) those of the run.

    Left out by the paper: layers other than linear ones, convolutions and pooling. Normalisations and random operations
    have no mirror.
    """

    Options = CCLOptions
    options: CCLOptions
    made_for_inputs = True

    def __init__(self, network: Network, options: CCLOptions | None = None, seed: int = 0):
        super().__init__(network, options, seed)
        require_several_layers(list(network))
        require_known_functions(network, network.shapes)
        if self.options.flooding and self.task.has_linear_units(self.options.loss):
            raise UserError(
                "--flooding: expected outputs that are probabilities, by --loss cross-entropy or binary-cross-entropy, "
                f"found --loss {self.options.loss}; give one of these, or leave --flooding out."
            )
        self.feedback = nn.ModuleList(_mirror_of(n, network) for n in range(1, network.depth + 1))
        self.feedback_optimizer: Optimizer | None = None
        self.feedback.to(next(network.parameters()).dtype).requires_grad_(self.options.train_feedback)

    # --- the rule -----------------------------------------------------------------------------------------------------

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        logits, losses = self.all_losses(x, y)
        # That of the image trains the feedback alone.
        return logits, {n: loss for n, loss in losses.items() if n > 0}

    def all_losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits (B, classes), detached, and L_n for n = 0..N."""
        N = self.network.depth
        a = [full_precision(x.detach())]
        for layer in self.network:
            a.append(full_precision(layer(a[-1].detach())))
        b = self.class_signals(like=a[0])
        match = self.task.wanted(y, like=a[N])
        heard = torch.ones_like(match[:, :1])
        if self.options.flooding:
            certain = (self.task.units(self.options.loss, a[N].detach()) * match).sum(1, keepdim=True) > 0.9
            heard = heard.masked_fill(certain, 0.0)
        losses = {n: self.pair_loss(heard * a[n].flatten(1), b[n].flatten(1), match) for n in range(N)}
        losses[N] = self.task_loss(a[N], y)
        return a[N].detach(), {n: self._weight_of_losses * loss for n, loss in losses.items()}

    def class_signals(self, like: Tensor) -> list[Tensor]:
        """b_n for n = 0..N, (classes, *shape), in the type of ``like``; the graph of b_n reaches G_{n+1} alone."""
        b = [torch.eye(self.network.num_classes).to(like)]
        for mirror in reversed(self.feedback):
            b.append(full_precision(mirror(b[-1].detach())))
        return b[::-1]

    def pair_loss(self, a: Tensor, b: Tensor, match: Tensor) -> Tensor:
        """What layer n of both networks learns.

        Args:
            a: activations (B, d).
            b: class signals (classes, d).
            match: (B, classes), 1 where the image is of the class, else 0.
        """
        o = self.options
        if o.similarity == "inner":
            return 256 * o.correlation / a.shape[1] * (a @ b.t() - match).square().mean()
        a, b = (signal / (signal.norm(dim=1, keepdim=True) + 1e-8) for signal in (a, b))
        decorrelated = sum((s @ s.t() - torch.eye(len(s)).to(s)).square().mean() for s in (a, b))
        return o.correlation * (a @ b.t() - match).square().mean() + o.decorrelation * decorrelated

    def forward_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, found = super().forward_gradients(x, y)
        return logits, self._centred(found)

    def training_batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits, losses = self.all_losses(x, y)
        weights = [*self.forward_parameters, *self.feedback_parameters]
        found = self._centred(gradients(self, self.network, losses.values(), weights))
        # A user's own optimizers may hold part of the feedback network.
        groups = self.feedback_optimizer.param_groups if self.feedback_optimizer else []
        apart = {id(p) for group in groups for p in group["params"]}
        for optimizer, chosen in ((self.forward_optimizer, False), (self.feedback_optimizer, True)):
            pairs = [(p, g) for p, g in zip(weights, found, strict=True) if (id(p) in apart) == chosen]
            if pairs:
                self.step(optimizer, [p for p, _ in pairs], [g for _, g in pairs])
        return logits, {}

    def gradient_scale(self, n: int) -> float:
        return self._weight_of_losses

    @property
    def _weight_of_losses(self) -> float:
        warmup = self.options.loss_warmup
        return min((self.batches_done + 1) / warmup, 1.0) if warmup else 1.0

    def _centred(self, found: list[Tensor]) -> list[Tensor]:
        if not self.options.centralise:
            return found
        return [g - g.flatten(1).mean(1).view(-1, *(1 for _ in g.shape[1:])) if g.dim() > 1 else g for g in found]

    # --- both networks in one optimizer -------------------------------------------------------------------------------

    @property
    def feedback_parameters(self) -> list[Tensor]:
        """The weights of the feedback network that are trained."""
        return [parameter for parameter in self.feedback.parameters() if parameter.requires_grad]

    def forward_groups(self) -> list[Any]:
        groups = super().forward_groups()
        if not isinstance(groups[0], dict):
            groups = [{"params": groups, "name": "forward"}]
        feedback = {"params": self.feedback_parameters, "lr": self.options.lr, "name": "feedback"}
        return [*groups, feedback] if self.feedback_parameters else groups

    def feedback_optimizer_list(self) -> list[Optimizer]:
        stepped = {id(p) for each in self._forward_optimizers for group in each.param_groups for p in group["params"]}
        weights = [p for p in self.feedback_parameters if id(p) not in stepped]
        self.feedback_optimizer = None
        if not weights:
            return []
        self.feedback_optimizer = self._optimizer_of([{"params": weights, "name": "feedback"}], self.options.lr)
        return [self.feedback_optimizer]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        o = self.options
        if optimizer is not self.forward_optimizer and optimizer is not self.feedback_optimizer:
            # All gradients were clipped before the first of a user's own, and would get a little shorter each time.
            return
        if o.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.feedback.parameters(), o.clip_norm)
        if o.layer_clip > 0:
            for layer in (*self.network, *self.feedback):
                # Of none torch warns.
                if parameters := list(layer.parameters()):
                    torch.nn.utils.clip_grad_norm_(parameters, o.layer_clip)

    def feedback_weights(self) -> dict[int, list[tuple[Tensor, Tensor]]]:
        pairs = {}
        for n, mirror in enumerate(self.feedback, 1):
            forward, back = (_affine(part) for part in (self.network[n], mirror))
            if len(forward) == len(back) == 1:
                groups = getattr(forward[0], "groups", 1)
                weight = forward[0].weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
                # A convolution is undone by one with its kernels turned round.
                pairs[n] = [(back[0].weight, weight.flip(list(range(2, weight.dim()))))]
        return pairs


def _affine(part: nn.Module) -> list[nn.Linear | nn.Conv1d | nn.Conv2d]:
    return [module for module in part.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)]


class _Unit(nn.Module):
    """Mirror of a residual unit: the sum of those of its branches."""

    def __init__(self, unit: ResidualUnit, shape: Size):
        super().__init__()
        self.branch, self.shortcut = (nn.Sequential(*_mirrors(part, shape)) for part in (unit.branch, unit.shortcut))

    def forward(self, b: Tensor) -> Tensor:
        return self.branch(b) + self.shortcut(b)


def _mirror_of(n: int, network: Network) -> nn.Sequential:
    """G_n: (classes, *shape of layer n) to (classes, *shape of layer n-1), with the nonlinearity that made a_{n-1}."""
    try:
        mirrors = _mirrors(network[n], network.shapes[n - 1])
    except UserError as error:
        raise UserError(f"Layer {n}: {error}") from error
    _require_fit(n, network, mirrors)
    place = function_place(network[n - 1]) if n > 1 else None
    return nn.Sequential(*mirrors, *([] if place is None else [not_in_place(layer_operations(network[n - 1])[place])]))


def _require_fit(n: int, network: Network, mirrors: list[nn.Module]) -> None:
    """Raise UserError unless ``mirrors`` lead back to the shape that layer n takes, for what only moves values."""
    try:
        found = output_shape(nn.Sequential(*mirrors), network.shapes[n])
    except (RuntimeError, ValueError):
        found = None
    if found != network.shapes[n - 1]:
        raise UserError(
            f"Layer {n}: ccl knows no way back through what changes the shape of values ({kinds(network[n])}), from "
            f"{shape_text(network.shapes[n])} to {shape_text(network.shapes[n - 1])}; use another network, or a rule "
            "such as fa or dfa."
        )


def _mirrors(layer: nn.Module, shape: Size) -> list[nn.Module]:
    """What undoes the operations of ``layer``, whose input has ``shape``, from the last to the first."""
    mirrors: list[nn.Module] = []
    for module in layer_operations(layer):
        below, shape = shape, output_shape(module, shape)
        mirrors[:0] = _mirror(module, below, shape)
    return mirrors


def _mirror(module: nn.Module, below: Size, above: Size) -> list[nn.Module]:
    """What brings signals of shape ``above`` back to shape ``below``; nothing for the layer's own nonlinearity."""
    if isinstance(module, ResidualUnit):
        return [_Unit(module, below)]
    if isinstance(module, InnerFunction):
        return [not_in_place(module.function)]
    if isinstance(module, PaddedShortcut):
        return [nn.Upsample(tuple(below[1:])), PaddedShortcut(above[0], below[0], stride=1)]
    if isinstance(module, nn.Linear):
        return [nn.Linear(module.out_features, module.in_features, bias=False)]
    if isinstance(module, nn.Conv1d | nn.Conv2d | SameConv2d):
        conv = module.conv if isinstance(module, SameConv2d) else module
        kind: Any = nn.Conv1d if isinstance(conv, nn.Conv1d) else nn.Conv2d
        sizes = conv.out_channels, conv.in_channels, conv.kernel_size
        wider = [] if below[1:] == above[1:] else [nn.Upsample(tuple(below[1:]))]
        return [*wider, kind(*sizes, padding="same", dilation=conv.dilation, groups=conv.groups, bias=False)]
    if next(module.parameters(), None) is not None:
        if not isinstance(module, Residual):
            # A sum has no mirror, nor need its branches have feedback.
            made = operation_of(module).make_feedback(module, below, FeedbackSettings())
            if isinstance(made, LinearMap):
                return [made]
        if below != above:
            raise UserError(f"ccl knows no mirror of the layer type {type(module).__name__}; use another network.")
    if below == above:
        # A nonlinearity, a normalisation, or what is drawn.
        return []
    if below.numel() == above.numel():
        return [nn.Unflatten(1, tuple(below))]
    # Pooling, or a selection of the first units.
    return [nn.Upsample(tuple(below[1:])) if len(below) > 1 else nn.ConstantPad1d((0, below[0] - above[0]), 0.0)]
