"""The table of node scores against sampled Shapley values: noise loses, the truth agrees with itself."""

import pandas
import pytest

import gimkit
from benchmarks.shapley_nodes import TASKS, columns, compare_nodes, main, repaired_heads


def test_exact_patching_beats_noise():
    table = compare_nodes("mini-llama", ["ioi"], ["exact", "random", "atp*"], n=4, seeds=[1], orders=2)
    table = table.set_index("method")
    assert table.pearson["exact"] > 0.8 > table.pearson["random"] and table.noise["exact"] > 0.8
    assert (table.pearson_low <= table.pearson).all() and (table.pearson <= table.pearson_high).all()


def test_flagged_heads_have_more_than_their_share_of_flagged_rows():
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.ioi(model, n=4)
    rows = gimkit.self_repair(model, task).rows
    high = rows[rows.interaction > rows.interaction.quantile(0.95)]
    found = repaired_heads(model, task)
    for layer in range(5):
        for head in range(4):
            own, of_head = ((table.layer.eq(layer) & table["head"].eq(head)).sum() for table in (rows, high))
            assert (f"a{layer}.h{head}" in found) == (of_head > 0.05 * own)
    assert 3 <= len(found) < 20


def test_columns_go_by_name():
    model = gimkit.load("mini-llama")
    scores = gimkit.score_nodes(model, gimkit.tasks.ioi(model, n=2))
    assert columns(scores, ["m1", "a0.h1"])[:, 0].tolist() == scores.per_example[:, scores.nodes.index("m1")].tolist()


def test_command(tmp_path, capsys):
    path = tmp_path / "nodes.csv"
    options = ["--sets", "ioi", "-n", "2", "--seeds", "1", "--csv", str(path)]
    assert main(["mini-llama", *options]) == 0
    assert "noise" in capsys.readouterr().out and "gim" in set(pandas.read_csv(path).method)


def test_bad_input():
    with pytest.raises(gimkit.GimkitError, match="unknown prompt set 'iio'; use ioi"):
        compare_nodes("mini-llama", ["iio"])
    assert set(TASKS) >= {"ioi", "induction, three times"}
