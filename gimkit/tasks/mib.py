"""The tasks of MIB's circuit track, the Mechanistic Interpretability Benchmark."""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from gimkit.errors import GimkitError, check_known, check_whole
from gimkit.model.architecture import limits
from gimkit.tasks.encode import pad_id, stack, tokenizer_of
from gimkit.tasks.hub import rows_from_hub, rows_given
from gimkit.tasks.task import Pair, Task

Name = Literal["ioi", "mcqa", "arithmetic_addition", "arithmetic_subtraction", "arc_easy", "arc_challenge"]
Split = Literal["train", "validation", "test"]


class Row(NamedTuple):
    """A row of a data set as the benchmark reads it.

    Attributes:
        pair: prompts and answers; the answers exactly as they are tokenised, with or without a space before.
        equal: texts that must have equally many tokens.
        single: must answers be one token?
    """

    pair: Pair
    equal: tuple[str, ...]
    single: bool = False


def mib(name: Name, model: Any, *, split: Split = "train", n: int | None = 100,
        data: Iterable[dict] | str | Path | None = None) -> Task:
    """The first n usable rows of a task of MIB's circuit track.

    >>> row = {"prompt": "2+3=", "label": 5, "operator": "+", "random_counterfactual": {"prompt": "4+2=", "label": 6}}
    >>> gimkit.tasks.mib("arithmetic_addition", model, data=[row])     # a bundled model does not know digits
    Traceback (most recent call last):
    gimkit.errors.GimkitError: ...

    With a hub model, `datasets` and the network: `task = gimkit.tasks.mib("mcqa", model)`. `task.dropped` reports which
    rows were left out, and why.

    Args:
        name: "ioi", "mcqa", "arithmetic_addition", "arithmetic_subtraction", "arc_easy" or "arc_challenge".
        model: an nnsight model with a tokenizer, or a tokenizer.
        split: "train" for scores, "validation" or "test" for evaluation.
        n: rows; None for all.
        data: rows of the data set's schema, or the path of a .json or .jsonl file of them, instead of the hub.

    Returns:
        A `Task`. Each prompt has a start token in front: the tokenizer's, or where it has none its end token.

    Raises:
        GimkitError: an unknown name or split; no `datasets`, no network, a gated data set; a row without a column that
            the task needs; no usable row for this tokenizer.

    Source:
        MIB (arXiv 2504.13151) and its code: counterfactuals, filters and answers. The right answer of multiple choice
        is the letter without a space, the wrong one the counterfactual's own symbol. Rows are taken in order, without
        a filter for those that the model gets right. Differences: a pair whose prompts differ in length, or whose
        answers start with the same token, is dropped and reported (the benchmark patches position by position).
    """
    check_known("MIB task", name, get_args(Name))
    check_known("split", split, get_args(Split))
    most = None if n is None else check_whole("n", n)
    tokenizer = tokenizer_of(model)
    context = limits(model)[1] if tokenizer is not model else None
    hub, config, read = TASKS[name]
    given = rows_from_hub(hub, *([hub, config] if config else []), split=split) if data is None else rows_given(data)
    rows: list[tuple] = []
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    for number, raw in enumerate(given):
        try:
            row = read(raw)
        except (KeyError, TypeError, IndexError) as error:
            raise GimkitError(f"MIB task {name!r}, row {number}: {error} is missing or of another kind; rows have the "
                              f"columns of {hub}") from error
        found = row if isinstance(row, str) else _encoded(tokenizer, row, context)
        if isinstance(row, str) or isinstance(found, str):
            dropped[str(found)] += 1
            continue
        rows.append(found)
        pairs.append(row.pair)
        if len(rows) == most:
            break
    notes = [f"{count} rows {reason}" for reason, count in dropped.items()]
    if not rows:
        raise GimkitError(f"MIB task {name!r}: no usable row for this tokenizer: {'; '.join(notes) or 'no rows'}")
    if most is not None and len(rows) < most:
        notes.append(f"only {len(rows)} of {most} rows were found")
    return stack(f"mib-{name}", rows, pairs, notes, pad_id(tokenizer))


def _encoded(tokenizer: Any, row: Row, context: int | None) -> tuple | str:
    """(clean ids, corrupt ids, good ids, bad ids), or why the row cannot be used."""
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    clean, corrupt, good, bad = map(ids, row.pair)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    front = [] if start is None or clean[:1] == [start] else [start]
    unknown = [] if tokenizer.unk_token_id is None else [tokenizer.unk_token_id]
    if not (clean and corrupt and good and bad) or set(unknown) & {*clean, *corrupt, *good, *bad}:
        return "with words that the tokenizer does not know"
    if row.single and (len(good), len(bad)) != (1, 1):
        return "with an answer of several tokens"
    if len({len(ids(text)) for text in row.equal}) > 1:
        return "whose names or symbols have unequal numbers of tokens"
    if len(clean) != len(corrupt):
        return "whose clean and corrupt prompts have unequal numbers of tokens"
    if good[0] == bad[0]:
        return "whose right and wrong answers start with the same token"
    if context and len(front) + len(clean) > context:
        return f"of more than {context} tokens, the model's context"
    return front + clean, front + corrupt, good[:1], bad[:1]


def _ioi(row: dict) -> Row:
    names = tuple(f" {row['metadata'][key]}" for key in ("indirect_object", "subject", "random_c"))
    return Row(Pair(row["prompt"], row["s2_io_flip_counterfactual"]["prompt"], *names[:2]), names)


def _choice(row: dict) -> Row:
    other = row["symbol_counterfactual"]
    answers = tuple(str(one["choices"]["label"][one["answerKey"]]) for one in (row, other))
    return Row(Pair(row["prompt"], other["prompt"], *answers), answers)


def _arithmetic(operator: str, row: dict) -> Row | str:
    other = row["random_counterfactual"]
    if other is None or other["prompt"] is None:
        return "without a counterfactual"
    if row["operator"] != operator:
        return f"with another operator than {operator}"
    answers = str(row["label"]), str(other["label"])
    return Row(Pair(row["prompt"], other["prompt"], *answers), (), single=True)


# (place on the hub, configuration, how a row is read)
TASKS: dict[str, tuple[str, str | None, Callable[[dict], Row | str]]] = {
    "ioi": ("mib-bench/ioi", None, _ioi),
    "mcqa": ("mib-bench/copycolors_mcqa", "4_answer_choices", _choice),
    "arithmetic_addition": ("mib-bench/arithmetic_addition", None, partial(_arithmetic, "+")),
    "arithmetic_subtraction": ("mib-bench/arithmetic_subtraction", None, partial(_arithmetic, "-")),
    "arc_easy": ("mib-bench/arc_easy", None, _choice),
    "arc_challenge": ("mib-bench/arc_challenge", None, _choice),
}
