"""The API reference shows every public name, its example and its text; what all results have in common."""

import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import get_args

import pytest
import torch
from made_up import random_task
from nnsight import NNsight
from tiny import build

import gimkit
from gimkit import plots
from gimkit.rules import RULES, Preset

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    built = subprocess.run([sys.executable, "-W", "error", ".ci/api/build.py", folder], cwd=ROOT, capture_output=True,
                           text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert built.returncode == 0 and not built.stderr, built.stderr
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}


def test_every_public_name_is_shown_with_its_docstring(pages):
    for page, module in {"gimkit.html": gimkit, "gimkit/circuits.html": gimkit.circuits,
                         "gimkit/tasks.html": gimkit.tasks}.items():
        shown = " ".join(unescape(re.sub("<[^>]+>", "", pages[page])).split())
        for name in module.__all__:
            thing = getattr(module, name)
            if not inspect.ismodule(thing):
                assert f'id="{name}"' in pages[page], name
            if inspect.isfunction(thing):
                assert " ".join(inspect.getdoc(thing).split("\n", 1)[0].split()).replace("`", "") in shown, name


def test_no_page_swallows_a_name_in_angle_brackets_or_needs_the_network(pages):
    for name, text in pages.items():
        assert not re.search(r"<[qkv]>", text) or name.endswith("index.html"), name
        assert not re.search(r"""(src|href)=["']https?://(?!pdoc\.dev)""", text), name


def classes():
    """Every dataclass of the kit."""
    for found in pkgutil.walk_packages(gimkit.__path__, "gimkit."):
        if not found.name.endswith("__main__"):
            module = importlib.import_module(found.name)
            yield from (thing for thing in vars(module).values()
                        if dataclasses.is_dataclass(thing) and thing.__module__ == found.name)


def test_results_can_be_compared():
    """A generated == of tensors, arrays or tables raises; all that hold one have a == of their own."""
    held = [kind for kind in classes() if any(re.search("Tensor|DataFrame|ndarray", str(field.type))
                                              for field in dataclasses.fields(kind))]
    assert len(held) >= 12 and gimkit.circuits.EdgeScores in held
    for kind in held:
        assert not kind.__dataclass_params__.eq, kind
    tensor = torch.tensor([[1.0, torch.nan]])
    scores = gimkit.circuits.NodeScores("t", "m", ("input", "m0"), tensor)
    assert scores == gimkit.circuits.NodeScores("t", "m", ("input", "m0"), tensor.clone())
    for other in (tensor + 1, tensor.double(), tensor[0], torch.tensor([[1.0, 0.0]])):
        assert scores != dataclasses.replace(scores, per_example=other)
    assert scores != dataclasses.replace(scores, method="n") and scores != "m"


def test_the_literal_of_presets_has_every_preset():
    """Methods are computed from their literals; presets are a dict beside theirs."""
    assert get_args(Preset) == tuple(RULES)


def test_half_precision_results_are_tables_and_pictures(recwarn):
    """bfloat16 scores are float32 at the latest in the result."""
    model, task = NNsight(build("llama", torch.bfloat16, gain=1.0)), random_task(3)
    ids = task.clean[2]
    tokens = gimkit.attribute(model, ids, 5, baseline=3)
    results = [tokens, gimkit.attribute(model, ids, 5, baseline=3, method="ig", steps=2),
               gimkit.score_nodes(model, task), gimkit.score_edges(model, task),
               gimkit.score_edges(model, task, nodes=["input", "m1"]),
               gimkit.circuits.score_neurons(model, task), gimkit.selfrepair.head_repair(model, task),
               gimkit.self_repair(model, task, threshold=0.01),
               gimkit.tokens.token_faithfulness(model, [ids], [tokens], [5], baseline=3)]
    for result in results:
        assert len(result.frame()) and result == result
        assert getattr(result, "scores", torch.zeros(1)).dtype == torch.float32
        if hasattr(result, "plot"):
            result.plot()
    plots.token_bars(dataclasses.replace(tokens, scores=tokens.scores.bfloat16()))


def test_exact_sums_in_float32_whatever_torchs_default_is():
    model, task = NNsight(build("gpt2")), random_task(3)
    want = gimkit.score_edges(model, task, "exact")
    nodes = gimkit.score_nodes(model, task, "exact")
    for kind in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(kind)
        try:
            assert gimkit.score_edges(model, task, "exact") == want
            assert gimkit.score_nodes(model, task, "exact") == nodes
        finally:
            torch.set_default_dtype(torch.float32)
