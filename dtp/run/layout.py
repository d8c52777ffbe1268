"""What a run folder looks like: the names of what is in it, and how to recognise one.

Imports nothing of the package, for the registry asks it before it imports a user's class.
"""

from __future__ import annotations

from pathlib import Path

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
METRICS_FILE = "metrics.csv"
# The network alone, as it was tested.
WEIGHTS_FILE = "weights.safetensors"
# Why a run failed by its own fault, in one sentence.
FAILURE_FILE = "failed.txt"
LOCK_FILE = ".lock"
WANDB_ID_FILE = "wandb-id.txt"
# What slurm/common.sh writes beside the run.
CLUSTER_LOG = "slurm-*.out"
CHECKPOINTS = "checkpoints"


def is_run_folder(folder: Path) -> bool:
    """Whether ``folder`` is one that a run writes to: it has the configuration of one, and something beside it."""
    try:
        lines = (folder / CONFIG_FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    is_configuration = all(any(line.startswith(f"{name}:") for line in lines) for name in ("algo", "model", "data"))
    # A file of options may be called so, too, and lie beside the user's own classes.
    beside = (CHECKPOINTS, METRICS_FILE, SUMMARY_FILE, LOCK_FILE, FAILURE_FILE)
    return is_configuration and any((folder / name).exists() for name in beside)


def lies_in_run_folder(folder: Path) -> bool:
    """Whether ``folder`` is a run folder, or lies in one."""
    return any(map(is_run_folder, (folder, *folder.parents)))
