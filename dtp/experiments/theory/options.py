"""The studies and their options. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from dtp import fields
from dtp.errors import UserError
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


def option(default: Any, text: str, **bounds: Any) -> Any:
    """A field with the text that ``--help`` shows, and the bounds of :func:`dtp.fields.option`."""
    return fields.option(list(default) if isinstance(default, tuple) else default, help=text, **bounds)


def sized(small: Any, published: Any, text: str, **bounds: Any) -> Any:
    """An option whose default is that of ``size``; None until it is known."""
    return fields.option(None, help=text, sizes={"small": small, "published": published}, **bounds)


@dataclass
class StudyOptions:
    """What all studies have.

    Raises:
        UserError: a value is out of range, in a sentence that names the option.
    """

    seeds: list[int] = option(
        (0, 1, 2, 3, 4),
        "seeds of networks, images and noise, one measurement each",
        least=0,
        most=2**32 - 1,
        unlimited=True,
    )

    def __post_init__(self) -> None:
        vars(self).update(vars(fields.checked(self)))
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds: expected different seeds, found {' '.join(map(str, self.seeds))}.")
        self.check()

    def check(self) -> None:
        """Raise UserError where options of this study do not fit together."""

    def _require_different(self, name: str) -> None:
        """Raise UserError where two values are written alike: in the results they would count as two seeds."""
        values = getattr(self, name)
        if len({f"{value:g}" for value in values}) < len(values):
            found = " ".join(map(str, values))
            raise UserError(f"{fields.flag(name)}: expected values that differ in six digits, found {found}.")

    def _require_count(self, name: str, counts: Sequence[int], of: str) -> None:
        if len(getattr(self, name)) not in counts:
            raise UserError(
                f"{fields.flag(name)}: expected {' or '.join(map(str, counts))} values, {of}; "
                f"found {len(getattr(self, name))}."
            )


Data = Literal[
    "random", "digits", "mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100", "imagenet32", "imagefolder"
]


@dataclass
class ImageOptions(StudyOptions):
    """Where images come from."""

    batch_size: int = option(64, "images; one batch is all that a seed sees", least=1)
    data: Data = option("random", "dataset of the batch; random: Gaussian pixels and any labels")
    data_dir: str = option("auto", "folder that holds the dataset; auto as in training")
    image_shape: list[int] = option((3, 16, 16), "channels, height and width of random images", least=1)

    def check(self) -> None:
        self._require_count("image_shape", [3], "channels, height and width")
        field = next(field for field in dataclasses.fields(self) if field.name == "image_shape")
        usual = [*field.metadata.get("sizes", {}).values(), fields.default_of(field)]
        if self.data != "random" and self.image_shape not in usual:
            shape = " ".join(map(str, self.image_shape))
            raise UserError(f"--image-shape {shape}: expected random images, found --data {self.data}; leave it out.")


@study("transpose", "feedback weights on their way to the transposes of frozen forward weights (L-DRL)")
@dataclass
class TransposeOptions(ImageOptions):
    """Ernoult et al. 2022, the slides' test of the feedback training: forward weights frozen, one batch."""

    iterations: int = option(2000, "feedback iterations", least=1)
    points: int = option(50, "measurements along the way", least=1)
    channels: list[int] = option((16, 32), "channels of the convolutions, each with ELU and 2x2 max-pooling", least=1)
    noise: list[float] = option((0.2, 0.1), "noise scale of the convolutional and of the linear layer", above=0)
    feedback_lr: list[float] = option(
        (), "feedback learning rate of the two; left out: 1e-3 / (noise^2 positions)", above=0
    )
    drop: float = option(0.67, "part of the iterations after which the rates are a tenth; 1 for never", above=0, most=1)
    ldrl_scale: Literal["code", "paper"] = option("code", "scale of the loss: the published code's or the paper's")
    engine: Literal["auto", "literal", "reduced"] = option("auto", "literal: the loss as it is written")

    def check(self) -> None:
        super().check()
        self._require_count("noise", [1, 2], "one for both layers or one each")
        self._require_count("feedback_lr", [0, 1, 2], "none, one for both layers or one each")
        if len(self.channels) < 2:
            raise UserError(f"--channels: expected at least 2 convolutions, found {len(self.channels)}.")


@study("update-angles", "angles of updates to backprop's for random, symmetric, L-DRL- and DRL-trained feedback")
@dataclass
class UpdateAnglesOptions(ImageOptions):
    """Ernoult et al. 2022, figure 4.3: a LeNet without biases, one batch, no step of the forward weights."""

    seeds: list[int] = option((123, 124, 125, 126, 127), "seeds of networks, images and noise, one measurement each")
    batch_size: int = sized(64, 256, "images; one batch is all that a seed sees", least=1)
    image_shape: list[int] = sized([3, 16, 16], [3, 32, 32], "channels, height and width of random images", least=1)
    iterations: int = sized(1000, 5000, "feedback iterations of each layer", least=1)
    channels: list[int] = sized([8, 16], [32, 64], "channels of the two convolutions", least=1)
    hidden: int = sized(64, 512, "units of the hidden linear layer", least=1)
    betas: list[float] = option((0.4655, 0.01), "steps of the output target, each a panel of the figure", above=0)
    noise: list[float] = option((0.2, 0.2, 0.1), "noise scale of the feedback of layers 2, 3 and 4 (L-DRL)", above=0)
    feedback_lr: list[float] = sized(
        [], [1e-4, 2.5e-3, 0.01], "their learning rates; left out: 1e-3 / (noise^2 positions)", above=0
    )
    drl_noise: float = option(0.01, "noise scale of DRL", above=0)
    drl_lr: float = option(4.5e-3, "learning rate of DRL's feedback, by Adam", above=0)
    drop: float = sized(
        0.67, 1.0, "part of the iterations after which all rates are a tenth; 1 for never", above=0, most=1
    )
    unpool: Literal["add", "write"] = sized("add", "write", "how maxima are put back where windows overlap")
    size: Literal["small", "published"] = option(
        "small",
        "published, for a GPU or a day, where nothing else is given: channels 32 64, 512 hidden units, 3x32x32 images "
        "in batches of 256, 5000 iterations, constant learning rates 1e-4 2.5e-3 1e-2, maxima written",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            # What was given stays, even where it is what another size has.
            if getattr(self, field.name) is None:
                setattr(self, field.name, copy.copy(field.metadata.get("sizes", {}).get(self.size)))
        super().__post_init__()

    def check(self) -> None:
        super().check()
        self._require_count("channels", [2], "one for each convolution")
        self._require_count("noise", [1, 3], "one for all layers or one each")
        self._require_count("feedback_lr", [0, 1, 3], "none, one for all layers or one each")
        self._require_different("betas")


@study("gait", "correlation of GAIT-prop's updates with backprop's: targets, nonlinearity, precision, step, depth")
@dataclass
class GaitOptions(StudyOptions):
    """Dalm et al. 2021, figure 2B: untrained networks of six hidden layers, orthogonal weights."""

    seeds: list[int] = option(tuple(range(10)), "seeds of networks and images, one measurement each")
    depth: int = option(6, "hidden layers; the square output layer comes on top", least=1)
    # Ten units of the output are classes.
    width: int = option(50, "units of each layer", least=10)
    batch_size: int = option(64, "images of one measurement, Gaussian, as many values as units", least=1)
    steps: list[float] = option(
        (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1), "lengths of the step of normalised targets", above=0
    )
    departures: list[float] = option(
        (0.0, 0.01, 0.03, 0.1, 0.3), "sizes of Gaussian weights added to orthogonal ones", least=0
    )

    def check(self) -> None:
        self._require_different("steps")
        self._require_different("departures")


@study("lee", "Lee's theorems: the cone around backprop of exact inverses, and when lower targets lead to upper ones")
@dataclass
class LeeOptions(StudyOptions):
    """Lee 2018 (Lee et al. 2015), theorems 1 and 2."""

    seeds: list[int] = option(tuple(range(10)), "seeds of networks and samples, one measurement each")
    depth: int = option(4, "theorem 1: layers", least=2)
    units: int = option(12, "theorem 1: units of each layer", least=2)
    spread: float = option(0.05, "theorem 1: deviation of Gaussian weights added to orthogonal ones", least=0)
    step: float = option(1e-6, "theorem 1: step of the output target, a small one", above=0)
    widths: list[int] = option((12, 20), "theorem 2: units of the narrow and of the wide side of a layer", least=1)
    iterations: int = option(1000, "theorem 2: feedback iterations", least=1)
    points: int = option(20, "theorem 2: measurements along the way", least=1)
    samples: int = option(64, "theorem 2: images of the batch", least=1)
    distance: float = option(
        1e-3, "theorem 2: distance of a target, in a random direction, from the activation", above=0
    )

    def check(self) -> None:
        self._require_count("widths", [2], "the narrow and the wide side")
        if self.widths[0] >= self.widths[1]:
            raise UserError(
                f"--widths: expected a narrow and a wide side, found {self.widths[0]} and {self.widths[1]}."
            )
