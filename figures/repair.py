"""GIM's first figures: the toy, and attention scores ablated alone and together; heads that compensate for heads."""

import numpy
import pandas
import torch

import gimkit
from figures import papers
from figures.parts import Request
from gimkit import plots
from gimkit.selfrepair import SelfRepair

TOYS = {"two that say the same": ((6, 6, 0, 0, 0), (10, 10, 0, 0, 0)), "one alone": ((6, 0, 0, 0, 0), (10, 0, 0, 0, 0))}
PROMPTS = 4
REPAIRED = ("ioi", "ioi_twice", "induction")
SCALE = 0.02  # of random weights: what these models are initialised with


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


def random_weights(name: str, seed: int = 0):
    """The model with matrices of normal random numbers: the same shape, nothing learnt; norms keep their weights.

    >>> model = random_weights("mini-llama")
    """
    model = gimkit.load(name)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for weight in model._module.parameters():
            if weight.dim() > 1:
                weight.normal_(0, SCALE)
    return model


def control(request: Request):
    """The share of attention rows whose joint effect is above the sum, trained and with random weights: as the others.

    Random weights have small contributions, so both models are asked for the same share of rows, those with the
    largest second contribution.
    """
    task, found, notes = request.task(request.chosen(("ioi",))[0])[:PROMPTS], [], []
    for kind in ("trained", "random weights"):
        def rows(kind=kind) -> pandas.DataFrame:
            model = request.model if kind == "trained" else random_weights(request.name, request.seed)
            return gimkit.self_repair(model, task, threshold=0.0).rows

        table = request.part("self-repair", task, f"all, {kind}", rows)
        second = table[["contribution_i", "contribution_j"]].min(axis=1)
        top = table[second >= second.quantile(0.98)]
        found.append(SelfRepair(f"{task.name}, {kind}", 0.0, top, len(table) - len(top), float(second.max())))
        more = (top["d12"] > top["d1"] + top["d2"]).mean()
        notes.append(f"{kind}: {(second > 1).sum()} of {len(table)} rows have two contributions above 1, the largest "
                     f"second one is {second.max():.2g}; among the 2% of rows with the largest one the joint effect is "
                     f"above the sum in {more:.0%}, median interaction {top['interaction'].median():.2f}")
    figure, axes = papers.panels(2, 9, 3.9)
    for repair, ax in zip(found, axes):
        plots.ablation_effect(repair, ax=ax)
    frame = pandas.concat([repair.frame().assign(weights=kind) for repair, kind in zip(found, ("trained", "random"))])
    return figure, frame, (f"Joint effect of two ablated attention scores against the sum of their single effects, "
                           f"{request.label} and the same model with random weights. {'; '.join(notes)}.")


def heads(request: Request):
    """Direct against total effects of heads, and what compensates for the two most repaired: (figure, table, text)."""
    task = request.task(request.chosen(("ioi",))[0])
    repair = gimkit.selfrepair.head_repair(request.model, task)
    table, parts = repair.frame(), repair.compensation_frame()
    strong = table.loc[table["direct"].abs().nlargest(8).index]
    repaired = strong["repaired"] * numpy.sign(strong["direct"])  # above 0: the others make up for the head
    chosen = strong.loc[repaired.nlargest(2).index, "ablated"].tolist()
    figure, axes = papers.panels(3, 14, 4.4, width_ratios=(1.25, 1, 1))
    plots.direct_against_total(repair, ax=axes[0])
    notes = []
    for head, ax in zip(chosen, axes[1:]):
        plots.head_compensation(repair, head, ax=ax)
        own = parts[parts["ablated"] == head].set_index("part")["compensation"]
        row = table.set_index("ablated").loc[head]
        best = own.loc[own.abs().nlargest(5).index]
        notes.append(f"{head}: direct {row.direct:+.2f}, total {row.total:+.2f}, repaired {row.repaired:+.2f} "
                     f"[{row.low:+.2f}, {row.high:+.2f}], of it the final norm {row.by_norm:+.2f}; largest parts "
                     + ", ".join(f"{part} {value:+.2f}" for part, value in best.items()))
    frame = pandas.concat([table, parts[parts["ablated"].isin(chosen)]], ignore_index=True)
    return figure, frame, (f"Total against direct effect of ablating each head of {request.label} on {task.name}, in "
                           f"logits, and what compensates for the two of the eight "
                           f"strongest that are repaired most. "
                           f"{'; '.join(notes)}.")
