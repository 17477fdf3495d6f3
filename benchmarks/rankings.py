"""Rankings from more than one score, and what they cost: `python -m benchmarks.rankings NAME [--level nodes]`.

Tasks are halved by name before anything is tried (`halves`): what a way leaves open was chosen on the search half.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy
import pandas
import torch
from scipy.stats import rankdata
from tqdm.auto import tqdm

import gimkit
from benchmarks.compare import AREAS, _draws, _mean_area
from benchmarks.tables import cached_table, parser
from gimkit.circuits.edges import EdgeScores
from gimkit.circuits.faithfulness import SIZES, TILTS, cuts, tilted
from gimkit.circuits.learned import Setting, SoftCircuits, learn, learned
from gimkit.circuits.nodes import NodeScores
from gimkit.circuits.patching import run_masks
from gimkit.cli import TASKS, run_command
from gimkit.errors import check_all_known, check_known
from gimkit.files import write_table
from gimkit.model.architecture import architecture_of
from gimkit.model.graph import prune, top_edges
from gimkit.rules import GIM, Rules

STEPS, LONG = 5, Setting(200, 0.1, 2, 0.0)
ONE_PASS = {"gradient": "gradient", "gim": "gim", "relp": "relp", "freeze": "freeze",
            "freeze+gate+temperature": Rules(temperature=2.0, freeze_norm=True, gate=0.5, up=0.5)}


def halves(names) -> dict[str, str]:
    """Every second name, in order of the alphabet, is held out.

    >>> halves(["ioi", "capital", "agreement"])
    {'agreement': 'search', 'capital': 'held out', 'ioi': 'search'}
    """
    return {name: ("search", "held out")[i % 2] for i, name in enumerate(sorted(names))}


HALVES = halves(TASKS)


class Scored:
    """One draw of a task: scores by each method, each computed once, and the runs that they took.

    >>> Scored(model, task[:2], 0).scores("gim").method
    'gim'

    forward, backward: runs per scored pair since the last `restart`, without the clean and the corrupt run.
    """

    def __init__(self, model, task, seed: int):
        self.model, self.task, self.seed, self.soft = model, task, seed, SoftCircuits(model, task)
        self.graph, self.known, self.known_nodes = self.soft.graph, {}, {}
        self.restart()

    def restart(self) -> None:
        """Count from nothing: each way pays for all scores that it uses."""
        self.forward = self.backward = 0.0
        self.paid = set()

    def scores(self, method: str) -> EdgeScores:
        """Scores by a name of ONE_PASS or of `gimkit.score_edges`."""
        if method not in self.known:
            self.known[method] = gimkit.score_edges(self.model, self.task, ONE_PASS.get(method, method), steps=STEPS,
                                                    seed=self.seed)
        if method not in self.paid:
            self.paid.add(method)
            points = 0 if method == "random" else STEPS if method in ("ig-inputs", "gim-ig") else 1
            self.forward += self.graph.n_edges if method == "exact" else points
            self.backward += 0 if method == "exact" else points
        return self.known[method]

    def nodes(self, method: str) -> NodeScores:
        """Scores of nodes, by a name of `gimkit.score_nodes`."""
        if method not in self.known_nodes:
            self.known_nodes[method] = gimkit.score_nodes(self.model, self.task, method, steps=STEPS, seed=self.seed)
        points = {"random": 0, "nap-ig": STEPS}.get(method, 1)
        self.forward += len(self.graph.sources) - 1 if method == "exact" else points
        self.backward += 0 if method == "exact" else points
        return self.known_nodes[method]

    def run(self, masks: torch.Tensor) -> numpy.ndarray:
        """Faithfulness [circuits] on the scored pairs. No edges and all edges are the corrupt and the clean run."""
        different, which = torch.unique(masks, dim=0, return_inverse=True)
        self.forward += sum(0 < int(mask.sum()) < self.graph.n_edges for mask in different)
        values = run_masks(self.model, self.soft.stream, self.task, different, "logit", False)[0][which].mean(1)
        empty, whole = self.soft.empty.mean(), self.soft.whole.mean()
        return ((values - empty) / (whole - empty)).numpy()

    def gradient(self, keep: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Faithfulness of a circuit, and its gradient in the mask of each edge."""
        self.forward, self.backward = self.forward + 1, self.backward + 1
        return self.soft.gradient(keep)

    def made(self, name: str, scores: torch.Tensor) -> EdgeScores:
        """Scores [sources, targets] as a result."""
        return EdgeScores(self.task.name, name, self.graph, scores * self.graph.real)


class Circuits(NamedTuple):
    """What a way returns: circuits of MIB's sizes to be like the whole model (CMD), and to reach the most (CPR)."""

    absolute: torch.Tensor
    signed: torch.Tensor


def cut_all(scores: EdgeScores | NodeScores, absolute: bool) -> torch.Tensor:
    """The circuits [sizes, sources, targets] of all of MIB's sizes, as `gimkit.faithfulness` cuts them."""
    return torch.stack(cuts(scores, SIZES, absolute))


def ranked(scores: EdgeScores | NodeScores) -> Circuits:
    """The circuits of one ranking, by |score| for CMD and by score for CPR."""
    return Circuits(cut_all(scores, True), cut_all(scores, False))


def rank_mean(scored: Scored, methods) -> EdgeScores:
    """Mean of the ranks of |score| over methods, with the sign of the mean score, each method scaled to length 1."""
    real, found = scored.graph.real, torch.zeros(scored.graph.real.shape)
    values = [scored.scores(method).scores[real].double() for method in methods]
    ranks = sum(torch.tensor(rankdata(value.abs())) for value in values) / len(values)
    found[real] = (ranks * sum(value / value.norm() for value in values).sign()).float()
    return scored.made("rank mean", found)


def stable(scored: Scored, method: str, resamples: int = 200, level: float = 0.95) -> EdgeScores:
    """Scores of edges whose sign is stable over resampled pairs; the others come after them, in their order."""
    each = torch.stack([gimkit.score_edges(scored.model, scored.task[i:i + 1], method, steps=STEPS).scores
                        for i in range(len(scored.task))])
    scored.scores(method)  # the same runs, pair by pair
    drawn = torch.randint(len(each), (resamples, len(each)), generator=torch.Generator().manual_seed(scored.seed))
    weights = torch.stack([torch.bincount(row, minlength=len(each)) for row in drawn]).float() / len(each)
    positive = ((weights @ each.flatten(1)) > 0).float().mean(0).unflatten(0, each.shape[1:])
    mean = each.mean(0)
    kept = torch.maximum(positive, 1 - positive) >= level
    return scored.made("stable", torch.where(kept, mean, 1e-3 * mean))


def rescored(scored: Scored, method: str, share: float = 0.05) -> EdgeScores:
    """The edges of the highest |score| are patched one by one and get their exact score."""
    scores = scored.scores(method)
    best = top_edges(scores.scores, scored.graph, int(share * scored.graph.n_edges), True)
    scored.forward += int(best.sum())
    if "exact" not in scored.known:
        scored.known["exact"] = gimkit.score_edges(scored.model, scored.task, "exact")
    return scored.made("rescored", torch.where(best, scored.known["exact"].scores, scores.scores))


def mask_path(scored: Scored, passes: int) -> EdgeScores:
    """The gradient in the mask, averaged over circuits in which every edge is kept by the same share."""
    total = torch.zeros(scored.graph.real.shape)
    for i in range(passes):
        total += scored.gradient(scored.graph.real * ((i + 0.5) / passes))[1] / passes
    return scored.made("mask path", total)


def undone(scored: Scored, method: str) -> EdgeScores:
    """GIM's scores without its factor at the target itself: only products behind the target are halved."""
    scores, gated = scored.scores(method), [bool(block.products) for block in architecture_of(scored.model).blocks]
    factors = []
    for target in scores.targets:
        own = (getattr(GIM, target[-2]) if target.endswith(">") else GIM.gate if target[0] == "m" and gated[
            int(target[1:])] else 1.0)
        factors.append(1 / own)
    return scored.made("undone", scores.scores * torch.tensor(factors))


def resized(scored: Scored, method: str, other: str, by: str) -> EdgeScores:
    """A method's scores, their sum of sizes made that of another method in each group of edges.

    by: "layer" groups by the source's layer, "kind" by what is read: a head's q, k or v, an MLP's input, the logits.
    """
    scores, wanted = scored.scores(method).scores, scored.scores(other).scores
    name = {"layer": lambda source, target: source[1:].partition(".")[0], "kind": lambda source, target: target[-2]
            if target.endswith(">") else target[0]}[by]
    groups = [[name(source, target) for target in scored.graph.targets] for source in scored.graph.sources]
    found, groups = scores.clone(), numpy.array(groups)
    for group in numpy.unique(groups):
        own = torch.tensor(groups == group)
        found[own] *= wanted[own].abs().sum() / scores[own].abs().sum().clamp(min=1e-12)
    return scored.made("resized", found)


def fitting(scored: Scored, candidates: list[torch.Tensor]) -> Circuits:
    """For each size the candidate that is nearest to the whole model on the scored pairs, and the one with most of it.

    candidates: each [sizes, sources, targets].
    """
    masks = torch.stack(candidates)
    kept = scored.run(masks.flatten(0, 1)).reshape(masks.shape[:2])
    nearest, most = abs(1 - kept).argmin(0), kept.argmax(0)
    sizes = range(masks.shape[1])
    return Circuits(masks[nearest, sizes], masks[most, sizes])


def best_tilt(scored: Scored, methods) -> Circuits:
    """`fitting` among tilted rankings of some methods; of one, what `gimkit.circuits.best_cut` does for one size."""
    scores = [scored.scores(method) for method in methods]
    return fitting(scored, [cut_all(replace(own, scores=tilted(own.scores, tilt)), False)
                            for own in scores for tilt in TILTS])


def best_method(scored: Scored, methods) -> Circuits:
    """`fitting` among methods, each by score and by |score|."""
    return fitting(scored, [cut_all(scored.scores(method), absolute)
                            for method in methods for absolute in (True, False)])


def swapped(keep: torch.Tensor, graph, kept: float, gradient: torch.Tensor, most: float = 0.25) -> torch.Tensor:
    """Exchange edges of a circuit until its faithfulness, to first order, is 1; its size stays.

    Edges inside with the lowest gradient leave for edges outside with the highest where it is too low, else the
    other way round; at most a share of the edges is exchanged.
    """
    sign = 1.0 if kept < 1 else -1.0
    inside, outside = (sign * gradient).masked_fill(~keep, torch.inf), (sign * gradient).masked_fill(
        keep | ~graph.real, -torch.inf)
    leave, enter = inside.flatten().argsort(stable=True), outside.flatten().argsort(descending=True, stable=True)
    count = min(int(most * int(keep.sum())) + 1, int(keep.sum()), int((graph.real & ~keep).sum()))
    gain = (outside.flatten()[enter[:count]] - inside.flatten()[leave[:count]]).clamp(min=0).cumsum(0)
    count = int((gain < abs(1 - kept)).sum())
    found = keep.clone().flatten()
    found[leave[:count]], found[enter[:count]] = False, True
    return found.view_as(keep)


def refined(scored: Scored, start: Circuits, rounds: int = 1, sizes=(0.02, 0.05, 0.1, 0.2, 0.5)) -> Circuits:
    """Circuits refined by exchanging edges by their gradient at the circuit; kept where that helps on scored pairs."""
    found = start.absolute.clone()
    for share in sizes:
        place = SIZES.index(share)
        tried = []
        keep = found[place]
        for _ in range(rounds):
            kept, gradient = scored.gradient(keep.float())
            tried.append((abs(1 - kept), keep))
            keep = prune(swapped(keep, scored.graph, kept, gradient), scored.graph)
        tried.append((abs(1 - scored.run(keep[None])[0]), keep))
        found[place] = min(tried, key=lambda pair: pair[0])[1]
    return Circuits(found, start.signed)


def learned_nodes(soft: SoftCircuits, start: NodeScores | None, setting: Setting, seed: int = 0) -> NodeScores:
    """A learned ranking of heads and MLPs: all edges from a node carry its mask, those from the embedding 1.

    >>> learned_nodes(SoftCircuits(model, task[:2]), None, Setting(steps=1)).scores.shape
    torch.Size([26])
    """
    graph = soft.graph

    def circuit(mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.ones(1), mask])[:, None] * graph.real

    own = None if start is None else start.scores[1:]
    found = learn(soft, circuit, len(graph.sources) - 1, own, setting, seed)
    scores = torch.cat([found.max()[None], found])
    return NodeScores(soft.task.name, "learned", graph.sources, scores[None], graph=graph)


def _ranking(make: Callable) -> Callable:
    return lambda scored: ranked(make(scored))


def _learned(scored: Scored, start: str | None, setting: Setting, nodes: bool = False) -> Circuits:
    scored.forward += setting.steps / setting.parts
    scored.backward += setting.steps / setting.parts
    if nodes:
        return ranked(learned_nodes(scored.soft, start and scored.nodes(start), setting, scored.seed))
    own = scored.scores(start).scores if start else None
    return ranked(scored.made("learned", learned(scored.soft, own, setting, scored.seed)))


WAYS: dict[str, Callable[[Scored], Circuits]] = {
    name: _ranking(lambda scored, name=name: scored.scores(name))
    for name in (*ONE_PASS, "ig-inputs", "gim-ig", "exact", "random")} | {
    "rank mean of gim, relp": _ranking(lambda scored: rank_mean(scored, ("gim", "relp"))),
    "rank mean of one-pass": _ranking(lambda scored: rank_mean(scored, tuple(ONE_PASS))),
    "rank mean of gim-ig, ig-inputs": _ranking(lambda scored: rank_mean(scored, ("gim-ig", "ig-inputs"))),
    "gim, own split undone": _ranking(lambda scored: undone(scored, "gim")),
    "gim-ig, own split undone": _ranking(lambda scored: undone(scored, "gim-ig")),
    "gim, exact's size in each layer": _ranking(lambda scored: resized(scored, "gim", "exact", "layer")),
    "gim, exact's size at q, k, v, MLP": _ranking(lambda scored: resized(scored, "gim", "exact", "kind")),
    "exact, gim's size in each layer": _ranking(lambda scored: resized(scored, "exact", "gim", "layer")),
    "exact, gim's size at q, k, v, MLP": _ranking(lambda scored: resized(scored, "exact", "gim", "kind")),
    "stable gim": _ranking(lambda scored: stable(scored, "gim")),
    "stable ig-inputs": _ranking(lambda scored: stable(scored, "ig-inputs")),
    "gim, top 5% exact": _ranking(lambda scored: rescored(scored, "gim")),
    "ig-inputs, top 5% exact": _ranking(lambda scored: rescored(scored, "ig-inputs")),
    "mask path, 5": _ranking(lambda scored: mask_path(scored, 5)),
    "mask path, 10": _ranking(lambda scored: mask_path(scored, 10)),
    "best of one-pass": lambda scored: best_method(scored, ("gim", "relp", "gradient")),
    "best of gim, ig-inputs": lambda scored: best_method(scored, ("gim", "ig-inputs")),
    "best tilt of gim": lambda scored: best_tilt(scored, ("gim",)),
    "best tilt of gim-ig": lambda scored: best_tilt(scored, ("gim-ig",)),
    "best tilt of ig-inputs": lambda scored: best_tilt(scored, ("ig-inputs",)),
    "refined gim-ig": lambda scored: refined(scored, ranked(scored.scores("gim-ig"))),
    "refined gim-ig, twice": lambda scored: refined(scored, ranked(scored.scores("gim-ig")), 2),
    "refined best tilt of gim": lambda scored: refined(scored, best_tilt(scored, ("gim",))),
    "learned from nothing": lambda scored: _learned(scored, None, LONG),
    "learned from gim": lambda scored: _learned(scored, "gim", LONG),
    "learned from gim, 20 passes": lambda scored: _learned(scored, "gim", Setting(76, 0.07, 4, 0.0)),
    "learned from gim-ig, 20 passes": lambda scored: _learned(scored, "gim-ig", Setting(60, 0.1, 4, 0.0)),
    "learned near gim-ig, 20 passes": lambda scored: _learned(scored, "gim-ig", Setting()),
}
NODE_WAYS: dict[str, Callable[[Scored], Circuits]] = {
    name: lambda scored, name=name: ranked(scored.nodes(name))
    for name in ("gradient", "gim", "relp", "freeze", "nap-ig", "exact", "random")} | {
    "learned from nothing": lambda scored: _learned(scored, None, LONG, nodes=True),
    "learned from gim": lambda scored: _learned(scored, "gim", LONG, nodes=True),
    "learned from nothing, 20 passes": lambda scored: _learned(scored, None, Setting(80, 0.1, 4, 0.0), nodes=True),
    "learned from gim, 20 passes": lambda scored: _learned(scored, "gim", Setting(76, 0.1, 4, 0.0), nodes=True),
    "learned from relp, 20 passes": lambda scored: _learned(scored, "relp", Setting(76, 0.1, 4, 0.0), nodes=True),
}
LEVELS = {"edges": WAYS, "nodes": NODE_WAYS}
AVERAGED = {"edges": "ig-inputs", "nodes": "nap-ig"}  # EAP-IG's points


def measure(name: str, tasks=TASKS, ways=tuple(WAYS), n: int = 16, seeds: int = 1, scored: int | None = None,
            folder: Path | None = None, level: str = "edges") -> pandas.DataFrame:
    """A row for each task, draw, way, ranking, size and prompt, with the columns of `benchmarks.compare.compare`.

    >>> measure("mini-llama", ["ioi"], ["gim", "random"], n=2).groupby("method").forward.first().tolist()
    [1.0, 0.0]

    Args:
        name: as in `gimkit.load`.
        tasks: of `gimkit.tasks`.
        ways: names in WAYS, or in NODE_WAYS.
        n: prompt pairs on which circuits run.
        seeds: draws of each task.
        scored: other pairs, from which circuits are made; n when None.
        folder: for the rows of each task, draw and way, so that an interrupted run can continue.
        level: "edges" or "nodes".
    Returns:
        forward, backward: runs per scored pair, without the clean and the corrupt run. cpu_seconds: of the whole way.
    Raises:
        GimkitError: there is no such task or way.
    """
    check_known("level", level, LEVELS)
    for given, known, what in ((tasks, TASKS, "task"), (ways, LEVELS[level], "way")):
        check_all_known(what, given, known)
    scored = n if scored is None else scored
    model, found = gimkit.load(name), []

    @cache
    def draw(task: str, seed: int) -> tuple:
        drawn = getattr(gimkit.tasks, task)(model, n=scored + n, seed=seed)
        return Scored(model, drawn[:scored], seed), drawn[scored:]

    for task, seed, way in tqdm([(task, seed, way) for task in tasks for seed in range(seeds) for way in ways],
                                desc=f"rankings on {name}", delay=2, leave=False):
        about = {"rankings": 2, "model": name, "level": level, "task": task, "seed": seed, "way": way, "n": n,
                 "scored": scored}
        path = folder and Path(folder) / Path(name).name / f"{level}-{task}-{seed}-{way}-{scored}-{n}.csv".replace(
            " ", "_")

        def runs(task=task, seed=seed, way=way) -> pandas.DataFrame:
            return _runs(*draw(task, seed), LEVELS[level][way])

        rows = cached_table(path, about, runs) if path else runs()
        found.append(rows.assign(model=name, task=task, seed=seed, method=way, half=HALVES[task]))
    return pandas.concat(found, ignore_index=True)


def _runs(scored: Scored, evaluated, way: Callable) -> pandas.DataFrame:
    """The metric of each circuit of a way on each of the evaluated prompts."""
    scored.restart()
    start = time.process_time()
    circuits = way(scored)
    about = {"cpu_seconds": time.process_time() - start, "forward": scored.forward, "backward": scored.backward}
    ends = torch.stack([torch.zeros_like(scored.graph.real), scored.graph.real])
    masks, which = torch.unique(torch.cat([ends, *circuits]), dim=0, return_inverse=True)
    values = run_masks(scored.model, scored.soft.stream, evaluated, masks, "logit", False)[0][which].double()
    tables = []
    for ranking, sized, own in zip(Circuits._fields, circuits, values[2:].unflatten(0, (2, len(SIZES)))):
        tables += [pandas.DataFrame(about | {"ranking": ranking, "share": share, "edges": int(mask.sum()),
                                             "prompt": range(len(evaluated)), "metric": row, "empty": values[0],
                                             "full": values[1]})
                   for share, mask, row in zip(SIZES, sized, own)]
    return pandas.concat(tables, ignore_index=True)


def over_tasks(runs: pandas.DataFrame, against=("ig-inputs", "exact")) -> pandas.DataFrame:
    """A row for each model, half of the tasks and way: mean CPR and CMD, leads, and the cost.

    Args:
        runs: of `measure`.
        against: ways whose lead in each area is computed on the same prompts.
    Returns:
        cpr, cmd, compactness with 95% bootstrap intervals over prompts within draws (low, high). cmd_above_ig-inputs:
        by how much CMD is above that way's (below 0 is better), and so on for compactness. forward, backward: runs per
        scored pair; passes: (forward + 2 backward) / 3, since a backward run costs about two forward ones.
    """
    draws, rows = _draws(runs), []
    for (model, half), part in runs.groupby(["model", "half"], sort=False):
        for way, own in part.groupby("method", sort=False):
            pairs = list(dict.fromkeys(zip(own["task"], own["seed"])))
            mine = [draws[task, way, seed] for task, seed in pairs]
            row = {"model": model, "half": half, "way": way, "tasks": own["task"].nunique(), "draws": len(pairs)}
            for area in (*AREAS, "compactness"):
                row |= dict(zip((area, f"{area}_low", f"{area}_high"), _mean_area(mine, area)))
            for other in against:
                if all((task, other, seed) in draws for task, seed in pairs):
                    theirs = [draws[task, other, seed] for task, seed in pairs]
                    for area in ("cmd", "compactness"):
                        above = f"{area}_above_{other}"
                        row |= dict(zip((above, f"{above}_low", f"{above}_high"), _mean_area(mine, area, minus=theirs)))
            single = own.groupby(["task", "seed"])[["forward", "backward", "cpu_seconds"]].first().mean()
            rows.append(row | {"forward": single["forward"], "backward": single["backward"],
                               "passes": (single["forward"] + 2 * single["backward"]) / 3,
                               "cpu_seconds": single["cpu_seconds"]})
    return pandas.DataFrame(rows)


def main(arguments: list[str] | None = None) -> int:
    """Print CPR, CMD and cost of every way; bad input gives one line and exit code 2."""
    options = parser("python -m benchmarks.rankings", "Rankings from more than one score.", 16, 1)
    options.add_argument("--tasks", nargs="+", metavar="TASK", default=TASKS, help="default: all of gimkit.tasks")
    options.add_argument("--level", default="edges", help="edges or nodes (default: %(default)s)")
    options.add_argument("--ways", nargs="+", metavar="WAY", help="default: all of the level")
    options.add_argument("--scored", type=int, help="other prompt pairs, for the scores (default: as many)")
    options.add_argument("--parts", type=Path, help="a folder for what is measured, to continue an interrupted run")
    return run_command(_print, options.parse_args(arguments))


def _print(options) -> None:
    """Print the table, and save it where wanted."""
    check_known("level", options.level, LEVELS)
    runs = measure(options.model, options.tasks, options.ways or tuple(LEVELS[options.level]), options.n, options.seeds,
                   options.scored, options.parts, options.level)
    table = over_tasks(runs, (AVERAGED[options.level], "exact"))
    print("Circuits are made on some prompts and run on others. Means over tasks, with 95% intervals over prompts.")
    print(table.to_string(index=False, float_format="{:.3f}".format))
    if options.csv:
        write_table(options.csv, table, digits=4)
        print(f"wrote {options.csv}")


if __name__ == "__main__":
    sys.exit(main())
