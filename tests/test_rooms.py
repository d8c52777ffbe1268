"""Who may import whom: what a room needs to be imported, and what it does not."""

import subprocess
import sys

import pytest

# In a child for each module, of a Python that has torch and others already where they need them.
IMPORT_EACH = """
import os
import sys

if sys.argv[1] == "with-torch":
    import sklearn.datasets
    import torch
    import torchmetrics
    import torchvision
for module in sys.argv[2:]:
    if os.fork() == 0:
        __import__(module)
        print(*{".".join(name.split(".")[:2]) for name in sys.modules}, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, module
"""


def loaded_by(torch: str, modules: list[str]) -> list[set[str]]:
    """The rooms of dtp, each as ``dtp.room``, and the libraries that are loaded once each module is imported alone."""
    words = [sys.executable, "-c", IMPORT_EACH, torch, *modules]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


NEEDLESS = {
    "with-torch": [
        (
            "dtp.data.small",
            {"dtp.algorithms", "dtp.distributed", "dtp.feedback", "dtp.cli", "dtp.run", "dtp.experiments"},
        ),
        ("dtp.feedback", {"dtp.algorithms", "dtp.data", "dtp.cli", "dtp.run", "dtp.experiments", "lightning"}),
        ("dtp.models.vgg", {"dtp.algorithms", "dtp.data", "dtp.cli", "dtp.run", "dtp.experiments", "lightning"}),
        ("dtp.tasks", {"dtp.models", "dtp.algorithms", "dtp.feedback", "dtp.data", "dtp.cli", "dtp.run", "lightning"}),
    ],
    "without-torch": [
        ("dtp.cli.arguments", {"torch", "lightning", "dtp.experiments"}),
        ("dtp.experiments.jobs", {"torch", "lightning"}),
    ],
}


@pytest.mark.parametrize("torch", NEEDLESS)
def test_a_room_loads_none_that_it_has_no_need_of(torch):
    modules, needless = zip(*NEEDLESS[torch], strict=True)
    for module, loaded, unneeded in zip(modules, loaded_by(torch, modules), needless, strict=True):
        assert module.rpartition(".")[0] in loaded | {"dtp"} and not loaded & unneeded, module
