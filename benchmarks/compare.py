"""CPR and CMD of every edge method on every task: `python -m benchmarks.compare`."""

import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy
import pandas
from tqdm.auto import tqdm

import gimkit
from benchmarks.measuring import growing
from benchmarks.tables import cached_table, parser
from gimkit.circuits.edges import METHODS
from gimkit.cli import TASKS, run_command
from gimkit.errors import GimkitError, check_all_known, check_whole
from gimkit.files import write_table
from gimkit.statistics import Interval, bootstrap

COMPARED = tuple(method for method in METHODS if method != "temperature")
AREAS = {"cpr": "signed", "cmd": "absolute"}  # and the ranking that MIB takes for it
MEASURED = ("ranking", "share", "requested", "edges", "prompt", "metric", "empty", "full")


def compare(name: str, tasks=TASKS, methods=COMPARED, n: int = 32, seeds: int = 1, seed: int = 0,
            scored: int | None = None, folder: Path | None = None) -> pandas.DataFrame:
    """Score the edges of a model by every method on some prompts, cut circuits, and run them on other prompts.

    >>> runs = compare("mini-llama", ["ioi"], ["gim", "random"], n=4)
    >>> runs.columns.tolist()                     # a row per task, seed, method, ranking, size and prompt
    ['model', 'task', 'seed', 'method', 'cpu_seconds', 'growth_mib', 'ranking', 'share', 'requested', 'edges', ...]
    >>> len(runs)                                 # two methods, signed and absolute ranking, ten sizes, four prompts
    160

    The first prompts of each draw give the scores, the others evaluate the circuits, as MIB has a train and a
    validation split. A task that the model does not solve has one row with a note, and empty numbers.

    Args:
        name: as in `gimkit.load`.
        tasks: of `gimkit.tasks`.
        methods: of `gimkit.score_edges`.
        n: prompt pairs for the evaluation of circuits.
        scored: other prompt pairs, for scores; n when None.
        seeds: draws of each task.
        seed: of the first draw.
        folder: for the rows of each task, draw and method, so that an interrupted run can continue.
    Returns:
        metric, empty, full: of the circuit, of no edges and of all edges, on that prompt. requested: that share of the
        edges; edges: those of them without dead ends. cpu_seconds: of scoring, for the whole process. growth_mib: the
        largest growth of the process's resident memory while scoring (`benchmarks.measuring.growing`; empty except on
        Linux).
    Raises:
        GimkitError: there is no such task or method.
    """
    for given, known, what in ((tasks, TASKS, "task"), (methods, METHODS, "method")):
        check_all_known(what, given, known)
    check_whole("n", n)
    check_whole("seeds", seeds)
    scored = n if scored is None else check_whole("scored", scored)
    model, found, warm = gimkit.load(name), [], False
    work = [(task, draw, method) for task in tasks for draw in range(seed, seed + seeds) for method in methods]
    for task, draw, method in tqdm(work, desc=f"edges of {name}", delay=2, leave=False):
        about = {"model": name, "task": task, "seed": draw, "method": method, "n": n, "scored": scored}

        def measure(task=task, draw=draw, method=method):
            nonlocal warm
            drawn = getattr(gimkit.tasks, task)(model, n=scored + n, seed=draw)
            if not warm:
                gimkit.score_edges(model, drawn[:scored], "gradient")  # no method has the cost of the first trace
                warm = True
            return _circuit_runs(model, drawn[:scored], drawn[scored:], method, draw)

        path = folder and Path(folder) / Path(name).name / f"edges-{task}-{draw}-{method}-{scored}-{n}.csv"
        rows = cached_table(path, about, measure) if path else measure()
        found.append(rows.assign(model=name, task=task, seed=draw, method=method))
    runs = pandas.concat(found, ignore_index=True)
    first = ["model", "task", "seed", "method"]
    return runs[first + [column for column in runs if column not in first]]


def _circuit_runs(model, scored, evaluated, method: str, seed: int) -> pandas.DataFrame:
    """The metric of each circuit on each evaluated prompt, from scores on other prompts."""
    start = time.process_time()
    edges, growth = growing(gimkit.score_edges, model, scored, method, seed=seed)
    about = {"cpu_seconds": time.process_time() - start, "growth_mib": growth}
    try:
        curves = [gimkit.faithfulness(model, evaluated, edges, absolute=absolute) for absolute in (False, True)]
    except GimkitError as error:
        return pandas.DataFrame([about | dict.fromkeys(MEASURED, float("nan")) | {"note": str(error)}])
    return pandas.concat([pandas.DataFrame(about | {
        "ranking": "absolute" if curve.absolute else "signed", "share": share,
        "requested": int(share * edges.graph.n_edges), "edges": kept, "prompt": range(len(evaluated)),
        "metric": values.double(), "empty": curve.empty.double(), "full": curve.full.double(), "note": ""})
        for curve in curves for share, kept, values in zip(curve.shares, curve.edges, curve.per_example)])


def curves(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Faithfulness by task, seed, method, ranking and share: 0 for the corrupt model and 1 for the whole one.

    >>> runs = pandas.DataFrame({"model": "m", "task": "ioi", "seed": 0, "method": "gim", "ranking": "signed",
    ...                          "share": [0.5, 1.0], "requested": [1, 2], "edges": [1, 2], "metric": [2.0, 3.0],
    ...                          "empty": 1.0, "full": 3.0})
    >>> curves(runs).faithfulness.tolist()
    [0.5, 1.0]

    Args:
        runs: of `compare`.
    """
    by = ["model", "task", "seed", "method", "ranking", "share", "requested", "edges"]
    means = runs.groupby(by, sort=False)[["metric", "empty", "full"]].mean()
    return ((means["metric"] - means["empty"]) / (means["full"] - means["empty"])).rename("faithfulness").reset_index()


class _Draw(NamedTuple):
    """One draw's circuits of one method: metrics [sizes, n] by ranking, and of no edges and of all edges, [n]."""

    shares: numpy.ndarray
    circuits: dict[str, numpy.ndarray]
    empty: numpy.ndarray
    full: numpy.ndarray

    def area(self, area: str, index: numpy.ndarray) -> float:
        """CPR, CMD or compactness over some of the prompts.

        Compactness is the area of 1 - |1 - faithfulness|, at least 0, over log share, divided by that axis' length: 1
        is best, small circuits count as much as large ones, and overshoot costs what it costs in CMD.
        """
        empty, full = self.empty[index].mean(), self.full[index].mean()
        kept = (self.circuits[AREAS.get(area, "absolute")][:, index].mean(1) - empty) / (full - empty)
        if area == "compactness":
            x = numpy.log(self.shares)
            return float(numpy.trapezoid((1 - abs(1 - kept)).clip(0), x) / (x[-1] - x[0]))
        return float(numpy.trapezoid(kept if area == "cpr" else abs(1 - kept), self.shares))


def _draws(runs: pandas.DataFrame) -> dict[tuple, _Draw]:
    """{(task, method, seed): its draw}, without those that the model did not solve."""
    found = {}
    for key, rows in runs.dropna(subset="metric").groupby(["task", "method", "seed"], sort=False):
        tables = {ranking: own.pivot(index="share", columns="prompt", values="metric")
                  for ranking, own in rows.groupby("ranking")}
        ends = rows[["prompt", "empty", "full"]].drop_duplicates("prompt").sort_values("prompt")
        found[key] = _Draw(tables["signed"].index.to_numpy(), {key: own.to_numpy() for key, own in tables.items()},
                           ends["empty"].to_numpy(), ends["full"].to_numpy())
    return found


def _mean_area(draws: list[_Draw], area: str, minus: list[_Draw] | None = None) -> Interval:
    """The mean area over draws, or by how much it is above another method's on the same prompts.

    Prompts are drawn with replacement within each draw.
    """
    def statistic(index: numpy.ndarray) -> float:
        own = numpy.mean([draw.area(area, index) for draw in draws])
        return float(own - (numpy.mean([draw.area(area, index) for draw in minus]) if minus else 0))

    return bootstrap(statistic, len(draws[0].full))


def by_seed(runs: pandas.DataFrame) -> pandas.DataFrame:
    """A row for each task, seed and method: CPR and CMD with 95% bootstrap intervals over prompts, and the cost.

    Args:
        runs: of `compare`.
    Returns:
        cpr: with signed ranking; cmd: with absolute ranking; both over linear shares (`gimkit.circuits.Curve`). Empty
        where the model does not solve the task; note says so.
    """
    draws, rows = _draws(runs), []
    for (model, task, seed, method), own in runs.groupby(["model", "task", "seed", "method"], sort=False):
        row = {"model": model, "task": task, "seed": seed, "method": method,
               "cpu_seconds": own["cpu_seconds"].iloc[0], "growth_mib": own["growth_mib"].iloc[0]}
        for area in AREAS:
            draw = draws.get((task, method, seed))
            value = (float("nan"),) * 3 if draw is None else _mean_area([draw], area)
            row |= dict(zip((area, f"{area}_low", f"{area}_high"), value))
        rows.append(row | {"note": own["note"].iloc[0]})
    return pandas.DataFrame(rows)


def over_seeds(runs: pandas.DataFrame, against: str = "gim") -> pandas.DataFrame:
    """A row for each task and method: CPR and CMD as means over draws, and the lead of one method.

    >>> over_seeds(compare("mini-llama", ["ioi"], ["gim", "random"], n=4))[["method", "solved"]].values.tolist()
    [['gim', 1], ['random', 1]]

    Args:
        runs: of `compare`.
        against: the method whose lead is computed.
    Returns:
        solved: the number of draws with a CPR and a CMD. For each area its mean over them, a 95% bootstrap interval
        over the prompts within draws (low, high), the draws with the lowest and the highest value (min, max), and
        cpr_ahead, cmd_ahead: what the other method has more of, on the same prompts and draws, with its interval.
    """
    draws, rows = _draws(runs), []
    for (model, task, method), own in runs.groupby(["model", "task", "method"], sort=False):
        found = {seed: draws[task, method, seed] for seed in own["seed"].unique() if (task, method, seed) in draws}
        both = [seed for seed in found if (task, against, seed) in draws]
        row = {"model": model, "task": task, "method": method, "solved": len(found),
               "cpu_seconds": own.groupby("seed")["cpu_seconds"].first().mean()}
        for area in AREAS:
            single = [draw.area(area, numpy.arange(len(draw.full))) for draw in found.values()]
            value = _mean_area(list(found.values()), area) if found else (float("nan"),) * 3
            ahead = _mean_area([draws[task, against, seed] for seed in both], area,
                               minus=[found[seed] for seed in both]) if both else (float("nan"),) * 3
            row |= dict(zip((area, f"{area}_low", f"{area}_high"), value))
            row |= {f"{area}_{end.__name__}": end(single, default=float("nan")) for end in (min, max)}
            row |= dict(zip((f"{area}_ahead", f"{area}_ahead_low", f"{area}_ahead_high"), ahead))
        rows.append(row)
    return pandas.DataFrame(rows)


def main(arguments: list[str] | None = None) -> int:
    """Print CPR and CMD of every method on every task; bad input gives one line and exit code 2."""
    options = parser("python -m benchmarks.compare", "CPR and CMD of every edge-scoring method on every task.", 32, 1,
                     "write a row per draw here, means over draws to NAME-mean.csv, the curves to NAME-curves.csv")
    options.add_argument("--tasks", nargs="+", metavar="TASK", default=TASKS, help="default: all of gimkit.tasks")
    options.add_argument("--methods", nargs="+", metavar="METHOD", default=COMPARED, help="default: all")
    options.add_argument("--scored", type=int, help="other prompt pairs, for the scores (default: as many)")
    options.add_argument("--parts", type=Path, help="a folder for what is measured, to continue an interrupted run")
    return run_command(_print_comparison, options.parse_args(arguments))


def _print_comparison(options) -> None:
    """Print the table, and save the tables where wanted."""
    runs = compare(options.model, options.tasks, options.methods, n=options.n, seeds=options.seeds,
                   scored=options.scored, folder=options.parts)
    table = over_seeds(runs)
    print("Scores are from some prompts, circuits run on others. Means over draws, 95% bootstrap intervals over\n"
          "prompts; ahead: what GIM has more of, on the same prompts.")
    print(table.to_string(index=False, float_format="{:.2f}".format))
    for note in runs["note"].dropna().unique():
        if note:
            print(note)
    if options.csv:
        stem = options.csv.stem
        for frame, path in ((by_seed(runs), options.csv), (curves(runs), options.csv.with_name(f"{stem}-curves.csv")),
                            (table, options.csv.with_name(f"{stem}-mean.csv"))):
            write_table(path, frame, digits=4)
            print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
