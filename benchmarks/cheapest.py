"""Test accuracy against total cost of DTP with L-DRL: fewer feedback iterations, routing, warm feedback, early stops.

    python benchmarks/cheapest.py --study small-vgg --data-dir DIR --jobs 2
    python benchmarks/cheapest.py --study mnist --data-dir DIR
    python benchmarks/cheapest.py --study small-vgg --table

For VGG, DIR holds images in train/CLASS/ and test/CLASS/; for MNIST, MNIST/raw.

Every setting is trained by the command line, for the same number of batches and with the same seeds. Settings are to be
compared by validation accuracy; the test accuracy of the last weights is reported. The cost of a batch is counted in
multiply-adds of convolutions and products: 4 U for each feedback iteration of a layer of U (the reduced form), 3 U for
forward, local gradient and backprop's second backward pass alike; ``cost`` is the ratio to a batch of bp.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from dtp.cli.arguments import parse
from dtp.models import MODELS
from dtp.run.reading import read_metrics, read_summary

HERE = Path(__file__).parent
# Jobs add their results to one file.
WRITING = threading.Lock()

PUBLISHED_ITERATIONS, PUBLISHED_RATES = (20, 30, 35, 55, 20), (1e-4, 3.5e-4, 8e-3, 8e-3, 0.18)


def vgg(iterations: tuple[int, ...], more: str = "", steeper: float = 1.0) -> str:
    """Fewer iterations at rates that are higher in proportion: the same sum of rates per batch, times ``steeper``."""
    rates = [
        rate * published / count * steeper
        for rate, published, count in zip(PUBLISHED_RATES, PUBLISHED_ITERATIONS, iterations, strict=True)
    ]
    counts = " ".join(map(str, iterations))
    return f"--algo dtp --feedback-iterations {counts} --feedback-lr {' '.join(f'{rate:.3g}' for rate in rates)} {more}"


FIFTH, TENTH = (4, 6, 7, 11, 4), (2, 3, 4, 6, 2)
# Layers whose feedback sees many positions per image need few iterations; those near the output need more.
BY_POSITIONS = {
    "2.5": (2, 5, 35, 55, 20),
    "3.5": (2, 5, 20, 30, 15),
    "5": (2, 4, 12, 20, 10),
    "10": (1, 2, 6, 10, 5),
    "20": (1, 1, 3, 5, 3),
}
WARM = "--feedback-warmup 4"
SMALL_VGG = {
    "bp": "--algo bp",
    "published": vgg(PUBLISHED_ITERATIONS),
    "published, fixed": vgg(PUBLISHED_ITERATIONS, "--routing fixed"),
    "fifth, warm": vgg(FIFTH, WARM),
    "fifth, warm, fixed": vgg(FIFTH, WARM + " --routing fixed"),
    "by positions 2.5, warm": vgg(BY_POSITIONS["2.5"], WARM),
    "by positions 3.5, warm": vgg(BY_POSITIONS["3.5"], WARM),
    "by positions 5, warm": vgg(BY_POSITIONS["5"], WARM),
    "by positions 10, warm": vgg(BY_POSITIONS["10"], WARM),
    "by positions 5, warm, fixed": vgg(BY_POSITIONS["5"], WARM + " --routing fixed"),
    "by positions 10, symmetric": vgg(BY_POSITIONS["10"], "--feedback-init symmetric"),
    "by positions 20, symmetric": vgg(BY_POSITIONS["20"], "--feedback-init symmetric"),
    "stop at distance 0.4": vgg(PUBLISHED_ITERATIONS, "--feedback-stop-distance 0.4"),
    "stop at distance 0.2, fixed": vgg(PUBLISHED_ITERATIONS, "--feedback-stop-distance 0.2 --routing fixed"),
    "stop at distance 0.1, fixed": vgg(PUBLISHED_ITERATIONS, "--feedback-stop-distance 0.1 --routing fixed"),
    "by positions 5, adam, warm": vgg(BY_POSITIONS["5"], WARM + " --feedback-optimizer adam").partition(
        "--feedback-lr"
    )[0]
    + f"--feedback-lr 1e-3 {WARM} --feedback-optimizer adam",
}


def mlp(iterations: int, more: str = "", steeper: float = 1.0) -> str:
    return f"--algo dtp --feedback-iterations {iterations} --feedback-lr {0.025 * 20 / iterations * steeper:.3g} {more}"


MNIST = {
    "bp": "--algo bp",
    "preset": mlp(20),
    **{f"{count} iterations": mlp(count) for count in (10, 5, 2, 1)},
    **{f"{count} iterations, same rates": mlp(count, steeper=count / 20) for count in (10, 5, 2, 1)},
    "stop at distance 0.2": mlp(20, "--feedback-stop-distance 0.2"),
    "stop at distance 0.4": mlp(20, "--feedback-stop-distance 0.4"),
}
STUDIES = {
    "small-vgg": (
        SMALL_VGG,
        "--model vgg --channels 32 32 64 64 128 --data imagefolder --data-dir {dir} --config {algo}_vgg_cifar10 "
        "--max-epochs 1 --limit-train-batches 300 --log-every 50 --test-weights last",
    ),
    "small-vgg-long": (
        SMALL_VGG,
        "--model vgg --channels 32 32 64 64 128 --data imagefolder --data-dir {dir} --config {algo}_vgg_cifar10 "
        "--max-epochs 4 --lr-period 4 --log-every 50 --test-weights last",
    ),
    "vgg": (
        SMALL_VGG,
        "--model vgg --data imagefolder --data-dir {dir} --config {algo}_vgg_cifar10 --max-epochs 4 "
        "--limit-train-batches 10 --limit-val-batches 8 --log-every 10 --test-weights last",
    ),
    "mnist": (MNIST, "--model mlp --data mnist --data-dir {dir} --max-epochs 5 --test-weights last"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, default="small-vgg")
    parser.add_argument("--settings", nargs="*", help="some of the settings; default: all")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each if more than one")
    parser.add_argument("--runs", type=Path, default=Path("runs/cheapest"))
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/cheapest-STUDY.json")
    parser.add_argument("--table", action="store_true", help="print the committed results as a Markdown table")
    options = parser.parse_args()
    output = options.output or HERE / "results" / f"cheapest-{options.study}.json"
    settings, common = STUDIES[options.study]
    if unknown := [name for name in options.settings or () if name not in settings]:
        parser.error(f"--settings: expected some of {', '.join(settings)}; found {', '.join(unknown)}")
    wanted = {name: settings[name] for name in options.settings or settings}
    if not options.table:
        with ThreadPoolExecutor(options.jobs) as pool:
            jobs = [
                pool.submit(run, options, name, words, common, seed, output)
                for seed in options.seeds
                for name, words in wanted.items()
            ]
        for job in jobs:
            # Raises what stopped it.
            job.result()
    print_table(json.loads(output.read_text()))


def run(options: argparse.Namespace, name: str, words: str, common: str, seed: int, output: Path) -> None:
    """Train one setting, unless it has been, and add its result to the file."""
    algo = words.split()[1]
    command = f"{words} {common.format(dir='DIR', algo=algo)} --seed {seed}"
    folder = options.runs / options.study / f"{name}-seed{seed}".replace(" ", "_").replace(",", "")
    argv = [*command.replace("DIR", options.data_dir).split(), "--run-dir", str(folder), "--resume", "auto"]
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if options.jobs > 1 else {})}
    done = subprocess.run(
        [sys.executable, str(HERE.parent / "main.py"), *argv], env=environment, capture_output=True, text=True
    )
    result = {"setting": name, "seed": seed, "command": f"python main.py {command}"}
    if done.returncode == 2 and "diverged" in done.stderr:
        result["diverged"] = done.stderr.strip().splitlines()[-1]
    elif done.returncode:
        print(name, done.stderr[-2000:], file=sys.stderr)
        return
    else:
        result.update(read_run(folder, argv))
    with WRITING:
        results = json.loads(output.read_text()) if output.is_file() else []
        results = [r for r in results if (r["setting"], r["seed"]) != (name, seed)] + [result]
        output.write_text("[\n" + ",\n".join(json.dumps(r) for r in results) + "\n]\n")
    print(name, seed, result.get("diverged") or f"{result['val_accuracy']:.2%}", flush=True)


def read_run(folder: Path, argv: list[str]) -> dict:
    summary, metrics = read_summary(folder / "summary.json"), read_metrics(folder / "metrics.csv")

    def last(prefix: str) -> list[float]:
        return [round(list(series.values())[-1], 1) for name, series in metrics.items() if name.startswith(prefix)]

    steps = [c for c in metrics if c.startswith("train/feedback_steps") and c.endswith("epoch")]
    taken = [statistics.mean(metrics[c].values()) for c in steps]
    return {
        "val_accuracy": list(metrics["val/accuracy"].values())[-1],
        "test_accuracy": summary["test_accuracy"],
        "batches": summary["steps"],
        "cost": round(cost(argv, taken), 2),
        "update_angle": last("update_angle"),
        "feedback_angle": last("feedback_angle"),
        **({"iterations": [round(value, 1) for value in taken]} if taken else {}),
        "wall_seconds": summary["wall_seconds"],
        "threads": summary["threads"],
        "device": summary["device"],
        "versions": summary["versions"],
    }


def cost(argv: list[str], taken: list[float]) -> float:
    """Multiply-adds of a batch relative to one of bp. ``taken``: mean iterations per layer, where layers stop early."""
    config = parse(argv)
    shape = (1, 28, 28) if config.run.data == "mnist" else (3, 32, 32)
    network = MODELS.resolve(config.run.model).load()(config.model, shape, 10)
    units = []
    for n in range(1, network.depth + 1):
        module = next(m for m in network[n] if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
        positions = network.shapes[n - 1][1:].numel() if isinstance(module, torch.nn.Conv2d) else 1
        units.append(module.weight.numel() * positions)
    # Backprop does not carry the error to the image.
    backprop = 3 * sum(units) - units[0]
    if config.run.algo == "bp":
        return 1.0
    iterations = taken or config.algo.feedback_iterations
    iterations = iterations * (len(units) - 1) if len(iterations) == 1 else iterations
    # Forward pass and local gradients (2 U), one affine feedback map for the target (U), the feedback iterations (4 U);
    # the one at which a layer stops is computed too.
    stops = 4 if taken else 0
    feedback = sum((4 * k + 1 + stops) * unit for k, unit in zip(iterations, units[1:], strict=True))
    return (2 * sum(units) + feedback) / backprop


def print_table(results: list[dict]) -> None:
    print("| setting | seeds | cost of a batch / bp | validation | test | update angles, degrees |")
    print("|---|---|---|---|---|---|")
    for name in dict.fromkeys(r["setting"] for r in results):
        same = [r for r in results if r["setting"] == name]
        if any("diverged" in r for r in same):
            print(f"| {name} | {len(same)} | | diverged | | |")
            continue
        mean = {key: statistics.mean(r[key] for r in same) for key in ("cost", "val_accuracy", "test_accuracy")}
        angles = ", ".join(f"{angle:.0f}" for angle in same[0]["update_angle"])
        print(
            f"| {name} | {len(same)} | {mean['cost']:.1f} | {mean['val_accuracy']:.2%} | {mean['test_accuracy']:.2%} | "
            f"{angles} |"
        )


if __name__ == "__main__":
    main()
