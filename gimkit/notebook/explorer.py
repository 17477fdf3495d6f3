"""A circuit to click through: a widget in a notebook, or one HTML file that needs no network."""

import base64
import html
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import torch
import traitlets
from matplotlib.figure import Figure
from nnsight.intervention.envoy import Envoy

from gimkit.circuits import Circuit, Curve, EdgeScores, position_scores, positions, run, score_nodes
from gimkit.circuits.edges import AVERAGED
from gimkit.errors import GimkitError, require_finite
from gimkit.files import write_text
from gimkit.interventions.head_roles import head_patterns
from gimkit.interventions.metric import at_answers
from gimkit.model.apply import check_unedited
from gimkit.model.architecture import architecture_of, unembedding_of
from gimkit.model.prompt import PromptLike, prompt_ids
from gimkit.model.residual_stream import check_graph, residual_stream_of
from gimkit.model.tokenizer import token_text
from gimkit.plots import circuit_graph, panels
from gimkit.remote import in_trace
from gimkit.rules import GIM, RULES
from gimkit.tasks.measure import metric
from gimkit.tasks.task import Task, check_one_token, check_task
from gimkit.tokens import attribute

# SVG by hand: 300 nodes and 500 lines are few, their layers are the layout, and keyboard and screen reader reach each
# of them, which they cannot on the canvas that graph libraries (Cytoscape, Sigma) draw on.
PARTS = ("explorer_graph.js", "explorer_draw.js", "explorer.js", "explorer.css")
*SCRIPTS, STYLE = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in PARTS)
SCRIPT = "\n".join(SCRIPTS)  # one module, for the file and for the notebook
MOST_EDGES = 5000  # a browser draws a line for each
MOST_DRAWN = 150  # in the picture, which nobody can zoom
MOST_ATTENTION = 2**19  # numbers, of at most 4 characters each
MOST_BYTES = 3_000_000  # of a file
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
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
const data = JSON.parse(document.getElementById("data").textContent);
explore(document.getElementById("explorer"), data, {{ address: true }});
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
    ablated: Callable[[int, list, list], float] | None = None  # runs the model, see `_ablation`

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.on_msg(self._answer)

    def _answer(self, _: Any, message: Any, buffers: Any) -> None:
        """The logit difference without some nodes and edges, for the page that asked."""
        if self.ablated is None or not isinstance(message, dict):
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that one prompt is answered wrong is seen on the page
                value = self.ablated(message["prompt"], message["nodes"], message["edges"])
            self.send({"request": message["request"], "value": value})
        except Exception as error:  # it belongs on the page, nobody reads a kernel's log
            self.send({"request": message.get("request"), "error": str(error)})

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
        data = _json(self.data)
        title = html.escape(self.data["title"])
        return write_text(path, PAGE.format(title=title, style=STYLE, script=SCRIPT, data=data))


def explore(model: Envoy, prompt: PromptLike | Task, edges: EdgeScores | Mapping[str, tuple],
            curve: Curve | Sequence[Curve] | None = None, roles: Any = None, *, remote: bool | str = False) -> Explorer:
    """A circuit to click through: its edges at each size of a curve, the prompt, and what ablating a node does.

    >>> explorer = gimkit.explore(model, task[:1], edges, curve)         # a widget; .save("ioi.html") for a file
    >>> both = gimkit.explore(model, task[:2], {"GIM": (edges, curve), "again": (edges, [curve])})

    It opens with the prompt, its tokens coloured by `gimkit.attribute`, the likeliest next tokens, and the node whose
    edges are strongest. A click on another node (or the arrow keys and Enter) shows its role, its effect, its attention
    and its edges. Edges are sums over positions; a second picture shows nodes by layer and position.

    Circuits without edges, and those of more than 5000, are left out; the page says how many of the latter there are.

    Args:
        model: an unedited nnsight model.
        prompt: a task of one or a few pairs, which the page switches between: `task[:1]`. Or a prompt as in
            `gimkit.attribute`: then there is no corrupt run, so no effects of ablation and no scores by position.
        edges: the scores that the curve's circuits were cut from; the page holds the edges of the largest one shown.
            Several to switch between are a mapping {label: (edges, curve)}.
        curve: their faithfulness; or a list of curves, by |score| and by score.
        roles: mapping from a node to a text, as in `gimkit.plots.circuit_graph`.
        remote: as in `gimkit.attribute`.

    Returns:
        The widget. Its `.data` has title, sources, targets, total (edges of the model), roles, prompts and methods.
        Each prompt has text, tokens, top (the five likeliest next tokens), answer, and attention {head: a row a query,
        in thousandths}; of a pair also wrong, clean (its logit difference) and effects {node: by how much ablating it
        lowers that}: exact patching with the corrupt run. Each method has label, attribution (of each prompt),
        positions [prompts, nodes, seq] and curves: ranking, shares, sizes (edges), faithfulness, edges [source, target,
        score, number of the first size whose circuit has it] and larger (how many circuits are not shown).

    Raises:
        GimkitError: all circuits, or the attention, or the file, are too large; the curve belongs to other scores; the
            scores belong to another model or are NaN; a task with answers of several tokens.
    """
    scored = _labelled(edges, curve)
    w = residual_stream_of(model)
    for scores, _ in scored.values():
        check_graph(scores.graph, w, "the scores are")
        require_finite(scores.scores)
    check_unedited(model)
    cut = {label: [_drawable(scores, one) for one in curves] for label, (scores, curves) in scored.items()}
    task, prompts = _prompts(model, prompt)
    largest = [shown[-1][1] for views in cut.values() for shown in views]
    heads = [name for name in largest[0].graph.sources if name[0] == "a" and any(name in _ends(c) for c in largest)]
    numbers = len(heads) * sum(len(ids) * (len(ids) + 1) // 2 for ids in prompts)
    if numbers > MOST_ATTENTION:
        raise GimkitError(f"the attention of {len(heads)} heads on {' and '.join(str(len(ids)) for ids in prompts)} "
                          "tokens is too much for a page; give a shorter prompt, or faithfulness smaller sizes=")
    (first, first_curves), *others = scored.values()
    shown = [_prompt(model, ids, heads, remote) for ids in prompts]
    if task is not None:
        nodes = [name for name in first.sources if any(name in _ends(circuit) for circuit in largest)]
        _add_effects(shown, model, task, nodes, remote)
    rules, methods = {label: _token_rules(scores.method) for label, (scores, _) in scored.items()}, []
    texts = prompts if task is not None else [prompt]
    attributions = {one: _attributions(model, texts, task, one, remote) for one in dict.fromkeys(rules.values())}
    for label, (scores, curves) in scored.items():
        found = None if task is None else _positions(model, task, scores, remote)
        methods.append({
            "label": label, "rules": rules[label], "attribution": attributions[rules[label]],
            "positions": [] if found is None else [_short(rows[:, :len(ids)]) for rows, ids in zip(found, prompts)],
            "curves": [_view(scores, one, drawn) for one, drawn in zip(curves, cut[label])]})
    names = ", ".join(scored) if others else first_curves[0].label
    explorer = Explorer(data={
        "title": f"{first_curves[0].task}: {names}", "sources": list(first.sources), "targets": list(first.targets),
        "total": first.graph.n_edges, "prompts": shown, "methods": methods,
        "roles": {name: str(role) for name, role in dict(roles if roles is not None else {}).items() if role},
    })
    size = len(_json(explorer.data).encode()) + len(PAGE + SCRIPT + STYLE)
    if size > MOST_BYTES:
        raise GimkitError(f"the page would have {size / 1e6:.1f} MB, and {MOST_BYTES / 1e6:.0f} are the most; give "
                          "fewer prompts or methods, shorter prompts, or faithfulness smaller sizes=")
    if task is not None:
        explorer.ablated = _ablation(model, task, first, remote)
    drawn = [circuit for _, circuit in next(iter(cut.values()))[0] if len(circuit) <= MOST_DRAWN]
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


def _labelled(edges: EdgeScores | Mapping[str, tuple], curve: Any) -> dict[str, tuple[EdgeScores, list[Curve]]]:
    """{label: (scores, curves)} of what `explore` was given."""
    given = edges if isinstance(edges, Mapping) else {getattr(edges, "method", ""): (edges, curve)}
    found: dict[str, tuple[EdgeScores, list[Curve]]] = {}
    for label, pair in given.items():
        scores, curves = pair if isinstance(pair, tuple | list) and len(pair) == 2 else (None, None)
        several = [curves] if isinstance(curves, Curve) else curves if isinstance(curves, tuple | list) else []
        if isinstance(scores, EdgeScores) and several and all(isinstance(one, Curve) for one in several):
            found[str(label)] = scores, list(several)
    if len(found) < len(given) or not given or isinstance(edges, Mapping) and curve is not None:
        raise GimkitError("explore takes scores of edges and their curve, or a mapping {label: (edges, curve)}")
    return found


def _drawable(edges: EdgeScores, curve: Curve) -> list[tuple[int, Circuit]]:
    """(place in the curve, circuit) of what a page can show."""
    found = [(place, circuit) for place, circuit in enumerate(curve_circuits(edges, curve))
             if 0 < len(circuit) <= MOST_EDGES]
    if not found:
        raise GimkitError(f"the explorer shows circuits of 1 to {MOST_EDGES} edges and those of this curve have "
                          f"{curve.edges[0]} to {curve.edges[-1]}; give faithfulness other sizes=")
    return found


def _view(edges: EdgeScores, curve: Curve, drawn: list[tuple[int, Circuit]]) -> dict:
    """One curve with the edges of its circuits."""
    places = [place for place, _ in drawn]
    first = torch.stack([circuit.keep for _, circuit in drawn]).int().cumsum(0).eq(0).sum(0)
    return {"ranking": curve.ranking, "label": curve.label, "shares": [curve.shares[place] for place in places],
            "sizes": [curve.edges[place] for place in places],
            "faithfulness": [float(curve.faithfulness[place]) for place in places],
            "larger": sum(size > MOST_EDGES for size in curve.edges),
            "edges": [[i, j, float(str(edges.scores[i, j].numpy())), int(first[i, j])]
                      for i, j in drawn[-1][1].keep.nonzero().tolist()]}


def _prompts(model: Envoy, prompt: PromptLike | Task) -> tuple[Task | None, list[torch.Tensor]]:
    """The task, None for a single prompt, and the ids of each prompt."""
    if not isinstance(prompt, Task):
        return None, [prompt_ids(model, prompt)]
    check_task(model, prompt)
    check_one_token(prompt, "explore")
    return prompt, [ids[:last + 1] for ids, last in zip(prompt.clean, prompt.last.tolist())]


def _prompt(model: Envoy, ids: torch.Tensor, heads: list[str], remote: bool | str) -> dict:
    """The prompt's tokens, its likeliest next tokens, and the attention of these heads."""
    tokenizer = getattr(model, "tokenizer", None)
    logits = in_trace(model, ids[None], at_answers, unembedding_of(model), torch.tensor([-1]), remote=remote,
                      gradients=False)[0, 0]
    best = logits.double().softmax(-1).topk(min(5, len(logits)))
    top = [[token_text(tokenizer, token), round(share, 4)] for share, token in zip(*(x.tolist() for x in best))]
    return {"text": token_text(tokenizer, *ids.tolist()), "tokens": [token_text(tokenizer, i) for i in ids.tolist()],
            "top": top, "answer": top[0][0], "attention": _attention_patterns(model, ids, heads, remote)}


def _add_effects(shown: list[dict], model: Envoy, task: Task, nodes: list[str], remote: bool | str) -> None:
    """Each pair's answers, its logit difference, and by how much ablating a node lowers it."""
    clean = metric(model, task, remote=remote).tolist()
    effects = score_nodes(model, task, "exact", nodes=nodes, remote=remote)
    tokenizer = getattr(model, "tokenizer", None)
    for i, one in enumerate(shown):
        pair = task[i]
        one |= {"answer": pair.answer or token_text(tokenizer, task.good[i][0]),
                "wrong": pair.wrong or token_text(tokenizer, task.bad[i][0]), "clean": _short(torch.tensor(clean[i])),
                "effects": dict(zip(effects.nodes, _short(effects.per_example[i])))}


def _token_rules(method: str) -> Any:
    """The rules that score tokens beside a method of edges."""
    return method if method in RULES else "gim" if AVERAGED.get(method, GIM) == GIM else "gradient"


def _attributions(model: Envoy, prompts: list, task: Task | None, rules: Any, remote: bool | str) -> list:
    """Scores of each prompt's tokens; none without a tokenizer, which has the blank."""
    if getattr(model, "tokenizer", None) is None:
        return []
    found = [attribute(model, one, None if task is None else _target(task, i), method=rules, remote=remote)
             for i, one in enumerate(prompts)]
    return [_short(scores.scores) for scores in found]


def _target(task: Task, row: int) -> Any:
    """What a pair's logit difference is to `gimkit.attribute`."""
    good, bad = list(task.good[row]), list(task.bad[row])
    if len(good) == len(bad) == 1:
        return good[0], bad[0]
    return lambda logits: torch.logsumexp(logits[good], 0) - torch.logsumexp(logits[bad], 0)


def _positions(model: Envoy, task: Task, edges: EdgeScores, remote: bool | str) -> torch.Tensor:
    """Scores by position [n, nodes, seq] by the method of the edges; by gim where that has none."""
    if edges.method in positions.METHODS:
        kind: Any = edges.metric
        return position_scores(model, task, edges.method, metric=kind, remote=remote)
    return position_scores(model, task, "gim", remote=remote)


def _ablation(model: Envoy, task: Task, edges: EdgeScores, remote: bool | str) -> Callable[[int, list, list], float]:
    """A function that runs the model on pair i without the edges out of some nodes, and without edges [source, target].
    """
    graph = edges.graph

    def ablated(i: int, nodes: list, cut: list) -> float:
        keep = graph.real.clone()
        for name in nodes:
            keep[graph.sources.index(name)] = False
        for source, target in cut:
            keep[source, target] = False
        return float(run(model, task[i:i + 1], Circuit(graph, keep), remote=remote))

    return ablated


def _short(values: torch.Tensor) -> Any:
    """Numbers in nested lists, to four digits, which is more than a page shows."""
    if values.dim():
        return [_short(value) for value in values]
    return float(f"{float(values):.4g}")


def _json(data: dict) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")


def _attention_patterns(model: Envoy, ids: torch.Tensor, heads: list[str], remote: bool | str) -> dict[str, list]:
    """These heads' attention on one prompt [seq], {head: a row a query, up to itself}, in thousandths."""
    attentions = [block.attention for block in architecture_of(model).blocks]
    found = in_trace(model, ids[None], head_patterns, attentions, remote=remote)
    return {f"a{layer}.h{head}": [[round(1000 * x) for x in row[:at + 1]] for at, row in enumerate(pattern.tolist())]
            for layer, patterns in enumerate(found) for head, pattern in enumerate(patterns)
            if f"a{layer}.h{head}" in heads}
