"""What flows where in a rule, drawn in one style for all: a vector graphic in the colours of the page."""

from __future__ import annotations

from html import escape

# Positions: the input and the layers, in columns; activations in the upper row, what comes back in the lower one.
LEFT, STEP, TOP, BOTTOM, SIZE = 60, 130, 62, 158, 17
WIDTH = LEFT + 3 * STEP + 110

_WAY = {
    "layers": "from each layer to the one below",
    "output": "from the output straight to every layer",
    "hidden": "from the output, through one random hidden layer, straight to every layer",
    "labels": "straight to every layer",
    "input": "from the output to the input, whose second pass the layers compare with the first",
    "both": "through the layers both ways until they settle",
    "control": "from a controller, which sees the error of the output, into every layer, the output layer too",
    "single": "to the one layer that there is",
    "none": "nothing",
}
_THROUGH = {
    "learned": "learned feedback weights",
    "fixed": "fixed random weights",
    "transposed": "the transposed forward weights",
    "signs": "the signs of the forward weights",
    "inverse": "the inverse of the forward map",
    "none": "",
}


def words(carries: str, way: str, through: str, note: str = "", **_: object) -> str:
    """The drawing in a sentence, which is also its alternative text."""
    up = "from layer to layer" if way not in ("single", "none") else "from the input to a single layer"
    if way == "none":
        back = "nothing; the layer learns from what it sees"
    else:
        by = f", through {_THROUGH[through]}" if _THROUGH[through] else ""
        back = f"{carries} {_WAY[way]}{by}"
    return f"Forward: activations {up}. Back: {back}. {note}".strip()


def svg(
    carries: str,
    way: str,
    through: str,
    note: str = "",
    depth: int = 3,
    source: str = "loss",
    control: dict[str, str] | None = None,
) -> str:
    """The drawing.

    Args:
        carries: what comes back, in the plural: targets, errors, ...
        way: see ``_WAY``.
        through: kind of feedback weights, see ``_THROUGH``: learned ones are solid lines, fixed ones dashed.
        note: a further sentence for the text.
        depth: number of layers.
        source: what the first target or error is made of; ``loss`` stands for the output and the label.
        control: of the way ``control``: ``aim`` (where the output is led), ``law`` (of the control) and ``when`` (the
            layers learn).
    """
    title = escape(words(carries, way, through, note))
    depth = 1 if way in ("single", "none") else depth
    x = [LEFT + STEP * n for n in range(depth + 1)]
    symbol = {"targets": "t", "errors": "e", "the error": "e", "the label": "b"}.get(carries, "δ")
    parts = [_arrow(x[n] + SIZE, TOP, x[n + 1] - SIZE, TOP, "forward", _symbol("F", n + 1)) for n in range(depth)]
    style = "fixed" if through in ("fixed", "signs") else "back"
    out = x[-1]
    if way == "control":
        parts += _controller(x, **control or {})
    elif way == "layers":
        letter = "B" if carries == "errors" else "G"
        after = "−1" if through == "inverse" else ("⊤" if through == "transposed" else "")
        for n in range(depth, 1, -1):
            label = _symbol("F" if after else letter, n, after)
            parts.append(_arrow(x[n] - SIZE, BOTTOM, x[n - 1] + SIZE, BOTTOM, style, label))
    elif way in ("output", "labels", "hidden"):
        # Labels come from beside the network, not from its output.
        start = (out + 62, (TOP + BOTTOM) / 2 + 12) if way == "labels" else (out, BOTTOM + SIZE)
        if way == "hidden":
            hidden = BOTTOM + 56
            parts += [_arrow(out, BOTTOM + SIZE, out, hidden - SIZE, "fixed", ""), _node(out, hidden, "u", 0, "target")]
            start = (out - SIZE, hidden)
        for n in range(1, depth):
            parts.append(_curve(*start, x[n], BOTTOM + SIZE, style, 26 + 22 * (depth - 1 - n), bend=way != "hidden"))
    elif way == "input":
        parts.append(_curve(out, BOTTOM + SIZE, x[0], BOTTOM + SIZE, style, 48))
    elif way == "both":
        for n in range(depth, 1, -1):
            parts.append(_curve(x[n], TOP - SIZE, x[n - 1], TOP - SIZE, style, -26))
    if way not in ("none", "both", "control"):
        for n in [0, depth] if way == "input" else range(1, depth + 1):
            parts.append(_node(x[n], BOTTOM, symbol, n, "target"))
            if n:
                parts.append(_arrow(x[n], BOTTOM - SIZE, x[n], TOP + SIZE, "learn", ""))
        parts.append(_text(out + 62, (TOP + BOTTOM) / 2 + 4, source))
        if source == "loss":
            parts.append(_arrow(out + SIZE, TOP + 6, out + 52, (TOP + BOTTOM) / 2 - 10, "thin", ""))
        parts.append(_arrow(out + 52, (TOP + BOTTOM) / 2 + 10, out + SIZE, BOTTOM - 6, "thin", ""))
    state = "r" if way == "control" else "s"
    parts += [_node(x[n], TOP, state if n else "x", n, "activation") for n in range(depth + 1)]
    tall = {"output": 225, "hidden": 245, "labels": 225, "input": 225, "both": 110, "none": 110, "control": 232}
    return (
        f'<svg class="flow" viewBox="0 0 {WIDTH} {tall.get(way, 195)}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{_MARKERS}{''.join(parts)}</svg>"
    )


def _controller(x: list[int], aim: str, law: str, when: str) -> list[str]:
    """A box below the output, with the error that it sees, its control into every layer, and its law."""
    out, top, half = x[-1], BOTTOM - 4, 92
    parts = [
        f'<rect class="node target" x="{out - half}" y="{top}" width="{2 * half}" height="36" rx="6"/>',
        _text(out, top + 23, law),
        _text(out, top + 56, when),
        # The error: where the output is, and where it is to be.
        _arrow(out + 10, TOP + SIZE, out + 10, top - 2, "thin", ""),
        _text(out + 78, TOP + 22, aim),
        _arrow(out + 78, TOP + 30, out + 50, top - 2, "thin", ""),
        _arrow(out - 12, top, out - 12, TOP + SIZE, "back", ""),
        _text(out - 30, (top + TOP + SIZE) / 2 + 4, _symbol("Q", len(x) - 1)),
    ]
    for n in range(1, len(x) - 1):
        y = top + 18 if n > 1 else top + 26
        parts.append(
            f'<path class="line back" d="M{out - half} {y} C{x[n]} {y} {x[n]} {y} {x[n]} {TOP + SIZE}" '
            'marker-end="url(#head-back)"/>'
        )
        parts.append(_text(x[n] - 18, (top + TOP + SIZE) / 2 + 4, _symbol("Q", n)))
    return parts


def _symbol(letter: str, n: int, after: str = "") -> str:
    """A letter with its number below, and what stands above."""
    above = f'<tspan class="sub" dy="-10">{after}</tspan>' if after else ""
    return f"{letter}<tspan {_SUB}>{n}</tspan>{above}"


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


def _curve(x1: float, y1: float, x2: float, y2: float, kind: str, depth: float, bend: bool = True) -> str:
    """A curve that ends upwards or, with a negative ``depth``, downwards; without ``bend`` it begins sideways."""
    begin = f"{x1} {y2 + depth}" if bend else f"{x2} {y1}"
    return (
        f'<path class="line {kind}" d="M{x1} {y1} C{begin} {x2} {y2 + depth} {x2} {y2}" '
        f'marker-end="url(#head-{kind})"/>'
    )


def _node(x: float, y: float, symbol: str, n: int, kind: str) -> str:
    sub = f"<tspan {_SUB}>{n}</tspan>" if symbol not in ("x", "u") else ""
    return f'<circle class="node {kind}" cx="{x}" cy="{y}" r="{SIZE}"/>' + _text(x, y + 5, f"{symbol}{sub}")


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="middle">{text}</text>'
