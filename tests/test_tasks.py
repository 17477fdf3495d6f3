"""The tasks keep what they promise, for the word-level tokenizer and for a byte-level BPE one."""

import hashlib
import re
import warnings
from dataclasses import replace
from random import Random

import numpy
import pandas
import pytest
import torch
from made_up import random_task
from nnsight import NNsight
from small_tokenizers import bytes_and_merges
from tiny import build
from tokenizers import ByteLevelBPETokenizer, Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import gimkit
from benchmarks import cards
from benchmarks.training import corpus
from benchmarks.training.train import build_tokenizer
from gimkit import tasks
from gimkit.errors import GimkitError
from gimkit.tasks.encode import words_for
from gimkit.tasks.natural import NATURAL
from gimkit.tasks.words import BUNDLED, CLAUSES, NAMES, OPENINGS, held_out_names

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


def byte_level(texts, digits, size=4000):
    """A byte-level BPE tokenizer that splits numbers into so many digits, from the left."""
    inner = ByteLevelBPETokenizer()
    numbers = pre_tokenizers.Split(Regex(rf"\d{{1,{digits}}}"), "isolated")
    inner._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([numbers, inner._tokenizer.pre_tokenizer])
    inner.train_from_iterator(texts, vocab_size=size, special_tokens=["<|endoftext|>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, eos_token="<|endoftext|>")


@pytest.fixture(scope="module", params=[1, 2, 3])
def real(request):
    """A tokenizer of natural words, for it one, two or three digits to a token, with that number."""
    words = [*NATURAL.names, *NATURAL.row, *NATURAL.kinds, *sum(NATURAL.kinds.values(), ()), *NATURAL.nouns,
             *NATURAL.nouns.values(), *NATURAL.capitals, *NATURAL.capitals.values(), "she he is are was were has have"]
    random, numbers = Random(0), [f"{number:0{request.param}d}" for number in range(10**request.param)]
    texts = [f"the {' '.join(random.sample(words, 40))} {' '.join(numbers)}" for _ in range(400)]
    return byte_level(texts, request.param), request.param


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


def test_the_bundled_models_keep_their_prompts(words):
    """The numbers in this repository were measured on these."""
    digest = hashlib.sha256()
    for seed in (0, 1):
        for make in ALL:
            digest.update(repr(make(words, n=32, seed=seed).pairs).encode())
        for make in (tasks.ioi, tasks.ioi_twice, tasks.odd_one_out):
            for which in ("trained", "held-out"):
                digest.update(repr(make(words, n=32, seed=seed, templates=which, names=which).pairs).encode())
    assert digest.hexdigest() == "39c69d9d36cfc5d10e44ab84abbe3dd77d9ecc9a82087f9ea2d8dbb424e1ba87"
    assert words_for(words) == (BUNDLED, BUNDLED)


@pytest.mark.parametrize("make", ALL)
def test_real_tokenizers_get_natural_prompts(real, make):
    tokenizer, _ = real
    task = make(tokenizer, n=32, seed=1)
    assert len(task) == 32 and task.pairs == make(tokenizer, n=32, seed=1).pairs and not task.dropped
    left, listed = task.answer_pairs
    assert 0.02 * listed < left <= listed
    for i, pair in enumerate(task.pairs):
        clean = task.clean[i][task.mask[i]].tolist()
        assert clean == tokenizer(pair.clean)["input_ids"] and tokenizer.decode(clean) == pair.clean
        glue = "" if make is tasks.greater_than else " "
        for word, ids in ((pair.answer, task.good[i]), (pair.wrong, task.bad[i])):
            assert glue + word in [tokenizer.decode([token]) for token in ids]


def test_natural_prompts_are_sound():
    """A sentence gives its first token to the model, so none begins with what matters; 'a' fits every object."""
    for sentences in (*NATURAL.openings.values(), NATURAL.ask_pronoun, NATURAL.ask_capital, NATURAL.ask_kind,
                      NATURAL.ask_verb, NATURAL.ask_year, (NATURAL.before_deeds, NATURAL.before_row)):
        assert not any(sentence.startswith("{") for sentence in sentences) and all(sentences)
    objects = {word for group in NATURAL.places.values() for word in group}
    assert not any(word[0] in "aeiou" for word in objects) and len(objects) > 40
    assert not set(NATURAL.women) & set(NATURAL.men) and len(NATURAL.names) == len(set(NATURAL.names)) > 200
    members = [word for group in NATURAL.kinds.values() for word in group]
    assert len(members) == len(set(members))


def test_words_are_chosen_by_the_tokenizer():
    """Of names that split none is drawn, and the task says how many pairs of names are left."""
    known = [*NATURAL.names[:20], "is"]
    tokenizer = byte_level([f"the {name} the {name}" for name in known] * 50, digits=1, size=600)
    task = tasks.ioi(tokenizer, n=64)
    assert {name for pair in task.pairs for name in pair[2:]} == set(known[:20])
    assert task.answer_pairs == (20 * 19, len(NATURAL.names) * (len(NATURAL.names) - 1))
    assert task[:3].answer_pairs == task.answer_pairs
    with pytest.raises(GimkitError, match="'capital': no usable prompt pair .* pairs of answers are single tok"):
        tasks.capital(tokenizer, n=4)


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


def test_greater_than_follows_the_digits(real):
    """What each token may lead to, told from the digits alone: a later year, or this one and those before."""
    tokenizer, digits = real
    task = tasks.greater_than(tokenizer, n=48)
    assert task.answer_pairs[0] == {1: 8 * 9, 2: 8 * 97, 3: 8 * 88}[digits]
    for pair, good, bad in zip(task.pairs, task.good, task.bad):
        year, end = re.findall(r"\d+", pair.clean)
        assert len(year) == 4 and year.startswith(end) and len(end) == {1: 2, 2: 2, 3: 3}[digits]
        assert re.findall(r"\d+", pair.corrupt) == [year[:2] + "01", end]
        width = {1: 1, 2: 2, 3: 1}[digits]
        tokens = [f"{number:0{width}d}" for number in range(10**width)]
        later = [token for token in tokens if (end + token).ljust(4, "0") > year]  # all of its years are
        assert sorted(map(tokenizer.decode, good)) == later
        assert sorted(map(tokenizer.decode, bad)) == [token for token in tokens if (end + token).ljust(4, "9") <= year]
        assert len(good) + len(bad) == len(tokens) and pair.answer == later[0]


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


def test_bpe_leaves_out_what_is_not_one_token(bpe):
    names = {name for pair in tasks.ioi(bpe, n=256).pairs for name in pair[2:]}
    assert "Mary" in names and not names & {"Elizabeth", "Barbara"}


def test_no_usable_pair():
    letters = ByteLevelBPETokenizer()
    letters.train_from_iterator(["a b c"], vocab_size=257, show_progress=False)
    with pytest.raises(GimkitError, match="no usable prompt pair .*gimkit.tasks.pairs"):
        tasks.ioi(PreTrainedTokenizerFast(tokenizer_object=letters._tokenizer), n=4)
    numbers = ByteLevelBPETokenizer()  # a token for each year
    numbers.train_from_iterator([f"in {year}" for year in range(1000, 2000)] * 3, show_progress=False)
    with pytest.raises(GimkitError, match="greater_than.*none of the task.*are single tokens"):
        tasks.greater_than(PreTrainedTokenizerFast(tokenizer_object=numbers._tokenizer), n=4)


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
    ({"answers": [("are the", ["is", "was"])]}, "one good and one bad answer for each pair, not sets"),
    ({"answers": [("are", "are")]}, "same answer .* as right and as wrong"),
    ({"answers": [(None, "is")]}, "an answer is a text, an id, or a list of ids.*not None"),
    ({"answers": [("zzz", "is")]}, "'zzz' is not in the tokenizer's vocabulary"),
    ({"answers": ["are"]}, r"n times \(good, bad\)"),
    ({"answers": [([], "is")]}, "an answer is empty"),
    ({"model": None}, "need model="),
    ({"model": object()}, "has no tokenizer"),
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
    (lambda t: tasks.ioi(t, corrupt="x"), "unknown corrupt 'x'; use s2, third"),
    (lambda t: tasks.ioi(t, order="AB"), "unknown order 'AB'; use both, ABBA, BABA"),
    (lambda t: tasks.ioi(t, names="new"), "unknown names 'new'; use all, trained, held-out"),
    (lambda t: tasks.odd_one_out(t, people=9), "unknown people 9; use 2, 3, 4"),
    (lambda t: tasks.induction(t, times=1), "unknown times 1; use 2, 3"),
    (lambda t: tasks.ioi(t, n=0), "n must be a whole number of at least 1"),
])
def test_bad_arguments(words, call, message):
    with pytest.raises(GimkitError, match=message):
        call(words)


# --- answers as they are given ---


def test_own_answers_keep_their_own_spaces():
    """" A" and "A" are different tokens; both were the spaced one once."""
    words = bytes_and_merges()

    def ids(prompt, *answers, **options):
        task = tasks.pairs(clean=[prompt], corrupt=[prompt.replace("Yes", "No")], answers=[answers], model=words,
                           **options)
        return words.convert_ids_to_tokens([task.good[0][0], task.bad[0][0]])

    assert ids("Yes is it", "Yes", "No") == ids("Yes is it", " Yes", " No") == ["ĠYes", "ĠNo"]
    assert ids("Yes is it:", "Yes", "No", glue="") == ["Yes", "No"]
    assert ids("Yes is it\n", "Yes", "No") == ids("Yes is it ", "Yes", "No") == ["Yes", "No"]
    assert ids("Yes is it", "\n", "No") == ["Ċ", "ĠNo"]
    chat = [[{"role": "user", "content": word}] for word in ("Yes", "No")]
    task = tasks.pairs(clean=chat[:1], corrupt=chat[1:], answers=[("Yes", "No")], model=words)
    assert words.convert_ids_to_tokens([task.good[0][0], task.bad[0][0]]) == ["Yes", "No"]
    assert words.decode(task.clean[0]) == task[0].clean and task.clean[0].tolist().count(words.bos_token_id) == 1


def test_own_answers_of_several_tokens():
    words = bytes_and_merges()
    prompts = dict(clean=["Yes is it"] * 2, corrupt=["No is it"] * 2, model=words)
    task = tasks.pairs(answers=[("New York", "Yes"), ("No", "New Yes")], **prompts)
    spelled = [[words.convert_ids_to_tokens(ids) for ids in side] for side in (task.good, task.bad)]
    assert task.sequences and spelled == [[["ĠNew", "ĠYork"], ["ĠNo"]], [["ĠYes"], ["ĠNew", "ĠYes"]]]
    assert task[0].answer == "New York" and task[1:].sequences and task == tasks.pairs(
        answers=[("New York", "Yes"), ("No", "New Yes")], **prompts)
    ids = tasks.pairs(clean=[[1, 5]], corrupt=[[1, 6]], answers=[([[2, 3]], torch.tensor([4]))])
    assert ids.sequences and (ids.good, ids.bad) == (((2, 3),), ((4,),))
    with pytest.raises(GimkitError, match="row 1: a task with answers of several tokens has one good and one bad"):
        tasks.pairs(answers=[("New York", "Yes"), (["No", "Yes"], "New")], **prompts)
    with pytest.raises(GimkitError, match="row 0, has the same answer .* as right and as wrong"):
        tasks.pairs(answers=[("New York", "New York"), ("No", "Yes")], **prompts)


def test_own_pairs_from_what_a_tokenizer_returns():
    words = bytes_and_merges()
    clean, corrupt = (words([first, "The cat said Yes"], padding=True, return_tensors="pt") for first in ("Yes", "No"))
    task = tasks.pairs(clean=clean, corrupt=corrupt, answers=numpy.array([[7, 8], [9, 10]]))
    assert torch.equal(task.clean, clean["input_ids"]) and torch.equal(task.mask, clean["attention_mask"].bool())


# --- what no model can take ---


def everything(model, task):
    """Every function that takes a task."""
    edges = gimkit.score_edges(model, random_task(2), "random")
    yield from (
        lambda: gimkit.score_nodes(model, task), lambda: gimkit.score_nodes(model, task, "exact"),
        lambda: gimkit.score_nodes(model, task, backend="forward"), lambda: gimkit.score_edges(model, task),
        lambda: gimkit.score_edges(model, task, "exact"), lambda: gimkit.circuits.score_neurons(model, task),
        lambda: gimkit.score_edges(model, task, nodes=["m0", "logits"]),
        lambda: gimkit.run(model, task, edges.top(9)),
        lambda: gimkit.faithfulness(model, task, edges, absolute=True),
        lambda: gimkit.circuits.head_roles(model, task), lambda: gimkit.circuits.shapley_nodes(model, task),
        lambda: gimkit.selfrepair.head_repair(model, task), lambda: gimkit.self_repair(model, task))


@pytest.mark.parametrize("change, message", [
    (lambda t: dict(clean=t.clean + 58), r"clean prompts, holds the token id \d+, but .* ids from 0 to 60"),
    (lambda t: dict(corrupt=t.corrupt.masked_fill(~t.mask, 61)), "corrupt prompts, holds the token id 61.*padding"),
    (lambda t: dict(clean=t.clean.masked_fill(~t.mask, -100)), "clean prompts, holds the token id -100"),
    (lambda t: dict(clean=t.clean.float()), "clean prompts, must be token ids, whole numbers"),
    (lambda t: dict(good=((61,), (6,))), "answers, holds the token id 61"),
    (lambda t: dict(good=((-1,), (6,))), "answers, holds the token id -1"),
    (lambda t: dict(good=((5.5,), (6,))), "answers, must be token ids, whole numbers"),
    (lambda t: dict(good=((5,), (16,))), "row 1, has the same answer 16 as right and as wrong"),
    (lambda t: dict(good=((5,), ())), "row 1, has no good answer"),
    (lambda t: dict(good=((5, 6), (7, 8)), bad=((5, 6), (7, 9)), sequences=True), r"has the same answer \(5, 6\)"),
    (lambda t: dict(zip(("clean", "corrupt", "mask"), (x.repeat(1, 9) for x in (t.clean, t.corrupt, t.mask | True)))),
     "row 0, has 72 tokens, but the model's context holds 64"),
])
def test_every_entry_point_refuses_the_same_tasks(change, message):
    model, task = NNsight(build("llama")), random_task(2)
    for act in everything(model, replace(task, **change(task))):
        with pytest.raises(GimkitError, match=message) as error:
            act()
        assert "\n" not in str(error.value)


def test_switches_are_switches_and_numbers_are_numbers(tmp_path):
    model, task = NNsight(build("llama")), random_task(2)
    edges, nodes, neurons = (score(model, task) for score in (gimkit.score_edges, gimkit.score_nodes,
                                                               gimkit.circuits.score_neurons))
    for act in (lambda: edges.top(3, absolute="signed"), lambda: edges.greedy(3, absolute="no"),
                lambda: nodes.top(3, absolute=1), lambda: neurons.top(3, absolute="False"),
                lambda: gimkit.faithfulness(model, task, edges, absolute="signed"),
                lambda: gimkit.circuits.auroc(edges, edges.top(9), absolute="no"),
                lambda: gimkit.circuits.precision_recall(edges, edges.top(9), absolute=None)):
        with pytest.raises(GimkitError, match="absolute must be True or False"):
            act()
    with pytest.raises(GimkitError, match="greedy must be True or False, not 'yes'"):
        gimkit.faithfulness(model, task, edges, absolute=True, greedy="yes")
    assert edges.top(torch.tensor(3), absolute=numpy.True_) == edges.top(numpy.int64(3), absolute=True)
    assert nodes.top(numpy.int64(3)) == nodes.top(3) and len(neurons.top(torch.tensor([2]))) == 2
    for number in (2.5, True, "3", -1, 10**6):
        for act in (edges.top, edges.greedy, nodes.top, neurons.top):
            with pytest.raises(GimkitError, match="must be a whole number from 0 to"):
                act(number)
    same = dict(steps=numpy.int64(2), batch_size=torch.tensor(1), seed=numpy.int32(0))
    assert gimkit.score_edges(model, task, "ig-inputs", **same).scores.shape == edges.scores.shape
    with pytest.raises(GimkitError, match="batch_size must be a whole number"):
        gimkit.score_edges(model, task, batch_size=1.0)
    for level in (95, 0, "0.9", float("nan")):
        with pytest.raises(GimkitError, match="level"):
            gimkit.circuits.rank_correlation(nodes, nodes, level=level)
    path = edges.top(200).save(tmp_path / "c.json")
    for old, new, message in (('"in_graph": true', '"in_graph": "False"', "in_graph of .* must be True or False"),
                              ('"n_heads": 4', '"n_heads": "4"', "n_heads must be a whole number"),
                              ('"parallel_attn_mlp": false', '"parallel_attn_mlp": "no"', "must be True or False")):
        other = tmp_path / "other.json"
        other.write_text(path.read_text().replace(old, new))
        with pytest.raises(GimkitError, match=message):
            gimkit.circuits.Circuit.load(other)


def test_a_card_says_what_the_model_makes_of_the_task():
    model = gimkit.load("mini-llama")
    task = tasks.agreement(model, n=40, seed=2)
    values = []
    for pair in task.pairs:
        ids = torch.tensor([model.tokenizer(pair.clean)["input_ids"]])
        logits = model._module(ids).logits[0, -1]
        right, wrong = (model.tokenizer.convert_tokens_to_ids(word) for word in pair[2:])
        values.append(float(logits[right] - logits[wrong]))
    lengths = [len(model.tokenizer(pair.clean)["input_ids"]) for pair in task.pairs]
    card = tasks.card(model, task)
    assert card.accuracy == sum(value > 0 for value in values) / 40 and card.solved
    assert card.logit_difference == pytest.approx(sum(values) / 40, abs=1e-4)
    assert card.tokens == (min(lengths), max(lengths)) and card.answer_pairs == (2 * 29 * 3, 2 * 29 * 3)
    assert str(card).startswith(f"agreement: 40 prompt pairs of {min(lengths)} to {max(lengths)} tokens; accuracy ")
    assert card.frame().loc[0, ["task", "prompts", "single", "dropped"]].tolist() == ["agreement", 40, 174, ""]

    turned = replace(task, good=task.bad, bad=task.good, dropped=("too long (3 prompts)",), answer_pairs=None)
    failed = tasks.card(model, turned)
    assert failed.accuracy == 1 - card.accuracy and not failed.solved
    assert "\ndropped: too long (3 prompts)\nThe model fails this task: its accuracy is below 0.75." in str(failed)


def test_a_failed_task_warns_once_before_its_circuits_are_believed():
    model = gimkit.load("mini-llama")
    task = tasks.agreement(model, n=8, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edges = gimkit.score_edges(model, task)
        gimkit.faithfulness(model, task, edges, absolute=True, sizes=(0.1,))
        gimkit.run(model, task, edges.top(100))
    turned = replace(task, good=(*task.bad[:3], *task.good[3:]), bad=(*task.good[:3], *task.bad[3:]))
    with pytest.warns(UserWarning, match="gets 62% of agreement's prompts right, less than 75%") as seen:
        gimkit.faithfulness(model, turned, edges, absolute=True, sizes=(0.1, 0.2))
    assert len(seen) == 1 and seen[0].filename == __file__
    for method in ("gim", "ig-inputs", "gp", gimkit.Rules(freeze_norm=True)):
        with pytest.warns(UserWarning, match="gets 62% of agreement's prompts right, less than 75%") as seen:
            gimkit.score_edges(model, turned, method, steps=2, batch_size=3)
        assert len(seen) == 1 and seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gimkit.score_edges(model, turned, "ig-inputs", metric="kl")  # a divergence has no right answer
    with pytest.warns(UserWarning, match="gets 62% of agreement's prompts right, less than 75%") as seen:
        gimkit.run(model, turned, edges.top(100))
    assert len(seen) == 1 and seen[0].filename == __file__


def test_the_command_prints_every_card(tmp_path, capsys):
    assert cards.main(["mini-gpt2", "-n", "2", "--seeds", "1", "--csv", str(tmp_path / "cards.csv")]) == 0
    assert capsys.readouterr().out.count("2 prompt pairs of ") == len(cards.TASKS)
    assert pandas.read_csv(tmp_path / "cards.csv").task.tolist() == list(cards.TASKS)


@pytest.mark.smollm2
def test_what_the_real_model_solves():
    """Accuracy over two draws; the control is the corrupt prompt, which must turn the answers round."""
    model = gimkit.load("smollm2-135m")
    for make, least in ((tasks.ioi, 0.85), (tasks.ioi_twice, 0.85), (tasks.induction, 0.9), (tasks.agreement, 0.85),
                        (tasks.pronoun, 0.85), (tasks.capital, 0.95), (tasks.hypernymy, 0.9),
                        (tasks.greater_than, 0.9)):
        task = make(model, n=16)
        card = tasks.card(model, task)
        assert card.accuracy >= least and not card.dropped, card
        assert tasks.card(model, replace(task, clean=task.corrupt)).accuracy <= 0.35, card
    assert not tasks.card(model, tasks.odd_one_out(model, n=32)).solved  # chance: a fair negative
