"""Scores of a model's nodes on a task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas
import torch
from nnsight.intervention.envoy import Envoy

from gimkit.circuits import mib_files
from gimkit.circuits.circuit import Circuit
from gimkit.circuits.integration_points import points
from gimkit.circuits.metric import Metric, check_slope, metric_of
from gimkit.errors import GimkitError, check_flag, check_whole, require_finite
from gimkit.interventions.metric import Answers
from gimkit.interventions.node_patching import exact_node_scores
from gimkit.interventions.node_scores import node_scores
from gimkit.jvp.modes import Backend, by_backend, check_backend
from gimkit.jvp.rows import starts_of
from gimkit.jvp.scores import forward_task_scores
from gimkit.model.apply import apply, check_unedited
from gimkit.model.architecture import Architecture, architecture_of, rows_at_once, rows_may_join, unembedding_of
from gimkit.model.graph import Graph, Node, nodes_of, prune
from gimkit.model.residual_stream import graph_if_covered, norms_after
from gimkit.remote.trace import in_trace
from gimkit.results import Result
from gimkit.rules import PLAIN, RULES, Preset, Rules, name_of, rules_of
from gimkit.tasks.task import Task, answer_rows, answers_of, batches, check_task, per_pair, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


KINDS = {"": "head", "q": "query", "k": "key", "v": "value"}


@dataclass(frozen=True, eq=False)
class NodeScores(Result):
    """One score per node; positive means that corrupting the node hurts.

    >>> nodes.nodes[:3], nodes.scores.shape
    (('input', 'a0.h0', 'a0.h1'), torch.Size([26]))
    >>> nodes.frame().columns.tolist()
    ['task', 'method', 'metric', 'node', 'kind', 'layer', 'head', 'score']

    Attributes:
        task: the task's name.
        method: the method's name, or "own rules".
        nodes: names, "input", "a0.h0", ..., "m0", ...; with "atp*" also `a0.h0<q>`, `a0.h0<k>`, `a0.h0<v>`, ... .
        per_example: [n, nodes] in units of the metric.
        metric: the metric's name.
        graph: the model's shape, None where its edges are not covered.
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

    def select(self, nodes: Sequence[str]) -> "NodeScores":
        """The scores of chosen nodes, in the model's order.

        >>> nodes.select(["m2", "a0.h1"]).nodes
        ('a0.h1', 'm2')

        Args:
            nodes: names of nodes.

        Raises:
            GimkitError: unknown nodes, or none.
        """
        places = _places(self.nodes, nodes)
        return replace(self, nodes=tuple(self.nodes[i] for i in places), per_example=self.per_example[:, places])

    def frame(self) -> pandas.DataFrame:
        """Tidy table with columns task, method, metric, node, kind, layer, head, score; no head is -1.

        Kinds are "input", "head", "mlp"; with "atp*" also "query", "key", "value".
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

        Args:
            n: heads and MLPs.
            absolute: rank by |score|.

        Raises:
            GimkitError: the model has fewer, or edges that are not covered; scores of "atp*", whose queries, keys and
                values are no nodes of a circuit.

        Source:
            EAP-IG's node level, which ranks the embedding too and marks edges that run backward; without the
            embedding its circuits give the corrupt prompt's metric, because nothing feeds the other nodes.
        """
        graph = self._covered()
        n = check_whole("n, a number of heads and MLPs,", n, 0, len(self.nodes) - 1)
        require_finite(self.scores)
        value = (self.scores.abs() if check_flag("absolute", absolute) else self.scores)[1:].double()
        best = value.argsort(descending=True, stable=True)[:n].tolist()
        circuit = Circuit.between(graph, ["input", *(self.nodes[1 + i] for i in best)])
        return Circuit(graph, prune(circuit.keep, graph))

    @classmethod
    def load(cls, path: str | Path, *, model: Envoy | None = None) -> "NodeScores":
        """Read the node scores of a file, .json or .pt (MIB's) or .safetensors; per_example has one row, their means.

        >>> path = nodes.save("ioi.json")
        >>> NodeScores.load(path, model=model).per_example.shape
        torch.Size([1, 26])

        Args:
            path: of the file.
            model: a file of another shape than this model's is refused.

        Raises:
            GimkitError: a file without node scores, and as `gimkit.circuits.mib_files.read`.
        """
        found = mib_files.read(path, model)
        if found.node_scores is None:
            raise GimkitError(f"{path} holds no scores of nodes; read it with EdgeScores.load")
        return cls(nodes=found.graph.sources, per_example=found.node_scores[None], graph=found.graph, **found.labels)

    def save(self, path: str | Path) -> Path:
        """Write the mean scores with all nodes in the graph, as .json or .pt for MIB's evaluation, or as .safetensors.

        >>> nodes.save("ioi.json")
        PosixPath('ioi.json')

        Raises:
            GimkitError: another ending, NaN scores, edges that are not covered, scores of "atp*".
        """
        graph, labels = self._covered(), {key: getattr(self, key) for key in mib_files.LABELS}
        return mib_files.write(path, graph, torch.zeros(graph.real.shape), graph.real, self.scores, labels)

    def _covered(self) -> Graph:
        if self.graph is None:
            raise GimkitError("the edges of this model are not covered, so its nodes make no circuit and no circuit "
                              "file; .frame() has their scores")
        if len(self.nodes) < len(self.graph.sources):
            raise GimkitError(f"these are scores of {len(self.nodes)} chosen nodes; a circuit and a circuit file need "
                              "all: leave nodes= and .select out")
        if self.nodes != self.graph.sources:
            raise GimkitError(f"{self.method} also scores queries, keys and values, which are no nodes of a circuit; "
                              "method 'gradient' gives heads and MLPs the same scores, and .frame() has all")
        return self.graph

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw heads and MLPs as a layer x head grid; returns the matplotlib axes."""
        from gimkit.plots import node_grid

        return node_grid(self, ax=ax)


Method = Literal[Preset, "nap-ig", "ig-activations", "atp*", "exact", "random"]
METHODS: tuple[Method, ...] = get_args(Method)
NO_FORWARD = ("{} has no forward mode, which takes gradients at the clean run only; use any rules ('gim', 'gradient', "
              "'relp', ...), or 'exact', which needs no gradient")


def score_nodes(model: Envoy, task: Task, method: Method | Rules = "gim", *, metric: Metric = "logit", steps: int = 5,
                nodes: Sequence[str] | None = None, batch_size: int = 32, seed: int = 0, backend: Backend = "auto",
                remote: bool | str = False) -> NodeScores:
    """Score the embedding, every attention head and every MLP of a model on a task.

    >>> scores = gimkit.score_nodes(model, gimkit.tasks.ioi(model, n=64), method="gim")
    >>> scores.per_example.shape                                 # 5 layers of 4 heads and an MLP, and the embedding
    torch.Size([64, 26])

    A node's score is <clean - corrupt output, gradient>, summed over positions; "exact" patches each node instead. With
    "atp*" each head's queries, keys and values are nodes too, `a0.h1<q>`, `a0.h1<k>`, `a0.h1<v>`.

    The metrics, at the answer's position, for each example:

    - "logit": logsumexp(good answers' logits) - logsumexp(bad answers'), the logit difference for single answers.
    - "probability": the good answers' summed probability minus the bad ones', for greater-than sum p(> yy) -
      sum p(<= yy). Where the model is sure, its gradient vanishes.
    - with answers of several tokens "logit" becomes "log-probability": the good answer's minus the bad one's, each
      given the prompt and the answer's tokens before (teacher forcing), in nats; "probability" is the difference of
      their probabilities. Each answer follows the prompt in its own row, and a pair's scores are those of both rows.
    - "kl": minus KL(clean run || current run) of the next token, summed over the vocabulary, in nats. "kl-mean": its
      mean over the vocabulary, which is EAP-IG's. Both are zero, with gradient zero, at the clean run.

    Args:
        model: an unedited nnsight model.
        task: a `gimkit.tasks.Task` of n prompt pairs.
        method: any rules ("gim", "gradient", "relp", ..., or a `gimkit.Rules`), "nap-ig", "ig-activations", "atp*",
            "exact" or "random". docs/METHODS.md says what each computes, what it costs, and where it wins and loses.
        metric: one of the above.
        steps: points of the averaged gradients.
        nodes: names of nodes, "input", "a0.h1", "m2": only these are patched, by "exact". The other methods score all
            nodes at once; `NodeScores.select` chooses from their scores.
        batch_size: prompt pairs a pass; it does not change the result.
        seed: of "random".
        backend: as in `gimkit.attribute`. "forward" pushes each node's clean - corrupt output to the metric as a row of
            its own, a forward pass of n + 3 rows a pair for n nodes. It covers any rules, on architectures whose edges
            are covered, and raises an error where what it recomputes of the clean run differs from the model's.
        remote: as in `gimkit.attribute`.

    Returns:
        `NodeScores` with per_example [n, nodes].

    Raises:
        GimkitError: an unknown method or metric, steps below 1, unknown nodes, nodes= with another method than
            "exact", a divergence's gradient at the clean run, an edited model, NaN.

    Source:
        Attribution patching, as EAP-IG's node scores with three differences. The MLP's score uses the gradient at its
        output (EAP-IG reads the one at its input). Scores are means over examples (no further 1/batch). Where a norm
        follows attention or MLP (Gemma-2 and 3, OLMo-2) an output is what leaves that norm, each run's denominator a
        constant, so that outputs add up to the residual stream. "atp*" is arXiv 2403.00745's QK fix, signed as all
        scores here. The paper's nodes are single positions, so it changes one key at a time; a node here is a head's
        keys at all positions, which change together, each query head for itself where several share keys. GradDrop is
        left out: it averages absolute values over a backward pass per layer, so it has no sign.
    """
    check_task(model, task)
    if not isinstance(method, Rules) and method not in METHODS:
        raise GimkitError(f"unknown method {method!r}; use a gimkit.Rules, or one of {', '.join(METHODS)}")
    steps, batch_size = check_whole("steps", steps), check_whole("batch_size", batch_size)
    seed, metric, rows = check_whole("seed", seed, 0), metric_of(task, metric), answer_rows(task)
    check_backend(backend)
    parts = architecture_of(model)
    check_unedited(model)
    names = nodes_of(parts)
    label = name_of(method)
    if nodes is not None and method != "exact":
        raise GimkitError(f"{label} scores all nodes at once: leave nodes= out and choose from its scores with .select")
    if nodes is not None:
        names = tuple(names[i] for i in _places([node.name for node in names], nodes))
    if at_clean_run(method, steps):
        check_slope(metric, label)
    if method == "random":
        values = torch.randn(len(names), generator=torch.Generator().manual_seed(seed)).repeat(len(task), 1)
    elif method == "exact":
        values = per_pair(task, _exact(model, parts, names, rows, metric, batch_size, remote))
    else:
        def reverse() -> torch.Tensor:
            plan = PLAIN if method in ("nap-ig", "ig-activations", "atp*") else rules_of(method)
            pairs = batches(rows, batch_size, label, metric)
            return gradient_scores(model, parts, pairs, method, steps, remote, rules=plan)

        def forward() -> torch.Tensor:
            return _forward(model, names, rows, rules_of(method), metric, batch_size, remote)

        has_forward = isinstance(method, Rules) or method in RULES
        values = per_pair(task, by_backend(
            model, backend, reverse, forward if has_forward else NO_FORWARD.format(method), remote))
    require_finite(values)
    return NodeScores(task.name, label, _labels(names, parts.n_heads, method == "atp*"), values, metric,
                      graph_if_covered(model, parts))


def _places(known: Sequence[str], chosen: Sequence[str]) -> list[int]:
    """The places of chosen nodes among the known ones, in increasing order."""
    unknown = [chosen] if isinstance(chosen, str) else [name for name in chosen if name not in known]
    if unknown or not len(chosen):
        raise GimkitError(f"{f'unknown nodes {unknown}' if unknown else 'no nodes'}; give a list of some of "
                          f"{known[0]}, {known[1]}, ..., {known[-1]}")
    return [i for i, name in enumerate(known) if name in set(chosen)]


def _forward(model: Envoy, names: Sequence[Node], task: Task, rules: Rules, metric: str, batch_size: int,
             remote: bool | str) -> torch.Tensor:
    """Each node's clean - corrupt output pushed to the metric as a row of its own."""
    def chunks(most: int, extra: int) -> Iterator[tuple]:
        each = max(1, most - extra)
        for start in range(0, len(names), each):
            chosen = names[start:start + each]
            yield starts_of(chosen, extra=extra), list(range(len(chosen))), list(range(start, start + len(chosen)))

    return forward_task_scores(model, task, answers_of(task, metric), rules, chunks, batch_size, remote)


def _labels(names: Sequence[Node], n_heads: int, reads: bool) -> tuple[str, ...]:
    """The nodes' names, queries, keys and values before their layer's heads."""
    found = []
    for node in names:
        if reads and node.kind == "head" and node.head == 0:
            found += [f"a{node.layer}.h{head}<{read}>" for read in "qkv" for head in range(n_heads)]
        found.append(node.name)
    return tuple(found)


def at_clean_run(method: str | Rules, steps: int) -> bool:
    """Whether a method takes the gradient at the clean run alone."""
    return (isinstance(method, Rules) or method in (*RULES, "atp*")
            or steps == 1 and method in ("nap-ig", "ig-activations"))


def gradient_scores(model: Envoy, parts: Architecture, pairs: Iterator[tuple[Task, Answers]], method: str | Rules,
                    steps: int, remote: bool | str, *, rules: Rules, by_position: bool = False) -> torch.Tensor:
    """Scores [n, nodes] from the mean gradient over `points`, of the `batches` of a task; by position [n, nodes, seq].
    """
    edited = apply(model, rules)
    blocks = [(block.output, block.mlp, *norms, block.attention if method == "atp*" else None)
              for block, norms in zip(parts.blocks, norms_after(parts))]
    per_example = []
    for batch, answers in pairs:
        total: Any = 0
        for chunk in points(method, steps, len(batch), len(blocks)):
            ids = torch.cat([rows_of(batch), batch.clean.repeat(chunk["extra"], 1)])
            found = in_trace(edited, ids, node_scores, parts.embedding, unembedding_of(model), blocks, parts.n_heads,
                             len(batch), answers, chunk["rows"], chunk["shares"], chunk["between"], by_position,
                             remote=remote)
            total = total + chunk["weight"] * found
        per_example.append(total)
    return torch.cat(per_example)


def _exact(model: Envoy, parts: Architecture, names: Sequence[Node], task: Task, metric: str, batch_size: int,
           remote: bool | str) -> torch.Tensor:
    """Exact effects; a pass takes all nodes of several pairs, or some nodes of one pair where they are too many."""
    paths = [(block.path, block.output, block.mlp) for block in parts.blocks]
    joining = rows_may_join(model, parts)
    rows = rows_at_once(model, task.clean.shape[1])
    batch_size = max(1, min(batch_size, rows // (len(names) + 2)))
    per_example = []
    for batch, answers in batches(task, batch_size, "exact", metric):
        step = max(1, rows // len(batch) - 2)
        found = []
        for start in range(0, len(names), step):
            chosen = [tuple(node) for node in names[start:start + step]]
            patched = 0 if joining else sum(kind != "input" for kind, *_ in chosen)
            ids = torch.cat([rows_of(batch), batch.clean.repeat(patched, 1)])
            found.append(in_trace(model, ids, exact_node_scores, unembedding_of(model), paths, parts.n_heads, chosen,
                                  answers, remote=remote, gradients=False))
        per_example.append(torch.cat(found, 1))
    return torch.cat(per_example)
