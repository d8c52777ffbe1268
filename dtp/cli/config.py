"""Options of a run, and how presets, files and the command line are merged into one configuration. Imports no torch."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

from dtp.algorithms import ALGORITHMS
from dtp.cli.commands import command_line
from dtp.data import DATA
from dtp.errors import UserError, did_you_mean, user_path
from dtp.fields import checked, flag, option, require_precision, said_of
from dtp.models import MODELS

# Of a YAML file. Ours have a few kilobytes.
MOST_BYTES, MOST_VALUES = 2**20, 100_000
PRESETS = Path(__file__).parents[1] / "presets"
# What the small runs of all rules share, by network and dataset.
SHARED = PRESETS / "shared"


@dataclass
class RunOptions:
    """What is trained, for how long, on what, and where the results go."""

    # Learning rule (listed above), or your own as module:Class.
    algo: str = "dtp"
    # Network (listed above), or your own as module:Class.
    model: str = "mlp"
    # Dataset (listed above), or your own as module:Class.
    data: str = "digits"
    # What the network is trained to do: name classes, put out its input again (as many outputs as the image has pixels,
    # with a sigmoid), or sort images into clusters without labels; auto is what the rule is for.
    task: Literal["auto", "classification", "autoencoder", "clustering"] = option("auto", before="classification")
    # Outputs of the network with --task clustering, at least 1.
    clusters: int = option(10, least=1, before=10)
    # Run folder, checkpoint or file of weights (safetensors) of another network whose weights this one starts from, in
    # the layers where both have the same name and shape: an auto-encoder's to be tuned for classes, say.
    init_weights: str = option("", before="")
    # YAML file with any of these options, or the name of a preset. It beats the preset; the command line beats it.
    config: str = option("", varies="start")
    # Epochs (passes over the training set) to train in all, at least 1.
    max_epochs: int = option(20, least=1, budget=True, untimed=True)
    # Batches to train in all, whatever the number of optimizer steps in a batch; -1 for no such limit.
    max_steps: int = option(-1, varies="resumed", budget=True, untimed=True, unlimited=True)
    # Seed of the first weights, the order of the images, their augmentation and the noise; from 0 to 2^32 - 1.
    seed: int = option(0, least=0, most=2**32 - 1, budget=True, unlimited=True)
    # Devices per machine: a number of GPUs (or of processes on a CPU), or auto for all GPUs. Under srun and torchrun
    # leave it and --num-nodes out: they are what those have started.
    devices: str = option("1", varies="resumed")
    # Machines. Start one process per device on each, with srun or torchrun.
    num_nodes: int = option(1, least=1, varies="resumed")
    # How several devices work together: feedback-ddp averages gradients at every optimizer step; auto is that for
    # several devices and none for one.
    strategy: Literal["auto", "feedback-ddp"] = option("auto", varies="resumed")
    # How several devices divide the training of feedback weights: data gives each a share of every batch; layer gives
    # each the whole batch and some of the feedback layers, balanced by measured cost; hybrid gives costly layers
    # several devices.
    feedback_parallel: Literal["data", "layer", "hybrid"] = option("data", varies="resumed")
    # With --feedback-parallel data: average the gradients in every step of the feedback weights, or, as an
    # approximation that communicates less, the weights and optimizer states once per batch.
    feedback_sync: Literal["step", "batch"] = option("step", varies="resumed")
    # Kind of device; auto takes a GPU where there is one.
    accelerator: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", varies="resumed", watching=True)
    # Floating-point numbers: 32 (bits), 64, or bf16-mixed: bfloat16 in the forward phase, 32 bits in the feedback
    # phase.
    precision: str = option("32", written=lambda text: text.removesuffix("-true"))
    # Let matrix products and convolutions of 32 bits use TensorFloat32 on GPUs that have it: faster, 10-bit mantissa.
    tf32: bool = False
    # Use only operations that give the same numbers, bit for bit, each time: slower on a GPU, and an error where torch
    # has no such operation; a CPU uses no others anyway.
    deterministic: bool = option(False, before=False)
    # Capture a whole batch as one CUDA graph where the rule does the same on every batch (bp and dtp, by SGD on one
    # GPU, with layers of torch and of this project): auto does so, no does not. The noise is the same either way. What
    # the feedback phase takes is then not measured apart.
    capture: Literal["auto", "no"] = option("auto", varies="resumed")
    # Order of convolution weights and maps in memory: channels innermost (channels-last) or each map whole
    # (contiguous); auto is channels-last for networks with convolutions, unless one of 1x1 has a stride and reads fewer
    # than 8 channels (in each of its groups), with which torch may crash. The noise is drawn in that order too.
    memory_format: Literal["auto", "contiguous", "channels-last"] = "auto"
    # Folder of this run. Left out: a new one, runs/ALGO_MODEL_DATA/DATE-seedSEED.
    run_dir: str = option("", varies="start")
    # Go on with an interrupted run: auto continues the newest run of the same configuration (or the one in --run-dir),
    # or starts; a run folder or a checkpoint file continues that one with its own configuration.
    resume: str = option("", varies="start")
    # Import the classes (module:Class) that a resumed run or a --config file names and the command line does not. They
    # are programs, and run with your rights: look at them first.
    trust: bool = option(False, varies="start")
    # Where metrics go besides metrics.csv; wandb is online when logged in and offline otherwise.
    logger: Literal["csv", "wandb"] = option("csv", varies="process")
    # Training batches per epoch: a count (10) or a fraction with a point (0.1).
    limit_train_batches: str = option(
        "1.0", budget=True, untimed=True, written=lambda text: str(parse_limit("train", text))
    )
    # Validation batches per epoch: a count (10) or a fraction with a point (0.1); 0 for no validation.
    limit_val_batches: str = option(
        "1.0", varies="resumed", budget=True, untimed=True, written=lambda text: str(parse_limit("val", text))
    )
    # Batches between two rows of training metrics, at least 1.
    log_every: int = option(50, least=1, varies="resumed", watching=True, unlimited=True)
    # Batches between two checkpoints within an epoch; 0 for one at each end of an epoch only.
    checkpoint_every: int = option(0, least=0, varies="resumed", watching=True, unlimited=True)
    # Epochs between two measurements of angles (feedback to forward weights, update to backprop's); 0 for none.
    diagnostics_every: int = option(1, least=0, varies="resumed", watching=True, unlimited=True)
    # Weights that are tested once at the end: those of the best validation accuracy (or loss, for other tasks), or
    # the last.
    test_weights: Literal["best", "last"] = option("best", varies="resumed", untimed=True)
    # Print the network and its feedback layers at the start.
    verbose: bool = option(False, varies="process")


def check_run_options(run: RunOptions) -> None:
    """Raise UserError for a value of the run options that is out of range, or does not fit the others."""
    checked(run)
    if run.max_steps < 1 and run.max_steps != -1:
        raise UserError(f"--max-steps: expected at least 1, or -1 for no limit, found {run.max_steps}.")
    require_precision(run.precision)
    if run.feedback_sync == "batch" and run.feedback_parallel != "data":
        raise UserError(
            f"--feedback-sync batch: expected --feedback-parallel data, found {run.feedback_parallel}, which exchanges "
            "weights once per batch by itself; leave one of the two out."
        )
    if run.devices != "auto" and not (run.devices.isdigit() and int(run.devices) >= 1):
        raise UserError(f"--devices: expected a whole number of at least 1, or auto, found {run.devices!r}.")
    parse_limit("train", run.limit_train_batches)
    parse_limit("val", run.limit_val_batches)


def parse_limit(split: str, text: str) -> int | float:
    """``--limit-SPLIT-batches``: an int for a count, 0 for no validation, or a float for a fraction of the epoch."""
    least = 1 if split == "train" else 0
    try:
        value = float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError:
        value = -1
    if isinstance(value, int) and value >= least or isinstance(value, float) and 0 < value <= 1:
        return value
    raise UserError(
        f"--limit-{split}-batches: expected a count of at least {least}, or a fraction up to 1.0 written with a point; "
        f"found {text!r}."
    )


# As people write them: 007 and 1_0 are names.
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)\.?\d*|\.\d+)([eE][+-]?\d+)?")


# The words of an option that is on or off, and what they mean.
_SWITCHES = {"true": "yes", "yes": "yes", "false": "no", "no": "no"}


def written_alike(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name with 0.5 for 0.50 and 5e-1 where they are texts; those that cannot be read stay as they are."""
    found, written = dict(options), said_of_options("written")
    for name in written.keys() & options.keys():
        with suppress(UserError):
            if (text := written[name](str(options[name]))) != str(options[name]):
                found[name] = text
    return found


def meaning(name: str, value: Any) -> Any:
    """What two values of an option must share to be the same setting: numbers may be written in several ways."""
    if isinstance(value, list | tuple):
        return tuple(meaning(name, item) for item in value)
    if name in said_of_options("written"):
        # A count of 1 is no fraction of 1.0.
        return str(written_alike({name: value})[name])
    text = str(value)
    if text.lower() in _SWITCHES:
        return _SWITCHES[text.lower()]
    return float(text) if _NUMBER.fullmatch(text) else text


def with_yes_and_no(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name with the words yes and no, which bare YAML takes for true and false, where ours have them."""
    return {name: _yes_and_no(name, value) for name, value in options.items()}


def _yes_and_no(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_yes_and_no(name, item) for item in value]
    is_bare = isinstance(value, bool) and name in _words_of_choice()
    return _SWITCHES[str(value).lower()] if is_bare else value


@functools.cache
def _words_of_choice() -> set[str]:
    """Our options that are yes or no, or something else."""
    choices = ((option.name, get_args(get_type_hints(cls)[option.name])) for cls in _ours() for option in fields(cls))
    return {name for name, words in choices if not {"yes", "no"}.isdisjoint(words)}


@dataclass(frozen=True)
class Config:
    """One resolved configuration.

    Attributes:
        run, algo, model, data: the dataclasses of options, filled in.
        origins: where values came from, in words, lowest priority first.
    """

    run: RunOptions
    algo: Any
    model: Any
    data: Any
    origins: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """All options, flat, by name."""
        return {**asdict(self.run), **asdict(self.data), **asdict(self.model), **asdict(self.algo)}

    def said(self, what: str) -> dict[str, Any]:
        """As :func:`said_of_options`, of a user's own rule, network and dataset too."""
        return said_of_options(what) | said_by(what, (type(self.data), type(self.model), type(self.algo)))


@functools.cache
def said_of_options(what: str) -> dict[str, Any]:
    """What the metadata of our options (:func:`dtp.fields.option`) say of ``what``, by name of option."""
    return said_by(what, _ours())


def _ours() -> list[type]:
    """The classes of options of the package."""
    entries = [entry for registry in (ALGORITHMS, MODELS, DATA) for entry in registry.entries.values()]
    return [RunOptions, *(entry.load_options() for entry in entries)]


def said_by(what: str, classes: Iterable[type]) -> dict[str, Any]:
    """The same of the options of ``classes``."""
    said = ((option.name, said_of(cls, option.name, what)) for cls in classes for option in fields(cls))
    return {name: value for name, value in said if value is not None}


@dataclass(frozen=True)
class Preset:
    """A shipped preset.

    Attributes:
        name: what ``--config`` calls it, ``RULE_NETWORK_DATA`` or ``RULE_NETWORK_DATA_VARIANT``.
        origin: where its values come from: the comment lines at the head of its file.
    """

    name: str
    origin: str
    values: dict[str, Any]

    def __str__(self) -> str:
        return f"preset {self.name}: {self.origin}"


def find_preset(name: str) -> Preset | None:
    """The shipped preset of a name, if there is one.

    That is its file, or the values that small runs of all rules share, with those that the rule is registered with.
    """
    path = PRESETS / f"{name}.yaml"
    if path.is_file():
        return Preset(name, comment_of(path.read_text(encoding="utf-8")), read_yaml(path))
    rule, _, place = name.partition("_")
    shared, entry = SHARED / f"{place}.yaml", ALGORITHMS.entries.get(rule)
    if entry is None or entry.preset is None or not shared.is_file():
        return None
    return Preset(name, comment_of(shared.read_text(encoding="utf-8")), {**read_yaml(shared), **entry.preset})


def preset_of(algo: str, model: str, data: str, task: str = "") -> Preset | None:
    """The shipped preset of these three, if there is one; ``task`` where it is not the usual one of the rule."""
    return find_preset("_".join(filter(None, (algo, model, data, task))))


def preset_names() -> list[str]:
    """Names of all shipped presets, in their order."""
    made = (f"{rule}_{path.stem}" for rule in ALGORITHMS.names() for path in SHARED.glob("*.yaml"))
    return sorted({path.stem for path in PRESETS.glob("*.yaml")} | {name for name in made if find_preset(name)})


def preset_choices(name: str) -> dict[str, str]:
    """The rule, network and dataset that the name of a shipped preset stands for; empty for any other name."""
    stem, path = name.removesuffix(".yaml"), Path(name)
    # Folders of runs are called as presets are, and mean nothing here unless they are run folders.
    if "/" in name or path.is_file() or (path / "config.yaml").is_file() or find_preset(stem) is None:
        return {}
    return dict(zip(("algo", "model", "data"), stem.split("_"), strict=False))


def config_values(name: str) -> tuple[dict[str, Any], Path | Preset | None]:
    """What ``--config name``, a path or the name of a preset, says; and the run folder or preset, where it names one.

    Raises:
        UserError: neither exists, or the file cannot be read.
    """
    path = user_path(name)
    if path.is_dir() and (path / "config.yaml").is_file():
        return read_configuration(path / "config.yaml"), path
    if path.is_file():
        return read_yaml(path), None
    preset = find_preset(name.removesuffix(".yaml"))
    if preset is not None:
        return preset.values, preset
    raise UserError(
        f"--config {name}: no such file, nor a preset of that name{did_you_mean(path.stem, preset_names())}; "
        f"give the path of a YAML file, or a preset's name ({command_line('train')} --help lists them)."
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Options in a YAML file, names with underscores.

    Raises:
        UserError: the file cannot be read, is not YAML, or is not a flat mapping of options.
    """
    _, values = load_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected lines of the form 'option: value', found {type(values).__name__}.")
    for key in values:
        if not isinstance(key, str):
            raise UserError(f"{path}: expected the name of an option before each colon, found {key!r}.")
    for key, value in values.items():
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, dict | list) for item in items):
            raise UserError(f"{path}: expected a single value or a flat list for {key!r}, found {repr(value)[:100]}.")
    try:
        values = with_underscores(values)
        as_arguments(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    # Runs of earlier versions have saved what was typed.
    return written_alike(values)


def read_configuration(path: Path) -> dict[str, Any]:
    """Options in the configuration that a run has written, as :func:`read_yaml`.

    Raises:
        UserError: also where it does not say what was trained, as an empty one.
    """
    values = read_yaml(path)
    for name in ("algo", "model", "data"):
        if name not in values:
            raise UserError(
                f"{path}: expected the configuration of a run, found none of its {name!r}; put that back, move "
                "the folder away, or name the file itself in --config."
            )
    return values


def with_underscores(options: dict[str, Any]) -> dict[str, Any]:
    """Options by their names with underscores.

    Raises:
        UserError: one is there with dashes and with underscores.
    """
    found: dict[str, Any] = {}
    for written, value in options.items():
        name = written.replace("-", "_")
        if name in found:
            raise UserError(f"{name}: expected once, found with dashes and with underscores; take one of them out.")
        found[name] = value
    return found


def load_yaml(path: Path) -> tuple[str, Any]:
    """The text of a YAML file, and what it says.

    Raises:
        UserError: the file cannot be read, is too large, or is not YAML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1).decode()
        if len(text) > MOST_BYTES:
            raise UserError(f"{path}: expected a file of at most {MOST_BYTES} bytes, found a larger one.")
        try:
            return text, yaml.load(text, Loader=_QuickLoader)
        except yaml.YAMLError:
            # That in Python shows the place.
            return text, yaml.load(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # The last two of numbers and dates that are none, and of lists in lists in lists.
        raise UserError(f"{path}: is not valid YAML ({' '.join(str(error).split())}).") from error


def _limited(loader: Any) -> Any:
    """A loader of PyYAML with a limit to what aliases make of a small file, and without names that stand twice."""

    class Loader(loader):
        def get_single_node(self) -> yaml.Node | None:
            node = super().get_single_node()
            if node is not None:
                _count(node, {})
            return node

    return Loader


def _count(node: yaml.Node, counts: dict[yaml.Node, int]) -> int:
    """How many values a node stands for, once all its aliases are written out."""
    if node not in counts:
        # One that holds itself is found here again, and is too many.
        counts[node] = MOST_VALUES + 1
        if isinstance(node, yaml.MappingNode):
            _require_different_names(node)
        below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        parts = () if isinstance(node, yaml.ScalarNode) else below
        counts[node] = 1 + sum(_count(part, counts) for part in parts)
    if counts[node] > MOST_VALUES:
        raise yaml.YAMLError(f"more than {MOST_VALUES} values once its aliases are written out")
    return counts[node]


def _require_different_names(node: yaml.MappingNode) -> None:
    """Raise YAMLError for a name that stands twice in a mapping, of which PyYAML would take the last one's value."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.YAMLError(f"{key.value!r} stands there twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)


# For plain values. By libyaml ten times quicker, where PyYAML was built with it: a command line reads five files.
_Loader = _limited(yaml.SafeLoader)
_QuickLoader = _limited(getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def as_arguments(values: dict[str, Any], empty: bool = False) -> list[str]:
    """The command line that says the same as ``values``, so that files and flags share a parser; None is left out.

    Args:
        empty: keep empty texts, which say "none" in a file. A command line has no word for that but to say nothing.

    Raises:
        UserError: a name that no option has, or a value that would be taken for an option.
    """
    arguments = []
    for key, value in values.items():
        if value is None or (value == "" and not empty):
            continue
        words = [_word(item) for item in (value if isinstance(value, list) else [value])]
        if not re.fullmatch(r"\w[\w-]*", key):
            raise UserError(f"expected names of options, found {key!r}; write lines of the form 'option: value'.")
        if odd := [word for word in words if word.startswith("--")]:
            raise UserError(f"{key}: expected a value, found {odd[0]!r}, which begins as options do; take it out.")
        arguments += [flag(key), *words]
    return arguments


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def options_among(words: Iterable[str]) -> dict[str, list[str]]:
    """The options that a command line names, each with its words as they were last given."""
    found: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            values = found[name.replace("-", "_")] = [value] if equals else []
        else:
            values.append(word)
    return found


def comment_of(text: str) -> str:
    """The comment lines at the head of a YAML file of this text, as one."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ").strip() for line in lines)
