"""The explorer's data and its file; tests/browser opens it."""

import base64
import json
import re
from dataclasses import replace

import pytest
import torch
from nnsight import NNsight
from tiny import build

import gimkit
from gimkit.circuits import EdgeScores
from gimkit.errors import GimkitError
from gimkit.notebook import explorer
from gimkit.notebook.explorer import SCRIPT, STYLE

torch.set_num_threads(1)
SIZES = (0.02, 0.1, 0.3, 0.7)


@pytest.fixture(scope="module")
def made():
    """mini-llama, a prompt, its edge scores, and a curve by |score|."""
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.ioi(model, n=4, seed=0)
    edges = gimkit.score_edges(model, task, method="gim")
    return model, task[0].clean, edges, gimkit.faithfulness(model, task, edges, absolute=True, sizes=SIZES)


def embedded(path) -> dict:
    """The data of a saved explorer."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    return json.loads(text)


def test_the_file_holds_exactly_the_scores(made, tmp_path):
    edges, curve = made[2:]
    data = embedded(gimkit.explore(*made).save(tmp_path / "ioi.html"))
    back, first = torch.zeros_like(edges.scores), torch.full(edges.scores.shape, 99)
    for source, target, score, size in data["edges"]:
        i, j = edges.sources.index(data["sources"][source]), edges.targets.index(data["targets"][target])
        back[i, j], first[i, j] = score, size
    shown = edges.top(int(SIZES[-1] * edges.graph.n_edges), absolute=True).keep
    assert torch.equal(back, edges.scores * shown) and len(data["edges"]) == curve.edges[-1]
    assert data["total"] == edges.graph.n_edges and data["larger"] == 0
    for size, share in enumerate(SIZES):
        assert torch.equal(first <= size, edges.top(int(share * edges.graph.n_edges), absolute=True).keep)
    assert data["faithfulness"] == curve.faithfulness.tolist() and data["sizes"] == list(curve.edges)
    assert data["shares"] == list(SIZES) and data["title"] == "ioi: gim, absolute, logit"


def test_without_a_kernel_a_picture_of_a_circuit_is_in_its_place(made):
    bundle, _ = gimkit.explore(*made)._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    [ax] = gimkit.explore(*made).figure.axes
    assert ax.get_title() == str(made[2].top(int(0.1 * made[2].graph.n_edges), absolute=True))


def test_greedy_circuits_are_nested_too(made):
    model, prompt, edges, _ = made
    task = gimkit.tasks.ioi(model, n=4, seed=1)
    curve = gimkit.faithfulness(model, task, edges, absolute=False, greedy=True, sizes=SIZES)
    data = gimkit.explore(model, prompt, edges, curve).data
    for size, share in enumerate(SIZES):
        here = {(i, j) for i, j, _, first in data["edges"] if first <= size}
        assert here == set(map(tuple, edges.greedy(int(share * edges.graph.n_edges)).keep.nonzero().tolist()))


def test_what_no_page_can_show_is_left_out_or_refused(made, monkeypatch):
    edges, curve = made[2:]
    monkeypatch.setattr(explorer, "MOST_EDGES", curve.edges[1])
    data = gimkit.explore(*made).data
    small = edges.top(int(SIZES[1] * edges.graph.n_edges), absolute=True)
    assert len(data["edges"]) == curve.edges[1] and data["sizes"] == list(curve.edges[:2]) and data["larger"] == 2
    assert set(data["attention"]) == {name.partition("<")[0] for edge in small.edges for name in edge.split("->")
                                      if name[0] == "a"}
    monkeypatch.setattr(explorer, "MOST_ATTENTION", 100)
    with pytest.raises(GimkitError, match="heads on 19 tokens is too much for a page; give a shorter prompt"):
        gimkit.explore(*made)
    monkeypatch.setattr(explorer, "MOST_EDGES", curve.edges[0] - 1)
    with pytest.raises(GimkitError, match="circuits of 1 to .* edges and those of this curve have .* other sizes="):
        gimkit.explore(*made)


def test_a_circuit_without_edges_is_no_page(made):
    """The smallest size would be an empty canvas."""
    model, prompt, edges, _ = made
    curve = gimkit.faithfulness(model, gimkit.tasks.ioi(model, n=4, seed=1), edges, absolute=True, sizes=(0.0, *SIZES))
    data = gimkit.explore(model, prompt, edges, curve).data
    assert curve.edges[0] == 0 and data["sizes"] == list(curve.edges[1:]) and data["shares"] == list(SIZES)
    assert data["faithfulness"] == curve.faithfulness.tolist()[1:] and min(first for *_, first in data["edges"]) == 0


def test_the_attention_is_the_models_own(made):
    eager = gimkit.load("mini-llama", attn_implementation="eager")
    data = gimkit.explore(*made).data
    ids = torch.tensor([eager.tokenizer(made[1])["input_ids"]])
    wanted = eager._module(ids, output_attentions=True, use_cache=False).attentions
    assert len(data["attention"]) == sum(layer.shape[1] for layer in wanted) and len(data["tokens"]) == ids.shape[1]
    for layer, heads in enumerate(wanted):
        for head, pattern in enumerate(heads[0]):
            assert torch.allclose(torch.tensor(data["attention"][f"a{layer}.h{head}"]), pattern, atol=6e-5)


def test_the_same_input_gives_the_same_bytes_that_load_nothing(made, tmp_path):
    roles = {"a0.h0": "first", "m0": "", "a1.h1": None}
    files = [gimkit.explore(*made, roles).save(tmp_path / name) for name in ("one.html", "two.html")]
    text = files[0].read_text("utf-8")
    assert files[0].read_bytes() == files[1].read_bytes()
    assert embedded(files[0])["roles"] == {"a0.h0": "first"}
    assert set(re.findall(r"https?://[^\"']*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"\bimport\b\s*[({\"'*]|<link|<img|src=|url\(", text)
    assert "default-src 'none'" in text and SCRIPT in text and STYLE in text


def test_texts_cannot_end_the_data(made, tmp_path):
    nasty = "</script><script>alert(1)</script><!--<script>\u2028"
    explorer = gimkit.explore(*made, {"a0.h0": nasty})
    explorer.data = explorer.data | {"title": nasty}
    path = explorer.save(tmp_path / "nasty.html")
    data = embedded(path)
    assert data["roles"] == {"a0.h0": nasty} and data["title"] == nasty
    assert path.read_text("utf-8").count("<script") == 2 and "<title>&lt;/script&gt;" in path.read_text("utf-8")


def test_what_does_not_belong_together_is_refused(made, tmp_path):
    model, prompt, edges, curve = made
    turned = EdgeScores(edges.task, edges.method, edges.graph, -edges.scores.roll(1, 0) * edges.graph.real)
    with pytest.raises(GimkitError, match="other scores"):
        gimkit.explore(model, prompt, turned, curve)
    with pytest.raises(GimkitError, match="scores are of a model"):
        gimkit.explore(NNsight(build("gpt2")), prompt, edges, curve)
    with pytest.raises(GimkitError, match="already carries"):
        gimkit.explore(gimkit.apply(model), prompt, edges, curve)
    with pytest.raises(GimkitError, match="empty"):
        gimkit.explore(model, " ", edges, curve)
    with pytest.raises(GimkitError, match="ioi.json: the explorer is an .html file"):
        gimkit.explore(*made).save(tmp_path / "ioi.json")


def test_a_curve_of_other_scores_is_refused_although_its_sizes_fit(made, tmp_path):
    model, prompt, edges, curve = made
    other = replace(edges, scores=edges.scores.roll(1, 0) * edges.graph.real)
    counts = (int(share * edges.graph.n_edges) for share in SIZES)
    fake = replace(curve, edges=tuple(len(other.top(n, absolute=True)) for n in counts))
    with pytest.raises(GimkitError, match="made from other scores"):
        gimkit.explore(model, prompt, other, fake)
    for ending in ("json", "pt"):  # saving and loading changes nothing
        again = EdgeScores.load(edges.save(tmp_path / f"ioi.{ending}"))
        assert gimkit.explore(model, prompt, again, curve).data["sizes"] == list(curve.edges)


def test_prompts_that_the_model_cannot_take(made):
    model, _, edges, curve = made
    for prompt, message in ((torch.arange(200), "has 200 tokens, but the model's context holds"),
                            ([1, 10**6], "holds the token id 1000000"), ([], "is empty"), ([1.5], "whole numbers")):
        with pytest.raises(GimkitError, match=message):
            gimkit.explore(model, prompt, edges, curve)
