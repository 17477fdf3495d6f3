"""Self-repair as figures."""

import numpy
from matplotlib.axes import Axes

from gimkit.plots.style import BLUE, DARK, GREY, ORANGE, _axes, _equal_axes, _name_points, _plain
from gimkit.selfrepair import HeadRepair, SelfRepair


def ablation_effect(repair: SelfRepair, ax: Axes | None = None, head: str | None = None) -> Axes:
    """A dot for each attention row: the joint effect of two scores against the sum of their single effects.

    >>> ax = ablation_effect(gimkit.self_repair(model, task[:8]))

    Above the dashed diagonal the two scores compensate for each other. Rows whose interaction is above its 95% quantile
    have the second colour.

    Args:
        repair: of `gimkit.self_repair`.
        ax: matplotlib axes; made when None.
        head: a name such as "a4.h2"; only its rows have colours then, the others are grey.

    Returns:
        The matplotlib axes.

    Source:
        the figure "ablation_effect" of arXiv 2505.17630.
    """
    frame = repair.frame()
    ax = _two_colours(repair, frame["d1"] + frame["d2"], frame["d12"], ax, head)
    ax.set(xlabel="sum of individual ablation effects", ylabel="joint ablation effect")
    return ax


def grad_vs_tsg(repair: SelfRepair, ax: Axes | None = None) -> Axes:
    """A dot for each attention row: the gradient, summed over its two scores, at softmax temperature 2 and plain.

    >>> ax = grad_vs_tsg(gimkit.self_repair(model, task[:8]))

    Args:
        repair: of `gimkit.self_repair`; colours are as in `ablation_effect`.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.

    Source:
        the figure "grad_vs_tsg" of arXiv 2505.17630.
    """
    frame = repair.frame()
    ax = _two_colours(repair, frame["gradient"], frame["tsg"], ax)
    ax.set(xlabel="gradient, summed over both scores", ylabel="gradient at temperature 2")
    return ax


def _two_colours(repair: SelfRepair, x: numpy.ndarray, y: numpy.ndarray, ax: Axes | None,
                 head: str | None = None) -> Axes:
    """The scatter of both figures: a dot for each row, the diagonal, the rows of largest interaction in orange."""
    frame = repair.frame()
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
        ax.text(0.5, 0.75, f"no row has two contributions above {repair.threshold:g}", ha="center", color=DARK,
                transform=ax.transAxes)
    _equal_axes(ax, x if len(x) else [-1, 1], y)
    of_head = f" of {head}" if head else ""
    ax.set(title=_plain(f"{shown.sum()} attention rows{of_head} on {repair.name}"))
    ax.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.17))  # inside, it hides dots
    return ax


def direct_against_total(repair: HeadRepair, ax: Axes | None = None) -> Axes:
    """The total against the direct effect of ablating each head, as measured and with the final norm frozen.

    >>> ax = direct_against_total(gimkit.selfrepair.head_repair(model, task[:8]))

    Values are means over examples in logits; bars are 95% bootstrap intervals over examples of direct - total. On the
    dashed diagonal no part compensates. For positive effects, below the diagonal the rest of the model compensates for
    the head; above it the head also acts through later parts. The grey ring is the total effect with the final norm's
    denominator of the clean run: the distance from ring to dot is the share of that norm.

    Args:
        repair: of `gimkit.selfrepair.head_repair`.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.
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
    _equal_axes(ax, x, [y - spread[0], y + spread[1], frame["total_frozen"]])
    ax.set(xlabel="direct effect (logits)", ylabel="total effect (logits)",
           title=_plain(f"Ablated heads on {repair.task}"))
    ax.legend(frameon=True, loc="best")
    order = numpy.minimum(x.abs().rank(ascending=False), y.abs().rank(ascending=False)).sort_values().index
    _name_points(ax, frame.loc[order[:8], ["direct", "total", "ablated"]].to_numpy().tolist(),
                 frame[["direct", "total"]].to_numpy())
    return ax


def head_compensation(repair: HeadRepair, head: str, ax: Axes | None = None, most: int = 8) -> Axes:
    """A bar for each part: how much it compensates for one ablated head.

    >>> ax = head_compensation(gimkit.selfrepair.head_repair(model, task[:8]), "a4.h2")

    The largest compensations come first, and the others are one bar; all bars sum to direct - total.

    Args:
        repair: of `gimkit.selfrepair.head_repair`.
        head: the ablated head's name.
        ax: matplotlib axes; made when None.
        most: how many parts have a bar of their own.

    Returns:
        The matplotlib axes.
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
    ax.bar_label(bars, fmt=lambda value: f"{round(value, 2) + 0.0:+.2f}", padding=3, fontsize=9)  # no "-0.00"
    ax.set_yticks(range(len(values)), [_plain(part) for part in values.index])
    ax.invert_yaxis()
    ax.axvline(0, color=DARK, linewidth=0.8)
    ax.margins(x=0.2)
    ax.grid(False, axis="y")
    ax.set(xlabel="compensation (logits)", ylabel="", title=_plain(f"What compensates for {head} on {repair.task}"))
    return ax
