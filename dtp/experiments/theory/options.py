"""The studies and their options. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from dtp.errors import UserError
from dtp.fields import MOST_OFTEN, default_of
from dtp.registry import import_object


@dataclass(frozen=True)
class Study:
    """One study: its module has ``measure(options) -> values``, ``table(values) -> text`` and ``draw(values, path)``.

    ``values`` is made of what JSON can hold. ``draw`` and ``table`` need nothing else.
    """

    name: str
    summary: str
    options: type[StudyOptions]

    def load(self, function: str) -> Callable[..., Any]:
        """A function of its module. Imports torch."""
        return import_object(f"dtp.experiments.theory.{self.name.replace('-', '_')}:{function}")


STUDIES: dict[str, Study] = {}

_Options = TypeVar("_Options", bound=type)


def study(name: str, summary: str) -> Callable[[_Options], _Options]:
    """Register the study ``name`` with the decorated dataclass of its options."""

    def register(options: _Options) -> _Options:
        STUDIES[name] = Study(name, summary, options)
        return options

    return register


def option(default: Any, text: str) -> Any:
    """A field with the text that ``--help`` shows; a list is given as a tuple."""
    if isinstance(default, tuple):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class StudyOptions:
    """What all studies have.

    Raises:
        UserError: a value is out of range, in a sentence that names the option.
    """

    seeds: list[int] = option((0, 1, 2, 3, 4), "seeds of networks, images and noise, one measurement each")

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds: expected seeds that differ, found {' '.join(map(str, self.seeds))}.")
        self._require("seeds", least=0, most=2**32 - 1)
        self.check()

    def check(self) -> None:
        """Raise UserError where an option of this study is out of range."""

    def _require(self, *names: str, least: float | None = None, above: float | None = None, most: float = math.inf):
        for name in names:
            found = getattr(self, name)
            for value in found if isinstance(found, list) else [found]:
                low = (least is None or value >= least) and (above is None or value > above)
                highest = min(most, MOST_OFTEN) if isinstance(value, int) and name != "seeds" else most
                if low and value <= highest and math.isfinite(value):
                    continue
                bound = f"{least:g} or more" if least is not None else f"a number above {above:g}"
                bound += f", up to {highest:.10g}" if highest < math.inf else ""
                raise UserError(f"--{name.replace('_', '-')}: expected {bound}, found {value:g}.")

    def _require_count(self, name: str, counts: Sequence[int], of: str) -> None:
        if len(getattr(self, name)) not in counts:
            raise UserError(
                f"--{name.replace('_', '-')}: expected {' or '.join(map(str, counts))} values, {of}; "
                f"found {len(getattr(self, name))}."
            )


Data = Literal[
    "random", "digits", "mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100", "imagenet32", "imagefolder"
]


@dataclass
class ImageOptions(StudyOptions):
    """Where images come from."""

    batch_size: int = option(64, "images; one batch is all that a seed sees")
    data: Data = option("random", "dataset of the batch; random: Gaussian pixels and any labels")
    data_dir: str = option("auto", "folder that holds the dataset; auto as in training")
    image_shape: list[int] = option((3, 16, 16), "channels, height and width of random images")

    def check(self) -> None:
        self._require("batch_size", "image_shape", least=1)
        self._require_count("image_shape", [3], "channels, height and width")


@study("transpose", "feedback weights on their way to the transposes of frozen forward weights (L-DRL)")
@dataclass
class TransposeOptions(ImageOptions):
    """Ernoult et al. 2022, the slides' test of the feedback training: forward weights frozen, one batch."""

    iterations: int = option(2000, "feedback iterations")
    points: int = option(50, "measurements along the way")
    channels: list[int] = option((16, 32), "channels of the convolutions, each with ELU and 2x2 max-pooling")
    noise: list[float] = option((0.2, 0.1), "noise scale of the convolutional and of the linear layer")
    feedback_lr: list[float] = option((), "feedback learning rate of the two; left out: 1e-3 / (noise^2 positions)")
    drop: float = option(0.67, "part of the iterations after which the rates are a tenth; 1 for never")
    ldrl_scale: Literal["code", "paper"] = option("code", "scale of the loss: the published code's or the paper's")
    engine: Literal["auto", "literal", "reduced"] = option("auto", "literal: the loss as it is written")

    def check(self) -> None:
        super().check()
        self._require("iterations", "points", "channels", least=1)
        self._require("noise", "feedback_lr", above=0)
        self._require("drop", above=0, most=1)
        self._require_count("noise", [1, 2], "one for both layers or one each")
        self._require_count("feedback_lr", [0, 1, 2], "none, one for both layers or one each")
        if len(self.channels) < 2:
            raise UserError(f"--channels: expected at least 2 convolutions, found {len(self.channels)}.")


_PUBLISHED = {
    "channels": [32, 64],
    "hidden": 512,
    "image_shape": [3, 32, 32],
    "batch_size": 256,
    "iterations": 5000,
    "feedback_lr": [1e-4, 2.5e-3, 0.01],
    "drop": 1.0,
    "unpool": "write",
}


@study("update-angles", "angles of updates to backprop's for random, symmetric, L-DRL- and DRL-trained feedback")
@dataclass
class UpdateAnglesOptions(ImageOptions):
    """Ernoult et al. 2022, figure 4.3: a LeNet without biases, one batch, no step of the forward weights."""

    seeds: list[int] = option((123, 124, 125, 126, 127), "seeds of networks, images and noise, one measurement each")
    image_shape: list[int] = option((3, 16, 16), "channels, height and width of random images")
    iterations: int = option(1000, "feedback iterations of each layer")
    channels: list[int] = option((8, 16), "channels of the two convolutions")
    hidden: int = option(64, "units of the hidden linear layer")
    betas: list[float] = option((0.4655, 0.01), "steps of the output target, each a panel of the figure")
    noise: list[float] = option((0.2, 0.2, 0.1), "noise scale of the feedback of layers 2, 3 and 4 (L-DRL)")
    feedback_lr: list[float] = option((), "their learning rates; left out: 1e-3 / (noise^2 positions)")
    drl_noise: float = option(0.01, "noise scale of DRL")
    drl_lr: float = option(4.5e-3, "learning rate of DRL's feedback, by Adam")
    drop: float = option(0.67, "part of the iterations after which all rates are a tenth; 1 for never")
    unpool: Literal["add", "write"] = option("add", "how maxima are put back where windows overlap")
    size: Literal["small", "published"] = option(
        "small",
        "published, for a GPU or a day, in place of the defaults: channels 32 64, 512 hidden units, 3x32x32 images in "
        "batches of 256, 5000 iterations, constant learning rates 1e-4 2.5e-3 1e-2, maxima written",
    )

    def __post_init__(self) -> None:
        if self.size == "published":
            for field in fields(self):
                if field.name in _PUBLISHED and getattr(self, field.name) == default_of(field):
                    setattr(self, field.name, _PUBLISHED[field.name])
        super().__post_init__()

    def check(self) -> None:
        super().check()
        self._require("iterations", "channels", "hidden", least=1)
        self._require("betas", "noise", "feedback_lr", "drl_noise", "drl_lr", above=0)
        self._require("drop", above=0, most=1)
        self._require_count("channels", [2], "one for each convolution")
        self._require_count("noise", [1, 3], "one for all layers or one each")
        self._require_count("feedback_lr", [0, 1, 3], "none, one for all layers or one each")


@study("gait", "correlation of GAIT-prop's updates with backprop's: targets, nonlinearity, precision, step, depth")
@dataclass
class GaitOptions(StudyOptions):
    """Dalm et al. 2021, figure 2B: untrained networks of six hidden layers, orthogonal weights."""

    seeds: list[int] = option(tuple(range(10)), "seeds of networks and images, one measurement each")
    depth: int = option(6, "hidden layers; the square output layer comes on top")
    width: int = option(50, "units of each layer")
    batch_size: int = option(64, "images of one measurement, Gaussian, as many values as units")
    steps: list[float] = option((1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1), "lengths of the step of normalised targets")
    departures: list[float] = option((0.0, 0.01, 0.03, 0.1, 0.3), "sizes of Gaussian weights added to orthogonal ones")

    def check(self) -> None:
        self._require("depth", "batch_size", least=1)
        # Ten units of the output are classes.
        self._require("width", least=10)
        self._require("steps", above=0)
        self._require("departures", least=0)


@study("lee", "Lee's theorems: the cone around backprop of exact inverses, and when lower targets lead to upper ones")
@dataclass
class LeeOptions(StudyOptions):
    """Lee 2018 (Lee et al. 2015), theorems 1 and 2."""

    seeds: list[int] = option(tuple(range(10)), "seeds of networks and samples, one measurement each")
    depth: int = option(4, "theorem 1: layers")
    units: int = option(12, "theorem 1: units of each layer")
    spread: float = option(0.05, "theorem 1: deviation of Gaussian weights added to orthogonal ones")
    step: float = option(1e-6, "theorem 1: step of the output target, a small one")
    widths: list[int] = option((12, 20), "theorem 2: units of the narrow and of the wide side of a layer")
    iterations: int = option(1000, "theorem 2: feedback iterations")
    points: int = option(20, "theorem 2: measurements along the way")
    samples: int = option(64, "theorem 2: images of the batch")
    distance: float = option(1e-3, "theorem 2: distance of a target, in a random direction, from the activation")

    def check(self) -> None:
        self._require("depth", "units", least=2)
        self._require("spread", least=0)
        self._require("step", "distance", above=0)
        self._require("widths", "iterations", "points", "samples", least=1)
        self._require_count("widths", [2], "the narrow and the wide side")
        if self.widths[0] >= self.widths[1]:
            raise UserError(
                f"--widths: expected a narrow and a wide side, found {self.widths[0]} and {self.widths[1]}."
            )
