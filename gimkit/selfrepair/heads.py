"""Heads that compensate for one another: ablate a head, and measure what the rest of the model makes up for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
import pandas
import torch
from nnsight.intervention.envoy import Envoy

from gimkit.errors import check_whole, require_finite
from gimkit.interventions.head_ablation import head_effects
from gimkit.model.apply import check_unedited
from gimkit.model.architecture import architecture_of, rows_at_once
from gimkit.model.residual_stream import residual_stream_of
from gimkit.remote import in_trace
from gimkit.results import Result
from gimkit.statistics import bootstrap
from gimkit.tasks.task import Task, batches, check_one_token, check_task, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EFFECTS = ("direct", "direct_live", "total", "total_frozen")


@dataclass(frozen=True, eq=False)
class HeadRepair(Result):
    """The direct and the total effect of ablating each head, and which parts compensate; in logits.

    >>> repair = gimkit.selfrepair.head_repair(model, task[:8])
    >>> repair.effects.shape, repair.compensation.shape          # parts: 20 heads, 5 MLPs, the final norm, the rest
    (torch.Size([8, 20, 4]), torch.Size([8, 20, 27]))

    Attributes:
        task: the task's name.
        heads: names of the ablated heads.
        effects: [n, heads, 4] logits, in the order of EFFECTS (see `head_repair`).
        parts: names of the parts that may compensate.
        compensation: [n, heads, parts] logits, positive where a part makes up for the loss.
    """

    task: str
    heads: tuple[str, ...]
    effects: torch.Tensor
    parts: tuple[str, ...]
    compensation: torch.Tensor

    def frame(self) -> pandas.DataFrame:
        """Tidy table with a row per ablated head.

        Columns: means over examples of the effects; repaired = direct - total with its 95% bootstrap interval over
        examples (low, high); by_norm = total_frozen - total, the final norm's share of it.
        """
        rows = []
        for i, head in enumerate(self.heads):
            effects = self.effects[:, i].double()
            repaired = (effects[:, 0] - effects[:, 2]).numpy()

            def mean(index: numpy.ndarray, repaired: numpy.ndarray = repaired) -> float:
                return repaired[index].mean()

            interval = bootstrap(mean, len(repaired))
            means = effects.mean(0)
            layer, number = places_of(head)
            rows.append((self.task, head, layer, number, *means.tolist(), *interval, float(means[3] - means[2])))
        return pandas.DataFrame(rows, columns=["task", "ablated", "layer", "head", *EFFECTS, "repaired", "low", "high",
                                               "by_norm"])

    def compensation_frame(self) -> pandas.DataFrame:
        """Tidy table with a row per ablated head and later part: the mean compensation. They sum to `repaired`."""
        means, rows = self.compensation.double().mean(0), []
        for i, head in enumerate(self.heads):
            layer, _ = places_of(head)
            for part, mean in zip(self.parts, means[i].tolist()):
                kind = kind_of(part)
                if kind in ("norm", "rest") or places_of(part)[0] > layer or (kind == "mlp" and mean != 0):
                    rows.append((self.task, head, part, kind, mean))
        return pandas.DataFrame(rows, columns=["task", "ablated", "part", "kind", "compensation"])

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the total against the direct effect of each head; returns the matplotlib axes."""
        from gimkit.plots.selfrepair import direct_against_total

        return direct_against_total(self, ax=ax)


def kind_of(part: str) -> str:
    """head, mlp, norm or rest."""
    return "norm" if "norm" in part else {"a": "head", "m": "mlp"}.get(part[0], "rest")


def places_of(name: str) -> tuple[int, int]:
    """Layer and head of a0.h1 or m0; the head of an MLP is -1."""
    layer, _, head = name[1:].partition(".h")
    return int(layer), int(head or -1)


def head_repair(model: Envoy, task: Task, *, batch_size: int = 32, remote: bool | str = False) -> HeadRepair:
    """Ablate each head, and compare its direct with its total effect.

    >>> repair = gimkit.selfrepair.head_repair(model, gimkit.tasks.ioi(model, n=32))
    >>> repair.effects.shape, repair.compensation.shape  # 5 layers of 4 heads; 20 heads, 5 MLPs, final norm, the rest
    (torch.Size([32, 20, 4]), torch.Size([32, 20, 27]))

    A head is ablated by resampling: its output, at all positions, becomes that of the corrupt run. Its effects on the
    task's metric, in logits, positive where ablating hurts:

    - total: the loss of the metric when the model runs on with the ablated head (`score_nodes(method="exact")`).
    - direct: the loss if no other part changes. The change of the head's output at the last position goes through the
      final norm, with the clean run's denominator, and the unembedding (direct logit attribution, to first order of
      the metric: exact for single answers without a final softcap).
    - direct_live: the same with the final norm's denominator recomputed without the head's contribution.
    - total_frozen: the total effect with the clean run's denominator in the final norm.

    repaired = direct - total is self-repair where it has the sign of direct. Where a head acts through later parts it
    is negative. It is the sum of the compensations. For a later head or MLP: by how much its direct contribution is
    larger when the head is ablated. "final norm": total_frozen - total, the change of its denominator. "norm after
    attention" (Gemma-2 and 3, OLMo-2 only): the same there. "rest": the metric's curvature, 0 where direct is exact.

    Args:
        model: an unedited nnsight model whose edges are covered.
        task: a `gimkit.tasks.Task` of n prompt pairs with answers of one token.
        batch_size: prompt pairs a forward pass; it does not change the result.
        remote: as in `gimkit.attribute`.

    Returns:
        A `HeadRepair`.

    Raises:
        GimkitError: an architecture whose edges are not covered, an edited model, an empty task, answers of several
            tokens, NaN.

    Source:
        McGrath et al. 2023 (the Hydra effect, arXiv 2307.15771) and Rushing and Nanda 2024 (arXiv 2402.15390), who
        separate the final norm's share; Wang et al. 2022 (arXiv 2211.00593) for backup heads. Difference: they ablate
        over the training distribution; here each head is resampled from the pair's corrupt prompt, at all positions.
    """
    check_task(model, task)
    check_one_token(task, "head_repair")
    batch_size = check_whole("batch_size", batch_size)
    parts = architecture_of(model)
    check_unedited(model)
    w = residual_stream_of(model, parts)
    root = model._module
    softcap = getattr(root.config.get_text_config(), "final_logit_softcapping", None)
    layers = [(layer.output, layer.norm_after_attention, layer.mlp, layer.norm_after_mlp) for layer in w.layers]
    places = [(layer, head) for layer in range(len(layers)) for head in range(w.heads)]
    found = []
    for batch, answers in batches(task, batch_size, "heads"):
        ids, chunks = rows_of(batch), []
        step = max(1, rows_at_once(model, ids.shape[1]) // len(batch) - 2)
        for chosen in (places[i:i + step] for i in range(0, len(places), step)):
            rows = torch.cat([ids, batch.clean.repeat(len(chosen), 1)])
            chunks.append(in_trace(model, rows, head_effects, layers, w.final_norm, w.unembedding, softcap, w.heads,
                                   chosen, answers, remote=remote, gradients=False))
        found.append([torch.cat(group).transpose(0, 1) for group in zip(*chunks)])
    effects, gains = (torch.cat(group).float() for group in zip(*found))
    require_finite(effects, "the heads' effects")
    return HeadRepair(task.name, tuple(f"a{layer}.h{head}" for layer, head in places), effects,
                      *_compensation(effects, gains, places, layers[0][1] is not None))


def _compensation(effects: torch.Tensor, gains: torch.Tensor, places: list,
                  norm_after: bool) -> tuple[tuple[str, ...], torch.Tensor]:
    """Names of the parts, and their compensation [n, heads, parts], from gains [n, heads, layers, heads + 1]."""
    direct, _, total, total_frozen = effects.unbind(-1)
    heads = gains.shape[-1] - 1
    own = torch.stack([gains[:, i, layer, :heads].sum(-1) for i, (layer, _) in enumerate(places)], 1)
    gains = gains.clone()
    for i, (layer, _) in enumerate(places):
        gains[:, i, layer, :heads] = 0
    norms = {"final norm": total_frozen - total}
    if norm_after:  # heads of the ablated one's layer change by the norm after them alone
        norms["norm after attention"] = own + direct
    rest = direct - total - gains.flatten(2).sum(-1) - sum(norms.values())
    names = [f"a{layer}.h{head}" if head < heads else f"m{layer}" for layer in range(gains.shape[2])
             for head in range(heads + 1)]
    return (*names, *norms, "rest"), torch.cat([gains.flatten(2), torch.stack([*norms.values(), rest], -1)], -1)
