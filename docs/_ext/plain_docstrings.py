"""Docstrings are written to be read in an editor: shapes ``(B, *shape)`` and norms ``|x|`` stand for themselves.

reStructuredText would take their stars and bars for markup; they are escaped outside code. What a paper leaves out, and
the choice made here, gets a heading.
"""

import re

from sphinx.application import Sphinx

_CODE = re.compile(r"(``.*?``|:\w+(?::\w+)*:`.*?`)")


def escape(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    block: int | None = None
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if block is not None and line.strip() and indent <= block:
            block = None
        if block is None and not line.lstrip().startswith(("..", "* ")):
            parts = _CODE.split(line)
            parts[::2] = [re.sub(r"(?<!\\)([*|])", r"\\\1", part) for part in parts[::2]]
            lines[i] = "".join(parts)
        if block is None and line.rstrip().endswith("::"):
            block = indent


def join(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Put back before its colon what napoleon has taken for the type of a property."""
    kind = next((line for line in lines if line.startswith(":type: ")), None)
    if what in ("attribute", "property") and kind:
        lines.remove(kind)
        lines[0] = f"{kind.removeprefix(':type: ')}: {lines[0]}"


def head(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Put a heading over what the paper leaves out, in the docstring of a rule."""
    for i, line in enumerate(lines):
        if what == "class" and line.startswith("Left out by the "):
            lines[i:i] = [".. rubric:: What the paper leaves out, and the choice made here", ""]
            return


def setup(app: Sphinx) -> dict:
    # Before napoleon, which makes markup of the sections.
    app.connect("autodoc-process-docstring", escape, priority=300)
    app.connect("autodoc-process-docstring", join, priority=800)
    app.connect("autodoc-process-docstring", head, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
