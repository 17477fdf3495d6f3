"""Circuits as pictures: layers from bottom to top, heads side by side, a line for each edge."""

import textwrap
from collections.abc import Mapping
from typing import Any

import networkx
import numpy
import pandas
import seaborn
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch

from gimkit.circuits import Circuit
from gimkit.errors import GimkitError
from gimkit.model.graph import Graph
from gimkit.plots.style import BLUE, DARK, GREY, ORANGE, _axes, _plain

MOST_EDGES = 1000  # more are neither read nor drawn in seconds
BOX = (0.47, 0.66)  # width and height of a node, in columns and rows
STAGGER = (0.0, 0.5, 0.25, 0.75)  # shifts of layers to the right, in columns, so that edges pass between boxes
PORTS = {"q": -0.16, "k": 0.0, "v": 0.16, "": 0.0}  # where an edge enters its target's box


def circuit_graph(circuit: Circuit, roles: Mapping | pandas.Series | None = None, ax: Axes | None = None) -> Axes:
    """The edges of a circuit, layer above layer; blue edges help the answer, orange ones hurt it.

    >>> ax = circuit_graph(gimkit.score_edges(model, task).top(60, absolute=True))

    A head's edges enter its box at q, k or v and leave at its top. An MLP is half a layer above the heads that it
    reads. Where boxes are too small for readable names, they have none. Edges with larger |score| are thicker and less
    transparent, so that a few of 200 stand out. Edges are sums over token positions: a node's place in its layer is its
    number and no position. With at most 12 layers and heads a node has the same place in every circuit; else layers and
    heads that are not in the circuit take no space.

    Args:
        circuit: a `Circuit`; without scores all edges look the same.
        roles: mapping from a node to its role, such as `head_roles(model, task).set_index("node")["role"]`. Boxes of
            one role have one colour, which the legend names.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.

    Raises:
        GimkitError: more than 1000 edges.
    """
    if len(circuit) > MOST_EDGES:
        raise GimkitError(f"a picture shows at most {MOST_EDGES} edges and the circuit has {len(circuit)}; cut a "
                          "smaller one, such as edges.top(500)")
    graph, roles = circuit.graph, {} if roles is None else dict(roles)
    edges = _edges(circuit)
    used = {name for source, target, _ in edges for name in (source, target.partition("<")[0])} - {"input", "logits"}
    places, columns, rows = _places(graph, used)
    ax = _axes(ax, min(20.0, 0.6 + 1.6 * columns), min(20.0, 1.0 + 0.66 * rows))
    net, points = networkx.DiGraph(), {}
    for source, target, score in edges:
        start, end = (source, target, "out"), (source, target, "in")
        points[start], points[end] = _ends(source, target, places, rows)
        net.add_edge(start, end, score=score)
    most = max((abs(score) for *_, score in edges), default=1) or 1
    for bend in (-1, 0, 1):  # straight to input and logits; else bent upwards, over the boxes in between
        drawn = [(start, end, score) for start, end, score in net.edges.data("score")
                 if bend == numpy.sign(points[start][0] - points[end][0])]
        shares = [abs(score) / most for *_, score in drawn]
        networkx.draw_networkx_edges(
            net, points, [(start, end) for start, end, _ in drawn], ax=ax, arrows=True, arrowstyle="-", node_size=0,
            min_source_margin=0, min_target_margin=0, connectionstyle=f"arc3,rad={0.06 * bend}",
            edge_color=[BLUE if score > 0 else ORANGE for *_, score in drawn],
            width=[0.5 + 3.5 * share**0.7 for share in shares], alpha=[0.15 + 0.85 * share**0.5 for share in shares])
    ax.set(xlim=(-0.6, columns - 0.4), ylim=(-0.3, rows + 0.3), title=_plain(textwrap.fill(str(circuit), 70)))
    ax.axis("off")
    keys: dict[str, Any] = {}
    if circuit.scores is not None and edges:
        keys = {f"for the answer (thickest: |score| {most:.2g})": Line2D([], [], color=BLUE, linewidth=3),
                "against it": Line2D([], [], color=ORANGE, linewidth=3)}
    named = sorted({str(roles[name]) for name in used if roles.get(name)})
    fill = dict(zip(named, seaborn.color_palette("pastel", 10)))
    keys |= {_plain(role): Patch(facecolor=colour, edgecolor=DARK) for role, colour in fill.items()}
    if keys:
        ax.legend(list(keys.values()), list(keys), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2,
                  frameon=False, fontsize=9)
    figure: Any = ax.figure
    figure.draw_without_rendering()  # fixes the size of the axes, and so the room in a box
    points = ax.transData.transform(BOX) - ax.transData.transform((0, 0))
    room = tuple(72 / figure.dpi * points)
    for name in sorted(used):
        _box(ax, name, *places[name], fill.get(str(roles.get(name)), "white"), room)
    for name, y in (("input", 0), ("logits", rows)):
        ax.add_patch(FancyBboxPatch((-0.5, y - 0.2), columns, 0.4, boxstyle="round,pad=0,rounding_size=0.05",
                                    facecolor="#eeeeee", edgecolor=DARK, zorder=3, gid=name))
        ax.text(columns / 2 - 0.5, y, name, ha="center", va="center", fontsize=9, zorder=4)
    return ax


def _edges(circuit: Circuit) -> list[tuple[str, str, float]]:
    """(source, target, score) of each edge, the strongest last, so that they are drawn on top."""
    sources, targets = circuit.graph.sources, circuit.graph.targets
    found = [(sources[i], targets[j], 1.0 if circuit.scores is None else float(circuit.scores[i, j]))
             for i, j in circuit.keep.nonzero().tolist()]
    return sorted(found, key=lambda edge: abs(edge[2]))


def _places(graph: Graph, used: set[str]) -> tuple[dict[str, tuple[float, int]], float, float]:
    """The centre of each node's box in columns and rows, and the numbers of columns and rows."""
    small = max(graph.layers, graph.heads) <= 12
    at = {name: (int(name[1:].partition(".")[0]), int(name.partition(".h")[2] or graph.heads)) for name in used}
    layers = range(graph.layers) if small else sorted({layer for layer, _ in at.values()})
    places: dict[str, tuple] = {}
    most = graph.heads if small else 0
    for row, layer in enumerate(layers):
        heads = sorted(head for where, head in at.values() if where == layer and head < graph.heads)
        column = {head: head if small else i for i, head in enumerate(heads)}
        most = max([most, *(i + 1 for i in column.values())])
        places |= {f"a{layer}.h{head}": (i + STAGGER[row % 4], 1 + 2 * row) for head, i in column.items()}
    places |= {name: (most + STAGGER[row % 4], 2 + 2 * row) for row, layer in enumerate(layers)
               if (name := f"m{layer}") in used}
    return places, most + 1.75, 1 + 2 * len(layers) + 0.2


def _ends(source: str, target: str, places: dict, rows: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where an edge's line starts and ends; at the input and the logits, right below or above its other end."""
    owner, _, which = target.partition("<")
    start = places.get(source, (None, 0.2 - BOX[1] / 2))
    end = places.get(owner, (None, rows - 0.2 + BOX[1] / 2))
    right = -0.4 if start[0] is None else start[0]
    left = right if end[0] is None else end[0] + PORTS[which[:1]]
    return (left if start[0] is None else right, start[1] + BOX[1] / 2), (left, end[1] - BOX[1] / 2)


def _box(ax: Axes, name: str, x: float, y: float, colour: Any, room: tuple[float, ...]) -> None:
    """A node's box in its role's colour: its name, and where q, k and v enter, as far as there is room (in points)."""
    ax.add_patch(FancyBboxPatch((x - BOX[0] / 2, y - BOX[1] / 2), *BOX, boxstyle="round,pad=0,rounding_size=0.05",
                                facecolor=colour, edgecolor=DARK, linewidth=0.8, zorder=3, gid=name))
    ports = name[0] == "a" and room[0] >= 34 and room[1] >= 25
    if room[0] >= 6 * len(name) and room[1] >= 12:
        ax.text(x, y + 0.14 * ports, name, ha="center", va="center", fontsize=9, zorder=4)
    for which in "qkv" if ports else "":
        ax.text(x + PORTS[which], y - 0.2, which, ha="center", va="center", fontsize=9, color=GREY, zorder=4)
