"""Makes the archive of trained weights that a release holds: of each setting on the board the best run, if it is small.

    python benchmarks/weights.py RUNS... --output weights.tar.gz

Runs are grouped as for the board. Of each setting's finished runs the one with the best validation accuracy is kept, or
without validation that of the first seed, never the best on the test set; and the weights that were tested: weights.pt
is the network's state_dict, for torch.load(..., weights_only=True), config.yaml and summary.json are the run's, without
the places of this machine. Networks of more than --most MB (default 5) are named and left out. index.json lists what is
there, as rows of the board. The same runs give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import sys
import tarfile
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))

from dtp.errors import UserError  # noqa: E402
from dtp.experiments.report.board import rows_of_group  # noqa: E402
from dtp.experiments.report.groups import Group, Section, add_costs, sections  # noqa: E402
from dtp.experiments.report.reading import RunRecord, read_runs  # noqa: E402
from dtp.run.checkpoints import read_checkpoint  # noqa: E402
from dtp.run.folder import newest_checkpoint  # noqa: E402
from dtp.run.layout import CHECKPOINTS  # noqa: E402
from dtp.run.provenance import portable  # noqa: E402

MB = 1e6
# Options that say where something lay on the machine of the run.
PLACES = {"data_dir", "init_weights", "run_dir", "logger"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("weights.tar.gz"))
    parser.add_argument("--most", type=float, default=5.0, help="MB of the weights of a network")
    options = parser.parse_args()
    try:
        found = sections(read_runs(options.runs))
        add_costs(found)
        files, count = gathered(found, options.most)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write(options.output, files)
    except (UserError, OSError) as error:
        parser.error(str(error))
    print(f"{options.output}: {count} networks, {options.output.stat().st_size / MB:.1f} MB")


def gathered(found: list[Section], most: float) -> tuple[dict[str, bytes], int]:
    """The files of the archive, and of how many networks they are.

    Raises:
        UserError: no network is small enough, or has weights.
    """
    files: dict[str, bytes] = {}
    index = []
    for section in found:
        for group in section.groups:
            rows = rows_of_group(section, group)
            if not rows:
                continue
            run = best(group)
            try:
                weights = tested_weights(run)
            except (UserError, FileNotFoundError) as error:
                print(f"left out: {run.name}: {error}")
                continue
            content = io.BytesIO()
            torch.save(weights, content)
            if len(content.getvalue()) > most * MB:
                print(f"left out: {run.name}: {len(content.getvalue()) / MB:.1f} MB, more than {most:g}")
                continue
            name = f"{len(index):03d}-" + re.sub(
                r"[^a-z0-9]+", "-", f"{group.rule} {section.data} {group.network}".lower()
            )
            kept = {key: value for key, value in run.options.items() if key not in PLACES}
            files[f"{name}/weights.pt"] = content.getvalue()
            files[f"{name}/config.yaml"] = yaml.safe_dump(kept, sort_keys=True).encode()
            command = {key: portable(value) for key, value in run.summary.items() if key == "command" and value}
            files[f"{name}/summary.json"] = (json.dumps(run.summary | command, indent=1) + "\n").encode()
            index.append({"folder": name, "seed": run.seed, "rows": rows})
    if not index:
        raise UserError("no finished run whose weights could be kept; nothing is written.")
    files["index.json"] = (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode()
    return files, len(index)


def best(group: Group) -> RunRecord:
    """The finished run of the best validation accuracy, the first of several."""
    return max(group.finished, key=lambda run: run.summary.get("val_accuracy") or 0.0)


def tested_weights(run: RunRecord) -> dict[str, torch.Tensor]:
    """The network's weights of the checkpoint that was tested."""
    folder = run.folder / CHECKPOINTS
    best_one = folder / "best.ckpt"
    on_validation = "validation" in str(run.summary.get("tested_weights"))
    path = best_one if on_validation and best_one.is_file() else newest_checkpoint(run.folder)
    if path is None:
        raise FileNotFoundError("no checkpoint is left of it")
    state = read_checkpoint(path)["state_dict"]
    # Copies: a part of a larger storage would be saved whole.
    return {name.removeprefix("network."): t.clone() for name, t in state.items() if name.startswith("network.")}


def write(path: Path, files: dict[str, bytes]) -> None:
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as packed:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, content in sorted(files.items()):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main()
