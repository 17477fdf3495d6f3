"""Scores of heads and MLPs compared with sampled Shapley values: `python -m benchmarks.shapley_nodes NAME`."""

import sys

import numpy
import pandas
from scipy import stats

import gimkit
from benchmarks.tables import parser, show
from gimkit.circuits import shapley_nodes
from gimkit.circuits.nodes import METHODS
from gimkit.cli import run_command
from gimkit.errors import check_known, check_whole
from gimkit.statistics import Interval, bootstrap

RESAMPLES = 299
TASKS = {
    "ioi": lambda *given: gimkit.tasks.ioi(*given, names="held-out"),
    "ioi twice": lambda *given: gimkit.tasks.ioi_twice(*given, names="held-out"),
    "odd one out": lambda *given: gimkit.tasks.odd_one_out(*given, names="held-out"),
    "induction, three times": lambda *given: gimkit.tasks.induction(*given, times=3),
    "named three times": lambda *given: gimkit.tasks.ioi_twice(*given, names="held-out", times=3),
}


def compare_nodes(name: str, tasks=tuple(TASKS), methods=METHODS, n: int = 16, seeds=(0, 1, 2),
                  orders: int = 4) -> pandas.DataFrame:
    """A row for each task, seed and method: the correlation of mean scores with mean Shapley values over nodes.

    >>> compare_nodes("mini-llama", ["ioi"], ["gim"], n=4, seeds=[0], orders=1).columns.tolist()[:5]
    ['model', 'task', 'seed', 'method', 'pearson']

    Args:
        name: as in `gimkit.load`.
        tasks: names in TASKS.
        methods: of `gimkit.score_nodes`.
        n: prompt pairs of each task and seed.
        seeds: of the prompts.
        orders: as in `gimkit.circuits.shapley_nodes`.
    Returns:
        Correlations with 95% bootstrap intervals over prompts; methods and truth are resampled together. noise: Pearson
        of the truth with itself from other orders, an upper bound for all methods. share: the sum of scores divided by
        the sum of Shapley values; for "exact" it is below 1 where nodes are redundant. flagged: Pearson over the
        n_flagged heads that the self-repair analysis flags (`repaired_heads`).
    Raises:
        GimkitError: there is no such task or method.
    """
    for kind in tasks:
        check_known("prompt set", kind, TASKS)
    model, rows = gimkit.load(name), []
    for kind in tasks:
        for seed in seeds:
            task = TASKS[kind](model, n, seed)
            worth = [shapley_nodes(model, task, orders=orders, seed=s) for s in (seed, seed + 1000)]
            parts = worth[0].nodes[1:]  # without the embedding
            truth, other = (columns(scores, parts) for scores in worth)
            noise = stats.pearsonr(truth.mean(0), other.mean(0)).statistic
            flagged = [parts.index(head) for head in repaired_heads(model, task)]
            for method in methods:
                scores = columns(gimkit.score_nodes(model, task, method), parts)
                row = {"model": name, "task": kind, "seed": seed, "method": method}
                everything = list(range(len(parts)))
                for label, correlation, kept in (("pearson", stats.pearsonr, everything),
                                                 ("spearman", stats.spearmanr, everything),
                                                 ("flagged", stats.pearsonr, flagged)):
                    value = Interval(*[float("nan")] * 3) if len(kept) < 3 else bootstrap(
                        lambda i, r=correlation, s=scores[:, kept], t=truth[:, kept]: r(s[i].mean(0), t[i].mean(0))[0],
                        n, resamples=RESAMPLES)
                    row |= {label: value.value, f"{label}_low": value.low, f"{label}_high": value.high}
                rows.append(row | {"noise": noise, "share": scores.sum() / truth.sum(), "n_flagged": len(flagged)})
    return pandas.DataFrame(rows)


def repaired_heads(model, task) -> list[str]:
    """The heads with more than 5% of their attention rows above the 95% quantile of interaction.

    >>> repaired_heads(model, gimkit.tasks.ioi(model, n=16))
    ['a1.h2', 'a1.h3', 'a2.h3', ...]
    """
    share = gimkit.self_repair(model, task).frame().groupby(["layer", "head"]).flagged.mean()
    return [f"a{layer}.h{head}" for (layer, head), flagged in share.items() if flagged > 0.05]


def columns(scores, names) -> numpy.ndarray:
    """The scores of some nodes for each example, [n, names].

    >>> columns(nodes, ["a0.h0", "m0"]).shape                    # 64 examples
    (64, 2)
    """
    return scores.per_example[:, [scores.nodes.index(name) for name in names]].double().numpy()


def main(arguments: list[str] | None = None) -> int:
    """Print the correlations of all node methods; bad input gives one line and exit code 2."""
    options = parser("python -m benchmarks.shapley_nodes",
                     "Scores of heads and MLPs against their sampled Shapley values.", 12, 3)
    options.add_argument("--sets", nargs="+", metavar="SET", default=tuple(TASKS), help="prompt sets, default: all")
    return run_command(_print_correlations, options.parse_args(arguments))


def _print_correlations(options) -> None:
    """Print the table, and save it where wanted."""
    check_whole("seeds", options.seeds)
    table = compare_nodes(options.model, options.sets, n=options.n, seeds=range(options.seeds))
    show(table, options.csv, "Correlation with sampled Shapley values; noise: of those with another sample.")


if __name__ == "__main__":
    sys.exit(main())
