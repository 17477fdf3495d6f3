"""Running circuits: their edges carry the clean run, all others the corrupt one."""

import torch
from nnsight.intervention.envoy import Envoy

from gimkit.circuits.circuit import Circuit
from gimkit.circuits.metric import DIVERGENCES, Metric, metric_of
from gimkit.errors import GimkitError, require_finite
from gimkit.interventions.circuit_runs import run_circuits, whole_circuit
from gimkit.interventions.recomputed import tolerance_of, weight_dtypes
from gimkit.model.apply import check_unedited
from gimkit.model.residual_stream import ResidualStream, check_graph, graph_of, residual_stream_of
from gimkit.remote import in_session, in_trace
from gimkit.tasks.measure import warn_unsolved
from gimkit.tasks.task import Task, answer_rows, answers_of, batches, check_task, per_pair


def run(model: Envoy, task: Task, circuits: Circuit | list[Circuit], *, metric: Metric = "logit",
        remote: bool | str = False) -> torch.Tensor:
    """The task's metric when only a circuit's edges carry the clean run, and all others the corrupt one.

    >>> gimkit.run(model, task, [edges.top(100), edges.top(200)]).shape      # circuits x examples
    torch.Size([2, 64])

    No edges give the corrupt prompt's metric, all edges the clean one's. Warns when the model gets less than 75% of the
    clean prompts right.

    Args:
        model: an unedited nnsight model.
        task: a `gimkit.tasks.Task`.
        circuits: a `Circuit`, or a list of them, which run together as rows of a batch.
        metric: as in `gimkit.score_nodes`.
        remote: as in `gimkit.attribute`.

    Returns:
        [circuits, examples], or [examples] for a single circuit, in units of the metric.

    Raises:
        GimkitError: a circuit of another model, an unknown metric.

    Source:
        EAP-IG's evaluate_graph: a target reads the sum of current outputs over kept edges and of corrupt outputs over
        dropped edges.
    """
    check_task(model, task)
    name = metric_of(task, metric)
    w = residual_stream_of(model)
    check_unedited(model)
    several = [circuits] if isinstance(circuits, Circuit) else list(circuits) if isinstance(circuits, list) else []
    if not several or not all(isinstance(circuit, Circuit) for circuit in several):
        raise GimkitError("circuits is a Circuit or a list of them; cut one from scores with edges.top(n)")
    for circuit in several:
        check_graph(circuit.graph, w)
    values, clean = run_masks(model, w, task, torch.stack([circuit.keep for circuit in several]), name, remote)
    require_finite(values, "the circuit's metric")
    if name not in DIVERGENCES:
        warn_unsolved(task.name, clean)
    return values[0] if isinstance(circuits, Circuit) else values


def run_masks(model: Envoy, w: ResidualStream, task: Task, keep: torch.Tensor, metric: str, remote: bool | str,
              most: int = 2**25) -> tuple[torch.Tensor, torch.Tensor]:
    """The metric [circuits, examples] of each mask [sources, targets], and that of the clean prompts, [examples].

    The circuit without edges is the corrupt run, the one with all edges the clean run, as `check_whole_circuit` checks.
    most: numbers in the sources' outputs that are held at once (2^25 float32: 128 MiB).
    """
    pairs, task = task, answer_rows(task)
    whole = graph_of(w).real
    place = torch.tensor([0 if not mask.any() else 1 if torch.equal(mask, whole) else -1 for mask in keep])
    cut = keep[place < 0]
    place[place < 0] = torch.arange(2, 2 + len(cut))
    rows = max(1, most // (keep.shape[1] * task.clean.shape[1] * w.width))
    together = max(1, min(len(cut), rows))  # circuits before examples: they share the corrupt run
    examples = max(1, rows // together)
    check_whole_circuit(model, w, task, remote)
    columns = []
    for batch, answers in batches(task, examples, "circuits", metric):
        ids = torch.cat([batch.corrupt, batch.clean])
        found: list[torch.Tensor] = []
        for masks in cut.split(together) if len(cut) else [cut]:
            values = in_trace(model, ids, run_circuits, w, len(batch), masks, answers, remote=remote, gradients=False)
            found.append(values[2 if found else 0:])
        columns.append(torch.cat(found))
    values = per_pair(pairs, torch.cat(columns, 1), 1)
    return values[place], values[1]


def check_whole_circuit(model: Envoy, w: ResidualStream, task: Task, remote: bool | str, most: int = 4) -> None:
    """Refuse a model whose circuit of all edges does not give the clean metric, on a few pairs spread over the task.

    The clean metric is that of the model as it is, with hooks and edits of the user's.
    """
    some = task[::-(-len(task) // most)]
    whole, own = in_session(model, whole_circuit, some.clean, some.corrupt, w, graph_of(w).real[None], answers_of(some),
                            remote=remote, gradients=False)
    require_finite(own, "the clean prompts' metric")
    tolerance = 10 * tolerance_of(*weight_dtypes(model._module))  # errors add up over a whole pass
    if not bool(((whole - own).abs() <= tolerance * (1 + own.abs())).all()):
        raise GimkitError("the circuit of all edges does not give the clean prompts' metric "
                          f"(off by {float((whole - own).abs().max()):.2g}): a hook or an edit of yours acts where "
                          "gimkit recomputes the model; remove it, or score nodes")
