"""Longer texts with a Yes or No answer, from public data sets, for token attribution."""

from collections import Counter
from dataclasses import dataclass
from random import Random

import torch
from tqdm.auto import tqdm

from gimkit.errors import GimkitError, check_flag, check_whole
from gimkit.interventions.token_scores import last_values
from gimkit.model.architecture import limits, unembedding_of
from gimkit.model.tokenizer import answer_id, text_ids, text_of
from gimkit.remote.trace import in_trace
from gimkit.results import Result
from gimkit.tasks.encode import tokenizer_of
from gimkit.tasks.text_sets import TEXT_SETS, Table

LONGEST = 1024


@dataclass(frozen=True, eq=False)
class Texts(Result):
    """Prompts for `gimkit.attribute` and `gimkit.tokens.token_faithfulness`.

    >>> len(Texts("own", (task.clean[0],), (task.good[0][0],), (task[0].clean,)))
    1

    prompts: token ids [seq] each. targets: the id of the token Yes or No. texts: the prompts to read.
    dropped: what was left out on the way, and why.
    """

    name: str
    prompts: tuple[torch.Tensor, ...]
    targets: tuple[int, ...]
    texts: tuple[str, ...]
    dropped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)


def load_texts(name: str, model, n: int = 100, seed: int = 0, data=None, *, true_positives: bool = True,
               remote: bool | str = False) -> Texts:
    """Examples of BoolQ, FEVER, Movies, SciFact, HateXplain or Twitter, as prompts that end where the answer comes.

    >>> gimkit.tasks.load_texts("boolq", model, n=8)           # a bundled model knows some 500 words only
    Traceback (most recent call last):
    gimkit.errors.GimkitError: ...

    With an instruction model, `datasets` and the network: `texts = load_texts("boolq", model, n=8)`, then
    `scores = [gimkit.attribute(model, *both) for both in zip(texts.prompts, texts.targets)]` and
    `gimkit.tokens.token_faithfulness(model, texts.prompts, scores, texts.targets)`.

    name: "boolq", "fever", "movies", "scifact", "hatexplain" or "twitter".
    model: an nnsight model with a tokenizer. With a chat template the prompt is one user message, and the answer
        follows where the assistant speaks; without one the prompt is plain text that ends in "Answer:".
    n, seed: how many examples, drawn at random; fewer where no more fit (`dropped` says so).
    data: rows (dicts) with the data set's columns, instead of the hub's; for "scifact" two such tables, claims and
        corpus.
    true_positives: keep an example only if its label is Yes and the model's logit of Yes is above that of No.
    remote: let the model answer on NDIF.
    Raises GimkitError for an unknown name, a missing column or unknown label, `datasets` not installed, a hub that
    cannot be read, Yes or No that are not one token, no usable example.
    Source: protocol of arXiv 2505.17630's evaluation code: Yes and No as options, true positives, prompts of at most
    1024 tokens (and of the model's context). Different here: instructions are the kit's own, and stand in the user's
    message in all models (Gemma has no other place); no examples in HateXplain's prompt; BoolQ is the original
    validation split with short passages, and FEVER gives the gold sentences (the paper: ERASER's test splits, with a
    whole document each); texts stay as they are (the paper takes spaces before punctuation out); FEVER, HateXplain and
    Twitter are drawn by seed from all rows (the paper: 300 that all its models get right).
    Hub ids, columns, labels and the folders of the hub's parquet export (Movies, SciFact, HateXplain) were read from
    the data sets' cards and from public code that loads them. Whether they load today was not tried, nor any hub
    model: the tests use rows of the same schema.
    """
    if name not in TEXT_SETS:
        raise GimkitError(f"unknown data set {name!r}; use {', '.join(TEXT_SETS)}")
    n, seed = check_whole("n", n), check_whole("seed", seed, 0)
    true_positives = check_flag("true_positives", true_positives)
    tokenizer, text_set = tokenizer_of(model), TEXT_SETS[name]
    ending = prompt_of(tokenizer, text_set.ask("...", "..."))
    yes, no = (answer_id(tokenizer, ending, word) for word in ("Yes", "No"))  # all prompts end in the same way
    tables = [data] if data is not None and len(text_set.tables) == 1 else data
    if data is None:
        tables = [fetch(table) for table in text_set.tables]
    elif len(tables) != len(text_set.tables):
        raise GimkitError(f"{name!r} is made of {len(text_set.tables)} tables, so data= takes as many, not {len(data)}")
    tables = [checked(name, table, rows) for table, rows in zip(text_set.tables, tables)]
    longest = min(LONGEST, limits(model)[1] or LONGEST)
    examples = list(dict.fromkeys(text_set.read(*tables)))
    Random(seed).shuffle(examples)
    kept, dropped = [], Counter()
    with tqdm(total=n, desc=name, delay=2, leave=False) as progress:
        for passage, question, label in examples:
            if label is None or true_positives and not label:
                dropped["labelled neither Yes nor No" if label is None else "labelled No"] += 1
                continue
            if not passage.strip():
                dropped["without a text"] += 1
                continue
            prompt = prompt_of(tokenizer, text_set.ask(passage, question))
            ids = torch.tensor(text_ids(tokenizer, prompt))
            if len(ids) > longest:
                dropped[f"of more than {longest} tokens"] += 1
            elif true_positives and not says_yes(model, ids, yes, no, remote):
                dropped["that the model does not answer with Yes"] += 1
            else:
                kept.append((ids, yes if label else no, text_of(tokenizer, prompt)))
                progress.update()
                if len(kept) == n:
                    break
    told = [f"{count} examples {reason}" for reason, count in dropped.items()]
    if not kept:
        raise GimkitError(f"data set {name!r}: no usable example for this model: {'; '.join(told) or 'it is empty'}")
    if len(kept) < n:
        told.append(f"only {len(kept)} of {n} examples were found")
    return Texts(name, *zip(*kept), tuple(told))


def prompt_of(tokenizer, asked: str) -> str | list[dict]:
    """The whole prompt: a message where the tokenizer has a chat template, else a text with a place for the answer."""
    if getattr(tokenizer, "chat_template", None) is None:
        return asked + "\n\nAnswer:"
    return [{"role": "user", "content": asked}]


def says_yes(model, ids: torch.Tensor, yes: int, no: int, remote: bool) -> bool:
    values, _ = in_trace(model, ids[None], last_values, unembedding_of(model), [yes, no], remote=remote,
                         gradients=False)
    return bool(values[0, 0] > 0)


def checked(name: str, table: Table, rows) -> list[dict]:
    """The rows as a list, when all have the columns that are needed."""
    rows = list(rows)
    for row in rows:
        if not isinstance(row, dict):
            raise GimkitError(f"data set {name!r}: a row is a dict of columns, not {type(row).__name__}")
        missing = [column for column in table.columns if column not in row]
        if missing:
            raise GimkitError(f"data set {name!r} ({table.hub}): no column {missing[0]!r} in a row with the columns "
                              f"{', '.join(row)}; it needs {', '.join(table.columns)}")
    return rows


def fetch(table: Table):
    """A table's rows from the hub."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise GimkitError(f"{table.hub} is read with the datasets library: install gimkit with its extra [data] "
                          "(pip install datasets), or give the rows as data=") from None
    try:
        if table.config is None:
            return load_dataset(table.hub, split=table.split)
        export = f"hf://datasets/{table.hub}@refs/convert/parquet/{table.config}/{table.split}/*.parquet"
        return load_dataset("parquet", data_files=export, split="train")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise GimkitError(f"cannot read {table.hub} from the Hugging Face hub ({reason}): check the network, or give "
                          "the rows as data=") from error
