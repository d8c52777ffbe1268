"""What a pass over a model changes beside its output: attributes, buffers, random numbers; found, and put back."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Kept:
    """The state of a model before a pass that is to change nothing, one without values for example.

    Modes are left out, which such a pass sets by itself. A list, dictionary or set of a module is put back with what it
    held, but not what is within that.
    """

    def __init__(self, model: nn.Module):
        self._attributes = [
            (path, module, {name: (value, _copied(value)) for name, value in vars(module).items()})
            for path, module in model.named_modules()
        ]
        self._buffers = [
            (path, name, buffer, buffer._version, buffer.clone())
            for path, module in model.named_modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self._generators = torch.get_rng_state(), random.getstate(), np.random.get_state()

    def changed(self, is_note: Callable[[Any], bool]) -> dict[str, str]:
        """By the path of its module the name of what has changed, one for each module.

        ``is_note`` tells values of the pass itself, which a module may note down in attributes that are no buffers.
        """
        found = {path: name for path, name, buffer, v, before in self._buffers if _is_written(buffer, v, before)}
        for path, module, attributes in self._attributes:
            for name, value in vars(module).items():
                before = attributes.get(name, (None, None))[1]
                if name == "training" or is_note(value):
                    continue
                if name == "_buffers":
                    other = [key for key in value if not _same(value[key], before.get(key))]
                    found.update([(path, key) for key in other])
                elif not _same(*_without_notes(value, before, is_note)):
                    found[path] = name
        return found

    def restore(self) -> None:
        """Put all back as it was."""
        for _, module, attributes in self._attributes:
            now = vars(module)
            for name in now.keys() - attributes.keys():
                del now[name]
            for name, (value, before) in attributes.items():
                if name != "training":
                    now[name] = value
                    if not _same(value, before):
                        _refill(value, before)
        with torch.no_grad():
            for _, _, buffer, version, before in self._buffers:
                if _is_written(buffer, version, before):
                    buffer.copy_(before)
        of_torch, of_python, of_numpy = self._generators
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def generators() -> tuple:
    """What changes whenever torch on the CPU, Python or NumPy draws a random number."""
    _, of_numpy, place, *_ = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.asarray(of_numpy).tobytes(), place


def _is_written(buffer: Tensor, version: int, before: Tensor) -> bool:
    return buffer._version != version and not torch.equal(buffer, before)


def _copied(value: Any) -> Any:
    return copy(value) if isinstance(value, list | dict | set) else value


def _refill(value: Any, before: Any) -> None:
    value.clear()
    (value.extend if isinstance(value, list) else value.update)(before)


def _same(a: Any, b: Any) -> bool:
    """Whether two values are one, or equal as far as that is known without asking objects that compare oddly."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, set | bool | int | float | complex | str | bytes) and a == b


def _without_notes(value: Any, before: Any, is_note: Callable[[Any], bool]) -> tuple[Any, Any]:
    if isinstance(value, list | set):
        return type(value)(each for each in value if not is_note(each)), before
    if isinstance(value, dict) and isinstance(before, dict):
        noted = {key for key in value if is_note(value[key])}
        now, then = ({key: part[key] for key in part if key not in noted} for part in (value, before))
        return now, then
    return value, before
