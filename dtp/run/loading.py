"""Loading the trained rule from a run or a checkpoint, and what a checkpoint stores for this."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dtp.algorithms import ALGORITHMS
from dtp.contracts import shown
from dtp.errors import UserError, user_path
from dtp.fields import as_saved, from_saved
from dtp.models import MODELS, Network
from dtp.registry import Registry
from dtp.run.checkpoints import checkpoints_of, read_first_whole
from dtp.run.layout import SUMMARY_FILE, WEIGHTS_FILE
from dtp.run.provenance import masked
from dtp.run.reading import read_summary
from dtp.tasks import TASKS

if TYPE_CHECKING:
    from dtp.algorithms.base import Algorithm

Rule = TypeVar("Rule", bound="Algorithm")

# The part of a checkpoint that says what rule and network it is of.
DESCRIPTION = "description"


def load(
    source: str | Path,
    map_location: str | torch.device = "cpu",
    *,
    network: Any = None,
    trust: bool = False,
    **options: Any,
) -> Algorithm:
    """The trained rule of a run or a checkpoint, in evaluation mode; its ``network`` is a plain ``nn.Module``.

    No code in the file is executed. From a run folder the weights are those that were tested, usually the best.

    Args:
        source: a run folder, or a checkpoint file: of a run, or of a stock Lightning ``Trainer``.
        map_location: where the weights go.
        network: in place of the one that the checkpoint describes, with weights of the same names and shapes. Needed
            where it describes none: that of a model which was cut into layers, say.
        trust: import classes of the user's own (module:Class) that the checkpoint names. They are programs, and run
            with your rights.
        options: of the rule, by keyword, in place of those that it was trained with.

    Raises:
        UserError: nothing there, damaged, not trusted, or a network of other weights.
    """
    from dtp.algorithms.base import Algorithm

    return load_rule(Algorithm, source, map_location, network, trust, options)


def load_rule(
    cls: type[Rule],
    source: str | Path,
    map_location: str | torch.device,
    network: Any,
    trust: bool,
    changes: dict[str, Any],
) -> Rule:
    """As :func:`load`, for a rule that is a ``cls``.

    Raises:
        UserError: as there, and for a checkpoint of another rule.
    """
    # Lightning has None for where the weights were, which are on the CPU by now.
    device = _usable("cpu" if map_location is None else map_location)
    path, checkpoint = _read(source)
    try:
        return _made_of(cls, path, checkpoint, network, trust, changes).to(device).eval()
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UserError(
            f"{path}: nothing can be made of what it says ({type(error).__name__}: {error}); give a checkpoint of a "
            "run, or of a rule of this package."
        ) from error


def _usable(map_location: Any) -> torch.device:
    try:
        device = torch.device(map_location)
        torch.empty(0, device=device)
    except Exception as error:
        # Torch raises errors of many kinds for a device that is not there.
        found = map_location if isinstance(map_location, str | int | torch.device) else shown(map_location)
        raise UserError(
            f"map_location: expected a device that this machine has, found {found}; give 'cpu', say. A network goes to "
            "network=..."
        ) from error
    return device


def _made_of(
    cls: type[Rule], path: Path, checkpoint: dict[str, Any], network: Any, trust: bool, changes: dict[str, Any]
) -> Rule:
    found = checkpoint.get(DESCRIPTION)
    if not isinstance(found, dict):
        raise UserError(
            f"{path}: does not say what rule it is of; expected a checkpoint of a run, or of a rule of this package, "
            "of version 0.1.0 or later."
        )
    rule = _rule_class(cls, path, found, trust)
    if missing := [name for name in found.get("left_out", ()) if name not in changes]:
        raise UserError(
            f"{path}: does not say what {' and '.join(missing)} of {rule.__name__} was, for no checkpoint has values "
            f"of that type; give {', '.join(f'{name}=...' for name in missing)}."
        )
    options = from_saved(rule.Options, found["options"])
    names = {field.name for field in dataclasses.fields(options)}
    if not isinstance(changes.get("loss"), str):
        # A function of the user's own is no option, but has its name.
        names.discard("loss")
    given = {name: value for name, value in changes.items() if name in names}
    options = dataclasses.replace(options, **given) if given else options
    rest = {name: value for name, value in changes.items() if name not in names}
    if network is None:
        network = _described_network(path, found, trust)
    # Earlier versions took seeds below 0, which come back with the state of the noise.
    made = rule(network, options=options, seed=max(found["seed"], 0), **rest)
    state = checkpoint["state_dict"]
    if any(name.startswith("loss_module.") for name in state) and not hasattr(made, "loss_module"):
        raise UserError(f"{path}: has weights of a loss of your own; give loss=... with one like it.")
    if any(value.dtype == torch.float64 for value in state.values()):
        made.double()
    try:
        made.load_state_dict(state)
    except RuntimeError as error:
        why = " ".join(str(error).split()[:40])
        raise UserError(
            f"{path}: its weights are not those of the network ({why} ...); give network=... with one like that which "
            "was trained."
        ) from error
    if noise := checkpoint.get("noise"):
        made.noise_streams.load_state_dict(noise[0])
    made.batches_by_hand = checkpoint.get("global_step", 0)
    return made


def _read(source: str | Path) -> tuple[Path, dict[str, Any]]:
    path = user_path(source)
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path}: holds the weights of a network alone; give the run folder or a checkpoint, or load it with "
            "network.load_state_dict(safetensors.torch.load_file(...))."
        )
    try:
        candidates = checkpoints_of(path, best_first=not _tested_its_last(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a run folder, or a checkpoint.") from error
    if not candidates:
        more = f", though {WEIGHTS_FILE} is there" if (path / WEIGHTS_FILE).is_file() else ""
        raise UserError(f"{path}: no checkpoint there{more}; give a run folder, or a checkpoint file.")
    return read_first_whole(candidates)


def _tested_its_last(folder: Path) -> bool:
    """Whether a run has tested its last weights, not the best."""
    try:
        summary = read_summary(folder / SUMMARY_FILE, ())
    except UserError:
        return False
    return summary is not None and summary.get("tested_weights") == "last"


# --- what a checkpoint says -------------------------------------------------------------------------------------------


def described(rule: Algorithm) -> dict[str, Any]:
    """What a rule can be made of again, in the types that a checkpoint may have; of its network only if that can be."""
    values, left_out = _values(rule.options)
    return {
        "algo": ALGORITHMS.name_of(type(rule)),
        "options": values,
        # Of a user's own, whose types no checkpoint has.
        "left_out": left_out,
        "seed": rule.noise_streams.seed,
        "network": _of_network(rule.network),
    }


def _of_network(network: Network) -> dict[str, Any] | None:
    parameters = [name for name in inspect.signature(type(network)).parameters if name != "task"]
    made_alike = parameters == ["options", "input_shape", "num_classes"]
    known_task = TASKS.get(network.task.name) is type(network.task)
    if not made_alike or not dataclasses.is_dataclass(network.options) or not known_task:
        return None
    values, left_out = _values(network.options)
    if left_out:
        return None
    return {
        "model": MODELS.name_of(type(network)),
        "options": values,
        "input_shape": list(network.input_shape),
        "outputs": network.num_classes,
        "task": network.task.saved(),
    }


def _values(options: Any) -> tuple[dict[str, Any], list[str]]:
    saved, left_out = as_saved(options)
    return {name: _without_passwords(value) for name, value in saved.items()}, left_out


def _without_passwords(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_passwords(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_passwords(item) for key, item in value.items()}
    return masked(value) if isinstance(value, str) else value


# --- and what is made of it -------------------------------------------------------------------------------------------


def _rule_class(cls: type[Rule], path: Path, found: dict[str, Any], trust: bool) -> type[Rule]:
    name = found["algo"]
    if ":" in name and name.rpartition(":")[2] == cls.__qualname__:
        # The user's own, who has it at hand.
        return cls
    rule = _class(ALGORITHMS, path, name, trust)
    if not issubclass(rule, cls):
        raise UserError(f"{path}: is of the rule {rule.__name__}, not {cls.__name__}; use dtp.load, which takes any.")
    return rule


def _described_network(path: Path, found: dict[str, Any], trust: bool) -> Network:
    said = found["network"]
    if said is None:
        raise UserError(
            f"{path}: does not describe its network, which was cut from a model of your own; give network=... with "
            "one like it."
        )
    cls = _class(MODELS, path, said["model"], trust)
    task = TASKS[said["task"]["name"]].from_saved(said["task"], said["input_shape"], said["outputs"])
    try:
        return cls.for_task(from_saved(cls.Options, said["options"]), said["input_shape"], task)
    except UserError as error:
        raise UserError(f"{path}: nothing can be made of what it says of its network: {error}") from error


def _class(registry: Registry, path: Path, name: str, trust: bool) -> Any:
    if ":" in name and not trust:
        raise UserError(
            f"{path}: names the class {name}, a program; look at it, then give trust=True to import and run it."
        )
    return registry.resolve(name).load()
