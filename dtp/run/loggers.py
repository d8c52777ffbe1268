"""Where metrics go: always to a CSV file in the run folder, and to Weights & Biases on request."""

from __future__ import annotations

import csv
import io
import netrc
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import SplitResult, urlsplit

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from dtp.errors import UserError, user_path
from dtp.run.layout import METRICS_FILE, WANDB_ID_FILE
from dtp.run.provenance import masked
from dtp.run.reading import FIRST_COLUMNS, read_table, require_metrics
from dtp.system.files import write_atomically

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

WANDB_URL = "https://api.wandb.ai"
# How long W&B may try to reach its server before the run goes on without.
INIT_SECONDS = 10.0

Row = dict[str, str]
WandbMode = Literal["online", "offline", "disabled"]


class MetricsCSV(Logger):
    """One row per step in ``run_dir/metrics.csv``; columns ``epoch,step``, then metrics in the order they came.

    Each call writes to the file at once, so that a killed run loses nothing: metrics of the last row's step are merged
    into that row, other steps append one. A metric not seen before widens the header, and a file that exists is
    continued. Only rank zero reads or writes.
    """

    def __init__(self, run_dir: Path):
        super().__init__()
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / METRICS_FILE
        self._columns: list[str] = []
        self._last: Row | None = None
        self._last_offset = 0
        self._end = 0

    @property
    def name(self) -> str:
        return self.run_dir.name

    @property
    def version(self) -> str:
        """Empty: a run folder holds one run."""
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.run_dir)

    root_dir = log_dir = save_dir

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write ``metrics`` at ``step`` (default: the step of the last row).

        Raises:
            UserError: the file cannot be written, or is not a metrics file.
        """
        if not self._columns:
            self._open()
        if step is None:
            step = int(self._last["step"]) if self._last else 0
        row = {name: _cell(value) for name, value in metrics.items() if name != "step"}
        if "epoch" in row:
            row["epoch"] = row["epoch"].removesuffix(".0")
        row["step"] = str(step)
        last = self._last
        merge = last is not None and last["step"] == row["step"]
        if last is not None and merge:
            # A test after the last epoch belongs to the step that it follows, and leaves that step's epoch alone.
            row = {**last, **row, "epoch": last.get("epoch") or row.get("epoch", "")}
        new_columns = [name for name in row if name not in self._columns]
        if new_columns or not self.path.exists():
            _, rows = self._read()
            self._columns.extend(new_columns)
            self._write_all([*(rows[:-1] if merge else rows), row])
        else:
            self._write_last(row, self._last_offset if merge else self._end)

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Drop the rows after ``step``: a run that goes on from a checkpoint there logs them again.

        Raises:
            UserError: the file cannot be read or written, or is not a metrics file.
        """
        self._open()
        _, rows = self._read()
        kept = [row for row in rows if int(row["step"]) <= step]
        if len(kept) < len(rows):
            self._write_all(kept)

    @rank_zero_only
    def save(self) -> None:
        """Have the operating system write the file to the disk; a row is in the file as soon as it is logged."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def _open(self) -> None:
        """Learn the columns and the last row of the file, and repair it if its writer was killed."""
        columns, rows = self._read()
        self._columns = columns or list(FIRST_COLUMNS)
        if not columns:
            return
        if self._text(rows).encode() == self.path.read_bytes():
            self._remember(rows)
        else:
            self._write_all(rows)

    def _read(self) -> tuple[list[str], list[Row]]:
        """Columns and whole rows of the file, none if there is no file; what a killed writer left is skipped."""
        otherwise = ", or give another --run-dir"
        columns, rows = read_table(self.path, otherwise)
        if not columns and (not self.path.exists() or not self.path.stat().st_size):
            return [], []
        require_metrics(self.path, columns, otherwise)
        whole = [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]
        # A longer number is none of ours.
        return columns, [row for row in whole if row["step"].isdecimal() and len(row["step"]) < 20]

    def _text(self, rows: list[Row]) -> str:
        return "".join(map(self._line, [{name: name for name in self._columns}, *rows]))

    def _line(self, row: Row) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([row.get(name, "") for name in self._columns])
        return line.getvalue()

    def _write_all(self, rows: list[Row]) -> None:
        try:
            write_atomically(self.path, self._text(rows))
        except OSError as error:
            raise self._unwritable(error) from error
        self._remember(rows)

    def _write_last(self, row: Row, offset: int) -> None:
        """Write ``row`` from ``offset`` to the end of the file."""
        line = self._line(row).encode()
        try:
            with self.path.open("r+b") as file:
                file.seek(offset)
                # First written, then cut: killed in between, the file holds the new row and a torn one.
                file.write(line)
                file.truncate()
        except OSError as error:
            raise self._unwritable(error) from error
        self._last, self._last_offset, self._end = row, offset, offset + len(line)

    def _remember(self, rows: list[Row]) -> None:
        self._last = rows[-1] if rows else None
        self._end = self.path.stat().st_size
        self._last_offset = self._end - len(self._line(rows[-1]).encode()) if rows else self._end

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self.path}: cannot be written ({error.strerror}); make room or fix its permissions.")


def _cell(value: Any) -> str:
    """Text of one cell; floats in the shortest form that reads back as the same number."""
    if hasattr(value, "item"):
        value = value.item()
    return "" if value is None else " ".join(str(value).split())


# --- Weights & Biases -------------------------------------------------------------------------------------------------


def wandb_mode(environ: Mapping[str, str] = os.environ) -> WandbMode:
    """How to start W&B so that it neither asks nor waits.

    ``WANDB_MODE`` if it is set; else online with credentials, offline without, for W&B would ask for them.

    Raises:
        UserError: ``WANDB_MODE`` or ``WANDB_BASE_URL`` is malformed.
    """
    if mode := environ.get("WANDB_MODE", "").lower():
        # The last three are W&B's other names.
        names: dict[str, WandbMode] = {"online": "online", "offline": "offline", "disabled": "disabled"}
        names |= {"run": "online", "shared": "online", "dryrun": "offline"}
        if mode not in names:
            raise UserError(f"WANDB_MODE: expected online, offline or disabled, found {mode!r}.")
        return names[mode]
    return "online" if _has_credentials(environ) else "offline"


def make_wandb_logger(run_dir: Path, config: dict[str, Any], name: str) -> WandbLogger:
    """A started W&B run that lies in ``run_dir`` and goes on with the same id when the run is resumed.

    W&B's own variables hold: ``WANDB_PROJECT`` (else dtp), ``WANDB_NAME`` (else ``name``), ``WANDB_ENTITY``,
    ``WANDB_MODE`` and the rest, but for those of the folder, the id, the console and the time limit. Falls back to
    offline when the server does not answer within ten seconds, or refuses the login. On ranks other than zero the
    logger does nothing.

    Raises:
        UserError: the wandb package is missing, or W&B does not take a name that one of its variables gives.
    """
    try:
        # By name: a folder called wandb in the current one imports too, and holds no such names.
        from wandb import finish, teardown
    except ImportError as error:
        raise UserError("--logger wandb needs a package: pip install wandb, or use --logger csv.") from error
    from lightning.pytorch.loggers import WandbLogger

    project, name = os.environ.get("WANDB_PROJECT") or "dtp", os.environ.get("WANDB_NAME") or name
    if rank_zero_only.rank != 0:
        return WandbLogger(name=name, project=project, save_dir=run_dir, mode="disabled")

    mode, why = wandb_mode(), ""
    if mode == "online" and not _has_credentials(os.environ):
        # Asked for by WANDB_MODE; W&B would ask for a key, and wait.
        mode, why = "offline", " (no API key: wandb login)"
    run_id = _wandb_id(run_dir)
    given: dict[str, Any] = {"project": project, "name": name, "dir": str(run_dir), "id": run_id}
    # Of an earlier run in this process; init would return that one.
    finish()
    # Not left to WandbLogger: its offline=True overwrites WANDB_MODE for good, and it passes options that W&B warns of.
    try:
        run = _start_wandb(given, mode)
    except Exception as error:
        # A key that is refused, a server that breaks off: no reason not to train.
        if mode != "online":
            raise
        # The id stays taken by the attempt that failed until its service has ended.
        teardown()
        mode, why = "offline", f" ({' '.join(str(error).split())[:200]})"
        run = _start_wandb(given, mode)
    if run.id != run_id and not run.disabled:
        # Within a sweep of W&B its agent says the id, and the same run is to go on under that one.
        write_atomically(run_dir / WANDB_ID_FILE, run.id + "\n")
    # As WandbLogger does for the runs it starts: batches are the x-axis.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    logger = WandbLogger(name=name, project=project, save_dir=run_dir, id=run.id, experiment=run)
    logger.log_hyperparams({key: masked(value) if isinstance(value, str) else value for key, value in config.items()})
    if mode == "offline":
        print(f"W&B is offline{why}; upload later with: wandb sync {run_dir}/wandb/offline-run-*", file=sys.stderr)
    return logger


def _start_wandb(given: dict[str, Any], mode: WandbMode) -> Any:
    """A started W&B run; ``given`` are arguments of ``wandb.init``."""
    from wandb import Settings, init, setup
    from wandb.errors import UsageError

    try:
        with _masked_arguments():
            setup(settings=Settings(silent=True))
            settings = Settings(silent=True, console="off", init_timeout=INIT_SECONDS)
            return init(**given, resume="allow", mode=mode, settings=settings)
    except (UsageError, ValueError) as error:
        if mode == "online":
            raise
        # No server has been asked, so it is one of the variables, which W&B reads in either call.
        said = " ".join(str(error).split())
        raise UserError(f"--logger wandb: {said}; fix the variable of W&B (WANDB_...) that says so.") from error


def log_figure(loggers: Iterable[Logger], name: str, path: Path) -> None:
    """Log a PNG file to the loggers that take images (W&B, TensorBoard, MLflow); the others are skipped."""
    for logger in loggers:
        if log_image := getattr(logger, "log_image", None):
            log_image(key=name, images=[str(path)])
        elif isinstance(logger, TensorBoardLogger):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            # Lightning's own loggers do nothing on ranks other than zero.
            logger.experiment.add_image(name, pixels, dataformats="HWC")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(path))


@contextmanager
def _masked_arguments() -> Iterator[None]:
    """Within it the arguments of this process, which W&B records where it starts, are without passwords."""
    words = sys.argv
    sys.argv = [*map(masked, words)]
    try:
        yield
    finally:
        sys.argv = words


def _wandb_id(run_dir: Path) -> str:
    path = run_dir / WANDB_ID_FILE
    if path.is_file() and (saved := path.read_text().strip()):
        return saved
    new = secrets.token_hex(4)
    write_atomically(path, new + "\n")
    return new


def _server(environ: Mapping[str, str]) -> SplitResult:
    url = environ.get("WANDB_BASE_URL") or WANDB_URL
    server = urlsplit(url)
    try:
        valid = bool(server.hostname) and server.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"WANDB_BASE_URL: expected an address like {WANDB_URL}, found {url!r}.")
    return server


def _has_credentials(environ: Mapping[str, str]) -> bool:
    server = _server(environ)
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        path = user_path(environ.get("NETRC") or Path(environ.get("HOME", "~"), ".netrc"))
        found = netrc.netrc(path).authenticators(server.netloc)
    except (UserError, OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
    return bool(found and found[2])
