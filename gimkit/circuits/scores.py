"""How much each part of a model matters for a task."""

from dataclasses import dataclass
from pathlib import Path

import pandas
import torch
from tqdm.auto import tqdm

from gimkit.anatomy import dissect
from gimkit.circuits import files
from gimkit.circuits.circuit import Circuit
from gimkit.circuits.gradients import node_scores
from gimkit.circuits.graph import Graph, check_size, nodes, prune
from gimkit.circuits.traced import exact_node_scores
from gimkit.circuits.wiring import graph_if_covered, norms_after
from gimkit.edits import apply, check_unedited
from gimkit.errors import GimkitError, require_finite
from gimkit.remote import where
from gimkit.rules import RULES, Rules

METHODS = (*RULES, "exact")
METRICS = {"logit": "logits", "probability": "probability", "kl": "nats", "kl-mean": "nats / |vocabulary|"}
DIVERGENCES = ("kl", "kl-mean")  # from the clean run


@dataclass(frozen=True)
class NodeScores:
    """One score per node; positive means that corrupting the node hurts.

    nodes: names, "input", "a0.h0", ..., "m0", ... . per_example: [n, nodes], in units of the metric.
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

    def frame(self) -> pandas.DataFrame:
        """Tidy table with columns task, method, metric, node, kind, layer, head, score; no head is -1."""
        rows = []
        for name, score in zip(self.nodes, self.scores.tolist()):
            layer, _, head = name[1:].partition(".h")
            kind = {"i": "input", "a": "head", "m": "mlp"}[name[0]]
            rows.append((self.task, self.method, self.metric, name, kind, -1 if kind == "input" else int(layer),
                         int(head) if kind == "head" else -1, score))
        return pandas.DataFrame(rows, columns=["task", "method", "metric", "node", "kind", "layer", "head",
                                           "score"])

    def top(self, n: int, absolute: bool = False) -> Circuit:
        """The circuit of all edges between the embedding and the n best heads and MLPs, without dead ends.

        >>> str(nodes.top(12))
        '197 of 761 edges, 13 of 26 nodes'                           # mini-llama, 64 prompts of IOI

        absolute: rank by |score|. Raises GimkitError when the model has fewer, or edges that are not covered.
        Source: EAP-IG's node level, which ranks the embedding too and marks edges that run backward; without the
        embedding its circuits run as the corrupt prompt, for nothing feeds the other nodes.
        """
        graph = self._covered()
        check_size(n, len(self.nodes) - 1, "heads and MLPs")
        require_finite(self.scores)
        value = (self.scores.abs() if absolute else self.scores)[1:].double()
        best = value.argsort(descending=True, stable=True)[:n].tolist()
        circuit = Circuit.between(graph, ["input", *(self.nodes[1 + i] for i in best)])
        return Circuit(graph, prune(circuit.keep, graph))

    @classmethod
    def load(cls, path, *, model=None) -> "NodeScores":
        """Read the node scores of a file of MIB's format, .json or .pt; per_example has one row, their means.

        >>> nodes = NodeScores.load("ioi.json", model=model)

        model: refuse a file of another shape. Raises GimkitError for a file without node scores and as
        `gimkit.circuits.files.read`.
        """
        found = files.read(path, model)
        if found.node_scores is None:
            raise GimkitError(f"{path} holds no scores of nodes; read it with EdgeScores.load")
        return cls(nodes=found.graph.sources, per_example=found.node_scores[None], graph=found.graph, **found.labels)

    def save(self, path) -> Path:
        """Write the mean scores for MIB's evaluation at node level, as .json or .pt, with every node in the graph.

        >>> nodes.save("ioi.json")
        PosixPath('ioi.json')

        Raises GimkitError for another ending, for NaN scores and where edges are not covered.
        """
        graph, labels = self._covered(), {key: getattr(self, key) for key in files.LABELS}
        return files.write(path, graph, torch.zeros(graph.real.shape), graph.real, self.scores, labels)

    def _covered(self) -> Graph:
        if self.graph is None:
            raise GimkitError("the edges of this model are not covered, so its nodes make no circuit and no circuit "
                              "file; .frame() has their scores")
        return self.graph

    def plot(self, ax=None):
        """Draw heads and MLPs as a layer x head grid; returns the matplotlib axes."""
        from gimkit.plots import node_grid

        return node_grid(self, ax=ax)


def score_nodes(model, task, method: str | Rules = "gim", *, metric: str = "logit", batch_size: int = 32,
                remote: bool = False) -> NodeScores:
    """Score the embedding, every attention head and every MLP of a model on a task.

    >>> scores = gimkit.score_nodes(model, gimkit.tasks.ioi(model, n=64), method="gim")
    >>> scores.per_example.shape                                 # 5 layers of 4 heads and an MLP, and the embedding
    torch.Size([64, 26])

    model: an unedited nnsight model. task: a `gimkit.tasks.Task` of n prompt pairs.
    method: "exact" replaces each node's output by its value on the corrupt prompt and reports by how much the metric
        falls. Any rules ("gim", "gradient", "relp", ..., or a `gimkit.Rules`) estimate that from one forward and one
        backward pass: <clean - corrupt output, gradient at the clean run>, summed over positions.
    metric: what is scored, at the answer's position, for each example.
        "logit": logsumexp(good answers' logits) - logsumexp(bad answers'), the logit difference for single answers.
        "probability": the good answers' summed probability minus the bad ones', for greater-than sum p(> yy) -
        sum p(<= yy). Where the model is sure, its gradient vanishes.
        "kl": minus KL(clean run || current run) of the next token, summed over the vocabulary, in nats; "kl-mean": its
        mean over the vocabulary, which is EAP-IG's. Zero, with gradient zero, at the clean run.
    batch_size: prompt pairs per forward; it does not change the result.
    remote: run on NDIF (as `model.trace(remote=...)`).
    Raises GimkitError for an unknown method or metric, a divergence's gradient at the clean run, an edited model, NaN.
    Source: attribution patching, as EAP-IG's node scores with three differences: the MLP's score uses the gradient at
    its output (EAP-IG reads the one at its input), scores are means over examples (no further 1/batch), and where a
    norm follows attention or MLP (Gemma-2 and 3, OLMo-2) an output is what leaves that norm, each run's denominator a
    constant, so that outputs add up to the residual stream.
    """
    check_task(task)
    check_whole("batch_size", batch_size)
    check_metric(metric)
    parts = dissect(model)
    check_unedited(model)
    names = nodes(parts)
    label = method if isinstance(method, str) else "own rules"
    edited = None if method == "exact" else apply(model, rules_of(method))
    if edited is not None:
        check_slope(metric, label)
    paths = [(block.output, block.mlp) for block in parts.blocks]
    written = [(*path, *norms) for path, norms in zip(paths, norms_after(parts))]
    per_example = []
    for start in tqdm(range(0, len(task), batch_size), desc=f"{task.name} {label}", delay=2, leave=False):
        batch = task[start:start + batch_size]
        ids, answers = rows_of(batch), (metric, *answers_of(batch))
        if edited is not None:
            with edited.trace(input_ids=ids, use_cache=False, **where(remote)):
                found = node_scores(edited, parts.embedding, written, parts.n_heads, *answers).save()
        else:
            found = _exact(model, parts, paths, names, batch, answers, remote)
        per_example.append(found.detach().cpu())
    scores = NodeScores(task.name, label, tuple(node.name for node in names), torch.cat(per_example), metric,
                        graph_if_covered(model, parts))
    require_finite(scores.per_example)
    return scores


def _exact(model, parts, paths, names, batch, answers, remote: bool, most_rows: int = 512) -> torch.Tensor:
    """Exact effects of one batch, as many nodes per forward as fit into `most_rows` rows."""
    b = len(batch)
    step = max(1, most_rows // b - 2)
    found = []
    for start in range(0, len(names), step):
        chosen = [tuple(node) for node in names[start:start + step]]
        ids = torch.cat([batch.clean, batch.corrupt, batch.clean.repeat(len(chosen), 1)])
        with torch.no_grad():
            with model.trace(input_ids=ids, use_cache=False, **where(remote)):
                effects = exact_node_scores(model, parts.embedding, paths, parts.n_heads, chosen, *answers).save()
        found.append(effects)
    return torch.cat(found, 1)


def rules_of(method: str | Rules) -> Rules:
    """The rules that a gradient method runs under, or an error that lists the methods."""
    if isinstance(method, Rules):
        return method
    if method not in RULES:
        raise GimkitError(f"unknown method {method!r}; use a gimkit.Rules, or one of {', '.join(METHODS)}")
    return RULES[method]


def check_task(task) -> None:
    """Refuse what is no task, or an empty one."""
    if not hasattr(task, "clean") or not hasattr(task, "good"):
        raise GimkitError(f"{type(task).__name__} is not a task; make one with gimkit.tasks.ioi(model, n=64) "
                          "or gimkit.tasks.pairs(clean=..., corrupt=..., answers=...)")
    if len(task) == 0:
        raise GimkitError(f"the task {task.name} holds no prompt pairs; {'; '.join(task.dropped) or 'make some first'}")


def check_metric(metric: str) -> None:
    """Refuse an unknown metric."""
    if metric not in tuple(METRICS):
        raise GimkitError(f"unknown metric {metric!r}; use {', '.join(METRICS)}")


def check_slope(metric: str, method: str) -> None:
    """Refuse a divergence to a method that takes gradients at the clean run only: it is least there."""
    if metric in DIVERGENCES:
        raise GimkitError(f"the gradient of {metric} is zero at the clean run, the only place where {method} takes it; "
                          "use method ig-inputs or exact, or another metric")


def check_whole(name: str, value: int, least: int = 1) -> None:
    """Refuse a number that is not whole or below the least that makes sense."""
    if not isinstance(value, int) or value < least:
        raise GimkitError(f"{name} must be a whole number of at least {least}, not {value!r}")


def rows_of(task) -> torch.Tensor:
    """Clean rows, then corrupt ones, [2n, seq]. Padding stands right of the answer, so no mask is needed."""
    return torch.cat([task.clean, task.corrupt])


def answers_of(task) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Position of the answer [n], good and bad answers' ids [n, most], as `metric_values` takes them."""
    return task.last, padded(task.good), padded(task.bad)


def padded(answers) -> torch.Tensor:
    """Sets of answer ids as [n, most] with -1 where a row has fewer."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in answers], batch_first=True, padding_value=-1)
