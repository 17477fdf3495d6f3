"""Edges among a few chosen nodes, and their scores in forward mode."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas
import torch
from nnsight.intervention.envoy import Envoy

from gimkit.errors import GimkitError
from gimkit.jvp.plan import plan_of
from gimkit.jvp.rows import starts_of
from gimkit.jvp.scores import forward_task_scores
from gimkit.model.architecture import architecture_of
from gimkit.model.graph import Graph, Node, nodes_of
from gimkit.model.residual_stream import graph_of, residual_stream_of
from gimkit.results import Result
from gimkit.rules import Rules
from gimkit.tasks.task import Task, answers_of


@dataclass(frozen=True, eq=False)
class ChosenEdges(Result):
    """Scores of some edges; positive means that corrupting the edge hurts.

    >>> found = gimkit.score_edges(model, task, nodes=["m0", "m1", "logits"])
    >>> found.edges, found.scores.shape
    (('m0->m1', 'm0->logits', 'm1->logits'), torch.Size([3]))

    edges: names like `a0.h1->a1.h2<q>`. scores: [edges] in units of the metric, means over examples.
    """

    task: str
    method: str
    edges: tuple[str, ...]
    scores: torch.Tensor
    metric: str = "logit"

    def frame(self) -> pandas.DataFrame:
        """Tidy table with columns task, method, metric, source, target, score."""
        ends = [name.split("->") for name in self.edges]
        return pandas.DataFrame({"task": self.task, "method": self.method, "metric": self.metric,
                                 "source": [source for source, _ in ends], "target": [target for _, target in ends],
                                 "score": self.scores.tolist()})


def edges_among(graph: Graph, chosen: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The edges whose source and target both belong to chosen nodes, as `Graph.edges` has them.

    >>> list(edges_among(Graph(2, 1, False, 8), ["m0", "m1", "logits"]))
    ['m0->m1', 'm0->logits', 'm1->logits']
    """
    known = (*graph.sources, "logits")
    unknown = sorted(set(chosen) - set(known))
    if isinstance(chosen, str) or unknown:
        raise GimkitError(f"unknown nodes {', '.join(map(str, unknown))}; give a list of some of {known[0]}, "
                          f"{known[1]}, ..., {known[-2]}, logits")
    chosen, real = set(chosen), graph.real
    sources, targets = ([(i, name) for i, name in enumerate(names) if name.partition("<")[0] in chosen]
                        for names in (graph.sources, graph.targets))
    found = {f"{source}->{target}": (i, j) for i, source in sources for j, target in targets if real[i, j]}
    if not found:
        raise GimkitError(f"no edge joins {', '.join(sorted(chosen)) or 'no nodes'}; choose at least two nodes, one "
                          "before the other")
    return found


def forward_chosen(model: Envoy, task: Task, rules: Rules, metric: str, places: list[tuple[int, int]], batch_size: int,
                   remote: bool | str) -> torch.Tensor:
    """Scores [n, edges]; places: (row, column) of each edge in the graph, source by source."""
    plan, names = plan_of(model, rules), nodes_of(architecture_of(model))
    graph = graph_of(residual_stream_of(model))
    mixed = [path for block in plan["blocks"] for path, *_ in block["head_norms"]
             if model._module.get_submodule(path).weight.shape[-1] > block["head_dim"]]
    if mixed and not rules.freeze_norm:
        raise GimkitError(f"{mixed[0]} normalises all heads together, so in forward mode an edge into one of them "
                          "has no tangent of its own; use rules with freeze_norm=True, such as 'gim', or score nodes")

    def chunks(most: int, extra: int) -> Iterator[tuple]:
        first = 0
        for after in range(1, len(places) + 1):
            sources = {source for source, _ in places[first:after + 1]}
            if after == len(places) or len(sources) + after + 1 - first + extra > most:
                yield *_rows(graph, names, places[first:after], extra), list(range(first, after))
                first = after

    return forward_task_scores(model, task, answers_of(task, metric), rules, chunks, batch_size, remote)


def _rows(graph: Graph, names: Sequence[Node], places: list, extra: int) -> tuple[dict, list[int]]:
    """Where carriers and edges start, and each edge's row; an edge to the logits is its carrier's own row."""
    carriers, targets = list(dict.fromkeys(source for source, _ in places)), graph.targets
    started: list[tuple] = []
    rows: list[int] = []
    for source, target in places:
        carrier = carriers.index(source)
        owner, _, read = targets[target].rstrip(">").partition("<")
        if owner == "logits":
            rows.append(carrier)
            continue
        layer, _, head = owner[1:].partition(".h")
        rows.append(len(carriers) + len(started))
        started.append((carrier, read or "mlp", int(layer), int(head or 0)))
    return starts_of([names[source] for source in carriers], started, extra), rows
