"""Work that grows with the model: only what is needed is computed, and what cannot be shown is refused."""

import inspect
import sys

import pytest
import torch
from made_up import random_task
from nnsight import NNsight
from tiny import build
from transformers.models.llama.modeling_llama import LlamaAttention

import gimkit
from gimkit.circuits import Circuit, EdgeScores, Graph, NodeScores, mib_files
from gimkit.model.architecture import architecture_of, rows_at_once
from gimkit.model.graph import greedy_edges, prune

SMOLLM2 = Graph(layers=30, heads=9, parallel=False, width=576)
LLAMA_8B = Graph(layers=32, heads=32, parallel=False, width=4096)


def made_up(graph, decimals=6):
    scores = torch.randn(graph.real.shape, generator=torch.Generator().manual_seed(0)).round(decimals=decimals)
    return EdgeScores("made up", "gim", graph, scores * graph.real)


@pytest.fixture
def model():
    return NNsight(build("llama"))


def test_a_source_is_read_once_and_a_replaced_forward_anew(model, monkeypatch):
    architecture_of(model)
    read, getsource = [], inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda code: read.append(code) or getsource(code))
    architecture_of(model)
    architecture_of(NNsight(build("llama")))
    assert not read
    original = LlamaAttention.forward

    def forward(self, *inputs, **options):
        return original(self, *inputs, **options)

    monkeypatch.setattr(LlamaAttention, "forward", forward)
    with pytest.raises(gimkit.GimkitError, match="does not call attention_interface"):
        architecture_of(model)
    assert read == [forward]
    monkeypatch.undo()
    model._module.model.layers[1].mlp = torch.nn.Identity()
    with pytest.raises(gimkit.GimkitError, match="layers.1 should hold one MLP"):
        architecture_of(model)


ANSWERED = {
    "attribute": lambda model, task: gimkit.attribute(model, task.clean[3], 5, baseline=0),
    "attribute, forward mode": lambda model, task: gimkit.attribute(model, task.clean[3], 5, baseline=0,
                                                                    backend="forward"),
    "attribute, ig": lambda model, task: gimkit.attribute(model, task.clean[3], 5, baseline=0, method="ig", steps=2),
    "attribute, occlusion": lambda model, task: gimkit.attribute(model, task.clean[3], 5, baseline=0,
                                                                 method="occlusion"),
    "layers": lambda model, task: gimkit.tokens.layer_scores(model, task.clean[3], 5),
    "metric": lambda model, task: gimkit.tasks.measure.metric(model, task),
    "nodes": lambda model, task: gimkit.score_nodes(model, task),
    "exact nodes": lambda model, task: gimkit.score_nodes(model, task, "exact"),
    "neurons": lambda model, task: gimkit.circuits.score_neurons(model, task),
    "coalitions": lambda model, task: gimkit.circuits.shapley_nodes(model, task, orders=1),
    "edges": lambda model, task: gimkit.score_edges(model, task),
    "exact edges": lambda model, task: gimkit.score_edges(model, task[:1], "exact"),
    "head repair": lambda model, task: gimkit.selfrepair.head_repair(model, task),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_only_answers_are_unembedded(model, name, monkeypatch):
    """Bit for bit the same scores: every other test of them compares with an oracle that reads all positions."""
    seen, linear = [], torch.nn.functional.linear

    def watched(x, weight, *bias):
        if weight is model._module.lm_head.weight:
            seen.append(x.shape)
        return linear(x, weight, *bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    ANSWERED[name](model, random_task())
    assert seen and all(shape.numel() == shape[0] * shape[-1] for shape in seen), seen


def test_a_frame_names_each_node_once(monkeypatch):
    named, sources = [], Graph.sources.fget
    monkeypatch.setattr(Graph, "sources", property(lambda graph: named.append(graph) or sources(graph)))
    edges = made_up(SMOLLM2)
    frame = edges.frame()
    assert len(frame) == 123_211 and len(named) <= 2
    row = frame.sample(5, random_state=0)
    for source, target, score in zip(row.source, row.target, row.score):
        assert float(edges.scores[edges.sources.index(source), edges.targets.index(target)]) == score


def literal_greedy(scores, graph, n):
    """Of all edges into nodes that are in, the best, n times; among equals the first source, then the first target."""
    owner, keep, inside = graph.node_of().tolist(), torch.zeros_like(graph.real), {-1}
    for _ in range(n):
        open_ = [(-float(scores[i, j]), i, j) for i, j in graph.real.nonzero().tolist()
                 if owner[j] in inside and not keep[i, j]]
        if not open_:
            break
        _, i, j = min(open_)
        keep[i, j] = True
        inside |= {i} - {0}
    return keep


@pytest.mark.parametrize("n", [0, 1, 17, 60, 80])
def test_greedy_takes_the_best_edge_each_time(n):
    """Scores of one decimal: many are equal."""
    graph = Graph(layers=3, heads=2, parallel=False, width=8)
    scores = made_up(graph, decimals=1).scores
    assert torch.equal(greedy_edges(scores, graph, n, False), literal_greedy(scores, graph, n))


def test_the_largest_graph_in_seconds(tmp_path):
    """1,592,881 edges: cut, kept in a small file and read again."""
    edges = made_up(LLAMA_8B)
    path = edges.save(tmp_path / "scores.safetensors")
    assert edges.graph.n_edges == 1_592_881 and path.stat().st_size < 5.1 * edges.graph.n_edges
    back = EdgeScores.load(path)
    assert torch.equal(back.scores, edges.scores) and back.graph == LLAMA_8B
    assert (back.task, back.method, back.metric) == ("made up", "gim", "logit")
    top = edges.top(10**6)
    assert len(top) > 9e5 and len(edges.greedy(10**5)) > 5e4
    assert Circuit.load(top.save(tmp_path / "circuit.safetensors")) == top


def test_a_chain_through_all_layers_is_pruned():
    """Each round takes its last edge away; with an edge to the logits all of it stays."""
    circuit = Circuit.of(LLAMA_8B, ["input->m0", *(f"m{layer}->m{layer + 1}" for layer in range(31))])
    assert len(circuit) == 32 and not prune(circuit.keep, LLAMA_8B).any()
    circuit.keep[-1, -1] = True
    assert torch.equal(prune(circuit.keep, LLAMA_8B), circuit.keep)


def test_long_prompts_run_a_few_at_a_time():
    assert rows_at_once(NNsight(build("llama")), 8) == 2**22 // (8 * 32)
    assert rows_at_once(NNsight(build("llama")), 10**6) == 1


@pytest.mark.parametrize("graph", [SMOLLM2, Graph(2, 3, True, 8), Graph(1, 1, False, 4)])
def test_edges_are_counted_without_being_made(graph):
    assert mib_files._count(graph) == graph.n_edges


def test_node_scores_in_a_small_file(tmp_path):
    nodes = NodeScores("made up", "gim", SMOLLM2.sources, torch.rand(1, 301), "kl", SMOLLM2)
    back = NodeScores.load(nodes.save(tmp_path / "nodes.safetensors"))
    assert torch.equal(back.per_example, nodes.per_example) and back.metric == "kl" and back.nodes == nodes.nodes


def test_small_files_that_do_not_fit(tmp_path):
    path, edges = tmp_path / "scores.safetensors", made_up(Graph(2, 2, False, 8))
    path.write_bytes(edges.save(path).read_bytes().replace(b'\\"n_heads\\": 2', b'\\"n_heads\\": 3'))
    with pytest.raises(gimkit.GimkitError, match="its edges do not fit a model of 2 sequential layers of 3 heads"):
        EdgeScores.load(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(gimkit.GimkitError, match="scores.safetensors cannot be read as a circuit file"):
        EdgeScores.load(path)


def test_a_picture_of_too_many_edges_is_refused():
    with pytest.raises(gimkit.GimkitError, match=r"at most 1000 edges and the circuit has 123211; .* edges.top\(500\)"):
        Circuit(SMOLLM2, SMOLLM2.real).plot()


def test_head_roles_holds_few_circuits_at_a_time(model, monkeypatch):
    module = sys.modules["gimkit.circuits.head_roles"]
    task, calls, run = random_task(), [], module.run
    monkeypatch.setattr(module, "run", lambda *given, **options: calls.append(len(given[2])) or run(*given, **options))
    whole = gimkit.circuits.head_roles(model, task)
    monkeypatch.setattr(module, "MASKS", 5 * 3 * Graph(3, 4, False, 32).real.numel())
    parts = gimkit.circuits.head_roles(model, task)
    assert calls == [2 + 36, 2 + 15, 15, 6]
    for kind in ("queries", "keys", "values", "effect"):
        torch.testing.assert_close(torch.tensor(parts[kind]), torch.tensor(whole[kind]), rtol=1e-5, atol=1e-5)
