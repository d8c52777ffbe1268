"""Images as their coordinates along the principal components of the training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dtp.data.images import Images
from dtp.data.statistics import Statistics
from dtp.errors import UserError

# Sums of 256 products of bytes are whole numbers below 2^24, which float32 holds exactly: the second moments do not
# depend on the order of the images, nor on the number of threads.
BLOCK = 256


@dataclass(frozen=True)
class Projection:
    """The map from normalised images (B, C, H, W) to coordinates (B, N, 1, 1), float32.

    Attributes:
        mean: of the training images, (C H W,).
        weight: one component of unit length per column, the one with the largest variance first, its entry of largest
            size positive; divided by the deviation of the coordinate where they are whitened. (C H W, N).
        variances: of the training images along the components, (N,); coordinates not whitened have these variances.
        explained: share of the variance of the training images that the components hold, up to 1.
    """

    mean: Tensor
    weight: Tensor
    variances: tuple[float, ...]
    explained: float

    def __call__(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - self.mean) @ self.weight)[:, :, None, None]

    def to(self, device: torch.device) -> Projection:
        """The same map with ``mean`` and ``weight`` on ``device``, for images that are there."""
        return Projection(self.mean.to(device), self.weight.to(device), self.variances, self.explained)


def fit_projection(
    images: Images, indices: np.ndarray, statistics: Statistics, count: int, whiten: bool = False, name: str = ""
) -> Projection:
    """Principal components of some images, from their exact covariance; the same on every call.

    Args:
        images: uint8, indexed like an array (N, C, H, W).
        indices: which of them count: those that are trained on.
        statistics: what pixels are normalised with before.
        whiten: divide each coordinate by its deviation over these images.

    Raises:
        UserError: there are fewer directions than ``count`` in which the images vary.
    """
    mean, covariance = _moments(images, indices)
    per_pixel = int(np.prod(images.shape[2:]))
    scale = np.repeat(1 / (255 * np.asarray(statistics.std)), per_pixel)
    shift = np.repeat(-np.asarray(statistics.mean) / np.asarray(statistics.std), per_pixel)
    variances, components = np.linalg.eigh(scale[:, None] * covariance * scale)
    variances, components = variances[::-1], components[:, ::-1]
    # As numpy's matrix_rank has it: what is smaller is rounding.
    rank = int((variances > len(variances) * np.finfo(np.float64).eps * variances[0]).sum())
    if not 1 <= count <= rank:
        raise UserError(
            f"--pca: expected a number of components from 1 to {rank}, in how many directions the {len(indices)} "
            f"training images{f' of {name}' if name else ''} vary, found {count}."
        )
    total = variances[:rank].sum()
    variances, components = variances[:count], components[:, :count]
    # An eigenvector's sign is the solver's whim.
    largest = np.abs(components).argmax(axis=0)
    components = components * np.sign(components[largest, np.arange(count)])
    if whiten:
        components = components / np.sqrt(variances)
    return Projection(
        torch.from_numpy(mean * scale + shift).float(),
        torch.from_numpy(np.ascontiguousarray(components)).float(),
        tuple(variances.tolist()),
        float(variances.sum() / total),
    )


def _moments(images: Images, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) of the pixels, 0 to 255, in float64."""
    features = int(np.prod(images.shape[1:]))
    sums, products = np.zeros(features), np.zeros((features, features))
    for start in range(0, len(indices), BLOCK):
        pixels = np.asarray(images[indices[start : start + BLOCK]]).reshape(-1, features).astype(np.float32)
        sums += pixels.sum(axis=0)
        products += pixels.T @ pixels
    mean = sums / len(indices)
    return mean, products / len(indices) - np.outer(mean, mean)
