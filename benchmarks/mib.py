"""MIB's circuit track on one model: `python -m benchmarks.mib MODEL`. Scores, CPR, CMD, and a folder to submit."""

import argparse
import hashlib
import math
import sys
from pathlib import Path
from typing import get_args

import pandas

import gimkit
from benchmarks.measuring import cost, free_mib
from benchmarks.mib_rows import made_rows
from benchmarks.tables import show
from figures.parts import Request
from gimkit.circuits import auroc, known, precision_recall
from gimkit.circuits.edges import METHODS as EDGE_METHODS
from gimkit.circuits.edges import EdgeScores
from gimkit.circuits.faithfulness import SIZES
from gimkit.circuits.nodes import METHODS as NODE_METHODS
from gimkit.cli import TASKS as KIT
from gimkit.cli import run_command
from gimkit.errors import GimkitError, check_all_known
from gimkit.tasks.measure import metric
from gimkit.tasks.mib import Name

TASKS = get_args(Name)
LEVELS = {"edge": (gimkit.score_edges, EDGE_METHODS), "node": (gimkit.score_nodes, NODE_METHODS)}
EAP_GP = ("ioi", "greater_than", "agreement", "pronoun", "capital", "hypernymy")  # the tasks of its figures
HAND_MADE = {"ioi": known.ioi, "greater_than": known.greater_than}
DEFAULT = {"edge": ("gradient", "gim", "ig-inputs", "random"), "node": ("gradient", "gim", "nap-ig", "random")}
SHORT = {"openai-community/gpt2": "gpt2", "gpt2": "gpt2", "Qwen/Qwen2.5-0.5B": "qwen2.5",
         "google/gemma-2-2b": "gemma2", "meta-llama/Llama-3.1-8B": "llama3"}  # the leaderboard's names
COLUMNS = ("task", "method", "cpr", "cpr_low", "cpr_high", "cmd", "cmd_low", "cmd_high", "accuracy", "scored",
           "evaluated", "pairs", "seconds", "cpu_seconds", "peak_mib", "auroc", "precision")


def pairs_at_once(model, score, task, most: int = 32) -> int:
    """How many prompt pairs a scoring pass takes: what one pair needs, by trial, into 60% of the memory that is free.

    >>> pairs_at_once(model, gimkit.score_edges, task)
    32

    Args:
        model: an nnsight model.
        score: `gimkit.score_edges` or `gimkit.score_nodes`.
        task: its longest pair is tried, by GIM.
        most: pairs.
    """
    longest = int(task.mask.sum(1).argmax())
    peak = cost(score, model, task[longest:longest + 1], "gim")[1]["peak_mib"]
    return int(min(most, max(1, 0.6 * free_mib(model) // max(1, peak)))) if peak == peak else 1


def evaluate(model, scores, task, sizes=SIZES) -> dict:
    """CPR by signed scores and CMD by absolute ones, with 95% intervals over the prompt pairs.

    >>> sorted(evaluate(model, edges, task[:4], sizes=(0.1, 1.0)))
    ['cmd', 'cmd_high', 'cmd_low', 'cpr', 'cpr_high', 'cpr_low']

    Raises:
        GimkitError: the clean prompts do not beat the corrupt ones.
    """
    row = {}
    for area, absolute in (("cpr", False), ("cmd", True)):
        curve = gimkit.faithfulness(model, task, scores, absolute=absolute, sizes=sizes)
        row |= dict(zip((area, f"{area}_low", f"{area}_high"), getattr(curve, area)()))
    return row


def measure(model, level: str, method: str, scored, evaluated, pairs: int,
            submission: tuple[Path, str] | None = None) -> pandas.DataFrame:
    """One row: a method's scores on one half of a task, its circuits on the other.

    Args:
        model: an nnsight model.
        level: "edge" or "node".
        method: of `gimkit.score_edges` or `gimkit.score_nodes`.
        scored, evaluated: tasks.
        pairs: scored at once.
        submission: where scores and circuits are written, and a cell's name, such as "ioi_gpt2".
    """
    score, _ = LEVELS[level]
    scores, spent = cost(score, model, scored, method, batch_size=pairs)
    row = {"task": scored.name, "method": method, "scored": len(scored), "evaluated": len(evaluated),
           "accuracy": float((metric(model, evaluated) > 0).float().mean()), "pairs": pairs, **spent}
    row |= against_known(scores, scored.name.removeprefix("mib-"))
    if submission:
        submit(scores, submission[0] / f"{method}_{level}", submission[1])
    try:
        row |= evaluate(model, scores, evaluated)
    except GimkitError as error:
        row |= dict.fromkeys(COLUMNS[2:8], math.nan) | {"note": str(error)}
    return pandas.DataFrame([row])


def submit(scores, folder: Path, cell: str) -> None:
    """Write what the leaderboard takes, in three folders: importances, and nine circuits each by two rankings.

    FOLDER/importances/CELL/importances.pt; FOLDER/circuits-signed/CELL/0.1.pt, ..., 50.pt with at most that per cent of
    edges (CPR); FOLDER/circuits-absolute/CELL/ the same by absolute scores (CMD). A submission is one of the three.
    """
    scores.save(folder / "importances" / cell / "importances.pt")
    for ranking, absolute in (("signed", False), ("absolute", True)):
        for share in SIZES[:-1]:
            items = scores.graph.n_edges if isinstance(scores, EdgeScores) else len(scores.nodes) - 1  # as faithfulness
            circuit = scores.top(int(share * items), absolute=absolute)
            circuit.save(folder / f"circuits-{ranking}" / cell / f"{100 * share:g}.pt")


def against_known(scores, name: str) -> dict:
    """AUROC, and precision (here equal to recall) at the size of the circuit found by hand; only for GPT-2 small.

    >>> against_known(edges, "ioi")                                      # another model
    {}
    """
    if scores.graph != known.GPT2_SMALL or name not in HAND_MADE:
        return {}
    circuit = HAND_MADE[name]()
    table = precision_recall(scores, circuit)
    hits = int(circuit.keep.sum()) if isinstance(scores, EdgeScores) else sum(
        node.startswith("a") for node in circuit.nodes)
    return {"auroc": auroc(scores, circuit), "precision": float(table.precision.iloc[hits - 1])}


def pairs_of(options, name: str, model) -> tuple:
    """The prompt pairs that give the scores, and those that evaluate circuits."""
    if options.rows == "kit":  # the kit's own task of that name, different prompts in both halves
        both = getattr(gimkit.tasks, name)(model, n=options.n + (options.evaluate or options.n))
        found = [both[:options.n], both[options.n:]]
    else:
        found = []
        for split, n in (("train", options.n), (options.split, options.evaluate)):
            data = (None if options.rows is None else made_rows(name, split, n or 100) if options.rows == "made"
                    else Path(options.rows) / f"{name}-{split}.jsonl")
            found.append(gimkit.tasks.mib(name, model, split=split, n=n, data=data))
    for use, task in zip(("scores", "circuits"), found):
        print(f"{name}, for {use}: {len(task)} pairs of up to {task.clean.shape[1]} tokens; dropped: "
              f"{'; '.join(task.dropped) or 'nothing'}", flush=True)
    return tuple(found)


def main(arguments: list[str] | None = None) -> int:
    """Measure every method on every task; bad input gives one line and exit code 2."""
    parser = argparse.ArgumentParser("python -m benchmarks.mib", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="as in gimkit.load")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: MIB's; with --rows kit EAP-GP's six")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="default: gradient, gim, integrated, random")
    parser.add_argument("--level", choices=LEVELS, default="edge")
    parser.add_argument("-n", type=int, default=100, help="train rows for the scores (default: %(default)s)")
    parser.add_argument("--evaluate", type=int, metavar="N", help="validation rows for the circuits (default: all)")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="of the evaluation")
    parser.add_argument("--rows", metavar="FOLDER", help="rows in FOLDER/TASK-SPLIT.jsonl; 'made': those of "
                        "benchmarks.mib_rows; 'kit': the tasks of gimkit.tasks (default: MIB's rows on the hub)")
    parser.add_argument("--parts", type=Path, default=Path("runs/mib"), help="folder of the finished parts, from which "
                        "an interrupted run continues (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="write the table here")
    parser.add_argument("--submit", type=Path, metavar="DIR", help="write the leaderboard's folders here")
    return run_command(_run, parser.parse_args(arguments))


def _run(options) -> None:
    methods = options.methods or DEFAULT[options.level]
    check_all_known("method", methods, LEVELS[options.level][1])
    tasks = options.tasks or (EAP_GP if options.rows == "kit" else TASKS)
    check_all_known("task", tasks, KIT if options.rows == "kit" else TASKS)
    request = Request(options.model, folder=options.parts)
    model, tables = request.model, []
    for name in tasks:
        try:
            scored, evaluated = pairs_of(options, name, model)
        except GimkitError as error:
            if len(tasks) == 1:
                raise
            print(f"{name}: left out: {error}", flush=True)
            continue
        pairs = pairs_at_once(model, LEVELS[options.level][0], scored)
        cell = f"{name.replace('_', '-')}_{SHORT.get(options.model, request.label)}"
        held_out = hashlib.sha256(evaluated.clean.numpy().tobytes()).hexdigest()[:16]
        for method in methods:
            def one(method=method, scored=scored, evaluated=evaluated, pairs=pairs, cell=cell) -> pandas.DataFrame:
                return measure(model, options.level, method, scored, evaluated, pairs,
                               (options.submit, cell) if options.submit else None)

            table = request.part(options.level, scored, method, one, evaluated=held_out, submit=bool(options.submit))
            tables.append(table)
            print(table.to_string(index=False, header=len(tables) == 1, float_format="{:.3f}".format), flush=True)
    if not tables:
        raise GimkitError("no task has usable rows for this model")
    table = pandas.concat(tables, ignore_index=True)
    for note in table.get("note", pandas.Series(dtype=str)).dropna().unique():
        print(note)
    shown = table[[name for name in COLUMNS if name in table]].assign(level=options.level, model=options.model)
    show(shown, options.csv,
         "CPR: circuits by signed scores; CMD: by absolute scores. 95% bootstrap intervals over the evaluated pairs.\n"
         "seconds, cpu_seconds, peak_mib: of scoring, so many pairs at once.")


if __name__ == "__main__":
    sys.exit(main())
