"""Print a script for a SLURM cluster, or submit it: dtp slurm NAME [--submit [options of sbatch] [-- arguments]]."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dtp.cli.commands import CommandParser, command_line, run_command
from dtp.errors import UserError
from dtp.slurm import names, script


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status, that of sbatch where it submits."""
    return run_command(_slurm, argv)


def make_parser() -> argparse.ArgumentParser:
    """The command's options, for it and for shell completion."""
    parser = CommandParser(
        prog=command_line("slurm"),
        description="Print a script for a SLURM cluster, to be changed and given to sbatch; or submit it as it is.",
        epilog="dtp slurm vgg_dtp --submit --array=1-5 --time=2-0 -- --logger wandb: options of sbatch come after "
        "--submit, and after -- the arguments of the script, which are those of dtp train (vgg_dtp, vgg_bp), dtp sweep "
        "or dtp search. The comments in the script tell what else there is.",
    )
    parser.add_argument("name", choices=names(), help="the script")
    parser.add_argument("--submit", action="store_true", help="give it to sbatch")
    return parser


def _slurm(argv: Sequence[str]) -> int:
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    options, of_sbatch = make_parser().parse_known_args(words[:cut])
    arguments = words[cut + 1 :]
    if not options.submit:
        if unused := [*of_sbatch, *arguments]:
            raise UserError(f"{unused[0]}: expected --submit before options of sbatch and arguments; add it.")
        with suppress(BrokenPipeError):
            print(script(options.name), end="", flush=True)
        return 0
    if shutil.which("sbatch") is None:
        raise UserError(
            "--submit: found no sbatch; go to a machine of the cluster, or take the script there: "
            f"dtp slurm {options.name} > {options.name}.sh"
        )
    with tempfile.TemporaryDirectory() as folder:
        # sbatch keeps a copy.
        path = Path(folder) / f"{options.name}.sh"
        path.write_text(script(options.name), encoding="utf-8")
        command = ["sbatch", *of_sbatch, str(path), *arguments]
        print(shlex.join([*command[: -1 - len(arguments)], path.name, *arguments]), flush=True)
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
