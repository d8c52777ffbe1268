"""What flows where in a rule, drawn in one style for all: a vector graphic in the colours of the page."""

from __future__ import annotations

from html import escape

# Positions: the input and three layers, in columns; activations in the upper row, what comes back in the lower one.
LEFT, STEP, TOP, BOTTOM, SIZE = 60, 130, 62, 158, 17
COLUMNS = 4

_WAY = {
    "layers": "from each layer to the one below",
    "output": "from the output straight to every layer",
    "labels": "straight to every layer",
    "input": "from the output to the input, whose second pass the layers compare with the first",
    "both": "through the layers both ways until they settle",
    "none": "nowhere: each layer learns from what it sees",
}
_THROUGH = {
    "learned": "learned feedback weights",
    "fixed": "fixed random weights",
    "transposed": "the transposed forward weights",
    "signs": "the signs of the forward weights",
    "inverse": "the inverse of the forward map",
    "none": "",
}


def words(carries: str, way: str, through: str, note: str = "") -> str:
    """The drawing in a sentence, which is also its alternative text."""
    if way == "none":
        text = "Forward: activations from layer to layer. Back: nothing; each layer learns from what it sees."
    else:
        by = f", through {_THROUGH[through]}" if _THROUGH[through] else ""
        text = f"Forward: activations from layer to layer. Back: {carries} {_WAY[way]}{by}."
    return f"{text} {note}".strip()


def svg(carries: str, way: str, through: str, note: str = "") -> str:
    """The drawing.

    Args:
        carries: what comes back, in the plural: targets, errors, ...
        way: see ``_WAY``.
        through: kind of feedback weights, see ``_THROUGH``: learned ones are solid lines, fixed ones dashed.
        note: a further sentence for the text.
    """
    title = escape(words(carries, way, through, note))
    x = [LEFT + STEP * n for n in range(COLUMNS)]
    symbol = {"targets": "t", "errors": "e", "controls": "u"}.get(carries, "δ")
    parts = [
        _arrow(x[n] + SIZE, TOP, x[n + 1] - SIZE, TOP, "forward", f"F<tspan {_SUB}>{n + 1}</tspan>")
        for n in range(COLUMNS - 1)
    ]
    style = "fixed" if through in ("fixed", "signs") else "back"
    out = x[-1]
    if way == "layers":
        for n in range(COLUMNS - 1, 1, -1):
            parts.append(_arrow(x[n] - SIZE, BOTTOM, x[n - 1] + SIZE, BOTTOM, style, f"G<tspan {_SUB}>{n}</tspan>"))
    elif way in ("output", "labels"):
        # Labels come from beside the network, not from its output.
        start = (out, BOTTOM + SIZE) if way == "output" else (out + 62, (TOP + BOTTOM) / 2 + 12)
        for n in range(1, COLUMNS - 1):
            parts.append(_curve(*start, x[n], BOTTOM + SIZE, style, 26 + 22 * (COLUMNS - 2 - n)))
    elif way == "input":
        parts.append(_curve(out, BOTTOM + SIZE, x[0], BOTTOM + SIZE, style, 48))
    elif way == "both":
        for n in range(COLUMNS - 1, 1, -1):
            parts.append(_curve(x[n], TOP - SIZE, x[n - 1], TOP - SIZE, style, -26))
    if way not in ("none", "both"):
        first = 0 if way == "input" else 1
        for n in range(first, COLUMNS):
            if way == "input" and 0 < n < COLUMNS - 1:
                continue
            parts.append(_node(x[n], BOTTOM, symbol, n, "target"))
            if n:
                parts.append(_arrow(x[n], BOTTOM - SIZE, x[n], TOP + SIZE, "learn", ""))
        said = "label" if way == "labels" else "loss"
        parts.append(_text(out + 62, (TOP + BOTTOM) / 2 + 4, said))
        if way != "labels":
            parts.append(_arrow(out + SIZE, TOP + 6, out + 52, (TOP + BOTTOM) / 2 - 10, "thin", ""))
        parts.append(_arrow(out + 52, (TOP + BOTTOM) / 2 + 10, out + SIZE, BOTTOM - 6, "thin", ""))
    parts += [_node(x[n], TOP, "x" if n == 0 else "s", n, "activation") for n in range(COLUMNS)]
    height = 250 if way in ("output", "labels", "input") else (200 if way not in ("none", "both") else 110)
    width = x[-1] + 110
    return (
        f'<svg class="flow" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{_MARKERS}{''.join(parts)}</svg>"
    )


_SUB = 'class="sub" dy="4"'
_MARKERS = (
    "<defs>"
    + "".join(
        f'<marker id="head-{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path class="head {kind}" d="M0 0 L8 4 L0 8 z"/></marker>'
        for kind in ("forward", "back", "fixed", "learn", "thin")
    )
    + "</defs>"
)


def _arrow(x1: float, y1: float, x2: float, y2: float, kind: str, label: str) -> str:
    line = f'<path class="line {kind}" d="M{x1} {y1} L{x2} {y2}" marker-end="url(#head-{kind})"/>'
    return line + (_text((x1 + x2) / 2, y1 - 10, label) if label else "")


def _curve(x1: float, y1: float, x2: float, y2: float, kind: str, depth: float) -> str:
    return (
        f'<path class="line {kind}" d="M{x1} {y1} C{x1} {y2 + depth} {x2} {y2 + depth} {x2} {y2}" '
        f'marker-end="url(#head-{kind})"/>'
    )


def _node(x: float, y: float, symbol: str, n: int, kind: str) -> str:
    sub = f"<tspan {_SUB}>{n}</tspan>" if symbol != "x" else ""
    return f'<circle class="node {kind}" cx="{x}" cy="{y}" r="{SIZE}"/>' + _text(x, y + 5, f"{symbol}{sub}")


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="middle">{text}</text>'
