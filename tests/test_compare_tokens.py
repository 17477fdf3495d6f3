"""The table of token attributions against Shapley values: sets are what they say, controls fail, sums are right."""

import numpy
import pandas
import pytest

import gimkit
from gimkit.cli import main
from gimkit.compare_tokens import COMPARED, SETS, agreement, interactions, measure, prompts, summarise


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
    assert len(table) == 12 and (table.joint > 1).all()
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


def test_summary_of_a_made_up_table():
    rows = [("m", "s", seed, prompt, 3, 2.0, single, method, pearson, 0.0, 0.5)
            for seed, prompt, single in ((0, 0, 1.0), (0, 1, 4.0), (1, 0, 1.0))
            for method, pearson in (("gim", 0.9), ("random", [0.1, float("nan"), 0.5][2 * seed + prompt]))]
    table = pandas.DataFrame(rows, columns=["model", "set", "seed", "prompt", "players", "joint", "singles", "method",
                                            "pearson", "spearman", "share"])
    noise = summarise(table).set_index("method").loc["random"]
    assert noise.prompts == 2 and noise.pearson == pytest.approx(0.3) and noise.gim_ahead == pytest.approx(0.6)
    assert (noise.seed_lowest, noise.seed_highest, noise.share) == (0.1, 0.5, 0.5)
    sums = interactions(table)
    assert sums.ratio[0] == 1 and sums.below[0] == pytest.approx(2 / 3) and sums.prompts[0] == 3


def test_command(tmp_path, capsys):
    path = tmp_path / "table.csv"
    assert main(["shapley", "mini-llama", "--sets", "redundant, twice", "-n", "2", "--seeds", "3", "--csv",
                 str(path)]) == 0
    shown = capsys.readouterr().out
    assert "leave-one-out" in shown and "ratio" in shown
    assert set(pandas.read_csv(path).method) == set(COMPARED)
    assert pandas.read_csv(tmp_path / "table-sets.csv").prompts[0] == 2


def test_bad_input(model, capsys):
    with pytest.raises(gimkit.GimkitError, match="unknown prompt set 'iio'; use 'ioi', "):
        prompts(model, "iio", 1, 0)
    with pytest.raises(gimkit.GimkitError, match="unknown method 'gmi'; use gradient"):
        measure("mini-llama", methods=["gmi"])
    assert main(["shapley", "mini-llama", "--sets", "nothing"]) == 2
    assert "unknown prompt set" in capsys.readouterr().err
