"""The names of a model's parts: where they stand and in which order."""

from typing import NamedTuple

from gimkit.anatomy import Anatomy


class Node(NamedTuple):
    """A source: the embedding (kind "input"), a head ("head") or an MLP ("mlp")."""

    kind: str
    layer: int
    head: int

    @property
    def name(self) -> str:
        """EAP-IG's and MIB's name: input, a0.h1, m0."""
        return {"input": "input", "head": f"a{self.layer}.h{self.head}", "mlp": f"m{self.layer}"}[self.kind]


def nodes(anatomy: Anatomy) -> tuple[Node, ...]:
    """Every source of a model in the reference's order: the embedding, then each layer's heads and MLP.

    >>> [node.name for node in nodes(dissect(gimkit.load("mini-gpt2")))][:6]
    ['input', 'a0.h0', 'a0.h1', 'a0.h2', 'a0.h3', 'm0']

    Source: order and names as in hannamw/EAP-IG.
    """
    found = [Node("input", 0, 0)]
    for layer in range(len(anatomy.blocks)):
        found += [Node("head", layer, head) for head in range(anatomy.n_heads)]
        found.append(Node("mlp", layer, 0))
    return tuple(found)
