"""Memory settings hold for the process of a command, and leave that of a user alone."""

import gc
import subprocess
import sys

from dtp.system.memory import importing_torch

CODE = """
import gc, sys
from dtp.system.memory import importing_torch
with importing_torch():
    assert not gc.isenabled()
    import torch
print(gc.isenabled(), gc.get_freeze_count() > 100_000, "torch" in sys.modules)
"""


def test_garbage_is_looked_for_again_once_torch_is_imported_but_not_in_torch():
    process = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert process.stdout == "True True True\n", process.stderr


def test_a_process_that_has_torch_keeps_its_own_way():
    import torch  # noqa: F401

    frozen = gc.get_freeze_count()
    with importing_torch():
        assert gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() == frozen


def test_an_import_that_fails_leaves_the_garbage_collected():
    code = (
        "import gc\nfrom dtp.system.memory import importing_torch\n"
        "try:\n  with importing_torch():\n    raise ImportError\nexcept ImportError: print(gc.isenabled())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
