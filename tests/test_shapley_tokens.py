"""Shapley values against closed forms and a literal average over permutations."""

from functools import cache
from itertools import permutations

import pytest
import torch
from nnsight import NNsight
from test_rules import relative
from tiny import build, token_ids

import gimkit
from gimkit.tokens.shapley import shapley_values, subsets

torch.set_num_threads(1)
PROMPT, NEUTRAL = token_ids(1, 7, seed=1)[0], 3


def game(n, worth):
    return torch.tensor([float(worth(set(row.nonzero().flatten().tolist()))) for row in subsets(n)])


def test_additive_game():
    terms = torch.tensor([3.0, -1.0, 0.5, 0.0, 2.0])
    values = game(5, lambda members: 7 + sum(terms[i].item() for i in members))
    assert torch.allclose(shapley_values(values), terms.double(), atol=1e-6)


def test_product_game():
    """The product of a_i over members with a_i = 1 outside: for two players each gets half of what is joint."""
    values = game(2, lambda members: (3 if 0 in members else 1) * (5 if 1 in members else 1))
    assert torch.allclose(shapley_values(values), torch.tensor([2 + 4, 4 + 4], dtype=torch.float64))  # single + 8 / 2
    unanimous = game(6, lambda members: {1, 3, 4} <= members)
    assert torch.allclose(shapley_values(unanimous), torch.tensor([0, 1, 0, 1, 1, 0], dtype=torch.float64) / 3)


def test_glove_game():
    """One right glove, two left ones: 2/3, 1/6, 1/6. And enough votes: the dictator's and the equal ones' games."""
    gloves = game(3, lambda members: 0 in members and bool(members & {1, 2}))
    assert torch.allclose(shapley_values(gloves), torch.tensor([4, 1, 1], dtype=torch.float64) / 6)
    majority = game(5, lambda members: len(members) >= 3)
    assert torch.allclose(shapley_values(majority), torch.full((5,), 0.2, dtype=torch.float64))


def test_redundant_game():
    """Any one of three suffices: single effects at the full set are 0, the joint one is 1, Shapley shares it."""
    values = game(3, lambda members: bool(members))
    assert values[7] - values[6] == 0 and torch.allclose(shapley_values(values), torch.full((3,), 1 / 3).double())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_literal_permutations(name):
    hf = build(name)

    def logit(kept):
        ids = torch.tensor([token if i in kept else NEUTRAL for i, token in enumerate(PROMPT.tolist())])
        with torch.no_grad():
            final = hf(ids[None], use_cache=False).logits[0, -1]
        return (final[5] - final[9]).item()

    logit = cache(logit)
    want, orders = torch.zeros(7), list(permutations(range(1, 6)))
    for order in orders:
        kept = frozenset((0, 6))
        for player in order:
            want[player] += (logit(kept | {player}) - logit(kept)) / len(orders)
            kept = kept | {player}
    got = gimkit.tokens.shapley(NNsight(hf), PROMPT, (5, 9), baseline=NEUTRAL)
    assert relative(got.scores, want) < 1e-4 and got.target == "5 - 9" and got.method == "shapley"
    assert got.scores.sum().item() == pytest.approx(logit(frozenset(range(7))) - logit(frozenset((0, 6))), abs=1e-4)


def test_free_positions_and_the_top_prediction():
    hf = build("gpt2")
    with torch.no_grad():
        best = int(hf(PROMPT[None]).logits[0, -1].argmax())
    worth = gimkit.tokens.shapley(NNsight(hf), PROMPT, baseline=NEUTRAL, free=[2])
    alone = gimkit.attribute(NNsight(hf), PROMPT, best, method="occlusion", baseline=NEUTRAL, free=[2])
    assert torch.allclose(worth.scores, alone.scores, atol=1e-5) and worth.target == alone.target == str(best)


@pytest.mark.parametrize(("prompt", "message"), [
    ([5], "1 token: the first and the last always stay"),
    ([5, 6], "2 tokens: the first and the last"),
    (list(range(5, 20)), r"13 free tokens would take 2\^13 variants"),
    ([], "prompt is empty"),
])
def test_bad_input(prompt, message):
    with pytest.raises(gimkit.GimkitError, match=message):
        gimkit.tokens.shapley(NNsight(build("gpt2")), prompt, 5, baseline=NEUTRAL)
