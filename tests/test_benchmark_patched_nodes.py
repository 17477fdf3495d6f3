"""Scores against exact patching: each statistic by hand, the truth agrees with itself, noise does not."""

import numpy
import pandas
import pytest
from scipy.stats import spearmanr

import gimkit
from benchmarks.patched_nodes import STATISTICS, main, measure, recall, summarise


def test_statistics_by_hand():
    layer = numpy.repeat([0, 1, 2, 3, 4], 2)
    exact = numpy.array([5.0, -4.0, 3.0, 2.0, 1.0, 0.5, -2.0, 1.5, 1.0, 3.0])
    shrunk = exact * numpy.array([0.1, 0.2, 0.3, 0.5, 1.0])[layer]  # smaller in early layers, as behind halved products
    value = {name: float(of(shrunk, exact, layer)) for name, of in STATISTICS.items()}
    assert value["within"] == pytest.approx(1) and value["spearman"] < 1 and value["pearson"] < 1
    assert [value[f"size_{part}"] for part in range(1, 6)] == pytest.approx([0.1, 0.2, 0.3, 0.5, 1])
    assert value["size"] == pytest.approx(abs(shrunk).sum() / abs(exact).sum())
    assert value["spearman"] == pytest.approx(spearmanr(shrunk, exact).statistic)
    assert value["ratio"] == pytest.approx(0.3) and value["strongest"] == value["spearman"]  # there are ten nodes
    many = numpy.concatenate([numpy.arange(100, 130), numpy.zeros(200)])
    tiny = numpy.random.default_rng(0).normal(size=200)
    wrong_where_nothing_is = many + numpy.concatenate([numpy.zeros(30), tiny])
    exact_there = many + numpy.concatenate([numpy.zeros(30), tiny[::-1]])
    of = STATISTICS["strongest"](wrong_where_nothing_is, exact_there, None)
    assert of == pytest.approx(1) and STATISTICS["spearman"](wrong_where_nothing_is, exact_there, None) < 0.7
    assert recall(shrunk, exact, 2) == 0  # its strongest are of the last layers
    assert recall(-exact, exact, 3) == 1


def test_noise_loses_and_intervals_hold_the_value():
    scores = measure("mini-llama", ["ioi"], ["gim", "random"], n=4, seeds=2)
    found = summarise(scores).set_index(["method", "statistic"])
    assert found.value["gim", "pearson"] > 0.6 > 0.3 > found.value["random", "pearson"]
    assert (found["low"] <= found["high"]).all() and (found["min"] <= found["max"]).all()
    own = scores[scores.method == "gim"].set_index(["seed", "node"]).filter(like="prompt_")
    task = gimkit.tasks.ioi(gimkit.load("mini-llama"), n=4, seed=1)
    direct = gimkit.score_nodes(gimkit.load("mini-llama"), task, "gim").frame().set_index("node").score["a4.h2"]
    assert own.loc[(1, "a4.h2")].mean() == pytest.approx(direct, rel=1e-5)


def test_command(tmp_path, capsys):
    path = tmp_path / "nodes.csv"
    options = ["--tasks", "ioi", "--methods", "gim", "-n", "2", "--seeds", "1", "--csv", str(path)]
    assert main(["mini-llama", *options, "--parts", str(tmp_path)]) == 0
    assert "recall_10" in capsys.readouterr().out and set(pandas.read_csv(path).statistic) == set(STATISTICS)
    assert main(["mini-llama", "--methods", "gmi"]) == 2
