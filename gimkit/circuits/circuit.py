"""A circuit as data: a set of edges of a model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas
import torch
from nnsight.intervention.envoy import Envoy

from gimkit.circuits import mib_files
from gimkit.errors import GimkitError
from gimkit.model.graph import Graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of edges of a model.

    >>> circuit = gimkit.score_edges(model, task).top(200)
    >>> len(circuit), circuit.edges[0]
    (200, 'input->a0.h0<q>')

    Attributes:
        graph: the model's shape.
        keep: [sources, targets], True on the circuit's edges.
        scores: [sources, targets], or None.
    """

    graph: Graph
    keep: torch.Tensor
    scores: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.keep.shape != self.graph.real.shape or bool((self.keep & ~self.graph.real).any()):
            raise GimkitError("the circuit holds edges that this model does not have")

    @classmethod
    def of(cls, graph: Graph, edges: Iterable[str]) -> "Circuit":
        """The circuit of edges given by their names.

        >>> len(Circuit.of(edges.graph, ["input->a0.h0<v>", "a0.h0->logits"]))
        2

        Raises:
            GimkitError: an edge that the model does not have.
        """
        known, keep = graph.edges, torch.zeros_like(graph.real)
        for name in edges:
            if name not in known:
                raise GimkitError(f"no edge {name!r} in a model of {graph}; edges are named input->m0, a0.h1->a1.h2<q>")
            keep[known[name]] = True
        return cls(graph, keep)

    @classmethod
    def between(cls, graph: Graph, nodes: Sequence[str]) -> "Circuit":
        """The circuit of all edges between nodes given by their names, and from them to the logits.

        >>> Circuit.between(edges.graph, ["input", "m0"]).edges
        ('input->m0', 'input->logits', 'm0->logits')

        Raises:
            GimkitError: a node that the model does not have.

        Source:
            EAP-IG's node-level circuits. They also mark edges that run backward; here only real edges count.
        """
        unknown = [name for name in nodes if name not in graph.sources]
        if unknown:
            raise GimkitError(f"no node {unknown[0]!r} in a model of {graph}; nodes are named input, a0.h1, m0")
        inside = torch.tensor([name in nodes for name in graph.sources])
        return cls(graph, graph.real & inside[:, None] & torch.cat([inside, torch.tensor([True])])[graph.node_of()])

    @classmethod
    def load(cls, path: str | Path, *, model: Envoy | None = None) -> "Circuit":
        """Read the circuit of a file, .json or .pt (MIB's) or .safetensors: the edges that it marks as in the graph.

        >>> path = edges.top(100).save("ioi.json")
        >>> Circuit.load(path, model=model) == edges.top(100)
        True

        Args:
            path: of the file.
            model: a file of another shape than this model's is refused.

        Raises:
            GimkitError: as `gimkit.circuits.mib_files.read`.
        """
        found = mib_files.read(path, model)
        return cls(found.graph, found.keep, found.scores)

    def save(self, path: str | Path) -> Path:
        """Write the circuit with its scores, or 0 and 1, as .json or .pt for MIB's evaluation, or as .safetensors.

        >>> circuit.save("ioi.json")
        PosixPath('ioi.json')

        Raises:
            GimkitError: another ending, NaN scores.
        """
        return mib_files.write(path, self.graph, self.keep.float() if self.scores is None else self.scores, self.keep)

    def __len__(self) -> int:
        return int(self.keep.sum())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.graph == other.graph and torch.equal(self.keep, other.keep)

    __hash__ = None  # type: ignore[assignment]

    @property
    def edges(self) -> tuple[str, ...]:
        """Names like `a0.h1->a1.h2<q>`, source by source."""
        sources, targets = self.graph.sources, self.graph.targets
        return tuple(f"{sources[i]}->{targets[j]}" for i, j in self.keep.nonzero().tolist())

    @property
    def nodes(self) -> tuple[str, ...]:
        """The sources of the circuit's edges."""
        return tuple(name for name, used in zip(self.graph.sources, self.keep.any(1).tolist()) if used)

    def plot(self, roles: Mapping | pandas.Series | None = None, ax: "Axes | None" = None) -> "Axes":
        """Draw the circuit layer above layer, as `gimkit.plots.circuit.circuit_graph`; returns the matplotlib axes."""
        from gimkit.plots.circuit import circuit_graph

        return circuit_graph(self, roles, ax=ax)

    def __str__(self) -> str:
        return f"{len(self)} of {self.graph.n_edges:,} edges, {len(self.nodes)} of {len(self.graph.sources)} nodes"
