"""The table of token attributions against Shapley values: sets are what they say, controls fail, sums are right."""

import numpy
import pandas
import pytest

import gimkit
from benchmarks.shapley_tokens import (
    COMPARED,
    SETS,
    agreement,
    interactions,
    main,
    measure,
    prompts,
    repaired_positions,
    summarise,
)


@pytest.fixture(scope="module")
def model():
    return gimkit.load("mini-llama")


@pytest.mark.parametrize("name", SETS)
def test_sets_have_at_most_twelve_players_between_first_and_last(model, name):
    for text, (answer, wrong), free in prompts(model, name, 3, seed=4):
        words = [model.tokenizer.decode([i]) for i in model.tokenizer(text)["input_ids"]]
        assert 3 <= len(free) <= 12 and min(free) > 0 and max(free) < len(words) - 1 and len(set(free)) == len(free)
        if name.startswith("redundant"):
            last = max(i for i, word in enumerate(words) if word == wrong)
            assert {words[i] for i in free} == {answer, wrong} and last not in free
            assert all(i in free for i, word in enumerate(words) if word == answer)
    assert prompts(model, name, 2, seed=4) != prompts(model, name, 2, seed=5)


def test_the_redundant_set_is_redundant_and_gim_beats_noise_there():
    table = measure("mini-llama", ["redundant, three times"], ["gim", "random", "leave-one-out"], n=4, seeds=[5])
    assert (table.groupby(['seed', 'prompt', 'method']).truth.sum() > 1).all()
    sums = interactions(table)
    assert sums.ratio[0] < 0.5 and sums.below[0] == 1
    summary = summarise(table).set_index("method")
    assert summary.pearson["gim"] > 0.6 > summary.pearson["random"]
    assert summary.gim_ahead["gim"] == 0 < summary.gim_ahead["random"]
    assert summary.share["leave-one-out"] == pytest.approx(sums.ratio[0])
    assert summary.index[0] == summary.pearson.idxmax()


def test_agreement():
    truth = numpy.array([1.0, 2.0, 4.0])
    perfect = agreement(3 * truth, truth)
    assert perfect["pearson"] == pytest.approx(1) and perfect["spearman"] == pytest.approx(1) and perfect["share"] == 3
    reverse = agreement(-truth, truth)
    assert reverse["pearson"] == pytest.approx(-1) and reverse["share"] == -1
    assert numpy.isnan(agreement(numpy.ones(3), truth)["pearson"])


def made_up(scores):
    """Two seeds of a prompt each with the same four tokens, the first two flagged; scores by method and prompt."""
    rows = [("m", "s", seed, 0, position, position < 2, truth, single, method, score)
            for method, both in scores.items() for seed, prompt in enumerate(both)
            for position, (truth, single, score) in enumerate(zip((1.0, 2.0, 3.0, 6.0), (1.0, 1.0, 1.0, 3.0), prompt))]
    return pandas.DataFrame(rows, columns=["model", "set", "seed", "prompt", "position", "flagged", "truth", "single",
                                           "method", "score"])


def test_summary_of_a_made_up_table():
    truth = numpy.array([1.0, 2.0, 3.0, 6.0])
    table = made_up({"gim": [truth, truth], "other": [-truth, [1.0, 0.0, 3.0, 6.0]], "none": [[1.0] * 4] * 2})
    found = summarise(table).set_index("method")
    second = numpy.corrcoef([1, 0, 3, 6], truth)[0, 1]
    other = found.loc["other"]
    assert other.prompts == 2 and other.pearson == pytest.approx((second - 1) / 2)
    assert other.gim_ahead == pytest.approx(1 - other.pearson)
    assert (other.seed_lowest, other.seed_highest) == pytest.approx((-1, second))
    assert other["share"] == pytest.approx((10 - 12) / 24)
    assert found.prompts["none"] == 0 and numpy.isnan(found.pearson["none"])
    sums = interactions(table)
    assert sums.ratio[0] == 0.5 and sums.below[0] == 1 and sums.prompts[0] == 2 and sums.flagged[0] == 0.5


def test_flagged_tokens_are_pooled_over_prompts():
    """Against numpy's correlation of the very tokens."""
    draw = numpy.random.default_rng(0)
    scores = {"gim": draw.normal(size=(2, 4)), "other": draw.normal(size=(2, 4))}
    found = summarise(made_up(scores)).set_index("method")
    truth = numpy.tile([1.0, 2.0, 3.0, 6.0], (2, 1))
    for method, own in scores.items():
        for name, kept in (("flagged", slice(0, 2)), ("others", slice(2, 4))):
            want = numpy.corrcoef(own[:, kept].flatten(), truth[:, kept].flatten())[0, 1]
            assert found.loc[method, name] == pytest.approx(want)
    assert found.flagged_ahead["other"] == pytest.approx(found.flagged["gim"] - found.flagged["other"])


def test_flagged_positions_are_those_of_flagged_rows(model):
    drawn = prompts(model, "ioi twice", 3, seed=1)
    found = repaired_positions(model, drawn)
    rows = gimkit.self_repair(model, [text for text, _, _ in drawn]).rows
    level = numpy.quantile(rows.interaction, 0.95)
    for number, flagged in enumerate(found):
        own = rows[(rows.example == number) & (rows.interaction > level)]
        assert flagged == set(own.i.tolist() + own.j.tolist())
    assert any(found)


def test_command(tmp_path, capsys):
    path = tmp_path / "table.csv"
    assert main(["mini-llama", "--sets", "redundant, twice", "-n", "2", "--seeds", "1", "--csv",
                 str(path)]) == 0
    shown = capsys.readouterr().out
    assert "leave-one-out" in shown and "ratio" in shown
    assert set(pandas.read_csv(path).method) == set(COMPARED)
    assert pandas.read_csv(tmp_path / "table-sets.csv").prompts[0] == 2


def test_bad_input(model, capsys):
    with pytest.raises(gimkit.GimkitError, match="unknown prompt set 'iio'; use ioi, "):
        prompts(model, "iio", 1, 0)
    with pytest.raises(gimkit.GimkitError, match="unknown method 'gmi'; use gradient"):
        measure("mini-llama", methods=["gmi"])
    assert main(["mini-llama", "--sets", "nothing"]) == 2
    assert "unknown prompt set" in capsys.readouterr().err
    assert main(["mini-llama", "--seeds", "0"]) == 2
    assert "seeds must be a whole number of at least 1, not 0" in capsys.readouterr().err
