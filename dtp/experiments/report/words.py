"""Networks, datasets and values of options, as a person would write them. Imports no torch."""

from __future__ import annotations

import dataclasses
from pathlib import PurePath
from typing import Any

from dtp.models import MODELS


def value_words(value: Any) -> str:
    """A value of an option in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        if len(value) > 2 and value.count(value[0]) == len(value):
            return f"{len(value)}x{value_words(value[0])}"
        return "-".join(value_words(item) for item in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else "unset" if value in (None, "") else str(value)


def model_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that belong to the network; none for a network of the user's, which is not imported."""
    network = MODELS.entries.get(str(options["model"]))
    fields = dataclasses.fields(network.load_options()) if network else ()
    return {option.name: options[option.name] for option in fields if option.name in options}


def describe_network(options: dict[str, Any]) -> str:
    """The network in words: its sizes, its nonlinearity, and what else is not as usual."""
    own = model_options(options)
    words = [str(options["model"])]
    words += [f"{name} {value_words(own[name])}" for name in ("kernels", "channels", "strides") if name in own]
    widths = own.get("widths", own.get("hidden"))
    if widths not in (None, []):
        words.append(value_words(widths))
    elif "widths" in own and widths == []:
        words.append("one layer")
    if "activation" in own:
        words.append(str(own["activation"]))
    if own.get("bias") is False:
        words.append("no biases")
    if own.get("standardise", "none") != "none":
        words.append(f"standardise {own['standardise']}")
    if own.get("batch_norm"):
        words.append("batch normalisation")
    if own.get("outputs") is not None:
        words.append("square output" if own["outputs"] == 0 else f"{own['outputs']} outputs")
    return " ".join(words)


def folder_of_images(options: dict[str, Any]) -> dict[str, str]:
    """The name of the folder that the images are read from, as ``data_dir``; nothing where they are of no folder."""
    if options["data"] != "imagefolder" and ":" not in str(options["data"]):
        return {}
    return {"data_dir": PurePath(str(options.get("data_dir", ""))).name}


def describe_data(options: dict[str, Any]) -> str:
    """The dataset in words."""
    name = str(options["data"])
    for folder in folder_of_images(options).values():
        name = f"{folder or name} ({name})"
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
        what = "recompressed as JPEG" if "jp" in folder else "from class folders, perhaps recompressed"
        return "cifar10", f"ours CIFAR-10 {what}, theirs the original"
    if "imagenet" in folder and size == 224 and (counts is None or counts[0] > 1_200_000):
        return "imagenet", ""
    return "", ""
