"""The comparison of methods on a bundled model: random edges lose, prompts are fresh, tables and figure hold it all."""

import sys

import numpy
import pandas
import pytest
import torch

import gimkit
from benchmarks.compare import AREAS, COMPARED, TASKS, compare, main, over_seeds
from benchmarks.measuring import growing
from figures.comparison import DRAWN, DRAWN_TASKS, drawing


def test_random_edges_lose():
    table, curves = compare("mini-llama", ["ioi"], ["gim", "random"], n=8)
    table = table.set_index("method")
    assert table.cpr["gim"] > 0.8 > 0.5 > table.cpr["random"]
    assert table.cmd["gim"] < 0.3 < table.cmd["random"]
    for area in ("cpr", "cmd"):
        assert (table[f"{area}_low"] <= table[area]).all() and (table[area] <= table[f"{area}_high"]).all()
    for ranking, area, value in (("signed", "cpr", lambda f: f), ("absolute", "cmd", lambda f: abs(1 - f))):
        own = curves[(curves.method == "gim") & (curves.ranking == ranking)]
        assert numpy.trapezoid(value(own.faithfulness), own.share) == pytest.approx(table[area]["gim"])
        assert own.requested.tolist() == [int(share * own.requested.max()) for share in own.share]
        assert (own.edges <= own.requested).all() and own.edges.max() == own.requested.max()


def test_circuits_run_on_other_prompts_than_scores_and_seeds_differ(monkeypatch):
    seen = []
    monkeypatch.setattr(gimkit, "score_edges", lambda model, task, *_, **__: seen.append(set(task.pairs)))
    monkeypatch.setattr(gimkit, "faithfulness", lambda model, task, *_, **__: seen.append(set(task.pairs)) or 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            compare("mini-llama", ["capital"], ["gim"], n=8, seeds=1)
    warm_up, scored, evaluated = seen[:3]
    assert seen[3:] == seen[:3] and warm_up == scored  # the same seed, the same prompts
    assert len(scored) == len(evaluated) == 8 and not scored & evaluated
    monkeypatch.setattr(gimkit, "faithfulness", refuse)
    seen.clear()
    compare("mini-llama", ["capital"], ["gim"], n=8, seeds=2)
    assert seen[0] == seen[1] == scored and seen[2] != scored


def refuse(*_, **__):
    raise gimkit.GimkitError("the model does not solve it")


def test_an_unsolved_task_is_reported(monkeypatch):
    monkeypatch.setattr(gimkit, "faithfulness", refuse)
    table, curves = compare("mini-llama", ["capital"], ["random"], n=2, seeds=2)
    assert table[list(AREAS)].isna().all(axis=None) and set(table.note) == {"the model does not solve it"}
    assert over_seeds(table).solved.tolist() == [0] and curves.empty
    with pytest.raises(gimkit.GimkitError, match="nothing to draw: the figure is of gradient"):
        drawing(curves)


def test_means_over_seeds():
    table = pandas.DataFrame({"model": "m", "task": "ioi", "seed": [0, 1, 0, 1], "method": ["gim"] * 2 + ["random"] * 2,
                              "cpu_seconds": [1.0, 3.0, 0.0, 0.0], "growth_mib": [10.0, 30.0, 0.0, 0.0]}
                             | dict.fromkeys(AREAS, [0.5, 1.0, 0.25, float("nan")]))
    means = over_seeds(table).set_index("method")
    assert means.cpr["gim"] == 0.75 and means.cpu_seconds["gim"] == 2 and means.growth_mib["gim"] == 20
    assert means.cpr["random"] == 0.25 and means.solved.to_dict() == {"gim": 2, "random": 1}
    assert "seed" not in means


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_growth_is_of_the_run_alone():
    def allocate(mib):
        return torch.ones(mib, 2**18).sum()

    large = growing(allocate, 200)[1]
    small = growing(allocate, 40)[1]  # what the larger one freed counts for nothing
    assert large == pytest.approx(200, abs=8) and small == pytest.approx(40, abs=8)
    assert growing(lambda: "result") == ("result", pytest.approx(0, abs=2))


def test_bad_input():
    with pytest.raises(gimkit.GimkitError, match="unknown task 'iio'; use ioi, greater_than"):
        compare("mini-llama", ["iio"])
    with pytest.raises(gimkit.GimkitError, match="unknown method 'gmi'; use gradient.*exact, random"):
        compare("mini-llama", ["ioi"], ["gmi"])
    with pytest.raises(gimkit.GimkitError, match="seeds must be a whole number of at least 1, not 0"):
        compare("mini-llama", ["ioi"], seeds=0)
    assert all(hasattr(gimkit.tasks, task) for task in TASKS) and {"exact", "random"} <= set(COMPARED)


def made_up(tasks=DRAWN_TASKS, methods=(*DRAWN, "random"), seeds=2):
    rows = [(task, method, seed, ranking, size, 1 - 1 / (1 + size) + 0.1 * seed)
            for task in tasks for method in methods for seed in range(seeds) for ranking in ("signed", "absolute")
            for size in (0, 1, 10, 100)]
    return pandas.DataFrame(rows, columns=["task", "method", "seed", "ranking", "requested", "faithfulness"]).assign(
        model="mini-llama")


def test_the_figure_holds_six_tasks_and_four_methods():
    figure, table, text = drawing(made_up((*DRAWN_TASKS, "induction"), ("random", "gim", *DRAWN)))
    assert sum(bool(ax.lines) for ax in figure.axes) == 6
    assert set(table.task) == set(DRAWN_TASKS)
    assert list(table.method.unique()) == ["EAP", "EAP-IG", "EAP-GP", "GIM"]
    assert set(table.ranking) == {"absolute"}
    assert "draws of prompts (2)" in text and all(task in text for task in DRAWN_TASKS) and "EAP-GP 0." in text


def test_the_command_writes_rows_and_curves(tmp_path, capsys):
    table = tmp_path / "t.csv"
    assert main(["mini-llama", "-n", "4", "--tasks", "capital", "--methods", "gim", "random", "--seeds", "2",
                 "--csv", str(table)]) == 0
    out = capsys.readouterr().out
    written, curves = pandas.read_csv(table), pandas.read_csv(tmp_path / "t-curves.csv")
    assert written[["seed", "method"]].to_numpy().tolist() == [[0, "gim"], [0, "random"], [1, "gim"], [1, "random"]]
    mean = f"{written[written.method == 'gim'].cpr.mean():.2f}"
    assert any("gim" in line and mean in line for line in out.splitlines()) and "Means over seeds" in out
    assert len(curves) == 2 * 2 * 2 * 10 and {"share", "requested", "edges", "faithfulness"} <= set(curves)
    assert main(["mini-llama", "--tasks", "iio"]) == 2
