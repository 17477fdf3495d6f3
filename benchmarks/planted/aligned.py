"""Programs that models are trained to run: each step of a program has its head or MLP.

A step is a function of the words and of earlier steps' values, at every position. A step's value may come from another
input: the program then says what a model should answer whose head or MLP is patched.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from benchmarks.planted.prompts import START
from gimkit.model.graph import Graph


class Step(NamedTuple):
    """One step: its head or MLP, what it reads, and its value [n, positions] from the values it reads.

    >>> ALIGNED["induction"].steps["previous"].place
    'a0.h1'
    """

    place: str  # as in gimkit's graphs
    reads: Sequence[str]  # steps, or "input"
    value: Callable[..., torch.Tensor]  # of the values of `reads`, in this order


class Aligned(NamedTuple):
    """A program; its last step's value is the answer.

    >>> ALIGNED["sums"].pairs(1)[0]
    ('<start> 0 3 1 0 3 3', '<start> 3 3 1 3 1 2', 'down', 'up')
    """

    layers: int
    words: Sequence[str]  # after the start token
    draw: Callable[[torch.Generator, int], torch.Tensor]  # ids [n, positions]
    steps: Mapping[str, Step]

    def values(self, ids: torch.Tensor, patched: Mapping[str, tuple] | None = None) -> dict[str, torch.Tensor]:
        """Every step's value [n, positions]; patched: for a step, rows [n] and the values that they get instead."""
        found = {"input": ids}
        for name, step in self.steps.items():
            found[name] = step.value(*(found[read] for read in step.reads))
            if patched and name in patched:
                rows, values = patched[name]
                found[name] = torch.where(rows[:, None], values, found[name])
        return found

    def answers(self, ids: torch.Tensor, patched: Mapping[str, tuple] | None = None) -> torch.Tensor:
        """The id of the answer at every position [n, positions]."""
        return list(self.values(ids, patched).values())[-1]

    def two_inputs(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """n times two inputs [n, positions] whose answers differ at the last position."""
        kept, found = 0, []
        while kept < n:
            clean, corrupt = self.draw(generator, n), self.draw(generator, n)
            differ = self.answers(clean)[:, -1] != self.answers(corrupt)[:, -1]
            found.append((clean[differ], corrupt[differ]))
            kept += int(differ.sum())
        clean, corrupt = (torch.cat(each)[:n] for each in zip(*found))
        return clean, corrupt

    def edges(self, graph: Graph) -> list[str]:
        """The edges between the embedding, the heads and MLPs of steps where one reads the other, and the logits.

        Training says nothing of a head's queries, keys and values apart, so all three are there.
        """
        places = {"input": "input"} | {step: own.place for step, own in self.steps.items()}
        pairs = {(places[read], own.place) for own in self.steps.values() for read in own.reads}
        pairs.add(([*places.values()][-1], "logits"))
        return [edge for edge in graph.edges if tuple(edge.partition("<")[0].split("->")) in pairs]

    def pairs(self, n: int, seed: int = 0) -> list[tuple[str, str, str, str]]:
        """n pairs as (clean, corrupt, good, bad): two random inputs, and the answer to each."""
        words = [START, *self.words]
        clean, corrupt = self.two_inputs(n, torch.Generator().manual_seed(seed))
        texts = ([" ".join(words[i] for i in row) for row in ids.tolist()] for ids in (clean, corrupt))
        answers = ([words[i] for i in self.answers(ids)[:, -1].tolist()] for ids in (clean, corrupt))
        return list(zip(*texts, *answers))


def _random(words: int, length: int) -> Callable:
    """Draws ids of the first words at random, after the start token."""
    def draw(generator: torch.Generator, n: int) -> torch.Tensor:
        return _started(torch.randint(1, words + 1, (n, length), generator=generator))
    return draw


def _started(ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(ids[:, :1]), ids], 1)


def _before(values: torch.Tensor) -> torch.Tensor:
    """Each position's previous value."""
    return _started(values[:, :-1])


def _found(match: torch.Tensor, values: torch.Tensor, none: int, last: bool) -> torch.Tensor:
    """For each query of match [n, queries, keys] the value of its first or last key up to the query; none without."""
    match = match & torch.ones(match.shape[1:], dtype=torch.bool).tril()
    order = torch.arange(1, match.shape[2] + 1) if last else torch.arange(match.shape[2], 0, -1)
    best, place = torch.where(match, order, 0).max(-1)
    return torch.where(best > 0, values.gather(1, place), none)


def _induction(ids: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    """What followed the last occurrence of this letter; word 9, "-", for none."""
    return _found((previous[:, None] == ids[:, :, None]) & (ids[:, :, None] > 0), ids, 9, last=True)


def _more(first: torch.Tensor, second: torch.Tensor, word: int) -> torch.Tensor:
    """Three words from this one on: more, less, equal."""
    return torch.where(first > second, word, torch.where(first < second, word + 1, word + 2))


NAMES = 6


def _names(generator: torch.Generator, n: int) -> torch.Tensor:
    """Two names and a word x in between or around them, one of them again or a third name, and x."""
    names = torch.rand(n, NAMES, generator=generator).argsort(1)[:, :3] + 1
    names[:, 2] = names.gather(1, torch.randint(3, (n, 1), generator=generator))[:, 0]
    places = torch.rand(n, 3, generator=generator).argsort(1)[:, :2].sort(1).values
    places = torch.cat([places, torch.full((n, 1), 3)], 1)
    return _started(torch.full((n, 5), NAMES + 1).scatter(1, places, names))


def _is_name(ids: torch.Tensor) -> torch.Tensor:
    return (ids > 0) & (ids <= NAMES)


def _repeated(ids: torch.Tensor) -> torch.Tensor:
    """Is this a name that has occurred before?"""
    before = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril(-1)
    return ((ids[:, :, None] == ids[:, None]) & before).any(-1) & _is_name(ids)


def _subject(ids: torch.Tensor, repeated: torch.Tensor) -> torch.Tensor:
    """The last word so far that is repeated; the start token for none."""
    return _found(repeated[:, None].expand(-1, ids.shape[1], -1), ids, 0, last=True)


def _other(ids: torch.Tensor, subject: torch.Tensor) -> torch.Tensor:
    """The first name that is not the subject; "-" without a subject."""
    others = _is_name(ids)[:, None] & (ids[:, None] != subject[:, :, None]) & (subject[:, :, None] > 0)
    return _found(others, ids, NAMES + 2, last=False)


def _digit(ids: torch.Tensor) -> torch.Tensor:
    return (ids - 1).clamp(min=0)


ALIGNED = {
    "induction": Aligned(3, (*"abcdefgh", "-"), _random(8, 8), {
        "previous": Step("a0.h1", ("input",), _before),
        "match": Step("a1.h2", ("input", "previous"), _induction)}),
    "counts": Aligned(2, ("(", ")", "x", "opened", "closed", "equal"), _random(3, 7), {
        "openings": Step("a0.h0", ("input",), lambda ids: (ids == 1).cumsum(1)),
        "closings": Step("a0.h3", ("input",), lambda ids: (ids == 2).cumsum(1)),
        "more": Step("m1", ("openings", "closings"), lambda *counts: _more(*counts, 4))}),
    "other-name": Aligned(3, (*"ABCDEF", "x", "-"), _names, {
        "repeated": Step("a0.h1", ("input",), _repeated),
        "subject": Step("a1.h2", ("input", "repeated"), _subject),
        "other": Step("a2.h0", ("input", "subject"), _other)}),
    "sums": Aligned(2, (*"0123", "up", "down", "same"), _random(4, 6), {
        "previous": Step("a0.h1", ("input",), _before),
        "sum": Step("m0", ("input", "previous"), lambda ids, before: (_digit(ids) + _digit(before)) % 4),
        "sum before": Step("a1.h2", ("sum",), _before),
        "more": Step("m1", ("sum", "sum before"), lambda *sums: _more(*sums, 5))}),
}
