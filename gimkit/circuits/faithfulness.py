"""Faithfulness of circuits, and agreement of scores with exact patching or a known circuit."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy
import pandas
import torch
from nnsight.intervention.envoy import Envoy

from gimkit import statistics
from gimkit.circuits.circuit import Circuit
from gimkit.circuits.edges import EdgeScores
from gimkit.circuits.metric import DIVERGENCES, Metric, metric_of
from gimkit.circuits.nodes import NodeScores
from gimkit.circuits.patching import run, run_masks
from gimkit.errors import GimkitError, check_flag, check_number, require_finite
from gimkit.model.apply import check_unedited
from gimkit.model.graph import greedy_edges, prune, top_edges
from gimkit.model.residual_stream import check_graph, graph_of, residual_stream_of
from gimkit.results import Result
from gimkit.statistics import Interval, bootstrap
from gimkit.tasks.measure import warn_unsolved
from gimkit.tasks.task import Task, check_task

TILTS = (1.0, 0.5, 0.25, 0.1, 0.0)  # shares of their size by which negative scores may count
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # MIB's shares of all edges


def rank_correlation(scores: NodeScores, truth: NodeScores, *, level: float = 0.95, resamples: int = 999,
                     seed: int = 0) -> Interval:
    """Spearman's rank correlation of two methods' mean node scores, with a bootstrap interval over examples.

    >>> print(gimkit.circuits.rank_correlation(nodes, gimkit.score_nodes(model, task, method="exact")))
    0.93 [0.91, 0.95]

    Args:
        scores: `NodeScores`; "input" is left out, since it is no component.
        truth: `NodeScores` with the same nodes and examples.
        level: of the percentile bootstrap (scipy.stats.bootstrap), which draws whole examples.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The correlation of the means as an `Interval`.

    Raises:
        GimkitError: nodes or examples differ.
    """
    if scores.nodes != truth.nodes or len(scores.per_example) != len(truth.per_example):
        raise GimkitError("the two scores are of different nodes or examples; score both on the same model and task")
    keep = [i for i, name in enumerate(scores.nodes) if name != "input"]
    a, b = scores.per_example[:, keep].double().numpy(), truth.per_example[:, keep].double().numpy()

    from scipy import stats  # slow to import

    def statistic(index: numpy.ndarray) -> float:
        return stats.spearmanr(a[index].mean(0), b[index].mean(0)).statistic

    return bootstrap(statistic, len(a), level=level, resamples=resamples, seed=seed)


@dataclass(frozen=True, eq=False)
class Curve(Result):
    """Faithfulness of circuits of growing size, cut from one set of scores.

    >>> curve.shares[:3], curve.edges[:3]
    ((0.001, 0.002, 0.005), (0, 0, 0))
    >>> print(curve.cpr())                                       # area under faithfulness, with its interval
    0.89 [0.86, 0.91]

    Attributes:
        task, method: of the scores.
        absolute: circuits were cut by |score|.
        greedy: circuits were grown from the logits.
        shares: requested shares of all edges.
        edges: how many edges each circuit has.
        per_example: [sizes, n], the metric of each circuit.
        empty, full: [n], the metric of no edges and of all edges.
        metric: the circuits were evaluated by it.
        scored_by: the metric of the scores that the circuits were cut from.
        fingerprint: of those scores (`EdgeScores.fingerprint`), "" where it is not known.
        faithfulness: [sizes], 0 for the corrupt model and 1 for the whole one.
    """

    task: str
    method: str
    absolute: bool
    greedy: bool
    shares: tuple[float, ...]
    edges: tuple[int, ...]
    per_example: torch.Tensor
    empty: torch.Tensor
    full: torch.Tensor
    metric: str = "logit"
    scored_by: str = "logit"
    fingerprint: str = ""

    @property
    def faithfulness(self) -> numpy.ndarray:
        """(m(circuit) - m(empty)) / (m(full) - m(empty)) of the mean metrics."""
        return self._faithfulness(slice(None))

    def _faithfulness(self, index: numpy.ndarray | slice) -> numpy.ndarray:
        circuits, empty, full = (x.double().numpy()[..., index].mean(-1) for x in
                                 (self.per_example, self.empty, self.full))
        return (circuits - empty) / (full - empty)

    def cpr(self, log: bool = False, **options: Any) -> Interval:
        """Area under faithfulness over the share of edges (MIB's CPR): a perfect circuit of every size has .999.

        MIB ranks by signed score for CPR. Values above 1 mean that selection by sign overshoots the whole model: read
        CMD beside it.

        Args:
            log: integrate over log10 of the share, divided by its span, instead of over the share.
            options: level, resamples and seed of the bootstrap over examples.

        Source:
            MIB (Mueller et al. 2025), its trapezoid from .001 to 1.
        """
        return bootstrap(lambda index: self._area(self._faithfulness(index), log), len(self.full), **options)

    def cmd(self, log: bool = False, **options: Any) -> Interval:
        """Area under |1 - faithfulness| over the share of edges (MIB's CMD): 0 is best. MIB ranks by |score| for it.

        Args:
            log: as in `cpr`.
            options: as in `cpr`.
        """
        return bootstrap(lambda index: self._area(abs(1 - self._faithfulness(index)), log), len(self.full), **options)

    def _area(self, values: numpy.ndarray, log: bool) -> float:
        x = numpy.array(self.shares)
        if check_flag("log", log):
            x = numpy.log10(x)
            x = (x - x[0]) / (x[-1] - x[0])
        return float(numpy.trapezoid(values, x))

    @property
    def label(self) -> str:
        """The method, how circuits were cut, and the metric (or both metrics), for every figure and table."""
        metric = self.metric
        if self.scored_by != self.metric:
            metric = f"scored by {self.scored_by or 'an unknown metric'}, evaluated by {self.metric}"
        return f"{self.method}, {self.ranking}, {metric}"

    @property
    def ranking(self) -> str:
        """How circuits were cut: "absolute" or "signed", and "greedy"."""
        return f"{'absolute' if self.absolute else 'signed'}{', greedy' if self.greedy else ''}"

    def frame(self) -> pandas.DataFrame:
        """Tidy table with columns task, method, ranking, metric, scored_by, share, edges, faithfulness."""
        return pandas.DataFrame({"task": self.task, "method": self.method, "ranking": self.ranking,
                                 "metric": self.metric, "scored_by": self.scored_by, "share": self.shares,
                                 "edges": self.edges, "faithfulness": self.faithfulness})


def faithfulness(model: Envoy, task: Task, scores: EdgeScores | NodeScores, *, absolute: bool, metric: Metric = "logit",
                 sizes: Iterable[float] = SIZES,
                 greedy: bool = False, remote: bool | str = False) -> Curve:
    """Cut circuits of growing size from scores, run them, and measure how much of the model's behaviour they keep.

    >>> curve = gimkit.faithfulness(model, task[:16], edges, absolute=False)
    >>> curve.faithfulness.shape, curve.label                    # MIB's ten sizes
    ((10,), 'gim, signed, logit')

    Warns when the model gets less than 75% of the clean prompts right.

    Args:
        model: an unedited nnsight model.
        task: a `gimkit.tasks.Task` of n prompt pairs, other ones than the scores are from.
        scores: `EdgeScores` of this model; or `NodeScores`, whose circuits are all edges between the embedding and the
            best heads and MLPs.
        absolute: rank by |score| (MIB's CMD) or by score (MIB's CPR); it must be stated.
        metric: evaluates the circuits, as in `gimkit.score_nodes`. With "kl" the whole model has 0.
        sizes: increasing shares of all edges (or of all heads and MLPs); int(share * edges) edges are requested.
        greedy: grow circuits from the logits instead of taking the top edges; for edges only.
        remote: as in `gimkit.attribute`.

    Returns:
        A `Curve`.

    Raises:
        GimkitError: clean prompts that do not beat the corrupt ones, since faithfulness divides by the difference;
            scores of another model.

    Source:
        MIB's evaluation. As there, the x axis is the requested share, and dead ends are pruned before running.
    """
    check_task(model, task)
    metric = metric_of(task, metric)
    absolute, greedy = check_flag("absolute", absolute), check_flag("greedy", greedy)
    w = residual_stream_of(model)
    check_graph(scores.graph, w)
    check_unedited(model)
    sizes = tuple(check_number("a size", share) for share in sizes)
    if not sizes or any(not 0 <= share <= 1 for share in sizes) or list(sizes) != sorted(set(sizes)):
        raise GimkitError("sizes are increasing shares of all edges between 0 and 1")
    masks = cuts(scores, sizes, absolute, greedy)
    keep = torch.stack([torch.zeros_like(masks[0]), graph_of(w).real, *masks])
    different, which = torch.unique(keep, dim=0, return_inverse=True)  # sizes may give the same circuit
    values = run_masks(model, w, task, different, metric, remote)[0][which]
    empty, full = values[0], values[1]
    if float(full.mean() - empty.mean()) <= 0:
        raise GimkitError(f"on {task.name} the clean prompts' {metric} ({full.mean():.3g}) does not beat the corrupt "
                          f"ones' ({empty.mean():.3g}), so faithfulness is undefined; choose a task the model solves")
    if metric not in DIVERGENCES:
        warn_unsolved(task.name, full)
    return Curve(scores.task, scores.method, absolute, greedy, sizes, tuple(int(mask.sum()) for mask in masks),
                 values[2:], empty, full, metric, scores.metric, getattr(scores, "fingerprint", ""))


def cuts(scores: EdgeScores | NodeScores, sizes: Iterable[float], absolute: bool,
         greedy: bool = False) -> list[torch.Tensor]:
    """A mask [sources, targets] for each size, without dead ends.

    >>> [int(mask.sum()) for mask in cuts(edges, (0.5, 1.0), absolute=True)]
    [380, 761]
    """
    if isinstance(scores, EdgeScores):
        graph, cut = scores.graph, greedy_edges if greedy else top_edges
        return [prune(cut(scores.scores, graph, int(share * graph.n_edges), absolute), graph) for share in sizes]
    if greedy:
        raise GimkitError("greedy circuits grow along scores of edges; leave greedy out for scores of nodes")
    return [scores.top(int(share * (len(scores.nodes) - 1)), absolute).keep for share in sizes]


def best_cut(model: Envoy, task: Task, scores: EdgeScores, n: int, *, metric: Metric = "logit",
             remote: bool | str = False) -> Circuit:
    """Of five circuits of n edges, cut from one set of scores, the one that is nearest to the whole model.

    >>> circuit = gimkit.circuits.best_cut(model, task[:16], edges, 100)
    >>> str(circuit)
    '96 of 761 edges, 19 of 26 nodes'

    Negative scores count by 1 (as in edges.top(n, absolute=True)), .5, .25, .1 or 0 of their size. Each circuit runs on
    the task; that with the mean metric nearest to the whole model's is returned. A circuit without any edge that hurts
    may do more than the whole model, one with all of them less; only a run tells. Costs five forward passes a pair
    beside the clean and the corrupt one, and needs no gradient.

    Args:
        model: an unedited nnsight model.
        task: a `gimkit.tasks.Task`; the pairs of the scores will do. Judge the circuit on others.
        scores: `EdgeScores` of this model.
        n: number of edges, before dead ends are removed.
        metric: as in `gimkit.score_nodes`.
        remote: as in `gimkit.attribute`.

    Returns:
        A `Circuit` without dead ends.

    Raises:
        GimkitError: the model has fewer edges, scores of nodes or of another model.

    Source:
        This kit; measured in benchmarks/rankings.py ("best tilt").
    """
    if not isinstance(scores, EdgeScores):
        raise GimkitError("best_cut takes the result of gimkit.score_edges")
    graph = scores.graph
    found = [prune(top_edges(tilted(scores.scores, tilt), graph, n, False), graph) for tilt in TILTS]
    values = run(model, task, [Circuit(graph, keep) for keep in (graph.real, *found)], metric=metric, remote=remote)
    distance = (values[1:].mean(1) - values[0].mean()).abs()
    return Circuit(graph, found[int(distance.argmin())], scores.scores)


def tilted(scores: torch.Tensor, tilt: float) -> torch.Tensor:
    """Scores whose negative ones count by a share of their size: 1 ranks by |score|, 0 by score.

    >>> tilted(torch.tensor([2.0, -1.0, -3.0]), 0.5)
    tensor([2.0000, 0.5000, 1.5000])
    """
    return scores if tilt == 0 else torch.where(scores > 0, scores, -tilt * scores)


def auroc(scores: EdgeScores | NodeScores, known: Circuit, *, absolute: bool = True) -> float:
    """Area under the ROC curve of edge scores against a known circuit: 1 ranks its edges first, 0.5 is chance.

    >>> known = gimkit.circuits.Circuit.of(edges.graph, ["input->a2.h3<v>", "a2.h3->logits"])
    >>> round(gimkit.circuits.auroc(edges, known), 2)
    0.88

    Every real edge counts once; ties share their rank. With node scores every head counts once, and it is in the
    circuit when an edge of the circuit leaves it. Embedding and MLPs are left out, since manual circuits hold nearly
    all of them. MIB's InterpBench score instead joins ten greedy circuits by straight lines, without the point (0, 0).

    Args:
        scores: `EdgeScores` or `NodeScores`.
        known: the known circuit, of the same model shape.
        absolute: rank by |score|.

    Returns:
        The area, 0 to 1.

    Raises:
        GimkitError: a circuit of another model, an empty or complete one, NaN scores.
    """
    hit, value = _both(scores, known, absolute)
    if hit.all() or not hit.any():
        raise GimkitError("a known circuit with some but not all edges (of node scores: heads) is needed")
    return statistics.auroc(value, hit)


def precision_recall(scores: EdgeScores | NodeScores, known: Circuit, *, absolute: bool = True) -> pandas.DataFrame:
    """Precision and recall against a known circuit as edges are taken in order of score, columns n, precision, recall.

    >>> known = gimkit.circuits.Circuit.of(edges.graph, ["input->a2.h3<v>", "a2.h3->logits"])
    >>> gimkit.circuits.precision_recall(edges, known).tail(1)["recall"].item()   # all edges hold them
    1.0

    Precision is the share of the n best edges that are in the known circuit, recall the share of its edges among them.
    Edges are taken without pruning. With node scores the same is computed over heads, as in `auroc`.

    Args:
        scores, known, absolute: as in `auroc`.

    Returns:
        A pandas table with columns n, precision, recall.
    """
    hit, value = _both(scores, known, absolute)
    found = hit[numpy.argsort(-value, kind="stable")].cumsum()
    n = numpy.arange(1, len(hit) + 1)
    return pandas.DataFrame({"n": n, "precision": found / n, "recall": found / max(1, hit.sum())})


def _both(scores: EdgeScores | NodeScores, known: Circuit, absolute: bool) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(is it in the known circuit, its score) of every edge, or of every head."""
    if scores.graph != known.graph:
        raise GimkitError(f"the known circuit is of a model of {known.graph}, the scores of one of "
                          f"{scores.graph or 'a shape unknown'}")
    require_finite(scores.scores)
    if isinstance(scores, NodeScores):
        counted = torch.tensor([name.startswith("a") for name in scores.nodes])
        hit = torch.tensor([name in known.nodes for name in scores.nodes])
    else:
        counted, hit = known.graph.real, known.keep
    value = scores.scores[counted].double().numpy()
    return hit[counted].numpy(), abs(value) if check_flag("absolute", absolute) else value
