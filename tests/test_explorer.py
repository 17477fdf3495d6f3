"""The explorer's data and its file; tests/browser opens it."""

import base64
import json
import re
from dataclasses import replace

import pytest
import torch
from made_up import random_task
from nnsight import NNsight
from tiny import build

import gimkit
from gimkit.circuits import Curve, EdgeScores
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


def only(data) -> dict:
    """The one view of an explorer of one curve."""
    [method] = data["methods"]
    [view] = method["curves"]
    return view


def test_the_file_holds_exactly_the_scores(made, tmp_path):
    edges, curve = made[2:]
    data = embedded(gimkit.explore(*made).save(tmp_path / "ioi.html"))
    view = only(data)
    back, first = torch.zeros_like(edges.scores), torch.full(edges.scores.shape, 99)
    for source, target, score, size in view["edges"]:
        i, j = edges.sources.index(data["sources"][source]), edges.targets.index(data["targets"][target])
        back[i, j], first[i, j] = score, size
    shown = edges.top(int(SIZES[-1] * edges.graph.n_edges), absolute=True).keep
    assert torch.equal(back, edges.scores * shown) and len(view["edges"]) == curve.edges[-1]
    assert data["total"] == edges.graph.n_edges and view["larger"] == 0
    for size, share in enumerate(SIZES):
        assert torch.equal(first <= size, edges.top(int(share * edges.graph.n_edges), absolute=True).keep)
    assert view["faithfulness"] == curve.faithfulness.tolist() and view["sizes"] == list(curve.edges)
    assert view["shares"] == list(SIZES) and data["title"] == "ioi: gim, absolute, logit"


def test_without_a_kernel_a_picture_of_a_circuit_is_in_its_place(made):
    bundle, _ = gimkit.explore(*made)._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    [ax] = gimkit.explore(*made).figure.axes
    assert ax.get_title() == str(made[2].top(int(0.1 * made[2].graph.n_edges), absolute=True))


def test_greedy_circuits_are_nested_too(made):
    model, prompt, edges, _ = made
    task = gimkit.tasks.ioi(model, n=4, seed=1)
    curve = gimkit.faithfulness(model, task, edges, absolute=False, greedy=True, sizes=SIZES)
    view = only(gimkit.explore(model, prompt, edges, curve).data)
    for size, share in enumerate(SIZES):
        here = {(i, j) for i, j, _, first in view["edges"] if first <= size}
        assert here == set(map(tuple, edges.greedy(int(share * edges.graph.n_edges)).keep.nonzero().tolist()))


def test_what_no_page_can_show_is_left_out_or_refused(made, monkeypatch):
    edges, curve = made[2:]
    monkeypatch.setattr(explorer, "MOST_EDGES", curve.edges[1])
    data = gimkit.explore(*made).data
    view = only(data)
    small = edges.top(int(SIZES[1] * edges.graph.n_edges), absolute=True)
    assert len(view["edges"]) == curve.edges[1] and view["sizes"] == list(curve.edges[:2]) and view["larger"] == 2
    [prompt] = data["prompts"]
    assert set(prompt["attention"]) == {name.partition("<")[0] for edge in small.edges for name in edge.split("->")
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
    view = only(gimkit.explore(model, prompt, edges, curve).data)
    assert curve.edges[0] == 0 and view["sizes"] == list(curve.edges[1:]) and view["shares"] == list(SIZES)
    assert view["faithfulness"] == curve.faithfulness.tolist()[1:] and min(first for *_, first in view["edges"]) == 0


@pytest.fixture(scope="module")
def several(made):
    """Two prompt pairs, two methods, two rankings of the first."""
    model, _, edges, curve = made
    task = gimkit.tasks.ioi(model, n=4, seed=0)
    plain = gimkit.score_edges(model, task, "gim-ig")
    signed = gimkit.faithfulness(model, task, edges, absolute=False, sizes=SIZES)
    other = gimkit.faithfulness(model, task, plain, absolute=True, sizes=SIZES[:2])
    views = {"GIM": (edges, [curve, signed]), "averaged": (plain, other)}
    return model, task[1:3], edges, gimkit.explore(model, task[1:3], views)


def test_each_method_and_ranking_is_a_view_and_each_pair_a_prompt(several):
    model, task, edges, explorer = several
    data = explorer.data
    assert [method["label"] for method in data["methods"]] == ["GIM", "averaged"]
    assert [[view["ranking"] for view in method["curves"]] for method in data["methods"]] == [["absolute", "signed"],
                                                                                             ["absolute"]]
    assert data["title"] == "ioi: GIM, averaged" and data["methods"][1]["curves"][0]["label"].startswith("gim-ig")
    keep = edges.top(int(SIZES[0] * edges.graph.n_edges), absolute=False).keep
    assert {(i, j) for i, j, _, first in data["methods"][0]["curves"][1]["edges"] if first == 0} == set(
        map(tuple, keep.nonzero().tolist()))
    for prompt, pair, ids, last in zip(data["prompts"], task.pairs, task.clean, task.last):
        assert (prompt["answer"], prompt["wrong"]) == (pair.answer, pair.wrong)
        assert prompt["tokens"] == [model.tokenizer.decode(i) for i in ids[:last + 1].tolist()]


def test_answers_next_tokens_and_effects_are_the_models_own(several):
    model, task, edges, explorer = several
    exact = gimkit.score_nodes(model, task, "exact")
    for row, prompt in enumerate(explorer.data["prompts"]):
        logits = model._module(task.clean[row:row + 1, :task.last[row] + 1], use_cache=False).logits[0, -1]
        best = logits.softmax(0).topk(5)
        assert [token for token, _ in prompt["top"]] == [model.tokenizer.decode(i) for i in best.indices.tolist()]
        assert [share for _, share in prompt["top"]] == pytest.approx(best.values.tolist(), abs=1e-4)
        difference = float(logits[task.good[row][0]] - logits[task.bad[row][0]])
        assert prompt["clean"] == pytest.approx(difference, rel=1e-3)
        found = {name: float(x) for name, x in zip(exact.nodes, exact.per_example[row])}
        assert prompt["effects"] == pytest.approx(found, rel=1e-3, abs=1e-4)
        assert all(explorer.ablated(row, [name], []) == pytest.approx(difference - found[name], abs=2e-3)
                   for name in ("input", "a2.h1", "m3"))


def test_ablating_several_runs_the_model_without_all_their_edges(several):
    model, task, edges, explorer = several
    graph = edges.graph
    place = graph.edges["a0.h1->a3.h1<v>"]
    kept = [name for name in graph.edges if not name.startswith(("a2.h1->", "m1->")) and name != "a0.h1->a3.h1<v>"]
    without = gimkit.circuits.Circuit.of(graph, kept)
    want = float(gimkit.run(model, task[1:2], without))
    assert explorer.ablated(1, ["a2.h1", "m1"], [list(place)]) == pytest.approx(want, abs=1e-4)
    assert explorer.ablated(1, [], []) == pytest.approx(explorer.data["prompts"][1]["clean"], rel=1e-3)


def test_a_kernel_answers_the_page(several, monkeypatch):
    explorer, sent = several[3], []
    monkeypatch.setattr(explorer, "send", sent.append)
    explorer._handle_custom_msg({"request": 3, "prompt": 0, "nodes": ["a2.h1"], "edges": []}, [])
    explorer._handle_custom_msg({"request": 4, "prompt": 0, "nodes": ["nobody"], "edges": []}, [])
    effects = explorer.data["prompts"][0]
    assert sent[0] == {"request": 3, "value": pytest.approx(effects["clean"] - effects["effects"]["a2.h1"], abs=2e-3)}
    assert sent[1]["request"] == 4 and sent[1]["error"]


def test_tokens_and_positions_have_the_methods_scores(several):
    model, task, edges, explorer = several
    for method, rules, by in zip(explorer.data["methods"], ("gim", "gim"), ("gim", "gim-ig")):
        for row, (attribution, positions) in enumerate(zip(method["attribution"], method["positions"])):
            ids = task.clean[row, :task.last[row] + 1]
            target = (task.good[row][0], task.bad[row][0])
            want = gimkit.attribute(model, ids, target, method=rules).scores
            assert attribution == pytest.approx(want.tolist(), rel=1e-3, abs=1e-6) and method["rules"] == rules
            found = gimkit.circuits.position_scores(model, task, by)[row, :, :len(ids)]
            assert torch.allclose(torch.tensor(positions), found, rtol=1e-3, atol=1e-6)


def test_answers_of_several_ids_are_attributed_together():
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.greater_than(model, n=2)
    edges = gimkit.score_edges(model, task, "random")
    curve = made_up_curve(edges, SIZES)
    data = gimkit.explore(model, task[:1], edges, curve).data
    good, bad = map(list, (task.good[0], task.bad[0]))
    want = gimkit.attribute(model, task.clean[0, :task.last[0] + 1],
                            lambda logits: logits[good].logsumexp(0) - logits[bad].logsumexp(0)).scores
    assert len(good) > 1 and data["methods"][0]["attribution"][0] == pytest.approx(want.tolist(), rel=1e-3, abs=1e-6)
    assert data["methods"][0]["rules"] == "gim"  # random scores have no rules


def made_up_curve(edges, sizes):
    """A curve of circuits that nobody ran."""
    kept = [edges.top(int(share * edges.graph.n_edges), absolute=True) for share in sizes]
    return Curve("ioi", edges.method, True, False, tuple(sizes), tuple(map(len, kept)),
                 torch.tensor(sizes)[:, None], torch.zeros(1), torch.ones(1), fingerprint=edges.fingerprint)


def test_without_a_tokenizer_tokens_are_numbers_without_colours():
    model, task = NNsight(build("llama")), random_task(3)
    edges = gimkit.score_edges(model, task, "random")
    data = gimkit.explore(model, task[2:3], edges, made_up_curve(edges, (0.2, 0.5))).data
    assert data["methods"][0]["attribution"] == []
    assert data["prompts"][0]["tokens"] == list(map(str, task.clean[2].tolist()))
    assert data["prompts"][0]["answer"] == "7" and len(data["methods"][0]["positions"][0]) == 16


def test_a_model_of_three_hundred_nodes_stays_below_three_megabytes(tmp_path, monkeypatch):
    """SmolLM2's shape: 30 layers of 9 heads, 500 edges, three prompts of 24 tokens."""
    model = NNsight(build("llama", num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, hidden_size=36,
                          head_dim=4))
    task = random_task(3, length=24)
    edges = gimkit.score_edges(model, task, "random")
    curve = made_up_curve(edges, tuple(n / edges.graph.n_edges for n in (2000, 3000, 4000)))
    path = gimkit.explore(model, task, edges, curve).save(tmp_path / "large.html")
    assert len(edges.sources) == 301 and curve.edges[-1] > 500 and path.stat().st_size < 3_000_000
    monkeypatch.setattr(explorer, "MOST_BYTES", path.stat().st_size - 5000)
    with pytest.raises(GimkitError, match="the page would have .* MB.* fewer prompts or methods"):
        gimkit.explore(model, task, edges, curve)


def test_the_attention_is_the_models_own(made):
    eager = gimkit.load("mini-llama", attn_implementation="eager")
    [data] = gimkit.explore(*made).data["prompts"]
    ids = torch.tensor([eager.tokenizer(made[1])["input_ids"]])
    wanted = eager._module(ids, output_attentions=True, use_cache=False).attentions
    assert len(data["attention"]) == sum(layer.shape[1] for layer in wanted) and len(data["tokens"]) == ids.shape[1]
    for layer, heads in enumerate(wanted):
        for head, pattern in enumerate(heads[0]):
            rows = data["attention"][f"a{layer}.h{head}"]
            assert [len(row) for row in rows] == list(range(1, len(rows) + 1))  # the rest is zero
            shown = torch.tensor([row + [0] * (len(rows) - len(row)) for row in rows]) / 1000
            assert torch.allclose(shown, pattern, atol=6e-4)


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
    for given in ((edges,), ({"gim": (edges, curve)}, curve), ({},), ({"gim": edges},), (edges, []), (None, curve),
                  ({"gim": (curve, edges)},)):
        with pytest.raises(GimkitError, match="scores of edges and their curve, or a mapping"):
            gimkit.explore(model, prompt, *given)
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
        assert only(gimkit.explore(model, prompt, again, curve).data)["sizes"] == list(curve.edges)


def test_prompts_that_the_model_cannot_take(made):
    model, _, edges, curve = made
    for prompt, message in ((torch.arange(200), "has 200 tokens, but the model's context holds"),
                            ([1, 10**6], "holds the token id 1000000"), ([], "is empty"), ([1.5], "whole numbers")):
        with pytest.raises(GimkitError, match=message):
            gimkit.explore(model, prompt, edges, curve)
