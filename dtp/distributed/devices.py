"""Which devices a run uses, and whether they and the processes exist."""

from __future__ import annotations

import torch

from dtp import compat
from dtp.cli.config import RunOptions
from dtp.distributed import launcher, watch
from dtp.distributed.strategy import FeedbackDDPStrategy
from dtp.errors import UserError
from dtp.system.memory import available_cores


def choose_devices(run: RunOptions) -> tuple[str, int, int]:
    """Kind (``"gpu"`` or ``"cpu"``), number of devices of each machine, and number of machines.

    Where the options leave both numbers at 1 they are those of the processes that torchrun or srun has started.

    Raises:
        UserError: more than there are, or another number than a launcher has started processes for.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wants_gpu = run.accelerator in ("gpu", "cuda") or (run.accelerator == "auto" and gpus > 0)
    if wants_gpu and not gpus:
        raise UserError(f"--accelerator {run.accelerator}: this machine has no usable GPU; use --accelerator cpu.")
    count = (gpus if wants_gpu else 1) if run.devices == "auto" else int(run.devices)
    started, nodes = launcher.processes(), run.num_nodes
    if started is None:
        _require_machine(run, count, gpus if wants_gpu else None)
    elif run.devices == "1" and nodes == 1:
        count, nodes = launcher.layout(started) or (count, nodes)
    if started not in (None, count * nodes):
        if launcher.uses_slurm() and not launcher.has_launcher():
            raise UserError(
                f"SLURM_NTASKS: expected {count * nodes}, for --num-nodes {nodes} --devices {count}, found {started} "
                "and no task of srun, as in a shell of salloc; unset SLURM_NTASKS to train without srun."
            )
        raise UserError(
            f"The launcher started {started} processes, but --num-nodes {nodes} --devices {count} means "
            f"{count * nodes}; give --num-nodes the machines and --devices the processes on each."
        )
    return ("gpu" if wants_gpu else "cpu"), count, nodes


def choose_strategy(run: RunOptions, processes: int) -> FeedbackDDPStrategy | str:
    """The strategy for so many processes, over all machines."""
    several = processes > 1 or run.strategy == FeedbackDDPStrategy.strategy_name
    return FeedbackDDPStrategy(run.feedback_parallel, run.feedback_sync) if several else "auto"


def watch_started_processes() -> None:
    """Have our watch look after the processes that Lightning starts for a plain command.

    Lightning's own observer kills this one without a word when one of them ends with another status than 0.
    """
    compat.watch_started_processes(watch.begin)


def leave_together() -> None:
    """End the process group. Ranks that leave early tear down connections that others use, which ends in SIGABRT."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        watch.leave()
        torch.distributed.destroy_process_group()


def _require_machine(run: RunOptions, count: int, gpus: int | None) -> None:
    # Only for a plain command: a process that a launcher started sees its own share of the machine.
    available, kind = (available_cores(), "CPU cores") if gpus is None else (gpus, "GPUs")
    if count > available:
        raise UserError(f"--devices {run.devices}: this machine has {available} {kind}; ask for at most as many.")
    if run.num_nodes > 1:
        raise UserError(
            f"--num-nodes {run.num_nodes}: a plain command starts processes on its own machine only; start it with "
            "srun or torchrun on every one."
        )
