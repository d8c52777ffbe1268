import importlib

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(isolation):
    """Tensors here are tiny: threads would only wait for each other. ``isolation`` restores their number."""
    torch.set_num_threads(1)


@pytest.fixture
def registry(monkeypatch):
    """The table of operations, as it was again after the test."""
    module = importlib.import_module("dtp.feedback.operations")
    monkeypatch.setattr(module, "_OPERATIONS", dict(module._OPERATIONS))
