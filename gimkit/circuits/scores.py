"""How much each part of a model matters for a task."""

import torch
from tqdm.auto import tqdm

from gimkit.anatomy import dissect
from gimkit.circuits.gradients import node_scores
from gimkit.circuits.graph import nodes
from gimkit.circuits.nodes import NodeScores
from gimkit.circuits.points import points
from gimkit.circuits.traced import exact_node_scores
from gimkit.circuits.wiring import graph_if_covered, norms_after
from gimkit.edits import apply, check_unedited
from gimkit.errors import GimkitError, require_finite
from gimkit.forward import check_backend, forward_task_scores, in_either_mode
from gimkit.forward.rows import starts_of
from gimkit.remote import in_trace
from gimkit.rules import PLAIN, RULES, Rules

METHODS = (*RULES, "ig-inputs", "ig-activations", "atp*", "exact", "random")
METRICS = {"logit": "logits", "probability": "probability", "kl": "nats", "kl-mean": "nats / |vocabulary|"}
DIVERGENCES = ("kl", "kl-mean")  # from the clean run
NO_FORWARD = ("{} has no forward mode, which knows gradients at the clean run alone; use any rules ('gim', 'gradient', "
              "'relp', ...), or 'exact', which needs no gradient")


def score_nodes(model, task, method: str | Rules = "gim", *, metric: str = "logit", steps: int = 5,
                batch_size: int = 32, seed: int = 0, backend: str = "auto", remote: bool | str = False) -> NodeScores:
    """Score the embedding, every attention head and every MLP of a model on a task.

    >>> scores = gimkit.score_nodes(model, gimkit.tasks.ioi(model, n=64), method="gim")
    >>> scores.per_example.shape                                 # 5 layers of 4 heads and an MLP, and the embedding
    torch.Size([64, 26])

    model: an unedited nnsight model. task: a `gimkit.tasks.Task` of n prompt pairs.
    method: "exact" replaces each node's output by its value on the corrupt prompt and reports by how much the metric
        falls. Any rules ("gim", "gradient", "relp", ..., or a `gimkit.Rules`) estimate that from one forward and one
        backward pass: <clean - corrupt output, gradient at the clean run>, summed over positions.
        "ig-inputs" (NAP-IG): the gradient is the mean over the embeddings corrupt + k/steps (clean - corrupt),
        k = 1 .. steps. "ig-activations": the embedding, each attention and each MLP in turn is put at
        corrupt + k/steps (clean - corrupt); mean over all these runs, for every node.
        "atp*": "gradient" for the embedding, heads and MLPs, and three more nodes for each head, its queries, keys and
        values as they reach the attention kernel. Their score is <clean - changed output of the head, gradient at it>,
        where the model's kernel has run once more with the corrupt queries (or keys, or values): the change of the
        attention pattern is exact, saturated or not, and only what follows the head is linearised.
        "random": a normal number for each node by `seed`, the same for every example.
    metric: what is scored, at the answer's position, for each example.
        "logit": logsumexp(good answers' logits) - logsumexp(bad answers'), the logit difference for single answers.
        "probability": the good answers' summed probability minus the bad ones', for greater-than sum p(> yy) -
        sum p(<= yy). Where the model is sure, its gradient vanishes.
        "kl": minus KL(clean run || current run) of the next token, summed over the vocabulary, in nats; "kl-mean": its
        mean over the vocabulary, which is EAP-IG's. Zero, with gradient zero, at the clean run.
    steps: points of the averaged gradients. batch_size: prompt pairs per forward; it does not change the result.
    backend: "reverse" is a backward pass; "forward" pushes each node's clean - corrupt output to the metric as a row of
        its own, without autograd: the same numbers by a forward pass of n + 3 rows a pair for n nodes. It knows any
        rules, and the architectures whose edges are covered, and refuses where what it recomputes of the clean run is
        not the model's. "auto" is "reverse", and "forward", with a warning, where a server refuses gradients.
    remote: as in `gimkit.attribute`.
    Raises GimkitError for an unknown method or metric, steps below 1, a divergence's gradient at the clean run, an
    edited model, NaN.
    Source: attribution patching, as EAP-IG's node scores with three differences: the MLP's score uses the gradient at
    its output (EAP-IG reads the one at its input), scores are means over examples (no further 1/batch), and where a
    norm follows attention or MLP (Gemma-2 and 3, OLMo-2) an output is what leaves that norm, each run's denominator a
    constant, so that outputs add up to the residual stream. "atp*": arXiv 2403.00745, its QK fix, signed as all scores
    here. The paper's nodes are single positions, so it changes one key at a time; a node here is a head's keys at all
    positions, which change together, each query head for itself where several share keys. GradDrop is left out: it
    averages absolute values over a backward pass per layer, so it has no sign.
    """
    check_task(task)
    if not isinstance(method, Rules) and method not in METHODS:
        raise GimkitError(f"unknown method {method!r}; use a gimkit.Rules, or one of {', '.join(METHODS)}")
    check_whole("steps", steps)
    check_whole("batch_size", batch_size)
    check_metric(metric)
    check_backend(backend)
    parts = dissect(model)
    check_unedited(model)
    names = nodes(parts)
    label = method if isinstance(method, str) else "own rules"
    if isinstance(method, Rules) or method in (*RULES, "atp*") or (steps == 1 and str(method).startswith("ig-")):
        check_slope(metric, label)
    if method == "random":
        values = torch.randn(len(names), generator=torch.Generator().manual_seed(seed)).repeat(len(task), 1)
    elif method == "exact":
        values = _exact(model, parts, names, task, metric, batch_size, remote)
    else:
        forward = NO_FORWARD.format(method)
        if isinstance(method, Rules) or method in RULES:
            def forward():
                return _forward(model, names, task, rules_of(method), metric, batch_size, remote)
        values = in_either_mode(
            model, backend, lambda: _gradients(model, parts, task, method, metric, steps, batch_size, remote),
            forward, remote)
    require_finite(values)
    return NodeScores(task.name, label, _labels(names, parts.n_heads, method == "atp*"), values, metric,
                      graph_if_covered(model, parts))


def _forward(model, names, task, rules: Rules, metric: str, batch_size: int, remote) -> torch.Tensor:
    """Each node's clean - corrupt output pushed to the metric as a row of its own."""
    def chunks(most: int, spare: int):
        each = max(1, most - spare)
        for start in range(0, len(names), each):
            chosen = names[start:start + each]
            yield starts_of(chosen, spare=spare), list(range(len(chosen))), list(range(start, start + len(chosen)))

    _, *answers = answers_of(task)
    return forward_task_scores(model, task, (metric, *answers), rules, chunks, len(names), batch_size, remote)


def _labels(names, n_heads: int, reads: bool) -> tuple[str, ...]:
    """The nodes' names, queries, keys and values before their layer's heads."""
    found = []
    for node in names:
        if reads and node.kind == "head" and node.head == 0:
            found += [f"a{node.layer}.h{head}<{read}>" for read in "qkv" for head in range(n_heads)]
        found.append(node.name)
    return tuple(found)


def batches(task, metric: str, batch_size: int, label: str):
    """(prompt pairs, the metric and their answers as tensors) of each batch, behind a progress bar."""
    for start in tqdm(range(0, len(task), batch_size), desc=f"{task.name} {label}", delay=2, leave=False):
        batch = task[start:start + batch_size]
        yield batch, (metric, *answers_of(batch))


def _gradients(model, parts, task, method, metric, steps: int, batch_size: int, remote: bool) -> torch.Tensor:
    edited = apply(model, PLAIN if method in ("ig-inputs", "ig-activations", "atp*") else rules_of(method))
    blocks = [(block.output, block.mlp, *norms, block.attention if method == "atp*" else None)
              for block, norms in zip(parts.blocks, norms_after(parts))]
    per_example = []
    for batch, answers in batches(task, metric, batch_size, method if isinstance(method, str) else "own rules"):
        total = 0
        for chunk in points(method, steps, len(batch), len(blocks), end=0):
            ids = torch.cat([rows_of(batch), batch.clean.repeat(chunk["extra"], 1)])
            found = in_trace(edited, ids, node_scores, parts.embedding, blocks, parts.n_heads, len(batch), *answers,
                             chunk["rows"], chunk["shares"], chunk["between"], remote=remote)
            total = total + chunk["weight"] * found
        per_example.append(total)
    return torch.cat(per_example)


def _exact(model, parts, names, task, metric, batch_size: int, remote: bool, most_rows: int = 512) -> torch.Tensor:
    """Exact effects, as many nodes per forward as fit into `most_rows` rows."""
    paths = [(block.output, block.mlp) for block in parts.blocks]
    per_example = []
    for batch, answers in batches(task, metric, batch_size, "exact"):
        step = max(1, most_rows // len(batch) - 2)
        found = []
        for start in range(0, len(names), step):
            chosen = [tuple(node) for node in names[start:start + step]]
            ids = torch.cat([rows_of(batch), batch.clean.repeat(len(chosen), 1)])
            found.append(in_trace(model, ids, exact_node_scores, parts.embedding, paths, parts.n_heads, chosen,
                                  *answers, remote=remote, gradients=False))
        per_example.append(torch.cat(found, 1))
    return torch.cat(per_example)


def rules_of(method: str | Rules) -> Rules:
    """The rules that a gradient method runs under, or an error that lists them."""
    if isinstance(method, Rules):
        return method
    if method not in RULES:
        raise GimkitError(f"unknown method {method!r}; use a gimkit.Rules, or one of {', '.join(RULES)}")
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
