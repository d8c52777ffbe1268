"""One page about many runs: dtp report RUNS... [--output FILE.md]; or the board of all: --board RUNS..."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dtp.cli.commands import CommandParser, command_line, run_command
from dtp.errors import UserError, user_path
from dtp.experiments.report import FORMER_WRITER, WRITER

if TYPE_CHECKING:
    from dtp.experiments.report.figures import Drawing
    from dtp.experiments.report.groups import Section

BOARD = Path("benchmarks") / "results" / "board.json"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status, as dtp train's."""
    return run_command(_report, argv)


def make_parser() -> argparse.ArgumentParser:
    """The command's options, for it and for shell completion."""
    parser = CommandParser(
        prog=command_line("report"),
        description="One page about many runs: accuracies over seeds beside those of the papers, time relative to "
        "backprop, angles to backprop, figures, and where every number comes from.",
        epilog="Runs that differ in their seeds alone are averaged. The page and its figures are replaced when it is "
        "run again; nothing else is overwritten.",
    )
    parser.add_argument(
        "runs", nargs="*", type=user_path, help="run folders, or folders that hold some: of a sweep, a search"
    )
    parser.add_argument(
        "--output", type=user_path, help="the page (default: report.md in the folder given, or in this one)"
    )
    parser.add_argument("--title", help="of the page (default: the name of the folder)")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the numbers there as well")
    parser.add_argument(
        "--times",
        nargs="+",
        type=user_path,
        metavar="RUNS",
        help="take times from these runs of the same settings, short ones on a quiet machine, say",
    )
    parser.add_argument("--no-figures", action="store_true", help="tables alone")
    board = parser.add_argument_group("the board of all figures")
    board.add_argument(
        "--board",
        action="store_true",
        help=f"add the runs, or files of results, to the board --json (default: {BOARD}) and write its page --output "
        "(default: beside it); rows of the same settings are replaced; of runs with one seed the latest counts",
    )
    board.add_argument("--images", default="", metavar="NAME", help="of the folder of images, for runs that read one")
    board.add_argument("--date", default="", metavar="DAY", help="of results that do not say theirs")
    board.add_argument("--note", default="", metavar="TEXT", help="to be said of the rows")
    return parser


def _report(argv: Sequence[str]) -> int:
    options = make_parser().parse_args(argv)
    if options.board:
        return _board(options)
    for flag in ("images", "date", "note"):
        if getattr(options, flag):
            raise UserError(f"--{flag}: expected together with --board, found it without.")
    if not options.runs:
        raise UserError("RUNS: expected run folders, found none (dtp report --help).")
    page: Path = options.output or (options.runs[0] if len(options.runs) == 1 else Path(".")) / "report.md"
    if page.suffix != ".md":
        raise UserError(f"--output {page}: expected the name of a Markdown file, which ends in .md.")

    from dtp.experiments.report.groups import add_costs, sections
    from dtp.experiments.report.page import MARK, Report, numbers, write_page
    from dtp.experiments.report.reading import read_runs
    from dtp.system.files import write_atomically

    runs, timed_runs = read_runs(options.runs), read_runs(options.times or ())
    _require_own(page, lambda text: text.startswith(MARK), "page")
    if options.json:
        _require_own(options.json, _is_own_json, "JSON")
    found, timed = sections(runs), sections(timed_runs)
    add_costs(found, timed)
    times = ["--times", *map(_name, options.times)] if options.times else []
    command = shlex.join(["dtp", "report", *map(_name, options.runs), *times])
    report = Report(options.title or options.runs[0].resolve().name, command, runs, found, timed, timed_runs)
    drawn = [] if options.no_figures else _figures(page, found)
    with _writing(page, "--output"):
        # The page first: it says whose the figures are.
        write_atomically(page, write_page(report))
        for drawing, png in drawn:
            drawing.draw(png)
    if options.json:
        with _writing(options.json, "--json"):
            write_atomically(options.json, json.dumps(numbers(report), indent=1, default=asdict) + "\n")
    finished = sum(run.state == "finished" for run in runs)
    print(f"{len(runs)} runs, {finished} finished, in {len(report.groups)} settings: {page}")
    return 0


def _figures(page: Path, sections: Sequence[Section]) -> list[tuple[Drawing, Path]]:
    """The figures of the page, with their files, which the sections are told; none may be another's."""
    from dtp.experiments.report.figures import drawings

    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    drawn, names = [], Counter[str]()
    for section in sections:
        name = re.sub(r"[\W_]+", "-", section.title.lower()).strip("-")
        names[name] += 1
        # Two titles may differ in what no name of a file has.
        name = "-".join(filter(None, (name, str(names[name]) if names[name] > 1 else "")))
        for drawing in drawings(section):
            png = page.with_name("-".join([page.stem, *([name] if len(sections) > 1 else []), drawing.kind]) + ".png")
            link = f"<{png.name}>" if re.search(r"[\s()<>]", png.name) else png.name
            # Earlier versions wrote all names as they are.
            if png.exists() and not any(f"({form})" in before for form in (link, png.name)):
                raise UserError(f"{png}: exists, and is no figure of {page}; move it away, or give another --output.")
            section.figures.append((link, drawing.caption))
            drawn.append((drawing, png))
    return drawn


@contextmanager
def _writing(path: Path, flag: str) -> Iterator[None]:
    """Make the folder of a file that is then written; what goes wrong is told with the option that gives its name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); give another {flag}.") from error


def _board(options: argparse.Namespace) -> int:
    from dtp.experiments.report import board
    from dtp.system.files import write_atomically

    for flag in ("title", "no_figures"):
        if getattr(options, flag):
            raise UserError(f"--{flag.replace('_', '-')}: expected without --board, whose page has none; leave it out.")
    path: Path = options.json or BOARD
    page: Path = options.output or path.with_suffix(".md")
    if page.resolve() == path.resolve():
        raise UserError(f"--output {page}: is the board itself; give another name for its page.")
    before = board.read_board(path)
    _require_own(page, lambda text: text.startswith(board.MARK), "page")
    rows = board.rows_of(options.runs, options.times or (), options.images, options.date, options.note)
    if options.runs and not rows:
        raise UserError(f"{options.runs[0]}: no finished run with a test accuracy found; nothing is added to {path}.")
    for sentence in board.fewer_seeds(before, rows):
        print(f"warning: {sentence}", file=sys.stderr)
    after = board.merged(before, rows)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in after)
    # The folder of the page first: nothing is written where the page has none.
    with _writing(page, "--output"):
        with _writing(path, "--json"):
            write_atomically(path, f"[\n{lines}\n]\n")
        write_atomically(page, board.write_page(after, path.name))
    ours = sum(row["ours"] is not None for row in after)
    print(f"{len(rows)} rows of these runs; {len(after)} on the board, {ours} with figures of ours: {path}, {page}")
    return 0


def _name(folder: Path) -> str:
    """A folder as the page calls it: nothing of where this machine has it."""
    return folder.resolve().name if folder.is_absolute() or ".." in folder.parts or folder == Path() else str(folder)


def _require_own(path: Path, is_own: Callable[[str], bool], what: str) -> None:
    with suppress(OSError, UnicodeDecodeError):
        if not path.exists():
            return
        if path.is_file() and is_own(path.read_text(encoding="utf-8").replace(FORMER_WRITER, WRITER, 1)):
            return
    raise UserError(f"{path}: exists, and is no {what} of this command; move it away, or give another name.")


def _is_own_json(text: str) -> bool:
    with suppress(ValueError, AttributeError):
        return json.loads(text).get("made_by") == WRITER
    return False
