"""Which row of a batch is which tangent: nodes and edges as plain numbers for the trace."""

from gimkit.model.graph import Node


def starts_of(sources: list[Node], edges: list[tuple] | None = None, spare: int = 0) -> dict:
    """Where the tangents of nodes, or of carriers and edges, start; rows count from the first tangent.

    >>> starts_of([Node("head", 0, 2)], [(0, "q", 1, 3)])["edges"]
    {1: [(1, 0, 0, 3)]}

    sources: nodes, a row each; where edges are given they are carriers. edges: (row of its carrier, "q", "k", "v" or
    "mlp", layer, head), a row each after them. spare: more rows, for the corrupt parts of heads that a norm follows.
    """
    carriers, edges = 0 if edges is None else len(sources), edges or []
    starts = {"input": None, "heads": {}, "mlps": {}, "edges": {}, "edges_mlp": {},
              "carriers": carriers, "spare": len(sources) + len(edges),
              "rows": len(sources) + len(edges) + spare}
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
