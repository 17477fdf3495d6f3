"""The papers' figures as matplotlib figures, drawn from tidy tables."""

import numpy
import seaborn
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from gimkit.plots.style import BLUE, DARK, GREEN, GREY, MARKERS, ORANGE, _plain, method_colour, panels

MEASURES = {"comprehensiveness": "comprehensiveness (high is good)", "sufficiency": "sufficiency (low is good)"}


def toy(frame) -> Figure:
    """Bars for made-up attention rows: the output's fall when scores are ablated, and the fall that gradients predict.

    Args:
        frame: columns row, by, lowered, effect.
    """
    rows = frame["row"].unique()
    tempered = frame["by"].iloc[-1]
    bars = {("truth", "first"): ("truth: first ablated", GREY), ("truth", "second"): ("truth: second ablated", GREY),
            ("sum of single", "both"): ("sum of these two", GREY), ("truth", "both"): ("truth: both at once", DARK),
            ("gradient", "both"): ("gradient", ORANGE), (tempered, "both"): (tempered, BLUE)}
    figure, axes = panels(len(rows), 5.4 * len(rows), 3.4, sharex=True)
    for name, ax in zip(rows, axes):
        values = frame[frame["row"] == name].set_index(["by", "lowered"])["effect"]
        drawn = ax.barh(range(len(bars)), [values[key] for key in bars], height=0.7,
                        color=[colour for _, colour in bars.values()])
        ax.bar_label(drawn, fmt="%.3f", padding=4)
        ax.set_yticks(range(len(bars)), [label for label, _ in bars.values()] if ax is axes[0] else [])
        ax.invert_yaxis()
        ax.margins(x=0.18)
        ax.grid(False, axis="y")
        ax.set(xlabel="fall of the output (logits)", title=_plain(name))
    return figure


def temperature_sweep(frame, pooled: str) -> Figure:
    """Both measures over the softmax temperature: a thin line per task, a thick one for all, with intervals.

    Args:
        frame: columns temperature, task, measure, value, low, high.
        pooled: the name under `task` of all tasks together.
    """
    figure, axes = panels(2, 11, 4.2)
    names = [name for name in frame["task"].unique() if name != pooled]
    x, ticks = "temperature", sorted(frame["temperature"].unique())
    for (measure, label), ax in zip(MEASURES.items(), axes):
        part = frame[frame["measure"] == measure]
        for name, colour, marker in zip(names, seaborn.color_palette("colorblind", len(names)), MARKERS):
            own = part[part["task"] == name]
            ax.plot(own[x], own["value"], color=colour, marker=marker, markersize=4, linewidth=1.1, label=_plain(name))
        own = part[part["task"] == pooled]
        ax.errorbar(own[x], own["value"], yerr=[own["value"] - own["low"], own["high"] - own["value"]], color=DARK,
                    linewidth=2.4, elinewidth=1.2, capsize=3, marker="o", markersize=5, label=_plain(pooled), zorder=4)
        ax.set_xscale("log")
        ax.minorticks_off()
        ax.set_xticks(ticks, [f"{tick:g}" if tick in (1, 2, 5, 10, 100) else "" for tick in ticks])
        ax.set(xlabel="softmax temperature of the backward pass", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    return figure


def ladder(frame, pooled: str) -> Figure:
    """Both measures of rule subsets minus the gradient's: small dots for tasks, a large one for all of them together.

    Args:
        frame: columns method, task, measure, value, low, high.
        pooled: as in `temperature_sweep`.
    """
    methods = list(frame["method"].unique())
    names = [name for name in frame["task"].unique() if name != pooled]
    figure, axes = panels(2, 11, 1.4 + 0.42 * len(methods), sharey=True)
    for (measure, label), ax in zip(MEASURES.items(), axes):
        part = frame[frame["measure"] == measure].set_index("task")
        for number, (name, colour, marker) in enumerate(zip(names, seaborn.color_palette("colorblind"), MARKERS)):
            places = numpy.arange(len(methods)) - 0.25 + 0.5 * number / max(1, len(names) - 1)
            ax.scatter(part.loc[name, "value"], places, color=colour, marker=marker, s=22, label=_plain(name),
                       linewidth=0, zorder=3)
        own = part.loc[pooled]
        ax.errorbar(own["value"], range(len(methods)), xerr=[own["value"] - own["low"], own["high"] - own["value"]],
                    fmt="D", color=DARK, markersize=6, linewidth=1.6, capsize=3, label=_plain(pooled), zorder=4)
        ax.axvline(0, color=DARK, linewidth=0.9, linestyle="--")
        ax.set_yticks(range(len(methods)), methods)
        ax.grid(False, axis="y")
        ax.set(xlabel=f"{label}\nminus gradient x input")
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    return figure


def faithfulness_table(frame, pooled: str) -> Figure:
    """Both measures as tables, methods by tasks; darker is better. Bold: the best of a column, and all in its interval.

    Args:
        frame: columns method, task, measure, value, low, high.
        pooled: as in `temperature_sweep`.
    """
    methods, tasks = list(frame["method"].unique()), list(frame["task"].unique())
    figure, axes = panels(2, 3.2 + 1.3 * len(tasks), 1.8 + 0.36 * len(methods))
    for (measure, label), ax in zip(MEASURES.items(), axes):
        grid = frame[frame["measure"] == measure].pivot(index="method", columns="task", values="value")
        grid = grid.loc[methods, tasks]
        good = grid if measure == "comprehensiveness" else -grid
        colours = (good - good.min()) / (good.max() - good.min())  # within each column, for tasks differ in scale
        seaborn.heatmap(colours, annot=grid, fmt=".2f", cmap="Blues", vmin=0, vmax=1.25, cbar=False, ax=ax,
                        linewidths=0.5, annot_kws={"size": 9}, yticklabels=ax is axes[0])
        ends = frame[frame["measure"] == measure].set_index(["method", "task"])[["low", "high"]]
        for text in ax.texts:
            task = tasks[int(text.get_position()[0])]
            low, high = ends.loc[good[task].idxmax(), task]
            if low <= grid[task].iloc[int(text.get_position()[1])] <= high:
                text.set_fontweight("bold")
        ax.axvline(len(tasks) - 1, color="white", linewidth=5)
        ax.tick_params(axis="both", length=0)
        ax.set(xlabel="", ylabel="", title=label)
        ax.set_xticks(ax.get_xticks(), [_plain(task) for task in tasks], rotation=30, ha="right",
                      rotation_mode="anchor")
    return figure


def layers(frame) -> Figure:
    """Both measures over layers, a line per method, with its interval as a band.

    Args:
        frame: columns layer, method, measure, value, low, high.
    """
    figure, axes = panels(2, 11, 3.8)
    methods = list(frame["method"].unique())
    for (measure, label), ax in zip(MEASURES.items(), axes):
        for name, marker in zip(methods, MARKERS):
            colour = method_colour(name)
            own = frame[(frame["measure"] == measure) & (frame["method"] == name)]
            ax.fill_between(own["layer"], own["low"], own["high"], color=colour, alpha=0.15, linewidth=0)
            ax.plot(own["layer"], own["value"], color=colour, marker=marker, markersize=6, label=_plain(name))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="layer (input of its block)", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    return figure


def saturation_path(frame) -> Figure:
    """The metric, and the size of its gradient, along the straight path from corrupt to clean embeddings.

    The first prompt's lines are thick, the others thin.

    Args:
        frame: columns example, share, metric, gradient.
    """
    figure, (left, right) = panels(2, 9, 3.4)
    for example, own in frame.groupby("example"):
        look = {"linewidth": 2.4, "zorder": 3} if example == 0 else {"linewidth": 0.9, "alpha": 0.5}
        left.plot(own["share"], own["metric"], color=BLUE, **look)
        right.plot(own["share"], own["gradient"], color=ORANGE, **look)
    left.axhline(0, color=DARK, linewidth=0.8, linestyle=":")
    left.set(ylabel="metric (logits)", title="What the model says")
    right.set(ylabel="norm of the metric's gradient", title="What the gradient sees", ylim=(0, None))
    for ax in (left, right):
        ax.set(xlabel="way from the corrupt (0) to the clean (1) embeddings", xlim=(0, 1))
    return figure


def runtimes(frame) -> Figure:
    """A bar per method: its mean time to score the edges, a dot per task.

    Args:
        frame: columns method, task, ratio.
    """
    means = frame.groupby("method", sort=False)["ratio"].mean().sort_values()
    figure, (ax,) = panels(1, 6.5, 1.0 + 0.36 * len(means))
    ax.barh(range(len(means)), means, color=[method_colour(name) for name in means.index], height=0.7)
    for row, name in enumerate(means.index):
        own = frame[frame["method"] == name]["ratio"]
        ax.scatter(own, [row] * len(own), color=DARK, s=10, zorder=3, linewidth=0)
    ax.set_yticks(range(len(means)), [f"{_plain(name)}: {value:.1f}" for name, value in means.items()])
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.grid(False, axis="y")
    ax.set(xlabel="CPU seconds to score all edges, as multiples of EAP's")
    return figure


def ioi_circuit(heads, steps, draws: int, threshold: float) -> Figure:
    """Three panels: the attention that a head's role is about, the head's exact effect, what each step carries.

    Args:
        heads: columns role, node, draws, and mean, min and max of seen and effect.
        steps: columns step, and mean, min and max of lost and control.
        draws: of prompts; heads with their role on fewer are hollow.
        threshold: of the attention.
    """
    figure = Figure(figsize=(12, 1.6 + 0.27 * len(heads)), layout="constrained")
    with seaborn.axes_style("whitegrid"):
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    colours = dict(zip(heads["role"].cat.categories, seaborn.color_palette("colorblind")))
    places = numpy.arange(len(heads))
    for ax, column in ((left, "seen"), (middle, "effect")):
        for place, row in zip(places, heads.itertuples()):
            value, low, high = (getattr(row, f"{column}_{end}") for end in ("mean", "min", "max"))
            colour = colours[row.role]
            ax.plot([low, high], [place, place], color=colour, linewidth=1.6)
            ax.plot(value, place, marker="o", markersize=6, color=colour,
                    markerfacecolor=colour if row.draws == draws else "white")
        ax.set_ylim(len(heads) - 0.4, -0.6)
        ax.set_yticks(places, heads["node"] if ax is left else [])
        ax.grid(False, axis="y")
    left.axvline(threshold, color=DARK, linestyle="--", linewidth=0.9)
    left.set(xlabel="attention that the role is about", xlim=(0, 1.02))
    middle.axvline(0, color=DARK, linewidth=0.8)
    middle.set_xlabel("exact effect of the head (logits)")
    for role in heads["role"].cat.remove_unused_categories().cat.categories:
        left.plot([], [], "o", color=colours[role], label=role)
    places = numpy.arange(len(steps))
    for shift, column, colour, label in ((-0.18, "lost", BLUE, "this step"),
                                         (0.18, "control", GREY, "random heads of these layers")):
        value = steps[f"{column}_mean"]
        right.barh(places + shift, value, height=0.34, color=colour, label=label, xerr=[
            value - steps[f"{column}_min"], steps[f"{column}_max"] - value], error_kw={"linewidth": 1, "ecolor": DARK})
    right.axvline(0, color=DARK, linewidth=0.8)
    right.set_yticks(places, [step.replace(" to ", "\nto ", 1) for step in steps["step"]])
    right.invert_yaxis()
    right.grid(False, axis="y")
    right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.set_xlabel("lost of clean minus corrupt metric")
    right.legend(loc="lower right", frameon=True, fontsize=9)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _rows_of_dots(ax, area: str, names: list, series: list, width: float) -> None:
    """A row per name, a dot with its interval for each (label, table by name, marker, colour), spread over a width."""
    for number, (label, table, marker, colour) in enumerate(series):
        own = table.reindex(names)
        places = numpy.arange(len(names)) - width / 2 + width * number / max(1, len(series) - 1)
        ax.errorbar(own[area], places, xerr=[own[area] - own[f"{area}_low"], own[f"{area}_high"] - own[area]],
                    fmt=marker, color=colour, markersize=6, linewidth=1.6, label=label)
    ax.set_yticks(range(len(names)), [_plain(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    for place in range(1, len(names)):
        ax.axhline(place - 0.5, color=GREY, linewidth=0.6)
    ax.grid(False, axis="y")


def passes(frame, methods: dict[str, str]) -> Figure:
    """CPR and CMD: a row per task, a dot with its interval for each method.

    Args:
        frame: columns task, method, and value, low and high of cpr and cmd.
        methods: {name: label}.
    """
    names, drawn = list(frame["task"].unique()), [name for name in methods if name in set(frame["method"])]
    figure, axes = panels(2, 11, 1.7 + 0.62 * len(names), sharey=True)
    for ax, area, label in zip(axes, ("cpr", "cmd"), ("CPR: area under faithfulness (high is good)",
                                                      "CMD: distance from the whole model (low is good)")):
        series = [(methods[method], frame[frame["method"] == method].set_index("task"), marker, method_colour(method))
                  for method, marker in zip(drawn, MARKERS)]
        _rows_of_dots(ax, area, names, series, 0.6)
        ax.set_xlabel(label)
    axes[0].axvline(1, color=DARK, linestyle="--", linewidth=0.9)
    axes[1].set_xscale("log")
    axes[1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return figure


def known_circuits(frame) -> Figure:
    """AUROC and average precision against known circuits: a row per method, a dot with its interval for each kind.

    Args:
        frame: columns kind, method, and value, low and high of auroc and average_precision.
    """
    methods, kinds = list(frame["method"].unique()), list(frame["kind"].unique())
    figure, axes = panels(2, 11, 1.6 + 0.42 * len(methods), sharey=True)
    for ax, area, label in zip(axes, ("auroc", "average_precision"), ("AUROC", "average precision")):
        series = [(f"{kind} models", frame[frame["kind"] == kind].set_index("method"), marker, colour)
                  for kind, marker, colour in zip(kinds, "so", (ORANGE, BLUE))]
        _rows_of_dots(ax, area, methods, series, 0.3)
        ax.set(xlabel=f"{label} over edges (high is good)", xlim=(None, 1.03))
    axes[0].axvline(0.5, color=DARK, linestyle="--", linewidth=0.9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return figure


def depth(frame, methods: dict[str, str], fifths: list[str], ranks: dict[str, str]) -> Figure:
    """Sizes of node scores by fifths of the layers, and rank correlations over some of the nodes.

    Args:
        frame: columns method, statistic, value; a value for each task.
        methods: {name: label}.
        fifths: the statistics of the left panel, first layers first.
        ranks: {statistic: label} of the right panel.
    """
    figure, (left, right) = panels(2, 11, 4.4, width_ratios=(1.2, 1))
    means = frame.groupby(["method", "statistic"])["value"].mean().unstack()
    styles = dict(zip(methods, (":", "-.", "--", "--", "-", "-")))
    for (method, label), marker in zip(methods.items(), MARKERS):
        colour = DARK if "+" in method else method_colour(method)
        left.plot(range(len(fifths)), means.loc[method, fifths], marker=marker, color=colour, label=label,
                  linestyle=styles[method], markersize=6)
    left.axhline(1, color=DARK, linewidth=0.9)
    left.set_yscale("log")
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:g}"[-1] in "25" else ""))
    left.set_xticks(range(len(fifths)), ["first fifth", "second", "third", "fourth", "last fifth"])
    left.set(xlabel="layers", ylabel="sum of |score| / sum of |exact effect|")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    places = numpy.arange(len(methods))
    for number, (statistic, label) in enumerate(ranks.items()):
        alpha = (1, 0.6, 0.3)[number]
        right.barh(places + 0.25 * (number - 1), means.loc[list(methods), statistic], height=0.25, alpha=alpha,
                   color=[DARK if "+" in method else method_colour(method) for method in methods])
        right.barh([0], [0], color=DARK, alpha=alpha, label=label)
    right.set_yticks(places, list(methods.values()))
    right.invert_yaxis()
    right.set(xlabel="Spearman's correlation with exact patching", xlim=(0, 1))
    right.grid(False, axis="y")
    right.legend(loc="upper center", bbox_to_anchor=(0.35, 1.22), frameon=False, fontsize=9)
    return figure


def frontier(x, y):
    """Whether no other point is as good in both and better in one; high is good."""
    return [not bool((((x >= a) & (y >= b)) & ((x > a) | (y > b))).any()) for a, b in zip(x, y)]


def searched(frame) -> Figure:
    """A dot for each set of rules, by two measures, a panel for each model; a line joins those that nothing beats.

    Args:
        frame: columns model, setting, x, y, frontier, and the rules' own: temperature, freeze_norm, q, ... .
    """
    models = list(frame["model"].unique())
    figure, axes = panels(len(models), 3.7 * len(models), 4.4)
    colours = dict(zip((1.0, 2.0, 4.0), (ORANGE, BLUE, GREEN)))
    markers = {1.0: "o", 0.5: "s", 0.25: "D"}
    offsets = dict(gim=(6, -11), gradient=(6, -11), relp=(-4, -14), freeze=(7, -4), attnlrp=(7, -4))  # of names, points
    for model, ax in zip(models, axes):
        own = frame[frame["model"] == model]
        for row in own.itertuples():
            colour = colours[row.temperature]
            ax.scatter(row.x, row.y, marker=markers[row.q], s=34, linewidth=1.3, zorder=3, edgecolor=colour,
                       facecolor=colour if row.freeze_norm else "none")
        best = own[own["frontier"]].sort_values("x")
        ax.plot(best["x"], best["y"], color=DARK, linewidth=1.1, zorder=2)
        for row in own[own["setting"].isin(list(offsets))].itertuples():
            ax.annotate(row.setting, (row.x, row.y), xytext=offsets[row.setting], textcoords="offset points",
                        fontsize=9)
        planted = model == models[-1]
        ax.set(title=model, xlabel="edges: average precision, compiled" if planted else "edges: CMD (low is good)",
               ylabel="average precision, trained" if planted else "nodes: Pearson with exact patching")
        ax.margins(0.12)
        ax.locator_params(nbins=5)
    handles = [Line2D([], [], marker="o", linestyle="", color=colour, label=f"T = {value:g}")
               for value, colour in colours.items()]
    handles += [Line2D([], [], marker=marker, linestyle="", color=GREY, label=f"queries, keys x {value:g}")
                for value, marker in markers.items()]
    handles += [Line2D([], [], marker="o", linestyle="", color=GREY, markerfacecolor="none", label="norms not frozen"),
                Line2D([], [], color=DARK, label="nothing is better by both")]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=9)
    return figure
