"""From uint8 images to normalised float batches, in one way for every dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dtp.data.augmentation import Augmentation
from dtp.data.images import Images
from dtp.data.pca import Projection
from dtp.data.sampler import Batch, OrderedBatches, TrainingBatches
from dtp.data.statistics import Statistics


class ImageBatches(Dataset):
    """The images ``indices`` of ``images``, fetched a batch at a time: augmented, normalised, then projected."""

    def __init__(
        self,
        images: Images,
        labels: np.ndarray,
        indices: np.ndarray,
        statistics: Statistics,
        augmentation: Augmentation | None = None,
        projection: Projection | None = None,
    ):
        self.images, self.labels, self.indices, self.augmentation = images, labels, indices, augmentation
        self.projection = projection
        mean = torch.tensor(statistics.mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(statistics.std, dtype=torch.float64).view(-1, 1, 1)
        # (pixel / 255 - mean) / std as one product and one sum.
        self.scale, self.shift = (1 / (255 * std)).float(), (-mean / std).float()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Images, float32 (B, C, H, W), and labels, int64 (B,). ``batch`` is (pass, positions in this dataset).

        Where there is a projection, coordinates (B, N, 1, 1) in place of images.
        """
        epoch, positions = batch
        indices = self.indices[positions]
        pixels = self.images[indices]
        if self.augmentation is not None:
            pixels = self.augmentation(pixels, epoch, indices)
        x = torch.from_numpy(np.ascontiguousarray(pixels)).float().mul_(self.scale).add_(self.shift)
        if self.projection is not None:
            x = self.projection(x)
        return x, torch.from_numpy(self.labels[indices])


def _as_fetched(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return batch


class BatchLoader(DataLoader):
    """DataLoader over whole batches that leaves every global random generator alone.

    Its place in the stream of batches follows from how many the run has trained on (see ``sampler.py``), so it has
    nothing to save; the two state methods tell Lightning that a resume in the middle of an epoch is exact.

    Args:
        dataset: makes the batches, on the host or on the device.
        batches: which images each has.
        num_workers: processes that make batches on the host.
    """

    def __init__(
        self, dataset: Dataset, batches: TrainingBatches | OrderedBatches, num_workers: int, device: torch.device
    ):
        on_host = isinstance(dataset, ImageBatches)
        # Batches that are made on the device leave workers and pinned memory nothing to do.
        num_workers = num_workers if on_host else 0
        # Batches are no lists of samples, as torch's types have it.
        sampler: Any = batches
        super().__init__(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=_as_fetched,
            # Pinning starts CUDA: where a GPU is there but not used, that would be for nothing.
            pin_memory=on_host and device.type == "cuda",
            persistent_workers=num_workers > 0,
            # Making an iterator draws a seed for the workers; without this it would come from torch's own generator.
            generator=torch.Generator().manual_seed(0),
        )

    def check_worker_number_rationality(self) -> None:
        """Say nothing: torch's own warns of more than one for each core, and ours, of the options, is a limit."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing; see the class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing, whatever ``state`` holds; see the class."""


class Plain:
    """Batches of a loader for Lightning's ``predict``, which would make the loader anew, and warn."""

    def __init__(self, loader: BatchLoader):
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)
