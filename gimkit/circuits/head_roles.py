"""What each head attends to, writes and changes on a task, and the known roles that fit."""

from collections.abc import Sequence
from typing import Any

import numpy
import pandas
import torch
from nnsight.intervention.envoy import Envoy

from gimkit.circuits.circuit import Circuit
from gimkit.circuits.nodes import score_nodes
from gimkit.circuits.patching import run
from gimkit.errors import check_known, check_whole, require_finite
from gimkit.interventions.head_roles import head_numbers
from gimkit.model.apply import check_unedited
from gimkit.model.architecture import architecture_of
from gimkit.model.graph import Graph
from gimkit.model.residual_stream import graph_of, residual_stream_of
from gimkit.remote import in_trace
from gimkit.tasks.task import Task, batches, check_one_token, check_task

ATTENDS = 0.5  # mean attention from which a head "attends" to something
WRITES = 0.1  # direct effect, as a share of the mean clean metric, from which it "writes"
STEERS = 0.05  # effect through later queries, as a share of clean minus corrupt metric, from which it "steers"
MASKS = 2**26  # bytes of circuits that are held at once: each is a mask over all edges
LOOKS = ("right", "wrong", "previous", "duplicate", "induction")


def head_roles(model: Envoy, task: Task, *, heads: Sequence[str] | None = None, batch_size: int = 32,
               remote: bool | str = False) -> pandas.DataFrame:
    """Measure what each head attends to, writes and changes on a task, and name its role where a known one fits.

    >>> roles = gimkit.circuits.head_roles(model, task[:16]).set_index("node")
    >>> roles.loc["a4.h2", "role"]
    'previous-token-like'

    The table has a row per head, measured on clean prompts. Mean attention, NaN where no prompt has such positions:

    - right, wrong: from the answer's position to the tokens of the right and of the wrong answer in the prompt.
    - previous: from each token to the one before.
    - duplicate: from a repeated token to its earlier places.
    - induction: from a repeated token to the tokens that followed its earlier places.

    In logits, means over prompts:

    - writes_right, writes_wrong: what the head's output at the answer's position adds to these answers' logits, through
      the final norm with its denominator held fixed, minus what it adds to the mean logit.
    - direct: writes_right - writes_wrong, the direct logit attribution.
    - effect: the loss of the metric when the head's output is the corrupt run's (exact patching, `score_nodes`).
    - queries, keys, values: the loss when only the queries (keys, values) of all later heads read that output.

    role holds every name whose numbers fit, "" for none. A head attends from a mean attention of .5 on, writes from a
    tenth of the mean clean metric on, and steers queries when `queries` is at least a twentieth of the clean minus
    corrupt metric:

    - "name mover-like": attends right and writes for the answer, raising its logit.
    - "negative name mover-like": attends right and writes against the answer.
    - "suppressor-like": attends wrong and writes for the answer, lowering the wrong one's logit.
    - "S-inhibition-like": attends wrong and steers queries.
    - "previous-token-like", "duplicate-token-like", "induction-like": have that mean attention.

    A name means that the numbers fit, not that the head works as the paper describes.

    Args:
        model: an unedited nnsight model whose edges are covered (`gimkit.score_edges`).
        task: a `gimkit.tasks.Task` with answers of one token.
        heads: names of heads, "a0.h1": effect, queries, keys and values, which take four runs a head, are measured for
            these alone, and are NaN for the others. None: for all.
        batch_size: prompt pairs a forward pass; it does not change the result.
        remote: as in `gimkit.attribute`.

    Returns:
        A pandas table with columns node, layer, head, the measures above, role.

    Raises:
        GimkitError: a task with answers of several tokens, which have many positions to attend to and to write at; an
            edited model; edges that are not covered; unknown heads; NaN.

    Source:
        The roles of arXiv 2211.00593 (IOI) and 2310.04625 (copy suppression); the pattern scores of induction heads
        (Olsson et al. 2022), here on the task's own prompts instead of random tokens.
    """
    check_task(model, task)
    check_one_token(task, "head_roles")
    batch_size = check_whole("batch_size", batch_size)
    w = residual_stream_of(model)
    check_unedited(model)
    graph = graph_of(w)
    nodes = pandas.Series([name for name in graph.sources if name[0] == "a"])
    for name in () if heads is None else heads:
        check_known("head", name, nodes)
    measured = nodes.isin(nodes if heads is None else heads)
    attentions = [block.attention for block in architecture_of(model).blocks]
    looked: Any = 0
    count: Any = 0
    written = []
    for batch, answers in batches(task, batch_size, "heads"):
        looks = occasions(batch)
        found = in_trace(model, batch.clean, head_numbers, w, attentions, looks, answers, remote=remote)
        looked, count = looked + found[0], count + looks.any(-1).sum((0, 2))
        written.append(found[1])
    writes = torch.cat(written).mean(0)
    require_finite(writes, "the heads' writes")
    table = pandas.DataFrame({"node": nodes, "layer": numpy.arange(len(nodes)) // w.heads,
                              "head": numpy.arange(len(nodes)) % w.heads})
    table[list(LOOKS)] = (looked / count).flatten(0, 1).tolist()
    table["writes_right"], table["writes_wrong"] = writes.flatten(0, 1).T.tolist()
    table["direct"] = table["writes_right"] - table["writes_wrong"]
    effects = score_nodes(model, task, "exact", nodes=nodes[measured].tolist(), batch_size=batch_size, remote=remote)
    through, clean, gap = _through_heads(model, graph, task, effects.nodes, remote)
    table.loc[measured, "effect"] = effects.scores.tolist()
    table.loc[measured, ["queries", "keys", "values"]] = through
    table["role"] = _named(table, clean, gap)
    return table


def occasions(task: Task) -> torch.Tensor:
    """True where a query's attention to a position is of a kind, [n, 5, seq, seq], the kinds in the order of LOOKS."""
    n, length = task.clean.shape
    place = torch.arange(length)
    holds = [torch.stack([torch.isin(row, torch.tensor(ids)) for row, ids in zip(task.clean, answers)]) & task.mask
             for answers in (task.good, task.bad)]
    asks = place == task.last[:, None]
    real = task.mask[:, :, None] & task.mask[:, None, :] & (place[:, None] > place)
    same = task.clean[:, :, None] == task.clean[:, None, :]
    followed = torch.nn.functional.pad(same, (1, 0))[..., :-1]
    return torch.stack([*(asks[:, :, None] & held[:, None, :] for held in holds),
                        real & (place[:, None] == place + 1), real & same, real & followed], 1)


def _through_heads(model: Envoy, graph: Graph, task: Task, names: Sequence[str],
                   remote: bool | str) -> tuple[list, float, float]:
    """For each head the loss through later queries, keys, values; the mean clean metric; clean minus corrupt."""
    real = graph.real
    found: list[torch.Tensor] = []
    heads = [i for i, source in enumerate(graph.sources) if source in names]
    reads = [torch.tensor([f"<{which}>" in target for target in graph.targets]) for which in "qkv"]
    together = max(1, MASKS // (3 * real.numel()))
    for start in range(0, len(heads), together):
        cut = [real & ~((torch.arange(len(real)) == row)[:, None] & read)
               for row in heads[start:start + together] for read in reads]
        ends = [] if found else [real, torch.zeros_like(real)]
        found.append(run(model, task, [Circuit(graph, keep) for keep in (*ends, *cut)], remote=remote).mean(1))
    values = torch.cat(found)
    clean, corrupt = float(values[0]), float(values[1])
    return (clean - values[2:]).unflatten(0, (-1, 3)).tolist(), clean, clean - corrupt


def _named(table: pandas.DataFrame, clean: float, gap: float) -> list[str]:
    """Every role whose numbers a head has, joined by commas."""
    attends = {kind: table[kind] >= ATTENDS for kind in LOOKS}
    fits = {
        "name mover-like":
            attends["right"] & (table["direct"] >= WRITES * clean) & (table["writes_right"] > 0),
        "negative name mover-like": attends["right"] & (table["direct"] <= -WRITES * clean),
        "suppressor-like":
            attends["wrong"] & (table["direct"] >= WRITES * clean) & (table["writes_wrong"] < 0),
        "S-inhibition-like": attends["wrong"] & (table["queries"] >= STEERS * gap),
        **{f"{kind}-like": attends[kind.partition("-")[0]]
           for kind in ("previous-token", "duplicate-token", "induction")},
    }
    return [", ".join(role for role, holds in fits.items() if holds[i]) for i in table.index]
