"""Scores of heads and MLPs, and faithfulness of circuits, as figures."""

import seaborn
from matplotlib.axes import Axes

from gimkit.circuits import NodeScores
from gimkit.circuits.faithfulness import rank_correlation
from gimkit.circuits.metric import UNITS
from gimkit.plots.style import BLUE, DARK, DIVERGING, ORANGE, _axes, _equal_axes, _name_points, _plain, method_colour


def node_grid(scores: NodeScores, ax: Axes | None = None, most: float | None = None) -> Axes:
    """Heads and MLPs as a grid, a row for each layer, the MLP in the last column; blue helps the answer, orange hurts.

    >>> ax = node_grid(gimkit.score_nodes(model, task, method="gim"))

    The cells are means over examples, with numbers when the grid is at most 12 x 12. The embedding ("input") has no
    layer and is left out, and so are queries, keys and values.

    Args:
        scores: of the heads and MLPs of one model.
        ax: matplotlib axes; made when None.
        most: the end of the colour scale, for grids that are compared; the largest |score| when None.

    Returns:
        The matplotlib axes.
    """
    table = scores.frame().query("kind in ('head', 'mlp')").copy()
    heads = int(table["head"].max()) + 1
    table["column"] = table["head"].where(table["kind"] == "head", heads)
    grid = table.pivot(index="layer", columns="column", values="score")
    grid.columns = [*range(heads), "MLP"]
    small = max(grid.shape) <= 12
    ax = _axes(ax, 2.2 + (0.6 if small else 0.3) * grid.shape[1], 1.2 + (0.45 if small else 0.25) * len(grid))
    most = most or max(float(grid.abs().to_numpy().max()), 1e-12)
    seaborn.heatmap(grid, ax=ax, cmap=DIVERGING, vmin=-most, vmax=most, annot=small, fmt=".2f", linewidths=0.5,
                    annot_kws={"size": 9}, cbar_kws={"label": f"score ({UNITS.get(scores.metric, 'unit unknown')})"})
    ax.axvline(heads, color="white", linewidth=5)
    ax.invert_yaxis()  # the network is drawn from the bottom up
    ax.tick_params(axis="both", length=0)
    ax.tick_params(axis="y", labelrotation=0)
    ax.set(xlabel="head", ylabel="layer", title=_plain(f"{scores.method}: heads and MLPs on {scores.task}"))
    return ax


def method_scatter(scores: NodeScores, exact: NodeScores, ax: Axes | None = None) -> Axes:
    """A method's node scores against exact patching; on the dashed diagonal both agree.

    >>> ax = method_scatter(nodes, gimkit.score_nodes(model, task, method="exact"))

    The nodes with the largest |score| by exact patching are named where there is room. The title has Spearman's rank
    correlation with its bootstrap interval (`gimkit.circuits.rank_correlation`).

    Args:
        scores, exact: of the same nodes and examples.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.

    Raises:
        GimkitError: nodes or examples differ.
    """
    rho = rank_correlation(scores, exact)
    table = exact.frame().assign(method_score=scores.scores.tolist()).query("kind in ('head', 'mlp')")
    ax = _axes(ax, 5.0, 4.4)
    for kind, name, colour, marker in (("head", "head", BLUE, "o"), ("mlp", "MLP", ORANGE, "s")):
        part = table[table["kind"] == kind]
        ax.scatter(part["score"], part["method_score"], color=colour, marker=marker, s=32, label=name,
                   edgecolor="white", linewidth=0.6, zorder=3)
    _equal_axes(ax, table["score"], table["method_score"])
    ax.set(xlabel=f"exact patching ({UNITS.get(exact.metric, 'unit unknown')})",
           ylabel=_plain(f"{scores.method} ({UNITS.get(scores.metric, 'unit unknown')})"),
           title=f"{_plain(f'{scores.method} on {exact.task}')}\nSpearman's ρ = {rho}")
    ax.legend(frameon=True, loc="lower right")
    order = table["score"].abs().sort_values(ascending=False).index
    _name_points(ax, table.loc[order[:8], ["score", "method_score", "node"]].to_numpy().tolist(),
                 table[["score", "method_score"]].to_numpy())
    return ax


def faithfulness_curves(curves: list, ax: Axes | None = None) -> Axes:
    """How much of the model's behaviour circuits of growing size keep, a line for each curve; 1 is the whole model.

    >>> ax = faithfulness_curves([curve, gimkit.faithfulness(model, task[:16], edges, absolute=False)])

    The x axis is the requested share of all edges. Each method has a colour; lines are dashed where circuits were cut
    by |score|.

    Args:
        curves: `Curve`s of `gimkit.faithfulness`.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.
    """
    ax = _axes(ax, 6.5, 4.0)
    for curve in curves:
        ax.plot(curve.shares, curve.faithfulness, "o--" if curve.absolute else "o-", color=method_colour(curve.method),
                markersize=4, label=_plain(curve.label))
    for level in (0, 1):
        ax.axhline(level, color=DARK, linewidth=0.8, linestyle=":")
    ax.set(xscale="log", xlabel="share of all edges", ylabel="faithfulness", title="What the circuits keep")
    ax.legend(frameon=True, fontsize=9)
    return ax
