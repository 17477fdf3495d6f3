"""The comparison of methods on a bundled model: random edges lose, prompts are fresh, tables and figure hold it all."""

import sys

import numpy
import pandas
import pytest
import torch

import gimkit
from benchmarks.compare import AREAS, COMPARED, TASKS, by_seed, compare, curves, main, over_seeds
from benchmarks.measuring import growing
from figures.comparison import DRAWN, drawing


def test_random_edges_lose():
    runs = compare("mini-llama", ["ioi"], ["gim", "random"], n=8)
    table, found = by_seed(runs).set_index("method"), curves(runs)
    assert table.cpr["gim"] > 0.8 > 0.5 > table.cpr["random"]
    assert table.cmd["gim"] < 0.3 < table.cmd["random"]
    for area in ("cpr", "cmd"):
        assert (table[f"{area}_low"] <= table[area]).all() and (table[area] <= table[f"{area}_high"]).all()
    for ranking, area, value in (("signed", "cpr", lambda f: f), ("absolute", "cmd", lambda f: abs(1 - f))):
        own = found[(found.method == "gim") & (found.ranking == ranking)]
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
    runs = compare("mini-llama", ["capital"], ["random"], n=2, seeds=2)
    assert by_seed(runs)[list(AREAS)].isna().all(axis=None) and set(runs.note) == {"the model does not solve it"}
    assert over_seeds(runs).solved.tolist() == [0] and curves(runs).empty
    with pytest.raises(gimkit.GimkitError, match="nothing to draw: the figure is of gradient"):
        drawing(curves(runs))


def made_up_runs():
    """Two draws of four prompts; each circuit keeps a share of its prompt's gap, and the other method half as much."""
    kept = numpy.random.default_rng(0).uniform(0.5, 1.5, (2, 4))
    rows = [(seed, method, ranking, share, prompt, 2 + 3 * share * factor * kept[seed, prompt], 2.0, 5.0)
            for seed in (0, 1) for method, factor in (("gim", 1), ("gradient", 0.5))
            for ranking in ("signed", "absolute") for share in (0.0, 0.5, 1.0) for prompt in range(4)]
    columns = ["seed", "method", "ranking", "share", "prompt", "metric", "empty", "full"]
    return kept, pandas.DataFrame(rows, columns=columns).assign(
        model="m", task="ioi", requested=1, edges=1, cpu_seconds=1.0, growth_mib=2.0, note="")


def test_means_over_draws_and_a_lead_that_is_paired():
    kept, runs = made_up_runs()
    table = over_seeds(runs).set_index("method")
    # faithfulness is share x kept, so its area over the shares is half of what the whole circuit keeps
    assert table.cpr["gim"] == pytest.approx(kept.mean() / 2) and table.solved["gim"] == 2
    assert table.cpr_min["gim"] == pytest.approx(kept.mean(1).min() / 2)
    assert table.cpr_max["gim"] == pytest.approx(kept.mean(1).max() / 2)
    assert table.cpr_ahead["gradient"] == pytest.approx(kept.mean() / 4) and table.cpr_ahead["gim"] == 0
    drawn = numpy.random.default_rng(1).integers(0, 4, (4000, 2, 4))  # an independent bootstrap within draws
    resampled = numpy.take_along_axis(kept[None], drawn, 2).mean((1, 2)) / 2
    assert table[["cpr_low", "cpr_high"]].loc["gim"].tolist() == pytest.approx(
        numpy.quantile(resampled, [0.025, 0.975]).tolist(), abs=0.06)
    assert (table.cpr_ahead_low["gradient"], table.cpr_ahead_high["gradient"]) == (
        pytest.approx(table.cpr_low["gim"] / 2), pytest.approx(table.cpr_high["gim"] / 2))


def test_a_run_continues_where_it_stopped(tmp_path, monkeypatch):
    first = compare("mini-llama", ["capital"], ["gim"], n=2, folder=tmp_path)
    monkeypatch.setattr(gimkit, "score_edges", refuse)
    again = compare("mini-llama", ["capital"], ["gim"], n=2, folder=tmp_path)
    pandas.testing.assert_frame_equal(first, again, check_dtype=False)
    with pytest.raises(gimkit.GimkitError, match="does not solve"):
        compare("mini-llama", ["capital"], ["gim"], n=3, folder=tmp_path)


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


def made_up(tasks=TASKS[:6], methods=(*DRAWN, "random"), seeds=2):
    rows = [(task, method, seed, ranking, size, 1 - 1 / (1 + size) + 0.1 * seed)
            for task in tasks for method in methods for seed in range(seeds) for ranking in ("signed", "absolute")
            for size in (0, 1, 10, 100)]
    return pandas.DataFrame(rows, columns=["task", "method", "seed", "ranking", "requested", "faithfulness"]).assign(
        model="mini-llama")


def test_the_figure_holds_six_tasks_and_four_methods():
    figure, table, text = drawing(made_up(TASKS[:7], ("random", "gim", *DRAWN)))
    assert sum(bool(ax.lines) for ax in figure.axes) == 6
    assert set(table.task) == set(TASKS[:6])
    assert list(table.method.unique()) == ["EAP", "EAP-IG", "EAP-GP", "GIM"]
    assert set(table.ranking) == {"absolute"}
    assert "draws of prompts (2)" in text and all(task in text for task in TASKS[:6]) and "EAP-GP 0." in text


def test_the_command_writes_rows_and_curves(tmp_path, capsys):
    table = tmp_path / "t.csv"
    assert main(["mini-llama", "-n", "4", "--tasks", "capital", "--methods", "gim", "random", "--seeds", "2",
                 "--csv", str(table)]) == 0
    out = capsys.readouterr().out
    written, points = pandas.read_csv(table), pandas.read_csv(tmp_path / "t-curves.csv")
    assert written[["seed", "method"]].to_numpy().tolist() == [[0, "gim"], [0, "random"], [1, "gim"], [1, "random"]]
    mean = f"{written[written.method == 'gim'].cpr.mean():.2f}"
    assert any("gim" in line and mean in line for line in out.splitlines()) and "Means over draws" in out
    assert len(points) == 2 * 2 * 2 * 10 and {"share", "requested", "edges", "faithfulness"} <= set(points)
    assert pandas.read_csv(tmp_path / "t-mean.csv").method.tolist() == ["gim", "random"]
    assert main(["mini-llama", "--tasks", "iio"]) == 2
