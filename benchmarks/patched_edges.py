"""Scores of edges compared with exact patching of a sample of them: `python -m benchmarks.patched_edges`."""

import sys
from pathlib import Path

import numpy
import pandas
from scipy import stats
from tqdm.auto import tqdm

import gimkit
from benchmarks.tables import cached_table, parser, show
from gimkit.cli import TASKS, run_command
from gimkit.errors import check_known, check_whole
from gimkit.statistics import bootstrap

COMPARED = ("gradient", "gim", "relp", "ig-inputs", "gim-ig", "random")
SAMPLED = 12  # nodes of each sample


def sampled_nodes(model, task, seed: int) -> dict[str, list[str]]:
    """Two samples of nodes, whose edges are patched: at random, and the strongest by averaged gradients ("nap-ig").

    >>> found = sampled_nodes(model, gimkit.tasks.ioi(model, n=2), seed=0)
    >>> list(found), len(found["random nodes"]), found["strongest nodes"][:2]
    (['random nodes', 'strongest nodes'], 14, ['input', 'logits'])
    """
    scores = gimkit.score_nodes(model, task, "nap-ig").frame().iloc[1:].set_index("node")["score"].abs()
    drawn = scores.sample(min(SAMPLED, len(scores)), random_state=seed)
    return {"random nodes": ["input", "logits", *drawn.index],
            "strongest nodes": ["input", "logits", *scores.nlargest(SAMPLED).index]}


def measure(name: str, tasks, methods=COMPARED, n: int = 4, seed: int = 0,
            folder: Path | None = None) -> pandas.DataFrame:
    """A row for each task, sample and edge: its exact effect, and a column for each method's score.

    >>> measure("mini-llama", ["ioi"], ["gim"], n=2).columns.tolist()
    ['task', 'sample', 'edge', 'exact', 'gim']

    Args:
        name: as in `gimkit.load`.
        tasks: of `gimkit.tasks`.
        methods: of `gimkit.score_edges`.
        n: prompt pairs of each task.
        seed: of the prompts and of the sample.
        folder: for each task's rows, so that an interrupted run can continue.
    Raises:
        GimkitError: there is no such task.
    """
    for task in tasks:
        check_known("task", task, TASKS)
    check_whole("n", n)
    model, found = gimkit.load(name), []
    for kind in tqdm(tasks, desc=f"edges of {name}", delay=2, leave=False):
        def rows(kind=kind) -> pandas.DataFrame:
            task = getattr(gimkit.tasks, kind)(model, n=n, seed=seed)
            scores = {method: gimkit.score_edges(model, task, method, seed=seed).frame() for method in methods}
            tables = []
            for sample, nodes in sampled_nodes(model, task, seed).items():
                exact = gimkit.score_edges(model, task, "exact", nodes=nodes)
                table = pandas.DataFrame({"sample": sample, "edge": exact.edges, "exact": exact.scores.double()})
                for method, frame in scores.items():
                    own = frame.set_index(frame["source"] + "->" + frame["target"])["score"]
                    table[method] = own[table["edge"]].to_numpy()
                tables.append(table)
            return pandas.concat(tables, ignore_index=True)

        about = {"scores": "edges", "model": name, "task": kind, "seed": seed, "n": n, "methods": list(methods)}
        path = folder and Path(folder) / Path(name).name / f"patched-edges-{kind}-{seed}-{n}.csv"
        table = cached_table(path, about, rows) if path else rows()
        table.insert(0, "task", kind)
        found.append(table)
    return pandas.concat(found, ignore_index=True)


def summarise(table: pandas.DataFrame, methods=COMPARED) -> pandas.DataFrame:
    """A row for each task, sample and method: agreement with the exact effects, with intervals over edges.

    Args:
        table: of `measure`.
        methods: its columns.
    Returns:
        spearman, pearson, with 95% bootstrap intervals over the sample's edges. sign: the share of the exact effect's
        size, sum of |exact|, on edges whose score has the same sign. size: sum of |score| over sum of |exact|.
        largest: the edge with the largest exact effect, that effect, and its score.
    """
    rows = []
    for (task, sample), own in table.groupby(["task", "sample"], sort=False):
        exact = own["exact"].to_numpy()
        for method in methods:
            score = own[method].to_numpy()
            row = {"task": task, "sample": sample, "method": method, "edges": len(own)}
            for label, correlation in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
                value = bootstrap(lambda i, r=correlation, s=score, e=exact: r(s[i], e[i])[0], len(own), resamples=299)
                row |= {label: value.value, f"{label}_low": value.low, f"{label}_high": value.high}
            right, largest = numpy.sign(score) == numpy.sign(exact), abs(exact).argmax()
            rows.append(row | {"sign": abs(exact)[right].sum() / abs(exact).sum(),
                               "size": abs(score).sum() / abs(exact).sum(), "largest": own["edge"].iloc[largest],
                               "largest_exact": exact[largest], "largest_score": score[largest]})
    return pandas.DataFrame(rows)


def main(arguments: list[str] | None = None) -> int:
    """Print how well each method agrees with exact patching of edges; bad input gives one line and exit code 2."""
    options = parser("python -m benchmarks.patched_edges", "Scores of edges against exact patching of a sample.", 4, 1)
    options.add_argument("--tasks", nargs="+", metavar="TASK", default=("ioi", "induction", "agreement"),
                         help="default: three of gimkit.tasks")
    options.add_argument("--parts", type=Path, help="a folder for what is measured, to continue an interrupted run")
    return run_command(_print_agreement, options.parse_args(arguments))


def _print_agreement(options) -> None:
    """Print the table, and save it where wanted."""
    check_whole("seeds", options.seeds)
    drawn = [measure(options.model, options.tasks, COMPARED, options.n, seed, options.parts)
             for seed in range(options.seeds)]
    show(summarise(pandas.concat(drawn)), options.csv,
         "Agreement with exact patching of the edges among some nodes; 95% bootstrap intervals over edges.")


if __name__ == "__main__":
    sys.exit(main())
