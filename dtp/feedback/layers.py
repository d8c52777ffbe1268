"""Feedback layers made from forward layers, and forward passes that return their context."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Size, Tensor, nn

from dtp.errors import UserError
from dtp.feedback.context import Context, SlopeContext
from dtp.feedback.operations import (
    BatchNormAdjoint,
    FeedbackOperation,
    FeedbackSettings,
    Gate,
    LinearMap,
    MaxUnpool,
    PassThrough,
    PoolingAdjoint,
    Routing,
    Unflatten,
    is_elementwise,
    is_registered,
    keeps_forward,
    operation_of,
    slope_of,
)
from dtp.models.modules import LocallyConnected2d, Uncut
from dtp.models.shapes import has_hooks, output_shape

# Operations that are linear in what they are given, for one context.
_LINEAR = (BatchNormAdjoint, MaxUnpool, PassThrough, PoolingAdjoint, Unflatten)

# Feedback operations, each with the place of its context.
Steps = list[tuple[FeedbackOperation, int | None]]


class NotReducible(Exception):
    """A layer has no reduced form; the text is the reason, for "literal, because ..."."""


def _definer(kind: type, method: str) -> int:
    """Place in the order of inheritance of the class that defines a method; smaller is more derived."""
    return next(i for i, cls in enumerate(kind.__mro__) if method in cls.__dict__)


def layer_operations(layer: nn.Module) -> list[nn.Module]:
    """The operations of a forward layer in order: the children of an ``nn.Sequential``, or the module itself.

    A subclass with a ``forward`` of its own may do more than its children, and is one operation.
    """
    if isinstance(layer, nn.Sequential) and keeps_forward(layer, nn.Sequential):
        return list(layer)
    return [layer]


def forward_with_context(
    layer: nn.Module,
    x: Tensor,
    given: Context | None = None,
    routing: Routing = "noisy",
    *,
    affine: int | None = None,
    slopes: Collection[int] = (),
) -> tuple[Tensor, Context]:
    """Evaluate a forward layer and return its output with the context its feedback needs.

    Args:
        layer: a forward layer, F_n.
        x: (B, *in). Gradients flow to it and to the layer's weights unless the caller cuts them.
        given: context of a clean pass. Normalisations then use its statistics and change nothing, and slopes are
            those of the clean pass; with ``routing="fixed"`` max-pooling also gathers at its switches.
        routing: see ``given``; without ``given`` it has no effect.
        affine: place of the operation whose value the context is to keep, see :class:`Context`.
        slopes: places of nonlinearities whose slopes the context is to hold, for :class:`Gate`.

    Returns:
        ``(y, context)``, y of shape (B, *out).
    """
    modules = layer_operations(layer)
    contexts, kept = [], None
    for place, module in enumerate(modules):
        known = None if given is None else given[place]
        if known is None and place in slopes:
            known = SlopeContext(slope_of(module, x))
        x, context = operation_of(module).forward(module, x, known, routing)
        contexts.append(context)
        if place == affine:
            # A nonlinearity in place would overwrite it.
            later = any(getattr(module, "inplace", False) for module in modules[place + 1 :])
            kept = x.detach().clone() if later else x.detach()
    context = Context(contexts)
    context.affine = kept
    return x, context


def _made_of(module: nn.Module) -> tuple[Any, ...]:
    """What changes with any of the objects in a module or its parameters, and with their names.

    A parametrisation keeps the parameter, but not its name. As ``named_parameters`` would say, in a tenth of its time.
    """
    parameters = [(name, id(parameter)) for name, parameter in module._parameters.items()]
    return id(module), *parameters, *((name, _made_of(m)) for name, m in module._modules.items() if m is not None)


class FeedbackLayer(nn.Module):
    """Feedback layer G_n: maps the space of s_n to the space of s_{n-1}.

    ``forward(y, context)``: y (B, *out), context of the pass whose switches and shapes are to be used; returns
    (B, *in). Gradients flow to y and to the feedback weights, never to the context.

    ``operations`` are in the order of evaluation. Where the affine map is last, everything before it is free of
    weights: G(y; c) = A_V(phi(y; c)). ``positions[i]`` is the place in the context of operation i's context.
    """

    def __init__(self, operations: Iterable[FeedbackOperation], positions: Iterable[int | None]):
        super().__init__()
        # A ModuleList, of whose items torch's types say no more than that they are modules.
        self.operations = cast("Sequence[FeedbackOperation]", nn.ModuleList(operations))
        self.positions = tuple(positions)
        # What was found of the affine map, while operations and weights are the same objects under the same names.
        self._known_place: tuple[Any, int] | None = None

    def forward(self, y: Tensor, context: Context) -> Tensor:
        return self._part(y, context)

    def _part(self, y: Tensor, context: Context, first: int = 0, end: int | None = None) -> Tensor:
        """What the operations from place ``first`` on, up to ``end`` or all, make of ``y``."""
        for operation, position in list(zip(self.operations, self.positions, strict=True))[first:end]:
            y = operation(y, None if position is None else context[position])
        return y

    @property
    def affine_position(self) -> int | None:
        """Place in the forward layer of what :attr:`affine_place` undoes; None where there is no such map."""
        try:
            return self.positions[self.affine_place]
        except NotReducible:
            return None

    @property
    def gated(self) -> list[int]:
        """Places in the forward layer of the nonlinearities whose slopes in the clean pass this layer needs."""
        return [p for o, p in zip(self.operations, self.positions, strict=True) if type(o) is Gate and p is not None]

    @property
    def affine_place(self) -> int:
        """Place in ``operations`` of the affine map A_V, where G(y; c) = A_V(phi(y; c)) up to a reshape and a bias.

        Raises:
            NotReducible: the layer is not of this form, or does more than its operations say.
        """
        made_of = _made_of(self)
        if self._known_place is None or self._known_place[0] != made_of:
            self._known_place = made_of, self._find_affine_place()
        place = self._known_place[1]
        # A slice of a ModuleList is another one, which takes longer to make than all else here.
        affine, *after = list(self.operations)[place:]
        if any(map(has_hooks, (self, *affine.modules(), *after))):
            raise NotReducible("its feedback has hooks")
        return place

    def _find_affine_place(self) -> int:
        if type(self).forward is not FeedbackLayer.forward:
            raise NotReducible(f"{type(self).__name__} has a forward of its own")
        trained = [i for i, operation in enumerate(self.operations) if any(True for _ in operation.parameters())]
        if len(trained) != 1:
            raise NotReducible(f"its feedback has {len(trained)} operations with weights, not one")
        (place,) = trained
        affine = self.operations[place]
        kind = type(affine)
        if not isinstance(affine, LinearMap) or _definer(kind, "forward") < _definer(kind, "apply_weight"):
            raise NotReducible(f"{kind.__name__} does not say how it depends on its weights")
        for operation in self.operations[place + 1 :]:
            if type(operation) not in (Unflatten, PassThrough):
                raise NotReducible(f"its affine map is followed by {type(operation).__name__}")
        weight, named = affine.weight, dict(affine.named_parameters())
        others = [name for name, p in named.items() if p is not weight and name.rpartition(".")[2] != "bias"]
        if others or not any(p is weight for p in named.values()):
            raise NotReducible("its affine map is not linear in one weight, as one with a gain or a norm is not")
        return place

    def before_affine(self, y: Tensor, context: Context, place: int | None = None, first: int = 0) -> Tensor:
        """phi(y; c), everything before the affine map, at ``place`` (default: it is looked for).

        Or only what stands from ``first`` on.
        """
        return self._part(y, context, first, self.affine_place if place is None else place)

    def linear_from(self, place: int) -> int:
        """From which place on all up to ``place`` is linear in what it is given, for one context."""
        first = place
        while first and type(self.operations[first - 1]) in _LINEAR and not has_hooks(self.operations[first - 1]):
            first -= 1
        return first

    def difference(self, y: Tensor, reference: Tensor, context: Context) -> Tensor:
        """G(y; c) - G(reference; c), (B, *in), by one application of the affine map to a difference where that holds.

        Equal to the difference of two evaluations, at half the cost and with less rounding.
        """
        try:
            place = self.affine_place
        except NotReducible:
            return self(y, context) - self(reference, context)
        # Before what is linear, where an unpooling has not yet made it larger.
        first = self.linear_from(place)
        change = self.before_affine(y, context, first) - self.before_affine(reference, context, first)
        change = self.before_affine(change, context, place, first)
        affine = self.operations[place]
        assert isinstance(affine, LinearMap)
        return self._part(affine.apply_weight(change, affine.weight), context, place + 1)

    def copy_transpose(self, layer: nn.Module) -> None:
        """Make the feedback weights the transposes of the forward weights of ``layer``. Values are copied."""
        modules = layer_operations(layer)
        for operation, position in zip(self.operations, self.positions, strict=True):
            if position is not None and hasattr(operation, "copy_transpose"):
                operation.copy_transpose(modules[position])

    def weight_pairs(self, layer: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Feedback weights of all operations, each with the transposed forward weight of ``layer``, in one shape."""
        modules, pairs = layer_operations(layer), []
        for operation, position in zip(self.operations, self.positions, strict=True):
            if position is not None and hasattr(operation, "weight_pairs"):
                pairs += operation.weight_pairs(modules[position])
        return pairs


class FeedbackNetwork(nn.ModuleDict):
    """Feedback layers by the number of the forward layer they undo: ``feedback[n]`` maps s_n back to s_{n-1}."""

    def __init__(self, layers: Mapping[int, nn.Module]):
        super().__init__({str(n): layer for n, layer in layers.items()})

    def __getitem__(self, n: int) -> nn.Module:
        return super().__getitem__(str(n))

    def __contains__(self, n: int) -> bool:
        return super().__contains__(str(n))

    @property
    def numbers(self) -> list[int]:
        """Numbers n of the layers that have feedback, ascending."""
        return sorted(int(name) for name in self.keys())


def derive_feedback(
    layers: Sequence[nn.Module], in_shapes: Sequence[Size], numbers: Iterable[int], settings: FeedbackSettings
) -> FeedbackNetwork:
    """Make the feedback layers of a network, with fresh random weights.

    Args:
        layers: forward layers; ``layers[n - 1]`` is layer n.
        in_shapes: ``in_shapes[n - 1]`` is the shape of one input sample of layer n.
        numbers: which layers n get feedback; n = 1 is only meaningful for auto-encoders.
        settings: order, bias and unpooling.

    Raises:
        UserError: a layer contains a type without registered feedback.
    """
    return FeedbackNetwork({n: _derive_layer(n, layers, in_shapes, settings) for n in numbers})


def _derive_layer(
    n: int, layers: Sequence[nn.Module], in_shapes: Sequence[Size], settings: FeedbackSettings
) -> FeedbackLayer:
    steps = _steps_back(n, layers[n - 1], in_shapes[n - 1], settings)
    if settings.nonlinearity == "after":
        # G(y) = f(V y + c): the nonlinearity that made s_{n-1} comes last, so that the range of G fits. The layer's own
        # comes no more; those between two affine maps follow the first as it is.
        affine = [i for i, (operation, _) in enumerate(steps) if _kind(operation) == "affine"] or [0]
        between = range(affine[0], affine[-1])
        steps = [step for i, step in enumerate(steps) if i in between or not _is_function(step[0])]
        below = list(_with_input_shapes(layers[n - 2], in_shapes[n - 2])) if n >= 2 else []
        if n == 2:
            # The first layer needs no feedback: nothing is asked of what cannot be its last function.
            functions = [module for module, shape in _behind_weights(below) if output_shape(module, shape) == shape]
            below = [(m, s) for m, s in below if m in functions or (is_registered(m) and not isinstance(m, Uncut))]
        # Of those with weights only a nonlinearity could be the last function, and is refused.
        asked = [(module, shape) for module, shape in below if _weight_free(module) or is_layer_function(module)]
        made = [_make_feedback(n - 1, module, shape, settings) for module, shape in asked]
        functions = [operation for operation in made if _kind(operation) == "elementwise"]
        steps.extend((function, None) for function in functions[-1:])
        if made and _kind(made[-1]) == "standardise":
            steps.append((made[-1].of_feedback(), None))
    else:
        _elementwise_before_unpooling(steps)
    return FeedbackLayer((operation for operation, _ in steps), (position for _, position in steps))


def feedback_of_operations(layer: nn.Module, in_shape: Size, settings: FeedbackSettings) -> FeedbackLayer:
    """The feedback of part of a layer, operation by operation in reverse order, with fresh random weights."""
    steps = _steps_back(None, layer, in_shape, settings)
    _elementwise_before_unpooling(steps)
    return FeedbackLayer((operation for operation, _ in steps), (position for _, position in steps))


def _steps_back(n: int | None, layer: nn.Module, in_shape: Size, settings: FeedbackSettings) -> Steps:
    """Feedback operations in the order of their evaluation, each with its forward operation's place in the layer."""
    steps: Steps = []
    for position, (module, shape) in enumerate(_with_input_shapes(layer, in_shape)):
        steps.insert(0, (_make_feedback(n, module, shape, settings), position))
    return _transmission_before_affine(steps)


def require_known_operations(n: int, layer: nn.Module) -> None:
    """Raise UserError if layer n holds a type that :func:`forward_with_context` cannot evaluate, or hides layers.

    A first layer that could not be cut would need no feedback, and train all that is in it by backprop.
    """
    for module in layer_operations(layer):
        try:
            operation_of(module)
            if isinstance(module, Uncut) and module.hides_layers:
                raise UserError(module.refusal)
        except UserError as error:
            raise UserError(f"Layer {n}: {error}") from error


def require_several_layers(layers: Sequence[nn.Module]) -> None:
    """Raise UserError if one operation hides all layers of a network: a rule between layers would be backprop."""
    for module in layer_operations(layers[0]) if len(layers) == 1 else []:
        if isinstance(module, Uncut) and module.hides_layers:
            raise UserError(
                f"Expected a network of several layers, without which this rule is backprop, found {module.described}, "
                f"which stays one operation: {module.reason}. Give the layers yourself, as a list; or use fa, whose "
                "errors go through the operations within."
            )


def require_own_weights(linear: nn.Linear, where: str) -> None:
    """Raise UserError if weights of a map are computed from others: no rule that says how they change can step them."""
    for name in ("weight", "bias"):
        if not isinstance(getattr(linear, name), nn.Parameter | None):
            raise UserError(
                f"The {name} of {where} is computed from others (weight_norm, pruning, or another parametrisation); "
                "expected one that takes steps. Make it one (torch.nn.utils.parametrize.remove_parametrizations, "
                "torch.nn.utils.prune.remove), or take another rule, such as fa."
            )


def shared_positions(layer: nn.Module, in_shape: Size) -> int:
    """Positions of a layer's output, of samples of ``in_shape``, that share its weights, whether it is flat or not.

    They are those of the maps of a convolution (after pooling), and the vectors that a linear map is given; 1 where
    weights are not shared.
    """
    if any(isinstance(module, LocallyConnected2d) for module in layer.modules()):
        return 1
    last, positions = None, 1
    for module, shape in _with_input_shapes(layer, in_shape):
        if has_matrix(module):
            last = module
        if isinstance(module, nn.Linear):
            positions = shape[:-1].numel()
        elif isinstance(module, nn.Flatten) and last is not None:
            break
        elif not isinstance(last, nn.Linear):
            positions = output_shape(module, shape)[1:].numel()
    return positions


def require_known_functions(layers: Iterable[nn.Module], shapes: Sequence[Size], with_weights: bool = False) -> None:
    """Raise UserError for a nonlinearity behind the weights of a layer that is not registered as one.

    For rules that ask which operation of a layer is its nonlinearity: they would take it for part of the affine map.

    Args:
        shapes: of one sample before each layer.
        with_weights: whether the rule takes one that has weights of its own.
    """
    for n, (layer, in_shape) in enumerate(zip(layers, shapes, strict=False), 1):
        for module, shape in _behind_weights(_with_input_shapes(layer, in_shape)):
            own = module.module if isinstance(module, Uncut) else module
            if not is_registered(own) and not has_matrix(own) and _is_nonlinearity(own, shape):
                if not with_weights and not _weight_free(own):
                    raise _has_weights(own)
                kind = type(own).__name__
                raise UserError(
                    f"Layer {n} has {kind}, a function of each value by itself that is not known as a nonlinearity; "
                    f"register it before, with dtp.feedback.register_feedback({kind}, "
                    "dtp.feedback.elementwise_feedback)."
                )


def is_layer_function(module: nn.Module) -> bool:
    """Whether a module is an elementwise nonlinearity, for rules that ask which operation of a layer is its own.

    Raises:
        UserError: it is one with weights, which these rules would take for part of the affine map.
    """
    if not is_elementwise(module):
        return False
    if not _weight_free(module):
        raise _has_weights(module)
    return True


def _has_weights(module: nn.Module) -> UserError:
    return UserError(
        f"{type(module).__name__}: expected a nonlinearity without weights of its own, which this rule cannot tell "
        "from those of the layer; use one without, or a rule such as bp, dtp, fa or dfa."
    )


def has_matrix(module: nn.Module, recurse: bool = True) -> bool:
    """Whether a module, or with ``recurse`` one within, has weights that mix values, not scales and shifts alone."""
    norm = isinstance(module, nn.LayerNorm | nn.RMSNorm)
    return not norm and any(p.dim() > 1 for p in module.parameters(recurse))


def _behind_weights(operations: Iterable[tuple[nn.Module, Size]]) -> list[tuple[nn.Module, Size]]:
    """The operations behind the first that has a matrix; none where none has."""
    found = list(operations)
    first = next((place for place, (module, _) in enumerate(found) if has_matrix(module)), len(found))
    return found[first + 1 :]


@torch.no_grad()
def _is_nonlinearity(module: nn.Module, shape: Size) -> bool:
    """Whether a module maps each value by itself, wherever the value stands, and not by a scale and a shift."""
    if isinstance(module, nn.PReLU):
        # Its slopes may differ between channels.
        return True
    cpu, generator = torch.device("cpu"), torch.Generator("cpu").manual_seed(0)
    count = 2 + 512 // max(shape.numel(), 1)
    x, other = (10 * torch.randn(2, count, *shape, generator=generator, dtype=torch.float32, device=cpu)).unbind()
    order = torch.randperm(x.numel(), generator=generator, device=cpu)
    try:
        # One that draws moves no generator of anyone's.
        with torch.random.fork_rng(devices=[]), cpu:
            own = copy.deepcopy(module).to(x).eval()
            found, moved = own(x.clone()), own(x.flatten()[order].view_as(x))
            total, zero = own(x + other) + own(torch.zeros_like(x)), found + own(other.clone())
        alike = isinstance(found, Tensor) and found.shape == x.shape
        return alike and _close(found.flatten()[order], moved.flatten()) and not _close(total, zero)
    except Exception:
        # Whatever a module of a user's raises at such values, it is nothing that all values can be given to.
        return False


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def _make_feedback(n: int | None, module: nn.Module, in_shape: Size, settings: FeedbackSettings) -> FeedbackOperation:
    try:
        return operation_of(module).make_feedback(module, in_shape, settings)
    except UserError as error:
        raise UserError(f"Layer {n}: {error}" if n is not None else str(error)) from error


def _weight_free(module: nn.Module) -> bool:
    return next(module.parameters(), None) is None


def _kind(operation: nn.Module) -> str:
    return getattr(operation, "kind", "affine")


def _is_function(operation: nn.Module) -> bool:
    return _kind(operation) in ("elementwise", "standardise")


def _transmission_before_affine(steps: Steps) -> Steps:
    sent = [step for step in steps if _kind(step[0]) == "transmission"]
    others = [step for step in steps if _kind(step[0]) != "transmission"]
    place = next((i for i, (operation, _) in enumerate(others) if _kind(operation) == "affine"), len(others))
    return [*others[:place], *sent, *others[place:]]


def _elementwise_before_unpooling(steps: list) -> None:
    """Let each elementwise step change places with the spatial one before it, also where an identity is between."""
    for i in range(len(steps)):
        place = i
        while place and isinstance(steps[place - 1][0], PassThrough):
            place -= 1
        if place and [_kind(steps[place - 1][0]), _kind(steps[i][0])] == ["spatial", "elementwise"]:
            steps.insert(place - 1, steps.pop(i))


def _with_input_shapes(layer: nn.Module, in_shape: Size) -> Iterator[tuple[nn.Module, Size]]:
    shape = in_shape
    for module in layer_operations(layer):
        yield module, shape
        shape = output_shape(module, shape)
