"""Scores of heads and MLPs compared with exact patching, in rank and in size: `python -m benchmarks.patched_nodes`."""

import sys
from itertools import product
from pathlib import Path

import numpy
import pandas
from scipy import stats
from tqdm.auto import tqdm

import gimkit
from benchmarks.ladder import LADDER
from benchmarks.tables import cached_table, parser
from gimkit.cli import TASKS, run_command
from gimkit.errors import check_all_known, check_whole
from gimkit.files import write_table
from gimkit.rules import RULES, Rules
from gimkit.statistics import bootstrap

DRAWN = ("ioi", "ioi_twice", "induction", "agreement", "capital", "greater_than")
COMPARED = {name: name for name in (*RULES, "nap-ig", "random")} | {
    name: rules for name, rules in LADDER.items() if name not in RULES} | {
    "freeze+qkv": Rules(freeze_norm=True, q=0.25, k=0.25, v=0.5),
    "freeze+gate": Rules(freeze_norm=True, gate=0.5, up=0.5),
    "relp+temperature": RULES["relp"]._replace(temperature=2.0)}
RESAMPLES, GROUPS = 199, 5


def recall(score: numpy.ndarray, exact: numpy.ndarray, most: int) -> float:
    """The share of the nodes with the largest |exact| that are also among those with the largest |score|.

    >>> recall(numpy.array([3.0, -2.0, 0.1]), numpy.array([1.0, 0.0, -5.0]), 2)
    0.5
    """
    best = [set(abs(values).argsort()[-most:].tolist()) for values in (score, exact)]
    return len(best[0] & best[1]) / most


def _spearman(score: numpy.ndarray, exact: numpy.ndarray) -> numpy.ndarray:
    """Spearman's correlation of the last axes; scipy's is slower, and its bootstrap calls it thousands of times."""
    ranks = [stats.rankdata(values, axis=-1) for values in (score, exact)]
    a, b = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    return (a * b).sum(-1) / numpy.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def _within_layers(score: numpy.ndarray, exact: numpy.ndarray, layer: numpy.ndarray) -> float:
    """Spearman's correlation inside each layer, mean over layers: blind to how scores shrink with depth.

    >>> round(_within_layers(numpy.array([1.0, 2.0, 30.0, 40.0]), numpy.array([10.0, 20.0, 3.0, 4.0]),
    ...                      numpy.array([0, 0, 1, 1])), 3)
    1.0
    """
    return float(_spearman(*(values.reshape(layer.max() + 1, -1) for values in (score, exact))).mean())


def _among_strongest(score: numpy.ndarray, exact: numpy.ndarray) -> float:
    """Spearman's correlation over the 30 nodes with the largest |exact| alone: most nodes have next to no effect."""
    best = abs(exact).argsort()[-30:]
    return float(_spearman(score[best], exact[best]))


def _size_of(score: numpy.ndarray, exact: numpy.ndarray) -> float:
    """The sum of |score| as a multiple of the sum of |exact|."""
    return abs(score).sum() / abs(exact).sum()


def _typical_size(score: numpy.ndarray, exact: numpy.ndarray) -> float:
    """The median of |score| / |exact| over the 30 nodes with the largest |exact|."""
    best = abs(exact).argsort()[-30:]
    return float(numpy.median(abs(score[best]) / abs(exact[best])))


STATISTICS = {
    "spearman": lambda score, exact, layer: _spearman(score, exact),
    "within": _within_layers,
    "strongest": lambda score, exact, layer: _among_strongest(score, exact),
    "pearson": lambda score, exact, layer: numpy.corrcoef(score, exact)[0, 1],
    "recall_10": lambda score, exact, layer: recall(score, exact, 10),
    "recall_30": lambda score, exact, layer: recall(score, exact, min(30, len(exact))),
    "ratio": lambda score, exact, layer: _typical_size(score, exact),
    "size": lambda score, exact, layer: _size_of(score, exact),
} | {f"size_{part + 1}": lambda score, exact, layer, part=part: _size_of(
    *(values[layer * GROUPS // (layer.max() + 1) == part] for values in (score, exact))) for part in range(GROUPS)}


def measure(name: str, tasks=DRAWN, methods=tuple(COMPARED), n: int = 8, seeds: int = 3,
            folder: Path | None = None) -> pandas.DataFrame:
    """A row for each task, draw, method and node, and a column for each prompt.

    >>> scores = measure("mini-llama", ["ioi"], ["gim"], n=2, seeds=1)
    >>> scores.method.unique().tolist(), len(scores)              # 25 heads and MLPs
    (['exact', 'gim'], 50)

    Args:
        name: as in `gimkit.load`.
        tasks: of `gimkit.tasks`.
        methods: names in COMPARED; "exact" is always measured.
        n: prompt pairs of each draw.
        seeds: draws of each task.
        folder: for the rows of each task, draw and method, so that an interrupted run can continue.
    Raises:
        GimkitError: there is no such task or method.
    """
    for given, known, what in ((tasks, TASKS, "task"), (methods, COMPARED, "method")):
        check_all_known(what, given, known)
    check_whole("n", n)
    check_whole("seeds", seeds)
    model, found = gimkit.load(name), []
    work = [(task, seed, method) for task in tasks for seed in range(seeds) for method in ("exact", *methods)]
    for task, seed, method in tqdm(work, desc=f"nodes of {name}", delay=2, leave=False):
        def scores(task=task, seed=seed, method=method) -> pandas.DataFrame:
            drawn = getattr(gimkit.tasks, task)(model, n=n, seed=seed)
            result = gimkit.score_nodes(model, drawn, COMPARED.get(method, method), seed=seed)
            nodes = result.frame()[["node", "layer"]]
            values = pandas.DataFrame(result.per_example.T.double().numpy()).add_prefix("prompt_")
            return nodes.join(values)[nodes["node"] != "input"]

        about = {"scores": "nodes", "model": name, "task": task, "seed": seed, "method": method, "n": n}
        path = folder and Path(folder) / Path(name).name / f"nodes-{task}-{seed}-{method}-{n}.csv"
        rows = cached_table(path, about, scores) if path else scores()
        found.append(rows.assign(model=name, task=task, seed=seed, method=method))
    return pandas.concat(found, ignore_index=True)


def summarise(scores: pandas.DataFrame) -> pandas.DataFrame:
    """A row for each task, method and statistic: its value, its interval and its range over draws.

    Args:
        scores: of `measure`.
    Returns:
        spearman, pearson: of the mean scores over all prompts with those of exact patching. within: Spearman inside
        each layer, mean over layers. strongest: Spearman over exact patching's strongest 30. recall_10, recall_30: the
        share of exact patching's strongest that are among the method's. ratio: the median of |score| / |exact| over
        exact patching's strongest 30. size: sum of |score| over sum of |exact|; size_1 ... size_5: the same in each
        fifth of the layers. low, high: 95% bootstrap intervals over prompts; min, max: the draws with the lowest and
        the highest value.
    """
    prompts, rows = [column for column in scores if column.startswith("prompt_")], []
    for (model, task), group in scores.groupby(["model", "task"], sort=False):
        layer = group[(group["method"] == "exact") & (group["seed"] == group["seed"].min())]["layer"].to_numpy()
        values = {method: numpy.concatenate([own[prompts].to_numpy() for _, own in drawn.groupby("seed")], 1)
                  for method, drawn in group.groupby("method", sort=False)}  # [nodes, prompts of all draws]
        n = values["exact"].shape[1]
        draws = numpy.split(numpy.arange(n), group["seed"].nunique())
        for method, (name, statistic) in product([method for method in values if method != "exact"],
                                                 STATISTICS.items()):
            def of(index, method=method, statistic=statistic, values=values, layer=layer):
                return float(statistic(values[method][:, index].mean(1), values["exact"][:, index].mean(1), layer))

            single = [of(draw) for draw in draws]
            rows.append((model, task, method, name, *bootstrap(of, n, resamples=RESAMPLES), min(single), max(single),
                         n))
    return pandas.DataFrame(rows, columns=["model", "task", "method", "statistic", "value", "low", "high", "min", "max",
                                           "prompts"])


def main(arguments: list[str] | None = None) -> int:
    """Print how well each method agrees with exact patching; bad input gives one line and exit code 2."""
    options = parser("python -m benchmarks.patched_nodes",
                     "Scores of heads and MLPs against exact patching, in rank and size.", 8, 3)
    options.add_argument("--tasks", nargs="+", metavar="TASK", default=DRAWN, help="default: six of gimkit.tasks")
    options.add_argument("--methods", nargs="+", metavar="METHOD", default=tuple(COMPARED), help="default: all")
    options.add_argument("--parts", type=Path, help="a folder for what is measured, to continue an interrupted run")
    return run_command(_print_agreement, options.parse_args(arguments))


def _print_agreement(options) -> None:
    """Print the values, and save the table where wanted."""
    table = summarise(measure(options.model, options.tasks, options.methods, options.n, options.seeds, options.parts))
    wide = table.pivot_table("value", ["task", "method"], "statistic", sort=False)
    print("Agreement with exact patching of heads and MLPs, over all prompts:")
    print(wide.to_string(float_format="{:.2f}".format))
    if options.csv:
        write_table(options.csv, table, digits=4)
        print(f"wrote {options.csv}")


if __name__ == "__main__":
    sys.exit(main())
