"""What a task is: prompt pairs with answers, as token ids, beside the texts that people read."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch


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
