"""The comparison of edge methods as a figure."""

import math

import pandas
import seaborn
from matplotlib import pyplot

from gimkit.errors import GimkitError
from gimkit.plots.style import DARK, _plain, method_colour

DRAWN = {"gradient": "EAP", "ig-inputs": "EAP-IG", "gp": "EAP-GP", "gim": "GIM"}


def faithfulness_by_edges(curves: pandas.DataFrame, axes=None) -> list:
    """Faithfulness against the number of edges, a panel per task and a line per method.

    >>> axes = faithfulness_by_edges(pandas.DataFrame({"task": "ioi", "method": "GIM", "requested": [1, 10, 100],
    ...                                                "faithfulness": [0.1, 0.8, 1.0]}))

    Where a method has several rows of one size (seeds), the line is their mean and the band goes from the lowest to the
    highest. Sizes of no edge, which have faithfulness 0, are left out, because the axis is logarithmic.

    Args:
        curves: columns task, method, requested (the number of edges before dead ends are pruned) and faithfulness.
        axes: a matplotlib axes for each task; made when None.
    Returns:
        The axes.
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
                         style_order=methods, markers=True, dashes=False,
                         palette=[method_colour(method) for method in methods],
                         errorbar=("pi", 100), ax=ax, legend=ax is axes[0])
        ax.set(xscale="log", xlabel="edges asked for", ylabel="faithfulness", title=_plain(name))
        ax.tick_params(labelbottom=True)
    axes[0].legend(frameon=True, title=None, loc="lower right")
    return axes


def drawing(curves: pandas.DataFrame):
    """EAP-GP's comparison: faithfulness by number of edges for EAP, EAP-IG, EAP-GP and GIM on six tasks.

    >>> curves = pandas.DataFrame({"model": "mini-llama", "task": "ioi", "method": "gim", "ranking": "absolute",
    ...                            "seed": 0, "requested": [1, 10, 100], "faithfulness": [0.1, 0.8, 1.0]})
    >>> figure, rows, text = drawing(curves)

    Args:
        curves: of `benchmarks.compare.curves`; its first six tasks are drawn, with absolute ranking.
    Returns:
        The matplotlib figure, the rows that it shows, and its alternative text.
    Raises:
        GimkitError: none of these methods is there.
    """
    chosen = curves[curves.task.isin(curves.task.unique()[:6]) & curves.method.isin(list(DRAWN))
                    & (curves.ranking == "absolute")]
    if chosen.empty:
        raise GimkitError(f"nothing to draw: the figure is of {', '.join(DRAWN)} with absolute ranking")
    chosen = chosen.sort_values("method", key=lambda names: names.map(list(DRAWN).index), kind="stable")
    chosen = chosen.assign(method=chosen.method.map(DRAWN))
    axes = faithfulness_by_edges(chosen)
    away = (1 - chosen.faithfulness).abs().groupby([chosen.task, chosen.method], sort=False).mean()
    listed = "; ".join(f"{task}: " + ", ".join(f"{method} {value:.2f}" for method, value in part.droplevel(0).items())
                     for task, part in away.groupby(level=0, sort=False))
    alt = (f"Faithfulness against number of edges on {chosen.model.iloc[0]}, a panel per task, a line per method, mean "
           f"over draws of prompts ({chosen.seed.nunique()}). Mean distance from 1 over the sizes: {listed}.")
    return axes[0].figure, chosen, alt
