"""What `python -m gimkit demo` shows: one model, one task, tokens, heads and MLPs, figures."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas
import torch

import gimkit
from gimkit import plots
from gimkit.circuits import NodeScores
from gimkit.statistics import bootstrap
from gimkit.tasks import Pair
from gimkit.tasks.measure import metric

METHODS = ("gim", "gradient")
TOKENS = {"gim": "GIM", "gradient": "plain gradient", "occlusion": "exact: the word is taken out"}
FIGURES = Path("figures")


def demo(name: str, n: int = 16, seed: int = 0) -> None:
    """Solve IOI, attribute one prompt's tokens, rank heads and MLPs, patch the strongest, draw figures.

    For example `demo("mini-llama")`, which takes some seconds.

    Args:
        name: of a model, as in `gimkit.load`.
        n: number of IOI prompt pairs.
        seed: of the prompts.
    """
    start = time.monotonic()
    print(f"Loading {name} ...", flush=True)
    model = gimkit.load(name)
    task = gimkit.tasks.ioi(model, n=n, seed=seed)
    clean, corrupt = metric(model, task), metric(model, replace(task, clean=task.corrupt))
    pair = task[0]
    print(f"""
1. The task: indirect object identification, {n} pairs of prompts.
     clean    "{pair.clean}" -> {pair.answer}, not {pair.wrong}
     corrupt  "{pair.corrupt}"
   Right in {int((clean > 0).sum())} of {n}. Mean logit difference {clean.mean():+.2f}, corrupt {corrupt.mean():+.2f}.
""", flush=True)

    tokens = [gimkit.attribute(model, pair.clean, target=(pair.answer, pair.wrong), method=m) for m in TOKENS]
    table = pandas.DataFrame({"token": tokens[0].tokens} | {t.method: t.scores.tolist() for t in tokens})
    print(f"2. Which tokens of that clean prompt speak for {pair.answer} and against {pair.wrong} (logits)?")
    print(_indented(table), flush=True)

    estimates = [gimkit.score_nodes(model, task, method=m) for m in METHODS]
    chosen = strongest(estimates)
    print(f"\n3. Which of the {len(estimates[0].nodes) - 1} heads and MLPs matter? Each method estimates it from one "
          f"forward and one backward pass.\n   Exact patching checks the strongest dozen of each, {len(chosen)} in all:"
          " one at a time takes its corrupt output.\n   A part that both rate too low is not among them.", flush=True)
    exact = gimkit.score_nodes(model, task, method="exact", nodes=chosen)
    checked = [scores.select(chosen) for scores in estimates]
    table = pandas.DataFrame({"node": exact.nodes} | {s.method: s.scores.tolist() for s in (exact, *checked)})
    print(_indented(table.sort_values("exact", key=abs, ascending=False)))
    verdict = judged(checked, exact)
    print(f"   Against exact patching, over these {len(chosen)} (95% bootstrap interval over prompts):")
    for line in verdict:
        print(f"     {line}")

    drawn = _draw(Path(name).name, pair, tokens, estimates, checked, exact, verdict)
    print("\n4. Figures, each as png and svg, numbers in figures/data/, captions in figures/CAPTIONS.md:")
    for path in drawn:
        print(f"     {path}")
    print(f"\nDone in {time.monotonic() - start:.0f} s. Next: `make lab`, then notebooks/00_*.ipynb and on.")


def strongest(estimates: list[NodeScores], n: int = 12) -> list[str]:
    """The heads and MLPs that are among the n of largest |score| by any of the methods, in the model's order.

    >>> strongest([nodes, gimkit.score_nodes(model, task, method="gradient")], n=2)
    ['a0.h3', 'a2.h1', 'a3.h1']

    Args:
        estimates: `NodeScores` of the same nodes by different methods.
        n: how many of each method.
    """
    chosen = set()
    for scores in estimates:
        parts = scores.frame().query("kind != 'input'").set_index("node")
        chosen |= set(parts["score"].abs().nlargest(n).index)
    return [node for node in estimates[0].nodes if node in chosen]


def judged(checked: list[NodeScores], exact: NodeScores) -> list[str]:
    """What exact patching says of two methods' scores of the same nodes, a sentence for each measure.

    A method is called better where the difference's bootstrap interval over prompts leaves 0 out.
    """
    from scipy import stats  # slow to import

    truth = exact.per_example.double().numpy()
    estimated = {s.method: s.per_example.double().numpy() for s in checked}

    def rank(method, rows):
        return stats.spearmanr(estimated[method][rows].mean(0), truth[rows].mean(0)).statistic

    def error(method, rows):
        return abs(estimated[method][rows].mean(0) - truth[rows].mean(0)).sum() / abs(truth[rows].mean(0)).sum()

    def sentence(what, measure, larger_is_better):
        found = {method: bootstrap(partial(measure, method), len(truth)) for method in estimated}
        worse, better = sorted(found, key=lambda method: found[method].value, reverse=not larger_is_better)
        difference = bootstrap(lambda rows: measure(better, rows) - measure(worse, rows), len(truth))
        clear = f"{better} is better" if difference.low > 0 or difference.high < 0 else "no clear difference"
        return f"{what}: {', '.join(f'{method} {interval}' for method, interval in found.items())}; {clear}"

    return [sentence("Rank correlation", rank, True),
            sentence("Error (sum of |estimate - exact| / sum of |exact|)", error, False)]


def _indented(table: pandas.DataFrame) -> str:
    """A table as indented text; scores have a sign and two decimals."""
    text = table.to_string(index=False, float_format="{:+.2f}".format)
    return "\n".join("     " + line for line in text.splitlines())


def _draw(label: str, pair: Pair, tokens: list, estimates: list, checked: list, exact: NodeScores,
          verdict: list[str]) -> list[Path]:
    """Write the three figures to figures/ and return the paths of their png files."""
    figure = plots.token_heat({TOKENS[scores.method]: scores for scores in tokens}).figure
    best = [scores.tokens[int(scores.scores.argmax())].strip() for scores in tokens]
    drawn = [plots.save(
        figure, FIGURES / f"demo-{label}-tokens", pandas.concat([scores.frame() for scores in tokens]),
        f'Heat maps over "{pair.clean}", on one colour scale: how much each token speaks for {pair.answer} and against '
        f"{pair.wrong}. "
        f"Largest: {best[0]} under GIM, {best[1]} under the plain gradient, {best[2]} when taken out.")]

    frame = pandas.concat([scores.frame() for scores in estimates])
    figure, axes = plots.panels(2, 11, 2.2 + 0.25 * frame["layer"].max())
    most = float(frame.loc[frame["kind"] != "input", "score"].abs().max())
    for ax, scores in zip(axes, estimates):
        plots.node_grid(scores, ax=ax, most=most)
    drawn.append(plots.save(
        figure, FIGURES / f"demo-{label}-nodes", frame,
        f"Grids of layers by heads and MLP on {exact.task}: GIM and the plain gradient, on one colour scale. "
        f"Among the three strongest by either: {', '.join(strongest(estimates, 3))}."))

    values = torch.stack([scores.scores for scores in (exact, *checked)])
    low, high = float(values.min()), float(values.max())
    room = 0.12 * (high - low)
    figure, axes = plots.panels(2, 11, 5.6)
    for ax, scores in zip(axes, checked):
        ax.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal")
        plots.method_scatter(scores, exact, ax=ax)
    drawn.append(plots.save(
        figure, FIGURES / f"demo-{label}-methods", pandas.concat([scores.frame() for scores in (exact, *checked)]),
        f"Scatter of the scores of {len(exact.nodes)} heads and MLPs, the strongest dozen of GIM and that of the plain "
        "gradient, by each method against exact patching, on equal axes; on the dashed line an estimate is right. "
        f"{'. '.join(verdict)}."))
    return drawn
