"""Every rule for one epoch on MNIST with the same network: accuracy, time relative to backprop, angle to backprop.

    python benchmarks/rules.py --mnist DIR [--rules bp dtp ...] [--seed 0]     DIR holds MNIST/raw
    python benchmarks/rules.py --table                                      the Markdown table of the committed results

The network is a multilayer perceptron of two hidden layers of 256 with tanh; each rule has the other options of its
own preset, ``<algo>_mlp_mnist``. Settling networks have sigmoids, fw-dtp standardises and has no biases, nor have
pepita and ccl; gait, whose layers must be square, has leaky ReLU, a square output layer and the values of
``gait_square_digits``. One epoch is one
in which every forward weight sees every image: for rules that train the feedback in epochs of its own, those are
counted in the time as well. Accuracy is of the last weights, on the test set; nothing was chosen by it. Backprop runs
first, in the middle and last, and times are relative to the mean of its three.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from dtp.algorithms import ALGORITHMS  # noqa: E402
from dtp.algorithms.feedback_schedule import FeedbackSchedule  # noqa: E402
from dtp.algorithms.options import SingleLayerOptions  # noqa: E402
from dtp.cli.arguments import parse  # noqa: E402
from dtp.run.reading import read_metrics, read_summary  # noqa: E402

RESULT = HERE / "results" / "rules.json"
# Where a rule cannot have the very same network.
OTHER = {
    "gait": "--model square --config gait_square_digits --widths 256 256 --outputs 0 --precision 32 --gait-targets "
    "normalised --gait-step 0 --normalisation standard",
    **{rule: "--model mlp --widths 256 256" for rule in ("chl", "generec")},
}
# Where what is special to a rule is left out: its hidden layers stay random, or learn from what does.
CONTROLS = {"drtp-control": "--algo drtp --projected nothing", "ccl-control": "--algo ccl --train-feedback false"}


def deep_rules() -> list[str]:
    """Names of the rules that train classifiers of several layers."""
    options = {name: ALGORITHMS.resolve(name).load_options() for name in ALGORITHMS.names()}
    return [
        name
        for name, kind in options.items()
        if kind.tasks[0] == "classification" and not issubclass(kind, SingleLayerOptions)
    ]


def command(rule: str, mnist: str, seed: int) -> list[str]:
    network = OTHER.get(rule, "--model mlp --widths 256 256 --activation tanh").split()
    words = [*CONTROLS.get(rule, f"--algo {rule}").split(), *network, "--data", "mnist", "--batch-size", "128"]
    words += ["--seed", str(seed)]
    passes = FeedbackSchedule.of(parse(words).algo).first_epoch + 1
    last = ["--max-epochs", str(passes), "--data-dir", mnist, "--test-weights", "last", "--limit-val-batches", "0"]
    return [*words, *last, "--diagnostics-every", str(passes)]


def measure(rule: str, mnist: str, seed: int) -> dict:
    """One run: accuracies, seconds of its training batches, angles at its end, or why it failed."""
    words = command(rule, mnist, seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        done = subprocess.run(
            [sys.executable, str(HERE.parent / "main.py"), *words, "--run-dir", str(run)],
            capture_output=True,
            text=True,
        )
        shown = " ".join(["python main.py", *command(rule, "DIR", seed)])
        if done.returncode:
            return {"command": shown, "failed": done.stderr.strip().splitlines()[-1]}
        summary, metrics = read_summary(run / "summary.json"), read_metrics(run / "metrics.csv")
    rates = metrics["train/images_per_second"].values()
    angles = [list(metrics[column].values()) for column in sorted(metrics) if column.startswith("update_angle/")]
    return {
        "command": shown,
        "test_accuracy": summary["test_accuracy"],
        "passes": len(rates),
        "seconds": sum(summary["train_images"] / rate for rate in rates),
        "angles": [round(layer[-1], 1) for layer in angles],
        "first_angles": [round(layer[0], 1) for layer in angles],
        "versions": summary["versions"],
        "device": summary["device"],
        "threads": summary["threads"],
        "seed": seed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", default="data", help="folder that holds MNIST/raw")
    every = [*deep_rules(), *CONTROLS]
    parser.add_argument("--rules", nargs="*", default=every, help="all that train deep classifiers, and controls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print the table of the committed results and stop")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.table:
        print_table(json.loads(options.output.read_text()))
        return
    rules = [rule for rule in options.rules if rule != "bp"]
    middle = len(rules) // 2
    found, baseline = {}, []
    for rule in ["bp", *rules[:middle], "bp", *rules[middle:], "bp"]:
        result = measure(rule, options.mnist, options.seed)
        if rule == "bp":
            if "failed" in result:
                sys.exit(f"bp, to which times are relative: {result['failed']}")
            baseline.append(result["seconds"])
        found[rule] = result
        print(rule, {key: result.get(key) for key in ("test_accuracy", "seconds", "angles", "failed")}, flush=True)
    found["bp"]["seconds"] = sum(baseline) / len(baseline)
    for result in found.values():
        if "seconds" in result:
            result["times_bp"] = round(result["seconds"] / found["bp"]["seconds"], 2)
    options.output.write_text(json.dumps(found, indent=2) + "\n")
    print_table(found)


def print_table(found: dict[str, dict]) -> None:
    print("| rule | test accuracy | time of an epoch / bp | angles, first batch | angles, last batch |")
    print("|---|---|---|---|---|")
    for rule, result in found.items():
        if "failed" in result:
            print(f"| `{rule}` | {result['failed']} | | | |")
            continue
        angles = [", ".join(f"{angle:.0f}" for angle in result[key]) for key in ("first_angles", "angles")]
        print(f"| `{rule}` | {result['test_accuracy']:.2%} | {result['times_bp']:.1f} | {angles[0]} | {angles[1]} |")


if __name__ == "__main__":
    main()
