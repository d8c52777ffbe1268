"""Every rule on one network, each with the same search: the tuned comparison, as one command that goes on.

    python benchmarks/tuned.py --study mnist --data-dir DIR --jobs 2
    python benchmarks/tuned.py --study fashion-mnist --data-dir DIR --jobs 2
    python benchmarks/tuned.py --study cifar10 --data imagefolder --data-dir DIR --jobs 2
    python benchmarks/tuned.py --study mnist --data-dir DIR --rules bp dtp --limit-train-batches 5 --runs runs/dry

Protocol: a sequential search (TPE, ten random trials first) of the rule's own domain, judged by the
validation images alone; the best setting is trained with three seeds, and its weights that are best on validation are
tested once. mnist and fashion-mnist: 784-256-256-10, tanh, batches of 128, 20 trials of 3 epochs, then 20 epochs.
cifar10: LeNet, 10 trials of 2 epochs, then 10 epochs, for the rules that take convolutions, dtp sampled and expected.
Epochs are those that train the forward weights: rules whose phases alternate have as many of the feedback besides.
Domains that Bartunov et al. 2018 print end at rates of 3e-4, below their own best values; here they end at 1e-2, so
that no rule, backprop among them, is held back by its domain. bp has the same search: of Adam's values, and as bp-sgd
of the rate and decay that dtp has. So have fa and dfa, as fa-sgd and dfa-sgd of those that the sign rules have. Where a
rule cannot have the very same network: chl and generec have sigmoids, gait square orthogonal layers, fw-dtp no biases
and standardisation.

RUNS/STUDY/search/RULE are the searches, RUNS/STUDY/best/RULE.yaml what they found, RUNS/STUDY/final a sweep of the
runs that count, RUNS/STUDY/report.md and .json the comparison: accuracy, cost, angles to backprop. tuned-STUDY.json
holds it in short, with the values found and the spread of each search's trials, how much a rule depends on being
tuned. Other options are those of main.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from dtp.algorithms import ALGORITHMS  # noqa: E402
from dtp.algorithms.feedback_schedule import FeedbackSchedule  # noqa: E402
from dtp.cli.arguments import parse  # noqa: E402
from dtp.cli.config import as_arguments  # noqa: E402
from dtp.experiments.search.space import domain  # noqa: E402
from dtp.run.provenance import without_places  # noqa: E402

SHARED = "--batch-size 128 --val-size 5000 --normalisation standard --precision 32"
MLP = f"--model mlp --widths 256 256 --activation tanh --init xavier --last-hidden-bias true {SHARED}"
LENET = f"--model lenet --activation tanh --init xavier --flip true --crop-padding 4 {SHARED}"
# Networks of rules that cannot have that of the others.
OWN_NETWORK = {
    "chl": f"{MLP} --activation sigmoid",
    "generec": f"{MLP} --activation sigmoid",
    "gait": f"--model square --config gait_square_digits --widths 256 256 --outputs 0 {SHARED} --gait-step 0 "
    "--gait-targets normalised",
    "fw-dtp": f"{MLP} --bias false --init orthogonal --standardise all",
}
# What presets of published runs on one of the datasets set, and others do not.
MEULEMANS = "--schedule sequential --feedback-warmup-epochs 0 --extra-feedback-epochs 0"
AS_EVERYWHERE = {
    **dict.fromkeys(("drl", "ddtp-linear", "ddtp-rhl", "ddtp-control"), MEULEMANS),
    "vanilla-dtp": "--schedule alternating",
    "dfa": "--beta 1 --local-loss-scale 1",
}
# Their presets for Fashion-MNIST are published ones, of another network and with much feedback training before.
AS_ON_MNIST = {"dfc", "dfc-ss", "dfc-ssa", "strong-dfc", "ccl"}
# Other tasks, or a single layer: no rule for this network.
LEFT_OUT = {"hebb", "delta", "competitive", "dtp-dae"}
NOT_ON_CONVOLUTIONS = {"gait", "chl", "generec", "fw-dtp"}
EXPECTED = "--probes expected --routing fixed"
# Feedback that stays the product of the weights above, with nothing to search for.
FIXED = (
    "--feedback-init symmetric --feedback-iterations 0 --schedule sequential "
    "--feedback-lr 0.001 --feedback-weight-decay 0 --noise 0.01"
)
# Entrants whose domain is that of another rule, as far as they have its options.
DOMAIN_OF = {"bp-sgd": "dtp", "fa-sgd": "usf", "dfa-sgd": "usf"}
STUDIES = {
    "mnist": {"network": MLP, "data": "mnist", "trials": 20, "epochs": 3, "final": 20},
    "fashion-mnist": {"network": MLP, "data": "fashion-mnist", "trials": 20, "epochs": 3, "final": 20},
    "cifar10": {"network": LENET, "data": "cifar10", "trials": 10, "epochs": 2, "final": 10},
}


def entrants(study: str) -> dict[str, str]:
    """Options of main.py by name: every rule, and variants of some that differ much in cost or optimizer."""
    rules = [name for name in ALGORITHMS.names() if name not in LEFT_OUT]
    if study == "cifar10":
        rules = [name for name in rules if name not in NOT_ON_CONVOLUTIONS]
    network = STUDIES[study]["network"]
    found = {name: f"{OWN_NETWORK.get(name, network)} --algo {name} {AS_EVERYWHERE.get(name, '')}" for name in rules}
    if network == MLP:
        found |= {name: f"{found[name]} {as_on_mnist(name)}" for name in AS_ON_MNIST}
        found["dfc-ssa-fixed"] = f"{found['dfc-ssa']} {FIXED}"
    found["dtp-expected"] = f"{network} --algo dtp {EXPECTED}"
    found["bp-sgd"] = f"{network} --algo bp --beta2 0 --eps"
    for name in ("fa", "dfa"):
        found[f"{name}-sgd"] = f"{found[name]} --backward-init xavier --beta2 0 --eps"
    return found


def as_on_mnist(rule: str) -> str:
    """The rule's options on MNIST, without those that are searched for."""
    options = vars(parse(["--algo", rule, "--model", "mlp", "--data", "mnist"]).algo)
    searched = domain("", rule).as_dict()
    return shlex.join(as_arguments({name: value for name, value in options.items() if name not in searched}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--study", choices=STUDIES, required=True)
    parser.add_argument("--rules", nargs="+", help="some of them; default: all")
    parser.add_argument("--trials", type=int, help="of each search; default: the protocol's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/tuned"))
    options, words = parser.parse_known_args()
    study, folder = STUDIES[options.study], options.runs / options.study
    every = entrants(options.study)
    unknown = set(options.rules or ()) - set(every)
    if unknown:
        parser.error(f"--rules: expected some of {', '.join(every)}, found {', '.join(sorted(unknown))}.")
    data = [] if "--data" in words else ["--data", study["data"]]
    variants = {}
    for name in options.rules or every:
        own = shlex.split(every[name])
        rule = own[own.index("--algo") + 1]
        factor = 2 if FeedbackSchedule.of(parse(["--data", study["data"], *own]).algo).alternating else 1
        preset = folder / "best" / f"{name}.yaml"
        preset.parent.mkdir(parents=True, exist_ok=True)
        search = [
            *("-m dtp search --sampler sequential --sampler-seed 0 --diagnostics-every 0").split(),
            *("--trials", str(options.trials or study["trials"]), "--jobs", str(options.jobs)),
            *("--max-epochs", str(factor * study["epochs"]), "--study", str(folder / "search" / name)),
            *("--space", str(widened(name, rule, folder)), *data, *own, "--lr-schedule", "constant", *words),
        ]
        python(*search, *([] if preset.is_file() else ["--write-preset", str(preset)]))
        variants[name] = {"config": str(preset), "max_epochs": factor * study["final"]}
    sweep = folder / "final.yaml"
    content = {
        "title": f"Every rule with the same search: {options.study}",
        "variants": variants,
        "seeds": [0, 1, 2],
        "figure": {"kind": "final", "metric": "test/accuracy"},
    }
    sweep.write_text("# " + (__doc__ or "").splitlines()[0] + "\n" + yaml.safe_dump(content, sort_keys=False))
    python("-m", "dtp", "sweep", str(sweep), "--output", str(folder / "final"), "--jobs", str(options.jobs), *words)
    report = folder / "report.md"
    python(
        "-m",
        "dtp",
        "report",
        str(folder / "final"),
        "--output",
        str(report),
        "--json",
        str(report.with_suffix(".json")),
    )
    short = folder / f"tuned-{options.study}.json"
    short.write_text(json.dumps(in_short(folder, list(variants), sys.argv[1:]), indent=1) + "\n", encoding="utf-8")
    print(f"{report} and {short} written.")


def widened(name: str, rule: str, folder: Path) -> Path:
    """The rule's domain, its rates up to 1e-2 where those that Bartunov et al. print end at 3e-4."""
    path = folder / "spaces" / f"{name if name in DOMAIN_OF else rule}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    space = domain("", DOMAIN_OF.get(name, rule))
    narrow, wide = {"log-uniform": [1e-5, 3e-4]}, {"log-uniform": [1e-5, 1e-2]}
    known = ALGORITHMS.resolve(rule).load_options().__dataclass_fields__
    content = {key: wide if value == narrow else value for key, value in space.as_dict().items() if key in known}
    path.write_text(f"# {space.origin}\n{yaml.safe_dump(content, sort_keys=False)}", encoding="utf-8")
    return path


def in_short(folder: Path, names: list[str], words: list[str]) -> dict[str, Any]:
    """The comparison by entrant, in the order of test accuracy, and what it was made with."""
    (study,) = json.loads((folder / "report.json").read_text(encoding="utf-8"))["studies"]
    groups = {run["run"].partition("/")[0]: group for group in study["groups"] for run in group["runs"]}
    abouts = [run["about"] for group in groups.values() for run in group["runs"] if run["about"]]
    rules = {}
    for name in sorted((n for n in names if groups[n]["test"]), key=lambda n: -groups[n]["test"]["mean"]):
        group = groups[name]
        best = yaml.safe_load((folder / "best" / f"{name}.yaml").read_text(encoding="utf-8"))
        searched = json.loads((folder / "search" / name / "study.json").read_text(encoding="utf-8"))
        rules[name] = {
            "network": group["network"],
            "test_accuracy": group["test"],
            "update_angles": group["angles"]["update_angle"],
            "optimizer": best["optimizer"],
            "found": {key: best[key] for key in searched["trials"][0]["options"]},
            "trials": spread(searched["trials"]),
        }
    command = ["python", "benchmarks/tuned.py", "--study", folder.name, *without_places(words)]
    made_with = {key: sorted({about[key] for about in abouts}) for key in abouts[0]}
    return {"command": " ".join(command), **made_with, "rules": rules}


def spread(trials: list[dict[str, Any]]) -> dict[str, float | int | None]:
    """How the trials of a search ended, in validation accuracy: best, quartiles, worst; and how many diverged."""
    values = sorted(trial["value"] for trial in trials if trial["value"] is not None)
    quarters = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [None] * 3
    return {
        "trials": len(trials),
        "finished": len(values),
        "best": values[-1] if values else None,
        "upper_quartile": quarters[2],
        "median": median(values) if values else None,
        "lower_quartile": quarters[0],
        "worst": values[0] if values else None,
    }


def python(*words: str) -> None:
    """A command of this project; it stops the script if it fails, and goes on when the script is started again."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), os.getenv("PYTHONPATH")])),
    }
    print("python", *words, flush=True)
    subprocess.run([sys.executable, *words], check=True, env=environment)


if __name__ == "__main__":
    main()
