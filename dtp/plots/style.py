"""The common style of figures, and how they are saved as small files. Needs no display, changes no global state.

Matplotlib is imported only when a figure is made, because the import takes a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtp.system.files import replaced_when_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
# Inches of one panel.
PANEL = (4.9, 3.1)
# Largest angle of a panel in degrees, and the distance of its ticks.
_ANGLE_TICKS = {10: 2, 30: 5, 60: 10, 105: 15, 125: 30, 185: 30}


def new_figure(
    rows: int, columns: int, panel: tuple[float, float] = PANEL, pad: float = 0.1
) -> tuple[Figure, list[Axes]]:
    """A figure of ``rows`` by ``columns`` panels of ``panel`` inches each, and its panels, row by row.

    Args:
        pad: inches around each panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(panel[0] * columns, panel[1] * rows), dpi=DPI, layout="constrained")
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=pad, h_pad=pad)
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def new_panels(count: int, columns: int, **settings: Any) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels in as many columns, as :func:`new_figure`; what is left of the last row is empty."""
    figure, panels = new_figure(-(-count // columns), columns, **settings)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` to the PNG ``path`` in 256 colours, replaced in one step; an error leaves an older one."""
    import numpy as np
    from PIL import Image

    figure.canvas.draw()
    # 256 colours are plenty for lines on white, and a third of the bytes.
    canvas: Any = figure.canvas
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256)
    with replaced_when_whole(path) as temporary:
        picture.save(temporary, format="png", optimize=True, dpi=(DPI, DPI))


def color(i: int) -> Any:
    """Colour of the i-th thing compared, i = 0, 1, ...; they repeat after ten."""
    from matplotlib import colormaps

    return colormaps["tab10"](i % 10)


def layer_color(n: int, depth: int) -> Any:
    """Colour of layer n of ``depth``, counted from 1: dark at the bottom, light at the top; of 0, the input, grey."""
    from matplotlib import colormaps

    if n < 1:
        return "0.6"
    # Without the palest end, which would vanish on white.
    return colormaps["viridis"](0.9 * (n - 1) / max(depth - 1, 1))


def plot_line(axes: Axes, x: Sequence[float], y: Sequence[float], color: Any, label: str | None, **style: Any) -> None:
    """A line; of few values also their points, for a single one would not be seen."""
    marker = "o" if len(x) <= 12 else None
    axes.plot(
        list(x), list(y), **{"marker": marker, "markersize": 4, "linewidth": 1.5, **style}, color=color, label=label
    )


def plot_spread(
    axes: Axes,
    x: Sequence[float],
    mean: Sequence[float],
    deviation: Sequence[float],
    color: Any,
    label: str | None,
    **style: Any,
) -> None:
    """A line of means in a band of one standard deviation to either side."""
    low, high = ([m + sign * d for m, d in zip(mean, deviation, strict=True)] for sign in (-1, 1))
    plot_range(axes, x, low, mean, high, color, label, **style)


def plot_range(
    axes: Axes,
    x: Sequence[float],
    low: Sequence[float],
    middle: Sequence[float],
    high: Sequence[float],
    color: Any,
    label: str | None,
    **style: Any,
) -> None:
    """A line in a band from ``low`` to ``high``."""
    axes.fill_between(list(x), list(low), list(high), color=color, alpha=0.2, linewidth=0)
    plot_line(axes, x, middle, color, label, **style)


def degrees(axes: Axes, highest: float, across: bool = False) -> None:
    """Make the vertical axis one of angles from 0 to ``highest`` degrees, with room and round ticks.

    Args:
        across: the horizontal axis, which shows 90 degrees in any case, with a line there.
    """
    from matplotlib.ticker import MultipleLocator

    top = next((top for top in _ANGLE_TICKS if max(highest, 90 if across else 0) <= 0.95 * top), 185)
    # A little below zero, so that a perfect angle is not drawn on the frame.
    which, ends = "x" if across else "y", (-0.03 * top, top)
    axes.set(**{f"{which}label": "degrees (90: unrelated)", f"{which}lim": ends})
    (axes.xaxis if across else axes.yaxis).set_major_locator(MultipleLocator(_ANGLE_TICKS[top]))
    if across:
        axes.axvline(90, color="0.75", linewidth=0.8, linestyle=":")


def legend_beside(axes: Axes, title: str | None = None, **style: Any) -> None:
    """The legend to the right of the panel, where it hides nothing."""
    axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, **style)


def counted(axes: Axes, name: str) -> None:
    """Make the horizontal axis one of ``name``, a count from 0, with a few round ticks."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.set_xlabel(name)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def finish(axes: Axes) -> None:
    """Pale grid behind the lines, no frame above and to the right."""
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
