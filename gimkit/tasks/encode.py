"""From texts to token ids: builds tasks, and reports which prompts a tokenizer cannot encode as a task needs them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from random import Random
from typing import Any

import torch

from gimkit.errors import GimkitError, check_whole
from gimkit.model.tokenizer import PromptLike, answer_id, text_ids
from gimkit.tasks.natural import NATURAL
from gimkit.tasks.task import Pair, Task
from gimkit.tasks.words import BUNDLED, Words
from gimkit.tasks.years import decided_years


def tokenizer_of(model: Any) -> Any:
    """The tokenizer of an nnsight model, or the tokenizer itself.

    >>> tokenizer_of(model) is model.tokenizer, tokenizer_of(model.tokenizer) is model.tokenizer
    (True, True)
    """
    tokenizer = getattr(model, "tokenizer", model)
    if not callable(getattr(tokenizer, "convert_ids_to_tokens", None)):
        raise GimkitError(
            f"{type(model).__name__} has no tokenizer: give a model loaded with one, or the tokenizer, "
            "or make the task from token ids with gimkit.tasks.pairs")
    return tokenizer


def encode_pair(tokenizer: Any, clean: PromptLike, corrupt: PromptLike) -> tuple[list[int], list[int]]:
    """The ids of two prompts, texts or chat messages, of equal length.

    >>> encode_pair(model.tokenizer, "The doors", "The door")[0] == model.tokenizer("The doors").input_ids
    True
    """
    a, b = text_ids(tokenizer, clean), text_ids(tokenizer, corrupt)
    if len(a) != len(b):
        raise GimkitError(
            f"clean has {len(a)} tokens and corrupt {len(b)}: a pair needs equal lengths; "
            f"replace words by words of as many tokens ({clean!r} / {corrupt!r})")
    return a, b


def stack(name: str, rows: list, pairs: list[Pair], dropped: Sequence[str] = (), pad: int = 0,
          answer_pairs: tuple[int, int] | None = None, sequences: bool = False) -> Task:
    """A Task made of rows.

    >>> stack("own", [([1, 5, 6], [1, 5, 7], [12], [40])], [Pair("a b", "a c", "x", "y")]).clean
    tensor([[1, 5, 6]])

    Args:
        name: of the task.
        rows: (clean ids, corrupt ids, good ids, bad ids) each.
        pairs: the rows as texts.
        dropped, answer_pairs, sequences: as in `Task`.
        pad: the id that fills shorter rows on the right.
    """
    width = max(len(row[0]) for row in rows)
    clean, corrupt = torch.full((len(rows), width), pad), torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (a, b, _, _) in enumerate(rows):
        clean[i, : len(a)], corrupt[i, : len(a)], mask[i, : len(a)] = torch.tensor(a), torch.tensor(b), True
    good, bad = tuple(tuple(row[2]) for row in rows), tuple(tuple(row[3]) for row in rows)
    return Task(name, clean, corrupt, mask, good, bad, tuple(pairs), tuple(dropped), answer_pairs, sequences)


def pad_id(tokenizer: Any) -> int:
    """The id that fills shorter rows on the right: the padding token, else the end token, else 0.

    >>> pad_id(model.tokenizer)
    0
    """
    options = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(option for option in options if option is not None)


def _one_token_answers(tokenizer: Any, pair: Pair) -> tuple[list[int], list[int]]:
    """The ids of a pair's right and wrong answer, a token each.

    >>> right, wrong = _one_token_answers(model.tokenizer, task[0])
    >>> right == list(task.good[0])
    True

    Raises:
        GimkitError: an answer is not one token.
    """
    return [answer_id(tokenizer, pair.clean, pair.answer)], [answer_id(tokenizer, pair.clean, pair.wrong)]


def words_for(tokenizer: Any) -> tuple[Words, Words]:
    """The words and sentences that suit a tokenizer, and all those on the list.

    >>> words_for(model.tokenizer)[0] is BUNDLED
    True

    A tokenizer that does not know the natural words gets those of the bundled models. For any other tokenizer, answers
    and the words that decide them are single tokens.
    """
    found = {*NATURAL.names, *NATURAL.row, *NATURAL.capitals, *NATURAL.capitals.values(), *NATURAL.nouns,
             *NATURAL.nouns.values(), *NATURAL.kinds, *(word for kind in NATURAL.kinds.values() for word in kind)}
    before = text_ids(tokenizer, "the")
    after = [text_ids(tokenizer, f"the {word}") for word in found]
    if tokenizer.unk_token_id is not None and any(tokenizer.unk_token_id in ids for ids in after):
        return BUNDLED, BUNDLED
    single = {word for word, ids in zip(found, after) if ids[:-1] == before}

    def both_single(mapping: dict) -> dict:
        return {key: value for key, value in mapping.items() if key in single and value in single}

    def singles(words: Iterable[str]) -> tuple[str, ...]:
        return tuple(word for word in words if word in single)

    kinds = {kind: singles(members) for kind, members in NATURAL.kinds.items() if kind in single}
    return NATURAL._replace(
        women=singles(NATURAL.women), men=singles(NATURAL.men), names=singles(NATURAL.names), row=singles(NATURAL.row),
        capitals=both_single(NATURAL.capitals), nouns=both_single(NATURAL.nouns),
        kinds={k: m for k, m in kinds.items() if m},
        starts=decided_years(tokenizer, NATURAL.starts)), NATURAL


def ordered(words: Sized, least: int = 2) -> int:
    """The number of ordered pairs of different words; 0 where there are fewer words than a prompt needs.

    >>> ordered(["Mary", "John", "Tom"]), ordered(["Mary", "John"], least=3)
    (6, 0)
    """
    return len(words) * (len(words) - 1) if len(words) >= least else 0


def build(name: str, model: Any, draw: Callable[[Random, Words], Pair], n: int, seed: int,
          count_answers: Callable[[Words], int], answers: Callable = _one_token_answers) -> Task:
    """A task of n different pairs that suit the tokenizer; `Task.dropped` reports those that did not.

    >>> build("own", model, lambda rng, words: Pair("The doors", "The door", "are", "is"), 1, 0, lambda words: 1)[0]
    Pair(clean='The doors', corrupt='The door', answer='are', wrong='is')

    Args:
        name: of the task.
        model: an nnsight model with a tokenizer, or a tokenizer.
        draw: a function of a random generator and of words that returns one pair.
        n: pairs.
        seed: of the random generator.
        count_answers: a function of words that counts the pairs of answers they allow.
        answers: a function of the tokenizer and a pair that returns the good and the bad ids.

    Raises:
        GimkitError: no pair suits the tokenizer.
    """
    tokenizer = tokenizer_of(model)
    n, seed = check_whole("n", n), check_whole("seed", seed, 0)
    words, listed = words_for(tokenizer)
    counts = count_answers(words), count_answers(listed)
    if counts[0] == 0:
        raise GimkitError(f"task {name!r}: no usable prompt pair for this tokenizer: none of the task's {counts[1]:,} "
                          "pairs of answers are single tokens; make your own with gimkit.tasks.pairs")
    rng, rows, pairs, seen = Random(seed), [], [], set()
    dropped: Counter = Counter()
    for _ in range(20 * n + 100):
        pair = draw(rng, words)
        if pair in seen:
            continue
        seen.add(pair)
        try:
            good, bad = answers(tokenizer, pair)
        except GimkitError as error:
            dropped[str(error)] += 1
            continue
        clean, corrupt = text_ids(tokenizer, pair.clean), text_ids(tokenizer, pair.corrupt)
        if len(clean) != len(corrupt):
            dropped["clean and corrupt have unequal numbers of tokens"] += 1
            continue
        rows.append((clean, corrupt, good, bad))
        pairs.append(pair)
        if len(pairs) == n:
            break
    notes = [f"{reason} ({count} prompts)" for reason, count in dropped.items()]
    if not pairs:
        raise GimkitError(
            f"task {name!r}: no usable prompt pair for this tokenizer, for example because {notes[0]}; "
            "make your own with gimkit.tasks.pairs")
    if len(pairs) < n:
        notes.append(f"only {len(pairs)} of {n} different prompt pairs were found")
    return stack(name, rows, pairs, notes, pad_id(tokenizer), counts)
