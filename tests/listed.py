"""Lists of all rules in files that are read without running anything: ``python -m tests.listed`` adds what is missing.

What type checkers are told is in ``dtp``, in ``dtp/__init__.py``, and the table of rules in ``README.md``.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import dtp
from dtp.algorithms import ALGORITHMS

ROOT = Path(__file__).parent.parent
PACKAGE, README = ROOT / "dtp" / "__init__.py", ROOT / "README.md"
COMMAND = "python -m tests.listed"


def with_names(text: str) -> str:
    """``dtp/__init__.py`` with every name of the package under TYPE_CHECKING, in the order of ruff."""
    imports = sorted(
        (module, not name.isupper(), name[0].islower(), attribute, name)
        for name, (module, _, attribute) in ((name, path.partition(":")) for name, path in dtp._names().items())
    )
    lines = [f"    from {module} import {attribute} as {name}\n" for module, _, _, attribute, name in imports]
    return re.sub(r"(?<=^if TYPE_CHECKING:\n)(?:    .*\n)+", "".join(lines), text, count=1, flags=re.MULTILINE)


def rows(text: str) -> list[str]:
    """Rows of the table of rules in ``README.md``."""
    return re.findall(r"^\| `(?!--).*\n", text.partition("\n## Rules\n")[2].partition("\n## ")[0], re.MULTILINE)


def rules_of(row: str) -> list[str]:
    return re.findall(r"`([^`]+)`", row.split("|")[1])


def with_rows(text: str) -> str:
    """``README.md`` with a row for every rule: those that have none get one of what the rule is registered with, and
    of its sources in ``docs/rules/rules.yaml``. Rows that are there stay as somebody has worded them.
    """
    there = rows(text)
    named = {name for row in there for name in rules_of(row)}
    known = yaml.safe_load((ROOT / "docs" / "rules" / "rules.yaml").read_text(encoding="utf-8"))
    new = [
        f"| `{name}` | {_without_source(entry.summary)} | {_cited(known, name)} |\n"
        for name, entry in ALGORITHMS.entries.items()
        if name not in named
    ]
    return text.replace(there[-1], "".join([there[-1], *new]))


def _without_source(summary: str) -> str:
    return re.sub(r" \([^()]*\)$", "", summary)


def _cited(known: dict, name: str) -> str:
    """Sources of a rule as a text cites them."""
    sources = [known["sources"][key] for key in known["rules"].get(name, {}).get("sources", [])]
    return ", ".join(f"{_by(source['authors'].split(', ')[::2])} {source['year']}" for source in sources)


def _by(authors: list[str]) -> str:
    return " and ".join(authors) if len(authors) <= 2 else f"{authors[0]} et al."


if __name__ == "__main__":
    for path, completed in ((PACKAGE, with_names), (README, with_rows)):
        text = path.read_text(encoding="utf-8")
        if completed(text) != text:
            path.write_text(completed(text), encoding="utf-8")
            print(f"{path.relative_to(ROOT)} written.")
