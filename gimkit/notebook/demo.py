"""`python -m gimkit demo`: one model and one task; tokens, heads and MLPs; figures."""

import time
from dataclasses import replace
from pathlib import Path

import pandas

import gimkit
from gimkit import plots
from gimkit.tasks.measure import metric

METHODS = ("gim", "gradient")
FIGURES = Path("figures")


def demo(name: str, n: int = 64, seed: int = 0) -> None:
    """Solve IOI, attribute one prompt's tokens, rank heads and MLPs and compare with exact patching, draw figures.

    For example `demo("mini-llama")`, which takes some seconds.

    Args:
        name: whatever `gimkit.load` takes.
        n, seed: of the IOI prompts.
    """
    start = time.monotonic()
    print(f"Loading {name} ...", flush=True)
    model = gimkit.load(name)
    task = gimkit.tasks.ioi(model, n=n, seed=seed, names="held-out")
    clean, corrupt = metric(model, task), metric(model, replace(task, clean=task.corrupt))
    pair = task[0]
    print(f"""
1. The task: indirect object identification, {n} pairs of prompts, names that the bundled models never saw together.
     clean    "{pair.clean}" -> {pair.answer}, not {pair.wrong}
     corrupt  "{pair.corrupt}"
   Right in {int((clean > 0).sum())} of {n}. Mean logit difference {clean.mean():+.2f}, corrupt {corrupt.mean():+.2f}.
""", flush=True)

    tokens = [gimkit.attribute(model, pair.clean, target=(pair.answer, pair.wrong), method=m) for m in METHODS]
    table = pandas.DataFrame({"token": tokens[0].tokens} | {t.method: t.scores.tolist() for t in tokens})
    print(f"2. Which tokens of that clean prompt speak for {pair.answer} and against {pair.wrong} (logits)?")
    print(_indented(table), flush=True)

    print("\n3. Which heads and MLPs matter? Exact patching: one at a time takes its corrupt output ...", flush=True)
    exact = gimkit.score_nodes(model, task, method="exact")
    print("   ... and the same, estimated from one forward and one backward pass.", flush=True)
    estimates = [gimkit.score_nodes(model, task, method=m) for m in METHODS]
    table = pandas.DataFrame({"node": exact.nodes} | {s.method: s.scores.tolist() for s in (exact, *estimates)})
    table = table[table.node != "input"].sort_values("exact", key=abs, ascending=False)
    print(_indented(table.head(10)))
    correlations = {s.method: gimkit.circuits.rank_correlation(s, exact) for s in estimates}
    print(f"   Rank correlation with exact patching over all {len(table)} heads and MLPs (95% bootstrap interval):")
    for method, interval in correlations.items():
        print(f"     {method:<10} {interval}")

    drawn = _draw(Path(name).name, pair, tokens, exact, estimates, correlations)
    print("\n4. Figures, each as png and svg, numbers in figures/data/, captions in figures/CAPTIONS.md:")
    for path in drawn:
        print(f"     {path}")
    print(f"\nDone in {time.monotonic() - start:.0f} s. Next: `make lab`, then notebooks/00_*.ipynb and on.")


def _indented(table: pandas.DataFrame) -> str:
    """A table as indented text; scores have a sign and two decimals."""
    text = table.to_string(index=False, float_format="{:+.2f}".format)
    return "\n".join("     " + line for line in text.splitlines())


def _draw(label: str, pair, tokens: list, exact, estimates: list, correlations: dict) -> list[Path]:
    """Write the three figures to figures/ and return the paths of their png files."""
    figure, axes = plots.panels(2, 11, 4.2)
    for ax, scores in zip(axes, tokens):
        plots.token_bars(scores, ax=ax)
    best = [scores.tokens[int(scores.scores.argmax())] for scores in tokens]
    drawn = [plots.save(
        figure, FIGURES / f"demo-{label}-tokens", pandas.concat([scores.frame() for scores in tokens]),
        f'Bars: how much each token of "{pair.clean}" speaks for {pair.answer} and against {pair.wrong}. '
        f"Largest: {best[0]} under GIM, {best[1]} under the plain gradient.")]

    frame = pandas.concat([scores.frame() for scores in (exact, *estimates)])
    parts = frame[(frame.method == "exact") & (frame.kind != "input")].set_index("node")
    figure, axes = plots.panels(3, 15, 4.2)
    for ax, scores in zip(axes, (exact, *estimates)):
        plots.node_grid(scores, ax=ax)
    drawn.append(plots.save(
        figure, FIGURES / f"demo-{label}-nodes", frame,
        f"Grids of layers by heads and MLP on {exact.task}: exact patching, GIM and the plain gradient. "
        f"The strongest part by exact patching is {parts.score.abs().idxmax()}."))

    figure, axes = plots.panels(2, 11, 4.2)
    for ax, scores in zip(axes, estimates):
        plots.method_scatter(scores, exact, ax=ax)
    drawn.append(plots.save(
        figure, FIGURES / f"demo-{label}-methods", frame,
        "Scatter of each head's and MLP's estimated score against exact patching. Rank correlation: "
        + "; ".join(f"{method} {interval}" for method, interval in correlations.items()) + "."))
    return drawn
