"""Circuits from names and nodes, circuits known by hand, and files, against numbers and keys worked out by hand."""

import contextlib
import json

import pytest
import torch
from made_up import random_task
from nnsight import NNsight
from tiny import build

import gimkit
from gimkit.circuits import Circuit, EdgeScores, Graph, NodeScores, auroc, known, precision_recall
from gimkit.model.graph import prune

GRAPH = Graph(layers=2, heads=2, parallel=False, width=8)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def edges_made_up(graph=GRAPH):
    return EdgeScores("made up", "gim", graph, noise(*graph.real.shape) * graph.real, metric="kl")


def nodes_made_up(graph=GRAPH):
    return NodeScores("made up", "gim", graph.sources, noise(5, len(graph.sources)), "kl", graph)


# --- from names and from nodes ---


def test_circuits_from_names():
    names = ["input->a0.h1<k>", "a0.h1->m0", "m0->logits"]
    assert Circuit.of(GRAPH, names).edges == tuple(names) and len(Circuit.of(GRAPH, [])) == 0
    circuit = edges_made_up().top(12)
    assert Circuit.of(GRAPH, circuit.edges) == circuit
    for name in ("input->a0.h2<q>", "m1->m0", "a0.h0->a0.h1<q>", "a0.h0->a1.h0", "input", "logits->m0"):
        with pytest.raises(gimkit.GimkitError, match=f"no edge '{name}' in a model of 2 sequential layers of 2 heads"):
            Circuit.of(GRAPH, [*names, name])


def test_a_graph_names_its_edges():
    assert len(GRAPH.edges) == GRAPH.n_edges and GRAPH.edges["a0.h1->a1.h0<k>"] == (2, 9)
    assert Circuit(GRAPH, GRAPH.real).edges == tuple(GRAPH.edges)


@pytest.mark.parametrize("parallel, own", [(False, True), (True, False)])
def test_all_edges_between_nodes(parallel, own):
    graph = GRAPH._replace(parallel=parallel)
    got = set(Circuit.between(graph, ["input", "a0.h1", "m0", "a1.h0"]).edges)
    want = {f"input->a0.h1<{q}>" for q in "qkv"} | {"input->m0"}
    want |= {f"{source}->a1.h0<{q}>" for source in ("input", "a0.h1", "m0") for q in "qkv"}
    want |= {f"{source}->logits" for source in ("input", "a0.h1", "m0", "a1.h0")}
    assert got == want | ({"a0.h1->m0"} if own else set())
    assert Circuit.between(graph, graph.sources) == Circuit(graph, graph.real)
    assert len(Circuit.between(graph, [])) == 0
    with pytest.raises(gimkit.GimkitError, match="no node 'a2.h0' in a model of 2"):
        Circuit.between(graph, ["input", "a2.h0"])


def test_the_best_nodes_make_a_circuit():
    means = torch.tensor([3.0, -9.0, 2.0, 0.5, 1.0, 0.0, -1.0])  # input, a0.h0, a0.h1, m0, a1.h0, a1.h1, m1
    scores = NodeScores("t", "m", GRAPH.sources, torch.stack([means - 1, means + 1]), graph=GRAPH)
    assert scores.top(2) == Circuit.between(GRAPH, ["input", "a0.h1", "a1.h0"])
    assert scores.top(2, absolute=True) == Circuit.between(GRAPH, ["input", "a0.h0", "a0.h1"])
    assert scores.top(0).edges == ("input->logits",)
    assert scores.top(6) == Circuit(GRAPH, GRAPH.real)
    scores.per_example[:, 0] = -20  # the embedding feeds whatever its score
    assert scores.top(1) == Circuit.between(GRAPH, ["input", "a0.h1"])
    for n in (7, -1):
        with pytest.raises(gimkit.GimkitError, match=f"n, a number of heads and MLPs, must be .* from 0 to 6, not {n}"):
            scores.top(n)


def test_node_circuits_run():
    """All nodes run as the clean prompt, a head alone as the corrupt one."""
    model, task = NNsight(build("gpt2")), random_task(2)
    nodes = gimkit.score_nodes(model, task, "gim")
    assert nodes.graph == gimkit.score_edges(model, task, "random").graph == Graph(3, 4, False, 32)
    head = Circuit.between(nodes.graph, ["a1.h0"])
    whole, empty, alone = gimkit.run(model, task, [nodes.top(15), Circuit.of(nodes.graph, []), head])
    assert torch.allclose(alone, empty, atol=1e-5) and not torch.allclose(whole, empty, atol=1e-3)


def test_nodes_without_edges_make_no_circuit(tmp_path):
    nodes = gimkit.score_nodes(NNsight(build("granite")), random_task(2), "gradient")
    assert nodes.graph is None
    for act in (lambda: nodes.top(3), lambda: nodes.save(tmp_path / "a.json")):
        with pytest.raises(gimkit.GimkitError, match="edges of this model are not covered"):
            act()


def test_nan_scores_make_no_circuit():
    edges, nodes = edges_made_up(), nodes_made_up()
    edges.scores[0, 0] = nodes.per_example[0, 0] = torch.nan
    for choose in (edges.top, edges.greedy, nodes.top):
        with pytest.raises(gimkit.GimkitError, match="the scores contain NaN"):
            choose(3)


# --- circuits known by hand ---


def test_the_ioi_circuit_counted_by_hand():
    circuit = known.ioi()
    heads = [name for names in known.IOI_HEADS.values() for name in names]
    assert len(set(heads)) == len(heads) == 26
    assert set(circuit.nodes) == {"input", *heads, *(f"m{layer}" for layer in range(12))}
    below = sum(int(name[1:].partition(".")[0]) for name in heads)  # MLPs below each head, summed
    movers, inhibition = 3 + 8 + 2, 4
    head_to_head = 2 * 4 * 2 + (4 + 3) * inhibition * 2 + inhibition * movers
    from_input = (2 + 3) * 3 + inhibition + movers * 2 + 12 + 1
    mlps = 12 * 11 // 2 + 12
    assert head_to_head == 124
    assert len(circuit) == head_to_head + from_input + mlps + movers + below * 3 + (26 * 12 - below) == 963
    assert sum(edge.startswith("a") and "->a" in edge for edge in circuit.edges) == 124
    for edge in ("a5.h5->a7.h3<k>", "a8.h6->a10.h7<q>", "input->a9.h9<v>", "a11.h10->logits", "a4.h11->a5.h8<v>"):
        assert edge in circuit.edges
    for edge in ("a5.h5->a7.h3<q>", "a7.h9->a9.h9<k>", "input->a5.h5<k>", "a7.h3->logits", "a0.h1->a5.h5<k>"):
        assert edge not in circuit.edges


def test_the_greater_than_circuit_counted_by_hand():
    circuit = known.greater_than()
    early, to_late = 2 + 1, 5 * 4 + 3  # 9.1 is above m8
    from_input, to_logits = early * 3 + 4, 6 + 4
    into_middle = (early + 4) * 6 * 3 + (1 + 2 + 2 + 3 + 4 + 5)  # then queries from m4 up
    mlps = 9 * 8 // 2 + 4 * 3 // 2
    assert len(circuit) == from_input + 4 + into_middle + mlps + to_late + to_logits == 235
    assert len(circuit.nodes) == 1 + 9 + 12
    for edge in ("a0.h1->m0", "a8.h11->m8", "m7->a8.h11<q>", "m3->a5.h5<v>", "m9->logits"):
        assert edge in circuit.edges
    for edge in ("a0.h3->m0", "a9.h1->m8", "m7->a8.h11<k>", "m7->logits", "m7->m9", "input->m4", "input->a5.h5<q>"):
        assert edge not in circuit.edges


@pytest.mark.parametrize("circuit", [known.ioi, known.greater_than])
def test_known_circuits_have_no_dead_ends(circuit):
    circuit = circuit()
    assert circuit.graph == Graph(12, 12, False, 768)
    assert torch.equal(prune(circuit.keep, circuit.graph), circuit.keep)
    assert Circuit.of(circuit.graph, circuit.edges) == circuit


def test_heads_against_a_known_circuit():
    ioi = known.ioi()
    heads = {name for names in known.IOI_HEADS.values() for name in names}
    ideal = torch.tensor([0.0 if name[0] == "a" and name not in heads else -1.0 for name in ioi.graph.sources])
    scores = NodeScores("ioi", "ideal", ioi.graph.sources, ideal[None], graph=ioi.graph)
    table = precision_recall(scores, ioi)
    assert len(table) == 144 and table.iloc[25][["n", "precision", "recall"]].tolist() == [26, 1, 1]
    assert auroc(scores, ioi) == 1 and auroc(scores, ioi, absolute=False) == 0
    chance = NodeScores("ioi", "flat", ioi.graph.sources, torch.ones(1, 157), graph=ioi.graph)
    assert auroc(chance, ioi) == 0.5
    assert precision_recall(chance, ioi).iloc[-1].tolist() == [144, 26 / 144, 1]


def test_scores_against_another_models_circuit():
    for scores in (edges_made_up(), nodes_made_up(), NodeScores("t", "m", GRAPH.sources, torch.ones(2, 7))):
        for compare in (auroc, precision_recall):
            with pytest.raises(gimkit.GimkitError, match="known circuit is of a model of 12 sequential layers"):
                compare(scores, known.ioi())
    nan = EdgeScores("t", "m", GRAPH, torch.full(GRAPH.real.shape, torch.nan))
    with pytest.raises(gimkit.GimkitError, match="NaN"):
        auroc(nan, edges_made_up().top(9))


# --- files ---


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("ending", ["json", "pt"])
def test_files_come_back(tmp_path, ending, parallel):
    graph = GRAPH._replace(parallel=parallel)
    edges, nodes = edges_made_up(graph), nodes_made_up(graph)
    again = EdgeScores.load(edges.save(tmp_path / f"edges.{ending}"))
    assert (again.graph, again.task, again.method, again.metric) == (graph, "made up", "gim", "kl")
    assert torch.equal(again.scores, edges.scores)
    assert Circuit.load(tmp_path / f"edges.{ending}") == Circuit(graph, graph.real)
    again = NodeScores.load(nodes.save(tmp_path / f"nodes.{ending}"))
    assert (again.graph, again.nodes) == (graph, graph.sources)
    assert (again.task, again.method, again.metric) == ("made up", "gim", "kl")
    assert torch.equal(again.scores, nodes.scores) and again.top(4) == nodes.top(4)
    for circuit in (edges.top(9), edges.greedy(9), Circuit.between(graph, ["input", "m0"]), Circuit.of(graph, [])):
        again = Circuit.load(circuit.save(tmp_path / f"circuit.{ending}"))
        assert again == circuit
        assert torch.equal(again.scores, circuit.keep.float() if circuit.scores is None else circuit.scores)


def test_the_json_is_mibs(tmp_path):
    config = {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    edges, nodes = edges_made_up(), nodes_made_up()
    data = json.loads(edges.save(tmp_path / "edges.json").read_text())
    assert data["cfg"] == config and set(data["nodes"]) == {*GRAPH.sources, "logits"}
    assert set(data["edges"]) == set(GRAPH.edges)
    assert data["edges"]["a0.h1->a1.h0<k>"] == {"score": edges.scores[2, 9].item(), "in_graph": True}
    data = json.loads(nodes.save(tmp_path / "nodes.json").read_text())
    assert data["cfg"] == config and data["nodes"]["m0"] == {"score": nodes.scores[3].item(), "in_graph": True}
    assert data["nodes"]["logits"] == {"in_graph": True} and set(data["edges"]) == set(GRAPH.edges)
    data = json.loads(Circuit.between(GRAPH, ["input", "m0"]).save(tmp_path / "circuit.json").read_text())
    assert [name for name, node in data["nodes"].items() if node["in_graph"]] == ["input", "m0", "logits"]
    assert [name for name, edge in data["edges"].items() if edge["in_graph"]] == [
        "input->m0", "input->logits", "m0->logits"]


def test_the_pt_is_mibs(tmp_path):
    edges, nodes = edges_made_up(), nodes_made_up()
    data = torch.load(edges.save(tmp_path / "edges.pt"), weights_only=True)
    assert set(data) == {"cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph", "labels"}
    assert (data["src_nodes"], data["dst_nodes"]) == (list(GRAPH.sources), list(GRAPH.targets))
    assert data["edges_scores"].dtype == torch.float32 and data["edges_in_graph"].dtype == torch.bool
    assert data["nodes_in_graph"].tolist() == [True] * 7
    data = torch.load(nodes.save(tmp_path / "nodes.pt"), weights_only=True)
    assert torch.equal(data["nodes_scores"], nodes.scores) and not data["edges_scores"].any()


def test_files_of_the_reference(tmp_path):
    """Without labels, with backward edges of a node-level circuit, with edges left out of a JSON."""
    path = edges_made_up().save(tmp_path / "importances.pt")
    data = torch.load(path, weights_only=True)
    del data["labels"]
    data["edges_in_graph"][[0, 3]] = True
    data["edges_in_graph"][[1, 2, 4, 5, 6]] = False
    torch.save(data, path)
    assert (EdgeScores.load(path).method, EdgeScores.load(path).metric) == ("importances.pt", "")
    assert Circuit.load(path).nodes == ("input", "m0") and "m0->m0" not in Circuit.load(path).edges
    path = edges_made_up().save(tmp_path / "some.json")
    data = json.loads(path.read_text())
    data["edges"] = {"input->m0": {"score": 2.0, "in_graph": True}}
    path.write_text(json.dumps(data))
    assert Circuit.load(path).edges == ("input->m0",) and EdgeScores.load(path).scores.sum() == 2


@pytest.mark.parametrize("ending", ["json", "pt"])
def test_a_file_of_another_model(tmp_path, ending):
    model, task = NNsight(build("gpt2")), random_task(2)
    edges, nodes = gimkit.score_edges(model, task, "random"), gimkit.score_nodes(model, task, "gradient")
    paths = [found.save(tmp_path / f"{name}.{ending}") for name, found in
             (("edges", edges), ("circuit", edges.top(30)), ("nodes", nodes))]
    kinds = (EdgeScores, Circuit, NodeScores)
    for kind, path in zip(kinds, paths):
        assert kind.load(path, model=model).graph == edges.graph
    for other in (GRAPH, edges.graph._replace(width=64), edges.graph._replace(parallel=True)):
        made_up = edges_made_up(other)
        saved = (made_up, made_up.top(9), nodes_made_up(other))
        for kind, path, found in zip(kinds, paths, saved):
            found.save(path)
            with pytest.raises(gimkit.GimkitError, match=f"{path.name} is of a model of {other}, but GPT2LMHeadModel "
                                                         f"here has {edges.graph}"):
                kind.load(path, model=model)
        with pytest.raises(gimkit.GimkitError, match="are of a model of"):
            gimkit.run(model, task, Circuit.load(paths[1]))
        with pytest.raises(gimkit.GimkitError, match="are of a model of"):
            gimkit.faithfulness(model, task, EdgeScores.load(paths[0]), absolute=True)


@pytest.mark.parametrize("ending", ["json", "pt"])
def test_nan_scores_are_neither_written_nor_read(tmp_path, ending):
    for made_up, field in ((edges_made_up(), "scores"), (edges_made_up().top(9), "scores"),
                           (nodes_made_up(), "per_example")):
        path = made_up.save(tmp_path / f"scores.{ending}")
        if ending == "json":
            text = path.read_text()
            scores = made_up.scores[3, 13] if field == "scores" else made_up.scores[3]
            assert str(scores.item()) in text
            path.write_text(text.replace(str(scores.item()), "NaN"))
        else:
            data = torch.load(path, weights_only=True)
            data["edges_scores" if field == "scores" else "nodes_scores"][3] = torch.nan
            torch.save(data, path)
        with pytest.raises(gimkit.GimkitError, match=f"scores.{ending}: .*(contain NaN|must be a finite number)"):
            type(made_up).load(path)
        path.unlink()
        getattr(made_up, field)[:, 3] = torch.nan
        with pytest.raises(gimkit.GimkitError, match=f"scores.{ending} is not written: the scores contain NaN"):
            made_up.save(path)
        assert not path.exists()


@pytest.mark.parametrize("ending", ["json", "pt"])
def test_nodes_are_not_read_as_edges(tmp_path, ending):
    edges, nodes = edges_made_up().save(tmp_path / f"e.{ending}"), nodes_made_up().save(tmp_path / f"n.{ending}")
    with pytest.raises(gimkit.GimkitError, match="NodeScores.load"):
        EdgeScores.load(nodes)
    with pytest.raises(gimkit.GimkitError, match="EdgeScores.load"):
        NodeScores.load(edges)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_bad_files(tmp_path, capsys):
    torch.save({"cfg": Evil()}, tmp_path / "evil.pt")
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"cfg": {"n_layers": 2}}')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "latin.json").write_bytes(b'{"\xff": 1}')
    (tmp_path / "folder.json").mkdir()
    for name in ("evil.pt", "list.pt", "empty.pt", "text.json", "list.json", "other.json", "deep.json", "latin.json",
                 "folder.json", "missing.json", "missing.pt", "circuit.bin"):
        for kind in (EdgeScores, NodeScores, Circuit):
            with pytest.raises(gimkit.GimkitError, match=name) as error:
                kind.load(tmp_path / name)
            assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out
    for made_up in (edges_made_up(), nodes_made_up(), edges_made_up().top(9)):
        with pytest.raises(gimkit.GimkitError, match="a.csv: write a .json, .pt or .safetensors file"):
            made_up.save(tmp_path / "a.csv")


@pytest.mark.parametrize("ending", ["json", "pt"])
def test_files_that_are_cut_off_or_damaged_are_refused_or_whole(tmp_path, ending):
    """Cut off anywhere: a GimkitError. A byte changed: a GimkitError, or a file that still makes sense."""
    path, draw = edges_made_up().save(tmp_path / f"a.{ending}"), torch.Generator().manual_seed(0)
    whole = path.read_bytes()
    for n in torch.randint(len(whole) - 1, (30,), generator=draw).tolist():
        path.write_bytes(whole[:n])
        with pytest.raises(gimkit.GimkitError):
            EdgeScores.load(path)
        damaged = bytearray(whole)
        damaged[n] ^= 1 + int(torch.randint(255, (1,), generator=draw))
        path.write_bytes(damaged)
        with contextlib.suppress(gimkit.GimkitError):
            EdgeScores.load(path)


def changed(path, change):
    """The file again after a change of what it holds."""
    data = json.loads(path.read_text()) if path.suffix == ".json" else torch.load(path, weights_only=True)
    change(data)
    path.write_text(json.dumps(data)) if path.suffix == ".json" else torch.save(data, path)
    return path


@pytest.mark.parametrize("ending, change, message", [
    ("pt", lambda data: data["cfg"].update(n_heads=3), "do not fit"),
    ("pt", lambda data: data.update(dst_nodes=data["dst_nodes"][::-1]), "do not fit"),
    ("pt", lambda data: data.update(nodes_scores=torch.ones(3)), "do not fit"),
    ("pt", lambda data: data.pop("edges_in_graph"), "'edges_in_graph' is missing"),
    ("pt", lambda data: data.update(neurons_scores=torch.ones(7, 8)), "neuron-level"),
    ("pt", lambda data: data["cfg"].update(n_layers=10**12), "do not fit"),
    ("pt", lambda data: data.update(labels=[1]), "cannot be read"),
    ("json", lambda data: data["cfg"].update(n_layers=10**12), "do not fit"),
    ("json", lambda data: data["cfg"].update(n_heads=-3), "n_heads must be a whole number"),
    ("json", lambda data: data.update(labels=7), "cannot be read"),
    ("json", lambda data: data["edges"]["input->m0"].update(score=10**400), "cannot be read"),
    ("json", lambda data: data["cfg"].update(n_layers=1), "is missing or unknown"),
    ("json", lambda data: data["edges"].update({"m1->m0": {"score": 1.0, "in_graph": True}}), "'m1->m0' is missing or"),
    ("json", lambda data: data["nodes"].pop("m0"), "'m0' is missing"),
    ("json", lambda data: data["nodes"]["m0"].update(score=1.0), "'score' is missing"),
    ("json", lambda data: data["nodes"]["m0"].update(neurons=[True] * 8), "neuron-level"),
    ("json", lambda data: data["edges"]["input->m0"].update(score=None), "input->m0 must be a finite number"),
])
def test_files_that_contradict_themselves(tmp_path, ending, change, message):
    path = changed(edges_made_up().save(tmp_path / f"a.{ending}"), change)
    for kind in (EdgeScores, NodeScores, Circuit):
        with pytest.raises(gimkit.GimkitError, match=f"a.{ending}.*{message}"):
            kind.load(path)
