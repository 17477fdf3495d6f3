"""The metrics other than the logit difference: explicit formulas, slopes, literal patches, the ends of faithfulness."""

import dataclasses
import functools
import math

import pytest
import torch
from in_float64 import precise
from literal_edges import contributions, edge_matrix, forward, gradients
from made_up import random_task
from nnsight import NNsight
from oracle import FP64_REAL
from test_edges import differences, embedded, names_of, only, row_of, sampled
from test_nodes import changed, places, value_of
from test_rules import relative
from tiny import build

import gimkit
from gimkit import plots
from gimkit.circuits import Circuit
from gimkit.circuits.metric import DIVERGENCES, METRICS
from gimkit.interventions.metric import Answers, metric_values
from gimkit.tasks import Task, measure
from gimkit.tasks.task import answers_of

torch.set_num_threads(1)
OTHERS = ("probability", "kl", "kl-mean")


@functools.cache
def tiny(name, dtype=torch.float64):
    hf = build(name, dtype)
    return hf, NNsight(hf)


def literal(metric, final, good, bad, clean):
    """The metric of one row's logits [vocab] by its formula; clean: those of the clean run."""
    p, q = (logits.double().exp() / logits.double().exp().sum() for logits in (final, clean))
    return {"logit": lambda: p[list(good)].sum().log() - p[list(bad)].sum().log(),
            "probability": lambda: p[list(good)].sum() - p[list(bad)].sum(),
            "kl": lambda: -(q * (q / p).log()).sum(),
            "kl-mean": lambda: -(q * (q / p).log()).sum() / len(p)}[metric]()


def row_metric(hf, task, row, metric):
    """(clean, corrupt, metric of logits [1, seq, vocab]) of one example without its padding."""
    clean, corrupt, _ = row_of(task, row)
    with torch.no_grad():
        reference = hf(clean, use_cache=False).logits[0, -1]
    return clean, corrupt, lambda logits: literal(metric, logits[0, -1], task.good[row], task.bad[row], reference)


@pytest.mark.parametrize("metric", METRICS)
def test_values_by_their_formulas(metric):
    """Two groups of three rows, answer sets of different sizes, other positions that must not matter."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, 9, generator=g, dtype=torch.float64) * 3
    last, good, bad = torch.tensor([1, 3, 0]), ((2,), (0, 5), (8,)), ((1, 3, 4), (6,), (7, 0))
    pads = [torch.tensor([[*ids, *[-1] * (3 - len(ids))] for ids in side]) for side in (good, bad)]
    answers, chosen = Answers(metric, last, *pads), logits[torch.arange(6), last.repeat(2)][:, None]
    got = metric_values(chosen, answers, chosen[:3])
    assert got.shape == (2, 3) and got.dtype == torch.float64
    for group in range(2):
        for row in range(3):
            at = last[row]
            want = literal(metric, logits[3 * group + row, at], good[row], bad[row], logits[row, at])
            assert got[group, row].item() == pytest.approx(want.item(), rel=1e-12, abs=1e-14)
    if metric in DIVERGENCES:
        assert got[0].abs().max() < 1e-14 and got[1].max() < 0
    assert metric_values(chosen.bfloat16(), answers, chosen[:3]).dtype == torch.float32


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_probability_edges_are_slopes(name):
    """Central differences; HF's Llama norm computes in float32 whatever the weights are, so its step is longer."""
    hf, model = tiny(name)
    task, step, close = random_task(1), *((1e-4, 1e-4) if name in FP64_REAL else (4e-3, 1e-2))
    edges = gimkit.score_edges(model, task, "gradient", metric="probability")
    clean, corrupt, metric = row_metric(hf, task, 0, "probability")
    gap = differences(hf, clean, corrupt)
    for edge in sampled(edges.graph):
        source, target = names_of(edges.graph, edge)
        with torch.no_grad():
            up, down = (metric(forward(hf, clean, only(target, sign * step * gap[source]))[0]) for sign in (1, -1))
        want = ((up - down) / (2 * step)).item()
        assert edges.scores[edge[0], edge[1]].item() == pytest.approx(want, rel=close, abs=close**2), (source, target)


def test_probability_nodes_are_slopes():
    hf, model = tiny("gpt2")
    task, row, step = random_task(4), 3, 1e-5
    got = gimkit.score_nodes(model, task, "gradient", metric="probability")
    clean, corrupt, metric = row_metric(hf, task, row, "probability")
    for node, place in places(hf).items():
        gap = value_of(hf, place, clean) - value_of(hf, place, corrupt)
        ends = []
        for sign in (1, -1):
            with changed(place, lambda value, move=sign * step * gap: value + move), torch.no_grad():
                ends.append(metric(hf(clean, use_cache=False).logits))
        want = ((ends[0] - ends[1]) / (2 * step)).item()
        assert got.per_example[row, got.nodes.index(node)].item() == pytest.approx(want, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("metric", OTHERS)
def test_averaged_gradients(metric):
    """EAP-IG-inputs by autograd through the literal forward; the clean run's distribution is a constant."""
    hf, model = tiny("llama")
    task, steps, want = random_task(2), 3, 0
    edges = gimkit.score_edges(model, task, "ig-inputs", steps=steps, metric=metric)
    for row in range(2):
        clean, corrupt, value = row_metric(hf, task, row, metric)
        ours, theirs = embedded(hf, clean, corrupt)
        for k in range(steps):
            reads = gradients(hf, clean, value, edges.graph.targets, embedding=theirs + k / steps * (ours - theirs))
            want = want + edge_matrix(differences(hf, clean, corrupt), reads, edges.graph) / (2 * steps)
    assert relative(edges.scores, want) < 1e-6


def test_integrated_divergence_adds_up_to_the_whole():
    """Edges out of the embedding sum to m(clean) - m(corrupt) = KL: corrupting hurts, so it is positive."""
    hf, model = tiny("gpt2")
    task = random_task(1)
    clean, corrupt, value = row_metric(hf, task, 0, "kl")
    whole = -value(hf(corrupt, use_cache=False).logits).item()
    got = gimkit.score_edges(model, task, "ig-inputs", steps=256, metric="kl").scores[0].sum().item()
    assert whole > 1e-3 and got == pytest.approx(whole, rel=0.03)
    assert gimkit.score_nodes(model, task, "nap-ig", steps=256, metric="kl").scores[0].item() == pytest.approx(
        whole, rel=0.03)


@pytest.mark.parametrize("metric", OTHERS)
def test_ig_activations_of_nodes_is_that_of_the_edges_out_of_them(metric):
    _, model = tiny("llama")
    task = random_task(2)
    edges, nodes = (score(model, task, "ig-activations", steps=2, metric=metric)
                    for score in (gimkit.score_edges, gimkit.score_nodes))
    assert relative(nodes.scores, edges.scores.sum(1)) < 1e-6


@pytest.mark.parametrize("metric", OTHERS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_exact_edges_are_literal_patches(name, metric):
    hf, model = tiny(name)
    task = random_task(2)
    edges = gimkit.score_edges(model, task, "exact", metric=metric)
    if metric == "kl":
        assert edges.scores.min() > -1e-6  # leaving the clean run never brings one nearer to it
    for edge in sampled(edges.graph):
        source, target = names_of(edges.graph, edge)
        effects = []
        for row in range(2):
            clean, corrupt, value = row_metric(hf, task, row, metric)
            ours, theirs = contributions(hf, clean)[source], contributions(hf, corrupt)[source]
            with torch.no_grad():
                effects.append(value(forward(hf, clean)[0]) - value(forward(hf, clean, only(target, theirs - ours))[0]))
        want = (sum(effects) / 2).item()
        assert edges.scores[edge[0], edge[1]].item() == pytest.approx(want, rel=1e-4, abs=1e-7), (source, target)


@pytest.mark.parametrize("metric", OTHERS)
def test_exact_nodes_are_literal_patches(metric):
    hf, model = tiny("llama")
    task, row = random_task(4), 3
    got = gimkit.score_nodes(model, task, "exact", metric=metric, batch_size=3)
    clean, corrupt, value = row_metric(hf, task, row, metric)
    with torch.no_grad():
        whole = value(hf(clean, use_cache=False).logits)
        for node, place in places(hf).items():
            theirs = value_of(hf, place, corrupt)
            with changed(place, lambda _, theirs=theirs: theirs):
                want = (whole - value(hf(clean, use_cache=False).logits)).item()
            assert got.per_example[row, got.nodes.index(node)].item() == pytest.approx(want, rel=1e-4, abs=1e-7)


def solved(hf, task):
    """The task with the clean run's favourite as right answer and the corrupt run's as wrong one."""
    good, bad, rows = [], [], []
    for row in range(len(task)):
        clean, corrupt, _ = row_of(task, row)
        with torch.no_grad():
            best = [hf(ids, use_cache=False).logits[0, -1].argmax().item() for ids in (clean, corrupt)]
        if best[0] != best[1]:
            rows.append(row)
            good.append((best[0],))
            bad.append((best[1],))
    assert rows
    return Task("solved", task.clean[rows], task.corrupt[rows], task.mask[rows], tuple(good), tuple(bad),
                tuple(task.pairs[row] for row in rows))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_ends_of_faithfulness(name, metric):
    hf, model = tiny(name)
    task = solved(hf, random_task(8))
    edges = gimkit.score_edges(model, task, "gim")
    curve = gimkit.faithfulness(model, task, edges, absolute=True, metric=metric, sizes=(0.0, 0.3, 1.0))
    assert curve.faithfulness[[0, 2]] == pytest.approx([0, 1], abs=1e-4)
    for row in range(len(task)):
        clean, corrupt, value = row_metric(hf, task, row, metric)
        for values, ids in ((curve.full, clean), (curve.empty, corrupt)):
            want = value(hf(ids, use_cache=False).logits).item()
            assert values[row].item() == pytest.approx(want, rel=1e-4, abs=1e-6)
    circuit = edges.top(int(0.3 * edges.graph.n_edges), absolute=True)
    assert torch.allclose(gimkit.run(model, task, circuit, metric=metric), curve.per_example[1].double(), atol=1e-6)
    together = [circuit, Circuit(edges.graph, edges.graph.real)]
    assert torch.allclose(gimkit.run(model, task, together, metric=metric)[0], curve.per_example[1].double(), atol=1e-6)


def test_a_sure_model_starves_the_gradient_of_probabilities():
    """The trap: logits times 1000 make every answer certain; patching still moves probabilities by up to 2."""
    hf = build("gpt2", torch.float64)
    with torch.no_grad():
        hf.transformer.ln_f.weight *= 1000
        hf.transformer.ln_f.bias *= 1000
    model = NNsight(hf)
    task = solved(hf, random_task(8))
    score = {(metric, method): gimkit.score_nodes(model, task, method, metric=metric).scores
             for metric in ("logit", "probability") for method in ("exact", "gradient", "gim")}
    assert score["probability", "exact"][0] > 1.5  # the embedding: from certainly right to certainly wrong
    for method in ("gradient", "gim"):
        assert score["probability", method].abs().max() < 0.05 * score["probability", "exact"].abs().max()
        assert score["logit", method].abs().max() > 0.3 * score["logit", "exact"].abs().max()


def test_divergences_have_no_slope_at_the_clean_run():
    """Why they are refused: autograd through the literal forward finds zeros there."""
    hf, model = tiny("gpt2")
    task = random_task(1)
    clean, _, value = row_metric(hf, task, 0, "kl")
    leaf = torch.zeros(1, hf.config.n_embd, dtype=hf.dtype, requires_grad=True)
    logits = forward(hf, clean, lambda target, now: leaf if target == "m0" else None)[0]
    assert torch.autograd.grad(value(logits), leaf)[0].abs().max() < 1e-12
    for metric in DIVERGENCES:
        for method in ("gradient", "gim", gimkit.Rules(k=0.5)):
            for score in (gimkit.score_edges, gimkit.score_nodes):
                with pytest.raises(gimkit.GimkitError, match="zero at the clean run.*ig-inputs or exact") as error:
                    score(model, task, method, metric=metric)
                assert "\n" not in str(error.value)
        with pytest.raises(gimkit.GimkitError, match="where ig-activations takes it"):
            gimkit.score_edges(model, task, "ig-activations", steps=1, metric=metric)
        for method in ("nap-ig", "ig-activations", "atp*"):
            with pytest.raises(gimkit.GimkitError, match="zero at the clean run"):
                gimkit.score_nodes(model, task, method, steps=1, metric=metric)
    for method in ("ig-activations", "clean-corrupted", "gp"):
        assert gimkit.score_edges(model, task, method, steps=2, metric="kl").scores.abs().max() > 1e-4


def test_unknown_metrics():
    hf, model = tiny("gpt2")
    task = random_task(1)
    edges = gimkit.score_edges(model, task, "random")
    for act in (lambda: gimkit.score_nodes(model, task, metric="KL"), lambda: gimkit.run(
            model, task, edges.top(9), metric="KL"), lambda: gimkit.score_edges(model, task, metric="KL"),
            lambda: gimkit.faithfulness(model, task, edges, absolute=True, metric="KL")):
        with pytest.raises(gimkit.GimkitError, match="^unknown metric 'KL'; use logit, probability, kl, kl-mean$"):
            act()


def test_results_name_their_metric():
    hf, model = tiny("gpt2")
    task = solved(hf, random_task(8))
    nodes = gimkit.score_nodes(model, task, metric="probability")
    edges = gimkit.score_edges(model, task, metric="probability")
    assert nodes.metric == edges.metric == "probability" and gimkit.score_edges(model, task).metric == "logit"
    assert set(nodes.frame().metric) == set(edges.frame().metric) == {"probability"}
    same, other = (gimkit.faithfulness(model, task, edges, absolute=False, metric=metric, sizes=(0.1, 1.0))
                   for metric in ("probability", "kl-mean"))
    assert same.label == "gim, signed, probability"
    assert other.label == "gim, signed, scored by probability, evaluated by kl-mean"
    assert set(other.frame().metric) == {"kl-mean"} and set(other.frame().scored_by) == {"probability"}
    assert "probability" in plots.node_grid(nodes).figure.axes[1].get_ylabel()
    exact = gimkit.score_nodes(model, task, "exact", metric="kl")
    ax = plots.method_scatter(nodes, exact)
    assert ax.get_xlabel() == "exact patching (nats)" and ax.get_ylabel() == "gim (probability)"
    assert math.isclose(exact.scores.min().item(), 0, abs_tol=1e-6) or exact.scores.min() > 0


# --- answers of several tokens ---

GOOD, BAD = ((7, 11, 5), (8,), (20, 3)), ((9, 4), (30, 31, 32), (6,))


def several(n=3, seed=2):
    """Pairs whose answers have one to three tokens; rows of two lengths."""
    task = random_task(n, seed=seed)
    return dataclasses.replace(task, good=GOOD[:n], bad=BAD[:n], sequences=True)


def forced(ids, answer):
    """A prompt [1, seq] with all of an answer behind it but its last token."""
    return torch.cat([ids, torch.tensor([answer[:-1]], dtype=torch.long)], 1)


def literal_log_probability(logits, answer):
    """By the chain rule, from logits [1, seq, vocab] of the forced row."""
    p = logits[0].double().exp() / logits[0].double().exp().sum(-1, keepdim=True)
    return sum(p[len(p) - len(answer) + i, token].log() for i, token in enumerate(answer))


def by_answer(task, row, effect):
    """effect(clean, corrupt, value of logits) of the good answer's row minus that of the bad one's."""
    clean, corrupt, _ = row_of(task, row)
    both = [effect(forced(clean, answer), forced(corrupt, answer),
                   lambda logits, answer=answer: literal_log_probability(logits, answer))
            for answer in (task.good[row], task.bad[row])]
    return (both[0] - both[1]).item()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_runs_of_answers_of_several_tokens_are_log_probabilities(name):
    """Teacher forcing step by step: one prompt for each token of an answer."""
    hf, model = tiny(name)
    task = several()
    graph = gimkit.score_edges(model, task, "random").graph
    got = gimkit.run(model, task, [Circuit(graph, graph.real), Circuit(graph, torch.zeros_like(graph.real))])
    for row in range(3):
        for values, ids in zip(got, row_of(task, row)[:2]):
            want = 0
            for sign, answer in ((1, task.good[row]), (-1, task.bad[row])):
                for i, token in enumerate(answer):
                    with torch.no_grad():
                        logits = hf(torch.cat([ids, torch.tensor([answer[:i]], dtype=torch.long)], 1)).logits
                    want += sign * torch.log_softmax(logits[0, -1].double(), -1)[token].item()
            assert values[row].item() == pytest.approx(want, rel=1e-5, abs=1e-6)
    assert torch.allclose(measure.metric(model, task), got[0], atol=1e-6)
    with pytest.raises(gimkit.GimkitError, match="needs a row of its own"):
        answers_of(task)
    assert gimkit.run(model, task, Circuit(graph, graph.real), metric="probability")[1].item() == pytest.approx(
        by_answer(task, 1, lambda clean, _, value: value(hf(clean, use_cache=False).logits).exp()), rel=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_exact_nodes_and_slopes_of_answers_of_several_tokens(name):
    hf, task, step = precise(name), several(), 1e-5
    model = NNsight(hf)
    exact, slope = (gimkit.score_nodes(model, task, method, batch_size=2) for method in ("exact", "gradient"))
    assert exact.metric == slope.metric == "log-probability" and exact.per_example.shape[0] == 3
    for node, place in places(hf).items():
        def patched(clean, corrupt, value, place=place):
            theirs = value_of(hf, place, corrupt)
            with torch.no_grad():
                whole = value(hf(clean, use_cache=False).logits)
                with changed(place, lambda _: theirs):
                    return whole - value(hf(clean, use_cache=False).logits)

        def moved(clean, corrupt, value, place=place):
            gap, ends = value_of(hf, place, clean) - value_of(hf, place, corrupt), []
            for sign in (1, -1):
                with changed(place, lambda x, move=sign * step * gap: x + move), torch.no_grad():
                    ends.append(value(hf(clean, use_cache=False).logits))
            return (ends[0] - ends[1]) / (2 * step)

        for row in (0, 2):
            column = exact.nodes.index(node)
            assert exact.per_example[row, column].item() == pytest.approx(by_answer(task, row, patched), rel=1e-4,
                                                                          abs=1e-6)
            assert slope.per_example[row, column].item() == pytest.approx(by_answer(task, row, moved), rel=1e-5,
                                                                          abs=1e-8)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_exact_edges_of_answers_of_several_tokens(name):
    hf, model = tiny(name)
    task = several(2)
    edges = gimkit.score_edges(model, task, "exact")
    for edge in sampled(edges.graph):
        source, target = names_of(edges.graph, edge)

        def effect(clean, corrupt, value, source=source, target=target):
            move = contributions(hf, corrupt)[source] - contributions(hf, clean)[source]
            with torch.no_grad():
                return value(forward(hf, clean)[0]) - value(forward(hf, clean, only(target, move))[0])

        want = sum(by_answer(task, row, effect) for row in range(2)) / 2
        assert edges.scores[edge[0], edge[1]].item() == pytest.approx(want, rel=1e-4, abs=1e-6), (source, target)
        kept = Circuit(edges.graph, edges.graph.real & ~torch.nn.functional.one_hot(
            torch.tensor(edge[0] * len(edges.targets) + edge[1]), edges.graph.real.numel()).bool().view_as(
                edges.graph.real))
        whole, without = gimkit.run(model, task, [Circuit(edges.graph, edges.graph.real), kept]).mean(1).tolist()
        assert whole - without == pytest.approx(want, rel=1e-3, abs=1e-5)


SCORES = {
    "nodes gim": lambda m, t: gimkit.score_nodes(m, t, "gim", batch_size=3).per_example,
    "nodes nap-ig": lambda m, t: gimkit.score_nodes(m, t, "nap-ig", steps=2).per_example,
    "nodes ig-activations": lambda m, t: gimkit.score_nodes(m, t, "ig-activations", steps=2).per_example,
    "nodes atp*": lambda m, t: gimkit.score_nodes(m, t, "atp*").per_example,
    "nodes forward": lambda m, t: gimkit.score_nodes(m, t, "gim", backend="forward").per_example,
    "edges gim": lambda m, t: gimkit.score_edges(m, t, "gim", batch_size=1).scores,
    "edges gp": lambda m, t: gimkit.score_edges(m, t, "gp", steps=2).scores,
    "edges gim-ig": lambda m, t: gimkit.score_edges(m, t, "gim-ig", steps=2).scores,
    "edges exact": lambda m, t: gimkit.score_edges(m, t, "exact").scores,
    "edges among": lambda m, t: gimkit.score_edges(m, t, nodes=["input", "a1.h1", "m1", "logits"]).scores,
    "edges among, forward": lambda m, t: gimkit.score_edges(
        m, t, nodes=["input", "a1.h1", "m1", "logits"], backend="forward").scores,
    "neurons": lambda m, t: gimkit.circuits.score_neurons(m, t).scores,
    "shapley": lambda m, t: gimkit.circuits.shapley_nodes(m, t, orders=1).per_example,
    "run": lambda m, t: gimkit.run(m, t, gimkit.score_edges(m, t, "random").top(60)),
}


@pytest.mark.parametrize("name", SCORES)
def test_single_tokens_scored_as_sequences_are_the_logit_difference(name):
    """log P(a) - log P(b) of one token each is the difference of their logits, whatever is scored and how."""
    _, model = tiny("llama")
    task = random_task(3)
    single = dataclasses.replace(task, bad=tuple(ids[:1] for ids in task.bad))
    got, want = (SCORES[name](model, t) for t in (dataclasses.replace(single, sequences=True), single))
    assert got.shape == want.shape and relative(got, want) < 1e-6


def test_forward_mode_and_among_of_answers_of_several_tokens():
    _, model = tiny("gpt2")
    task, chosen = several(), ["input", "a0.h1", "m1", "logits"]
    forward, reverse = (gimkit.score_nodes(model, task, "gim", backend=backend).per_example
                        for backend in ("forward", "reverse"))
    assert relative(forward, reverse) < 1e-9
    forward, reverse = (gimkit.score_edges(model, task, nodes=chosen, backend=backend).scores
                        for backend in ("forward", "reverse"))
    assert relative(forward, reverse) < 1e-6


def test_what_answers_of_several_tokens_cannot_do():
    _, model = tiny("llama")
    task = several()
    edges = gimkit.score_edges(model, task, "gim")
    for name, act in (("head_roles", gimkit.circuits.head_roles), ("head_repair", gimkit.selfrepair.head_repair)):
        with pytest.raises(gimkit.GimkitError, match=f"^{name} takes answers of one token"):
            act(model, task)
    for act in (lambda: gimkit.score_nodes(model, task, "exact", metric="kl"),
                lambda: gimkit.run(model, task, edges.top(9), metric="kl-mean")):
        with pytest.raises(gimkit.GimkitError, match="compares one next token"):
            act()
    assert gimkit.self_repair(model, task, threshold=0.01).rows.shape[0] > 0  # it asks for no answer
    assert plots.node_grid(gimkit.score_nodes(model, task)).figure.axes[1].get_ylabel() == "score (nats)"
