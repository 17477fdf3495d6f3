"""GIM's first figures: the toy, and attention scores ablated alone and together."""

import pandas

import gimkit
from figures import papers
from figures.parts import Request
from gimkit import plots
from gimkit.selfrepair import SelfRepair

TOYS = {"two that say the same": ((6, 6, 0, 0, 0), (10, 10, 0, 0, 0)), "one alone": ((6, 0, 0, 0, 0), (10, 0, 0, 0, 0))}
PROMPTS = 4
REPAIRED = ("ioi", "ioi_twice", "induction")


def toy(_: Request):
    """Two made-up attention rows: (figure, table, alternative text)."""
    frame = pandas.concat([plots.saturation_effects(*rows).query("share == 1").assign(row=name)
                           for name, rows in TOYS.items()], ignore_index=True)[["row", "by", "lowered", "effect"]]
    by = frame.set_index(["row", "by", "lowered"])["effect"]
    twice, alone = ({key[1:]: value for key, value in by.items() if key[0] == name} for name in TOYS)
    alt = (f"Bars for two made-up attention rows. Two positions that say the same: ablating one costs "
           f"{twice['truth', 'first']:.3f}, both {twice['truth', 'both']:.3f}; the gradient predicts "
           f"{twice['gradient', 'both']:.3f}, at temperature 2 {twice['gradient, T = 2', 'both']:.3f}. One position "
           f"alone: ablating it costs {alone['truth', 'first']:.3f}, with the empty second one "
           f"{alone['truth', 'both']:.3f}; gradient {alone['gradient', 'both']:.3f}, at temperature 2 "
           f"{alone['gradient, T = 2', 'both']:.3f}.")
    return papers.toy(frame), frame, alt


def _repairs(request: Request) -> list[SelfRepair]:
    """The self-repair of each task, measured or read back, on a few prompts, because each has hundreds of rows."""
    found = []
    for name in request.chosen(REPAIRED):
        task = request.task(name)[:PROMPTS]
        rows = request.part("self-repair", task, "scores", lambda t=task: gimkit.self_repair(request.model, t).rows)
        found.append(SelfRepair(name, 1.0, rows, 0, float("nan")))
    return found


def ablation_effect(request: Request):
    """Joint effects against sums of single effects: (figure, table, alternative text)."""
    return _scatters(request, plots.ablation_effect, lambda rows: (rows.d1 + rows.d2, rows.d12),
                    "Joint effect of two ablated attention scores against the sum of their single effects",
                    "rows have a joint effect above the sum")


def grad_vs_tsg(request: Request):
    """Tempered against plain gradient sums: (figure, table, alternative text)."""
    return _scatters(request, plots.grad_vs_tsg, lambda rows: (rows.gradient, rows.tsg),
                    "Gradient sum of two attention scores at temperature 2 against the plain one",
                    "rows have a larger gradient at temperature 2")


def _scatters(request: Request, draw, xy, title: str, above: str):
    """A panel for each task.

    Args:
        request: of the figure.
        draw: a function of `gimkit.plots` that draws one task's scatter.
        xy: a function of the rows that returns the plotted numbers.
        title: the start of the text.
        above: the words for points above the diagonal.
    """
    found = _repairs(request)
    figure, axes = papers.panels(len(found), 4.0 * len(found), 3.7)
    for repair, ax in zip(found, axes):
        draw(repair, ax=ax)
    plotted, notes = [], []
    for repair in found:
        rows = repair.frame()
        x, y = xy(rows)
        plotted.append(rows[["example", "layer", "head", "query"]].assign(x=x, y=y, flagged=rows.flagged.astype(int)))
        plotted[-1].insert(0, "task", repair.name)
        notes.append(f"{repair.name}: {(y > x).sum()} of {len(rows)} {above}")
    frame = pandas.concat(plotted, ignore_index=True)
    return figure, frame, f"{title}, {request.label}. {'; '.join(notes)}."
