"""What averaging feedback weights once per batch, instead of gradients in every step, does to accuracy and alignment.

    python benchmarks/sync.py --data digits --max-epochs 10
    python benchmarks/sync.py --data mnist --data-dir DIR --max-epochs 2

Trains ``dtp`` by the command line with the preset's values and the same seeds and batches, on one process and several;
reports the mean over seeds of the best validation accuracy, of the test accuracy of the last weights, and of the last
angles between feedback and transposed forward weights and between updates and backprop's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from dtp.run.provenance import without_places
from dtp.run.reading import read_metrics, read_summary

ROOT = Path(__file__).parent.parent
WAYS = {
    "one process": "",
    "2 ranks, every step": "--devices 2",
    "2 ranks, once per batch": "--devices 2 --feedback-sync batch",
    "4 ranks, every step": "--devices 4",
    "4 ranks, once per batch": "--devices 4 --feedback-sync batch",
}


def train(way: str, seed: int, words: list[str]) -> dict[str, float]:
    """One run: its accuracies, and its last angles averaged over layers."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        ranks = next((int(way.split()[1]) for _ in [0] if way), 1)
        # More ranks than cores are a plain command's mistake; torchrun does not mind, and only accuracy is measured.
        launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *launcher, str(ROOT / "main.py"), "--algo", "dtp", "--seed", str(seed)]
        command += [*words, *way.split(), "--run-dir", str(run), "--accelerator", "cpu", "--test-weights", "last"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            sys.exit(done.stderr.strip())
        summary, metrics = read_summary(run / "summary.json"), read_metrics(run / "metrics.csv")
    found = {"test_accuracy": summary["test_accuracy"], "batches": summary["steps"]}
    found["val_accuracy"] = max(metrics["val/accuracy"].values())
    for kind in ("feedback_angle", "update_angle"):
        found[kind] = statistics.mean(
            list(series.values())[-1] for name, series in metrics.items() if name.startswith(kind)
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--output", type=Path)
    o, words = parser.parse_known_args()
    # Where the data lie is nobody else's business.
    result = {
        "command": " ".join(["benchmarks/sync.py", *without_places(words)]),
        "seeds": o.seeds,
        "torch": torch.__version__,
        "ways": {},
    }
    for way in o.ways:
        runs = [train(WAYS[way], seed, words) for seed in o.seeds]
        means = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
        result["ways"][way] = {"mean": means, "runs": runs}
        print(
            f"{way:26} val {means['val_accuracy']:.2%}  test {means['test_accuracy']:.2%}  "
            f"feedback {means['feedback_angle']:.1f} deg  updates {means['update_angle']:.1f} deg",
            flush=True,
        )
    if o.output:
        o.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
