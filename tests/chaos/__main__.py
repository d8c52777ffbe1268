"""Repeat the chaos test: python -m tests.chaos [--kills N] [--flips N] [--seed S] [--out FILE]."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

# One thread, as in the tests; and a process with threads cannot be forked safely.
os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

import dtp.run.training  # noqa: E402, F401
from tests.chaos.flips import flip_bits  # noqa: E402
from tests.chaos.full_disk import fill_disks  # noqa: E402
from tests.chaos.judge import judge_mistake, judge_own  # noqa: E402
from tests.chaos.kills import kill_runs  # noqa: E402
from tests.chaos.mistakes import MISTAKES  # noqa: E402
from tests.chaos.own import OWN  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Repeat the chaos test.")
    parser.add_argument("--kills", type=int, default=81, help="runs to kill, one rule after the other")
    parser.add_argument("--flips", type=int, default=60, help="bits to flip in checkpoints, region after region")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, bytes and bits")
    parser.add_argument("--no-mistakes", action="store_true", help="leave out the table of mistakes")
    parser.add_argument("--no-disks", action="store_true", help="leave out the full disks")
    parser.add_argument("--out", type=Path, help="JSON file for the figures; otherwise they are printed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict = {"seed": options.seed}
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:
        here = Path(place)
        for name in ("kills", "flips", "disks", "mistakes"):
            (here / name).mkdir()
        figures["kills"] = kill_runs(options.kills, options.seed, here / "kills")
        figures["flips"] = flip_bits(options.flips, options.seed, here / "flips")
        if not options.no_disks:
            figures["full disks"] = fill_disks((8, 64, 128, 256), here / "disks")
        if not options.no_mistakes:
            figures["mistakes"] = _mistakes(here / "mistakes")
    text = json.dumps(figures, indent=2) + "\n"
    if options.out:
        options.out.write_text(text)
    else:
        print(text, end="")
    return 1 if any(part["wrong"] for part in figures.values() if isinstance(part, dict) and "wrong" in part) else 0


def _mistakes(here: Path) -> dict:
    done: dict = {"mistakes": 0, "refused": 0, "hangs": 0, "wrong": []}
    for judge, rows in ((judge_mistake, MISTAKES), (judge_own, OWN)):
        for row in rows:
            place = here / str(done["mistakes"])
            place.mkdir()
            found = judge(row, place)
            done["mistakes"] += 1
            done["refused"] += not found
            done["hangs"] += "Hung" in found
            if found:
                name = getattr(row, "name", None) or f"{row.kind}: {' '.join(row.words)!r}"
                done["wrong"].append(f"{name}: {found}")
    return done


if __name__ == "__main__":
    sys.exit(main())
