"""Methods compared, as figures: matplotlib axes, nothing computed here but means."""

import math

import pandas
import seaborn
from matplotlib import pyplot

from gimkit.plots import DARK, _plain


def faithfulness_by_edges(curves: pandas.DataFrame, axes=None) -> list:
    """Faithfulness against the number of edges, a panel per task and a line per method.

    >>> axes = faithfulness_by_edges(pandas.DataFrame({"task": "ioi", "method": "GIM", "requested": [1, 10, 100],
    ...                                                "faithfulness": [0.1, 0.8, 1.0]}))

    curves: columns task, method, requested (edges asked for, before dead ends are pruned) and faithfulness. Where a
    method has several rows of one size (seeds), the line is their mean and the band goes from the lowest to the
    highest. Sizes of no edge, which have faithfulness 0, are left out, for the axis is logarithmic.
    axes: a matplotlib axes for each task, made when None. Returns the axes.
    Source: the comparison figure of arXiv 2502.06852 (EAP-GP).
    """
    names, methods = list(dict.fromkeys(curves["task"])), list(dict.fromkeys(curves["method"]))
    if axes is None:
        columns = min(3, len(names))
        rows = math.ceil(len(names) / columns)
        with seaborn.axes_style("whitegrid"):
            _, grid = pyplot.subplots(rows, columns, figsize=(1 + 3.6 * columns, 0.5 + 2.9 * rows), sharex=True,
                                      squeeze=False, layout="constrained")
        axes, spare = list(grid.flat)[:len(names)], list(grid.flat)[len(names):]
        for ax in spare:
            ax.set_axis_off()
    for ax, name in zip(axes, names):
        part = curves[(curves["task"] == name) & (curves["requested"] > 0)]
        ax.axhline(1, color=DARK, linestyle="--", linewidth=0.9)
        seaborn.lineplot(part, x="requested", y="faithfulness", hue="method", style="method", hue_order=methods,
                         style_order=methods, markers=True, dashes=False, palette="colorblind",
                         errorbar=("pi", 100), ax=ax, legend=ax is axes[0])
        ax.set(xscale="log", xlabel="edges asked for", ylabel="faithfulness", title=_plain(name))
        ax.tick_params(labelbottom=True)
    axes[0].legend(frameon=True, title=None, loc="lower right")
    return axes
