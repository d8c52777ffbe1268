"""What the tests of whole runs share."""

import csv
from pathlib import Path

from dtp.cli.train import main

ROOT = Path(__file__).parent.parent
# Ten batches per epoch.
SHORT = "--model mlp --widths 16 --batch-size 128 --max-epochs 2".split()


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(capsys, arguments, *expected):
    """The command ends with status 2 and one sentence that holds the expected words."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    sentences = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1 and "Traceback" not in error
    for words in expected:
        assert words in sentences[0], sentences[0]
