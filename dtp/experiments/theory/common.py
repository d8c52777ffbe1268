"""Shared by several studies: images, progress, statistics over seeds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dtp.algorithms.local_targets import Activations
from dtp.algorithms.target_propagation import TargetPropagation
from dtp.data import DATA
from dtp.errors import UserError
from dtp.experiments.over_seeds import Statistic
from dtp.experiments.theory.options import ImageOptions


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it, torch's random numbers are those of ``seed``; afterwards they go on as if it had not been."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def each_seed(seeds: Sequence[int]) -> Iterator[int]:
    """The seeds, each printed as its turn comes where stderr is a terminal."""
    for i, seed in enumerate(seeds, start=1):
        if sys.stderr.isatty():
            print(f"seed {seed} ({i} of {len(seeds)})", file=sys.stderr, flush=True)
        yield seed


def make_batch(options: ImageOptions, seed: int) -> tuple[Tensor, Tensor, int]:
    """One batch of training images (B, C, H, W), normalised, labels (B,), and the number of classes.

    Raises:
        UserError: the dataset is not there, or has fewer images.
    """
    if options.data == "random":
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(options.batch_size, *options.image_shape, generator=generator)
        return x, torch.randint(10, (options.batch_size,), generator=generator), 10
    entry = DATA.resolve(options.data)
    settings = entry.load_options()(data_dir=options.data_dir, batch_size=options.batch_size)
    data = entry.load()(settings, seed=seed)
    data.prepare_data()
    data.setup()
    if data.sizes["train"] < options.batch_size:
        raise UserError(
            f"--batch-size: expected at most the {data.sizes['train']} training images of {options.data} in "
            f"{data.data_dir}, found {options.batch_size}."
        )
    x, y = next(iter(data.train_dataloader()))
    return x, y, data.num_classes


def advance(
    rule: TargetPropagation,
    activations: Activations,
    begin: int,
    end: int,
    drop: int,
    layers: Iterable[int] | None = None,
) -> None:
    """Train feedback layers for iterations ``begin`` to ``end``, from ``drop`` on at a tenth of their rates.

    ``layers`` are those that are trained; None for all.
    """
    for first, last, factor in ((begin, min(end, drop), 1.0), (max(begin, drop), end, 0.1)):
        if last <= first:
            continue
        trained = rule.trained_feedback if layers is None else layers
        rule.train_feedback_for(activations, dict.fromkeys(trained, last - first), factor)


def marks(iterations: int, points: int) -> list[int]:
    """Iterations after which to measure: 0, and as many as ``points`` up to the last, evenly apart."""
    points = min(points, iterations)
    return sorted({round(i * iterations / points) for i in range(points + 1)})


def over_seeds(series: Iterable[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Means and deviations, position by position, of one series for each seed."""
    found = [Statistic.of(values) for values in zip(*series, strict=True)]
    return [each.mean for each in found], [each.spread for each in found]


def rows_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text, the first column to the left, the others to the right."""
    first, *others = zip(header, *rows, strict=True)
    columns = [[cell.ljust(max(map(len, first))) for cell in first]]
    columns += [[cell.rjust(max(map(len, column))) for cell in column] for column in others]
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))
