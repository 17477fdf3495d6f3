"""What a task is: prompt pairs with answers, as token ids, beside the texts that people read."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from gimkit.errors import GimkitError


class Pair(NamedTuple):
    """One prompt pair as text; `answer` is right after `clean`, `wrong` is its rival.

    >>> pair = task[0]
    >>> pair.answer, pair.wrong
    ('Stephen', 'Adam')
    """

    clean: str
    corrupt: str
    answer: str
    wrong: str


@dataclass(frozen=True)
class Task:
    """n prompt pairs of equal token length, right-padded, with good and bad answer ids.

    >>> task = gimkit.tasks.ioi(model, n=64, seed=0)
    >>> task.clean.shape, task.mask.shape, task.last.shape
    (torch.Size([64, 24]), torch.Size([64, 24]), torch.Size([64]))

    The metric of row i is logsumexp(logits[last, good[i]]) - logsumexp(logits[last, bad[i]]).
    """

    name: str
    clean: torch.Tensor  # [n, S] token ids
    corrupt: torch.Tensor  # [n, S] token ids, the same length as clean row by row
    mask: torch.Tensor  # [n, S] True on real tokens
    good: tuple[tuple[int, ...], ...]  # n sets of right answer ids
    bad: tuple[tuple[int, ...], ...]  # n sets of wrong answer ids
    pairs: tuple[Pair, ...]
    dropped: tuple[str, ...] = field(default=())  # what could not be used, and why
    left: tuple[int, int] | None = None  # pairs of answers that are single tokens, and those in the task's lists

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, key: int | slice) -> "Pair | Task":
        if not isinstance(key, slice):
            return self.pairs[key]
        return Task(self.name, self.clean[key], self.corrupt[key], self.mask[key],
                    self.good[key], self.bad[key], self.pairs[key], self.dropped, self.left)

    @property
    def last(self) -> torch.Tensor:
        """Index of the last real token of each row, [n]."""
        return self.mask.long().cumsum(1).argmax(1)


def check_task(task) -> None:
    """Refuse what is no task, or an empty one."""
    if not hasattr(task, "clean") or not hasattr(task, "good"):
        raise GimkitError(f"{type(task).__name__} is not a task; make one with gimkit.tasks.ioi(model, n=64) "
                          "or gimkit.tasks.pairs(clean=..., corrupt=..., answers=...)")
    if len(task) == 0:
        raise GimkitError(f"the task {task.name} holds no prompt pairs; {'; '.join(task.dropped) or 'make some first'}")


def rows_of(task) -> torch.Tensor:
    """Clean rows, then corrupt ones, [2n, seq]. Padding stands right of the answer, so no mask is needed."""
    return torch.cat([task.clean, task.corrupt])


def answers_of(task) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Position of the answer [n], good and bad answers' ids [n, most], as `metric_values` takes them."""
    return task.last, padded(task.good), padded(task.bad)


def padded(answers) -> torch.Tensor:
    """Sets of answer ids as [n, most] with -1 where a row has fewer."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in answers], batch_first=True, padding_value=-1)
