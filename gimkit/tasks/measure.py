"""What a model makes of a task: the metric of its clean prompts, and a data card."""

import warnings
from dataclasses import dataclass

import pandas
import torch

from gimkit.errors import check_whole
from gimkit.interventions.metric import values_at_answers
from gimkit.model.architecture import unembedding_of
from gimkit.remote.trace import in_trace
from gimkit.tasks.task import Task, answer_rows, answers_of, check_task, per_pair

BAR = 0.75  # accuracy at which a task counts as solved: half way from chance to all


def metric(model, task: Task, *, batch_size: int = 32, remote: bool | str = False) -> torch.Tensor:
    """The task's metric behind each clean prompt, [n]: the logit difference, or of answers of several tokens that of
    their log-probabilities.

    >>> metric(model, task).shape
    torch.Size([64])
    """
    check_task(model, task)
    rows, batch_size = answer_rows(task), check_whole("batch_size", batch_size)
    batches = (rows[start:start + batch_size] for start in range(0, len(rows), batch_size))
    values = [in_trace(model, batch.clean, values_at_answers, unembedding_of(model), "logit", *answers_of(batch),
                       remote=remote, gradients=False)[0]
              for batch in batches]
    return per_pair(task, torch.cat(values))


@dataclass(frozen=True)
class Card:
    """What a model makes of a task.

    >>> print(gimkit.tasks.card(model, task))
    ioi: 64 prompt pairs of 12 to 24 tokens; accuracy 1.00, mean logit difference +14.53
    6,320 of 6,320 answer pairs are single tokens; dropped: nothing

    accuracy: share of clean prompts whose right answer is above the wrong one. logit_difference: mean of
    logsumexp(good) - logsumexp(bad). tokens: of the shortest and of the longest prompt. left: answer pairs that the
    tokenizer makes single tokens of, and those in the task's lists; None for a task of your own.
    dropped: prompts that were drawn and could not be used, and why.
    """

    task: str
    prompts: int
    accuracy: float
    logit_difference: float
    tokens: tuple[int, int]
    left: tuple[int, int] | None
    dropped: tuple[str, ...]

    @property
    def solved(self) -> bool:
        """Whether the accuracy reaches the bar, .75."""
        return self.accuracy >= BAR

    def frame(self) -> pandas.DataFrame:
        """One row: task, prompts, accuracy, logit_difference, shortest, longest, left, listed, dropped, solved."""
        (shortest, longest), (left, listed) = self.tokens, self.left or (None, None)
        return pandas.DataFrame([{
            "task": self.task, "prompts": self.prompts, "accuracy": self.accuracy,
            "logit_difference": self.logit_difference, "shortest": shortest, "longest": longest, "left": left,
            "listed": listed, "dropped": "; ".join(self.dropped), "solved": self.solved}])

    def __str__(self) -> str:
        shortest, longest = self.tokens
        answers = "" if self.left is None else "{:,} of {:,} answer pairs are single tokens; ".format(*self.left)
        return (f"{self.task}: {self.prompts} prompt pairs of {shortest} to {longest} tokens; "
                f"accuracy {self.accuracy:.2f}, mean logit difference {self.logit_difference:+.2f}\n"
                f"{answers}dropped: {'; '.join(self.dropped) or 'nothing'}"
                + ("" if self.solved else f"\nThe model fails this task: its accuracy is below {BAR}."))


def card(model, task: Task, *, remote: bool | str = False) -> Card:
    """The data card of a task for a model: accuracy, mean logit difference, tokens, answer pairs left, pairs dropped.

    >>> gimkit.tasks.card(model, task).accuracy
    1.0

    Args:
        model: an nnsight model. task: a `gimkit.tasks.Task`. remote: as in `gimkit.attribute`.
    Raises:
        GimkitError: what is given is no task, or an empty one.
    """
    values, lengths = metric(model, task, remote=remote), task.mask.sum(1)
    return Card(task.name, len(task), (values > 0).float().mean().item(), values.mean().item(),
                (int(lengths.min()), int(lengths.max())), task.left, task.dropped)


def warn_unsolved(name: str, values: torch.Tensor) -> None:
    """Warn when the clean prompts' metric [n], right answers above wrong ones, says that the model fails the task."""
    accuracy = (values > 0).float().mean().item()
    if accuracy < BAR:
        warnings.warn(f"the model gets {accuracy:.0%} of {name}'s prompts right, less than {BAR:.0%}: a circuit of a "
                      "task that it fails means little; gimkit.tasks.card(model, task) says more", stacklevel=3)
