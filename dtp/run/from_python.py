"""A run from Python, with the options of the command line: ``dtp.train(algo="dtp", model="vgg", data="cifar10")``."""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtp.cli.arguments import REGISTRIES, parse
from dtp.cli.commands import look_for_modules_here
from dtp.cli.config import Config, as_arguments
from dtp.distributed import watch
from dtp.errors import UserError
from dtp.run.folder import Run
from dtp.run.layout import METRICS_FILE
from dtp.system.signals import Interrupted, Stopped, stop_request

if TYPE_CHECKING:
    import pandas
    import torch

    from dtp.algorithms.base import Algorithm

# A run sets random numbers and other things that a process has once.
_one_at_a_time = threading.Lock()
_had_several = False
# What of torch has a precision for products of float32.
_PARTS = ("cudnn", "cudnn.conv", "cudnn.rnn", "cuda.matmul", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
_FLOAT32 = ("backends", *(f"backends.{part}" for part in _PARTS))


@dataclass(frozen=True)
class Result:
    """The result of a run, read from its folder.

    Attributes:
        run_dir: the folder, an absolute path.
    """

    run_dir: Path

    @property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` says: accuracies, times, versions, command."""
        return Run(self.run_dir).summary or {}

    @property
    def metrics(self) -> pandas.DataFrame:
        """``metrics.csv``: ``epoch``, ``step``, ``train/*``, ``val/*``, ``test/*``, angles; NaN where there is none."""
        import pandas

        return pandas.read_csv(self.run_dir / METRICS_FILE)

    @property
    def figures(self) -> list[Path]:
        """The pictures that the run has drawn."""
        return sorted(self.run_dir.glob("*.png"))

    def load(self, map_location: str | torch.device = "cpu", **settings: Any) -> Algorithm:
        """The trained rule, as :func:`dtp.load` gives it. Classes of your own are trusted, for the run has run them."""
        from dtp.run.loading import load

        return load(self.run_dir, map_location, **{"trust": True, **settings})


def train(**options: Any) -> Result:
    """Train a network as ``dtp train`` does: presets, run folder, checkpoints, resume, and the test at the end.

    Afterwards signal handlers, random numbers, warnings and other settings of the process are as before. A call from
    another thread waits until this one ends. Several devices work in scripts only, once per process, started plainly or
    by torchrun or srun. Every rank calls this.

    Args:
        options: those of the command line, by name, with underscores: ``algo="dtp", model="vgg", lr=0.1,
            channels=[16, 32], resume="auto"``. None leaves an option out. Your own ``algo``, ``model`` and ``data`` may
            be given as classes.

    Raises:
        UserError: a mistake in the options, the data, or what your own class returns.
        Stopped: a signal has asked the run to stop; it has written a checkpoint.
        KeyboardInterrupt: Ctrl-C, or a notebook's stop button, with a checkpoint where training had begun.
    """
    words = as_words(options)
    with _one_at_a_time, stop_request.handled(), _as_before():
        try:
            from dtp.run.training import train as train_run

            config = parse(words)
            _require_one_process(config)
            run = train_run(config, words)
            watch.leave()
            return Result(run.folder.absolute())
        except Interrupted:
            raise KeyboardInterrupt from None
        except Stopped as stopped:
            if stopped.status == 130:
                raise KeyboardInterrupt(str(stopped)) from None
            raise
        except SystemExit as error:
            raise UserError(
                f"A class of your own ended the program (sys.exit({error.code!r})); take that out of it."
            ) from error


def _require_one_process(config: Config) -> None:
    """Raise UserError where several processes are needed, and a notebook or an earlier run forbids to start them."""
    global _had_several
    from dtp.distributed.devices import choose_devices

    if _had_several:
        raise UserError("Only one run on several devices is possible in a process; start one for each, by dtp train.")
    with warnings.catch_warnings():
        # Lightning's, of a launcher that is there and not used.
        warnings.simplefilter("ignore")
        _, devices, nodes = choose_devices(config.run)
    _had_several = devices * nodes > 1
    if _had_several and hasattr(sys, "ps1"):
        _had_several = False
        raise UserError(f"devices: expected 1 in a notebook, found {devices}; use dtp train in a shell for several.")


def as_words(options: dict[str, Any]) -> list[str]:
    """The words of the command line that say the same.

    Raises:
        UserError: a value that no option has.
    """
    if "help" in options:
        raise UserError("help: expected options of a run; dtp train --help lists them.")
    return as_arguments({name: _value(name, value) for name, value in options.items()})


def _value(name: str, value: Any) -> Any:
    if isinstance(value, type):
        return _class_name(value)
    if isinstance(value, Enum):
        # Some are texts or numbers, too.
        return value.name
    if isinstance(value, str) and value in ("", "-h"):
        # The second would ask for help.
        raise UserError(f"{name}: expected a value, found {value!r}; give one, or None to leave it out.")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_value(name, item) for item in value]
    if not isinstance(value, str | bytes) and hasattr(value, "tolist") and getattr(value, "ndim", 0) < 2:
        # A number of numpy's, some of which are Python's floats too, or an array.
        value = value.tolist()
    if not isinstance(value, str | bool | int | float | list) and value is not None:
        # Such as a network, a dataset or a loader.
        made = type(value).__module__ != "builtins" and (hasattr(value, "forward") or hasattr(value, "__getitem__"))
        made = made or hasattr(value, "dataset")
        hint = "; what is made already goes to a rule and a lightning.Trainer (docs/python.md)" if made else ""
        raise UserError(f"{name}: expected text, a number or a list of such, found {type(value).__name__}{hint}.")
    return value


def _class_name(cls: type) -> str:
    if "<locals>" in cls.__qualname__:
        raise UserError(f"{cls.__qualname__}: expected a class of a module or notebook, found one within a function.")
    names: Any = cls.__qualname__.split(".")
    found = reduce(lambda owner, name: getattr(owner, name, None), names, sys.modules.get(cls.__module__))
    # Modules may be loaded again while a class of before is at hand, and the new one is meant.
    if cls.__module__ == "__main__" and found is not cls:
        raise UserError(
            f"{cls.__qualname__}: expected a class that is found by this name, found that another one, defined later, "
            "or nothing has it; give each class a name of its own."
        )
    # Ours have a name in one of them.
    return min((registry.name_of(cls) for registry in REGISTRIES), key=lambda name: ":" in name)


@contextmanager
def _as_before() -> Iterator[None]:
    """Within it a run may set what a process has once; afterwards all of that is as it was."""
    import numpy as np
    import torch

    flags = [
        (torch.backends.cudnn, "benchmark"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    ]
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        stack.enter_context(warnings.catch_warnings())
        for owner, name in flags:
            stack.callback(setattr, owner, name, getattr(owner, name))
        stack.callback(
            torch.use_deterministic_algorithms,
            torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        # A run has the precision that its options say.
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        stack.enter_context(_full_float32())
        if torch.get_default_device().type != "cpu":
            # A run says itself what it makes on its device; what it says nothing of is for the CPU.
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        # It makes tensors that no gradient goes through.
        stack.enter_context(torch.inference_mode(False))
        for logger in map(logging.getLogger, ("lightning.pytorch", "lightning.fabric", "lightning")):
            stack.callback(logger.setLevel, logger.level)
        stack.push(_end_wandb_but(_wandb_run()))
        # Lightning's seed for the workers of loaders, what our processes tell each other, and cuBLAS.
        stack.callback(_restore_environment, dict(os.environ))
        before = list(sys.path)
        look_for_modules_here()
        if sys.path != before:
            stack.callback(sys.path.remove, sys.path[-1])
        yield


@contextmanager
def _full_float32() -> Iterator[None]:
    """Within it products of float32 are computed in float32, unless a run asks for less; afterwards all is as it was.

    Torch has an old name and a new one for most of it, and cannot read the old one where they differ; so both are kept.
    """
    import torch

    def old(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except RuntimeError:
            return None

    products = old(torch.get_float32_matmul_precision)
    convolutions = old(lambda: torch.backends.cudnn.allow_tf32)
    places: list[Any] = []
    for name in _FLOAT32:
        # The new names came with torch 2.9. The first is what the others have where they have none of their own.
        with suppress(AttributeError):
            place = attrgetter(name)(torch)
            places.append((place, place.fp32_precision))
    try:
        for place, _ in places:
            place.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        for place, precision in places:
            place.fp32_precision = precision


def _wandb_run() -> Any:
    """The run of W&B that goes on in this process, if any."""
    wandb = sys.modules.get("wandb")
    return None if wandb is None else wandb.run


def _end_wandb_but(before: Any) -> Callable[..., None]:
    """Ends the run of W&B that has begun since, so that no other logger of this process writes to it."""

    def end(failure: type[BaseException] | None, *_: Any) -> None:
        if _wandb_run() not in (None, before):
            sys.modules["wandb"].finish(exit_code=int(failure is not None))

    return end


def _restore_environment(before: dict[str, str]) -> None:
    for name in {*before, *os.environ}:
        if name.startswith(("PL_", "DTP_")) or name == "CUBLAS_WORKSPACE_CONFIG":
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
