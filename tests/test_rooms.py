"""Who may import whom: what a room needs to be imported, and what it does not."""

import subprocess
import sys

import pytest


def loaded_by(module: str) -> set[str]:
    """The rooms of dtp that are loaded, each as ``dtp.room``, once ``module`` is imported alone."""
    code = f"import sys, {module}; print(*sorted({{'.'.join(m.split('.')[:2]) for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module, unneeded",
    [
        ("dtp.data.small", {"dtp.algorithms", "dtp.feedback", "dtp.cli", "dtp.run", "dtp.experiments"}),
        ("dtp.feedback", {"dtp.algorithms", "dtp.data", "dtp.cli", "dtp.run", "dtp.experiments", "lightning"}),
        ("dtp.models.vgg", {"dtp.algorithms", "dtp.data", "dtp.cli", "dtp.run", "dtp.experiments", "lightning"}),
        ("dtp.tasks", {"dtp.models", "dtp.algorithms", "dtp.feedback", "dtp.data", "dtp.cli", "dtp.run", "lightning"}),
        ("dtp.cli.arguments", {"torch", "lightning", "dtp.experiments"}),
        ("dtp.experiments.jobs", {"torch", "lightning"}),
    ],
)
def test_a_room_loads_none_that_it_has_no_need_of(module, unneeded):
    assert not loaded_by(module) & unneeded
