"""Auto-encoders, fine-tuning and rules of one layer on MNIST, each through the command line as a user would start it.

    python benchmarks/autoencoders.py --mnist DIR               DIR holds MNIST/raw; about half an hour on one core
    python benchmarks/autoencoders.py --mnist DIR --collect     results of the runs that are there

Run folders lie under --runs; one that is finished is not repeated, one that was interrupted goes on. Results are
``results/autoencoders/``: results.json, figures of the auto-encoders of Bartunov et al. by rule, pictures of weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from dtp.run.reading import read_metrics, read_summary

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
RESULTS = HERE / "results" / "autoencoders"
RULES = {"bp": "backprop", "dtp": "DTP, L-DRL", "sdtp": "SDTP", "vanilla-dtp": "DTP (Lee)"}
# Prototypes that start far from all images, and what may be done for those that never win.
FAR = "--algo competitive --first-prototypes weights --pull batch --lr 0.5"
TUNED = "--config bp_mlp_mnist_fine-tuning --max-epochs 4"
EXPERIMENTS = {
    "hebb": "--algo hebb",
    "delta": "--algo delta",
    "hebb-clustering": "--algo hebb --task clustering",
    "competitive": "--algo competitive",
    "competitive-dead": f"{FAR} --revive-below 0",
    "competitive-conscience": f"{FAR} --revive-below 0 --conscience 200",
    "competitive-revived": FAR,
    "dae": "--algo dtp-dae --model tied-autoencoder --max-epochs 3",
    "fine-tuned": f"{TUNED} --init-weights {{runs}}/dae",
    "from-random": TUNED,
    "tied-bp": "--algo bp --model tied-autoencoder --task autoencoder --max-epochs 3",
    # As many batches for each rule.
    **{
        f"ae-{rule}": f"--algo {rule} --task autoencoder --model mlp --max-epochs 3 --limit-train-batches 200 "
        "--diagnostics-every 3"
        for rule in RULES
    },
}
# Pictures that are kept, by the name of the result.
PICTURES = {
    "dae-filters": "dae/filters.png",
    "dae-reconstructions": "dae/reconstructions.png",
    "competitive-prototypes": "competitive/filters.png",
    "hebb-weights": "hebb/filters.png",
}
KEPT = (
    "task val_loss val_accuracy test_accuracy test_loss test_mse test_purity test_nmi epochs steps seed tested_weights "
    "parameters device threads versions"
).split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", default="data", help="folder that holds MNIST/raw")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/autoencoders"), help="where run folders are")
    parser.add_argument("--collect", action="store_true", help="train nothing")
    options = parser.parse_args()
    common = ["--data", "mnist", "--data-dir", options.mnist]
    for name, words in EXPERIMENTS.items() if not options.collect else ():
        command = [sys.executable, str(HERE.parent / "main.py"), *words.format(runs=options.runs).split(), *common]
        subprocess.run([*command, "--run-dir", str(options.runs / name), "--resume", "auto"], check=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    found = {name: summary(name, options.runs / name) for name in EXPERIMENTS}
    results = {name: values for name, values in found.items() if values}
    (RESULTS / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for name, picture in PICTURES.items():
        if (options.runs / picture).is_file():
            shutil.copyfile(options.runs / picture, RESULTS / f"{name}.png")
    runs = {rule: options.runs / f"ae-{rule}" for rule in RULES if f"ae-{rule}" in results}
    if runs:
        draw_curves(runs)
        draw_reconstructions(runs, options.mnist)


def summary(name: str, folder: Path) -> dict | None:
    """What the run's summary says of its result, with the command; None if it is not finished."""
    values = read_summary(folder / "summary.json")
    if values is None:
        return None
    words = EXPERIMENTS[name].format(runs="RUNS")
    command = f"python main.py {words} --data mnist --data-dir DIR"
    # Without the digits that differ from one machine to the next.
    return {"command": command} | {
        key: round(values[key], 5) if isinstance(values[key], float) else values[key] for key in KEPT if key in values
    }


def draw_curves(runs: dict[str, Path]) -> None:
    """Reconstruction error of the training batches against batches, by rule."""
    from dtp.plots.style import color, counted, finish, legend_beside, new_figure, plot_line, save_figure

    figure, (axes,) = new_figure(1, 1, (6.4, 3.4))
    for i, (rule, folder) in enumerate(runs.items()):
        errors = read_metrics(folder / "metrics.csv")["train/mse"]
        plot_line(axes, list(errors), list(errors.values()), color(i), RULES[rule])
    axes.set_title("Auto-encoder 784-512-64-512-784, MNIST", loc="left")
    axes.set_ylabel("mean squared error of a pixel")
    counted(axes, "batches of 128 images")
    axes.set_ylim(bottom=0)
    finish(axes)
    legend_beside(axes)
    save_figure(figure, RESULTS / "curves.png")


def draw_reconstructions(runs: dict[str, Path], mnist: str) -> None:
    """Test images above what each rule's network makes of them, with the weights that were tested."""
    import torch

    from dtp.cli.arguments import parse
    from dtp.diagnostics.images import draw_rows
    from dtp.run.building import build

    rows = {}
    for rule, folder in runs.items():
        data, algorithm = build(parse(["--config", str(folder), "--data-dir", mnist]))
        best = torch.load(folder / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)
        algorithm.load_state_dict(best["state_dict"])
        algorithm.eval()
        x, y = next(iter(data.test_dataloader()))
        x = x[:14]
        with torch.no_grad():
            made = algorithm.task.view(algorithm(x))
        rows.setdefault("images", algorithm.task.goal(x, y).view_as(x))
        rows[RULES[rule]] = made.view_as(x)
    draw_rows(rows, "Test images and their reconstructions through 64 units", RESULTS / "reconstructions.png")


if __name__ == "__main__":
    main()
