"""Images as datasets hold them: bytes, in memory or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Images(Protocol):
    """Many images of one size: a uint8 numpy array (N, C, H, W) or what can be indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W), N the number of images."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray, /) -> Any: ...


class MappedImages:
    """Images in a ``.npy`` file, read where needed; pickles as its path, so that worker processes share one copy."""

    def __init__(self, path: Path):
        self.path = path
        self._array = np.load(path, mmap_mode="r")
        self.shape = self._array.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(self._array)[indices]

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedImages, (self.path,)
