"""Long names in tables break after an underscore, on a phone, rather than in the middle of a word."""

import re

from docutils import nodes
from sphinx.application import Sphinx

_CODE = re.compile(r'(<code class="[^"]*docutils literal[^"]*">)(.*?)(</code>)')


def breaks(app: Sphinx, page: str, template: str, context: dict, tree: nodes.document | None) -> None:
    if tree is not None and "body" in context:
        context["body"] = _CODE.sub(lambda m: m[1] + m[2].replace("_", "_<wbr>") + m[3], context["body"])


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", breaks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
