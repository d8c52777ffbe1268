"""Many runs, each in its own process: several at once, none twice, and none lost. Imports no torch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from dtp.cli.arguments import parse
from dtp.cli.config import Config, as_arguments
from dtp.distributed.launcher import without_launcher
from dtp.errors import UserError
from dtp.run.folder import Run, recorded_options, require_same_configuration, require_same_test, write_failure
from dtp.run.layout import CONFIG_FILE, FAILURE_FILE
from dtp.run.reading import has_finished
from dtp.system.locks import try_lock
from dtp.system.memory import available_cores
from dtp.system.signals import Interrupted, Stopped, stop_request

PERIOD = 0.1
# Processes that a person can mean to start.
MOST_AT_ONCE = 1000
# After a signal, a run writes a checkpoint at the end of its batch; longer than this it may not take. Less than the 90
# seconds that the scripts for SLURM have.
PATIENCE = 60.0

# finished: it has its summary. failed: it diverged, which would only happen again, or it never began, for a mistake in
# its options or data. broken: in another way, so that it may go on the next time. elsewhere: another process is at it.
# waiting: not begun.
State = Literal["finished", "failed", "broken", "elsewhere", "waiting"]


@dataclass(frozen=True)
class Job:
    """A run that is to be: ``options`` of dtp train by name, and the run folder that it gets.

    What it prints goes to ``FOLDER.log``, beside the folder.
    """

    folder: Path
    options: dict[str, Any]

    @property
    def words(self) -> list[str]:
        """The options as words of the command line, without the folder."""
        return as_arguments(self.options)

    @property
    def log(self) -> Path:
        """The file that the run's output is added to, ``FOLDER.log``."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def failure(self) -> str:
        """Why the run diverged, or could not begin; empty if it did not fail so."""
        path = self.folder / FAILURE_FILE
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""

    @property
    def has_begun(self) -> bool:
        """Whether it has been trained at all; if not, the cause of its failure, such as missing data, may be gone."""
        return (self.folder / CONFIG_FILE).is_file()

    def config(self) -> Config:
        """The configuration that its options mean.

        Raises:
            UserError: they mean none; or the folder holds a run of another configuration.
        """
        config = parse(self.words)
        if self.has_begun:
            values = recorded_options(self.folder)
            begin = "give another folder for all runs (--output; --study of a search)"
            require_same_configuration(self.folder, values, config, "change that back", begin)
            require_same_test(self.folder, config, "give another folder for all runs")
        return config

    def is_finished(self, config: Config) -> bool:
        """Whether its run has been trained for as long as ``config`` says, and tested."""
        return has_finished(Run(self.folder).summary, config.run.max_epochs, config.run.max_steps)


def run_jobs(
    jobs: Iterable[Job],
    parallel: int = 0,
    again: bool = False,
    tell: Callable[[str], None] = lambda text: print(text, flush=True),
    ended: Callable[[Job, State], None] = lambda job, state: None,
) -> dict[Path, State]:
    """Run what has not finished, ``parallel`` processes at a time, and say what has become of each, by folder.

    A run that was interrupted goes on where it was. Several calls, on one machine or on machines that share the
    folders, divide the runs among them. Where there are GPUs each process gets one of them; elsewhere they share the
    cores. SIGTERM, SIGUSR1 and Ctrl-C stop the runs at the end of their batch, with a checkpoint. Where the first two
    cannot begin for the same reason, such as missing data, no others are started.

    Args:
        jobs: a sequence, all of which is checked before anything begins; or an iterator, which is asked for the next
            job only when a process is free, and so may choose it by the results so far.
        parallel: processes at a time; 0 for one per GPU, or one per core where there is no GPU.
        again: whether to repeat runs that failed in training by their own fault.
        tell: takes a line for each run that begins or ends.
        ended: is called with each job and its state as soon as that is known.

    Raises:
        UserError: options that mean no configuration, or a folder with a run of another one; before it begins.
        Stopped: a signal came; the runs are stopped.
    """
    pool = _Pool(jobs, parallel, again, tell, ended)
    with stop_request.handled():
        # Signals set a flag.
        stop_request.training = True
        try:
            while pool.is_busy and stop_request.signum is None:
                pool.begin()
                pool.collect()
                time.sleep(PERIOD if pool.running else 0)
            if stop_request.signum is not None:
                raise pool.stopped()
        except Interrupted:
            # The second Ctrl-C: no checkpoints.
            raise
        except BaseException:
            _stop(pool.running.values())
            raise
        finally:
            for process in pool.running.values():
                process.kill()
            stop_request.training = False
    return pool.states_by_now()


class _Pool:
    """Jobs that wait, the processes of those that run, and what has become of the others; as :func:`run_jobs`."""

    def __init__(
        self,
        jobs: Iterable[Job],
        parallel: int,
        again: bool,
        tell: Callable[[str], None],
        ended: Callable[[Job, State], None],
    ):
        self.listed = list(jobs) if isinstance(jobs, Sequence) else []
        self.configs = {job.folder: job.config() for job in self.listed}
        for job in self.listed:
            # A damaged summary, say, is better found now.
            job.is_finished(self.configs[job.folder])
        gpus = visible_gpus()
        parallel = parallel or len(gpus) or available_cores()
        self.threads = max(1, available_cores() // parallel)
        # The GPU of each process that may be started; none has a name where there are no GPUs.
        self.free = [gpus[i % len(gpus)] if gpus else "" for i in range(parallel)]
        self.states: dict[Path, State] = dict.fromkeys(self.configs, "waiting")
        self.running: dict[Path, _Process] = {}
        self.waiting, self.more = iter(jobs), True
        # Why runs could not begin, as long as none could.
        self.excuses: list[str] | None = []
        self.again, self.tell, self.ended = again, tell, ended

    @property
    def is_busy(self) -> bool:
        return self.more or bool(self.running)

    def begin(self) -> None:
        """Start jobs for as long as there are some, and processes for them."""
        while self.more and self.free and stop_request.signum is None:
            job = next(self.waiting, None)
            if job is None:
                self.more = False
                return
            config = self.configs[job.folder] if job.folder in self.configs else job.config()
            claim = try_claim(job)
            if claim is None:
                self._end(job, "elsewhere")
                continue
            if state := self._state_before(job, config):
                with claim:
                    self._end(job, state)
                continue
            self.states[job.folder] = "waiting"
            self.running[job.folder] = _Process(job, claim, self.free.pop(), self.threads)
            self.tell(f"{_place(job, self.listed)} begins")

    def _state_before(self, job: Job, config: Config) -> State | None:
        """What has become of a job already; None if it is to be run."""
        if job.is_finished(config):
            return "finished"
        return "failed" if job.failure and job.has_begun and not self.again else None

    def collect(self) -> None:
        """Take note of the processes that have ended, and begin no more where all would fail alike."""
        for folder, process in list(self.running.items()):
            if process.has_ended():
                del self.running[folder]
                self.free.append(process.gpu)
                self._tell_of(process)
                if self.excuses is not None:
                    self.excuses = None if process.job.has_begun else [*self.excuses, process.job.failure]
        excuses = self.excuses or []
        # Silence is no reason that the others share.
        if self.more and len(excuses) > 1 and len(set(excuses)) == 1 and all(excuses):
            self.more = False
            self.tell("The others would fail alike, and are not begun.")

    def states_by_now(self) -> dict[Path, State]:
        """What has become of each job, and of those that others were at when we looked."""
        for job in self.listed:
            if self.states[job.folder] == "elsewhere" and job.is_finished(self.configs[job.folder]):
                self.states[job.folder] = "finished"
        return self.states

    def stopped(self) -> Stopped:
        """Stop all processes, which write checkpoints; returns the exception to raise."""
        for process in _stop(self.running.values()):
            self._tell_of(process)
        done = sum(state == "finished" for state in self.states_by_now().values())
        return Stopped(
            f"Stopped by {stop_request.name}; {done} of {len(self.states)} runs have finished. The same command goes "
            "on."
        )

    def _tell_of(self, process: _Process) -> None:
        # Nobody else may begin it before all know how it ended.
        with process.claim:
            state, text = process.outcome()
            self.tell(f"{_place(process.job, self.listed)} {text}")
            self._end(process.job, state)

    def _end(self, job: Job, state: State) -> None:
        self.states[job.folder] = state
        self.ended(job, state)


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES would call each GPU that this process may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    asked = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
    return asked.stdout.split() if asked.returncode == 0 else []


def last_line(log: Path, begin: int = 0) -> str:
    """The last line that a run printed from byte ``begin`` on, or its last error: its result, or why it ended."""
    try:
        text = log.read_bytes()[begin:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


class _Process:
    """A run in a process of its own, which nobody else starts while ``claim`` is open."""

    def __init__(self, job: Job, claim: IO[str], gpu: str, threads: int):
        self.job, self.claim, self.gpu = job, claim, gpu
        write_failure(job.folder, "")
        environment = {"OMP_NUM_THREADS": str(threads), **without_launcher(os.environ)}
        # python -m looks into the current folder first, where another dtp may lie: a checkout, a file of the user's.
        environment["PYTHONSAFEPATH"] = "1"
        if gpu:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
        )
        command = [sys.executable, "-m", "dtp", *job.words, "--run-dir", str(job.folder), "--resume", "auto"]
        self._log_before = job.log.stat().st_size if job.log.exists() else 0
        with job.log.open("ab") as log:
            # In a session of its own, so that a Ctrl-C reaches it through us, once.
            # It holds the claim too: should we be killed, it goes on, and nobody else may start it.
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
                pass_fds=[claim.fileno()],
            )

    @property
    def status(self) -> int | None:
        return self._process.returncode

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def outcome(self) -> tuple[State, str]:
        """What has become of it, and in words."""
        status, said = self.status, last_line(self.job.log, self._log_before)
        state: State = "broken"
        # A full disk takes no reason either.
        text = f"ended with status {status}: {said or 'it said nothing'} ({self.job.log})"
        if status == 0:
            result = (Run(self.job.folder).summary or {}).get("result")
            state, text = "finished", f"has finished: {result}" if result else "has finished"
        elif status == 2 and (self.job.failure or (said and not self.job.has_begun)):
            # A run that diverges has noted so itself. With other mistakes, a full disk say, it may go on another time.
            state, text = "failed", f"failed: {said.removeprefix('error: ') or self.job.failure}"
            if not self.job.failure:
                self.job.folder.mkdir(parents=True, exist_ok=True)
                write_failure(self.job.folder, said.removeprefix("error: "))
        return state, text

    def ask_to_stop(self) -> None:
        if not self.has_ended():
            self._process.send_signal(signal.SIGTERM)

    def wait(self, until: float) -> None:
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        if not self.has_ended():
            self._process.kill()
            self._process.wait()
        self.claim.close()


def _stop(processes: Iterable[_Process]) -> list[_Process]:
    """Have them write their checkpoints and end; returns those that had already ended by themselves."""
    until = time.monotonic() + PATIENCE
    processes = list(processes)
    for process in processes:
        process.ask_to_stop()
    for process in processes:
        process.wait(until)
    return [process for process in processes if process.status in (0, 1, 2)]


def try_claim(job: Job) -> IO[str] | None:
    """Keep other processes from starting ``job`` until the returned file is closed; None if one has."""
    try:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        return try_lock(job.folder.with_name(f".{job.folder.name}.claim"))
    except OSError as error:
        raise UserError(
            f"{job.folder.parent}: cannot be written ({error.strerror}); give a folder that can."
        ) from error


def _place(job: Job, jobs: Sequence[Job]) -> str:
    """How the lines call a run: its place in the list, and its folder below what all have in common."""
    place = "/".join(job.folder.parts[-2:])
    return f"[{[other.folder for other in jobs].index(job.folder) + 1}/{len(jobs)}] {place}" if jobs else place
