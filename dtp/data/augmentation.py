"""Augmentation of uint8 batches: mirror and random crop, vectorised, random by hash of (seed, epoch, image)."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dtp.data.hashing import AUGMENTATION, counter_hash


@dataclass(frozen=True)
class Augmentation:
    """Mirror each image left-right with probability one half, then crop it at random out of its padded self.

    Attributes:
        flip: whether to mirror.
        crop_padding: pixels added on each side before the crop; 0 for no crop.
        padding_mode: ``"edge"`` repeats the border pixels, ``"zeros"`` pads with black (0 before normalisation).
        seed: of the run.
    """

    flip: bool
    crop_padding: int
    padding_mode: str
    seed: int

    def __call__(self, images: np.ndarray, epoch: int, indices: np.ndarray) -> np.ndarray:
        """New images made from ``images``, uint8 (B, C, H, W), which are the images ``indices`` (B,) of the dataset."""
        bits = counter_hash(self.seed, AUGMENTATION, epoch, indices)
        images = self._crop(images, bits) if self.crop_padding else images.copy()
        if self.flip:
            mirrored = np.nonzero(bits & np.uint64(1))[0]
            images[mirrored] = images[mirrored][..., ::-1]
        return images

    def _crop(self, images: np.ndarray, bits: np.ndarray) -> np.ndarray:
        # The two offsets come from disjoint 24-bit parts of the hash; the bias of the remainder is below 1e-5.
        offsets, part = np.uint64(2 * self.crop_padding + 1), np.uint64(0xFFFFFF)
        top = ((bits >> np.uint64(8)) & part) % offsets
        left = ((bits >> np.uint64(36)) & part) % offsets
        windows = sliding_window_view(self._pad(images), images.shape[2:], axis=(2, 3))
        return windows[np.arange(len(images)), :, top.astype(np.intp), left.astype(np.intp)]

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
