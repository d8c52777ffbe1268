"""Narrow pages: names break after an underscore, options nowhere; figures of several panels keep their size."""

import re
import struct
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

_CODE = re.compile(r'(<code class="[^"]*docutils literal[^"]*">)(.*?)(</code>)')
_IMAGE = re.compile(r'<img (?=[^>]*src="[^"]*_images/([^"]+\.png)")')
# A figure that is wider than this, in pixels and relative to its height, is no longer readable on a phone as a whole.
WIDTH, RATIO = 1000, 1.6


def is_wide(path: Path) -> bool:
    """Whether a PNG is a figure of several panels side by side."""
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width > WIDTH and width > RATIO * height


def broken(code: str) -> str:
    """The words of inline code: names may break after an underscore, options nowhere, not after a hyphen either."""
    return code.replace("_", "_<wbr>").replace('<span class="pre">--', '<span class="pre flag">--')


def adapt(app: Sphinx, page: str, template: str, context: dict, tree: nodes.document | None) -> None:
    if tree is None or "body" not in context:
        return
    body = _CODE.sub(lambda m: m[1] + broken(m[2]) + m[3], context["body"])
    sources = {name: Path(app.srcdir, source) for source, name in app.builder.images.items()}
    context["body"] = _IMAGE.sub(lambda m: '<img class="wide" ' if is_wide(sources[m[1]]) else m[0], body)


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", adapt)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
