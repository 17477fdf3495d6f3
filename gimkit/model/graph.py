"""A model as a graph: the names of sources and targets, the edges, and how edges are chosen by score."""

import heapq
from typing import NamedTuple

import torch

from gimkit.errors import check_flag, check_whole, require_finite
from gimkit.model.architecture import Architecture


class Node(NamedTuple):
    """A source of edges.

    >>> Node("head", 0, 1).name
    'a0.h1'

    Attributes:
        kind: "input" (the embedding), "head" or "mlp".
        layer: counted from 0; of the embedding 0.
        head: counted from 0; of the embedding and an MLP 0.
    """

    kind: str
    layer: int
    head: int

    @property
    def name(self) -> str:
        """EAP-IG's and MIB's name: input, a0.h1, m0."""
        return {"input": "input", "head": f"a{self.layer}.h{self.head}", "mlp": f"m{self.layer}"}[self.kind]


def nodes_of(architecture: Architecture) -> tuple[Node, ...]:
    """Every source of a model in the reference's order: the embedding, then each layer's heads and MLP.

    >>> from gimkit.model.architecture import architecture_of
    >>> [node.name for node in nodes_of(architecture_of(model))][:6]
    ['input', 'a0.h0', 'a0.h1', 'a0.h2', 'a0.h3', 'm0']

    Source:
        Order and names as in hannamw/EAP-IG.
    """
    return _nodes(len(architecture.blocks), architecture.n_heads)


def _nodes(layers: int, heads: int) -> tuple[Node, ...]:
    found = [Node("input", 0, 0)]
    for layer in range(layers):
        found += [Node("head", layer, head) for head in range(heads)]
        found.append(Node("mlp", layer, 0))
    return tuple(found)


class Graph(NamedTuple):
    """A model's edges, which depend on its shape alone.

    >>> Graph(layers=12, heads=12, parallel=False, width=768).n_edges       # GPT-2 small
    32491

    Attributes:
        layers: number of blocks.
        heads: heads of each block.
        parallel: attention and MLP of a layer read the same residual stream, so no head feeds its own layer's MLP.
        width: of the residual stream. It identifies the model; no edge depends on it.
    """

    layers: int
    heads: int
    parallel: bool
    width: int

    def __str__(self) -> str:
        blocks = "parallel" if self.parallel else "sequential"
        return f"{self.layers} {blocks} layers of {self.heads} heads, width {self.width}"

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the rows: input, then each layer's a0.h0 ... and m0."""
        return tuple(node.name for node in _nodes(self.layers, self.heads))

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the columns: each layer's `a0.h0<q>` ..., `<k>` ..., `<v>` ... and m0, then logits."""
        found = []
        for layer in range(self.layers):
            found += [f"a{layer}.h{head}<{which}>" for which in "qkv" for head in range(self.heads)]
            found.append(f"m{layer}")
        return (*found, "logits")

    @property
    def real(self) -> torch.Tensor:
        """[sources, targets], True where there is an edge: the source comes before the target."""
        width = self.heads + 1
        real = torch.zeros(1 + self.layers * width, self.layers * (3 * self.heads + 1) + 1, dtype=torch.bool)
        for layer in range(self.layers):
            first = layer * (3 * self.heads + 1)
            real[:1 + layer * width, first:first + 3 * self.heads] = True
            real[:1 + layer * width + (0 if self.parallel else self.heads), first + 3 * self.heads] = True
        real[:, -1] = True
        return real

    @property
    def edges(self) -> dict[str, tuple[int, int]]:
        """Every edge's name, like `a0.h1->a1.h2<q>`, and its (row, column), source by source."""
        sources, targets = self.sources, self.targets
        return {f"{sources[i]}->{targets[j]}": (i, j) for i, j in self.real.nonzero().tolist()}

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        return int(self.real.sum())

    def node_of(self) -> torch.Tensor:
        """The source [targets] that each target belongs to, as an index (a head's q, k and v: the head); logits: -1."""
        where = {name: i for i, name in enumerate(self.sources)}
        return torch.tensor([where.get(name.partition("<")[0], -1) for name in self.targets])


def prune(keep: torch.Tensor, graph: Graph) -> torch.Tensor:
    """Remove dead ends: edges from sources that do not reach the logits, and into targets that no source feeds.

    >>> graph = Graph(layers=1, heads=1, parallel=False, width=8)
    >>> keep = torch.zeros_like(graph.real)
    >>> keep[0, 0] = True                                        # input->a0.h0<q>, and nothing reads a0.h0
    >>> prune(keep, graph).any()
    tensor(False)

    Args:
        keep: [sources, targets], True on the circuit's edges. The embedding always counts as fed.

    Source:
        As EAP-IG's prune; the version that MIB pins can stop one round early.
    """
    keep, owner = keep.clone(), graph.node_of()
    while True:
        fed = torch.zeros(len(keep), dtype=torch.bool)
        fed[0] = True
        owned = owner >= 0
        fed[owner[owned & keep.any(0)]] = True
        read = keep.any(1)
        alive = torch.ones(keep.shape[1], dtype=torch.bool)
        alive[owned] = read[owner[owned]]
        after = keep & fed[:, None] & alive[None]
        if torch.equal(after, keep):
            return keep
        keep = after


def _ranked(scores: torch.Tensor, graph: Graph, n: int, absolute: bool) -> tuple[int, torch.Tensor]:
    """The checked number of edges, and the values that rank them; minus infinity where there is no edge."""
    n = check_whole("n, a number of edges,", n, 0, graph.n_edges)
    require_finite(scores)
    value = (scores.abs() if check_flag("absolute", absolute) else scores).double().masked_fill(~graph.real, -torch.inf)
    return n, value


def top_edges(scores: torch.Tensor, graph: Graph, n: int, absolute: bool) -> torch.Tensor:
    """The n edges of highest score, or absolute score, as [sources, targets] booleans.

    >>> top_edges(edges.scores, edges.graph, 5, absolute=True).sum()
    tensor(5)
    """
    n, value = _ranked(scores, graph, n, absolute)
    keep = torch.zeros_like(graph.real)
    keep.view(-1)[value.flatten().argsort(descending=True, stable=True)[:n]] = True
    return keep


def greedy_edges(scores: torch.Tensor, graph: Graph, n: int, absolute: bool) -> torch.Tensor:
    """A circuit grown from the logits: each step adds the best edge into a node that is already part of it.

    >>> greedy_edges(edges.scores, edges.graph, 5, absolute=True).sum()
    tensor(5)
    """
    n, value = _ranked(scores, graph, n, absolute)
    columns: dict[int, list[int]] = {}
    for column, node in enumerate(graph.node_of().tolist()):
        columns.setdefault(node, []).append(column)
    best, order = (found.T.tolist() for found in value.sort(dim=0, descending=True, stable=True))  # for each target
    after = graph.real.sum(0).tolist()
    heap: list[tuple[float, int, int, int]] = []
    reached, taken = {-1}, list[tuple[int, int]]()

    def offer(column: int, place: int = 0) -> None:  # a target's next best edge: the heap holds one for each
        if place < after[column]:
            heapq.heappush(heap, (-best[column][place], order[column][place], column, place))

    for column in columns[-1]:
        offer(column)
    while heap and len(taken) < n:
        _, source, column, place = heapq.heappop(heap)
        taken.append((source, column))
        offer(column, place + 1)
        if source not in reached and source > 0:
            reached.add(source)
            for own in columns[source]:
                offer(own)
    keep = torch.zeros_like(graph.real)
    if taken:
        keep[tuple(torch.tensor(taken).T)] = True
    return keep
