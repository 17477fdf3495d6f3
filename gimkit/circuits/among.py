"""Scores of the edges among a few chosen nodes: by a backward pass, or without one."""

from dataclasses import dataclass

import pandas
import torch

from gimkit.circuits.edges import METHODS, score_edges
from gimkit.circuits.metric import check_slope, metric_of
from gimkit.errors import GimkitError, check_whole, require_finite
from gimkit.jvp.modes import check_backend, in_either_mode
from gimkit.jvp.plan import plan_of
from gimkit.jvp.rows import starts_of
from gimkit.jvp.scores import forward_task_scores
from gimkit.model.apply import check_unedited
from gimkit.model.architecture import architecture_of
from gimkit.model.graph import Graph, nodes_of
from gimkit.model.residual_stream import graph_of, residual_stream_of
from gimkit.results import Result
from gimkit.rules import RULES, Rules, rules_of
from gimkit.tasks.task import answer_rows, answers_of, check_task, per_pair


@dataclass(frozen=True, eq=False)
class ChosenEdges(Result):
    """Scores of some edges; positive means that corrupting the edge hurts.

    >>> found = gimkit.circuits.score_edges_among(model, task, ["m0", "m1", "logits"])
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


def score_edges_among(model, task, chosen, method: str | Rules = "gim", *, metric: str = "logit", batch_size: int = 32,
                      backend: str = "auto", remote: bool | str = False) -> ChosenEdges:
    """Score every edge between chosen nodes, each head's queries, keys and values apart.

    >>> found = gimkit.circuits.score_edges_among(model, task, ["input", "a0.h1", "a2.h3", "logits"])
    >>> found.edges[:4]
    ('input->a0.h1<q>', 'input->a0.h1<k>', 'input->a0.h1<v>', 'input->a2.h3<q>')

    chosen: names of nodes, "input", "a0.h1", "m2", "logits". method: any rules ("gim", "gradient", ..., or a
        `gimkit.Rules`). metric, batch_size, remote: as in `gimkit.score_nodes`.
    backend: "reverse" takes them out of `gimkit.score_edges`, the same numbers, all edges computed. "forward" needs no
        autograd: what each source writes to the residual stream is a row, and so is each edge, whose tangent starts
        where its target reads; a forward pass of 3 + sources + edges rows a pair. "auto" is "reverse", and "forward",
        with a warning, where a server refuses gradients.
    Raises GimkitError for unknown nodes or none that an edge joins, and as `gimkit.score_edges`; in forward mode also
    where what it recomputes of the clean run is not the model's, and for OLMo-2, whose norms mix the queries of all
    heads, unless the rules freeze norms.
    """
    check_task(model, task)
    metric, rows = metric_of(task, metric), answer_rows(task)
    check_backend(backend)
    batch_size = check_whole("batch_size", batch_size)
    check_unedited(model)
    if method in METHODS and method not in RULES:
        raise GimkitError(f"{method} scores all edges at once: use gimkit.score_edges, or any rules here ('gim', "
                          "'gradient', 'relp', ...)")
    rules, label = rules_of(method), method if isinstance(method, str) else "own rules"
    check_slope(metric, label)
    graph = graph_of(residual_stream_of(model))
    places = edges_among(graph, chosen)

    def reverse():
        whole = score_edges(model, task, method, metric=metric, batch_size=batch_size, backend="reverse", remote=remote)
        return torch.stack([whole.scores[place] for place in places.values()])

    def forward():
        found = _forward(model, graph, rows, rules, metric, list(places.values()), batch_size, remote)
        return per_pair(task, found).mean(0)

    scores = in_either_mode(model, backend, reverse, forward, remote)
    require_finite(scores)
    return ChosenEdges(task.name, label, tuple(places), scores, metric)


def edges_among(graph: Graph, chosen) -> dict[str, tuple[int, int]]:
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


def _forward(model, graph: Graph, task, rules: Rules, metric: str, places: list, batch_size: int, remote):
    """Scores [n, edges]; places: (row, column) of each edge in the graph, source by source."""
    plan, names = plan_of(model, rules), nodes_of(architecture_of(model))
    mixed = [path for block in plan["blocks"] for path, *_ in block["head_norms"]
             if model._module.get_submodule(path).weight.shape[-1] > block["head_dim"]]
    if mixed and not rules.freeze_norm:
        raise GimkitError(f"{mixed[0]} normalises all heads together, so in forward mode an edge into one of them "
                          "has no tangent of its own; use rules with freeze_norm=True, such as 'gim', or score nodes")

    def chunks(most: int, spare: int):
        first = 0
        for after in range(1, len(places) + 1):
            sources = {source for source, _ in places[first:after + 1]}
            if after == len(places) or len(sources) + after + 1 - first + spare > most:
                yield *_rows(graph, names, places[first:after], spare), list(range(first, after))
                first = after

    return forward_task_scores(model, task, (metric, *answers_of(task)), rules, chunks, len(places), batch_size, remote)


def _rows(graph: Graph, names, places: list, spare: int) -> tuple[dict, list[int]]:
    """Where carriers and edges start, and each edge's row; an edge to the logits is its carrier's own row."""
    carriers, targets = list(dict.fromkeys(source for source, _ in places)), graph.targets
    started, rows = [], []
    for source, target in places:
        carrier = carriers.index(source)
        owner, _, read = targets[target].rstrip(">").partition("<")
        if owner == "logits":
            rows.append(carrier)
            continue
        layer, _, head = owner[1:].partition(".h")
        rows.append(len(carriers) + len(started))
        started.append((carrier, read or "mlp", int(layer), int(head or 0)))
    return starts_of([names[source] for source in carriers], started, spare), rows
