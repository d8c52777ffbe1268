"""Small images kept as bytes in the memory of the training device, where batches are made from them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dtp.data.augmentation import Augmentation
from dtp.data.batches import ImageBatches
from dtp.data.sampler import Batch
from dtp.errors import UserError

# Of the free memory: the rest is for the network, and for the feedback phase.
SHARE = 0.25
# Bytes that are read and sent at once.
PART = 64 << 20


class DeviceBatches(Dataset):
    """The same batches as an :class:`~dtp.data.batches.ImageBatches` makes, made on a device.

    Per batch the host draws a few integers per image and sends them; gathering, augmentation and normalisation are a
    few operations on the device, and nothing waits for it. Several ranks each hold all images.
    """

    def __init__(self, batches: ImageBatches, device: torch.device):
        self.indices, self.augmentation, self.device = batches.indices, batches.augmentation, device
        self._images = torch.empty((len(batches), *batches.images.shape[1:]), dtype=torch.uint8, device=device)
        # By parts, so that the host never holds all of them once more.
        rows = max(1, PART // int(np.prod(batches.images.shape[1:])))
        for begin in range(0, len(batches), rows):
            chosen = batches.images[batches.indices[begin : begin + rows]]
            self._images[begin : begin + rows] = torch.from_numpy(np.ascontiguousarray(chosen))
        self._labels = torch.from_numpy(batches.labels[batches.indices]).to(device)
        self._scale, self._shift = batches.scale.to(device), batches.shift.to(device)
        self._projection = None if batches.projection is None else batches.projection.to(device)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images, float32 (B, C, H, W) or projected (B, N, 1, 1), and labels, int64 (B,), on the device."""
        epoch, positions = batch
        if self.augmentation is None:
            (rows,) = self._sent(positions)
            pixels = self._images[rows]
        else:
            drawn = self._sent(positions, *self.augmentation.draw(epoch, self.indices[positions]))
            rows, top, left, mirrored, upside_down = drawn
            pixels = _windows(self._images, rows, top, left, mirrored, upside_down, self.augmentation)
        x = pixels.float().mul_(self._scale).add_(self._shift)
        return x if self._projection is None else self._projection(x), self._labels[rows]

    def _sent(self, *numbers: np.ndarray) -> Tensor:
        """Integers (B,) of each kind as one tensor on the device, (kinds, B), by one transfer."""
        sent = torch.from_numpy(np.stack(numbers))
        if self.device.type == "cuda":
            sent = sent.pin_memory()
        return sent.to(self.device, non_blocking=True)


def _windows(
    images: Tensor,
    rows: Tensor,
    top: Tensor,
    left: Tensor,
    mirrored: Tensor,
    upside_down: Tensor,
    augmentation: Augmentation,
) -> Tensor:
    """Crops of the padded images ``rows``, some mirrored: uint8 (B, C, H, W). All arguments but the first are (B,)."""
    pad, (height, width) = augmentation.crop_padding, images.shape[2:]
    y = torch.arange(height, device=images.device).expand(len(rows), height)
    y = torch.where(upside_down[:, None] == 1, height - 1 - y, y) + (top - pad)[:, None]
    x = torch.arange(width, device=images.device).expand(len(rows), width)
    x = torch.where(mirrored[:, None] == 1, width - 1 - x, x) + (left - pad)[:, None]
    inside_y, inside_x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    # (B, H, W, C): the indexed dimensions come first.
    found = images[rows[:, None, None], :, inside_y[:, :, None], inside_x[:, None, :]].permute(0, 3, 1, 2).contiguous()
    if augmentation.padding_mode == "zeros":
        found *= ((y == inside_y)[:, None, :, None] & (x == inside_x)[:, None, None, :]).to(found.dtype)
    return found


def wanted_on_device(option: str, parts: list[ImageBatches], device: torch.device) -> bool:
    """Whether ``--data-on-device`` ``option`` puts these parts of a dataset on ``device``.

    Raises:
        UserError: ``yes``, and they do not fit.
    """
    if option == "no" or (option == "auto" and device.type != "cuda"):
        return False
    if device.type != "cuda":
        return True
    needed = sum(len(part) * int(np.prod(part.images.shape[1:])) for part in parts)
    free, _ = torch.cuda.mem_get_info(device)
    if option == "yes" and needed > free:
        raise UserError(
            f"--data-on-device yes: expected {needed / 2**30:.1f} GiB of free memory on {device} for the images, found "
            f"{free / 2**30:.1f} GiB; use --data-on-device no."
        )
    return option == "yes" or needed <= SHARE * free
