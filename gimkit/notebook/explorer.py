"""A circuit to click through: a widget in a notebook, or one HTML file that needs no network."""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import anywidget
import torch
import traitlets
from matplotlib.figure import Figure
from nnsight.intervention.envoy import Envoy

from gimkit.circuits import Circuit, Curve, EdgeScores
from gimkit.errors import GimkitError, require_finite
from gimkit.files import write_text
from gimkit.interventions.head_roles import head_patterns
from gimkit.model.apply import check_unedited
from gimkit.model.architecture import architecture_of
from gimkit.model.prompt import PromptLike, prompt_ids
from gimkit.model.residual_stream import check_graph, residual_stream_of
from gimkit.model.tokenizer import token_text
from gimkit.plots import circuit_graph, panels
from gimkit.remote import in_trace

SCRIPT, STYLE = (Path(__file__).with_name(f"explorer.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
MOST_EDGES = 5000  # a browser draws a line for each
MOST_DRAWN = 150  # in the picture, which nobody can zoom
MOST_ATTENTION = 2**21  # numbers, of some 7 characters each
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0; }}
#explorer {{ box-sizing: border-box; min-height: 100vh; padding: 1rem; }}
{style}</style>
<noscript>This page draws a circuit with JavaScript, which is switched off here.</noscript>
<main id="explorer"></main>
<script type="application/json" id="data">{data}</script>
<script type="module">
{script}
explore(document.getElementById("explorer"), JSON.parse(document.getElementById("data").textContent));
</script>
</html>
"""


def add_picture(bundle: Any, figure: Figure | None) -> Any:
    """A widget's bundle with a picture, which viewers without a kernel show in its place.

    >>> sorted(add_picture({"text/plain": "widget"}, Figure()))
    ['image/png', 'text/plain']

    Args:
        bundle: of `_repr_mimebundle_`: data, or data and metadata.
        figure: a matplotlib figure.
    Returns:
        The same bundle, with a png.
    """
    if bundle and figure is not None:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=80, facecolor="white", metadata={"Software": None})
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["image/png"] = base64.b64encode(png.getvalue()).decode()
    return bundle


class Explorer(anywidget.AnyWidget):
    """A circuit to click through, returned by `explore`; a notebook shows it. Its contents are in `.data`."""

    _esm = SCRIPT
    _css = STYLE
    data = traitlets.Dict().tag(sync=True)
    figure: Any = None  # the circuit, for viewers without a kernel

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return add_picture(super()._repr_mimebundle_(**options), self.figure)

    def save(self, path: str | Path) -> Path:
        """Write one HTML file that contains everything and loads nothing; the same data give the same bytes.

        >>> gimkit.explore(model, task[0].clean, edges, curve).save("ioi.html")
        PosixPath('ioi.html')

        Args:
            path: of the file; it ends in .html.

        Raises:
            GimkitError: the path has another ending.
        """
        path = Path(path)
        if path.suffix != ".html":
            raise GimkitError(f"{path.name}: the explorer is an .html file")
        data = json.dumps(self.data, ensure_ascii=False, allow_nan=False).replace("<", r"\u003c")
        title = html.escape(self.data["title"])
        return write_text(path, PAGE.format(title=title, style=STYLE, script=SCRIPT, data=data))


def explore(model: Envoy, prompt: PromptLike, edges: EdgeScores, curve: Curve, roles: Any = None, *,
            remote: bool | str = False) -> Explorer:
    """A circuit to click through, at each size of a curve, with every edge's score and each head's attention.

    >>> explorer = gimkit.explore(model, task[0].clean, edges, curve)    # a widget; .save("ioi.html") for a file

    It opens with the node whose edges are strongest. A click on another node (or the arrow keys and Enter) shows its
    role, its attention and its incoming and outgoing edges. Edges are sums over positions: a node's place in its layer
    is its number.

    Circuits without edges, and those of more than 5000, are left out; the page says how many of the latter there are.

    Args:
        model: an unedited nnsight model.
        prompt: as in `gimkit.attribute`; its attention is shown, to four decimals.
        edges: the scores that the curve's circuits were cut from; the page holds the edges of the largest one shown.
        curve: their faithfulness.
        roles: mapping from a node to a text, as in `gimkit.plots.circuit_graph`.
        remote: as in `gimkit.attribute`.

    Returns:
        The widget. `.data` has title, prompt, tokens, sources, targets, shares, sizes (edges of each circuit),
        faithfulness, roles, attention {head: [seq, seq]} and edges [source, target, score, number of the first size
        whose circuit has it], total (edges of the model) and larger (how many circuits of the curve are not shown).

    Raises:
        GimkitError: all circuits, or the attention, are too large to show; the curve belongs to other scores; the
            scores belong to another model or are NaN.
    """
    check_graph(edges.graph, residual_stream_of(model), "the scores are")
    check_unedited(model)
    require_finite(edges.scores)
    drawable = [place for place, size in enumerate(curve.edges) if 0 < size <= MOST_EDGES]
    if not drawable:
        raise GimkitError(f"the explorer shows circuits of 1 to {MOST_EDGES} edges and those of this curve have "
                          f"{curve.edges[0]} to {curve.edges[-1]}; give faithfulness other sizes=")
    every = curve_circuits(edges, curve)
    circuits = [every[place] for place in drawable]
    shown = circuits[-1].keep
    first = torch.stack([circuit.keep for circuit in circuits]).int().cumsum(0).eq(0).sum(0)
    tokenizer = getattr(model, "tokenizer", None)
    ids = prompt_ids(model, prompt)
    heads = [name for name in _ends(circuits[-1]) if name[0] == "a"]
    if len(heads) * len(ids)**2 > MOST_ATTENTION:
        raise GimkitError(f"the attention of {len(heads)} heads on {len(ids)} tokens is too much for a page; give a "
                          "shorter prompt, or faithfulness smaller sizes=")
    explorer = Explorer(data={
        "title": f"{curve.task}: {curve.label}",
        "prompt": token_text(tokenizer, *ids.tolist()), "tokens": [token_text(tokenizer, i) for i in ids.tolist()],
        "sources": list(edges.sources), "targets": list(edges.targets),
        "shares": [curve.shares[place] for place in drawable], "sizes": [curve.edges[place] for place in drawable],
        "faithfulness": [float(curve.faithfulness[place]) for place in drawable], "total": edges.graph.n_edges,
        "larger": sum(size > MOST_EDGES for size in curve.edges),
        "roles": {name: str(role) for name, role in dict(roles if roles is not None else {}).items() if role},
        "attention": _attention_patterns(model, ids, heads, remote),
        "edges": [[i, j, float(edges.scores[i, j]), int(first[i, j])] for i, j in shown.nonzero().tolist()],
    })
    drawn = [circuit for circuit in circuits if len(circuit) <= MOST_DRAWN]
    if drawn:
        explorer.figure = circuit_graph(drawn[-1], roles, ax=panels(1, 10, 7)[1][0]).figure
    return explorer


def curve_circuits(edges: EdgeScores, curve: Curve) -> list[Circuit]:
    """The circuits of a curve's points, cut again from its scores.

    >>> [len(circuit) for circuit in curve_circuits(edges, curve)] == list(curve.edges)
    True

    Args:
        edges, curve: as in `explore`.

    Raises:
        GimkitError: the curve belongs to other scores.
    """
    cut = edges.greedy if curve.greedy else edges.top
    circuits = [cut(int(share * edges.graph.n_edges), curve.absolute) for share in curve.shares]
    if curve.fingerprint not in ("", edges.fingerprint) or tuple(map(len, circuits)) != curve.edges:
        raise GimkitError("the curve was made from other scores; give the EdgeScores that faithfulness() was given")
    return circuits


def _ends(circuit: Circuit) -> set[str]:
    """The nodes that edges of a circuit leave or enter."""
    targets = zip(circuit.graph.targets, circuit.keep.any(0).tolist())
    return {*circuit.nodes, *(name.partition("<")[0] for name, fed in targets if fed)}


def _attention_patterns(model: Envoy, ids: torch.Tensor, heads: list[str], remote: bool | str) -> dict[str, list]:
    """These heads' attention on one prompt [seq], {head: [queries, positions]}, to four decimals."""
    attentions = [block.attention for block in architecture_of(model).blocks]
    found = in_trace(model, ids[None], head_patterns, attentions, remote=remote)
    return {f"a{layer}.h{head}": [[round(x, 4) for x in row] for row in pattern.tolist()]
            for layer, patterns in enumerate(found) for head, pattern in enumerate(patterns)
            if f"a{layer}.h{head}" in heads}
