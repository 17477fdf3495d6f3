"""Every scoring method on every task, side by side: `python -m gimkit compare`."""

import resource
import time

import pandas

import gimkit
from gimkit.circuits.edges import METHODS
from gimkit.errors import GimkitError
from gimkit.rules import LADDER

TASKS = ("ioi", "greater_than", "agreement", "pronoun", "capital", "hypernymy", "odd_one_out", "induction", "ioi_twice")
COMPARED = tuple(method for method in METHODS if method not in LADDER or method in ("gradient", "freeze", "gim"))


def compare(name: str, tasks=TASKS, methods=COMPARED, n: int = 32, seed: int = 0) -> pandas.DataFrame:
    """Score the edges of one model by every method, cut circuits, run them.

    >>> compare("mini-gpt2", tasks=["ioi"], methods=["gim", "random"])          # a row per task and method
       model task method cpr cpr_low cpr_high cmd cmd_low cmd_high seconds peak_mib

    name: whatever `gimkit.load` takes. n, seed: of each task's prompt pairs; scores and circuits use the same ones.
    cpr: signed ranking, cmd: absolute ranking, over linear shares (`gimkit.circuits.Curve`), with 95% bootstrap
    intervals over examples. seconds: of scoring. peak_mib: the process's highest resident memory so far.
    A task that the model does not solve is reported with empty numbers, not left out.
    Raises GimkitError for unknown tasks.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise GimkitError(f"unknown task {unknown[0]!r}; use {', '.join(TASKS)}")
    model, rows = gimkit.load(name), []
    for task_name in tasks:
        task = getattr(gimkit.tasks, task_name)(model, n=n, seed=seed)
        for method in methods:
            start = time.perf_counter()
            edges = gimkit.score_edges(model, task, method)
            row = {"model": name, "task": task_name, "method": method, "seconds": time.perf_counter() - start,
                   "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
            try:
                cpr = gimkit.faithfulness(model, task, edges, absolute=False).cpr()
                cmd = gimkit.faithfulness(model, task, edges, absolute=True).cmd()
                row |= {"cpr": cpr.value, "cpr_low": cpr.low, "cpr_high": cpr.high,
                        "cmd": cmd.value, "cmd_low": cmd.low, "cmd_high": cmd.high}
            except GimkitError as error:
                row["note"] = str(error)
            rows.append(row)
    return pandas.DataFrame(rows)
