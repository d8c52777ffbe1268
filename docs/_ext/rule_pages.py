"""A page for every rule, written before the build from the code, the results and ``rules/rules.yaml``.

What code and results know is taken from there: docstring, options, presets, costs and figures. ``rules.yaml`` adds what
they do not: equations as formulas, what flows where, and what to cite.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import flow
import yaml
from simple_parsing.docstring import get_attribute_docstring
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from dtp.algorithms import ALGORITHMS
from dtp.cli.config import Preset, find_preset, preset_names

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RULES = HERE.parent / "rules"
RESULTS = ROOT / "benchmarks" / "results"


# Options that a table tells in other columns, or that change no result.
_TOLD = {
    "--algo",
    "--model",
    "--data",
    "--data-dir",
    "--seed",
    "--channels",
    "--widths",
    "--activation",
    "--max-epochs",
}
_TOLD |= {"--log-every", "--diagnostics-every", "--run-dir", "--test-weights", "--num-workers", "--quiet"}


def facts() -> dict[str, Any]:
    """``rules.yaml``: of each rule equations, flow and sources; and the sources."""
    return yaml.safe_load((RULES / "rules.yaml").read_text(encoding="utf-8"))


def page(name: str, known: dict[str, Any]) -> str:
    """The page of a rule, in MyST."""
    entry, fact = ALGORITHMS.entries[name], known["rules"][name]
    cls, what = entry.load(), fact.get("what", entry.summary)
    parts = [
        f"# `{name}`\n\n**{what[:1].upper()}{what[1:]}**\n\n"
        f"`--algo {name}` on the command line, `dtp.{cls.__name__}` in Python.",
        f"```{{raw}} html\n{flow.svg(**fact['flow'])}\n```",
        f"*{flow.words(**fact['flow'])}*",
        _equations(fact.get("equations", [])),
        f"```{{eval-rst}}\n.. autoclass:: {cls.__module__}.{cls.__name__}(network, **options)\n   :no-members:\n```",
        _commands(name),
        _cost(name),
        _figures(name),
        _options(entry.load_options()),
        _cite([known["sources"][key] for key in fact.get("sources", [])]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _equations(equations: list[dict[str, str]]) -> str:
    if not equations:
        return ""
    lines = ["## Equations", "Symbols are those of [all rules](index.md#symbols)."]
    for equation in equations:
        lines += [f"{equation['says']}:", f"$$\n{equation['tex'].strip()}\n$$"]
    return "\n\n".join(lines)


def presets(name: str) -> list[Preset]:
    """A rule's presets."""
    found = [find_preset(preset) for preset in preset_names() if preset.partition("_")[0] == name]
    return [preset for preset in found if preset]


def _commands(name: str) -> str:
    rows = ["| `{}` | {} |".format(preset.name, preset.origin.replace("|", "\\|")) for preset in presets(name)]
    table = "\n".join(["| preset | what it is |", "|---|---|", *rows]) if rows else ""
    text = (
        "## Presets\n\n`dtp train --config NAME` trains with one; "
        f"`dtp train --algo {name} ...` picks the one of its network and data."
    )
    return f"{text}\n\n{table}" if rows else ""


def _cost(name: str) -> str:
    costs = json.loads((RESULTS / "rules.json").read_text(encoding="utf-8"))
    found = costs.get(name)
    if found is None or "times_bp" not in found:
        return "## Cost\n\nNot measured: the rule does not train the network that costs are compared on."
    angles = ", ".join(f"{angle:g}°" for angle in found.get("angles", []) or [])
    lines = [
        "## Cost",
        "One epoch of MNIST with a fully connected network (256, 256, tanh) takes "
        f"**{found['times_bp']:g} times** that of `bp` ({found['device']}, one thread).",
    ]
    if note := found.get("note"):
        lines.append(f"{note[:1].upper()}{note[1:]}.")
    if angles and name != "bp":
        lines.append(f"Angles between its updates and those of `bp` after it, layer by layer: {angles}.")
    command = found["command"].replace("python main.py", "dtp train")
    lines.append(f"```bash\n{command}\n```")
    return "\n\n".join(lines)


def _board() -> list[dict[str, Any]]:
    return json.loads((RESULTS / "board.json").read_text(encoding="utf-8"))


def _figures(name: str) -> str:
    """Published figures of a rule with ours beside them, then those that wait for one, then ours alone."""
    rows = [row for row in _board() if row["rule"] == name]
    if not rows:
        return "## Figures\n\nThe [board](../board.md) has no figure of this rule yet, neither published nor ours."
    published = [row for row in rows if row["published"] is not None]
    published.sort(key=lambda row: row["ours"] is None)
    alone = [row for row in rows if row["published"] is None]
    lines = [
        "## Figures",
        "",
        "Test accuracies. Where ours is missing, it has not been trained yet. What differs is listed on the"
        " [board](../board.md), the command of each in [reproducing the papers](../papers.md).",
    ]
    if published:
        lines += ["", "| network | published | ours | epochs | with |", "|---|---|---|---|---|"]
        lines += [_line(_network(row), _published(row), _ours(row), _epochs(row), _settings(row)) for row in published]
    if alone:
        lines += ["", "Ours alone, controls and short runs among them:", ""]
        lines += ["| network | ours | epochs | with |", "|---|---|---|---|"]
        lines += [_line(_network(row), _ours(row), _epochs(row), _settings(row)) for row in alone]
    return "\n".join(lines)


def _network(row: dict[str, Any]) -> str:
    return f"{row['data']}: {row['network']}"


def _epochs(row: dict[str, Any]) -> str:
    """Of our run."""
    return "" if row["ours"] is None or row["epochs"] is None else f"{row['epochs']:g}"


def _settings(row: dict[str, Any]) -> str:
    """The options of our command that tell runs of one rule, network and dataset apart."""
    if row["ours"] is None or not row["command"]:
        return ""
    options = re.findall(r"--[a-z0-9-]+(?: (?!--)\S+)*", row["command"])
    told = [option for option in options if option.split()[0] not in _TOLD]
    return " ".join(f"`{option}`" for option in told)


def _published(row: dict[str, Any]) -> str:
    return "" if row["published"] is None else f"{row['published']:.2f} % ({row['source']})"


def _ours(row: dict[str, Any]) -> str:
    if row["ours"] is None:
        return ""
    deviation = "" if row["deviation"] is None else f" ± {row['deviation']:.2f}"
    seeds = ", ".join(map(str, row["seeds"]))
    return f"{row['ours']:.2f}{deviation} %" + (f" (seed {seeds})" if seeds else "")


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _papers() -> str:
    """Every published figure by its source, with ours and the command."""
    by_source: dict[str, list[dict[str, Any]]] = {}
    for row in _board():
        if row["published"] is not None:
            by_source.setdefault(row["source"], []).append(row)
    parts = []
    for source, rows in sorted(by_source.items()):
        parts += [f"### {source}", "", "| rule, network | published | ours | command |", "|---|---|---|---|"]
        for row in rows:
            command = row["command"].replace("python main.py", "dtp train")
            ours = _ours(row) or "not run yet"
            what = f"`{row['rule']}`, {row['data']}: {row['network']}"
            parts.append(_line(what, f"{row['published']:.2f} %", ours, f"`{command}`" if command else "none"))
        parts.append("")
    return "\n".join(parts)


def _options(options: type) -> str:
    """Options that the rule adds to those of all rules."""
    shared = {field.name for field in dataclasses.fields(ALGORITHMS.entries["bp"].load_options())}
    rows = _rows(options, shared)
    head = "Besides those of [all rules](index.md#options-of-all-rules). On the command line `_` is `-`."
    return f"## Options\n\n{head}\n\n{rows}" if rows else ""


def _rows(options: type, left_out: set[str]) -> str:
    rows = []
    for field in dataclasses.fields(options):
        if field.name in left_out:
            continue
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        said = " ".join(get_attribute_docstring(options, field.name).comment_above.split()).replace("|", "\\|")
        said = re.sub(r"(?<![\w`])--[a-z][\w-]*", r"`\g<0>`", said)
        rows.append(f"| `{field.name}` | `{default!r}` | {said} |")
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows]) + "\n" if rows else ""


def _table(known: dict[str, Any]) -> str:
    """All rules with their sources."""
    rows = []
    for name, entry in ALGORITHMS.entries.items():
        sources = [known["sources"][key] for key in known["rules"][name].get("sources", [])]
        by = ", ".join(f"{source['authors'].partition(',')[0]} {source['year']}" for source in sources)
        what = known["rules"][name].get("what", entry.summary)
        rows.append(f"| [`{name}`]({name}.md) | {what} | {by} |")
    return "\n".join(["| rule | what it is | source |", "|---|---|---|", *rows]) + "\n"


def _classes() -> str:
    """The class of each rule, with its page, for the page of the API."""
    rows = [
        f"| `dtp.{entry.load().__name__}` | [`{name}`](rules/{name}.md) |" for name, entry in ALGORITHMS.entries.items()
    ]
    return "\n".join(["| class | rule |", "|---|---|", *rows]) + "\n"


def _cite(sources: list[dict[str, str]]) -> str:
    if not sources:
        return ""
    lines = ["## How to cite", "The rule's paper, and [this library](../index.md#cite)."]
    for source in sources:
        lines.append(f"{source['authors']} ({source['year']}). *{source['title']}.* {source['where']}.")
    return "\n\n".join(lines)


def write(app: Sphinx) -> None:
    """Write the pages, and remove those of rules that are no more; unchanged files keep their date."""
    known = facts()
    missing = set(ALGORITHMS.entries) ^ set(known["rules"])
    if missing:
        raise ExtensionError(f"docs/rules/rules.yaml: expected every rule and no other, found a difference: {missing}.")
    pages = {RULES / f"{name}.md": page(name, known) for name in ALGORITHMS.entries}
    pages[RULES / "_table.md"] = _table(known)
    pages[RULES / "_classes.md"] = _classes()
    pages[RULES / "_papers.md"] = _papers()
    pages[RULES / "_options.md"] = _rows(ALGORITHMS.entries["bp"].load_options(), set())
    for path in RULES.glob("*.md"):
        if path not in pages and path.stem != "index":
            path.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
