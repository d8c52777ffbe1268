"""Networks, datasets and values of options, as a person would write them, and the templates. Imports no torch."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import jinja2

from dtp.models import MODELS

# Said of images that are not the original's pixels.
RECOMPRESSED = "CIFAR-10 recompressed as JPEG"
# Where ``--data-dir`` names no folder.
AUTO = "auto"


def value_words(value: Any) -> str:
    """A value of an option in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        if len(value) > 2 and value.count(value[0]) == len(value):
            return f"{len(value)}x{value_words(value[0])}"
        return "-".join(value_words(item) for item in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else "unset" if value in (None, "") else str(value)


def is_whole(limit: Any) -> bool:
    """Whether ``--limit-train-batches`` leaves the epoch whole."""
    return limit is None or str(limit) == "1.0"


def model_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that belong to the network; none for a network of the user's, which is not imported."""
    network = MODELS.entries.get(str(options["model"]))
    fields = dataclasses.fields(network.load_options()) if network else ()
    return {option.name: options[option.name] for option in fields if option.name in options}


def describe_network(options: dict[str, Any]) -> str:
    """The network in words: its sizes, its nonlinearity, and what else is not as usual."""
    own = model_options(options)
    widths, outputs = own.get("widths", own.get("hidden")), own.get("outputs")
    words = [
        str(options["model"]),
        *(f"{name} {value_words(own[name])}" for name in ("kernels", "channels", "strides") if name in own),
        value_words(widths) if widths else "one layer" if own.get("widths") == [] else "",
        str(own.get("activation", "")),
        "no biases" if own.get("bias") is False else "",
        f"standardise {own['standardise']}" if own.get("standardise", "none") != "none" else "",
        "batch normalisation" if own.get("batch_norm") else "",
        f"dropout {value_words(own['dropout'])}" if own.get("dropout") else "",
        "" if outputs is None else f"{outputs} outputs" if outputs else "square output",
    ]
    return " ".join(filter(None, words))


def folder_of_images(options: dict[str, Any]) -> dict[str, str]:
    """The name of the folder that the images are read from, as ``data_dir``; nothing where they are of no folder."""
    if options["data"] != "imagefolder" and ":" not in str(options["data"]):
        return {}
    folder = PurePath(str(options.get("data_dir", ""))).name
    return {"data_dir": "" if folder == AUTO else folder}


def describe_data(options: dict[str, Any]) -> str:
    """The dataset in words."""
    name = str(options["data"])
    for folder in folder_of_images(options).values():
        name = f"{folder} ({name})" if folder else name
        if options.get("image_size"):
            name += f", {options['image_size']} pixels"
    return f"{name}, {options['pca']} principal components" if options.get("pca") else name


def dataset(options: dict[str, Any], summary: dict[str, Any]) -> tuple[str, str]:
    """Which known dataset the images are, and what must be said of them.

    Class folders are taken for CIFAR-10 or ImageNet where their name and, in a summary, their numbers of images say so.
    The name is empty for images that are none, or no whole images.
    """
    name = str(options["data"])
    if options.get("pca"):
        return "", f"ours the first {options['pca']} principal components"
    if name != "imagefolder":
        return name, ""
    folder = folder_of_images(options)["data_dir"].lower().replace("-", "").replace("_", "")
    counts = None
    if "train_images" in summary:
        counts = summary["train_images"] + summary.get("val_images", 0), summary.get("test_images", 0)
    size = options.get("image_size")
    if "cifar10" in folder.replace("cifar100", "") and size == 32 and counts in (None, (50000, 10000)):
        if "lossless" in folder:
            return "cifar10", ""
        what = RECOMPRESSED if "jp" in folder else "CIFAR-10 from class folders, perhaps recompressed"
        return "cifar10", f"ours {what}, theirs the original"
    if "imagenet" in folder and size == 224 and (counts is None or counts[0] > 1_200_000):
        return "imagenet", ""
    return "", ""


# --- templates --------------------------------------------------------------------------------------------------------


def rendered(template: str, **content: Any) -> str:
    """A Markdown template of this folder, without more than one empty line at once."""
    return re.sub(r"\n{3,}", "\n\n", _environment().get_template(template).render(content)).strip()


def lines(template: str, **content: Any) -> list[str]:
    """The lines of a template that have text."""
    return list(filter(None, rendered(template, **content).splitlines()))


@cache
def _environment() -> jinja2.Environment:
    """The filters and words of the templates, unescaped: names are in code, where an entity is shown as it is written.

    What would break a line or a table is taken out by the filters ``plain``, ``row`` and ``head``.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": _plain, "row": _row, "head": _head, "value_words": value_words}
    environment.filters["number"] = lambda value: "" if value is None else f"{value:g}"
    environment.globals |= {"is_whole": is_whole, "STATES": ("finished", "unfinished", "failed", "damaged")}
    return environment


def _plain(text: str) -> str:
    return " ".join(text.split())


def _row(text: str) -> str:
    cells = text.removesuffix("\n").split("\n")
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |\n"


def _head(text: str) -> str:
    return _row(text) + "|" + "---|" * text.count("\n") + "\n"
