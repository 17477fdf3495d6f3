"""How well a model solves a task: the metric of the clean prompts, and a data card."""

import warnings
from dataclasses import dataclass

import pandas
import torch
from nnsight.intervention.envoy import Envoy

from gimkit.errors import check_whole
from gimkit.interventions.metric import values_at_answers
from gimkit.model.architecture import unembedding_of
from gimkit.remote.trace import in_trace
from gimkit.tasks.task import Task, answer_rows, batches, check_task, per_pair

BAR = 0.75  # accuracy at which a task counts as solved: half way from chance to all


def metric(model: Envoy, task: Task, *, batch_size: int = 32, remote: bool | str = False) -> torch.Tensor:
    """The task's metric after each clean prompt, [n]: the logit difference of right and wrong answers.

    >>> metric(model, task).shape
    torch.Size([64])

    Answers of several tokens have the difference of their log-probabilities.

    Args:
        model: an nnsight model.
        task: a task.
        batch_size, remote: as in `gimkit.attribute`.
    """
    check_task(model, task)
    rows, batch_size = answer_rows(task), check_whole("batch_size", batch_size)
    values = [in_trace(model, batch.clean, values_at_answers, unembedding_of(model), answers, remote=remote,
                       gradients=False)[0]
              for batch, answers in batches(rows, batch_size, "metric")]
    return per_pair(task, torch.cat(values))


@dataclass(frozen=True)
class Card:
    """How well a model solves a task, and how well its tokenizer suits it.

    >>> print(gimkit.tasks.card(model, task))
    ioi: 64 prompt pairs of 12 to 24 tokens; accuracy 1.00, mean logit difference +14.53
    6,320 of 6,320 answer pairs are single tokens; dropped: nothing
    """

    task: str
    prompts: int
    accuracy: float  # the share of clean prompts whose right answer is above the wrong one
    logit_difference: float  # the mean of logsumexp(good) - logsumexp(bad)
    tokens: tuple[int, int]  # of the shortest and of the longest prompt
    answer_pairs: tuple[int, int] | None  # those of single tokens, and those in the task's lists; None for your own
    dropped: tuple[str, ...]  # which prompts were drawn and could not be used, and why

    @property
    def solved(self) -> bool:
        """Whether the accuracy is at least 0.75."""
        return self.accuracy >= BAR

    def frame(self) -> pandas.DataFrame:
        """One row: task, prompts, accuracy, logit_difference, shortest, longest, single, listed, dropped, solved."""
        (shortest, longest), (single, listed) = self.tokens, self.answer_pairs or (None, None)
        return pandas.DataFrame([{
            "task": self.task, "prompts": self.prompts, "accuracy": self.accuracy,
            "logit_difference": self.logit_difference, "shortest": shortest, "longest": longest, "single": single,
            "listed": listed, "dropped": "; ".join(self.dropped), "solved": self.solved}])

    def __str__(self) -> str:
        shortest, longest = self.tokens
        answers = "" if self.answer_pairs is None else (
            "{:,} of {:,} answer pairs are single tokens; ".format(*self.answer_pairs))
        return (f"{self.task}: {self.prompts} prompt pairs of {shortest} to {longest} tokens; "
                f"accuracy {self.accuracy:.2f}, mean logit difference {self.logit_difference:+.2f}\n"
                f"{answers}dropped: {'; '.join(self.dropped) or 'nothing'}"
                + ("" if self.solved else f"\nThe model fails this task: its accuracy is below {BAR}."))


def card(model: Envoy, task: Task, *, remote: bool | str = False) -> Card:
    """The data card of a task for a model: accuracy, mean logit difference, lengths, answer pairs, dropped prompts.

    >>> gimkit.tasks.card(model, task).accuracy
    1.0

    Args:
        model: an nnsight model.
        task: a `gimkit.tasks.Task`.
        remote: as in `gimkit.attribute`.

    Returns:
        A `Card`.

    Raises:
        GimkitError: `task` is no task, or an empty one.
    """
    values, lengths = metric(model, task, remote=remote), task.mask.sum(1)
    return Card(task.name, len(task), (values > 0).float().mean().item(), values.mean().item(),
                (int(lengths.min()), int(lengths.max())), task.answer_pairs, task.dropped)


def warn_unsolved(name: str, values: torch.Tensor) -> None:
    """Warn when the model fails a task: when the metric is positive on fewer than 75% of its clean prompts.

    >>> warn_unsolved("ioi", torch.ones(64))

    Args:
        name: of the task.
        values: the metric of the clean prompts, [n].
    """
    accuracy = (values > 0).float().mean().item()
    if accuracy < BAR:
        warnings.warn(f"the model gets {accuracy:.0%} of {name}'s prompts right, less than {BAR:.0%}: a circuit of a "
                      "task that the model fails means little; see gimkit.tasks.card(model, task)", stacklevel=3)
