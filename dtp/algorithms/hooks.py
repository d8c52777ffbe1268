"""Hooks that a user's rule overrides: Lightning's, as in any LightningModule, which asks for no super(), and ours."""

from __future__ import annotations

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, cast

from dtp.fields import is_ours

HOOKS = (
    "setup",
    "on_fit_start",
    "on_fit_end",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_end",
    "on_before_optimizer_step",
    "on_validation_epoch_end",
    "on_test_epoch_end",
    "on_save_checkpoint",
    "on_load_checkpoint",
)

# Of the templates of rules.
OWN_HOOKS = (
    "activation",
    "backward_weight",
    "configure_optimizers",
    "feedback_loss",
    "feedback_noise",
    "first_target",
    "forward_gradients",
    "forward_loss",
    "losses",
    "lower_target",
    "make_feedback",
    "training_batch",
    "turns",
)

_Hook = Callable[..., Any]


def complete_hooks(cls: type) -> None:
    """Have each hook of a rule's class do our part too: ours note that they have run, others are followed by ours.

    Instances of ``cls`` have a set ``_hooks_run``, the names of those of ours that have run since a user's own began.
    """
    for name in HOOKS:
        hook = inspect.getattr_static(cls, name)
        # Of a class beside the rules, too.
        if inspect.isfunction(hook) and not hasattr(hook, "is_whole"):
            whole = _noted(name, hook) if is_ours(cls) else _with_ours(name, hook)
            cast(Any, whole).is_whole = True
            setattr(cls, name, whole)


def warn_of_misspelt(cls: type) -> None:
    """Warn of a method of a user's rule that is called nearly as a hook: it would train as the rule that it extends."""
    hooks = [name for name in (*HOOKS, *OWN_HOOKS) if hasattr(cls, name)]
    public = [name for name, value in vars(cls).items() if callable(value) and not name.startswith("_")]
    for name in () if is_ours(cls) else public:
        known = any(hasattr(base, name) for base in cls.__bases__)
        for close in () if known else difflib.get_close_matches(name, hooks, n=1, cutoff=0.85):
            # Where the class is defined.
            warnings.warn(f"{cls.__name__}.{name} is no hook; did you mean {close}?", stacklevel=4)


def _noted(name: str, hook: _Hook) -> _Hook:
    @functools.wraps(hook)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._hooks_run.add(name)
        return hook(self, *args, **kwargs)

    return noted


def _with_ours(name: str, hook: _Hook) -> _Hook:
    @functools.wraps(hook)
    def whole(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._hooks_run.discard(name)
        found = hook(self, *args, **kwargs)
        if name not in self._hooks_run:
            ours = next(vars(cls)[name] for cls in type(self).__mro__ if is_ours(cls) and name in vars(cls))
            ours(self, *args, **kwargs)
        return found

    return whole
