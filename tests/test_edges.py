"""Edges against patching spelled out in literal_edges: slopes, the oracle's gradients, exact effects, runs."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from literal_edges import circuit_logits, contributions, edge_matrix, forward, gradients, parts_of, ruled
from made_up import literal_metric, random_task
from nnsight import NNsight
from oracle import FP64_REAL, oracle_gradient
from test_rules import for_oracle, relative
from tiny import build

import gimkit
from gimkit.circuits import Circuit, EdgeScores, Graph
from gimkit.circuits.edges import _pairs_at_once
from gimkit.circuits.patching import run_masks
from gimkit.interventions.circuit_runs import whole_circuit
from gimkit.interventions.edge_scores import edge_scores
from gimkit.model.graph import prune
from gimkit.model.residual_stream import residual_stream_of
from gimkit.remote import in_session
from gimkit.tasks import Task
from gimkit.tasks.task import answers_of

torch.set_num_threads(1)
NAMES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gpt_neox", "gpt_neox_serial", "phi3", "gemma2", "gemma3",
         "olmo2")
SOME = ("gpt2", "gpt_neox", "llama", "gemma2", "olmo2")


@functools.cache
def tiny(name, dtype=torch.float32):
    """A tiny model and the same one for nnsight; no test changes it."""
    hf = build(name, dtype)
    return hf, NNsight(hf)


def row_of(task, row):
    """(clean, corrupt, metric of logits) of one example without its padding."""
    real = int(task.mask[row].sum())

    def metric(logits):
        final = logits[0, -1]
        return torch.logsumexp(final[list(task.good[row])], 0) - torch.logsumexp(final[list(task.bad[row])], 0)

    return task.clean[row:row + 1, :real], task.corrupt[row:row + 1, :real], metric


def differences(hf, clean, corrupt):
    ours, theirs = contributions(hf, clean), contributions(hf, corrupt)
    return {source: ours[source] - theirs[source] for source in ours}


def literal_scores(hf, task, graph, points=lambda clean, corrupt: [(clean, {})], rules=gimkit.RULES["gradient"]):
    """Scores by their definition; `points` gives the runs (ids, settings of `forward`) of the averaged gradient."""
    total = 0
    with ruled(copy.deepcopy(hf), for_oracle(rules)) as changed:
        for row in range(len(task)):
            clean, corrupt, metric = row_of(task, row)
            gap = differences(hf, clean, corrupt)
            runs = points(clean, corrupt)
            for ids, settings in runs:
                reads = gradients(changed, ids, metric, graph.targets, **settings)
                total = total + edge_matrix(gap, reads, graph) / len(runs)
    return total / len(task)


def embedded(hf, clean, corrupt):
    """The embedding's outputs of both prompts."""
    with torch.no_grad():
        return hf.get_input_embeddings()(clean), hf.get_input_embeddings()(corrupt)


def sampled(graph, seed=0):
    """Eight edges: two into queries, keys and values each, one into an MLP, one into the logits, as (row, column)."""
    g, real, found = torch.Generator().manual_seed(seed), graph.real.nonzero().tolist(), []
    for kind, count in (("<q>", 2), ("<k>", 2), ("<v>", 2), ("m", 1), ("logits", 1)):
        into = [edge for edge in real if kind in graph.targets[edge[1]]]
        found += [into[i] for i in torch.randperm(len(into), generator=g)[:count].tolist()]
    return found


def names_of(graph, edge):
    return graph.sources[edge[0]], graph.targets[edge[1]]


def only(wanted, delta):
    """A change for `forward`: this one target reads delta more."""
    return lambda target, now: delta if target == wanted else None


# --- the literal forward itself ---


@pytest.mark.parametrize("name", NAMES)
def test_the_literal_forward_adds_up(name):
    """Contributions make up the stream before the final norm, and no change changes nothing."""
    hf, _ = tiny(name)
    clean, corrupt, _ = row_of(random_task(3), 0)
    streams, sums = [], []
    for ids in (clean, corrupt):
        handle = parts_of(hf)[1].register_forward_pre_hook(lambda _, args: streams.append(args[0]))
        plain = hf(ids, use_cache=False).logits
        handle.remove()
        logits, now, _ = forward(hf, ids, lambda target, now: torch.zeros_like(now["input"]))
        assert torch.allclose(logits, plain, atol=1e-5)
        sums.append(sum(now.values()))
    assert torch.allclose(sums[0] - sums[1], streams[0] - streams[1], atol=1e-4)


# --- gradients ---


@pytest.mark.parametrize("name", NAMES)
def test_gradient_edges_are_slopes_of_the_metric(name):
    """Central differences along clean - corrupt of the source, at what one target reads; float64 where it is real."""
    exact = name in FP64_REAL
    hf, model = tiny(name, torch.float64 if exact else torch.float32)
    task, step = random_task(1), 1e-4 if exact else 4e-3
    edges = gimkit.score_edges(model, task, "gradient")
    clean, corrupt, metric = row_of(task, 0)
    gap = differences(hf, clean, corrupt)
    for edge in sampled(edges.graph):
        source, target = names_of(edges.graph, edge)
        ends = []
        with torch.no_grad():
            for sign in (1, -1):
                ends.append(metric(forward(hf, clean, only(target, sign * step * gap[source]))[0]))
        want = ((ends[0] - ends[1]) / (2 * step)).item()
        tolerance = dict(rel=1e-5, abs=1e-7) if exact else dict(rel=1e-2, abs=2e-3)
        assert edges.scores[edge[0], edge[1]].item() == pytest.approx(want, **tolerance), (source, target)


@pytest.mark.parametrize("method", ["gradient", "gim"])
@pytest.mark.parametrize("name", NAMES)
def test_every_edge_is_the_oracles(name, method):
    """The whole matrix, by autograd through the literal forward under the oracle's backward rules."""
    hf, model = tiny(name)
    task = random_task(3)
    edges = gimkit.score_edges(model, task, method)
    assert relative(edges.scores, literal_scores(hf, task, edges.graph, rules=gimkit.RULES[method])) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3"])
@pytest.mark.parametrize("method", ["relp", "transformer-lrp", "freeze", gimkit.Rules(k=0.25, v=3.0)])
def test_other_rules_are_the_oracles(name, method):
    hf, model = tiny(name)
    task = random_task(2)
    edges = gimkit.score_edges(model, task, method)
    rules = gimkit.RULES.get(method, method)
    assert relative(edges.scores, literal_scores(hf, task, edges.graph, rules=rules)) < 1e-5


@pytest.mark.parametrize("method", ["gradient", "gim"])
@pytest.mark.parametrize("name", NAMES)
def test_edges_out_of_a_node_sum_to_its_score(name, method):
    _, model = tiny(name)
    task = random_task(3)
    edges, nodes = gimkit.score_edges(model, task, method), gimkit.score_nodes(model, task, method)
    assert edges.sources == nodes.nodes
    assert torch.allclose(edges.scores.sum(1), nodes.scores, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gim_out_of_the_embedding_is_the_oracles_gradient(name):
    hf, model = tiny(name)
    task, want = random_task(3), 0
    for row in range(len(task)):
        clean, corrupt, metric = row_of(task, row)
        gradient, _ = oracle_gradient(hf, clean, metric, for_oracle(gimkit.RULES["gim"]))
        ours, theirs = embedded(hf, clean, corrupt)
        want += ((ours - theirs) * gradient).sum().item() / len(task)
    got = gimkit.score_edges(model, task, "gim").scores[0].sum().item()
    assert got == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_a_rule_off_changes_the_scores():
    _, model = tiny("llama")
    task = random_task(3)
    gim = gimkit.score_edges(model, task, "gim")
    assert torch.equal(gimkit.score_edges(model, task, gimkit.RULES["gim"]).scores, gim.scores)
    for off in (dict(temperature=1.0), dict(freeze_norm=False), dict(q=1.0), dict(k=1.0), dict(v=1.0), dict(up=1.0)):
        scores = gimkit.score_edges(model, task, gimkit.RULES["gim"]._replace(**off)).scores
        assert relative(scores, gim.scores) > 0.02, off


# --- averaged gradients ---


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("method, rules", [("ig-inputs", "gradient"), ("gim-ig", "gim")])
def test_ig_inputs_averages_over_embeddings_between(name, method, rules):
    hf, model = tiny(name)
    task, steps = random_task(2), 4

    def points(clean, corrupt):
        ours, theirs = embedded(hf, clean, corrupt)
        return [(clean, dict(embedding=theirs + k / steps * (ours - theirs))) for k in range(steps)]

    edges = gimkit.score_edges(model, task, method, steps=steps)
    want = literal_scores(hf, task, edges.graph, points, gimkit.RULES[rules])
    assert relative(edges.scores, want) < 1e-5
    assert relative(gimkit.score_edges(model, task, rules).scores, want) > 0.02


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_ig_inputs_out_of_the_embedding_sum_to_the_effect(name):
    hf, model = tiny(name)
    task = random_task(2)
    effect = sum(literal_metric(hf, task.clean, task, row) - literal_metric(hf, task.corrupt, task, row)
                 for row in range(2)) / 2
    few, many = (abs(gimkit.score_edges(model, task, "ig-inputs", steps=steps).scores[0].sum().item() - effect)
                 for steps in (8, 128))
    assert many < 0.02 * (1 + abs(effect)) and many < few / 8


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_clean_corrupted_averages_the_two_ends(name):
    hf, model = tiny(name)
    task = random_task(2)
    edges = gimkit.score_edges(model, task, "clean-corrupted")
    want = literal_scores(hf, task, edges.graph, lambda clean, corrupt: [(clean, {}), (corrupt, {})])
    assert relative(edges.scores, want) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma2", "llama"])
def test_ig_activations_puts_each_part_between(name):
    """The embedding, each attention and each MLP, k = 1 .. steps; every run counts for every edge."""
    hf, model = tiny(name)
    task, steps = random_task(2), 3

    def points(clean, corrupt):
        found = []
        with torch.no_grad():
            ours, theirs = forward(hf, clean)[2], forward(hf, corrupt)[2]
        for k in range(1, steps + 1):
            a, b = embedded(hf, clean, corrupt)
            found.append((clean, dict(embedding=b + k / steps * (a - b))))
            for key in ours:
                between = theirs[key] + k / steps * (ours[key] - theirs[key])
                found.append((clean, dict(put={key: between})))
        assert len(found) == steps * (2 * 3 + 1)
        return found

    edges = gimkit.score_edges(model, task, "ig-activations", steps=steps)
    assert relative(edges.scores, literal_scores(hf, task, edges.graph, points)) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_gp_walks_towards_the_corrupt_logits(name):
    """gamma_j = gamma_(j-1) - g / |g|, g the gradient of |logits(gamma) - logits(corrupt)|^2, each example alone."""
    hf, model = tiny(name)
    task, steps = random_task(3), 3

    def points(clean, corrupt):
        here, found = embedded(hf, clean, corrupt)[0], []
        goal = forward(hf, corrupt)[0].detach()
        for _ in range(steps):
            here = here.clone().requires_grad_(True)
            distance = ((forward(hf, clean, embedding=here)[0] - goal) ** 2).sum()
            gradient = torch.autograd.grad(distance, here)[0]
            here = (here - gradient / gradient.norm()).detach()
            found.append((clean, dict(embedding=here)))
        return found

    edges = gimkit.score_edges(model, task, "gp", steps=steps)
    assert relative(edges.scores, literal_scores(hf, task, edges.graph, points)) < 1e-4


# --- exact effects and circuits ---


@pytest.mark.parametrize("name", SOME)
def test_exact_is_one_literal_patch_after_another(name):
    hf, model = tiny(name)
    task = random_task(2)
    edges = gimkit.score_edges(model, task, "exact")
    assert bool((edges.scores[~edges.graph.real] == 0).all())
    for edge in sampled(edges.graph):
        source, target = names_of(edges.graph, edge)
        effects = []
        for row in range(len(task)):
            clean, corrupt, metric = row_of(task, row)
            gap = differences(hf, clean, corrupt)
            with torch.no_grad():
                patched = metric(forward(hf, clean, only(target, -gap[source]))[0]).item()
            effects.append(literal_metric(hf, task.clean, task, row) - patched)
        assert edges.scores[edge[0], edge[1]].item() == pytest.approx(sum(effects) / 2, abs=2e-5), (source, target)


@pytest.mark.parametrize("name", NAMES)
def test_exact_edges_are_the_same_in_rows_from_the_start_and_in_small_passes(name, monkeypatch):
    """With a hook of the user's all rows run from the embedding on; else they join at their target's block."""
    hf, model = tiny(name)
    task = random_task(3)
    joined = gimkit.score_edges(model, task, "exact").scores
    monkeypatch.setattr("gimkit.circuits.edges.rows_at_once", lambda *_: 40)
    few = gimkit.score_edges(model, task, "exact").scores
    hook = hf.get_input_embeddings().register_forward_hook(lambda *_: None)
    whole = gimkit.score_edges(model, task, "exact").scores
    hook.remove()
    assert relative(joined, whole) < 1e-5 and relative(few, whole) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_exact_is_a_run_without_the_edge(name):
    """Every edge, by the two ways in which edges are patched here: from the model's own run, and target by target."""
    _, model = tiny(name)
    task = random_task(3)
    edges = gimkit.score_edges(model, task, "exact")
    graph = edges.graph
    circuits = [Circuit(graph, graph.real)]
    for edge in graph.real.nonzero().tolist():
        keep = graph.real
        keep[tuple(edge)] = False
        circuits.append(Circuit(graph, keep))
    values = gimkit.run(model, task, circuits).mean(1)
    assert torch.allclose(edges.scores[graph.real], values[0] - values[1:], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_edges_run_as_corrupt_and_all_as_clean(name):
    hf, model = tiny(name)
    task, graph = random_task(3), Graph(3, 4, name == "gpt_neox", 32)
    got = gimkit.run(model, task, [Circuit(graph, torch.zeros_like(graph.real)), Circuit(graph, graph.real)])
    want = torch.tensor([[literal_metric(hf, ids, task, row) for row in range(3)]
                         for ids in (task.corrupt, task.clean)])
    assert torch.allclose(got, want, atol=1e-5)
    assert (want[0] - want[1]).abs().min() > 1e-3
    whole, _ = in_session(model, whole_circuit, task.clean, task.corrupt, residual_stream_of(model), graph.real[None],
                          answers_of(task), gradients=False)  # as a circuit; `run` takes the clean run for it
    assert torch.allclose(whole, want[1], atol=1e-5)


@pytest.mark.parametrize("name", [*SOME, "gpt_neox_serial", "phi3"])
def test_circuits_run_as_spelled_out(name):
    """Circuits with a few edges removed, with half of them and with most of them removed, together."""
    hf, model = tiny(name)
    task, graph = random_task(2), Graph(3, 4, name == "gpt_neox", 32)
    noise = torch.rand(graph.real.shape, generator=torch.Generator().manual_seed(0))
    circuits = [Circuit(graph, graph.real & (noise > share)) for share in (0.03, 0.5, 0.9)]
    got = gimkit.run(model, task, circuits)
    for circuit, values in zip(circuits, got):
        dropped = [names_of(graph, edge) for edge in (graph.real & ~circuit.keep).nonzero().tolist()]
        for row in range(2):
            clean, corrupt, metric = row_of(task, row)
            want = metric(circuit_logits(hf, clean, corrupt, dropped)).item()
            assert values[row].item() == pytest.approx(want, abs=2e-5)
    assert torch.allclose(gimkit.run(model, task, circuits[1]), got[1], atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_memory_limits_change_no_run(name):
    _, model = tiny(name)
    task, w = random_task(5), residual_stream_of(tiny(name)[1])
    graph = Graph(3, 4, False, 32)
    keep = graph.real & (torch.rand(4, *graph.real.shape, generator=torch.Generator().manual_seed(0)) > 0.5)
    whole, _ = run_masks(model, w, task, keep, "logit", False)
    per_row = graph.real.shape[1] * task.clean.shape[1] * 32
    for rows in (1, 3, 7):
        assert torch.allclose(run_masks(model, w, task, keep, "logit", False, most=rows * per_row)[0], whole, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2", "olmo2"])
@pytest.mark.parametrize("rules", [gimkit.RULES["gradient"], gimkit.RULES["gim"]])
def test_positions_at_a_time_change_no_score(name, rules):
    """One position at a time, three, and all at once; the gradient at the corrupt and at the clean rows."""
    _, model = tiny(name)
    task, w, edited = random_task(3), residual_stream_of(tiny(name)[1]), gimkit.apply(tiny(name)[1], rules)
    per_position = len(Graph(3, 4, w.parallel, w.width).sources) * len(task) * w.width
    found = []
    for most in (1, 3 * per_position, 2**24):
        with edited.trace(input_ids=torch.cat([task.clean, task.corrupt]), use_cache=False):
            found.append(edge_scores(edited, w, rules.freeze_norm, len(task), answers_of(task), [0, 3], [],
                                     None, {}, most)[0].save())
    assert relative(found[0], found[2]) < 1e-5 and relative(found[1], found[2]) < 1e-5


def test_pairs_at_once_follow_from_the_size():
    """Backward keeps 32 widths per layer and token; a pair is 2 rows for one gradient, 6 for five points."""
    w = residual_stream_of(tiny("llama")[1])._replace(layers=tuple(range(12)), width=768)
    assert [_pairs_at_once(w, 20, rows) for rows in (2, 6)] == [5, 1]
    assert _pairs_at_once(w, 100_000, 2) == 1 and _pairs_at_once(w, 1, 2) == 64


# --- what must not matter ---


def wider(task):
    """The same task with three more columns of padding, different ones in clean and corrupt rows."""
    columns = [torch.nn.functional.pad(x, (0, 3), value=value) for x, value in
               ((task.clean, 7), (task.corrupt, 9), (task.mask, False))]
    return Task(task.name, *columns, task.good, task.bad, task.pairs)


@pytest.mark.parametrize("method", ["gradient", "gim", "gim-ig", "ig-activations", "clean-corrupted", "gp", "exact"])
def test_batches_and_padding_change_no_score(method):
    _, model = tiny("llama")
    task = random_task()
    score = functools.partial(gimkit.score_edges, model, method=method, steps=3)
    whole = score(task).scores
    assert relative(score(task, batch_size=2).scores, whole) < 2e-5
    assert relative(score(wider(task), batch_size=3).scores, whole) < 2e-5


def test_padding_changes_no_run():
    _, model = tiny("qwen2")
    task, graph = random_task(3), Graph(3, 4, False, 32)
    circuit = Circuit(graph, graph.real & (torch.rand(graph.real.shape) > 0.5))
    assert torch.allclose(gimkit.run(model, wider(task), circuit), gimkit.run(model, task, circuit), atol=1e-5)


def test_random_is_seeded():
    _, model = tiny("gpt2")
    first, again, other = (gimkit.score_edges(model, random_task(1), "random", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.scores, again.scores) and not torch.equal(first.scores, other.scores)
    assert torch.equal(first.scores != 0, first.graph.real)


def test_steps_matter():
    _, model = tiny("gpt2")
    for method in ("ig-inputs", "ig-activations", "gp"):
        few, many = (gimkit.score_edges(model, random_task(2), method, steps=steps).scores for steps in (1, 4))
        assert relative(few, many) > 0.01
    one = gimkit.score_edges(model, random_task(2), "ig-inputs", steps=1).scores
    swapped = random_task(2)
    swapped = Task("swapped", swapped.corrupt, swapped.clean, swapped.mask, swapped.good, swapped.bad, swapped.pairs)
    assert relative(-gimkit.score_edges(model, swapped, "gradient").scores, one) < 1e-5


# --- names, counts and selection ---


@pytest.mark.parametrize("shape, edges, sources", [
    ((12, 12, False, 768), 32_491, 157),  # GPT-2 small
    ((24, 14, False, 896), 179_749, 361),  # Qwen2.5-0.5B
    ((26, 8, False, 2304), 74_218, 235),  # Gemma-2-2B
    ((32, 32, False, 4096), 1_592_881, 1057),  # Llama-3.1-8B
])
def test_counts_of_known_models(shape, edges, sources):
    graph = Graph(*shape)
    assert (graph.n_edges, len(graph.sources)) == (edges, sources)
    assert graph._replace(parallel=True).n_edges == edges - shape[0] * shape[1]


def test_names_and_order():
    graph = Graph(2, 2, False, 32)
    assert graph.sources == ("input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1")
    assert graph.targets == (
        "a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>", "m0",
        "a1.h0<q>", "a1.h1<q>", "a1.h0<k>", "a1.h1<k>", "a1.h0<v>", "a1.h1<v>", "m1", "logits")
    assert [graph.targets[j] for j in range(15) if graph.real[1, j]] == ["m0", *graph.targets[7:]]
    assert graph.real[0].all() and graph.real[:, -1].all()
    assert [graph.targets[j] for j in range(15) if graph.real[3, j]] == list(graph.targets[7:])
    assert graph.real[4].nonzero()[:, 0].tolist() == [13, 14] and graph.real[6].nonzero()[:, 0].tolist() == [14]


def test_parallel_blocks_have_no_edge_from_a_head_to_its_own_mlp():
    serial, parallel = Graph(2, 2, False, 32), Graph(2, 2, True, 32)
    gone = (serial.real & ~parallel.real).nonzero().tolist()
    assert [names_of(serial, edge) for edge in gone] == [
        ("a0.h0", "m0"), ("a0.h1", "m0"), ("a1.h0", "m1"), ("a1.h1", "m1")]
    assert bool((parallel.real <= serial.real).all())
    assert gimkit.score_edges(tiny("gpt_neox")[1], random_task(1), "random").graph == Graph(3, 4, True, 32)
    assert gimkit.score_edges(tiny("gpt_neox_serial")[1], random_task(1), "random").graph == Graph(3, 4, False, 32)


def mask_of(graph, edges):
    keep = torch.zeros_like(graph.real)
    for edge in edges:
        source, target = edge.split("->")
        keep[graph.sources.index(source), graph.targets.index(target)] = True
    return keep


FED = ["input->a0.h0<v>", "a0.h0->m0", "m0->a1.h0<k>", "a1.h0->logits"]


@pytest.mark.parametrize("edges, kept", [
    ([], []),
    (["input->logits"], ["input->logits"]),
    (FED, FED),  # a head that is fed by its keys alone is fed
    (FED[:-1], []),  # a chain that ends before the logits goes link by link
    (FED[1:], []),  # and so does one that nothing feeds
    ([*FED, "a0.h1->a1.h1<q>", "a1.h1->logits"], FED),  # an unfed branch
    ([*FED, "a0.h0->a1.h1<q>", "input->a1.h1<v>", "a1.h1->m1"], FED),  # a branch that reaches nothing
    ([*FED, "input->m1", "a1.h1->m1", "m1->logits"], [*FED, "input->m1", "m1->logits"]),
])
def test_prune_takes_off_dead_ends(edges, kept):
    graph = Graph(2, 2, False, 32)
    before = mask_of(graph, edges)
    after = prune(before, graph)
    assert set(Circuit(graph, after).edges) == set(kept)
    assert torch.equal(before, mask_of(graph, edges)) and torch.equal(prune(after, graph), after)


def test_pruning_changes_no_run():
    """What is pruned had no way to matter: a head without fed inputs carries its corrupt value."""
    _, model = tiny("gpt2")
    graph, task = Graph(3, 4, False, 32), random_task(2)
    keep = graph.real & (torch.rand(graph.real.shape, generator=torch.Generator().manual_seed(1)) > 0.93)
    pruned = prune(keep, graph)
    assert 0 < int(pruned.sum()) < int(keep.sum())
    values = gimkit.run(model, task, [Circuit(graph, keep), Circuit(graph, pruned)])
    assert torch.allclose(values[0], values[1], atol=1e-5)


def scored(values, graph):
    return EdgeScores("made up", "by hand", graph, values * graph.real)


def test_top_takes_the_best_edges_and_breaks_ties_in_order():
    graph = Graph(2, 2, False, 32)
    every = graph.real.nonzero()
    values = torch.zeros(graph.real.shape)
    for edge, value in (("input->a0.h0<v>", 3.0), ("a0.h0->logits", 2.0), ("input->m1", -5.0), ("m1->logits", -4.0)):
        values[mask_of(graph, [edge])] = value
    edges = scored(values, graph)
    assert set(edges.top(2).edges) == {"input->a0.h0<v>", "a0.h0->logits"}
    assert set(edges.top(2, absolute=True).edges) == {"input->m1", "m1->logits"}
    assert len(edges.top(graph.n_edges)) == graph.n_edges and len(edges.top(0)) == 0
    ties = scored(torch.ones(graph.real.shape), graph)
    first = torch.zeros_like(graph.real)
    first[every[:20, 0], every[:20, 1]] = True
    assert torch.equal(ties.top(20).keep, prune(first, graph))
    negative = scored(-torch.ones(graph.real.shape), graph)  # zeros where there is no edge are not the best edges
    assert torch.equal(negative.top(20).keep, ties.top(20).keep)


def test_top_of_random_scores():
    graph = Graph(3, 4, True, 32)
    values = torch.randn(graph.real.shape, generator=torch.Generator().manual_seed(0))
    for absolute in (False, True):
        worth = (values.abs() if absolute else values)[graph.real]
        limit = worth.sort(descending=True).values[49]
        best = graph.real & ((values.abs() if absolute else values) >= limit)
        assert int(best.sum()) == 50
        assert torch.equal(scored(values, graph).top(50, absolute=absolute).keep, prune(best, graph))


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_greedy_grows_from_the_logits(parallel, absolute):
    """Against a plain loop: among edges into nodes that are in, the best one."""
    graph = Graph(2, 2, parallel, 32)
    values = torch.randn(graph.real.shape, generator=torch.Generator().manual_seed(3))
    worth = values.abs() if absolute else values
    inside, keep = {"logits"}, torch.zeros_like(graph.real)
    for n in range(1, graph.n_edges + 1):
        open_ = [(worth[i, j].item(), i, j) for i, j in (graph.real & ~keep).nonzero().tolist()
                 if graph.targets[j].partition("<")[0] in inside]
        _, i, j = max(open_)
        keep[i, j] = True
        inside.add(graph.sources[i])
        assert torch.equal(scored(values, graph).greedy(n, absolute=absolute).keep, prune(keep, graph)), n
    assert torch.equal(keep, graph.real)  # it reaches every edge
    assert len(scored(values, graph).greedy(0)) == 0


def test_circuits_are_data():
    graph = Graph(2, 2, False, 32)
    circuit = Circuit(graph, mask_of(graph, FED))
    assert circuit.edges == tuple(FED) and circuit.nodes == ("input", "a0.h0", "m0", "a1.h0") and len(circuit) == 4
    assert str(circuit) == f"4 of {graph.n_edges} edges, 4 of 7 nodes"
    assert circuit == Circuit(graph, mask_of(graph, FED)) and circuit != Circuit(graph, mask_of(graph, FED[1:]))
    assert circuit != Circuit(Graph(2, 2, True, 32), mask_of(graph, FED[:1]))
    with pytest.raises(gimkit.GimkitError, match="edges that this model does not have"):
        Circuit(graph, torch.ones_like(graph.real))
    with pytest.raises(gimkit.GimkitError, match="edges that this model does not have"):
        Circuit(graph, Graph(3, 2, False, 32).real)


def test_frame():
    edges = gimkit.score_edges(tiny("gpt2")[1], random_task(2), "gim")
    frame = edges.frame()
    assert list(frame.columns) == ["task", "method", "metric", "source", "target", "score"]
    assert len(frame) == edges.graph.n_edges and set(frame.method) == {"gim"}
    row = frame[(frame.source == "a1.h2") & (frame.target == "a2.h3<k>")]
    where = edges.sources.index("a1.h2"), edges.targets.index("a2.h3<k>")
    assert row.score.item() == pytest.approx(edges.scores[where].item())


# --- bad input ---


def test_bad_methods_and_sizes():
    _, model = tiny("gpt2")
    task = random_task(2)
    with pytest.raises(gimkit.GimkitError, match="unknown method 'gmi'.*gim.*ig-inputs.*gp.*exact.*random"):
        gimkit.score_edges(model, task, "gmi")
    with pytest.raises(gimkit.GimkitError, match="steps must be a whole number of at least 1, not 0"):
        gimkit.score_edges(model, task, "ig-inputs", steps=0)
    with pytest.raises(gimkit.GimkitError, match="is not a task"):
        gimkit.score_edges(model, "ioi")
    with pytest.raises(gimkit.GimkitError, match="no prompt pairs"):
        gimkit.score_edges(model, task[:0])
    with pytest.raises(gimkit.GimkitError, match="already carries"):
        gimkit.score_edges(gimkit.apply(model), task)
    edges = gimkit.score_edges(model, task, "random")
    for choose in (edges.top, edges.greedy):
        for n in (edges.graph.n_edges + 1, -1):
            with pytest.raises(gimkit.GimkitError, match=f"edges, must be .* 0 to {edges.graph.n_edges}, not {n}"):
                choose(n)


@pytest.mark.parametrize("graph", [Graph(2, 4, False, 32), Graph(3, 2, False, 32), Graph(3, 4, True, 32),
                                   Graph(3, 4, False, 64)])
def test_a_circuit_of_another_model(graph):
    with pytest.raises(gimkit.GimkitError, match="are of a model of"):
        gimkit.run(tiny("gpt2")[1], random_task(2), Circuit(graph, graph.real))


@pytest.mark.parametrize("name", ["cohere", "opt", "stablelm_parallel", "granite", "deepseek_v3"])
def test_architectures_whose_edges_are_not_covered(name):
    model, graph = NNsight(build(name)), Graph(3, 4, False, 32)
    for act in (lambda: gimkit.score_edges(model, random_task(2), "gradient"),
                lambda: gimkit.run(model, random_task(2), Circuit(graph, graph.real))):
        with pytest.raises(gimkit.GimkitError, match="edges are not *covered; score nodes instead"):
            act()


def test_nan_is_no_score():
    hf = build("gpt2")
    with torch.no_grad():
        hf.transformer.h[1].mlp.c_fc.weight[0] = torch.nan
    model, graph = NNsight(hf), Graph(3, 4, False, 32)
    for act in (lambda: gimkit.score_edges(model, random_task(1), "gim"),
                lambda: gimkit.score_edges(model, random_task(1), "gradient"),
                lambda: gimkit.score_edges(model, random_task(1), "exact"),
                lambda: gimkit.run(model, random_task(1), Circuit(graph, graph.real))):
        with pytest.raises(gimkit.GimkitError, match="NaN"):
            act()


def test_other_bad_input():
    model, task = NNsight(build("gpt2")), random_task()
    edges = gimkit.score_edges(model, task, "random")
    for circuits in ([], edges, [edges]):
        with pytest.raises(gimkit.GimkitError, match=r"edges.top\(n\)"):
            gimkit.run(model, task, circuits)
    for size in (0, -1, 2.5):
        with pytest.raises(gimkit.GimkitError, match="batch_size must be a whole number"):
            gimkit.score_edges(model, task, batch_size=size)
    with pytest.raises(gimkit.GimkitError, match="steps must be a whole number"):
        gimkit.score_edges(model, task, "ig-inputs", steps=2.5)
    with pytest.raises(gimkit.GimkitError, match="whole number"):
        edges.top(20.5)
    edited = gimkit.apply(model)
    for act in (lambda: gimkit.score_edges(edited, task, "exact"), lambda: gimkit.run(edited, task, edges.top(50)),
                lambda: gimkit.score_nodes(edited, task, "exact")):
        with pytest.raises(gimkit.GimkitError, match="already carries the rules gim"):
            act()


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "olmo2"])
def test_bfloat16_scores_are_float32_and_close(name):
    half, task = NNsight(build(name, torch.bfloat16, gain=0.5)), random_task()
    full = NNsight(build(name, gain=0.5).to(torch.bfloat16).float())
    for score in (gimkit.score_edges, gimkit.score_nodes):
        got, want = score(half, task, "gim").scores, score(full, task, "gim").scores
        assert got.dtype == torch.float32 and (got - want).norm() < 0.06 * want.norm()
    graph = gimkit.score_edges(half, task, "random").graph
    assert torch.isfinite(gimkit.run(half, task, Circuit(graph, graph.real))).all()


@pytest.mark.parametrize("method", ["gim", "gradient", "ig-activations", "gp", "exact"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_without_a_corruption_every_edge_scores_exactly_nothing(name, method):
    task = random_task(3, 6)
    scores = gimkit.score_edges(NNsight(build(name)), replace(task, corrupt=task.clean), method, steps=2).scores
    assert not scores.any()
