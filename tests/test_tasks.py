"""The tasks keep what they promise, for the word-level tokenizer and for a byte-level BPE one."""

import re
from random import Random

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.training import corpus
from benchmarks.training.train import build_tokenizer
from gimkit import tasks
from gimkit.errors import GimkitError
from gimkit.tasks.names import CLAUSES, OPENINGS
from gimkit.tasks.words import NAMES, held_out_names

ALL = (tasks.ioi, tasks.ioi_twice, tasks.odd_one_out, tasks.greater_than, tasks.agreement, tasks.pronoun,
       tasks.capital, tasks.hypernymy, tasks.induction)


@pytest.fixture(scope="module")
def words():
    return build_tokenizer(corpus.vocabulary())


@pytest.fixture(scope="module")
def bpe():
    """A GPT-2-like tokenizer without a start token, in which Elizabeth and Barbara are not single tokens."""
    rng, texts = Random(0), []
    for _ in range(6000):
        document = corpus.draw(rng)
        texts.append(re.sub("Elizabeth|Barbara", "Mary", f"{document.prompt} {document.answer}{document.rest}"))
    texts += [f"in {century}{year:02d}" for century in range(11, 18) for year in range(100)] * 5
    inner = ByteLevelBPETokenizer()
    two_digits = pre_tokenizers.Split(Regex(r" ?\d\d"), "isolated")
    inner._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([two_digits, inner._tokenizer.pre_tokenizer])
    inner.train_from_iterator(texts, vocab_size=1500, special_tokens=["<|endoftext|>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, eos_token="<|endoftext|>")


def named(text):
    return [word for word in re.findall(r"\w+", text) if word in NAMES]


@pytest.mark.parametrize("make", ALL)
def test_rows_match_their_texts(words, make):
    task = make(words, n=16, seed=3)
    assert len(task) == 16 and task.clean.shape == task.corrupt.shape == task.mask.shape and not task.dropped
    for i, pair in enumerate(task.pairs):
        length = int(task.mask[i].sum())
        assert task.clean[i, :length].tolist() == words(pair.clean)["input_ids"]
        assert task.corrupt[i, :length].tolist() == words(pair.corrupt)["input_ids"]
        assert task.last[i] == length - 1 and (task.clean[i, length:] == words.pad_token_id).all()
        assert task.clean[i, 0] == words.bos_token_id and words.unk_token_id not in task.clean[i]
        assert not set(task.good[i]) & set(task.bad[i])
        assert words.convert_tokens_to_ids(pair.answer) in task.good[i]
        assert words.convert_tokens_to_ids(pair.wrong) in task.bad[i]
    again, other = make(words, n=16, seed=3), make(words, n=16, seed=4)
    assert again.pairs == task.pairs and torch.equal(again.clean, task.clean) and other.pairs != task.pairs


def test_slices_and_items(words):
    task = tasks.ioi(words, n=6)
    assert task[2] is task.pairs[2] and task[2:5].pairs == task.pairs[2:5]
    assert torch.equal(task[2:5].last, task.last[2:5]) and task[2:5].good == task.good[2:5]


@pytest.mark.parametrize("make", [tasks.ioi, tasks.ioi_twice])
def test_ioi_answers_are_right(words, make):
    task = make(words, n=64)
    for row, pair in zip(zip(task.clean, task.corrupt), task.pairs):
        counts = {name: named(pair.clean).count(name) for name in named(pair.clean)}
        assert min(counts, key=counts.get) == pair.answer and max(counts, key=counts.get) == pair.wrong
        flipped = {name: named(pair.corrupt).count(name) for name in named(pair.corrupt)}
        assert max(flipped, key=flipped.get) == pair.answer
        assert (row[0] != row[1]).sum() == 1


def test_ioi_orders_and_counterfactuals(words):
    for order, first in (("ABBA", "answer"), ("BABA", "wrong")):
        task = tasks.ioi(words, n=32, order=order)
        assert all(named(pair.clean)[0] == getattr(pair, first) for pair in task.pairs)
    third = tasks.ioi(words, n=32, corrupt="third")
    assert all(len(set(named(pair.corrupt))) == 3 for pair in third.pairs)
    assert len(OPENINGS["trained"]) >= 15 and len(CLAUSES["trained"]) >= 15


def test_held_out_names_and_templates(words):
    assert 0.05 < sum(held_out_names(a, b) for a in NAMES for b in NAMES if a < b) / 3160 < 0.2
    for make in (tasks.ioi, tasks.ioi_twice, tasks.odd_one_out):
        held = make(words, n=32, names="held-out")
        assert all(held_out_names(pair.answer, pair.wrong) for pair in held.pairs)
        assert not any(held_out_names(p.answer, p.wrong) for p in make(words, n=32, names="trained").pairs)
    rng = Random(5)
    for _ in range(2000):
        document = corpus.draw(rng)
        if document.kind in corpus.ABOUT_NAMES:
            people = set(named(document.prompt))
            assert not any(held_out_names(a, b) for a in people for b in people if a < b), document
        for template in OPENINGS["held-out"] + CLAUSES["held-out"]:
            shape = re.sub(r"\{[ABS]\}", f"({'|'.join(NAMES)})", template)
            shape = re.sub(r"\{\w+\}", r"\\w+", shape)
            assert not re.search(rf"\b{shape}", document.prompt), (template, document)


def test_odd_one_out_place_tells_nothing(words):
    task, places = tasks.odd_one_out(words, n=300), []
    for pair in task.pairs:
        people = named(pair.clean)
        assert sorted(people.count(name) for name in set(people)) == [1, 2, 2] and people.count(pair.answer) == 1
        flipped = named(pair.corrupt)
        assert flipped.count(pair.wrong) == 1 and flipped.count(pair.answer) == 2
        places.append(people.index(pair.answer))
    assert min(places.count(place) for place in range(5)) > 30


def test_greater_than_years(words):
    task = tasks.greater_than(words, n=8)
    for pair, good, bad in zip(task.pairs, task.good, task.bad):
        year = int(re.search(r"\d\d(\d\d)", pair.clean)[1])
        assert sorted(words.convert_ids_to_tokens(good)) == [f"{y:02d}" for y in range(year + 1, 100)]
        assert sorted(words.convert_ids_to_tokens(bad)) == [f"{y:02d}" for y in range(year + 1)]


@pytest.mark.parametrize("times", [2, 3])
def test_induction(words, times):
    for pair in tasks.induction(words, n=20, times=times).pairs:
        row = pair.clean.split()
        length = row[1:].index(row[0]) + 1
        assert times - 1 < len(row) / length < times and (row[:length] * times)[len(row)] == pair.answer


@pytest.mark.parametrize("make", ALL)
def test_bpe_tokenizer(bpe, make):
    task, glue = make(bpe, n=8), "" if make is tasks.greater_than else " "
    for i, pair in enumerate(task.pairs):
        assert bpe.decode(task.clean[i][task.mask[i]]) == pair.clean
        assert glue + pair.answer in [bpe.decode([token]) for token in task.good[i]]


def test_bpe_says_what_it_dropped(bpe):
    task = tasks.ioi(bpe, n=256)
    assert any(re.match(r"'(Elizabeth|Barbara)' is not one token but \d", told) for told in task.dropped)
    assert not any(name in pair[2:] for pair in task.pairs for name in ("Elizabeth", "Barbara"))


def test_no_usable_pair():
    letters = ByteLevelBPETokenizer()
    letters.train_from_iterator(["a b c"], vocab_size=257, show_progress=False)
    with pytest.raises(GimkitError, match="no usable prompt pair.*not one token but .*gimkit.tasks.pairs"):
        tasks.ioi(PreTrainedTokenizerFast(tokenizer_object=letters._tokenizer), n=4)
    with pytest.raises(GimkitError, match="greater_than.*not one token"):
        tasks.greater_than(PreTrainedTokenizerFast(tokenizer_object=letters._tokenizer), n=4)


def test_own_pairs_from_strings(words):
    clean, corrupt = ["The doors near the car", "The boy"], ["The door near the car", "The boys"]
    task = tasks.pairs(clean=clean, corrupt=corrupt, answers=[("are", "is"), (["is", "was"], ["are"])], model=words)
    ids = words.convert_tokens_to_ids
    assert task.good == ((ids("are"),), (ids("is"), ids("was"))) and task.bad == ((ids("is"),), (ids("are"),))
    assert task.last.tolist() == [5, 2] and task[1].answer == "is"


def test_own_pairs_from_ids():
    clean, corrupt = torch.tensor([[1, 5, 6], [1, 7, 0]]), torch.tensor([[1, 8, 6], [1, 9, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    task = tasks.pairs(clean=clean, corrupt=corrupt, answers=torch.tensor([[2, 3], [4, 5]]), mask=mask)
    assert task.good == ((2,), (4,)) and task.bad == ((3,), (5,)) and task.last.tolist() == [2, 1]
    sets = tasks.pairs(clean=clean, corrupt=corrupt, answers=[({2, 3}, [4]), ((5,), 6)], mask=mask)
    assert sets.good == ((2, 3), (5,)) and sets.bad == ((4,), (6,))


@pytest.mark.parametrize("change, message", [
    ({"clean": [""]}, "the prompt is empty"),
    ({"clean": "The doors"}, "put the single prompt in a list"),
    ({"clean": []}, "no prompt pairs"),
    ({"clean": ["The doors", "The door"]}, "2 clean prompts, 1 corrupt"),
    ({"corrupt": ["The door near"]}, "clean has 3 tokens and corrupt 4"),
    ({"answers": [("are they", "is")]}, "'are they' is not one token but 2: 'are', "),
    ({"answers": [("zzz", "is")]}, "'zzz' is not in the tokenizer's vocabulary"),
    ({"answers": ["are"]}, r"n times \(good, bad\)"),
    ({"answers": [([], "is")]}, "an answer is empty"),
    ({"model": None}, "need model="),
    ({"model": object()}, "carries no tokenizer"),
    ({"mask": torch.ones(1, 3)}, "mask goes with token ids"),
])
def test_bad_strings(words, change, message):
    good = {"clean": ["The doors"], "corrupt": ["The door"], "answers": [("are", "is")], "model": words}
    with pytest.raises(GimkitError, match=message):
        tasks.pairs(**good | change)


@pytest.mark.parametrize("change, message", [
    ({"corrupt": torch.tensor([[1, 2, 3]])}, "equal lengths"),
    ({"clean": torch.tensor([[1.0, 2.0]])}, "whole numbers"),
    ({"clean": [[1, 2], [3]], "corrupt": [[1, 2], [3]], "answers": [[1, 2], [1, 2]]}, "rectangle"),
    ({"mask": torch.tensor([[0, 0]])}, "row 0 of mask"),
    ({"mask": torch.tensor([[0, 1]])}, "padding is on the right"),
    ({"mask": torch.tensor([[1]])}, r"mask is \[1, 1\]"),
    ({"answers": [("are", "is")]}, "answers as token ids"),
])
def test_bad_ids(change, message):
    good = {"clean": torch.tensor([[1, 2]]), "corrupt": torch.tensor([[1, 3]]), "answers": torch.tensor([[4, 5]])}
    with pytest.raises(GimkitError, match=message):
        tasks.pairs(**good | change)


@pytest.mark.parametrize("call, message", [
    (lambda t: tasks.ioi(t, corrupt="x"), "use one of 's2', 'third'"),
    (lambda t: tasks.ioi(t, order="AB"), "'ABBA'"),
    (lambda t: tasks.ioi(t, names="new"), "'held-out'"),
    (lambda t: tasks.odd_one_out(t, people=9), "people=9"),
    (lambda t: tasks.induction(t, times=1), "times=1"),
    (lambda t: tasks.ioi(t, n=0), "at least one"),
])
def test_bad_arguments(words, call, message):
    with pytest.raises(GimkitError, match=message):
        call(words)
