"""Links of Markdown that lies elsewhere in the repository: on a page that includes it they begin where the page is."""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

_TARGET = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")


def _rewrite(app: Sphinx, included: Path, page: str, content: list[str]) -> None:
    here = Path(app.srcdir)
    folder = (here / included).resolve().parent
    if folder.is_relative_to(here):
        return
    # A page that includes the target stands for it.
    pages = {(here / path).resolve(): name for path, name in app.config.included_pages.items()}

    def moved(match: re.Match[str]) -> str:
        path, _, place = match.group(1).partition("#")
        target = (folder / path).resolve()
        name = pages.get(target) or os.path.relpath(target, here)
        return f"]({name}{'#' if place else ''}{place})"

    content[0] = _TARGET.sub(moved, content[0])


def setup(app: Sphinx) -> dict:
    app.add_config_value("included_pages", {}, "env")
    app.connect("include-read", _rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
