"""From text to token ids: checks that a tokenizer can carry a task, and says what it cannot."""

from collections import Counter
from collections.abc import Callable
from random import Random

import torch

from gimkit.errors import GimkitError, check_whole
from gimkit.model.tokenizer import answer_id, text_ids
from gimkit.tasks.natural import NATURAL
from gimkit.tasks.task import Pair, Task
from gimkit.tasks.words import BUNDLED, Words
from gimkit.tasks.years import decided


def tokenizer_of(model):
    """The tokenizer of an nnsight model, or the tokenizer itself."""
    tokenizer = getattr(model, "tokenizer", model)
    if not callable(getattr(tokenizer, "convert_ids_to_tokens", None)):
        raise GimkitError(
            f"{type(model).__name__} carries no tokenizer: give a model loaded with one, or the tokenizer, "
            "or make the task from token ids with gimkit.tasks.pairs")
    return tokenizer


def encode_pair(tokenizer, clean, corrupt) -> tuple[list[int], list[int]]:
    """The ids of two prompts, texts or chat messages, of equal length."""
    a, b = text_ids(tokenizer, clean), text_ids(tokenizer, corrupt)
    if len(a) != len(b):
        raise GimkitError(
            f"clean has {len(a)} tokens and corrupt {len(b)}: a pair needs equal lengths; "
            f"replace words by words of as many tokens ({clean!r} / {corrupt!r})")
    return a, b


def stack(name: str, rows: list, pairs: list[Pair], dropped=(), pad: int = 0, left=None,
          sequences: bool = False) -> Task:
    """A Task of rows (clean ids, corrupt ids, good ids, bad ids)."""
    width = max(len(row[0]) for row in rows)
    clean, corrupt = torch.full((len(rows), width), pad), torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (a, b, _, _) in enumerate(rows):
        clean[i, : len(a)], corrupt[i, : len(a)], mask[i, : len(a)] = torch.tensor(a), torch.tensor(b), True
    good, bad = tuple(tuple(row[2]) for row in rows), tuple(tuple(row[3]) for row in rows)
    return Task(name, clean, corrupt, mask, good, bad, tuple(pairs), tuple(dropped), left, sequences)


def pad_id(tokenizer) -> int:
    options = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(option for option in options if option is not None)


def one_token_answers(tokenizer, pair: Pair) -> tuple[list[int], list[int]]:
    return [answer_id(tokenizer, pair.clean, pair.answer)], [answer_id(tokenizer, pair.clean, pair.wrong)]


def words_for(tokenizer) -> tuple[Words, Words]:
    """The words and sentences that a tokenizer can carry, and all that there were to choose from.

    A tokenizer that does not know the natural ones gets the bundled models'. Of any other, answers and what decides
    them are single tokens.
    """
    found = {*NATURAL.names, *NATURAL.row, *NATURAL.capitals, *NATURAL.capitals.values(), *NATURAL.nouns,
             *NATURAL.nouns.values(), *NATURAL.kinds, *(word for kind in NATURAL.kinds.values() for word in kind)}
    before = text_ids(tokenizer, "the")
    behind = [text_ids(tokenizer, f"the {word}") for word in found]
    if tokenizer.unk_token_id is not None and any(tokenizer.unk_token_id in ids for ids in behind):
        return BUNDLED, BUNDLED
    single = {word for word, ids in zip(found, behind) if ids[:-1] == before}

    def both(mapping):
        return {key: value for key, value in mapping.items() if key in single and value in single}

    def kept(words):
        return tuple(word for word in words if word in single)

    kinds = {kind: kept(members) for kind, members in NATURAL.kinds.items() if kind in single}
    return NATURAL._replace(
        women=kept(NATURAL.women), men=kept(NATURAL.men), names=kept(NATURAL.names), row=kept(NATURAL.row),
        capitals=both(NATURAL.capitals), nouns=both(NATURAL.nouns), kinds={k: m for k, m in kinds.items() if m},
        starts=decided(tokenizer, NATURAL.starts)), NATURAL


def ordered(words, least: int = 2) -> int:
    """Ordered pairs of different words; none where there are fewer words than a prompt needs."""
    return len(words) * (len(words) - 1) if len(words) >= least else 0


def build(
    name: str, model, draw: Callable[[Random, Words], Pair], n: int, seed: int, left: Callable[[Words], int],
    answers=one_token_answers
) -> Task:
    """Draws different pairs until n of them fit the tokenizer; what did not fit is told in Task.dropped.

    left: counts the pairs of answers that words allow.
    """
    tokenizer = tokenizer_of(model)
    n, seed = check_whole("n", n), check_whole("seed", seed, 0)
    words, listed = words_for(tokenizer)
    counts = left(words), left(listed)
    if counts[0] == 0:
        raise GimkitError(f"task {name!r}: no usable prompt pair for this tokenizer, for of the task's {counts[1]:,} "
                          "pairs of answers none is of single tokens; make your own with gimkit.tasks.pairs")
    rng, rows, pairs, dropped, seen = Random(seed), [], [], Counter(), set()
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
    told = [f"{reason} ({count} prompts)" for reason, count in dropped.items()]
    if not pairs:
        raise GimkitError(
            f"task {name!r}: no usable prompt pair for this tokenizer, for example because {told[0]}; "
            "make your own with gimkit.tasks.pairs")
    if len(pairs) < n:
        told.append(f"only {len(pairs)} of {n} different prompt pairs were found")
    return stack(name, rows, pairs, told, pad_id(tokenizer), counts)


def check_choice(argument: str, value, options) -> None:
    if value not in options:
        raise GimkitError(f"{argument}={value!r}: use one of {', '.join(map(repr, options))}")
