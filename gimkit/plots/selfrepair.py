"""Self-repair as figures: matplotlib axes, nothing computed here."""

import numpy

from gimkit.plots.style import BLUE, DARK, GREY, ORANGE, _axes, _name_points, _plain


def ablation_effect(repair, ax=None, head: str | None = None):
    """A dot per attention row: the joint effect of two scores against the sum of their single effects.

    >>> ax = ablation_effect(gimkit.self_repair(model, task[:8]))

    repair: `SelfRepair`. Above the dashed diagonal the two scores stand in for each other; rows whose interaction is
    above its 95% quantile have the second colour. head: a name such as "a4.h2": only its rows have colours, the others
    are grey. ax: matplotlib axes, made when None. Returns the axes.
    Source: the figure "ablation_effect" of arXiv 2505.17630.
    """
    frame = repair.frame()
    return _two_colours(frame, frame["d1"] + frame["d2"], frame["d12"], repair, ax,
                        "sum of individual ablation effects", "joint ablation effect", head)


def grad_vs_tsg(repair, ax=None):
    """A dot per attention row: the gradient sum of its two scores at softmax temperature 2 against the plain one.

    >>> ax = grad_vs_tsg(gimkit.self_repair(model, task[:8]))

    repair: `SelfRepair`; colours as in `ablation_effect`. ax: matplotlib axes, made when None. Returns the axes.
    Source: the figure "grad_vs_tsg" of arXiv 2505.17630.
    """
    frame = repair.frame()
    return _two_colours(frame, frame["gradient"], frame["tsg"], repair, ax,
                        "gradient, summed over both scores", "gradient at temperature 2")


def _two_colours(frame, x, y, repair, ax, xlabel: str, ylabel: str, head: str | None = None):
    ax = _axes(ax, 4.8, 4.4)
    flagged = frame["flagged"].to_numpy(dtype=bool)
    shown = numpy.ones(len(frame), dtype=bool)
    if head is not None:
        shown = (frame["layer"].map("a{}".format) + frame["head"].map(".h{}".format) == head).to_numpy()
        ax.scatter(x[~shown], y[~shown], s=8, color=GREY, alpha=0.3, linewidth=0, label="other heads", rasterized=True)
    q95 = "" if frame.empty else f" (above {repair.q95:.2f})"
    for which, label, colour in ((shown & ~flagged, "attention row", BLUE),
                                 (shown & flagged, f"top 5% of interaction{q95}", ORANGE)):
        ax.scatter(x[which], y[which], s=12, color=colour, alpha=0.6, linewidth=0, label=label, zorder=3,
                   rasterized=True)
    if frame.empty:
        ax.set(xlim=(-1, 1), ylim=(-1, 1))
        ax.text(0.5, 0.75, f"no row has two contributions above {repair.threshold:g}", ha="center", color=DARK,
                transform=ax.transAxes)
    ax.axline((0, 0), slope=1, color=DARK, linestyle="--", linewidth=0.9)
    whose = f" of {head}" if head else ""
    ax.set(xlabel=xlabel, ylabel=ylabel, title=_plain(f"{shown.sum()} attention rows{whose} on {repair.name}"))
    ax.legend(frameon=True, fontsize=8)
    return ax


def direct_against_total(repair, ax=None):
    """The total against the direct effect of ablating each head, as measured and with the final norm frozen.

    >>> ax = direct_against_total(gimkit.selfrepair.head_repair(model, task[:8]))

    repair: `HeadRepair`; means over examples in logits, bars are 95% bootstrap intervals over examples of
    direct - total. On the dashed diagonal nobody answers; for positive effects, below it the rest of the model makes up
    for the head, above it the head also acts through later parts. The grey ring is the total effect with the final
    norm's denominator of the clean run: from ring to dot is that norm's share. ax: matplotlib axes, made when None.
    Returns the axes.
    """
    frame = repair.frame()
    ax = _axes(ax, 5.4, 4.6)
    x, y = frame["direct"], frame["total"]
    ax.vlines(x, frame[["total", "total_frozen"]].min(axis=1), frame[["total", "total_frozen"]].max(axis=1), color=GREY,
              linewidth=1, zorder=2)
    ax.scatter(x, frame["total_frozen"], s=30, facecolor="none", edgecolor=GREY, label="final norm frozen", zorder=2)
    spread = numpy.maximum([frame["high"] - frame["repaired"], frame["repaired"] - frame["low"]], 0)
    ax.errorbar(x, y, yerr=spread, fmt="o", color=BLUE, ecolor=BLUE, markersize=5, linewidth=1, zorder=3,
                label="total effect")
    ax.axline((0, 0), slope=1, color=DARK, linestyle="--", linewidth=0.9)
    ax.margins(0.1)
    ax.set(xlabel="direct effect (logits)", ylabel="total effect (logits)",
           title=_plain(f"Ablated heads on {repair.task}"))
    ax.legend(frameon=True, loc="best")
    order = numpy.minimum(x.abs().rank(ascending=False), y.abs().rank(ascending=False)).sort_values().index
    _name_points(ax, frame.loc[order[:8], ["direct", "total", "ablated"]].to_numpy().tolist(),
                 frame[["direct", "total"]].to_numpy())
    return ax


def head_compensation(repair, head: str, ax=None, most: int = 8):
    """A bar per part: by how much it makes up for one ablated head.

    >>> ax = head_compensation(gimkit.selfrepair.head_repair(model, task[:8]), "a4.h2")

    repair: `HeadRepair`. head: the ablated head's name. The `most` largest compensations in logits, largest first, the
    others together; all bars sum to direct - total. ax: matplotlib axes, made when None. Returns the axes.
    """
    values = repair.compensation_frame().query("ablated == @head").set_index("part")["compensation"]
    values = values[values.abs().sort_values(ascending=False).index]
    if len(values) > most:
        named, others = values[:most], values[most:]
        values = named.copy()
        values[f"{len(others)} others"] = others.sum()
    ax = _axes(ax, 5.0, 1.0 + 0.3 * len(values))
    colours = [BLUE if value > 0 else ORANGE for value in values]
    bars = ax.barh(range(len(values)), values, color=colours, height=0.75)
    ax.bar_label(bars, fmt="%+.2f", padding=3, fontsize=8)
    ax.set_yticks(range(len(values)), [_plain(part) for part in values.index])
    ax.invert_yaxis()
    ax.axvline(0, color=DARK, linewidth=0.8)
    ax.margins(x=0.2)
    ax.grid(False, axis="y")
    ax.set(xlabel="compensation (logits)", ylabel="", title=_plain(f"Who values for {head} on {repair.task}"))
    return ax
