"""Scores of edges against exact patching of a sample: by name, by hand, noise loses."""

import pandas
import pytest

import gimkit
from benchmarks.patched_edges import main, measure, summarise


def test_exact_effects_of_chosen_edges_are_those_of_all():
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.ioi(model, n=2)
    some = gimkit.score_edges(model, task, "exact", nodes=["input", "m0", "a2.h2", "logits"])
    whole = gimkit.score_edges(model, task, "exact").frame()
    whole = whole.set_index(whole.source + "->" + whole.target).score
    assert len(some.edges) > 5 and some.scores.tolist() == pytest.approx(whole[list(some.edges)].tolist(), abs=1e-5)


def test_noise_loses_and_scores_stand_beside_their_edge():
    rows = measure("mini-llama", ["ioi"], ["gim", "ig-inputs", "random"], n=2)
    table = summarise(rows, ["gim", "ig-inputs", "random"]).set_index(["sample", "method"])
    assert table.pearson["strongest nodes", "ig-inputs"] > 0.8 > 0.4 > abs(table.pearson["strongest nodes", "random"])
    assert (table.pearson_low <= table.pearson).all() and table.sign.between(0, 1).all()
    model = gimkit.load("mini-llama")
    frame = gimkit.score_edges(model, gimkit.tasks.ioi(model, n=2), "gim").frame()
    frame = frame.set_index(frame.source + "->" + frame.target).score
    row = rows.iloc[3]
    assert row.gim == pytest.approx(frame[row.edge], rel=1e-4)


def test_by_hand():
    table = pandas.DataFrame({"task": "t", "sample": "s", "edge": list("abcd"), "exact": [4.0, -2.0, 1.0, 1.0],
                              "gim": [2.0, 1.0, 0.5, 0.5]})
    found = summarise(table, ["gim"]).iloc[0]
    assert found.sign == 6 / 8 and found["size"] == 0.5 and found.edges == 4
    assert (found.largest, found.largest_exact, found.largest_score) == ("a", 4, 2)


def test_command(tmp_path, capsys):
    path = tmp_path / "edges.csv"
    assert main(["mini-llama", "--tasks", "ioi", "-n", "2", "--csv", str(path), "--parts", str(tmp_path)]) == 0
    assert "spearman" in capsys.readouterr().out and len(pandas.read_csv(path)) == 12
    assert main(["mini-llama", "--tasks", "iio"]) == 2
