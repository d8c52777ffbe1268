"""Augmentation of uint8 batches: mirror and random crop, vectorised, random by hash of (seed, epoch, image)."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dtp.data.hashing import AUGMENTATION, counter_hash


@dataclass(frozen=True)
class Augmentation:
    """Mirror each image with probability one half, then crop it at random out of its padded self.

    Attributes:
        flip: whether to mirror left-right.
        flip_vertical: whether to mirror upside down, independently.
        crop_padding: pixels added on each side before the crop; 0 for no crop.
        padding_mode: ``"edge"`` repeats the border pixels, ``"zeros"`` pads with black (0 before normalisation).
    """

    flip: bool
    crop_padding: int
    padding_mode: str
    seed: int
    flip_vertical: bool = False

    def __call__(self, images: np.ndarray, epoch: int, indices: np.ndarray) -> np.ndarray:
        """New images made from ``images``, uint8 (B, C, H, W), which are the images ``indices`` (B,) of the dataset."""
        top, left, mirrored, upside_down = self.draw(epoch, indices)
        if self.crop_padding:
            windows = sliding_window_view(self._pad(images), images.shape[2:], axis=(2, 3))
            images = windows[np.arange(len(images)), :, top, left]
        else:
            images = images.copy()
        chosen = np.nonzero(mirrored)[0]
        images[chosen] = images[chosen][..., ::-1]
        chosen = np.nonzero(upside_down)[0]
        images[chosen] = images[chosen][..., ::-1, :]
        return images

    def draw(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What is done to the images ``indices`` (B,) of the dataset, each (B,) of integers.

        Top and left corner of the crop in the padded image, and whether it is then mirrored left-right, and upside
        down (1), or not (0).
        """
        bits = counter_hash(self.seed, AUGMENTATION, epoch, indices)
        # The two offsets come from disjoint 24-bit parts of the hash; the bias of the remainder is below 1e-5.
        offsets, part = np.uint64(2 * self.crop_padding + 1), np.uint64(0xFFFFFF)
        top = ((bits >> np.uint64(8)) & part) % offsets
        left = ((bits >> np.uint64(36)) & part) % offsets
        mirrored = bits & np.uint64(self.flip)
        upside_down = (bits >> np.uint64(1)) & np.uint64(self.flip_vertical)
        top, left, mirrored, upside_down = (values.astype(np.intp) for values in (top, left, mirrored, upside_down))
        return top, left, mirrored, upside_down

    def _pad(self, images: np.ndarray) -> np.ndarray:
        # By slices: twice as fast as numpy.pad, which is half of the cost of a batch.
        pad, (*batch, height, width) = self.crop_padding, images.shape
        padded = np.zeros((*batch, height + 2 * pad, width + 2 * pad), dtype=images.dtype)
        padded[..., pad:-pad, pad:-pad] = images
        if self.padding_mode == "edge":
            padded[..., pad:-pad, :pad] = images[..., :1]
            padded[..., pad:-pad, -pad:] = images[..., -1:]
            padded[..., :pad, :] = padded[..., pad : pad + 1, :]
            padded[..., -pad:, :] = padded[..., -pad - 1 : -pad, :]
        return padded
