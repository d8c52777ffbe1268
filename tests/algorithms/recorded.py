"""A stand-in for a CUDA graph on the CPU, as strict as torch says that one is."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What makes the host wait, which ends a capture.
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}


def record(function: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> Callable[[], None]:
    """Record the operations of ``function`` without doing them, and return what does them again.

    A replay runs no Python of ``function``: it does the same operations on tensors at the same addresses. Random
    numbers come from the present state of the generators, which must be known beforehand, as
    ``torch.cuda.CUDAGraph.register_generator_state`` says; torch's own is. Whatever reads a value raises RuntimeError.
    """
    tape = _Tape([torch.default_generator, *generators])
    try:
        with tape:
            function()
    finally:
        tape.undo()
    return tape.replay


class _Tape(TorchDispatchMode):
    def __init__(self, generators: Sequence[torch.Generator]):
        super().__init__()
        self.generators = [(generator, generator.get_state()) for generator in generators]
        self.operations, self.made, self.before = [], set(), {}

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = named or {}
        if function.overloadpacket.__name__ in WAITING:
            raise RuntimeError("operation not permitted when stream is capturing")
        generator = named.get("generator")
        if generator is not None and all(generator._cdata != known._cdata for known, _ in self.generators):
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        given = [t for t in tree_leaves((arguments, named)) if isinstance(t, Tensor)]
        if function._schema.is_mutable:
            for t in given:
                storage = t.untyped_storage()
                if storage._cdata not in self.made and storage._cdata not in self.before:
                    self.before[storage._cdata] = storage, storage.clone()
        result = function(*arguments, **named)
        known = {t.untyped_storage()._cdata for t in given}
        fresh = [isinstance(t, Tensor) and t.untyped_storage()._cdata not in known for t in tree_leaves(result)]
        self.made |= {t.untyped_storage()._cdata for t, new in zip(tree_leaves(result), fresh, strict=True) if new}
        if any(fresh) or function._schema.is_mutable:
            # They are kept, so that no other tensor is made at their addresses.
            self.operations.append((function, arguments, named, result, fresh))
        return result

    def undo(self) -> None:
        for storage, content in self.before.values():
            storage.copy_(content)
        for generator, state in self.generators:
            generator.set_state(state)

    @torch.no_grad()
    def replay(self) -> None:
        for function, arguments, named, held, fresh in self.operations:
            made = function(*arguments, **named)
            for to, value, new in zip(tree_leaves(held), tree_leaves(made), fresh, strict=True):
                if new:
                    to.copy_(value)
