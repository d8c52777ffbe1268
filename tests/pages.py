"""The pages of the documentation and the README, their blocks, and the commands that they name."""

import re
import shlex
from pathlib import Path

from dtp.algorithms import ALGORITHMS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
# Made when the site is built.
MADE = {f"rules/{name}.md" for name in [*ALGORITHMS.names(), "_table", "_classes", "_options", "_papers"]}
PAGES = {name: text for name, text in PAGES.items() if name not in MADE and "_build" not in name}
# Included in pages of the site.
RESULTS = {
    f"../benchmarks/results/{path.name}": path.read_text()
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.md"))
}
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[tuple[str, str]]:
    """Fenced blocks of a language, each with the line before it where that is a comment."""
    return re.findall(rf"(?:^([%<][^\n]*)\n)?^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> dict[tuple[str, ...], str]:
    """The words of each line of a block of commands, by the first page that has it.

    So are those of ``dtp`` in a sentence where it stands without placeholders. Blocks are left out that say why they
    are not run, and those of the README that a test of their own runs (test_readme.py).
    """
    found: dict[tuple[str, ...], str] = {}
    for name, text in {**PAGES, "README.md": README}.items():
        shown = [block for comment, block in blocks(text, "bash") if not comment.startswith(("% not run:", "<!--"))]
        lines = [line for block in shown for line in block.splitlines()]
        lines += [said for said in re.findall(r"`(dtp \w+ [^`]+)`", text) if not re.search(r"[A-Z]{2}|\.\.\.", said)]
        for line in lines:
            if words := tuple(shlex.split(line, comments=True)):
                found.setdefault(words, name)
    return found


# What lies in files for commands that name them.
OWN_RULE = blocks(PAGES["own-rule.md"], "python")[0][1]
OWN_NETWORK_AND_DATA = next(text for _, text in blocks(PAGES["own-rule.md"], "python") if "ImageData" in text)
OWN_SWEEPS = {
    "my_sweep.yaml": blocks(PAGES["experiments.md"], "yaml")[0][1],
    "runs/two-rules.yaml": PAGES["notebooks/sweep.md"].split('"""')[1],
}
