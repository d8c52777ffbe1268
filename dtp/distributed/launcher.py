"""What torchrun, srun or Lightning told this process by its environment. Imports no torch.

The questions are asked at different times and look at different variables. Who started this process, and what is
asked after torch is imported, is told by SLURM's only where Lightning believes them; the rest takes them as they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from dtp.errors import UserError

# Of torchrun, srun and Lightning, in the order in which they are believed.
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
# What tells a process which of how many it is.
_OF_THE_PROCESS = (*_RANKS, "WORLD_SIZE", "SLURM_LOCALID", "SLURM_NTASKS")


class Place(NamedTuple):
    """Where this process stands among those of its run, and where they meet.

    Attributes:
        rank, ranks: this one, and how many there are.
        address, port: of the store.
        serves: whether the store is in this process.
        attempt: tells apart the starts that share a store of torchrun.
        parent: the process of rank 0 where that started this one, else None.
    """

    rank: int
    ranks: int
    address: str
    port: int
    serves: bool
    attempt: str = "0"
    parent: int | None = None


def require_sense() -> None:
    """Raise UserError for variables that no launcher sets so; libraries read them as they are imported."""
    for name in _OF_THE_PROCESS:
        text = os.environ.get(name, "0")
        if not (text.isascii() and text.isdigit()):
            raise UserError(
                f"{name}: expected a whole number, as torchrun and srun set it, found {text!r}; start several "
                "processes with one of them, or unset the variable."
            )
    name = next((name for name in _RANKS if name in os.environ), "")
    ranks = max(1, _number("WORLD_SIZE"), _number("SLURM_NTASKS"))
    if name and _number(name) >= ranks:
        raise UserError(
            f"{name}: expected a rank below the number of processes, {ranks} by WORLD_SIZE and SLURM_NTASKS, found "
            f"{_number(name)}; start several processes with torchrun or srun, which set these, or unset {name}."
        )


def has_rank() -> bool:
    """Whether anybody told this process a rank: a launcher, or Lightning, which starts processes of its own."""
    return not os.environ.keys().isdisjoint(_RANKS)


def process_rank() -> int:
    """Rank of this process as torchrun, srun or Lightning tells it; 0 for a single process."""
    if started_by_lightning():
        # In a shell of SLURM the rank of that is here, too.
        return _number("LOCAL_RANK")
    told = (os.environ.get(name, "") for name in _RANKS)
    return next((int(text) for text in told if text.isdigit()), 0)


def has_launcher() -> bool:
    """Whether torchrun or srun started this process, and so has to start it again."""
    return "RANK" in os.environ or _is_task()


def started_by_lightning() -> bool:
    """Whether this is a further process of a plain ``dtp train --devices N``."""
    return _number("LOCAL_RANK") > 0 and not has_launcher()


def _is_task() -> bool:
    """Whether Lightning, as its SLURMEnvironment says, takes this for a task of srun, and starts no processes itself.

    Not in a shell, nor in a script of sbatch that names no number of tasks.
    """
    in_shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return os.environ.keys() >= {"SLURM_PROCID", "SLURM_NTASKS"} and not in_shell


def uses_slurm() -> bool:
    """Whether Lightning takes this for a task of srun; not in a shell that ``srun --pty bash`` opened.

    Nor under torchrun, within a SLURM job or not. Imports torch. Warns where srun is there and was not used, as
    Lightning does.
    """
    if _by_torchrun():
        return False
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return SLURMEnvironment.detect()


def _tasks_are_per_node() -> bool:
    return "SLURM_NTASKS_PER_NODE" in os.environ


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def began_together() -> bool:
    """Whether several processes were started at once, as WORLD_SIZE says or, where that is not there, SLURM_NTASKS."""
    # A shell of salloc knows how many tasks it may start, and is none of them. The job's name says nothing here: tasks
    # of "srun -n 4 bash train.sh", or of srun in that shell, have that of a shell.
    of_slurm = os.environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in os.environ else "1"
    return int(os.environ.get("WORLD_SIZE", of_slurm)) > 1


def processes() -> int | None:
    """How many processes srun, torchrun or Lightning started; None for a plain command. Imports torch.

    Raises:
        UserError: SLURM does not say which this one is, or how many are on each machine, for which Lightning asks; or
            the job has a name by which Lightning takes tasks for shells.
    """
    slurm = uses_slurm()
    count = os.environ.get("SLURM_NTASKS" if slurm else "WORLD_SIZE", "")
    if slurm and _number("SLURM_NTASKS") > 1 and "SLURM_PROCID" not in os.environ:
        raise UserError(
            f"SLURM_PROCID: expected the rank that srun sets, found none beside SLURM_NTASKS={count}, as in a shell of "
            "salloc; put srun before the command, or unset SLURM_NTASKS to train without it."
        )
    if not has_launcher() and _number("SLURM_PROCID") > 0:
        raise UserError(
            f"SLURM_JOB_NAME: expected a name that Lightning does not take for that of a shell, found "
            f"{os.environ.get('SLURM_JOB_NAME')} for task {_number('SLURM_PROCID')} of srun; put SLURM_JOB_NAME=train "
            "before srun."
        )
    if slurm and _number("SLURM_NTASKS") > 1 and not _tasks_are_per_node():
        raise UserError(
            f"SLURM_NTASKS_PER_NODE: expected the tasks on each machine, found none beside --ntasks={count}; give "
            "sbatch or srun --nodes and --ntasks-per-node in its place."
        )
    return int(count) if count.isdigit() else None


def layout(started: int) -> tuple[int, int] | None:
    """How many of the ``started`` processes are on each machine, and on how many; None where nothing says so.

    Imports torch.
    """
    slurm = uses_slurm()
    # Without a step it is a script of sbatch that forgot srun: nobody has started the other tasks.
    number = _number("SLURM_STEP_NUM_NODES" if slurm else "LOCAL_WORLD_SIZE")
    if not number:
        return None
    return (started // number, number) if slurm else (number, started // number)


def place_of_process() -> Place | None:
    """Where this process stands; None if it is alone. Imports torch only if srun started several."""
    if _number("SLURM_NTASKS") > 1 and "SLURM_PROCID" in os.environ and _tasks_are_per_node() and uses_slurm():
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment(auto_requeue=False)
        rank = _number("SLURM_PROCID")
        return Place(rank, slurm.world_size(), slurm.main_address, slurm.main_port, serves=rank == 0)
    if _number("WORLD_SIZE") < 2 or not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return None
    rank = _number("RANK" if "RANK" in os.environ else "LOCAL_RANK")
    return Place(
        rank,
        _number("WORLD_SIZE"),
        os.environ["MASTER_ADDR"],
        _number("MASTER_PORT"),
        serves=rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        attempt=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
        parent=os.getppid() if started_by_lightning() else None,
    )


def without_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a run on its own that this process starts: what a launcher told it is not for that."""
    return {name: value for name, value in environ.items() if name not in _OF_THE_PROCESS}


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else 0
