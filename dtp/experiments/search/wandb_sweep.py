"""The same search as a sweep of Weights & Biases, which proposes the values. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dtp.cli.commands import command_words
from dtp.cli.config import as_arguments
from dtp.errors import UserError
from dtp.experiments.search.space import Parameter, Space
from dtp.experiments.search.study import OBJECTIVES

METHODS = {"random": "random", "sequential": "bayes"}
# Values that stand for a range of whole numbers, evenly in their logarithm, which W&B knows as fractions alone.
LADDER = 16


def write_wandb_sweep(
    path: Path, space: Space, given: dict[str, Any], objective: str, sampler: str, trials: int
) -> None:
    """Write the YAML file that ``wandb sweep`` takes; its agents call dtp train.

    W&B judges a run by the last value of the objective, not by the best.

    Raises:
        UserError: a choice is a list, which W&B cannot put on a command line; or the file cannot be written.
    """
    for name, parameter in space.parameters.items():
        if any(isinstance(value, list) for value in parameter.values):
            raise UserError(
                f"--wandb-sweep: {name} of the domain has lists for choices, and W&B passes single values alone; "
                "take it out of the domain."
            )
    fixed = {"logger": "wandb", **given}
    first, second = command_words("train")
    # A script of the checkout is Python's, the command is a program of its own.
    program, start = (
        (second, ["${interpreter}", "${program}"]) if first == "python" else (first, ["${program}", second])
    )
    content = {
        "program": program,
        "name": "_".join(str(given[name]) for name in ("algo", "model", "data")),
        "description": space.origin,
        "method": METHODS[sampler],
        "run_cap": trials,
        "metric": {"name": objective, "goal": OBJECTIVES[objective]},
        "parameters": {
            **{name: {"value": value} for name, value in space.fixed.items() if not isinstance(value, list)},
            **{name: _parameter(parameter) for name, parameter in space.parameters.items()},
        },
        # Lists cannot be values of a parameter; they are words of the command, as is what the user has said.
        "command": [
            *["${env}", *start],
            *as_arguments({name: value for name, value in space.fixed.items() if isinstance(value, list)}),
            *as_arguments(fixed),
            "${args}",
        ],
    }
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=False, width=110)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(f"# wandb sweep {path.name}, then wandb agent, where the command is installed.\n{text}")
    except OSError as error:
        raise UserError(f"--wandb-sweep {path}: cannot be written ({error.strerror}); give another name.") from error


def _parameter(parameter: Parameter) -> dict[str, Any]:
    if parameter.kind == "choice":
        return {"values": list(parameter.values)}
    low, high = parameter.values
    if parameter.kind == "log-integer":
        return {"values": sorted({round(low * (high / low) ** (i / (LADDER - 1))) for i in range(LADDER)})}
    names = {"log-uniform": "log_uniform_values", "uniform": "uniform", "integer": "int_uniform"}
    return {"distribution": names[parameter.kind], "min": low, "max": high}
