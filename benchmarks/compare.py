"""CPR and CMD of every edge method on every task: `python -m benchmarks.compare`."""

import argparse
import sys
import time
from pathlib import Path

import pandas

import gimkit
from benchmarks.measuring import growing
from gimkit.circuits.edges import METHODS
from gimkit.cli import TASKS, run_command
from gimkit.errors import GimkitError, check_known, check_whole
from gimkit.files import write_table

COMPARED = tuple(method for method in METHODS if method != "temperature")
AREAS = tuple(f"{area}{end}" for area in ("cpr", "cmd") for end in ("", "_low", "_high"))


def compare(name: str, tasks=TASKS, methods=COMPARED, n: int = 32,
            seeds: int = 1, seed: int = 0) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Score the edges of a model by every method on some prompts, cut circuits, and run them on other prompts.

    >>> table, curves = compare("mini-llama", ["ioi"], ["gim", "random"], n=4)
    >>> table.columns.tolist()                                                  # a row per task, seed and method
    ['model', 'task', 'seed', 'method', 'cpu_seconds', 'growth_mib', 'cpr', 'cpr_low', 'cpr_high', 'cmd', ...]
    >>> len(curves)                                     # two methods, ten sizes, signed and absolute ranking
    40

    Half of each draw of prompts gives the scores, the other half evaluates the circuits, as MIB has a train and a
    validation split. A task that the model does not solve has rows with empty numbers and a note.

    Args:
        name: as in `gimkit.load`.
        tasks: of `gimkit.tasks`.
        methods: of `gimkit.score_edges`.
        n: prompt pairs for scores, and as many others for the evaluation; all 2n are different.
        seeds: draws of each task.
        seed: of the first draw.
    Returns:
        Two tables. The first has a row for each task, seed and method. cpr: with signed ranking; cmd: with absolute
        ranking; both over linear shares (`gimkit.circuits.Curve`), with 95% bootstrap intervals over the n prompts.
        cpu_seconds: of scoring, for the whole process. growth_mib: the largest growth of the process's resident memory
        while scoring (`benchmarks.measuring.growing`; empty except on Linux). The second has faithfulness by seed,
        task, method, ranking and share. requested: that share of the edges; edges: those of them without dead ends.
    Raises:
        GimkitError: there is no such task or method.
    """
    for given, known, what in ((tasks, TASKS, "task"), (methods, METHODS, "method")):
        for one in given:
            check_known(what, one, known)
    check_whole("n", n)
    check_whole("seeds", seeds)
    model, rows, curves = gimkit.load(name), [], []
    for task_name in tasks:
        for draw_seed in range(seed, seed + seeds):
            drawn = getattr(gimkit.tasks, task_name)(model, n=2 * n, seed=draw_seed)
            scored, evaluated = drawn[:len(drawn) // 2], drawn[len(drawn) // 2:]
            if not rows:
                gimkit.score_edges(model, scored, "gradient")  # so that no method has the cost of the first trace
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
    """Means over seeds, a row for each task and method.

    >>> table = pandas.DataFrame({"model": "m", "task": "ioi", "method": "gim", "seed": [0, 1], "cpr": [0.8, 1.0]})
    >>> over_seeds(table)[["cpr", "solved"]].values.tolist()
    [[0.9, 2.0]]

    Args:
        table: the first of `compare`.
    Returns:
        The means. solved: the number of seeds with a CPR and a CMD.
    """
    by = table.drop(columns="seed").groupby(["model", "task", "method"], sort=False)
    return by.mean(numeric_only=True).assign(solved=by["cpr"].count()).reset_index()


def main(arguments: list[str] | None = None) -> int:
    """Print CPR and CMD of every method on every task; bad input gives one line and exit code 2."""
    parser = argparse.ArgumentParser("python -m benchmarks.compare",
                                     description="CPR and CMD of every edge-scoring method on every task.")
    parser.add_argument("model", metavar="NAME", help="a bundled name, a folder or a hub id")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", default=TASKS, help="default: all of gimkit.tasks")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", default=COMPARED, help="default: all")
    parser.add_argument("-n", type=int, default=32, help="prompt pairs a task for scores, and as many others to "
                        "evaluate circuits (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="draws of prompts (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="write a row per seed here, and the curves to NAME-curves.csv")
    return run_command(_print_comparison, parser.parse_args(arguments))


def _print_comparison(options) -> None:
    """Print the table, and save both tables where wanted."""
    table, curves = compare(options.model, options.tasks, options.methods, n=options.n, seeds=options.seeds)
    print("Scores are from some prompts, circuits run on others. Means over seeds, also of the ends of the 95%\n"
          "bootstrap intervals over prompts; growth_mib: the largest growth of resident memory while scoring.")
    print(over_seeds(table).to_string(index=False, float_format="{:.2f}".format))
    for note in table.get("note", pandas.Series(dtype=str)).dropna().unique():
        print(note)
    if options.csv:
        for frame, path in ((table, options.csv), (curves, options.csv.with_name(f"{options.csv.stem}-curves.csv"))):
            write_table(path, frame, digits=4)
            print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
