"""A saturated softmax, and what the backward rules change, as figures."""

from collections.abc import Sequence
from typing import Any

import numpy
import pandas
import seaborn
from matplotlib import pyplot
from matplotlib.axes import Axes

from gimkit.errors import GimkitError
from gimkit.plots.style import BLUE, DARK, GREY, ORANGE, _axes, _plain


def rule_changes(frame: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """A bar for each set of rules: how far it moves the gradient away from the plain one.

    >>> ax = rule_changes(pandas.DataFrame({"rules": ["norm", "norm + gate"], "change": [0.31, 0.42]}))

    Args:
        frame: columns rules (names) and change (|g_rules - g_plain| / |g_plain|), drawn from top to bottom.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.
    """
    ax = _axes(ax, 5.5, 1.0 + 0.27 * len(frame))
    bars = ax.barh(range(len(frame)), frame["change"], color=BLUE, height=0.75)
    ax.bar_label(bars, fmt="%.3f", padding=3, fontsize=9)
    ax.set_yticks(range(len(frame)), [_plain(rules) for rules in frame["rules"]])
    ax.invert_yaxis()
    ax.margins(x=0.2, y=0.01)
    ax.grid(False, axis="y")
    ax.set(xlabel="relative change of the gradient", ylabel="", title="What the rules change")
    return ax


LOWERED = {"first": [0], "second": [1], "both": [0, 1]}


def saturation_effects(scores: Sequence[float] = (6, 6, 0, 0, 0), values: Sequence[float] = (10, 10, 0, 0, 0),
                       temperature: float = 2.0) -> pandas.DataFrame:
    """The fall of one softmax row's output as its first two scores are lowered: the true one, and by gradients.

    >>> effects = saturation_effects()
    >>> at_ablation = effects.query("share == 1 and lowered == 'both'")
    >>> at_ablation.set_index("by")["effect"].round(2).to_dict()
    {'truth': 1.16, 'sum of single': 0.07, 'gradient': 0.13, 'gradient, T = 2': 2.33}

    The output is sum_k softmax(scores)_k values_k, in logits. A score is ablated by moving it to the mean of its row.

    Args:
        scores: of one attention row; the first two are lowered.
        values: of the same positions, in logits.
        temperature: of the softmax, under the temperature rule.

    Returns:
        Columns by, lowered, share, effect. share: how far a score has moved to the mean (0 intact, 1 ablated, up to
        1.5). lowered: "first", "second" or "both". by: "truth", "sum of single" (truth for the first plus truth for
        the second), or a gradient times the distance: "gradient" at T = 1, and "gradient, T = ..." under the
        temperature rule, without a further 1/T.

    Raises:
        GimkitError: scores and values differ in length, or have fewer than two numbers.

    Source:
        the self-repair measurement of arXiv 2505.17630, on five numbers instead of a model.
    """
    a, c = numpy.asarray(scores, dtype=float), numpy.asarray(values, dtype=float)
    if a.ndim != 1 or a.shape != c.shape or len(a) < 2:
        raise GimkitError(f"scores and values are two rows of equal length, not {len(a)} and {len(c)} numbers")
    shares = numpy.linspace(0, 1.5, 61)

    def softmax(x: numpy.ndarray) -> numpy.ndarray:
        weights = numpy.exp(x - x.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    def truth(which: Any) -> Any:
        distance = numpy.zeros_like(a)
        distance[which] = a[which] - a.mean()
        return softmax(a) @ c - softmax(a - shares[:, None] * distance) @ c

    def linear(which: Any, t: float) -> Any:
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


def saturation(effects: pandas.DataFrame, axes: Any = None, limits: tuple[float, float] | None = None) -> Any:
    """When gradients lie: the true effect of lowering two attention scores, and the effect that gradients predict.

    >>> left, right = saturation(saturation_effects())

    Args:
        effects: the table of `saturation_effects`.
        axes: two matplotlib axes; made when None.
        limits: of the axis of falls, where figures are compared; as the numbers need when None.

    Returns:
        Both axes. Left, the output's fall on the way to ablation; right, at ablation.
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
    if limits:
        left.set_ylim(limits)
        right.set_xlim(limits)
    return left, right
