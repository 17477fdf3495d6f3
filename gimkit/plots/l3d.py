"""L3D's circuits in parameter space, as figures."""

from collections.abc import Sequence

import numpy
import pandas
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gimkit.l3d import Decomposition
from gimkit.plots.style import BLUE, DARK, GREY, MARKERS, ORANGE, _axes, _plain, panels


def reads(found: Decomposition, first: str, inputs_first: bool = True) -> numpy.ndarray:
    """How much each subnetwork's first layer reads each input, [v, inputs]: norms, scaled so that a row's maximum is 1.

    >>> module, inputs = gimkit.l3d.toys.Linear2(5, 2, 5), torch.rand(40, 5)
    >>> reads(gimkit.l3d.decompose(module, inputs, n=5, epochs=1, progress=False), "W_in").shape
    (5, 5)

    Args:
        found: a decomposition.
        first: the name of the first layer's weight.
        inputs_first: whether that weight is [inputs, hidden], as in the toys of two layers, or [hidden, inputs], as in
            `torch.nn.Linear`.

    Returns:
        Shares, [v, inputs].
    """
    weights = torch.stack([found.subnetwork(which)[first] for which in range(len(found))])
    sizes = weights.norm(dim=2 if inputs_first else 1)
    return (sizes / sizes.max(1, keepdim=True).values.clamp(min=1e-12)).numpy()


def reading_grid(table: numpy.ndarray, names: Sequence[str], title: str, ax: Axes | None = None) -> Axes:
    """Which inputs each subnetwork reads: a row per subnetwork, dark where it reads, sorted by the input most read.

    >>> ax = reading_grid(numpy.eye(3), ["0", "1", "2"], "what W_in reads")

    Args:
        table: of `reads`, [v, inputs].
        names: of the rows, such as "2 (0.11)".
        title: of the axes.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.
    """
    ax = _axes(ax, 1.6 + 0.28 * table.shape[1], 1.2 + 0.3 * len(table))
    order = numpy.lexsort((-table.max(1), table.argmax(1)))
    ax.pcolormesh(table[order], cmap="Blues", vmin=0, vmax=1, edgecolor="white", linewidth=0.5)
    ax.invert_yaxis()
    ax.set_yticks([i + 0.5 for i in range(len(table))], [names[i] for i in order], fontsize=9)
    inputs = range(0, table.shape[1], 1 if table.shape[1] <= 15 else 5)
    ax.set_xticks([i + 0.5 for i in inputs], [str(i) for i in inputs])
    ax.grid(False)
    ax.set(xlabel="input", title=_plain(title))
    return ax


def encoder_plane(original: numpy.ndarray, found: numpy.ndarray, ax: Axes | None = None) -> Axes:
    """The encoder's rows of a toy with two hidden units, and the strongest row of each subnetwork's encoder.

    >>> ax = encoder_plane(numpy.eye(2), -numpy.eye(2))

    Args:
        original: the model's rows, [features, 2].
        found: the subnetworks' rows, [v, 2], with scale and sign chosen to match them.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.
    """
    ax = _axes(ax, 4.2, 4.2)
    for which, (rows, colour, style, label) in enumerate(((original, GREY, "-", "the model's encoder"),
                                                          (found, BLUE, "--", "subnetworks (scaled)"))):
        for i, (x, y) in enumerate(rows):
            ax.plot([0, x], [0, y], style, color=colour, linewidth=3.5 - 1.8 * which, label=label if i == 0 else None)
    for i, (x, y) in enumerate(original):
        ax.annotate(str(i), (1.12 * x, 1.12 * y), ha="center", va="center", fontsize=9)
    most = 1.3 * numpy.abs(original).max()
    ax.set(xlim=(-most, most), ylim=(-most, most), aspect="equal", xlabel="hidden unit 0", ylabel="hidden unit 1")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=9, frameon=False)
    return ax


def sweep_lines(deltas: Sequence[float], change: numpy.ndarray, own: int, control: numpy.ndarray | None = None,
                ax: Axes | None = None) -> Axes:
    """The mean change of every output as the parameters move along a subnetwork; its own output is blue.

    >>> ax = sweep_lines(numpy.linspace(-1, 1, 5), numpy.ones((5, 3)), own=0)

    Args:
        deltas: how far the parameters moved, [d].
        change: mean |change| of each output, [d, outputs].
        own: the number of the output that belongs to the subnetwork.
        control: the same as `change` for a random direction of equal norm; its mean over outputs is a dotted line.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.
    """
    ax = _axes(ax, 4.2, 3.2)
    others = [i for i in range(change.shape[1]) if i != own]
    ax.plot(deltas, change[:, others], color=GREY, linewidth=1)
    ax.plot([], [], color=GREY, linewidth=1, label="other outputs")
    ax.plot(deltas, change[:, own], color=BLUE, linewidth=2.2, label=f"output {own}")
    if control is not None:
        ax.plot(deltas, control.mean(1), ":", color=ORANGE, linewidth=1.8, label="random direction")
    ax.set(xlabel="delta", ylabel="mean |change| of the output")
    ax.legend(fontsize=9, frameon=True)
    return ax


def change_scatter(value: numpy.ndarray, change: numpy.ndarray, relevant: numpy.ndarray, ax: Axes | None = None,
                   what: str = "the circuit's input") -> Axes:
    """How far each sample's output moves, against the value of the input that the circuit reads.

    >>> ax = change_scatter(numpy.arange(4), numpy.arange(4), numpy.arange(4) > 1)

    Args:
        value: of the input, [n].
        change: |change| of the outputs, [n].
        relevant: which samples are blue, [n].
        ax: matplotlib axes; made when None.
        what: the label of the x axis.

    Returns:
        The matplotlib axes.
    """
    ax = _axes(ax, 4.2, 3.2)
    for where, colour, label in ((~relevant, GREY, "input not active"), (relevant, BLUE, "input active")):
        ax.scatter(value[where], change[where], s=10, color=colour, alpha=0.6, linewidth=0, label=label,
                   rasterized=True)
    ax.set(xlabel=what, ylabel="|change| of the outputs")
    ax.legend(fontsize=9, frameon=True)
    return ax


def coefficient_scatter(guessed: numpy.ndarray, true: numpy.ndarray, r2: float, ax: Axes | None = None) -> Axes:
    """The coefficients of subnetworks against the true ones, a dot per subnetwork and output.

    >>> ax = coefficient_scatter(numpy.eye(3), numpy.eye(3), r2=1.0)

    Args:
        guessed, true: coefficients, [v, outputs].
        r2: their squared correlation, for the title.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.
    """
    ax = _axes(ax, 4.2, 3.6)
    ax.scatter(true, guessed, color=BLUE, s=16, alpha=0.7, linewidth=0)
    ax.axhline(0, color=DARK, linewidth=0.8)
    ax.set(xlabel="true coefficient", ylabel="coefficient of the subnetwork (unit norm)",
           title=f"{len(guessed)} subnetworks, $r^2$ = {r2:.2f}")
    return ax


def error_bars(frame: pandas.DataFrame, targets: dict, ax: Axes | None = None) -> Axes:
    """Errors of toys: a dot per seed, the mean with its 95% t interval, and the paper's number as a line.

    >>> frame = pandas.DataFrame({"group": "tms, paper", "seed": [0, 1], "error": [0.2, 0.22]})
    >>> ax = error_bars(frame, {"tms, paper": 0.19})

    Args:
        frame: columns group, seed, error.
        targets: the paper's number by group, where there is one.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.
    """
    from scipy.stats import t  # slow to import

    groups = list(dict.fromkeys(frame["group"]))
    ax = _axes(ax, 7.0, 0.9 + 0.34 * len(groups))
    for row, group in enumerate(groups):
        own = frame[frame["group"] == group]["error"]
        ax.scatter(own, [row] * len(own), s=14, color=GREY, linewidth=0, zorder=3)
        if len(own) > 1:
            half = t.ppf(0.975, len(own) - 1) * own.std() / len(own) ** 0.5
            ax.errorbar(own.mean(), row, xerr=half, fmt="D", color=BLUE, markersize=5, capsize=3, zorder=4)
        if group in targets:
            ax.plot([targets[group]] * 2, [row - 0.35, row + 0.35], color=ORANGE, linewidth=2.4, zorder=2)
    ax.plot([], [], color=ORANGE, linewidth=2.4, label="the paper's number (one seed)")
    ax.plot([], [], "D", color=BLUE, markersize=5, label="mean, 95% interval over seeds")
    ax.set_yticks(range(len(groups)), [_plain(group) for group in groups], fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(0, None)
    ax.grid(False, axis="y")
    ax.set(xlabel="error: |g − ĝ|² / |g|², as in the reference implementation")
    ax.legend(fontsize=9, frameon=True, loc="best")
    return ax


def selection_dots(table: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """How well the best subnetwork selects each kind of sample on new samples, beside both controls.

    >>> table = pandas.DataFrame({"kind": ["ioi"], "auroc": [0.9], "untrained_auroc": [0.7], "shuffled_auroc": [0.5]})
    >>> ax = selection_dots(table)

    Args:
        table: columns kind, auroc, untrained_auroc and shuffled_auroc, as of `gimkit.l3d.language.attention_run`.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.
    """
    kinds = table["kind"].tolist()
    ax = _axes(ax, 6.0, 1.2 + 0.34 * len(kinds))
    for column, colour, marker, label in (("shuffled_auroc", GREY, "x", "shuffled labels"),
                                          ("untrained_auroc", ORANGE, "s", "untrained directions"),
                                          ("auroc", BLUE, "o", "subnetworks")):
        ax.scatter(table[column], range(len(kinds)), color=colour, marker=marker, s=40, label=label, zorder=3)
    ax.axvline(0.5, color=DARK, linewidth=0.9, linestyle="--")
    ax.set_yticks(range(len(kinds)), [_plain(str(kind)) for kind in kinds])
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set(xlabel="AUROC of the impact of the best subnetwork, new samples", xlim=(None, 1.02))
    ax.legend(fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.55 / (0.34 * len(kinds))), ncols=3)
    return ax


def beside_gim(shares: pandas.Series, scores: pandas.Series, rhos: list, chosen: int, task: str) -> Figure:
    """A subnetwork's share in each head against GIM's score of the head, and the correlations of all subnetworks.

    >>> heads = pandas.Series({"a3.h0": 0.7, "a3.h1": 0.3})
    >>> figure = beside_gim(heads, heads, [0.1, 0.9], chosen=1, task="ioi")

    Args:
        shares, scores: a number for each head, by its name.
        rhos: the correlation of each subnetwork.
        chosen: the number of the subnetwork that was chosen for the task.
        task: the task's name.

    Returns:
        The figure.
    """
    figure, (left, right) = panels(2, 10, 3.8, width_ratios=(1.6, 1))
    blocks = [int(head[1:].partition(".")[0]) for head in shares.index]
    for block, marker in zip(dict.fromkeys(blocks), MARKERS):
        where = [b == block for b in blocks]
        left.scatter(scores[where], shares[where], marker=marker, color=BLUE, s=36, linewidth=0, label=f"block {block}")
    for head in scores.sort_values(ascending=False).index[:6]:
        left.annotate(head, (scores[head], shares[head]), (4, 4), textcoords="offset points", fontsize=9)
    left.margins(0.12)
    left.set(xlabel=f"|GIM score| of the head on {task} (logits)", ylabel="share of the subnetwork's squared norm",
             title=f"Subnetwork {chosen}, which selects {task}: ρ = {rhos[chosen]:.2f} ({len(shares)} heads)")
    left.legend(fontsize=9, frameon=True)
    others = [rho for which, rho in enumerate(rhos) if which != chosen]
    right.hist(others, bins=numpy.linspace(-1, 1, 17), color=GREY, label="other subnetworks")
    right.axvline(rhos[chosen], color=BLUE, linewidth=2.4, label=f"subnetwork {chosen}")
    right.set(xlabel="rank correlation with GIM's scores", ylabel="subnetworks", title="The control: all others")
    right.legend(fontsize=9, frameon=True)
    return figure
