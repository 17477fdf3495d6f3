"""One score per node of a model: as a table, as a circuit, as a file, as a picture."""

from dataclasses import dataclass
from pathlib import Path

import pandas
import torch

from gimkit.circuits import files
from gimkit.circuits.circuit import Circuit
from gimkit.circuits.graph import Graph, prune
from gimkit.errors import GimkitError, check_flag, check_whole, require_finite
from gimkit.results import Result

KINDS = {"": "head", "q": "query", "k": "key", "v": "value"}


@dataclass(frozen=True, eq=False)
class NodeScores(Result):
    """One score per node; positive means that corrupting the node hurts.

    >>> nodes.nodes[:3], nodes.scores.shape
    (('input', 'a0.h0', 'a0.h1'), torch.Size([26]))
    >>> nodes.frame().columns.tolist()
    ['task', 'method', 'metric', 'node', 'kind', 'layer', 'head', 'score']

    nodes: names, "input", "a0.h0", ..., "m0", ...; of "atp*" also `a0.h0<q>`, `a0.h0<k>`, `a0.h0<v>`, ... .
    per_example: [n, nodes], in units of the metric. graph: the model's shape, None where its edges are not covered.
    """

    task: str
    method: str
    nodes: tuple[str, ...]
    per_example: torch.Tensor
    metric: str = "logit"
    graph: Graph | None = None

    @property
    def scores(self) -> torch.Tensor:
        """Means over examples, [nodes]."""
        return self.per_example.mean(0)

    def frame(self) -> pandas.DataFrame:
        """Tidy table with columns task, method, metric, node, kind, layer, head, score; no head is -1.

        kind: "input", "head", "mlp"; of "atp*" also "query", "key", "value".
        """
        rows = []
        for name, score in zip(self.nodes, self.scores.tolist()):
            layer, _, head = name[1:].rstrip(">").partition(".h")
            head, _, read = head.partition("<")
            kind = {"i": "input", "a": KINDS[read], "m": "mlp"}[name[0]]
            rows.append((self.task, self.method, self.metric, name, kind, -1 if kind == "input" else int(layer),
                         int(head) if head else -1, score))
        return pandas.DataFrame(rows, columns=["task", "method", "metric", "node", "kind", "layer", "head",
                                           "score"])

    def top(self, n: int, absolute: bool = False) -> Circuit:
        """The circuit of all edges between the embedding and the n best heads and MLPs, without dead ends.

        >>> str(nodes.top(12))
        '199 of 761 edges, 13 of 26 nodes'

        absolute: rank by |score|. Raises GimkitError when the model has fewer, or edges that are not covered, and for
        "atp*", whose queries, keys and values are no nodes of a circuit.
        Source: EAP-IG's node level, which ranks the embedding too and marks edges that run backward; without the
        embedding its circuits run as the corrupt prompt, for nothing feeds the other nodes.
        """
        graph = self._covered()
        n = check_whole("n, a number of heads and MLPs,", n, 0, len(self.nodes) - 1)
        require_finite(self.scores)
        value = (self.scores.abs() if check_flag("absolute", absolute) else self.scores)[1:].double()
        best = value.argsort(descending=True, stable=True)[:n].tolist()
        circuit = Circuit.between(graph, ["input", *(self.nodes[1 + i] for i in best)])
        return Circuit(graph, prune(circuit.keep, graph))

    @classmethod
    def load(cls, path, *, model=None) -> "NodeScores":
        """Read the node scores of a file of MIB's format, .json or .pt; per_example has one row, their means.

        >>> path = nodes.save("ioi.json")
        >>> NodeScores.load(path, model=model).per_example.shape
        torch.Size([1, 26])

        model: refuse a file of another shape. Raises GimkitError for a file without node scores and as
        `gimkit.circuits.files.read`.
        """
        found = files.read(path, model)
        if found.node_scores is None:
            raise GimkitError(f"{path} holds no scores of nodes; read it with EdgeScores.load")
        return cls(nodes=found.graph.sources, per_example=found.node_scores[None], graph=found.graph, **found.labels)

    def save(self, path) -> Path:
        """Write the mean scores for MIB's evaluation at node level, as .json or .pt, with every node in the graph.

        >>> nodes.save("ioi.json")
        PosixPath('ioi.json')

        Raises GimkitError for another ending, for NaN scores, where edges are not covered and for "atp*".
        """
        graph, labels = self._covered(), {key: getattr(self, key) for key in files.LABELS}
        return files.write(path, graph, torch.zeros(graph.real.shape), graph.real, self.scores, labels)

    def _covered(self) -> Graph:
        if self.graph is None:
            raise GimkitError("the edges of this model are not covered, so its nodes make no circuit and no circuit "
                              "file; .frame() has their scores")
        if self.nodes != self.graph.sources:
            raise GimkitError(f"{self.method} also scores queries, keys and values, which are no nodes of a circuit; "
                              "method 'gradient' gives heads and MLPs the same scores, and .frame() has all")
        return self.graph

    def plot(self, ax=None):
        """Draw heads and MLPs as a layer x head grid; returns the matplotlib axes."""
        from gimkit.plots import node_grid

        return node_grid(self, ax=ax)
