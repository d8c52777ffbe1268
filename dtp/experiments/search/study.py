"""A search that several processes share: which trials there are, their state, and which one is next.

Optuna keeps the trials in a store, a file or a database, and proposes values. A trial is a run folder beside
``study.json``, which says the same in plain words for those who read, plot or continue the study. A trial that no
process runs any more, and whose result is not in the store, was interrupted. The next process continues it.
"""

from __future__ import annotations

import json
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dtp.cli.config import as_arguments, written_alike
from dtp.errors import UserError, user_path
from dtp.experiments.jobs import FAILURE_FILE, Job, State, last_line, try_claim
from dtp.experiments.search.space import Space
from dtp.fields import flag
from dtp.run.folder import IMAGES, Run, as_before, called
from dtp.run.layout import METRICS_FILE
from dtp.run.provenance import masked, recorded, words_of
from dtp.run.reading import read_metrics
from dtp.system.files import keep_whole_lines, write_atomically
from dtp.system.locks import locked

if TYPE_CHECKING:
    import optuna

STUDY_FILE = "study.json"
JOURNAL = "journal.log"
SAMPLERS = ("random", "sequential")
# What may be searched for: the best value over the epochs of a trial.
OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "val/accuracy": "maximize",
    "val/purity": "maximize",
    "val/loss": "minimize",
    "val/mse": "minimize",
}
DIVERGED = "Training diverged"
_TRIAL = "trial-"

TrialState = Literal["finished", "diverged", "failed", "running"]


@dataclass(frozen=True)
class Trial:
    """One configuration and what has become of it.

    Attributes:
        state: ``failed`` where its values cannot be trained with at all, for want of memory, say.
        value: the objective; None unless finished.
        options: values of the parameters, by option.
        why: a sentence, where it diverged or failed.
        folder: its run folder, by name.
    """

    number: int
    state: TrialState
    value: float | None
    options: dict[str, Any]
    why: str
    folder: str


@dataclass(frozen=True)
class Settings:
    """What makes two starts the same study.

    Attributes:
        options: the configuration of all trials, without what may differ between the starts of one run.
    """

    options: dict[str, Any]
    space: dict[str, Any]
    objective: str
    sampler: str
    sampler_seed: int
    random_first: int

    def as_dict(self) -> dict[str, Any]:
        """The settings as the store will give them back: lists for tuples."""
        return json.loads(json.dumps(vars(self)))


class Study:
    """A study, made or opened.

    Args:
        folder: of the trials.
        store: a file, or the URL of a database; empty for a file in the folder. All processes need the same.
        space: what the trials vary.
        given: options that are the same in all trials and beat those of the space.
        command: what the user typed, for the record.
        tell: takes a line for each trial that begins or ends.

    Raises:
        UserError: the store cannot be opened, the folder cannot be written, or there is another study.
    """

    def __init__(
        self,
        folder: Path,
        store: str,
        settings: Settings,
        space: Space,
        given: dict[str, Any],
        command: str,
        tell: Callable[[str], None] = lambda text: print(text, flush=True),
    ):
        self.folder, self.settings, self.space, self.given = folder, settings, space, given
        self.broken: list[Job] = []
        self._tell = tell
        self._store, self._command = store or str(folder / JOURNAL), command
        self._taken: set[int] = set()
        self._again: set[int] = set()
        self._elsewhere: set[int] = set()
        self._has_ended_one = False
        try:
            self._distributions = {name: parameter.distribution() for name, parameter in space.parameters.items()}
        except ImportError as error:
            raise UserError("A search needs a package: pip install 'optuna>=4.2,<6'.") from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self.locked():
                self._open()
        except OSError as error:
            raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror}).") from error

    # --- trials -----------------------------------------------------------------------------------------------------

    def jobs(self, total: int) -> Iterator[Job]:
        """The runs of this process: first what was interrupted, then new ones until there are ``total`` trials.

        Give :meth:`ended` as the ``ended`` of ``run_jobs``.
        """
        yield from self._interrupted()
        while (job := self._new(total)) is not None:
            yield job
        # Whoever was at these may have been killed meanwhile.
        self._taken -= self._elsewhere
        yield from self._interrupted()

    def ended(self, job: Job, state: State) -> None:
        """Tell the store what has become of a trial.

        Raises:
            UserError: the first of this process failed without diverging, which is the fault of the command
                rather than the values of the trial. It is tried again by the next start, and then counts as failed.
        """
        from optuna.trial import TrialState as Told

        number = int(job.folder.name.removeprefix(_TRIAL))
        if state == "elsewhere":
            self._elsewhere.add(number)
            self._tell(f"{job.folder.name} is run elsewhere")
            return
        if state == "broken":
            # Nobody knows why: it stays a trial that is running, which the next start goes on with.
            self.broken.append(job)
            said = last_line(job.log)
            self._tell(f"{job.folder.name} broke off: {said} ({job.log})")
            if said.startswith("error: ") and not self._has_ended_one:
                # What stops the first trial would stop all.
                raise UserError(
                    f"{job.folder}: {said.removeprefix('error: ')} If that needs another option, begin another study, "
                    "with --study."
                )
            return
        value = best_value(job.folder, self.settings.objective) if state == "finished" else None
        why = job.failure
        if state == "finished" and value is None:
            why = f"it has no {self.settings.objective}; let trials validate, and train for an epoch at least."
        if why and not why.startswith(DIVERGED) and not self._has_ended_one and number not in self._again:
            raise UserError(f"{job.folder}: {why}")
        self._has_ended_one = True
        # To the sequential sampler a diverged trial is worse than all others; one that failed says nothing.
        told = Told.COMPLETE if value is not None else Told.PRUNED if why.startswith(DIVERGED) else Told.FAIL
        with self.locked():
            # Two processes may have looked after one that was interrupted.
            self._study.tell(number, value, told, skip_if_finished=True)
            self._write()
        self._tell(f"{job.folder.name}: {why}" if why else f"{job.folder.name}: {self.settings.objective} {value:.4f}")

    def trials(self) -> list[Trial]:
        """All trials so far, by number."""
        return [
            self._described(trial)
            for trial in self._study.get_trials(deepcopy=False)
            if self._is_whole(trial) or trial.state.name == "RUNNING"
        ]

    def _described(self, trial: Any) -> Trial:
        names: dict[str, TrialState] = {"COMPLETE": "finished", "PRUNED": "diverged", "FAIL": "failed"}
        state = names.get(trial.state.name, "running")
        job = self._job(trial)
        why = ""
        if state in ("diverged", "failed"):
            why = job.failure or f"It has no {self.settings.objective}."
        options = {name: self.space.parameters[name].value(value) for name, value in trial.params.items()}
        value = trial.value if state == "finished" else None
        return Trial(trial.number, state, value, options, why, job.folder.name)

    def _job(self, trial: Any) -> Job:
        values = {name: trial.params[name] for name in self._distributions if name in trial.params}
        return Job(self.folder / f"{_TRIAL}{trial.number:04d}", {**self.space.options(values), **self.given})

    def _is_whole(self, trial: Any) -> bool:
        """Whether all its values are drawn; else its process was killed while it drew them."""
        return set(trial.params) == set(self._distributions)

    def _trial(self, number: int) -> Any:
        """A trial of the store, as it is now."""
        return self._study.get_trials(deepcopy=False)[number]

    def _interrupted(self) -> Iterator[Job]:
        from optuna.trial import TrialState as Told

        for number in range(len(self._study.get_trials(deepcopy=False))):
            # As it is now: those before it may have taken hours.
            trial = self._trial(number)
            if trial.state.name != "RUNNING" or number in self._taken:
                continue
            if not self._is_whole(trial):
                # Being drawn at this moment? Not while we hold the lock.
                with self.locked():
                    trial = self._trial(number)
                    if not self._is_whole(trial):
                        self._study.tell(number, state=Told.FAIL, skip_if_finished=True)
                        continue
            job = self._job(trial)
            # Whoever is at it has yet to tell why it failed.
            if job.failure and (claim := try_claim(job)):
                with claim:
                    if self._trial(number).state.name != "RUNNING":
                        continue
                    self._again.add(number)
                    (job.folder / FAILURE_FILE).unlink(missing_ok=True)
            self._taken.add(number)
            if job.folder.is_dir():
                self._tell(f"{job.folder.name} is taken up again")
            yield job

    def _new(self, total: int) -> Job | None:
        with self.locked():
            if len(self.trials()) >= total:
                return None
            number = self._study.ask(self._distributions).number
            self._taken.add(number)
            self._write()
        job = self._job(self._study.get_trials(deepcopy=False)[number])
        drawn = {name: job.options[name] for name in self._distributions}
        self._tell(f"{job.folder.name} of {total}: {short_arguments(drawn)}")
        return job

    # --- store ------------------------------------------------------------------------------------------------------

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from writing into the folder."""
        return locked(self.folder / ".study.lock")

    def _open(self) -> None:
        import optuna

        # What it says of every trial, and that some of its options may change.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        described = self._saved()
        self._study = self._in_the_store(described)
        self._require_own(described)
        self._id = described.get("id") or uuid.uuid4().hex
        # As it was begun, but for a password that an earlier version has kept.
        self._command = recorded(words_of(described.get("command", ""))) or self._command
        # First here: a folder without trials may go to any store, but a store that knows a study must find its folder.
        self._write()
        said = self._study.user_attrs
        if said.get("folder") != str(self.folder.resolve()):
            self._study.set_user_attr("folder", str(self.folder.resolve()))
        if "id" not in said:
            self._study.set_user_attr("id", self._id)

    def _saved(self) -> dict[str, Any]:
        """What the folder says of its study, whose settings must be these; empty where it is new."""
        if (self.folder / STUDY_FILE).is_file():
            described = read_study(self.folder)
            self._require_same(described)
            return described
        if any(self.folder.glob(f"{_TRIAL}*")):
            raise UserError(f"{self.folder}: holds trials but no {STUDY_FILE}; give another --study.")
        return {}

    def _in_the_store(self, described: dict[str, Any]) -> optuna.Study:
        """The study that ``described`` says, or that the store has by the folder's name; a new one where neither is."""
        import optuna

        if described.get("trials") and "://" not in self._store and not user_path(self._store).is_file():
            # Opening it would make it.
            raise UserError(f"{self._store_words}: no such file; {self._give_the_store(described)}")
        try:
            storage = _storage(self._store)
            by_id = {known.user_attrs.get("id"): known for known in optuna.get_all_study_summaries(storage)}
            known = by_id.get(described["id"]) if described else None
            return optuna.create_study(
                storage=storage,
                # A folder may have been renamed since.
                study_name=known.study_name if known else self.folder.name,
                direction=OBJECTIVES[self.settings.objective],
                sampler=_sampler(self.settings),
                load_if_exists=True,
            )
        except UserError:
            raise
        except Exception as error:
            # Whatever drivers of databases and damaged files raise.
            why = f"{type(error).__name__}: {masked(' '.join(str(error).split()))[:200]}"
            raise UserError(
                f"{self._store_words}: cannot be opened ({why}); give a file, or the URL of a database."
            ) from error

    def _require_own(self, described: dict[str, Any]) -> None:
        """Refuse a store that lacks the trials of this folder, or whose study lies in another folder."""
        store, said = self._store_words, self._study.user_attrs
        found = said.get("id")
        if found is None and described.get("trials"):
            raise UserError(
                f"{store}: knows no trials of {self.folder}, which has some; {self._give_the_store(described)}"
            )
        if found is not None and found != described.get("id"):
            raise UserError(
                f"{store}: has a study {self.folder.name!r} already, whose trials lie in {said.get('folder')}; give "
                "that folder, or one of another name, as --study."
            )
        here, lies_in = self.folder.resolve(), str(said.get("folder", ""))
        # A copy with a store of its own within goes on by itself.
        shared = here not in user_path(self._store.removeprefix("sqlite:///")).resolve().parents
        if found is not None and shared and lies_in != str(here) and _has_study(lies_in, found):
            raise UserError(
                f"{self.folder}: is a copy of {lies_in}, whose trials {store} has; go on with --study {lies_in}, or "
                "give another --study."
            )

    @property
    def _store_words(self) -> str:
        """The option that says where the trials are, without a password."""
        return f"--store {masked(self._store)}"

    def _give_the_store(self, described: dict[str, Any]) -> str:
        """What to do where the store is not that of the trials."""
        if (self.folder / JOURNAL).is_file():
            return "leave --store out, for they are in the folder."
        if described["store"] == masked(self._store):
            return "it had the trials of this study; put it back, or give another --study."
        return f"give the store that they were made with, {described['store']}."

    def _require_same(self, described: dict[str, Any]) -> None:
        before, now = described["settings"], self.settings.as_dict()
        if isinstance(before.get("options"), dict):
            # Studies of earlier versions did not record their images.
            same = as_before(now["options"])
            if IMAGES in now["options"]:
                same[IMAGES] = now["options"][IMAGES]
            before = {**before, "options": same | written_alike(before["options"])}
        for part in now:
            if before.get(part) == now[part]:
                continue
            what, old, new = flag(part), before.get(part), now[part]
            if isinstance(old, dict) and isinstance(new, dict):
                what = next(name for name in sorted({*old, *new}) if old.get(name) != new.get(name))
                old, new = old.get(what, "nothing"), new.get(what, "nothing")
                what = called(what) if part == "options" else f"{flag(what)} of the domain"
            old, new = ("nothing" if value is None else value for value in (old, new))
            raise UserError(
                f"{self.folder}: this study was begun with {what} {old}, not {new}; go on as it was begun, or give "
                "another --study."
            )

    def _write(self) -> None:
        """Describe the study in its folder as the store has it now. Under the lock: no older word comes last."""
        content = {
            "id": self._id,
            "command": self._command,
            "store": masked(self._store),
            "settings": self.settings.as_dict(),
            "domain": self.space.origin,
            "trials": [vars(trial) for trial in self.trials()],
        }
        write_atomically(self.folder / STUDY_FILE, json.dumps(content, indent=1) + "\n")


def read_study(path: Path) -> dict[str, Any]:
    """What the ``study.json`` of a study says: ``path`` is that file, or the folder of the study.

    Raises:
        UserError: there is none, or it is not one of ours.
    """
    path = path / STUDY_FILE if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if _is_description(content):
            return content
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such study; expected the folder of one, runs/search/NAME.") from error
    except (OSError, ValueError, RecursionError):
        pass
    raise UserError(f"{path}: does not describe a study; it is damaged, or another program's.")


def _is_description(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    kinds = {"id": str, "command": str, "store": str, "settings": dict, "trials": list}
    parts = {"options": dict, "space": dict, "objective": str, "sampler": str}
    trial = {"number": int, "state": str, "value": int | float | None, "options": dict, "why": str, "folder": str}
    return (
        all(isinstance(content.get(name), kind) for name, kind in kinds.items())
        and all(isinstance(content["settings"].get(name), kind) for name, kind in parts.items())
        and content["settings"]["objective"] in OBJECTIVES
        and all(isinstance(found, dict) and set(found) == set(trial) for found in content["trials"])
        and all(isinstance(found[name], kind) for found in content["trials"] for name, kind in trial.items())
    )


def described_trials(content: dict[str, Any]) -> list[Trial]:
    """The trials of what :func:`read_study` returns."""
    return [Trial(**trial) for trial in content["trials"]]


def best_trial(trials: list[Trial], objective: str) -> Trial | None:
    """The finished trial of the best value, the earliest of several; None where none has finished."""
    sign = 1 if OBJECTIVES[objective] == "minimize" else -1
    finished = [(sign * trial.value, trial.number, trial) for trial in trials if trial.value is not None]
    return min(finished, key=lambda found: found[:2])[2] if finished else None


def best_value(folder: Path, objective: str) -> float | None:
    """The best value over the epochs of a run; None where it has none."""
    choose = min if OBJECTIVES[objective] == "minimize" else max
    return choose(read_metrics(folder / METRICS_FILE).get(objective, {}).values(), default=None)


def result_of(folder: Path) -> dict[str, Any]:
    """What the test of a finished run found, and on what machine; to be looked at for the chosen trial alone."""
    return Run(folder).summary or {}


def short_arguments(options: dict[str, Any]) -> str:
    """Values of parameters in few words."""
    short = {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in options.items()}
    return " ".join(as_arguments(short))


def _has_study(folder: str, identity: str) -> bool:
    """Whether the folder holds the study of that id still."""
    try:
        return read_study(Path(folder))["id"] == identity
    except UserError:
        return False


def _storage(store: str) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    class WholeLines(JournalFileBackend):
        """Optuna cannot read a file again in which another line follows one that a full disk, say, has cut."""

        def append_logs(self, logs):
            self._cut()
            try:
                super().append_logs(logs)
            except OSError:
                self._cut()
                raise

        def _cut(self) -> None:
            """Take away what follows the last newline. Nobody writes meanwhile."""
            lock.acquire()
            try:
                keep_whole_lines(path)
            finally:
                lock.release()

    if "://" in store:
        # SQLite gives up after 5 seconds where others write.
        wait = {"connect_args": {"timeout": 60}} if store.startswith("sqlite") else {}
        return _while_tables_are_made(lambda: RDBStorage(store, engine_kwargs=wait))
    path = user_path(store).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lock file that whoever finds it 30 seconds old removes: works on NFS, where SQLite's own locks do not.
    lock = JournalFileOpenLock(str(path))
    return JournalStorage(WholeLines(str(path), lock_obj=lock))


def _while_tables_are_made(connect: Callable[[], Any]) -> Any:
    """What ``connect`` returns, tried again where it fails because others begin with the same new database."""
    from sqlalchemy.exc import DBAPIError, IntegrityError

    for attempt in range(10):
        try:
            return connect()
        except DBAPIError as error:
            # Each looks for tables before it makes them, and finds in the end that another has.
            if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                raise
            time.sleep(0.1 * (attempt + 1))
    return connect()


def _sampler(settings: Settings) -> Any:
    """Optuna's sampler, begun anew for each trial from the seed and the trial's number.

    So several processes, and starts after an interruption, draw what one process would have drawn: random trials
    exactly, sequential ones as far as they know of the same results.
    """
    from optuna.samplers import BaseSampler, RandomSampler, TPESampler

    class Numbered(BaseSampler):
        _sampler: BaseSampler

        def before_trial(self, study, trial):
            import numpy as np

            seed = int(np.random.SeedSequence([settings.sampler_seed, trial.number]).generate_state(1)[0])
            if settings.sampler == "random":
                self._sampler = RandomSampler(seed=seed)
            else:
                # Trials that are running count as bad ones, so that several processes do not all try the same.
                self._sampler = TPESampler(seed=seed, n_startup_trials=settings.random_first, constant_liar=True)
            self._sampler.before_trial(study, trial)

        def infer_relative_search_space(self, study, trial):
            return self._sampler.infer_relative_search_space(study, trial)

        def sample_relative(self, study, trial, search_space):
            return self._sampler.sample_relative(study, trial, search_space)

        def sample_independent(self, study, trial, name, distribution):
            return self._sampler.sample_independent(study, trial, name, distribution)

    return Numbered()
