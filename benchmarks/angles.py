"""Draw the angle between a rule's updates and backprop's, by layer, from run folders side by side.

python benchmarks/angles.py --output FIGURE.png "TITLE=RUN_FOLDER" "TITLE=RUN_FOLDER"
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dtp.run.reading import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="TITLE=FOLDER")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    figure = Figure(figsize=(4.2 * len(options.runs), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(options.runs), sharey=True, squeeze=False)[0]
    for axis, run in zip(axes, options.runs, strict=True):
        title, _, folder = run.partition("=")
        metrics = read_metrics(Path(folder) / "metrics.csv")
        layers = [column for column in metrics if column.startswith("update_angle/")]
        colours = matplotlib.colormaps["viridis"]
        for i, column in enumerate(layers):
            points = list(metrics[column].items())
            colour = colours(i / max(len(layers) - 1, 1) * 0.9)
            axis.plot(*zip(*points, strict=True), color=colour, label=f"layer {column.rpartition('layer')[2]}", lw=1.6)
        axis.set(title=title, xlabel="batches", ylim=(0, None), xlim=(0, None))
        axis.axhline(90, color="0.7", lw=0.8, ls=":")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("angle of update to backprop's (degrees)")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(options.output, dpi=130)


if __name__ == "__main__":
    main()
