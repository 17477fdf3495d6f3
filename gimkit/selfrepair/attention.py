"""Self-repair of attention: ablate the two scores that contribute most to a row, one at a time and together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
import pandas
import torch
from nnsight.intervention.envoy import Envoy
from tqdm.auto import tqdm

from gimkit.errors import GimkitError, check_number, check_whole, require_finite
from gimkit.interventions.score_ablation import score_rows
from gimkit.model.apply import check_unedited
from gimkit.model.architecture import architecture_of
from gimkit.model.prompt import PromptLike, prompt_ids
from gimkit.model.tokenizer import is_text
from gimkit.remote import in_trace
from gimkit.results import Result
from gimkit.tasks import Task
from gimkit.tasks.task import check_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes


PLACES = ("example", "layer", "head", "query", "i", "j")
NUMBERS = ("contribution_i", "contribution_j", "d1", "d2", "d12", "gradient", "tsg")


@dataclass(frozen=True, eq=False)
class SelfRepair(Result):
    """The attention rows of some prompts in which two positions contribute more than a threshold.

    >>> repair = gimkit.self_repair(model, task[:8])
    >>> repair.frame().columns.tolist()[:6]
    ['example', 'layer', 'head', 'query', 'i', 'j']

    Attributes:
        name: of the task, or "prompts".
        threshold: in units of a head's squared output.
        rows: one line for each kept attention row (see `self_repair`).
        skipped: how many rows have fewer than two such contributions.
        largest_second: the largest second contribution of any row.
    """

    name: str
    threshold: float
    rows: pandas.DataFrame
    skipped: int
    largest_second: float

    @property
    def q95(self) -> float:
        """The 95% quantile of the interaction over the kept rows (linear between ranks); NaN without rows."""
        return float(self.rows["interaction"].quantile(0.95))

    def frame(self) -> pandas.DataFrame:
        """Tidy table: the kept rows, with a column `flagged` for those whose interaction is above q95."""
        return self.rows.assign(flagged=self.rows["interaction"] > self.q95)

    def plot(self, axes: "Sequence[Axes] | None" = None) -> "tuple[Axes, Axes]":
        """Draw joint against summed effects, and gradient against tempered gradient; returns two matplotlib axes."""
        from gimkit.plots.selfrepair import ablation_effect, grad_vs_tsg

        first, second = axes if axes is not None else (None, None)
        return ablation_effect(self, ax=first), grad_vs_tsg(self, ax=second)

    def __str__(self) -> str:
        """One sentence: how many rows were kept, and in how many the joint effect is more than the sum."""
        count = f"{len(self.rows)} of {len(self.rows) + self.skipped} attention rows on {self.name}"
        if self.rows.empty:
            return (f"{count} have two contributions above {self.threshold:g} (the largest second contribution is "
                    f"{self.largest_second:.3g}), so there is nothing to ablate; lower threshold, or take prompts "
                    "that say things twice")
        more = (self.rows["d12"] > self.rows["d1"] + self.rows["d2"]).mean()
        return (f"{count} have two contributions above {self.threshold:g}; both ablated cost more than the sum of each "
                f"in {more:.0%} of them; interaction: median {self.rows['interaction'].median():.2f}, "
                f"95% quantile {self.q95:.2f}")


def self_repair(model: Envoy, prompts: Task | PromptLike | Sequence[PromptLike], *, threshold: float = 1.0,
                batch_size: int = 32, remote: bool | str = False) -> SelfRepair:
    """Ablate, in every attention row, the two scores that contribute most: each alone, then both.

    >>> repair = gimkit.self_repair(model, gimkit.tasks.ioi_twice(model, n=32))
    >>> repair.frame().columns.tolist()                          # a line for each kept (example, layer, head, query)
    ['example', 'layer', 'head', 'query', 'i', 'j', 'contribution_i', 'contribution_j', 'd1', 'd2', 'd12', 'gradient',
     'tsg', 'interaction', 'flagged']

    A row is one head's query in one prompt. It has scores a (after scaling, softcap and mask), weights s = softmax(a),
    output z, and o = z . z = sum_k s_k c_k with c_k = z . v_k. Positions i and j have the two largest contributions
    s_k c_k. Ablating sets a score to the mean of the row's unmasked scores and takes the softmax again. The columns:

    - d1, d2, d12: the loss of o with i, j, or both ablated, in units of o (a head's squared output). A loss can exceed
      o, since o can become negative.
    - interaction: (d12 - d1 - d2) / d12, and 0 where d12 is 0.
    - gradient: the sum over i and j of s_k (c_k - o), the slope of o with the z in c_k held constant.
    - tsg: the same with softmax(a / 2) in both places, GIM's rule.

    Where no row is above the threshold the table is empty and the result's text says so.

    Args:
        model: an unedited nnsight model.
        prompts: a `gimkit.tasks.Task` (its clean prompts), a prompt as in `gimkit.attribute`, or a list of them.
        threshold: rows with two contributions above it are kept; 1 in the paper.
        batch_size: prompts a forward pass; it does not change the result.
        remote: as in `gimkit.attribute`.

    Returns:
        A `SelfRepair`.

    Raises:
        GimkitError: a prompt of a single token or longer than the model's context, an edited model, attention that
            cannot be recomputed exactly.

    Source:
        arXiv 2505.17630, the self-repair analysis as its code does it. Attention is recomputed from queries, keys and
        mask as they reach the kernel, in float64, so that it works with sdpa as with eager attention. Difference: real
        biases and softcaps are the model's own (the authors run TransformerLens with folded weights).
    """
    batch_size = check_whole("batch_size", batch_size)
    if not check_number("threshold", threshold) >= 0:
        raise GimkitError(f"threshold must be 0 or more, not {threshold!r}: masked positions contribute 0")
    parts = architecture_of(model)
    check_unedited(model)
    name, ids, lengths = rows_of(model, prompts)
    attentions, tables, largest = [block.attention for block in parts.blocks], [], []
    for start in tqdm(range(0, len(ids), batch_size), desc=f"self-repair on {name}", delay=2, leave=False):
        real = lengths[start:start + batch_size]
        found, second = in_trace(model, ids[start:start + batch_size, :max(real)], score_rows, attentions, real,
                                 threshold, remote=remote, gradients=False)
        require_finite(found, "the ablated attention rows")
        found[:, 0] += start
        tables.append(found)
        largest.append(float(second))
    rows = tidy(torch.cat(tables))
    total = sum(lengths) * len(attentions) * parts.n_heads
    return SelfRepair(name, threshold, rows, total - len(rows), max(largest))


def tidy(found: torch.Tensor) -> pandas.DataFrame:
    """The table of rows [rows, 13] that left the trace, with their interaction."""
    rows = pandas.DataFrame(found.numpy(), columns=[*PLACES, *NUMBERS]).astype({name: int for name in PLACES})
    d1, d2, d12 = rows[["d1", "d2", "d12"]].to_numpy().T
    rows["interaction"] = numpy.divide(d12 - d1 - d2, d12, out=numpy.zeros(len(rows)), where=d12 != 0)
    return rows


def rows_of(model: Envoy, prompts: Task | PromptLike | Sequence[PromptLike]) -> tuple[str, torch.Tensor, list[int]]:
    """A name, ids [n, S] padded on the right, and lengths, of a task's clean prompts or of prompts given as such."""
    if isinstance(prompts, Task):
        check_task(model, prompts)
        name, ids, lengths = prompts.name, prompts.clean, prompts.mask.sum(1).tolist()
    else:
        several: list = [prompts] if is_text(prompts) else list(prompts)
        if not several:
            raise GimkitError("there are no prompts; give a task, a text, or a list of texts")
        several = [several] if hasattr(several[0], "__index__") and getattr(several[0], "ndim", 0) == 0 else several
        rows = [prompt_ids(model, prompt, f"prompt {number}") for number, prompt in enumerate(several)]
        name, lengths = "prompts", [len(row) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if min(lengths) < 2:
        raise GimkitError(f"prompt {lengths.index(min(lengths))} has a single token, so no query chooses between "
                          "positions; give prompts of two tokens or more")
    return name, ids, lengths
