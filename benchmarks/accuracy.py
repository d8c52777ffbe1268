"""Real runs by name, each through the command line as a user would start it.

    python benchmarks/accuracy.py dtp-digits bp-digits
    python benchmarks/accuracy.py dtp-mlp-mnist --mnist DIR          DIR holds MNIST/raw
    python benchmarks/accuracy.py dtp-vgg-cifar10-noisy --cifar DIR  DIR holds images in train/CLASS/ and test/CLASS/
    python benchmarks/accuracy.py --list
    python benchmarks/accuracy.py --table                            a Markdown table of all results

Each run gets a folder under --runs, and ``benchmarks/results/NAME.json``: the run's summary with the last measured
angles. A run that is finished is not repeated; one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from dtp.run.reading import read_rows, read_summary

HERE = Path(__file__).parent
MNIST, CIFAR = "--data mnist --data-dir {mnist}", "--data imagefolder --data-dir {cifar}"
# Steps, not epochs: what two CPU cores can do with the literal loss. Angles are measured every second batch.
FEW_STEPS = "--limit-train-batches 2 --limit-val-batches 1 --max-epochs 14 --log-every 2 --test-weights last"

EXPERIMENTS = {
    **{f"{rule}-digits": f"--algo {rule} --model mlp --data digits" for rule in ("dtp", "bp", "vanilla-dtp", "tp")},
    "parallel-dtp-digits": "--algo parallel-dtp --model mlp --data digits",
    **{f"{rule}-mlp-mnist": f"--algo {rule} --model mlp {MNIST}" for rule in ("dtp", "bp", "vanilla-dtp", "tp")},
    "parallel-dtp-mlp-mnist": f"--algo parallel-dtp --model mlp {MNIST}",
    **{
        f"dtp-lenet-mnist-{routing}": f"--algo dtp --model lenet {MNIST} --routing {routing} --max-epochs 10 "
        "--limit-train-batches 5 --limit-val-batches 5 --log-every 5 --test-weights last"
        for routing in ("noisy", "fixed")
    },
    "bp-lenet-mnist": f"--algo bp --model lenet {MNIST} --max-epochs 10 --limit-train-batches 5 --limit-val-batches "
    "5 --log-every 5 --test-weights last",
    **{
        f"dtp-vgg-cifar10-{routing}": f"--algo dtp --model vgg {CIFAR} --config dtp_vgg_cifar10 --routing {routing} "
        + FEW_STEPS
        for routing in ("noisy", "fixed")
    },
    "dtp-vgg-cifar10-expected": f"--algo dtp --model vgg {CIFAR} --config dtp_vgg_cifar10_expected {FEW_STEPS}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*EXPERIMENTS, []], help="runs to make")
    parser.add_argument("--list", action="store_true", help="print the runs and their commands")
    parser.add_argument("--table", action="store_true", help="print a Markdown table of benchmarks/results/*.json")
    parser.add_argument("--mnist", default="data", help="folder that holds MNIST/raw")
    parser.add_argument("--cifar", default="data/cifar10", help="folder that holds train/ and test/ class folders")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"), help="where run folders are made")
    options = parser.parse_args()
    if options.list:
        for name, words in EXPERIMENTS.items():
            print(f"{name:<26}python main.py {words}")
    if options.table:
        print_table()
    for name in options.names:
        words = EXPERIMENTS[name].format(mnist=options.mnist, cifar=options.cifar).split()
        folder = options.runs / name
        command = [sys.executable, str(HERE.parent / "main.py"), *words, "--run-dir", str(folder), "--resume", "auto"]
        subprocess.run(command, check=True)
        write_result(name, folder)


def write_result(name: str, folder: Path) -> None:
    """The summary of a run, with the first and last angles by layer, without the folders of this machine."""
    summary, rows = read_summary(folder / "summary.json"), read_rows(folder / "metrics.csv")
    summary["command"] = "python main.py " + EXPERIMENTS[name].format(mnist="DIR", cifar="DIR")
    for which in ("update_angle", "feedback_angle"):
        columns = list(dict.fromkeys(name for row in rows for name in row if name.startswith(which)))
        measured = [
            (int(row["step"]), [round(row[c], 1) for c in columns]) for row in rows if any(c in row for c in columns)
        ]
        if columns and not name.startswith("bp"):
            summary[f"{which}_degrees"] = {
                "layers": [column.rpartition("layer")[2] for column in columns],
                **{
                    f"batch {step}": angles
                    for step, angles in (measured[0], measured[len(measured) // 2], measured[-1])
                },
            }
    (HERE / "results" / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n")


def print_table() -> None:
    print("| run | epochs | batches | test accuracy | seed | wall time | in the feedback phase | commit |")
    print("|---|---|---|---|---|---|---|---|")
    for name in EXPERIMENTS:
        path = HERE / "results" / f"{name}.json"
        if not path.is_file():
            continue
        s = json.loads(path.read_text())
        share = s["feedback_seconds"] / s["wall_seconds"]
        print(
            f"| [{name}]({path.name}) | {s['epochs']} | {s['steps']} | {s['test_accuracy']:.2%} | {s['seed']} | "
            f"{s['wall_seconds']:.0f} s | {share:.0%} | {s['versions']['commit']} |"
        )


if __name__ == "__main__":
    main()
