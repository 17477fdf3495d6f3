"""A task: prompt pairs with answers, as token ids and as texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, overload

import torch
from nnsight.intervention.envoy import Envoy
from tqdm.auto import tqdm

from gimkit.errors import GimkitError, check_answers, check_ids, check_length
from gimkit.interventions.metric import Answers
from gimkit.model.architecture import limits
from gimkit.results import Result


class Pair(NamedTuple):
    """One prompt pair as text; `answer` is the right word after `clean`, `wrong` the one it is compared with.

    >>> pair = task[0]
    >>> pair.answer, pair.wrong
    ('Stephen', 'Adam')
    """

    clean: str
    corrupt: str
    answer: str
    wrong: str


@dataclass(frozen=True, eq=False)
class Task(Result):
    """n prompt pairs of equal token length, right-padded, with good and bad answer ids.

    >>> task = gimkit.tasks.ioi(model, n=64, seed=0)
    >>> task.clean.shape, task.mask.shape, task.last.shape
    (torch.Size([64, 24]), torch.Size([64, 24]), torch.Size([64]))

    The metric of row i is logsumexp(logits[last, good[i]]) - logsumexp(logits[last, bad[i]]). With `sequences`,
    good[i] and bad[i] are the tokens of one answer each, and the metric is log P(good[i] | prompt) - log P(bad[i] |
    prompt).
    """

    name: str
    clean: torch.Tensor  # [n, S] token ids
    corrupt: torch.Tensor  # [n, S] token ids, the same length as clean row by row
    mask: torch.Tensor  # [n, S] True on real tokens
    good: tuple[tuple[int, ...], ...]  # n sets of right answer ids
    bad: tuple[tuple[int, ...], ...]  # n sets of wrong answer ids
    pairs: tuple[Pair, ...]
    dropped: tuple[str, ...] = field(default=())  # what could not be used, and why
    answer_pairs: tuple[int, int] | None = None  # how many are single tokens, and how many are in the task's lists
    sequences: bool = False  # answers have several tokens

    def __len__(self) -> int:
        return len(self.clean)

    @overload
    def __getitem__(self, key: int) -> Pair: ...

    @overload
    def __getitem__(self, key: slice) -> "Task": ...

    def __getitem__(self, key: int | slice) -> "Pair | Task":
        if not isinstance(key, slice):
            return self.pairs[key]
        return Task(self.name, self.clean[key], self.corrupt[key], self.mask[key],
                    self.good[key], self.bad[key], self.pairs[key], self.dropped, self.answer_pairs,
                    self.sequences)

    @property
    def last(self) -> torch.Tensor:
        """Index of the last real token of each row, [n]."""
        return self.mask.long().cumsum(1).argmax(1)


def check_task(model: Envoy, task: Any) -> None:
    """Refuse what is no task, an empty task, and a task whose prompts or answers the model cannot take.

    >>> check_task(model, task[:0])
    Traceback (most recent call last):
    gimkit.errors.GimkitError: the task ioi holds no prompt pairs; make some first
    """
    if not hasattr(task, "clean") or not hasattr(task, "good"):
        raise GimkitError(f"{type(task).__name__} is not a task; make one with gimkit.tasks.ioi(model, n=64) "
                          "or gimkit.tasks.pairs(clean=..., corrupt=..., answers=...)")
    if len(task) == 0:
        raise GimkitError(f"the task {task.name} holds no prompt pairs; {'; '.join(task.dropped) or 'make some first'}")
    vocabulary, context = limits(model)
    for row, (last, *sets) in enumerate(zip(task.last.tolist(), task.good, task.bad)):
        what = f"{task.name}, row {row},"
        check_length(last + (max(map(len, sets)) if task.sequences else 1), context, what)
        if not all(sets):
            raise GimkitError(f"{what} has no {'bad' if sets[0] else 'good'} answer; give at least one")
        good, bad = ([tuple(ids)] if task.sequences else ids for ids in sets)
        check_answers(good, bad, what)
    for name, ids in (("clean prompts", task.clean), ("corrupt prompts", task.corrupt),
                      ("answers", [answer for sets in (*task.good, *task.bad) for answer in sets])):
        check_ids(ids, vocabulary, f"{task.name}, {name},")


def check_one_token(task: Task, what: str) -> None:
    """Refuse a task with answers of several tokens.

    >>> check_one_token(task, "head_roles")

    Args:
        task: a task.
        what: the function that takes answers of one token only.
    """
    if task.sequences:
        raise GimkitError(f"{what} takes answers of one token, but {task.name} has answers of several tokens; use "
                          "score_nodes, score_edges or run, or other answers")


def answer_rows(task: Task) -> Task:
    """The rows to run for a task: its own, or where answers have several tokens two rows for each pair.

    These are the prompts followed by the good answer, and by the bad answer, each without its last token.

    >>> answer_rows(task) is task
    True
    """
    if not task.sequences:
        return task
    width = int(task.last.max()) + max(map(len, (*task.good, *task.bad)))
    shape, answers = (2 * len(task), width), [ids for pair in zip(task.good, task.bad) for ids in pair]
    clean, corrupt = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, ids in enumerate(answers):
        start = int(task.last[row // 2]) + 1
        for rows, prompts in ((clean, task.clean), (corrupt, task.corrupt)):
            rows[row, :start] = prompts[row // 2, :start]
            rows[row, start:start + len(ids) - 1] = torch.tensor(ids[:-1], dtype=torch.long)
        mask[row, :start + len(ids) - 1] = True
    return replace(task, clean=clean, corrupt=corrupt, mask=mask,
                   pairs=tuple(pair for pair in task.pairs for _ in range(2)),
                   good=tuple(ids if row % 2 == 0 else () for row, ids in enumerate(answers)),
                   bad=tuple(ids if row % 2 else () for row, ids in enumerate(answers)))


def per_pair(task: Task, values: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Values of the rows of `answer_rows`, along one axis, as values of the pairs: the two rows of a pair add up.

    >>> per_pair(task, torch.ones(64)).shape
    torch.Size([64])
    """
    return values.unflatten(dim, (-1, 2)).sum(dim + 1) if task.sequences else values


def rows_of(task: Task) -> torch.Tensor:
    """Clean rows, then corrupt ones, [2n, seq]. Padding comes after the answer's position, so no mask is needed.

    >>> rows_of(task).shape
    torch.Size([128, 24])
    """
    return torch.cat([task.clean, task.corrupt])


def answers_of(rows: Task, metric: str = "logit") -> Answers:
    """The metric, the answer's position, [n], and the ids of good and bad answers, [n, most].

    >>> [part.shape for part in answers_of(task)[1:]]
    [torch.Size([64]), torch.Size([64, 1]), torch.Size([64, 1])]

    Args:
        rows: a task, or its `answer_rows` where answers have several tokens; then positions are [n, most] too.
        metric: as `gimkit.circuits.metric.metric_of` names it.
    """
    if not rows.sequences:
        return Answers(metric, rows.last, padded(rows.good), padded(rows.bad))
    if any(good and bad for good, bad in zip(rows.good, rows.bad)):
        raise GimkitError(f"{rows.name} has answers of several tokens, each of which needs a row of its own")
    answers = [[*good, *bad] for good, bad in zip(rows.good, rows.bad)]  # one of them is empty
    most = max(map(len, answers))
    start = rows.last - torch.tensor([len(ids) for ids in answers]) + 1
    places = torch.minimum(start[:, None] + torch.arange(most), rows.last[:, None])
    return Answers(metric, places, padded(rows.good, most), padded(rows.bad, most))


def batches(rows: Task, batch_size: int, label: str, metric: str = "logit") -> Iterator[tuple[Task, Answers]]:
    """The rows of each batch and their answers, with a progress bar.

    >>> [len(batch) for batch, answers in batches(task, 32, "gim")]
    [32, 32]

    Args:
        rows, metric: as in `answers_of`.
        label: what the progress bar shows beside the task's name.
    """
    for start in tqdm(range(0, len(rows), batch_size), desc=f"{rows.name} {label}", delay=2, leave=False):
        batch = rows[start:start + batch_size]
        yield batch, answers_of(batch, metric)


def padded(answers: Sequence[Sequence[int]], most: int = 0) -> torch.Tensor:
    """Sets of answer ids as [n, most], with -1 where a row has fewer.

    >>> padded([(5,), (6, 7)])
    tensor([[ 5, -1],
            [ 6,  7]])
    """
    most = max(most, *map(len, answers))
    return torch.tensor([[*ids, *[-1] * (most - len(ids))] for ids in answers])
