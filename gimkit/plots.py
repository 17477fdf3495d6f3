"""Results as matplotlib axes, and figures as files. Nothing here computes a score or prints."""

from itertools import product
from pathlib import Path

import matplotlib
import numpy
import pandas
import seaborn
from matplotlib import pyplot
from matplotlib.transforms import Bbox

from gimkit.circuits import rank_correlation
from gimkit.circuits.scores import METRICS
from gimkit.errors import GimkitError
from gimkit.files import whole, write_table, write_text

BLUE, ORANGE, GREEN, PINK, GREY = (seaborn.color_palette("colorblind")[i] for i in (0, 1, 2, 4, 7))
DIVERGING = seaborn.blend_palette([ORANGE, "#f7f7f7", BLUE], as_cmap=True)  # orange against, blue for
DARK = "#333333"


def token_bars(scores, ax=None):
    """A bar per token, blue for the target and orange against it.

    >>> ax = token_bars(gimkit.attribute(model, "Mary drove to the farm with John. John lent a map to", "Mary"))

    scores: `TokenScores`, [seq] in logits; a token that comes twice has two bars. ax: matplotlib axes, made when None.
    Returns the axes.
    """
    ax = _axes(ax, min(24.0, max(4.0, 1.2 + 0.42 * len(scores.tokens))), 3.2)
    values = numpy.asarray(scores.scores, dtype=float)
    positions = range(len(values))
    ax.bar(positions, values, color=[BLUE if value > 0 else ORANGE for value in values], width=0.8)
    ax.axhline(0, color=DARK, linewidth=0.8)
    room = 72 * ax.get_window_extent().width / ax.figure.dpi / len(values)  # points per token
    ax.set_xticks(positions, [_plain(token) for token in scores.tokens], fontsize=min(10.0, max(4.0, 0.8 * room)),
                  rotation=60, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.7, len(values) - 0.3)
    ax.grid(False, axis="x")
    ax.set(xlabel="", ylabel="score (logits)", title=_plain(f"{scores.method}: what speaks for {scores.target!r}"))
    return ax


def node_grid(scores, ax=None):
    """Heads and MLPs as a grid, a row per layer, the MLP in the last column; blue helps the answer, orange hurts.

    >>> ax = node_grid(gimkit.score_nodes(model, task, method="gim"))

    scores: `NodeScores`; the cells are means over examples, with numbers when the grid is at most 12 x 12.
    The embedding ("input") has no layer and is left out, as are queries, keys and values. ax: matplotlib axes, made
    when None. Returns the axes.
    """
    table = scores.frame().query("kind in ('head', 'mlp')").copy()
    heads = int(table["head"].max()) + 1
    table["column"] = table["head"].where(table["kind"] == "head", heads)
    grid = table.pivot(index="layer", columns="column", values="score")
    grid.columns = [*range(heads), "MLP"]
    small = max(grid.shape) <= 12
    ax = _axes(ax, 2.2 + (0.6 if small else 0.3) * grid.shape[1], 1.2 + (0.45 if small else 0.25) * len(grid))
    most = max(float(grid.abs().to_numpy().max()), 1e-12)
    seaborn.heatmap(grid, ax=ax, cmap=DIVERGING, vmin=-most, vmax=most, annot=small, fmt=".2f", linewidths=0.5,
                    annot_kws={"size": 8}, cbar_kws={"label": f"score ({METRICS[scores.metric]})"})
    ax.axvline(heads, color="white", linewidth=5)
    ax.invert_yaxis()  # the network is drawn from the bottom up
    ax.tick_params(axis="both", length=0)
    ax.tick_params(axis="y", labelrotation=0)
    ax.set(xlabel="head", ylabel="layer", title=_plain(f"{scores.method}: heads and MLPs on {scores.task}"))
    return ax


def method_scatter(scores, exact, ax=None):
    """A method's node scores against exact patching; on the dashed diagonal both agree.

    >>> ax = method_scatter(nodes, gimkit.score_nodes(model, task, method="exact"))

    scores, exact: `NodeScores` of the same nodes and examples. The nodes that exact patching finds most important are
    named, as far as names find room. The title holds Spearman's rank correlation with its bootstrap interval
    (`gimkit.rank_correlation`).
    ax: matplotlib axes, made when None. Returns the axes.
    Raises GimkitError when nodes or examples differ.
    """
    rho = rank_correlation(scores, exact)
    table = exact.frame().assign(method_score=scores.scores.tolist()).query("kind in ('head', 'mlp')")
    ax = _axes(ax, 5.0, 4.4)
    for kind, name, colour, marker in (("head", "head", BLUE, "o"), ("mlp", "MLP", ORANGE, "s")):
        part = table[table["kind"] == kind]
        ax.scatter(part["score"], part["method_score"], color=colour, marker=marker, s=32, label=name,
                   edgecolor="white", linewidth=0.6, zorder=3)
    ax.margins(0.12)
    ax.axline((0, 0), slope=1, color=DARK, linestyle="--", linewidth=0.9)
    ax.set(xlabel=f"exact patching ({METRICS[exact.metric]})",
           ylabel=_plain(f"{scores.method} ({METRICS[scores.metric]})"),
           title=f"{_plain(f'{scores.method} against exact patching on {exact.task}')}\nSpearman's ρ = {rho}")
    ax.legend(frameon=True, loc="lower right")
    order = table["score"].abs().sort_values(ascending=False).index
    _name_points(ax, table.loc[order[:8], ["score", "method_score", "node"]].to_numpy().tolist(),
                 table[["score", "method_score"]].to_numpy())
    return ax


def faithfulness_curves(curves, ax=None):
    """How much of the model's behaviour circuits of growing size keep, a line per curve; 1 is the whole model.

    >>> ax = faithfulness_curves([curve, gimkit.faithfulness(model, task[:16], edges, absolute=False)])

    curves: list of `Curve`; dashed where circuits were cut by |score|, a colour per method. The x axis is the requested
    share of all edges. ax: matplotlib axes, made when None. Returns the axes.
    """
    ax = _axes(ax, 6.5, 4.0)
    colours = dict(zip(dict.fromkeys(curve.method for curve in curves), seaborn.color_palette("colorblind", 10)))
    for curve in curves:
        ax.plot(curve.shares, curve.faithfulness, "o--" if curve.absolute else "o-", color=colours[curve.method],
                markersize=4, label=_plain(curve.label))
    for level in (0, 1):
        ax.axhline(level, color=DARK, linewidth=0.8, linestyle=":")
    ax.set(xscale="log", xlabel="share of all edges", ylabel="faithfulness", title="What the circuits keep")
    ax.legend(frameon=True, fontsize=8)
    return ax


def rule_changes(frame, ax=None):
    """A bar per set of rules: how far it moves the gradient away from the plain one.

    >>> ax = rule_changes(pandas.DataFrame({"rules": ["norm", "norm + gate"], "change": [0.31, 0.42]}))

    frame: columns rules (names) and change (|g_rules - g_plain| / |g_plain|), drawn from top to bottom in its order.
    ax: matplotlib axes, made when None. Returns the axes.
    """
    ax = _axes(ax, 5.5, 1.0 + 0.27 * len(frame))
    bars = ax.barh(range(len(frame)), frame["change"], color=BLUE, height=0.75)
    ax.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    ax.set_yticks(range(len(frame)), [_plain(rules) for rules in frame["rules"]])
    ax.invert_yaxis()
    ax.margins(x=0.2, y=0.01)
    ax.grid(False, axis="y")
    ax.set(xlabel="relative change of the gradient", ylabel="", title="What the rules change")
    return ax


def saturation_effects(scores=(6, 6, 0, 0, 0), values=(10, 10, 0, 0, 0), temperature: float = 2.0) -> pandas.DataFrame:
    """How far the output of one softmax row falls as its first two scores are lowered, in truth and by gradient.

    >>> effects = saturation_effects()
    >>> at_ablation = effects.query("share == 1 and lowered == 'both'")
    >>> at_ablation.set_index("by")["effect"].round(2).to_dict()
    {'truth': 1.16, 'sum of single': 0.07, 'gradient': 0.13, 'gradient, T = 2': 2.33}

    The output is sum_k softmax(scores)_k values_k, in logits. A score is ablated by putting it at its row's mean;
    share is how far it has gone there (0 intact, 1 ablated, up to 1.5). lowered: "first", "second" or "both".
    by: "truth", "sum of single" (truth for the first plus truth for the second), or a gradient times the distance,
    "gradient" at T = 1 and "gradient, T = ..." under the temperature rule, without a further 1/T.
    Raises GimkitError unless scores and values have the same length, two or more.
    Source: the self-repair measurement of arXiv 2505.17630, on five numbers instead of a model.
    """
    a, c = numpy.asarray(scores, dtype=float), numpy.asarray(values, dtype=float)
    if a.ndim != 1 or a.shape != c.shape or len(a) < 2:
        raise GimkitError(f"scores and values are two rows of equal length, not {len(a)} and {len(c)} numbers")
    shares = numpy.linspace(0, 1.5, 61)

    def softmax(x):
        weights = numpy.exp(x - x.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    def truth(which):
        distance = numpy.zeros_like(a)
        distance[which] = a[which] - a.mean()
        return softmax(a) @ c - softmax(a - shares[:, None] * distance) @ c

    def linear(which, t):
        p = softmax(a / t)
        gradient = p * (c - p @ c)
        return shares * (gradient[which] * (a[which] - a.mean())).sum()

    tempered = f"gradient, T = {temperature:g}"
    rows = {("truth", name): truth(which) for name, which in LOWERED.items()}
    rows["sum of single", "both"] = rows["truth", "first"] + rows["truth", "second"]
    rows |= {("gradient", name): linear(which, 1.0) for name, which in LOWERED.items()}
    rows |= {(tempered, name): linear(which, temperature) for name, which in LOWERED.items()}
    return pandas.concat([pandas.DataFrame({"by": by, "lowered": lowered, "share": shares, "effect": effect})
                          for (by, lowered), effect in rows.items()], ignore_index=True)


LOWERED = {"first": [0], "second": [1], "both": [0, 1]}


def saturation(effects, axes=None):
    """When gradients lie: the true effect of lowering two attention scores beside what gradients foretell.

    >>> left, right = saturation(saturation_effects())

    effects: the table of `saturation_effects`. Left, the output's fall on the way to ablation; right, at ablation.
    axes: two matplotlib axes, made when None. Returns both.
    """
    if axes is None:
        with seaborn.axes_style("whitegrid"):
            _, axes = pyplot.subplots(1, 2, figsize=(10, 4), width_ratios=(1.1, 1), layout="constrained")
    left, right = axes
    tempered = effects["by"].iloc[-1]
    lines = {("truth", "both"): ("truth: both lowered", DARK, "-", 2.4),
             ("truth", "first"): ("truth: only the first", GREY, "-", 1.8),
             ("gradient", "both"): ("gradient: both lowered", ORANGE, "--", 1.8),
             (tempered, "both"): (f"{tempered}: both lowered", BLUE, "--", 1.8)}
    for (by, lowered), (label, colour, style, width) in lines.items():
        line = effects[(effects["by"] == by) & (effects["lowered"] == lowered)]
        left.plot(line["share"], line["effect"], style, color=colour, linewidth=width, label=label)
    left.axvline(1, color=DARK, linewidth=0.8, linestyle=":")
    left.set_xticks([0, 0.5, 1, 1.5], ["0\nintact", "0.5", "1\nat the row's mean", "1.5"])
    left.set(xlabel="how far the scores are lowered", ylabel="fall of the output (logits)",
             title="On the way to ablation", xlim=(0, 1.5))
    left.legend(frameon=True, loc="upper left")

    at_ablation = effects[effects["share"] == 1].set_index(["by", "lowered"])["effect"]
    bars = {"truth: first": (("truth", "first"), GREY), "truth: second": (("truth", "second"), GREY),
            "sum of these two": (("sum of single", "both"), GREY), "truth: both at once": (("truth", "both"), DARK),
            "gradient: both": (("gradient", "both"), ORANGE), f"{tempered}: both": ((tempered, "both"), BLUE)}
    drawn = right.barh(range(len(bars)), [at_ablation[key] for key, _ in bars.values()],
                       color=[colour for _, colour in bars.values()], height=0.7)
    right.bar_label(drawn, fmt="%.3f", padding=4)
    right.set_yticks(range(len(bars)), list(bars))
    right.invert_yaxis()
    right.margins(x=0.16)
    right.axvline(0, color=DARK, linewidth=0.8)
    right.grid(False, axis="y")
    right.set(xlabel="fall of the output (logits)", title="At ablation")
    return left, right


def save(fig, path, frame, alt: str) -> Path:
    """Write a figure as png, svg and pdf, its numbers as csv and its alternative text as txt; reruns give equal bytes.

    >>> save(node_grid(nodes).figure, "figures/ioi-nodes", nodes.frame(), "Grid: a4.h2 speaks for the answer most.")
    PosixPath('figures/ioi-nodes.png')

    fig: matplotlib figure. path: of the files, without ending; folders are made. frame: the plotted numbers.
    alt: what a reader who cannot see the figure should know. Returns the png's path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def file(ending):
        return path.with_name(f"{path.name}.{ending}")

    with matplotlib.rc_context({"svg.hashsalt": "gimkit", "pdf.fonttype": 42}):
        for ending, nameless in (("png", {"Software": None}), ("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
            with whole(file(ending)) as new:
                fig.savefig(new, dpi=150, bbox_inches="tight", facecolor="white", metadata=nameless)
    write_table(file("csv"), frame)
    write_text(file("txt"), alt.strip() + "\n")
    return file("png")


def _axes(ax, width: float, height: float):
    """The axes given, or new ones in the house style."""
    if ax is not None:
        return ax
    with seaborn.axes_style("whitegrid"):
        return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def _plain(text) -> str:
    """A text that matplotlib draws as it is: no mathematics between dollar signs, blanks and line ends visible."""
    text = str(text).replace("$", r"\$")
    return text.replace("\n", "⏎") if text.strip(" ") else "␣" * max(1, len(text))


def _name_points(ax, named, points) -> None:
    """Write names beside points, the first ones first, where no name, point or piece of the diagonal is in the way."""
    ax.figure.draw_without_rendering()  # fixes the limits, so that distances in pixels are known
    diagonal = numpy.linspace(*ax.get_xlim(), 200)[:, None].repeat(2, 1)
    taken = [Bbox.from_extents(x - size, y - size, x + size, y + size) for places, size in ((points, 5), (diagonal, 1))
             for x, y in ax.transData.transform(places)] + [ax.get_legend().get_window_extent()]
    for x, y, name in named:
        for dx, dy in (*product((7, -7), (0, -7, 7)), (0, 12), (0, -12), *product((7, -7), (-14, 14))):
            text = ax.annotate(name, (x, y), (dx, dy), textcoords="offset points", fontsize=8, color=DARK,
                               ha={7: "left", 0: "center", -7: "right"}[dx], va="center")
            box = text.get_window_extent()
            inside = ax.bbox.x0 < box.x0 and box.x1 < ax.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
