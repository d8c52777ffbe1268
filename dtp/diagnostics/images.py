"""Pictures of what a network has learned: images beside their reconstructions, weights and prototypes as images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from dtp.algorithms.base import Algorithm
from dtp.feedback import layer_operations
from dtp.models.network import Network
from dtp.models.precision import full_precision
from dtp.plots.style import DPI, save_figure
from dtp.run.loggers import log_figure

# Grey levels; more would only make larger files.
LEVELS = 32
# About this many pixels is a picture wide, whole ones for each pixel of its images.
WIDTH = 720


def draw_reconstructions(images: Tensor, reconstructions: Tensor, figure: Path, columns: int = 12) -> None:
    """Draw images above their reconstructions, in as many pairs of rows as it takes.

    Args:
        images, reconstructions: (N, C, H, W) in [0, 1], C 1 or 3.
        figure: the PNG to write, replaced in one step.
        columns: images in a row.
    """
    pairs = []
    for above, below in zip(images.split(columns), reconstructions.split(columns), strict=True):
        # The last rows are filled up, so that each image is above its own reconstruction.
        missing = columns - len(above) if len(images) > columns else 0
        filling = above.new_ones((missing, *above.shape[1:]))
        pairs += [above, filling, below, filling]
    columns = min(columns, len(images))
    _draw(_mosaic(torch.cat(pairs), columns), "Images (odd rows) and their reconstructions (even rows)", figure)


def draw_rows(rows: dict[str, Tensor], title: str, figure: Path) -> None:
    """Draw rows of as many images each, (N, C, H, W) in [0, 1], under a title, with their names beside them."""
    images = torch.cat(list(rows.values()))
    _draw(_mosaic(images, len(images) // len(rows)), title, figure, list(rows))


def draw_filters(filters: Tensor, title: str, figure: Path, signed: bool = True, most: int = 100) -> None:
    """Draw weights as images, at most the first ``most`` of them.

    Args:
        filters: (N, C, H, W), C 1 or 3.
        title: above them.
        figure: the PNG to write, replaced in one step.
        signed: whether 0 is grey, and black and white are the most negative and positive, each for itself; else black
            and white are the least and the largest value of all.
        most: number of images.
    """
    shown = filters[:most].float()
    if signed:
        largest = shown.abs().amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(shown.dtype).tiny)
        shown = 0.5 + 0.5 * shown / largest
    else:
        low, high = shown.min(), shown.max()
        shown = (shown - low) / (high - low).clamp(min=torch.finfo(shown.dtype).tiny)
    columns = math.ceil(math.sqrt(len(shown)))
    _draw(_mosaic(shown, columns if len(shown) > 3 else len(shown)), title, figure)


def first_filters(network: Network) -> Tensor | None:
    """Weights of the first layer as images (N, C, H, W), detached; None where that is not what they are.

    They are for a linear map or a convolution of images with 1 or 3 channels.
    """
    affine = [module for module in layer_operations(network[1]) if next(module.parameters(), None) is not None]
    if not affine or network.input_shape[0] not in (1, 3):
        return None
    first = affine[0]
    if isinstance(first, nn.Linear) and first.in_features == network.input_shape.numel():
        return first.weight.detach().unflatten(1, network.input_shape)
    if isinstance(first, nn.Conv2d) and first.weight.shape[1] == network.input_shape[0]:
        return first.weight.detach()
    return None


class PicturesCallback(Callback):
    """At the end of a run whose task uses no labels, or whose network is one layer, of the tested weights.

    ``RUN/reconstructions.png``, for auto-encoders: the first images of the test above what the network makes of them.
    ``RUN/filters.png``: the weights of the first layer as images. Measures nothing and changes nothing.
    """

    RECONSTRUCTIONS, FILTERS, IMAGES = "reconstructions.png", "filters.png", 24

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self._first: Tensor | None = None

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: Algorithm, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:
            self._first = batch[0][: self.IMAGES]

    def on_test_end(self, trainer: pl.Trainer, pl_module: Algorithm) -> None:
        if not trainer.is_global_zero:
            return
        try:
            for figure in self._draw(pl_module):
                log_figure(trainer.loggers, figure.stem, figure)
        except OSError as error:
            # A picture is no reason to lose the summary that is still to come.
            warnings.warn(f"No pictures in {self.run_dir}: {error}", stacklevel=2)

    def _draw(self, algorithm: Algorithm) -> list[Path]:
        network, task, drawn = algorithm.network, algorithm.task, []
        images = network.input_shape[0] in (1, 3)
        if task.outputs_images and images and self._first is not None:
            x, figure = self._first, self.run_dir / self.RECONSTRUCTIONS
            with torch.no_grad(), algorithm.randomness("pictures"):
                pixels, made = task.goal(x, x, training=False), task.view(full_precision(algorithm(x)))
            pixels, made = (t.unflatten(1, network.input_shape).cpu() for t in (pixels, made))
            draw_reconstructions(pixels, made, figure)
            drawn.append(figure)
        filters = first_filters(network) if not task.uses_labels or network.depth == 1 else None
        if filters is not None:
            figure = self.run_dir / self.FILTERS
            prototypes = task.weights_are_prototypes
            title = "Prototypes" if prototypes else "Weights of the first layer"
            if len(filters) > 100:
                title += f" (100 of {len(filters)})"
            draw_filters(filters.cpu(), title, figure, signed=not prototypes)
            drawn.append(figure)
        return drawn


def _mosaic(images: Tensor, columns: int) -> Tensor:
    """Images (N, C, H, W) in rows, white between and after them: (H', W', 3)."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    cells = images.new_ones((rows * columns, channels, height + 1, width + 1))
    cells[:n, :, :height, :width] = images.clamp(0, 1)
    grid = cells.view(rows, columns, channels, height + 1, width + 1).permute(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    return grid.expand(*grid.shape[:2], 3)


def _draw(mosaic: Tensor, title: str, figure: Path, names: Sequence[str] = ()) -> None:
    """Write a mosaic (H, W, 3) under a title, its pixels as squares of one size; ``names`` are of its rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    levels = (mosaic * (LEVELS - 1)).round() / (LEVELS - 1)
    side = max(1, round(WIDTH / mosaic.shape[1]))
    height, width, margin, head = side * mosaic.shape[0], side * mosaic.shape[1], 12, 40
    left = margin + (140 if names else 0)
    # Wide enough for the title, too.
    full = max(width, 500) + left + margin, height + head + margin
    drawing = Figure(figsize=(full[0] / DPI, full[1] / DPI), dpi=DPI)
    FigureCanvasAgg(drawing)
    axes = drawing.add_axes((left / full[0], margin / full[1], width / full[0], height / full[1]))
    axes.imshow(levels.numpy(), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    drawing.text(margin / full[0], 1 - 0.5 * head / full[1], title, fontsize=9, va="center")
    for i, name in enumerate(names):
        middle = 1 - (head + (i + 0.5) * height / len(names)) / full[1]
        drawing.text(margin / full[0], middle, name, fontsize=9, va="center")
    save_figure(drawing, figure)
