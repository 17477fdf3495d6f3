"""Which row of a batch is which tangent: nodes and edges as plain numbers for the trace."""

from collections.abc import Sequence
from typing import Any

from gimkit.model.graph import Node


def starts_of(sources: Sequence[Node], edges: list[tuple] | None = None, extra: int = 0) -> dict:
    """Where tangents start: those of nodes, or those of edges and their sources.

    >>> starts_of([Node("head", 0, 2)], [(0, "q", 1, 3)])["edges"]
    {1: [(1, 0, 0, 3)]}

    A head's or MLP's edge carries what its source writes, so the source has a row of its own (the edge's carrier).

    Args:
        sources: nodes, a row each. With edges they are the carriers.
        edges: (row of its carrier, "q", "k", "v" or "mlp", layer, head), a row each after the sources.
        extra: further rows, for the corrupt outputs of heads that a norm follows.

    Returns:
        Rows, counted from the first tangent, by kind, layer and head.
    """
    carriers, edges = 0 if edges is None else len(sources), edges or []
    starts: dict[str, Any] = {"input": None, "heads": {}, "mlps": {}, "edges": {}, "edges_mlp": {},
              "carriers": carriers, "extra": len(sources) + len(edges),
              "rows": len(sources) + len(edges) + extra}
    for row, (kind, layer, head) in enumerate(sources):
        if kind == "input":
            starts["input"] = row
        elif kind == "mlp":
            starts["mlps"][layer] = row
        else:
            starts["heads"].setdefault(layer, []).append((row, head))
    for row, (carrier, read, layer, head) in enumerate(edges, len(sources)):
        if read == "mlp":
            starts["edges_mlp"].setdefault(layer, []).append((row, carrier))
        else:
            starts["edges"].setdefault(layer, []).append((row, carrier, "qkv".index(read), head))
    return starts
