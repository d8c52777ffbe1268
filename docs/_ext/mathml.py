"""Formulas as MathML, which browsers draw by themselves: no script, and no address outside the site."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.math import get_node_equation_number, wrap_displaymath

# A bar is an operator to browsers, which put space around it; here it is one side of a norm.
_BAR = '<mo stretchy="false">&#x0007C;</mo>'


def mathml(tex: str, display: str = "inline") -> str:
    # Names such as softmax are one word, upright; letter by letter they would be read as a product.
    text = convert(re.sub(r"\\mathrm\{(\w+)\}", r"\\text{\1}", tex), display=display)
    return text.replace(_BAR, _BAR.replace("<mo ", '<mo lspace="0" rspace="0" '))


def visit_math(self, node: nodes.math) -> None:
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(self, node: nodes.math_block) -> None:
    text = node.astext()
    if "\\\\" in text and "\\begin" not in text:
        text = wrap_displaymath(text, None, False).replace("split", "aligned")
    number = f'<span class="eqno">({get_node_equation_number(self, node)})</span>' if node["number"] else ""
    self.body.append(f'<div class="math">{number}{mathml(text, "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("config-inited", lambda app, config: setattr(config, "html_math_renderer", "mathml"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
