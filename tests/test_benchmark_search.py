"""Rules searched: halves that share nothing, statistics by hand, settings that are what their names say."""

import numpy
import pandas
import pytest
import torch
from made_up import random_task
from nnsight import NNsight
from tiny import build

import gimkit
from benchmarks.planted.prompts import PROGRAMS
from benchmarks.rankings import HALVES
from benchmarks.search import (
    AVERAGE,
    GRID,
    HIGH,
    KNOWN,
    effects,
    finalists,
    halves_of,
    label,
    main,
    method_of,
    parts,
    statistics_of,
    summary,
)
from gimkit.rules import PLAIN, RULES, Rules


def test_search_and_held_out_tasks_are_disjoint_for_every_model_and_target():
    for name, target in (("compiled", "edges"), ("mini-llama", "edges"), ("mini-llama", "tokens"),
                         ("smollm2-135m", "nodes")):
        split = halves_of(name, target)
        parts = [[task for task, half in split.items() if half == which] for which in ("search", "held out")]
        assert not set(parts[0]) & set(parts[1]) and min(map(len, parts)) >= 2
        assert target == "tokens" or name == "compiled" or all(HALVES[task] == half for task, half in split.items())
    assert set(halves_of("compiled", "edges")) == set(PROGRAMS)
    assert halves_of("trained", "edges") == {"counts": "search", "induction": "held out", "other-name": "search",
                                             "sums": "held out"}


def test_names_say_what_is_set_and_no_setting_comes_twice():
    assert len(set(GRID.values())) == len(GRID) and set(RULES) | set(KNOWN) <= set(GRID)
    for name, rules in GRID.items():
        assert label(rules) == name
        if name not in RULES:
            given = {part.partition("=")[0]: float(part.partition("=")[2] or 1) for part in name.split()}
            assert Rules(**{key: bool(value) if isinstance(getattr(PLAIN, key), bool) else value
                            for key, value in given.items()}) == rules


def test_an_average_is_of_those_rules():
    model, task = NNsight(build("gpt2")), random_task(3)
    for setting, method in (("gim", "gim-ig"), ("gradient", "ig-inputs")):
        chosen, context = method_of(setting + AVERAGE)
        with context:
            found = gimkit.score_edges(model, task, chosen)
        assert torch.allclose(found.scores, gimkit.score_edges(model, task, method).scores, atol=1e-6)


def test_effects_are_means_over_pairs_that_differ_in_one_rule():
    def worth(rules):  # each rule adds a number of its own, and frozen norms add 5 more to halved gates
        split = 100 * (rules.q == 0.5) + 1000 * (rules.q == 0.25)
        other = 0.1 * (rules.gate == 0.5) + 0.01 * rules.identity_activation + 1e4 * rules.detach_attention
        both = 5 * (rules.freeze_norm and rules.gate == 0.5)
        return numpy.log2(rules.temperature) + 10 * rules.freeze_norm + split + other + both

    table = pandas.DataFrame([("m", "edges cmd", name, worth(rules)) for name, rules in GRID.items()],
                             columns=["model", "statistic", "setting", "value"])
    found = effects(table)["m", "edges cmd"].to_dict()
    assert found["T = 2 instead of 1"] == pytest.approx(1) and found["T = 4 instead of 2"] == pytest.approx(1)
    assert found["queries, keys halved"] == pytest.approx(100) and found["GIM's split instead"] == pytest.approx(900)
    assert found["act(x) / x"] == pytest.approx(0.01) and found["attention patterns constant"] == pytest.approx(1e4)
    assert 10 < found["norms frozen"] < 15 and 0.1 < found["gated products halved"] < 5.1


def test_finalists_are_the_best_of_the_search_half_alone():
    rows = [("search", "m", "edges cmd", setting, value) for setting, value in zip("abcd", (0.4, 0.3, 0.2, 0.1))]
    rows += [("search", "m", "nodes pearson", setting, value) for setting, value in zip("abcd", (0.4, 0.3, 0.2, 0.1))]
    rows += [("held out", "m", "edges cmd", "b", 0.0), ("search", "m", "edges cmd", "b" + AVERAGE, 0.0)]
    table = pandas.DataFrame(rows, columns=["half", "model", "statistic", "setting", "value"])
    assert finalists(table, 1)[:2] == ["d", "a"] and "b" not in finalists(table, 1)


def test_nodes_and_tokens_by_hand():
    truth = numpy.array([[3.0, 5.0], [1.0, 1.0], [0.0, 1.0], [-2.0, -1.0]])
    found = {("exact", "ioi"): pandas.DataFrame(truth), ("gim", "ioi"): pandas.DataFrame(truth[::-1].copy())}
    own = statistics_of(found, "nodes", "mini-llama")["nodes pearson"]["gim", "ioi"]
    means = truth.mean(1)
    assert own[1] == 2 and own[0](numpy.arange(2)) == pytest.approx(numpy.corrcoef(means, means[::-1])[0, 1])
    prompts = pandas.DataFrame([[3.0, 1.0, 0.0], [1.0, 2.0, numpy.nan]])  # the second prompt has two tokens
    found = {("exact", "ioi"): prompts, ("gim", "ioi"): prompts.mul([1, -1], axis=0)}
    own = statistics_of(found, "tokens", "mini-llama")["tokens pearson"]["gim", "ioi"]
    assert own[0](numpy.arange(2)) == pytest.approx(0)


def test_leads_have_the_sign_of_better():
    values = pandas.DataFrame({"value": [0.5]})
    found = {("gim", "brackets"): values, ("gradient", "brackets"): values / 2, ("relp", "brackets"): values * 2}
    table = summary("compiled", "edges", found, intervals=False).set_index("setting")
    assert table.ahead_gim.tolist() == [0, -0.25, 0.5] and table.ahead_gradient["relp"] == 0.75
    assert HIGH["edges cmd"] == -1 and set(HIGH.values()) == {1, -1}


def test_command_and_a_control(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.search.GRID", {"gim": RULES["gim"], "gradient": PLAIN})
    first, last = tmp_path / "half.csv", tmp_path / "all.csv"
    assert main(["compiled", "--csv", str(first)]) == 0
    table = pandas.read_csv(first)
    assert set(table.half) == {"search"} and (table.value > 0.3).all()
    monkeypatch.setattr("benchmarks.search.finalists", lambda table: ["gim", "gradient"])
    options = ["--finalists", str(first), "--csv", str(last), "--parts", str(tmp_path)]
    assert main(["compiled", *options]) == 0 and "held out" in capsys.readouterr().out
    table = pandas.read_csv(last)
    held = table[table.half == "held out"]
    assert (held.value_low <= held.value).all() and (held.value <= held.value_high).all()
    assert main(["compiled", "--targets", "egdes"]) == 2
    assert parts("compiled", "edges", ["gim"], 2, 2, ["held out"]).keys() == {
        ("gim", "histogram"), ("gim", "other-name"), ("gim", "reversal")}
