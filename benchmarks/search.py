"""Which backward rules are best for tokens, nodes and edges: `python -m benchmarks.search NAME ...`.

A name is a model's, or "compiled" or "trained": all models of `benchmarks.planted` of that kind. Tasks are halved by
name before anything is tried (`benchmarks.rankings.halves`). Settings are compared on the search half; what is best
there, is judged on the held-out half, beside GIM, RelP and the gradient.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy
import pandas
from scipy import stats
from tqdm.auto import tqdm

import gimkit
from benchmarks.compare import _circuit_runs, _draws
from benchmarks.patched_nodes import STATISTICS
from benchmarks.planted.aligned import ALIGNED
from benchmarks.planted.measure import KINDS, average_precision, noisy, ranked, trained, truth_of
from benchmarks.planted.prompts import PROGRAMS
from benchmarks.rankings import halves
from benchmarks.shapley_tokens import BUNDLED, prompts
from benchmarks.tables import cached_table
from gimkit.circuits.edges import AVERAGED
from gimkit.cli import TASKS, run_command
from gimkit.errors import check_all_known
from gimkit.files import write_table
from gimkit.rules import PLAIN, RULES, Rules
from gimkit.statistics import bootstrap

NONE, HALVED, SPLIT = {}, dict(q=0.5, k=0.5), dict(q=0.25, k=0.25, v=0.5)
AGAINST = ("gim", "gradient", "relp")
KNOWN = ("gradient", "gim", "relp", "attnlrp", "freeze")


def label(rules: Rules) -> str:
    """A preset's name, or the settings that are not the plain gradient's.

    >>> label(Rules(temperature=2.0, freeze_norm=True)), label(RULES["gim"])
    ('temperature=2 freeze_norm', 'gim')
    """
    known = [name for name in RULES if RULES[name] == rules]
    changed = [key if value is True else f"{key}={value:g}" for key, value in rules._asdict().items()
               if value != getattr(PLAIN, key)]
    return known[0] if known else " ".join(changed)


GRID = {label(rules): rules for rules in [
    *RULES.values(),
    *(Rules(temperature=t, freeze_norm=True, identity_activation=act, **split, **gate)
      for t, split, gate, act in product((1.0, 2.0, 4.0), (NONE, HALVED, SPLIT), (NONE, dict(gate=0.5, up=0.5)),
                                         (False, True))),
    *(Rules(temperature=t, **split, gate=0.5, up=0.5) for t, split in product((1.0, 2.0), (NONE, SPLIT))),
    Rules(freeze_norm=True, detach_attention=True, gate=0.5, up=0.5),
    Rules(freeze_norm=True, detach_attention=True, gate=0.5, up=0.5, identity_activation=True)]}
AVERAGE = " at 5 points"
HIGH = {"edges cmd": -1, "edges cpr": 1, "nodes strongest": 1, "nodes pearson": 1, "tokens pearson": 1,
        "edges average precision": 1}
CHANGES = {  # from, to
    "T = 2 instead of 1": (dict(temperature=1.0), dict(temperature=2.0)),
    "T = 4 instead of 2": (dict(temperature=2.0), dict(temperature=4.0)),
    "norms frozen": (dict(freeze_norm=False), dict(freeze_norm=True)),
    "queries, keys halved": (dict(q=1.0, k=1.0), HALVED),
    "GIM's split instead": (HALVED, SPLIT),
    "gated products halved": (dict(gate=1.0, up=1.0), dict(gate=0.5, up=0.5)),
    "act(x) / x": (dict(identity_activation=False), dict(identity_activation=True)),
    "attention patterns constant": (dict(detach_attention=False), dict(detach_attention=True))}
TARGETS = ("edges", "nodes", "tokens")
REAL_SETS = ("agreement", "capital", "ioi twice", "ioi, filled in", "redundant, twice", "redundant, three times")
REAL = "smollm2-135m"  # it does not solve odd_one_out


def method_of(setting: str) -> tuple:
    """What `gimkit.score_edges` takes for a setting, and a context; its name + AVERAGE averages over EAP-IG's points.

    >>> method_of("gim" + AVERAGE)[0]
    'gim-ig'
    """
    rules = GRID[setting.removesuffix(AVERAGE)]
    if setting.endswith(AVERAGE):
        return "gim-ig", patch.dict(AVERAGED, {"gim-ig": rules})
    return rules, nullcontext()


def _edges(model, task: str, setting: str, n: int, scored: int) -> pandas.DataFrame:
    drawn, (method, context) = getattr(gimkit.tasks, task)(model, n=scored + n, seed=0), method_of(setting)
    with context:
        return _circuit_runs(model, drawn[:scored], drawn[scored:], method, 0)


def _nodes(model, task: str, setting: str, n: int, scored: int) -> pandas.DataFrame:
    drawn = getattr(gimkit.tasks, task)(model, n=scored, seed=0)
    found = gimkit.score_nodes(model, drawn, GRID.get(setting, "exact"))
    return pandas.DataFrame(found.per_example[:, 1:].T.double().numpy())  # without the embedding


def _tokens(model, kind: str, setting: str, n: int, scored: int) -> pandas.DataFrame:
    found = []
    for text, target, free in prompts(model, kind, scored, 0):
        if setting == "exact":
            scores = gimkit.tokens.shapley(model, text, target, free=free).scores[free]
        else:
            scores = gimkit.attribute(model, text, target, free=free, method=GRID[setting]).scores[free]
        found.append(pandas.Series(scores.double().numpy()))
    return pandas.DataFrame(found)  # a row a prompt, padded with NaN


def _compiled(program: str, setting: str) -> pandas.DataFrame:
    """Average precision for two seeds of the weights' noise."""
    return _precision(program, setting, [(program, seed) for seed in range(2)])


def _trained(program: str, setting: str) -> pandas.DataFrame:
    """Average precision for each trained model of a program."""
    return _precision(program, setting, [(name, 0) for name in trained() if name.startswith(f"{program}-")])


def _precision(program: str, setting: str, models: list[tuple[str, int]]) -> pandas.DataFrame:
    values, (method, context) = [], method_of(setting)
    for name, seed in models:
        model, task, _ = _noisy(name, seed) if name == program else _plain(name)
        with context:
            values.append(average_precision(*ranked(gimkit.score_edges(model, task, method), _truth(name),
                                                    pairs=name != program)))
    return pandas.DataFrame({"value": values})


_truth, _noisy, _plain = cache(truth_of), cache(noisy), cache(partial(noisy, seed=0, noises=[0.0]))


def parts(name: str, target: str, settings, n: int, scored: int, wanted=("search", "held out"),
          folder: Path | None = None, tasks=None) -> dict:
    """{(setting, task): what was measured}, for one model, target, and the tasks of some halves.

    >>> sorted(parts("compiled", "edges", ["gim"], 2, 2, ["search"]))
    [('gim', 'brackets'), ('gim', 'induction'), ('gim', 'pattern')]
    """
    if name in KINDS:
        measure = {"compiled": _compiled, "trained": _trained}[name]
    else:
        measure = partial({"edges": _edges, "nodes": _nodes, "tokens": _tokens}[target], gimkit.load(name), n=n,
                          scored=scored)
    settings = settings if target == "edges" else ["exact", *settings]
    found = {}
    split = {task: half for task, half in halves_of(name, target).items()
             if half in wanted and (tasks is None or task in tasks)}
    work = [(task, setting) for task, setting in product(split, settings)
            if split[task] == "held out" or not setting.endswith(AVERAGE)]  # averages are judged, not searched
    for task, setting in tqdm(work, desc=f"{target} of {name}", delay=2, leave=False):
        about = {"search": 1, "model": name, "target": target, "task": task, "setting": setting, "n": n,
                 "scored": scored}
        path = folder and Path(folder) / name / f"{target}-{task}-{setting}-{scored}-{n}.csv".replace(" ", "_")

        def run(task=task, setting=setting) -> pandas.DataFrame:
            return measure(task, setting)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[setting, task] = cached_table(path, about, run) if path else run()
    return found


def halves_of(name: str, target: str) -> dict[str, str]:
    """{task: "search" or "held out"} of a model's tasks, programs or prompt sets.

    >>> halves_of("compiled", "edges")["brackets"], halves_of("mini-llama", "tokens")["ioi"]
    ('search', 'held out')
    """
    sets = REAL_SETS if name == REAL else BUNDLED
    names = {"compiled": PROGRAMS, "trained": ALIGNED}.get(name, sets if target == "tokens" else TASKS)
    return {task: half for task, half in halves(names).items() if (name, task) != (REAL, "odd_one_out")}


def statistics_of(found: dict, target: str, name: str) -> dict[str, dict[tuple, tuple[Callable, int]]]:
    """{statistic: {(setting, task): (a function of prompts' indices, how many prompts there are)}}."""
    if name in KINDS:  # all programs of a half together: intervals draw from them
        split, values = halves_of(name, target), {}
        for (setting, program), own in found.items():
            values.setdefault((setting, split[program]), []).extend(own["value"])
        return {"edges average precision": {key: _mean_of(numpy.array(own)) for key, own in values.items()}}
    if target == "edges":
        draws = {(setting, task): _draws(own.assign(task=task, method=setting, seed=0))[task, setting, 0]
                 for (setting, task), own in found.items() if own["metric"].notna().all()}
        return {f"edges {area}": {key: (lambda index, draw=draw, area=area: draw.area(area, index), len(draw.full))
                                  for key, draw in draws.items()} for area in ("cmd", "cpr")}
    exact = {task: own.to_numpy() for (setting, task), own in found.items() if setting == "exact"}
    methods = {key: own.to_numpy() for key, own in found.items() if key[0] != "exact"}
    if target == "tokens":
        def pearson(own, truth) -> numpy.ndarray:
            rows = [(a[~numpy.isnan(b)], b[~numpy.isnan(b)]) for a, b in zip(own, truth)]
            return numpy.array([stats.pearsonr(*row).statistic if numpy.ptp(row[0]) else 0.0 for row in rows])

        return {"tokens pearson": {key: _mean_of(pearson(own, exact[key[1]]))
                                   for key, own in methods.items()}}
    return {f"nodes {name}": {
        key: (lambda index, a=own, b=exact[key[1]], name=name: float(STATISTICS[name](
            a[:, index].mean(1), b[:, index].mean(1), None)), own.shape[1]) for key, own in methods.items()}
        for name in ("strongest", "pearson")}


def _mean_of(values: numpy.ndarray) -> tuple[Callable, int]:
    return lambda index: values[index].mean(), len(values)


def summary(name: str, target: str, found: dict, intervals: bool = True) -> pandas.DataFrame:
    """A row for each statistic, half and setting: the mean over tasks, and its lead over GIM, the gradient and RelP.

    Args:
        name, target: of `parts`.
        found: what it returned.
        intervals: of the held-out half, by drawing prompts (of planted models: models).
    Returns:
        ahead_gim, ahead_gradient, ahead_relp: by how much better than that, whichever direction is better.
    """
    rows = []
    for statistic, values in statistics_of(found, target, name).items():
        split = halves_of(name, target) | {"search": "search", "held out": "held out"}
        for half in dict.fromkeys(split[task] for _, task in values):
            tasks = [task for task in dict.fromkeys(task for _, task in values) if split[task] == half]
            for setting in dict.fromkeys(setting for setting, task in values if task in tasks):
                average = AVERAGE if setting.endswith(AVERAGE) else ""
                n = min(values[setting, task][1] for task in tasks)
                everything = numpy.arange(n)

                def mean(index, setting=setting, tasks=tasks, values=values) -> float:
                    return float(numpy.mean([values[setting, task][0](index) for task in tasks]))

                def ahead(index, other: str, mean=mean, sign=HIGH[statistic]) -> float:
                    return sign * (mean(index) - mean(index, other))

                row = {"model": name, "statistic": statistic, "half": half, "setting": setting, "tasks": len(tasks)}
                wanted = {"value": mean} | {f"ahead_{other}": partial(ahead, other=other + average)
                                            for other in AGAINST if (other + average, tasks[0]) in values}
                for column, of in wanted.items():
                    row[column] = of(everything)
                    if intervals and half == "held out":
                        row[f"{column}_low"], row[f"{column}_high"] = bootstrap(of, n, resamples=199)[1:]
                rows.append(row)
    return pandas.DataFrame(rows)


def effects(table: pandas.DataFrame) -> pandas.DataFrame:
    """What each rule changes on the search half, all others as they were: means over pairs of settings.

    Args:
        table: of the search half.
    Returns:
        A row for each change, a column for each (model, statistic).
    """
    values = table.pivot(index="setting", columns=["model", "statistic"], values="value")
    rows = {}
    for name, (before, after) in CHANGES.items():
        start = [key for key, rules in GRID.items() if all(getattr(rules, rule) == value for rule, value in
                                                           before.items()) and label(rules._replace(**after)) in GRID]
        end = [label(GRID[key]._replace(**after)) for key in start]
        if start:
            rows[name] = (values.reindex(end).to_numpy() - values.reindex(start).to_numpy()).mean(0)
    return pandas.DataFrame.from_dict(rows, orient="index", columns=values.columns)


def finalists(table: pandas.DataFrame, most: int = 2) -> list[str]:
    """The best settings of the search half by the mean of their ranks over models, some for each statistic.

    >>> table = pandas.DataFrame({"half": "search", "model": "m", "statistic": "edges cmd", "setting": ["a", "b"],
    ...                           "value": [0.2, 0.1]})
    >>> finalists(table, 1)
    ['b', 'gradient', 'gim', 'relp', 'attnlrp', 'freeze']
    """
    own = table[(table["half"] == "search") & ~table["setting"].str.endswith(AVERAGE)].copy()
    own["rank"] = (own["value"] * own["statistic"].map(HIGH)).groupby([own["model"], own["statistic"]]).rank(
        ascending=False)
    means = own.groupby([own["statistic"].str.partition(" ")[0], "setting"])["rank"].mean()
    best = [ranks.nsmallest(most).index.get_level_values(1) for _, ranks in means.groupby(level=0)]
    return list(dict.fromkeys([*numpy.concatenate(best).tolist(), *KNOWN]))


def main(arguments: list[str] | None = None) -> int:
    """Print the settings; bad input gives one line and exit code 2."""
    parser = argparse.ArgumentParser("python -m benchmarks.search", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME", help="bundled names, folders, hub ids; compiled, trained")
    parser.add_argument("--targets", nargs="+", default=TARGETS, help="default: all")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks, programs or prompt sets (default: all)")
    parser.add_argument("-n", type=int, default=16, help="pairs on which circuits run (default: %(default)s)")
    parser.add_argument("--scored", type=int, default=16, help="pairs and prompts for scores (default: %(default)s)")
    parser.add_argument("--finalists", type=Path, nargs="+", metavar="CSV", help="the best settings of these tables, "
                        "on all tasks (default: all settings, on the search half)")
    parser.add_argument("--parts", type=Path, help="a folder for what is measured, to continue an interrupted run")
    parser.add_argument("--csv", type=Path, help="write the table here")
    return run_command(_print, parser.parse_args(arguments))


def _print(options) -> None:
    """Print the table, and save it where wanted."""
    check_all_known("target", options.targets, TARGETS)
    settings = list(GRID)
    if options.finalists:
        settings = finalists(pandas.concat([pandas.read_csv(path) for path in options.finalists]))
    tables = []
    for name in options.models:
        for target in ("edges",) if name in KINDS else options.targets:
            # the first two are the best for edges
            averaged = (*settings[:2], "gim", "gradient") if target == "edges" and options.finalists else ()
            chosen = [*settings, *(f"{setting}{AVERAGE}" for setting in averaged)]
            halves_wanted = ("search", "held out") if options.finalists else ("search",)
            found = parts(name, target, chosen, options.n, options.scored, halves_wanted, options.parts,
                          options.tasks)
            tables.append(summary(name, target, found, intervals=bool(options.finalists)))
    table = pandas.concat(tables, ignore_index=True)
    for (model, statistic, half), own in table.groupby(["model", "statistic", "half"], sort=False):
        best = own.sort_values("value", ascending=HIGH[statistic] < 0)
        print(f"\n{model}, {statistic}, {half}")
        print(best.drop(columns=["model", "statistic", "half"]).to_string(index=False, float_format="{:.3f}".format))
    if not options.finalists:
        print("\nWhat each rule changes, all others as they were")
        print(effects(table).T.to_string(float_format="{:.3f}".format))
    if options.csv:
        write_table(options.csv, table, digits=4)
        print(f"wrote {options.csv}")


if __name__ == "__main__":
    sys.exit(main())
