"""Any network as layers: an ``nn.Sequential``, a list of layers, or a model whose forward pass torch.fx can follow.

The operations of the model are found by tracing it, functional ones included. A chain of them is cut by one rule: a
layer begins with an affine map (an operation with a weight matrix, or a residual unit) and includes everything up to
the next one: normalisation, nonlinearity, pooling, dropout. A flatten right before an affine map begins its layer. Two
chains that are added are a residual unit, one operation. A module that does anything else (a concatenation, a condition
on values) stays one operation, :class:`~dtp.models.modules.Uncut`.

Modules are used as they are, never copied. Training the layers trains the model.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Size, Tensor, fx, nn

from dtp.contracts import MAY_ALIAS
from dtp.errors import UserError
from dtp.feedback.layers import FeedbackLayer, derive_feedback, has_matrix, layer_operations
from dtp.feedback.operations import Elementwise, FeedbackSettings, is_elementwise, is_registered
from dtp.models.inputs import DoesNotFit, kinds, shape_text, shapes_through
from dtp.models.kept import Kept, generators
from dtp.models.modules import InnerFunction, Residual, Uncut
from dtp.models.network import Network
from dtp.models.options import ModelOptions
from dtp.models.shapes import NotOneTensor, given_shape, has_hooks, meta_pass

# Sides of square images that are tried where the network leaves the size open.
_SIDES = (8, 28, 32, 64, 96, 224)


class CutNetwork(Network):
    """A user's model as layers; its forward pass is the model's, number for number.

    Attributes:
        model: the user's own model, whose weights these are, or None where the layers were given as a list. What was
            trained is got from it as from any model, by ``network.model.state_dict()`` for example.
    """

    _given: tuple[list[nn.Module], nn.Module | None]

    def __init__(self, layers: Sequence[nn.Module], input_shape: Sequence[int], model: nn.Module | None, name: str):
        # Not registered: its weights are those of the layers already.
        self.__dict__["_given"] = (list(layers), model)
        outputs = _shapes(layers, input_shape, name)[-1]
        if len(outputs) != 1:
            raise UserError(
                f"{name} must put out one vector for each sample, found values of shape {shape_text(outputs)}; end it "
                "in a linear layer, after a flatten."
            )
        super().__init__(ModelOptions(), input_shape, outputs[0])

    @property
    def model(self) -> nn.Module | None:
        """What the user gave; see the class. Not a submodule, for its weights are those of the layers."""
        return self._given[1]

    def make_layers(self) -> Iterable[nn.Module]:
        return self._given[0]

    def activation(self) -> nn.Module:
        """The first nonlinearity of the network; none where it has none."""
        return next((module for module in self.modules() if is_elementwise(module)), nn.Identity())

    def train(self, mode: bool = True) -> CutNetwork:
        super().train(mode)
        if self.model is not None:
            # Its containers are no modules of this network.
            self.model.train(mode)
        return self


def as_network(model: nn.Module | Sequence[nn.Module], input_shape: Sequence[int] | Tensor | None = None) -> Network:
    """The layers of a model, in the form that learning rules need.

    A :class:`~dtp.models.network.Network` is returned unchanged. An ``nn.Sequential`` or any other module is cut into
    layers. A list contains the layers themselves, each a module with weights. Weights are those of the model, not
    copies.

    Args:
        model: maps (B, *input_shape) to (B, classes).
        input_shape: of one sample, (C, H, W) for images; or a batch, whose samples are of that shape. It may be left
            out where the network tells it: where it begins with a linear layer, or takes square images of just one of
            the usual sizes.

    Raises:
        UserError: the shape is needed, or does not fit; or something else than a network was given.
    """
    # What torch.compile wraps.
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, Network):
        if input_shape is not None and given_shape(input_shape) != model.input_shape:
            raise UserError(
                f"input_shape: expected {tuple(model.input_shape)}, for which this {type(model).__name__} was made, "
                f"found {tuple(given_shape(input_shape))}; leave it out, or make the network for that shape."
            )
        return model
    own = model if isinstance(model, nn.Module) else None
    whole = own is not None
    parts = [own] if own is not None else _listed(model)
    if not parts or not all(isinstance(part, nn.Module) for part in parts):
        found = next((p for p in parts if not isinstance(p, nn.Module)), model)
        raise UserError(f"Expected a torch.nn.Module or a list of layers, each a torch.nn.Module, found {found!r}.")
    name = type(model).__name__ if whole else "The list of layers"
    _require_weights(parts, whole, name)
    given = None if input_shape is None else given_shape(input_shape)

    def cut(flattens: bool) -> CutNetwork:
        layers: Sequence[nn.Module]
        if own is not None:
            layers = _layers(operations(own, flattens=flattens))
        else:
            layers = [_one_layer(i, part, flattens) for i, part in enumerate(parts)]
        shape = _told_shape(layers, name) if given is None else given
        return CutNetwork(layers, shape, own, name)

    # Whether x.view(-1, features) flattens samples can be seen by their shape alone, which is known in the end.
    try:
        network, refused = cut(flattens=True), None
    except UserError as error:
        network, refused = None, error
    if network is not None and _flattens_samples(network):
        return network
    try:
        return cut(flattens=False)
    except UserError:
        if refused is None:
            raise
    raise refused


def _flattens_samples(network: Network) -> bool:
    """Whether each flatten that was made of ``x.view(-1, features)`` is given samples of so many values."""
    found, hooks = [], []
    for module in network.modules():
        if isinstance(module, nn.Flatten) and (features := getattr(module, "of_view", None)) is not None:

            def note(module: nn.Module, args: tuple, features: int = features) -> None:
                found.append(args[0].shape[1:].numel() == features)

            hooks.append(module.register_forward_pre_hook(note))
    try:
        if hooks:
            meta_pass(network, network.input_shape)
    finally:
        for hook in hooks:
            hook.remove()
    return all(found)


def _require_weights(parts: Sequence[nn.Module], whole: bool, name: str) -> None:
    for part in parts:
        parameters = list(part.parameters())
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
            raise UserError(f"{name} has lazy modules, whose sizes are not known yet; call it on one batch before.")
        if not parameters and not whole:
            raise UserError(
                f"A list holds whole layers, found {type(part).__name__}, which has no weights; put it into an "
                "nn.Sequential with the layer that it belongs to, or give nn.Sequential(*layers), which is cut."
            )


def _listed(model: Any) -> list:
    return list(model) if isinstance(model, Iterable) and not isinstance(model, Tensor | str) else [model]


# --- from operations to layers ----------------------------------------------------------------------------------------


def _layers(found: Sequence[nn.Module]) -> list[nn.Sequential]:
    layers, current = [], []
    for operation in found:
        if has_matrix(operation) and any(map(has_matrix, current)):
            end = len(current)
            while isinstance(current[end - 1], nn.Flatten):
                end -= 1
            layers.append(nn.Sequential(*current[:end]))
            current = current[end:]
        current.append(operation)
    return [*layers, nn.Sequential(*current)]


def _one_layer(place: int, given: nn.Module, flattens: bool) -> nn.Module:
    """A layer of the user's list: as it is where its operations are known, otherwise made of those it has."""
    if all(is_registered(operation) for operation in layer_operations(given)) and not has_hooks(given):
        return given
    return nn.Sequential(*operations(given, str(place), flattens))


# --- from a model to operations ---------------------------------------------------------------------------------------


class _NotAChain(Exception):
    """What some modules of a model do is no chain of operations: their paths, each with the reason."""

    def __init__(self, reasons: dict[str, str]):
        super().__init__(reasons)
        self.reasons = reasons


# x += y and the like. A module with x[i] = y is not traced at all.
_IN_PLACE = (
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow),
    *(operator.imatmul, operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift),
)
_SUMS_IN_PLACE = (operator.iadd, "add_")


class _Proxy(fx.Proxy):
    """A proxy that tells ``x += y`` from ``x + y``, as those of torch.fx do not: what else reads x sees the sum."""


for _function in _IN_PLACE:
    setattr(
        _Proxy,
        f"__{_function.__name__}__",
        lambda self, other, function=_function: self.tracer.create_proxy("call_function", function, (self, other), {}),
    )


class _Tracer(fx.Tracer):
    """Goes into modules down to torch's own, those with registered feedback, and the ``whole`` ones, by path."""

    def __init__(self, whole: dict[str, str]):
        super().__init__()
        self.whole = whole
        # Paths of the modules whose forward is run.
        self.entered: set[str] = set()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        known = super().is_leaf_module(module, path) or is_registered(module)
        return known or path in self.whole or has_hooks(module)

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        path = self.path_of_module(module)
        if not self.is_leaf_module(module, path):
            self.entered.add(path)
        before = generators()
        try:
            found = super().call_module(module, forward, args, kwargs)
        except _NotAChain:
            raise
        except Exception as error:
            # Whatever a forward of a user's raises when it meets a proxy in place of a tensor.
            reason = f"torch.fx cannot follow it ({str(error).strip().partition(chr(10))[0]})"
            raise _NotAChain({path: reason}) from error
        if generators() != before:
            # The graph would have for all passes what came of these numbers.
            raise _NotAChain({path: "its forward draws random numbers"})
        return found


def operations(model: nn.Module, name: str = "", flattens: bool = True) -> list[nn.Module]:
    """The operations of a model in the order of its forward pass, which is that of the chain of them.

    Args:
        model: any module that maps one tensor to one tensor.
        name: of the model within something larger, for messages.
        flattens: whether ``x.view(-1, features)`` is taken for a flatten.
    """
    # In a container, the model is a module like any other, which may have to stay whole.
    root, whole = nn.Sequential(model), {}
    while True:
        try:
            return _Chain(root, whole, name, flattens).operations()
        except _NotAChain as error:
            whole.update(error.reasons)


class _Chain:
    """A traced model, read backwards from its output."""

    def __init__(self, root: nn.Module, whole: dict[str, str], name: str, flattens: bool):
        self.whole, self.name, self.flattens = whole, name, flattens
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.graph, self.dropouts = _trace(root, whole)
        self.used: set[fx.Node] = set()
        # Sums that are written over what they begin with, as by x += f(x).
        self.overwriting: set[nn.Module] = set()

    def operations(self) -> list[nn.Module]:
        order = {node: place for place, node in enumerate(self.graph.nodes)}
        first, last = next(iter(order)), next(reversed(order))
        if not isinstance(last.args[0], fx.Node):
            raise _NotAChain({"0": "it does not put out one tensor"})
        self._require_known(last.args[0])
        # The nearest node that every way from the input to a node goes through.
        self.before = {first: first}
        for node in order:
            inputs = [i for i in _inputs(node) if i in self.before]
            if inputs:
                self.before[node] = reduce(lambda a, b: self._meet(order, a, b), inputs)
        return self._between(first, last.args[0])

    def _meet(self, order: dict[fx.Node, int], a: fx.Node, b: fx.Node) -> fx.Node:
        while a is not b:
            if order[a] > order[b]:
                a = self.before[a]
            else:
                b = self.before[b]
        return a

    def _require_known(self, output: fx.Node) -> None:
        """Find all modules that hold an operation that is not known, in one go."""
        reasons, seen, todo = {}, set(), [output]
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            todo += _inputs(node)
            if node.op != "placeholder" and not _is_sum(node) and self._made(node) is None:
                what = {"call_module": f"a call of {_shown(str(node.target))}", "get_attr": "a tensor of its own"}
                reasons[_owner(node)] = f"its forward has {what.get(node.op, _called(node))}, which cannot be cut"
        for node in self.graph.nodes:
            # What is read backwards would leave it out, and with it what it does to others.
            if node not in seen and self._may_change(node) and self._sees(node, seen):
                what = _shown(str(node.target)) if node.op == "call_module" else _called(node)
                reasons.setdefault(
                    _owner(node), f"its forward calls {what} and does not use what that returns, but what it may change"
                )
        if reasons:
            raise _NotAChain(reasons)

    def _may_change(self, node: fx.Node) -> bool:
        """Whether a node may change in place what it is given."""
        if node.op == "call_module":
            path = str(node.target)
            known = path not in self.whole and is_registered(self.modules[path])
            return not known or getattr(self.modules[path], "inplace", False)
        if node.op == "call_method" or getattr(node.target, "__module__", None) != operator.add.__module__:
            named = _called(node).endswith("_") and not _called(node).endswith(("__", "requires_grad_"))
        else:
            # There the names of some that change nothing end so, such as and_.
            named = node.target in _IN_PLACE
        return named or bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None

    def _sees(self, node: fx.Node, used: set[fx.Node]) -> bool:
        """Whether what a node is given may be the memory of a ``used`` node, or of the model."""
        todo = list(node.all_input_nodes)
        while todo:
            given = todo.pop()
            if given in used or given.op == "get_attr":
                return True
            first = _first_of(self._made(given) or [])
            if first is None or isinstance(first, Uncut) or getattr(first, "inplace", False):
                todo += given.all_input_nodes
        return False

    def _between(self, start: fx.Node, node: fx.Node) -> list[nn.Module]:
        """The operations from ``start`` to ``node``, the first left out."""
        found: list[nn.Module] = []
        while node is not start:
            if node in self.used:
                raise _NotAChain({_owner(node): "its branches cross"})
            self.used.add(node)
            if _is_sum(node):
                fork = self.before[node]
                branches = [self._between(fork, end) for end in node.all_input_nodes]
                begins = [_first_of(branch) for branch in branches]
                if any(getattr(one, "inplace", False) or one in self.overwriting for one in begins):
                    raise _NotAChain({_owner(node): "a branch begins in place and changes what the other one sees"})
                branches.sort(key=lambda branch: sum(map(has_matrix, branch)), reverse=True)
                parts = [nn.Sequential(*(_inner(operation) for operation in branch)) for branch in branches]
                found.insert(0, Residual(*parts))
                if begins[0] is None and node.target in _SUMS_IN_PLACE:
                    self.overwriting.add(found[0])
                node = fork
            else:
                made = self._made(node)
                assert made is not None, "_require_known has looked at it"
                found[:0] = made
                (node,) = _inputs(node)
        return found

    def _made(self, node: fx.Node) -> list[nn.Module] | None:
        """The operations that a node is, or None where it is none that takes one tensor."""
        if node.op == "call_module":
            if node.kwargs or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
                return None
            path = str(node.target)
            module = self.modules[path]
            if path not in self.whole and is_registered(module):
                return [module]
            usual = "it has hooks" if has_hooks(module) else "none is known for its type"
            reason = self.whole.get(path, usual)
            name = ".".join(part for part in (self.name, _shown(path)) if part)
            return [Uncut(module, name, reason, chosen=bool(self.name))]
        function = _METHODS.get(str(node.target)) if node.op == "call_method" else node.target
        if _is_flatten(node):
            flatten, features = nn.Flatten(), _features_of_view(node)
            if features is not None:
                cast(Any, flatten).of_view = features
            return [flatten] if self.flattens or features is None else None
        if function is torch.mean and _is_over_space(node):
            return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if node.op not in ("call_method", "call_function") or (function is F.dropout and not self.dropouts[node.name]):
            return None
        made = _module_of(function, node)
        # In the mode of the module that calls it, as the others are in theirs.
        return None if made is None else [made.train(self.modules[_owner(node)].training)]


def _trace(root: nn.Module, whole: dict[str, str]) -> tuple[fx.Graph, dict[str, bool]]:
    """The graph of a model, and which functional dropouts drop in training and only there, by name.

    Raises:
        _NotAChain: a module cannot be traced, changes what it holds, or does other things in training than in
            evaluation.
    """
    flags, kept = [(module, module.training) for module in root.modules()], Kept(root)
    graphs = []
    try:
        for mode in (True, False):
            for module, _ in flags:
                module.training = mode
            tracer = _Tracer(whole)
            graph = tracer.trace(root)
            changed = kept.changed(_is_proxy)
            if changed:
                # What the first pass makes for all, such as a mask, is no part of one if the next does the same.
                once, second = Kept(root), _Tracer(whole).trace(root)
                if list(map(_comparable, graph.nodes)) == list(map(_comparable, second.nodes)):
                    changed = once.changed(_is_proxy)
            graphs.append(graph)
            # The graph has none of it, for no input is part of it. The container gets constants of the tracer's own.
            reasons = {path: f"its forward changes {name}, which it holds" for path, name in changed.items() if path}
            if reasons:
                raise _NotAChain({_entered(path, tracer): reason for path, reason in reasons.items()})
    finally:
        for module, flag in flags:
            module.training = flag
        # The forward of a user's has run, on no values.
        kept.restore()
    dropouts = {}
    for training, evaluation in zip(*(graph.nodes for graph in graphs), strict=False):
        if _comparable(training) != _comparable(evaluation):
            owner = max(_owner(training), _owner(evaluation), key=len)
            raise _NotAChain({owner: "it does other things in training than in evaluation"})
        if evaluation.target is F.dropout:
            dropouts[evaluation.name] = [n.kwargs.get("training") for n in (training, evaluation)] == [True, False]
    return graphs[1], dropouts


def _is_proxy(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_proxy, value))
    if isinstance(value, dict) and value:
        return all(map(_is_proxy, value.values()))
    return isinstance(value, fx.Proxy)


def _entered(path: str, tracer: _Tracer) -> str:
    """The module whose forward has changed the one at ``path``: itself, or the nearest one around it that was run."""
    while path not in tracer.entered:
        path = path.rpartition(".")[0]
    return path


def _comparable(node: fx.Node) -> tuple:
    return node.op, node.target, str(node.args), str({k: v for k, v in node.kwargs.items() if k != "training"})


def _owner(node: fx.Node) -> str:
    """Path of the module whose forward made a node."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    if node.op == "call_module":
        paths = paths[:-1]
    return paths[-1] if paths else "0"


def _called(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _shown(path: str) -> str:
    """A path in the container of the model as one in the model."""
    return path.partition(".")[2]


def _inputs(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node makes its own of; of a flatten it is one, whatever its sizes are taken from."""
    return node.all_input_nodes[:1] if _is_flatten(node) else node.all_input_nodes


def _is_sum(node: fx.Node) -> bool:
    adds = node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add)
    adds = adds or (node.op == "call_method" and node.target in ("add", "add_"))
    return adds and len(node.all_input_nodes) == 2 == len(node.args) and not node.kwargs


def _first_of(branch: Sequence[nn.Module]) -> nn.Module | None:
    """Its first operation that makes a tensor of its own."""
    return next((operation for operation in branch if not isinstance(operation, MAY_ALIAS)), None)


def _inner(operation: nn.Module) -> nn.Module:
    return InnerFunction(operation) if is_elementwise(operation) else operation


def _is_flatten(node: fx.Node) -> bool:
    """Whether a node is ``x.view(len, -1)`` or ``x.view(-1, features)``, or the same with reshape."""
    if (node.op, node.target) not in (("call_method", "view"), ("call_method", "reshape"), _RESHAPE):
        return False
    shape: Any = node.args[1:]
    shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    if len(shape) != 2 or node.kwargs:
        return False
    batch = isinstance(shape[0], fx.Node) and _is_batch_size(shape[0], node.args[0])
    return (batch and isinstance(shape[1], int)) or (shape[0] == -1 and isinstance(shape[1], int) and shape[1] > 0)


def _features_of_view(node: fx.Node) -> int | None:
    """Of a flatten ``x.view(-1, features)`` the features, which may be less than all of a sample's values."""
    first, last = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
    return last if first == -1 and isinstance(last, int) else None


def _is_over_space(node: fx.Node) -> bool:
    """Whether a node is the mean over the last two dimensions of maps (B, C, H, W)."""
    over: list[Any] = [*node.args[1:], *node.kwargs.values()]
    return len(over) == 1 and isinstance(over[0], tuple | list) and sorted(over[0]) in ([2, 3], [-2, -1])


_RESHAPE = ("call_function", torch.reshape)


def _is_batch_size(node: fx.Node, of: object) -> bool:
    if node.op == "call_method" and node.target == "size":
        return node.args == (of, 0)
    if node.target is not operator.getitem or node.args[1] != 0 or not isinstance(node.args[0], fx.Node):
        return False
    sizes = node.args[0]
    return (sizes.target is getattr and sizes.args == (of, "shape")) or (sizes.target, sizes.args) == ("size", (of,))


_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
# Functions that are modules as well: the module's type, and the names of the arguments after the first.
_FUNCTIONS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.relu: (nn.ReLU, ("inplace",)),
    torch.relu: (nn.ReLU, ()),
    F.relu6: (nn.ReLU6, ("inplace",)),
    F.elu: (nn.ELU, ("alpha", "inplace")),
    F.leaky_relu: (nn.LeakyReLU, ("negative_slope", "inplace")),
    F.hardtanh: (nn.Hardtanh, ("min_val", "max_val", "inplace")),
    F.hardswish: (nn.Hardswish, ("inplace",)),
    F.silu: (nn.SiLU, ("inplace",)),
    F.gelu: (nn.GELU, ("approximate",)),
    F.softplus: (nn.Softplus, ("beta", "threshold")),
    F.tanh: (nn.Tanh, ()),
    torch.tanh: (nn.Tanh, ()),
    F.sigmoid: (nn.Sigmoid, ()),
    torch.sigmoid: (nn.Sigmoid, ()),
    F.max_pool1d: (nn.MaxPool1d, _POOL),
    F.max_pool2d: (nn.MaxPool2d, _POOL),
    F.avg_pool1d: (nn.AvgPool1d, _AVERAGE),
    F.avg_pool2d: (nn.AvgPool2d, (*_AVERAGE, "divisor_override")),
    F.adaptive_avg_pool1d: (nn.AdaptiveAvgPool1d, ("output_size",)),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
    F.adaptive_max_pool1d: (nn.AdaptiveMaxPool1d, ("output_size",)),
    F.adaptive_max_pool2d: (nn.AdaptiveMaxPool2d, ("output_size",)),
    F.dropout: (nn.Dropout, ("p",)),
    torch.flatten: (nn.Flatten, ("start_dim", "end_dim")),
}
_METHODS = {
    "mean": torch.mean,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "flatten": torch.flatten,
}


def _module_of(function: Any, node: fx.Node) -> nn.Module | None:
    """The module that does what a call of ``function`` does; None where there is none."""
    kind, names = _FUNCTIONS.get(function, (None, ()))
    given = node.args[1:]
    if kind is None or len(given) > len(names) or len(node.all_input_nodes) != 1:
        return None
    known = inspect.signature(kind.__init__).parameters
    arguments: dict[str, Any] = dict(zip(names, given, strict=False)) | {
        k: v for k, v in node.kwargs.items() if k in known
    }
    # A flatten from the start would join the samples, which the module's default does not.
    if kind is nn.Flatten and arguments.get("start_dim") != 1:
        return None
    return kind(**arguments)


# --- shapes -----------------------------------------------------------------------------------------------------------


def _shapes(layers: Sequence[nn.Module], input_shape: Sequence[int], name: str) -> list[Size]:
    """Shape of one sample before the first layer and after each."""
    try:
        return shapes_through(layers, input_shape)
    except DoesNotFit as error:
        if isinstance(error.__cause__, NotOneTensor):
            raise UserError(
                f"Samples do not fit {name}: {error}; have it return one, in training too, or put a module around it "
                "that picks one."
            ) from error
        raise UserError(
            f"Samples of shape {shape_text(input_shape)} do not fit {name}: {error}; give the shape of one sample as "
            "input_shape."
        ) from error


def _told_shape(layers: Sequence[nn.Module], name: str) -> Size:
    """The shape of a sample, from what the network takes."""
    first = next((m for layer in layers for m in layer.modules() if any(True for _ in m.parameters(False))), None)
    if isinstance(first, nn.Linear):
        tried = [Size([first.in_features])]
    elif isinstance(first, nn.Conv2d):
        tried = [Size([first.in_channels, side, side]) for side in _SIDES]
    else:
        tried = []
    fitting = []
    for shape in tried:
        try:
            _shapes(layers, shape, name)
        except UserError:
            continue
        fitting.append(shape)
    if len(fitting) != 1:
        found = (
            f"several fit ({', '.join(map(shape_text, fitting))})" if fitting else "it cannot be told from the network"
        )
        raise UserError(
            f"{name} needs the shape of one sample, for {found}; give input_shape, (3, 32, 32) for example, or cut "
            "it first: dtp.as_network(model, input_shape=(3, 32, 32))."
        )
    return fitting[0]


# --- a table of the layers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerRow:
    """One layer of a network.

    Attributes:
        layer: its number, from 1.
        modules: types of its operations, in order.
        in_shape, out_shape: of one sample.
        parameters: how many weights it has.
        feedback: operations of its feedback layer, in the order of their evaluation; or why it has none.
    """

    layer: int
    modules: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    parameters: int
    feedback: str


class LayerTable(list):
    """Rows :class:`LayerRow`; shown as a table."""

    def __str__(self) -> str:
        rows = [("layer", "modules", "in", "out", "parameters", "feedback")]
        for row in self:
            sizes = shape_text(row.in_shape), shape_text(row.out_shape), f"{row.parameters:,}"
            rows.append((str(row.layer), row.modules, *sizes, row.feedback))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


def layers(model: nn.Module | Sequence[nn.Module], input_shape: Sequence[int] | Tensor | None = None) -> LayerTable:
    """The layers that a model is cut into, with shapes and feedback: a list of rows that prints as a table.

    Args:
        model, input_shape: as for :func:`as_network`.
    """
    network, rows = as_network(model, input_shape), LayerTable()
    for number, layer in enumerate(network, 1):
        shapes = tuple(network.shapes[number - 1]), tuple(network.shapes[number])
        count = sum(p.numel() for p in layer.parameters())
        feedback = "needs none" if number == 1 else _feedback_of(number, network)
        rows.append(LayerRow(number, kinds(layer), *shapes, count, feedback))
    return rows


def _feedback_of(number: int, network: Network) -> str:
    try:
        # Without memory, and without drawing weights from anyone's generator.
        with torch.device("meta"):
            made = derive_feedback(list(network), network.shapes, [number], FeedbackSettings())[number]
        assert isinstance(made, FeedbackLayer)
    except UserError as error:
        return f"none: {str(error).partition(': ')[2].partition('. ')[0].partition(';')[0]}"
    return ", ".join(
        type(o.function if isinstance(o, Elementwise) else o).__name__.removesuffix("Feedback") for o in made.operations
    )
