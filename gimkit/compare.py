"""Every scoring method on every task, side by side: `python -m gimkit compare`."""

import time

import pandas

import gimkit
from gimkit.circuits.edges import METHODS
from gimkit.errors import GimkitError, check_whole
from gimkit.memory import growing
from gimkit.plots_compare import faithfulness_by_edges
from gimkit.rules import LADDER

TASKS = ("ioi", "greater_than", "agreement", "pronoun", "capital", "hypernymy", "odd_one_out", "induction", "ioi_twice")
COMPARED = tuple(method for method in METHODS if method not in LADDER or method in ("gradient", "freeze", "gim"))
AREAS = tuple(f"{area}{end}" for area in ("cpr", "cmd") for end in ("", "_low", "_high"))
DRAWN_TASKS, DRAWN = TASKS[:6], {"gradient": "EAP", "ig-inputs": "EAP-IG", "gp": "EAP-GP", "gim": "GIM"}


def compare(name: str, tasks=TASKS, methods=COMPARED, n: int = 32,
            seeds: int = 1, seed: int = 0) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Score the edges of one model by every method on some prompts, cut circuits, run them on other prompts.

    >>> table, curves = compare("mini-llama", ["ioi"], ["gim", "random"], n=4)
    >>> table.columns.tolist()                                                  # a row per task, seed and method
    ['model', 'task', 'seed', 'method', 'cpu_seconds', 'growth_mib', 'cpr', 'cpr_low', 'cpr_high', 'cmd', ...]
    >>> len(curves)                                     # two methods, ten sizes, signed and absolute ranking
    40

    name: whatever `gimkit.load` takes. `seeds` draws of 2n different prompt pairs of each task, the first by `seed`;
    half of a draw gives the scores, the other half evaluates the circuits, as MIB has a train and a validation split.
    cpr: signed ranking, cmd: absolute ranking, over linear shares (`gimkit.circuits.Curve`), with 95% bootstrap
    intervals over the n prompts. cpu_seconds: of scoring, of the whole process. growth_mib: by how much the process's
    resident memory grew at most while scoring (`gimkit.memory.growing`; empty elsewhere than on Linux).
    curves: faithfulness by seed, task, method, ranking and share; requested: that share of the edges, edges: how many
    of them are no dead ends.
    A task that the model does not solve is reported with empty numbers and a note, not left out.
    Raises GimkitError for unknown tasks or methods.
    """
    for given, known, what in ((tasks, TASKS, "task"), (methods, METHODS, "method")):
        unknown = [one for one in given if one not in known]
        if unknown:
            raise GimkitError(f"unknown {what} {unknown[0]!r}; use {', '.join(known)}")
    check_whole("n", n)
    check_whole("seeds", seeds)
    model, rows, curves = gimkit.load(name), [], []
    for task_name in tasks:
        for draw_seed in range(seed, seed + seeds):
            drawn = getattr(gimkit.tasks, task_name)(model, n=2 * n, seed=draw_seed)
            scored, evaluated = drawn[:len(drawn) // 2], drawn[len(drawn) // 2:]
            if not rows:
                gimkit.score_edges(model, scored, "gradient")  # what only the first trace costs is no method's cost
            for method in methods:
                start = time.process_time()
                edges, growth = growing(gimkit.score_edges, model, scored, method, seed=draw_seed)
                row = {"model": name, "task": task_name, "seed": draw_seed, "method": method,
                       "cpu_seconds": time.process_time() - start, "growth_mib": growth}
                row |= dict.fromkeys(AREAS, float("nan"))
                try:
                    for area, absolute in (("cpr", False), ("cmd", True)):
                        curve = gimkit.faithfulness(model, evaluated, edges, absolute=absolute)
                        row |= dict(zip((area, f"{area}_low", f"{area}_high"), getattr(curve, area)()))
                        requested = [int(share * edges.graph.n_edges) for share in curve.shares]
                        curves.append(curve.frame().assign(model=name, seed=draw_seed, requested=requested))
                except GimkitError as error:
                    row["note"] = str(error)
                rows.append(row)
    return pandas.DataFrame(rows), pandas.concat(curves) if curves else pandas.DataFrame()


def over_seeds(table: pandas.DataFrame) -> pandas.DataFrame:
    """Means over seeds, a row per task and method; solved: on how many seeds' prompts there is a CPR and CMD."""
    by = table.drop(columns="seed").groupby(["model", "task", "method"], sort=False)
    return by.mean(numeric_only=True).assign(solved=by["cpr"].count()).reset_index()


def drawing(curves: pandas.DataFrame):
    """EAP-GP's comparison: faithfulness by number of edges for EAP, EAP-IG, EAP-GP and GIM on six tasks.

    >>> curves = compare("mini-llama", ["ioi"], ["gim", "gradient"], n=4)[1]
    >>> figure, rows, text = drawing(curves)

    curves: from `compare`; of its tasks and methods those six and four are drawn, with absolute ranking. Returns the
    matplotlib figure, the rows that it shows, and its alternative text. Raises GimkitError when none of them is there.
    """
    if curves.empty or not (curves.task.isin(DRAWN_TASKS) & curves.method.isin(list(DRAWN))).any():
        raise GimkitError(f"nothing to draw: the figure is of {', '.join(DRAWN)} on {', '.join(DRAWN_TASKS)}")
    chosen = curves[curves.task.isin(DRAWN_TASKS) & curves.method.isin(list(DRAWN)) & (curves.ranking == "absolute")]
    chosen = chosen.sort_values("method", key=lambda names: names.map(list(DRAWN).index), kind="stable")
    chosen = chosen.assign(method=chosen.method.map(DRAWN))
    axes = faithfulness_by_edges(chosen)
    away = (1 - chosen.faithfulness).abs().groupby([chosen.task, chosen.method], sort=False).mean()
    told = "; ".join(f"{task}: " + ", ".join(f"{method} {value:.2f}" for method, value in part.droplevel(0).items())
                     for task, part in away.groupby(level=0, sort=False))
    alt = (f"Faithfulness against number of edges on {chosen.model.iloc[0]}, a panel per task, a line per method, mean "
           f"over draws of prompts ({chosen.seed.nunique()}). Mean distance from 1 over the sizes: {told}.")
    return axes[0].figure, chosen, alt
