"""Circuits of GPT-2 small that people found by hand, as data to compare scores with.

Heads and MLPs are those of Wang et al. 2022 (arXiv 2211.00593) for indirect objects and of Hanna et al. 2023 (arXiv
2305.00586) for greater-than. The edges between them follow the class-to-class rules of ACDC's code (Conmy et al. 2023,
arXiv 2304.14997). Its positions are left out, since an edge here covers all positions. ACDC's input holds the position
embedding too; here it is the token embedding alone.
"""

import torch

from gimkit.circuits.circuit import Circuit
from gimkit.model.graph import Graph

GPT2_SMALL = Graph(layers=12, heads=12, parallel=False, width=768)
ENDS = {"input": ("input",), "logits": ("logits",), "MLPs": tuple(f"m{layer}" for layer in range(12))}

IOI_HEADS = {
    "previous token": ("a2.h2", "a4.h11"),
    "duplicate token": ("a0.h1", "a0.h10", "a3.h0"),
    "induction": ("a5.h5", "a5.h8", "a5.h9", "a6.h9"),
    "S-inhibition": ("a7.h3", "a7.h9", "a8.h6", "a8.h10"),
    "name mover": ("a9.h9", "a10.h0", "a9.h6"),
    "backup name mover": ("a10.h10", "a10.h6", "a10.h2", "a10.h1", "a11.h2", "a9.h7", "a9.h0", "a11.h9"),
    "negative name mover": ("a10.h7", "a11.h10"),
}
MOVERS = ("name mover", "backup name mover", "negative name mover")
IOI_RULES = (  # classes that write, classes that read, which of a head's inputs read
    (("input",), ("previous token", "duplicate token"), "qkv"),
    (("input",), ("S-inhibition",), "q"),
    (("input",), MOVERS, "kv"),
    (("previous token",), ("induction",), "kv"),
    (("induction", "duplicate token"), ("S-inhibition",), "kv"),
    (("S-inhibition",), MOVERS, "q"),
    (MOVERS, ("logits",), ""),
    (("input", "MLPs"), ("MLPs", "logits"), ""),
    (("MLPs",), tuple(IOI_HEADS), "qkv"),
    (tuple(IOI_HEADS), ("MLPs",), ""),
)

GREATER_THAN_NODES = {
    "a0.h1": ("a0.h1",),
    "other early heads": ("a0.h3", "a0.h5"),
    "early MLPs": ("m0", "m1", "m2", "m3"),
    "middle heads": ("a5.h5", "a6.h1", "a6.h9", "a7.h10", "a8.h11", "a9.h1"),
    "late MLPs": ("m8", "m9", "m10", "m11"),
    "m0 to m8": tuple(f"m{layer}" for layer in range(9)),
}
GREATER_THAN_RULES = (
    (("input",), ("a0.h1", "other early heads"), "qkv"),
    (("input", "a0.h1"), ("early MLPs",), ""),
    (("a0.h1", "other early heads", "early MLPs"), ("middle heads",), "qkv"),
    (("m0 to m8",), ("m0 to m8",), ""),
    (("m0 to m8",), ("middle heads",), "q"),
    (("middle heads", "late MLPs"), ("late MLPs", "logits"), ""),
)


def ioi() -> Circuit:
    """The circuit for indirect objects: 26 heads in seven classes, all MLPs.

    >>> print(gimkit.circuits.known.ioi())
    963 of 32,491 edges, 39 of 157 nodes

    124 edges join heads to heads, by `IOI_RULES`. Every MLP reads from and writes to every head of the circuit,
    the MLPs, input and logits, as far as the layers allow: ACDC's convention for parts that the paper does not cover.
    `IOI_HEADS` names the heads by class.
    """
    return _joined(ENDS | IOI_HEADS, IOI_RULES)


def greater_than() -> Circuit:
    """The circuit for greater-than: nine heads and all MLPs.

    >>> print(gimkit.circuits.known.greater_than())
    235 of 32,491 edges, 22 of 157 nodes

    The paper leaves the middle heads' queries clean. As in ACDC, the edges from m0 ... m8 to them, and between these
    MLPs, represent that.
    """
    return _joined(ENDS | GREATER_THAN_NODES, GREATER_THAN_RULES)


def _joined(classes: dict[str, tuple[str, ...]], rules: tuple) -> Circuit:
    """Every edge that a rule names and the model has."""
    sources, targets = GPT2_SMALL.sources, GPT2_SMALL.targets
    keep = torch.zeros_like(GPT2_SMALL.real)
    for writers, readers, inputs in rules:
        names = {source for writer in writers for source in classes[writer]}
        reads = {target + which for reader in readers for target in classes[reader]
                 for which in ([f"<{which}>" for which in inputs] or [""])}
        keep |= (torch.tensor([source in names for source in sources])[:, None]
                 & torch.tensor([target in reads for target in targets]))
    return Circuit(GPT2_SMALL, keep & GPT2_SMALL.real)
