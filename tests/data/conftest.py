"""Tiny datasets in the file formats of the real ones, as fixtures."""

from pathlib import Path

import numpy as np
import pytest

from tests.data import files


@pytest.fixture
def write_idx():
    return files.write_idx


@pytest.fixture
def write_cifar10(monkeypatch):
    """Its files are accepted, whatever their checksums."""

    def write(root: Path) -> np.ndarray:
        files.accept_any_checksum(monkeypatch)
        return files.write_cifar10(root)

    return write


@pytest.fixture
def write_imagenet32():
    return files.write_imagenet32


@pytest.fixture
def write_folder():
    return files.write_folder
