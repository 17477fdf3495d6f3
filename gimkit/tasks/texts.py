"""Longer texts with a Yes or No answer, from public data sets, for token attribution."""

from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from nnsight.intervention.envoy import Envoy
from tqdm.auto import tqdm

from gimkit.errors import GimkitError, check_flag, check_known, check_whole
from gimkit.interventions.token_scores import last_values
from gimkit.model.architecture import limits, unembedding_of
from gimkit.model.tokenizer import answer_id, text_ids, text_of
from gimkit.remote.trace import in_trace
from gimkit.results import Result
from gimkit.tasks.encode import tokenizer_of
from gimkit.tasks.hub import rows_from_hub
from gimkit.tasks.text_sets import TEXT_SETS, Name, Table

LONGEST = 1024


@dataclass(frozen=True, eq=False)
class Texts(Result):
    """Prompts for `gimkit.attribute` and `gimkit.tokens.token_faithfulness`.

    >>> len(Texts("own", (task.clean[0],), (task.good[0][0],), (task[0].clean,)))
    1
    """

    name: str
    prompts: tuple[torch.Tensor, ...]  # token ids [seq] each
    targets: tuple[int, ...]  # of each prompt the id of the token Yes or No
    texts: tuple[str, ...]  # the prompts as people read them
    dropped: tuple[str, ...] = ()  # which examples could not be used, and why

    def __len__(self) -> int:
        return len(self.prompts)


def load_texts(name: Name, model: Envoy, n: int = 100, seed: int = 0, data: Any = None, *, true_positives: bool = True,
               remote: bool | str = False) -> Texts:
    """Examples of BoolQ, FEVER, Movies, SciFact, HateXplain or Twitter, as prompts that end where the answer starts.

    >>> gimkit.tasks.load_texts("boolq", model, n=8)           # a bundled model knows some 500 words only
    Traceback (most recent call last):
    gimkit.errors.GimkitError: ...

    With an instruction model, `datasets` and the network: `texts = load_texts("boolq", model, n=8)`, then
    `scores = [gimkit.attribute(model, *both) for both in zip(texts.prompts, texts.targets)]` and
    `gimkit.tokens.token_faithfulness(model, texts.prompts, scores, texts.targets)`.

    Args:
        name: "boolq", "fever", "movies", "scifact", "hatexplain" or "twitter".
        model: an nnsight model with a tokenizer. With a chat template the prompt is one user message, and the answer
            is the start of the assistant's reply; without one the prompt is plain text that ends in "Answer:".
        n: examples; fewer where no more can be used, and then `dropped` reports it.
        seed: of the random choice.
        data: rows (dicts) with the data set's columns, instead of those on the hub; for "scifact" two such tables,
            claims and corpus.
        true_positives: keep an example only if its label is Yes and the model's logit of Yes is above that of No.
        remote: as in `gimkit.attribute`.

    Returns:
        `Texts`.

    Raises:
        GimkitError: an unknown name, a missing column or an unknown label; `datasets` is not installed; the hub cannot
            be read; Yes or No are not one token; no example can be used.

    Source:
        the protocol of arXiv 2505.17630's evaluation code: Yes and No as options, true positives, prompts of at
        most 1024 tokens (and of the model's context). Differences: the instructions are the kit's own, and are in the
        user's message for all models (Gemma has no other place); HateXplain's prompt has no examples; BoolQ is the
        original validation split with short passages, and FEVER has the gold sentences (the paper: ERASER's test
        splits, each with a whole document); texts stay as they are (the paper removes spaces before punctuation);
        FEVER, HateXplain and Twitter are drawn by seed from all rows (the paper: 300 rows that all its models get
        right). Hub ids, columns, labels and the folders of the hub's parquet export (Movies, SciFact, HateXplain) are
        taken from the data sets' cards and from public code that loads them. Whether they load today was not tried,
        nor any model of the hub: the tests use rows of the same schema.
    """
    check_known("data set", name, TEXT_SETS)
    n, seed = check_whole("n", n), check_whole("seed", seed, 0)
    true_positives = check_flag("true_positives", true_positives)
    tokenizer, text_set = tokenizer_of(model), TEXT_SETS[name]
    ending = _prompt(tokenizer, text_set.ask("...", "..."))
    yes, no = (answer_id(tokenizer, ending, word) for word in ("Yes", "No"))  # all prompts end in the same way
    tables = [data] if data is not None and len(text_set.tables) == 1 else data
    if data is None:
        tables = [_from_hub(table) for table in text_set.tables]
    elif len(tables) != len(text_set.tables):
        raise GimkitError(f"{name!r} is made of {len(text_set.tables)} tables, so data= takes as many, not {len(data)}")
    tables = [_checked(name, table, rows) for table, rows in zip(text_set.tables, tables)]
    longest = min(LONGEST, limits(model)[1] or LONGEST)
    examples = list(dict.fromkeys(text_set.read(*tables)))
    Random(seed).shuffle(examples)
    kept: list[tuple] = []
    dropped: Counter = Counter()
    with tqdm(total=n, desc=name, delay=2, leave=False) as progress:
        for passage, question, label in examples:
            if label is None or true_positives and not label:
                dropped["labelled neither Yes nor No" if label is None else "labelled No"] += 1
                continue
            if not passage.strip():
                dropped["without a text"] += 1
                continue
            prompt = _prompt(tokenizer, text_set.ask(passage, question))
            ids = torch.tensor(text_ids(tokenizer, prompt))
            if len(ids) > longest:
                dropped[f"of more than {longest} tokens"] += 1
            elif true_positives and not _answers_yes(model, ids, yes, no, remote):
                dropped["that the model does not answer with Yes"] += 1
            else:
                kept.append((ids, yes if label else no, text_of(tokenizer, prompt)))
                progress.update()
                if len(kept) == n:
                    break
    notes = [f"{count} examples {reason}" for reason, count in dropped.items()]
    if not kept:
        raise GimkitError(f"data set {name!r}: no usable example for this model: {'; '.join(notes) or 'it is empty'}")
    if len(kept) < n:
        notes.append(f"only {len(kept)} of {n} examples were found")
    prompts, targets, passages = zip(*kept)
    return Texts(name, prompts, targets, passages, tuple(notes))


def _prompt(tokenizer: Any, question: str) -> str | list[dict]:
    """The whole prompt: a message where the tokenizer has a chat template, else a text that ends in "Answer:"."""
    if getattr(tokenizer, "chat_template", None) is None:
        return question + "\n\nAnswer:"
    return [{"role": "user", "content": question}]


def _answers_yes(model: Envoy, ids: torch.Tensor, yes: int, no: int, remote: bool | str) -> bool:
    """Whether the model's logit of Yes is above that of No after a prompt [seq]."""
    values, _ = in_trace(model, ids[None], last_values, unembedding_of(model), [yes, no], remote=remote,
                         gradients=False)
    return bool(values[0, 0] > 0)


def _checked(name: str, table: Table, rows: Any) -> list[dict]:
    """The rows as a list; GimkitError where one lacks a column."""
    rows = list(rows)
    for row in rows:
        if not isinstance(row, dict):
            raise GimkitError(f"data set {name!r}: a row is a dict of columns, not {type(row).__name__}")
        missing = [column for column in table.columns if column not in row]
        if missing:
            raise GimkitError(f"data set {name!r} ({table.hub}): no column {missing[0]!r} in a row with the columns "
                              f"{', '.join(row)}; it needs {', '.join(table.columns)}")
    return rows


def _from_hub(table: Table) -> Any:
    """A table's rows from the hub."""
    if table.config is None:
        return rows_from_hub(table.hub, split=table.split)
    export = f"hf://datasets/{table.hub}@refs/convert/parquet/{table.config}/{table.split}/*.parquet"
    return rows_from_hub(table.hub, "parquet", data_files=export, split="train")
