"""Scores of a model's edges on a task."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy
import pandas
import torch
from nnsight.intervention.envoy import Envoy
from tqdm.auto import tqdm

from gimkit.circuits import mib_files
from gimkit.circuits.chosen_edges import ChosenEdges, edges_among, forward_chosen
from gimkit.circuits.circuit import Circuit
from gimkit.circuits.integration_points import points
from gimkit.circuits.learned import SoftCircuits, learned
from gimkit.circuits.metric import DIVERGENCES, Metric, check_slope, metric_of
from gimkit.errors import GimkitError, check_whole, require_finite
from gimkit.interventions.edge_patching import exact_edge_scores
from gimkit.interventions.edge_scores import edge_scores, scores_along_path
from gimkit.interventions.metric import Answers
from gimkit.jvp.modes import Backend, by_backend, check_backend
from gimkit.model.apply import apply, check_unedited
from gimkit.model.architecture import architecture_of, rows_at_once, rows_may_join
from gimkit.model.graph import Graph, greedy_edges, prune, top_edges
from gimkit.model.residual_stream import ResidualStream, graph_of, residual_stream_of
from gimkit.remote import in_session, in_trace
from gimkit.results import Result
from gimkit.rules import GIM, PLAIN, RULES, Preset, Rules, name_of, rules_of
from gimkit.tasks.measure import warn_unsolved
from gimkit.tasks.task import Task, answer_rows, batches, check_task, per_pair, rows_of

AVERAGED = {"ig-inputs": PLAIN, "gim-ig": GIM, "ig-activations": PLAIN, "clean-corrupted": PLAIN, "gp": PLAIN}
Method = Literal[Preset, "ig-inputs", "gim-ig", "ig-activations", "clean-corrupted", "gp", "learned", "exact",
                 "random"]
METHODS: tuple[Method, ...] = get_args(Method)
NO_FORWARD = ("forward mode would need a row for each of {} edges; score nodes, or the edges among a few of them with "
              "score_edges(..., nodes=[...]), by any rules ('gim', 'gradient', 'relp', ...)")


@dataclass(frozen=True, eq=False)
class EdgeScores(Result):
    """One score per edge; positive means that corrupting the edge hurts.

    >>> edges.sources[:3], edges.targets[:2]
    (('input', 'a0.h0', 'a0.h1'), ('a0.h0<q>', 'a0.h1<q>'))
    >>> edges.frame().columns.tolist()                           # a row per edge, 761
    ['task', 'method', 'metric', 'source', 'target', 'score']

    Attributes:
        task: the task's name.
        method: the method's name, or "own rules".
        graph: the model's shape.
        scores: [sources, targets] in units of the metric, means over examples, 0 where there is no edge.
        metric: the metric's name.
    """

    task: str
    method: str
    graph: Graph
    scores: torch.Tensor
    metric: str = "logit"

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the rows."""
        return self.graph.sources

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self.graph.targets

    @property
    def fingerprint(self) -> str:
        """A hash of the scores, the same after saving and loading."""
        held = self.scores[self.graph.real].float().contiguous()
        return hashlib.sha256(held.cpu().numpy().tobytes()).hexdigest()[:16]

    def frame(self) -> pandas.DataFrame:
        """Tidy table of the real edges with columns task, method, metric, source, target, score."""
        real = self.graph.real.numpy().nonzero()
        source, target = (numpy.array(names, dtype=object)[index]
                          for names, index in zip((self.sources, self.targets), real))
        return pandas.DataFrame({"task": self.task, "method": self.method, "metric": self.metric, "source": source,
                                 "target": target, "score": self.scores.double().cpu().numpy()[real]})

    def top(self, n: int, absolute: bool = False) -> Circuit:
        """The circuit of the n edges of highest score, or absolute score, without dead ends.

        >>> str(edges.top(200))
        '200 of 761 edges, 26 of 26 nodes'

        Args:
            n: number of edges.
            absolute: rank by |score|.

        Raises:
            GimkitError: the model has fewer edges.
        """
        return Circuit(self.graph, prune(top_edges(self.scores, self.graph, n, absolute), self.graph), self.scores)

    def greedy(self, n: int, absolute: bool = False) -> Circuit:
        """The circuit of n edges grown upward from the logits, best edge first, without dead ends.

        Fewer than n edges are returned when no more can be reached.

        Args:
            n: number of edges.
            absolute: rank by |score|.

        Raises:
            GimkitError: the model has fewer edges.
        """
        return Circuit(self.graph, prune(greedy_edges(self.scores, self.graph, n, absolute), self.graph), self.scores)

    @classmethod
    def load(cls, path: str | Path, *, model: Envoy | None = None) -> "EdgeScores":
        """Read the edge scores of a file of MIB's format, .json or .pt, or a .safetensors.

        >>> path = edges.save("ioi.json")
        >>> EdgeScores.load(path, model=model).method
        'gim'

        Args:
            path: of the file.
            model: a file of another shape than this model's is refused.

        Raises:
            GimkitError: a file of node scores, and as `gimkit.circuits.mib_files.read`.
        """
        found = mib_files.read(path, model)
        if found.node_scores is not None and not found.scores.any():
            raise GimkitError(f"{path} holds scores of nodes, not of edges; read it with NodeScores.load")
        return cls(graph=found.graph, scores=found.scores, **found.labels)

    def save(self, path: str | Path) -> Path:
        """Write the scores, with every edge in the graph, as .json or .pt for MIB's evaluation, or as .safetensors.

        >>> edges.save("ioi.json")
        PosixPath('ioi.json')

        Raises:
            GimkitError: another ending, NaN scores.
        """
        labels = {key: getattr(self, key) for key in mib_files.LABELS}
        return mib_files.write(path, self.graph, self.scores, self.graph.real, labels=labels)


def score_edges(model: Envoy, task: Task, method: Method | Rules = "gim", *, metric: Metric = "logit", steps: int = 5,
                nodes: Sequence[str] | None = None, batch_size: int | None = None, seed: int = 0,
                backend: Backend = "auto", remote: bool | str = False) -> "EdgeScores | ChosenEdges":
    """Score every edge of a model on a task; a head's queries, keys and values are separate targets.

    >>> edges = gimkit.score_edges(model, gimkit.tasks.ioi(model, n=64), method="gim")
    >>> edges.scores.shape                                       # 26 sources, 66 targets
    torch.Size([26, 66])

    An edge's score is <clean - corrupt output of its source, gradient at what its target reads>, summed over positions,
    averaged over examples; one forward and one backward pass per gradient.
    Warns when the model gets less than 75% of the clean prompts right.

    Memory is what the backward pass keeps, about 32 widths per layer for each token of a pair's rows (2 rows, or as
    many as there are points and the clean and corrupt runs). All sources are multiplied with all targets for a few
    positions at a time. A pair of a Llama-3.1-8B (1,592,881 edges) in bfloat16 takes about 17 MB per token by count.
    A random Llama of 8 layers and width 512 in float32 took 1.2 times its count at 1024 tokens.

    Args:
        model: an unedited nnsight model whose edges are covered.
        task: a `gimkit.tasks.Task` of n prompt pairs.
        method: any rules ("gim", "gradient", which is EAP, "relp", ..., or a `gimkit.Rules`), "ig-inputs" (EAP-IG),
            "gim-ig", "clean-corrupted", "ig-activations", "gp" (EAP-GP), "learned", "exact" or "random".
            docs/METHODS.md says what each computes, what it costs, and where it wins and loses.
        metric: as in `gimkit.score_nodes`. The divergences' gradient is zero at the clean run, so they are
            refused for "gradient", other rules, and "ig-activations" with one step.
        steps: points of the averaged gradients.
        nodes: names of nodes, "input", "a0.h1", "m2", "logits": only the edges among them are scored, by any rules or
            "exact".
        batch_size: prompt pairs a pass, with no effect on the result. None: as many as keep about 2^26 numbers (256 MiB
            in float32) for the backward pass, at most 64; with nodes= in forward mode 32.
        seed: of "random" and "learned".
        backend: all edges need a backward pass: "forward", and a server that refuses gradients, are refused. With
            nodes= "forward" needs no autograd: each source's output is a row, and so is each edge, whose tangent starts
            where its target reads; a forward pass of 3 + sources + edges rows a pair.
        remote: as in `gimkit.attribute`.

    Returns:
        `EdgeScores`; with nodes= a `ChosenEdges`.

    Raises:
        GimkitError: an unknown method or metric, steps below 1, an architecture whose edges are not covered, unknown
            nodes or nodes that no edge joins, NaN. In forward mode also where what it recomputes of the clean run is
            not the model's, and for OLMo-2, whose norms mix the queries of all heads, unless the rules freeze norms.

    Source:
        hannamw/EAP-IG (names, order, formulas), arXiv 2502.06852 (EAP-GP), 2505.17630 (GIM). Differences from the
        reference: scores do not depend on the batch size (it divides by it once more); the output of a part followed by
        a norm (Gemma-2 and 3, OLMo-2) is what leaves that norm, with its denominator constant. OLMo-2 normalises the
        queries (and keys) of all heads together, so an edge into one head's query also counts the effect on the others.
    """
    check_task(model, task)
    if not isinstance(method, Rules) and method not in METHODS:
        raise GimkitError(f"unknown method {method!r}; use a gimkit.Rules, or one of {', '.join(METHODS)}")
    steps, seed = check_whole("steps", steps), check_whole("seed", seed, 0)
    batch_size = batch_size if batch_size is None else check_whole("batch_size", batch_size)
    asked, metric, rows = metric, metric_of(task, metric), answer_rows(task)
    check_backend(backend)
    label, rules_only = name_of(method), isinstance(method, Rules) or method in RULES
    if rules_only or (method, steps) == ("ig-activations", 1):
        check_slope(metric, label)
    w = residual_stream_of(model)
    check_unedited(model)
    graph = graph_of(w)
    if nodes is not None and not rules_only and method != "exact":
        raise GimkitError(f"{label} scores all edges at once: leave nodes= out, or use any rules ('gim', 'gradient', "
                          "'relp', ...)")
    chosen = {} if nodes is None else edges_among(graph, nodes)
    if method == "random":
        scores = torch.randn(graph.real.shape, generator=torch.Generator().manual_seed(seed)) * graph.real
    elif method == "learned":
        if remote or backend == "forward":
            raise GimkitError("learned takes some 60 gradients one after another: it runs locally, with autograd; use "
                              "any rules ('gim', 'gradient', 'relp', ...) here")
        start = score_edges(model, task, "gim-ig", metric=asked, steps=steps, batch_size=batch_size)
        scores = learned(SoftCircuits(model, task, metric), start.scores, seed=seed)
    elif method == "exact":
        places = sorted(chosen.values() or graph.real.nonzero().tolist(), key=lambda place: place[1])
        scores = _exact(model, w, places, rows, metric, batch_size, remote) * (len(rows) // len(task))
    else:
        clean: list[torch.Tensor] = []

        def reverse() -> torch.Tensor:
            groups = 2 + points(method, steps, 1, len(w.layers))[0]["extra"]
            pairs = batches(rows, batch_size or _pairs_at_once(w, rows.clean.shape[1], groups), label, metric)
            found, own = _gradients(model, w, pairs, method, steps, remote)
            clean.append(own)
            return found / len(task)

        def forward() -> torch.Tensor:
            places = list(chosen.values())
            found = forward_chosen(model, rows, rules_of(method), metric, places, batch_size or 32, remote)
            scores = found.new_zeros(graph.real.shape)
            scores[tuple(zip(*places))] = per_pair(task, found).mean(0)
            return scores

        scores = by_backend(model, backend, reverse, forward if chosen else NO_FORWARD.format(graph.n_edges), remote)
        if clean and metric not in DIVERGENCES:
            warn_unsolved(task.name, per_pair(task, clean[0]))
    require_finite(scores)
    if chosen:
        return ChosenEdges(task.name, label, tuple(chosen), scores[tuple(zip(*chosen.values()))], metric)
    return EdgeScores(task.name, label, graph, scores, metric)


def _gradients(model: Envoy, w: ResidualStream, pairs: Iterator[tuple[Task, Answers]], method: str | Rules, steps: int,
               remote: bool | str) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores of a task's `batches`, summed over examples, and the clean metric; gradients are means over `points`.
    """
    rules = AVERAGED[method] if method in AVERAGED else rules_of(method)
    edited = apply(model, rules)
    total: Any = 0
    clean = []
    for batch, answers in pairs:
        b = len(batch)
        for chunk in points(method, steps, b, len(w.layers)):
            ids = torch.cat([batch.clean, batch.corrupt, batch.clean.repeat(chunk["extra"], 1)])
            arguments = (w, rules.freeze_norm, b, answers, chunk["rows"])
            if method == "gp":
                found, own = in_session(edited, scores_along_path, ids, batch.mask, *arguments, remote=remote)
            else:
                found, own = in_trace(edited, ids, edge_scores, *arguments, chunk["shares"], None, chunk["between"],
                                      remote=remote)
            total = total + chunk["weight"] * found
        clean.append(own)
    return total, torch.cat(clean)


def _pairs_at_once(w: ResidualStream, tokens: int, rows: int, most: int = 2**26) -> int:
    """How many pairs of `rows` rows a backward pass can take: each block keeps about 32 widths per token."""
    return min(64, max(1, most // (rows * tokens * len(w.layers) * 32 * w.width)))


def _exact(model: Envoy, w: ResidualStream, edges: Sequence, task: Task, metric: str, batch_size: int | None,
           remote: bool | str) -> torch.Tensor:
    """By how much the metric falls when one edge carries its corrupt value; edges are ordered by target."""
    joining = rows_may_join(model, architecture_of(model))
    rows = rows_at_once(model, task.clean.shape[1])
    batch_size = max(1, min(batch_size or 16, rows // 128))  # most rows are for edges, not for clean and corrupt
    scores = torch.zeros(graph_of(w).real.shape, dtype=torch.float32)  # whatever torch's default is
    for batch, answers in batches(task, batch_size, "exact", metric):
        together = max(1, rows // len(batch) - 2)
        for first in tqdm(range(0, len(edges), together), desc=f"{task.name} edges", delay=2, leave=False):
            chosen = edges[first:first + together]
            ids = torch.cat([rows_of(batch), batch.clean.repeat(0 if joining else len(chosen), 1)])
            found = in_trace(model, ids, exact_edge_scores, w, chosen, answers, remote=remote, gradients=False)
            scores[tuple(zip(*chosen))] += found.float() / len(task)
    return scores
