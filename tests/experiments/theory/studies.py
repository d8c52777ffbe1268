"""Runs of studies so small that they take seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dtp.experiments.theory.command import _parse, main
from dtp.experiments.theory.options import STUDIES

# Words of the command line that make each study small.
SMALL = {
    "transpose": "--seeds 0 --iterations 40 --points 4 --channels 3 4 --image-shape 2 8 8 --batch-size 16",
    "update-angles": "--seeds 5 --iterations 20 --channels 3 4 --hidden 6 --image-shape 2 8 8 --batch-size 16",
    "gait": "--seeds 0 --depth 2 --width 12 --batch-size 8 --steps 1e-5 1e-2 --departures 0 0.1",
    "lee": "--seeds 0 --depth 3 --units 5 --widths 4 6 --iterations 20 --points 2 --samples 8",
}
assert set(SMALL) == set(STUDIES)


def run(folder: Path, name: str, *words: str) -> dict[str, Any]:
    """The record that the command ``python -m dtp.theory name words`` leaves in ``folder``."""
    assert main([name, "--output", str(folder), *words]) == 0
    return json.loads((folder / f"{name}.json").read_text())


def measured(name: str, *words: str) -> dict[str, Any]:
    """What the small study measures with these words after its own."""
    given = _parse([name, *SMALL[name].split(), *words])
    return STUDIES[name].load("measure")(given.options)


def mistake(capsys, *words: str) -> str:
    """The one sentence on stderr of a command line that is a mistake."""
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.endswith(".\n") and err.count("\n") == 1
    return err
