"""Queries, keys, values and neurons: against attention and MLPs spelled out, patched one by one."""

import pytest
import torch
from literal_heads import literal
from made_up import literal_metric, random_task
from nnsight import NNsight
from test_nodes import changed, padded_further, rows, value_of
from test_rules import relative
from tiny import build

import gimkit
from gimkit.circuits.neurons import output_projections
from gimkit.model.architecture import architecture_of

torch.set_num_threads(1)
KERNELS = ("gpt2", "llama", "mistral", "qwen3", "gemma2", "gpt_neox", "gpt_oss", "deepseek_v3")


def metric_of(task, row, name="logit"):
    def metric(logits):
        final = logits[-1]
        if name == "probability":
            final = final.softmax(0)
            return final[list(task.good[row])].sum() - final[list(task.bad[row])].sum()
        return torch.logsumexp(final[list(task.good[row])], 0) - torch.logsumexp(final[list(task.bad[row])], 0)

    return metric


# --- AtP* ---


@pytest.mark.parametrize("name, kind", [*((name, "logit") for name in KERNELS), ("llama", "probability")])
def test_the_qk_fix_is_its_formula(name, kind):
    """Sum over the pattern of (clean - changed) times its gradient; values by plain attribution patching."""
    hf, task = build(name), random_task()
    got = gimkit.score_nodes(NNsight(hf), task, "atp*", metric=kind)
    with literal(hf) as heads:
        for row in (0, 3):
            clean, corrupt = rows(task, row)
            with torch.no_grad():
                heads.run(corrupt)
            theirs = heads.seen
            seq, n_heads = clean.shape[1], theirs[0][0].shape[0]
            moved = {layer: torch.zeros(n_heads, seq, seq, requires_grad=True) for layer in range(len(theirs))}
            logits = heads.run(clean, moved=moved)
            metric = metric_of(task, row, kind)(logits)
            assert torch.allclose(logits, hf(clean, use_cache=False).logits[0], atol=1e-4)
            outputs = [seen[4] for seen in heads.seen]
            found = torch.autograd.grad(metric, [*moved.values(), *outputs])
            for layer, (q, k, v, pattern, _) in enumerate(heads.seen):
                at_pattern, at_output = found[layer], found[len(moved) + layer]
                other_q, other_k, other_v = theirs[layer][:3]
                want = {"q": ((pattern - heads.pattern(layer, other_q, k)) * at_pattern).sum((1, 2)),
                        "k": ((pattern - heads.pattern(layer, q, other_k)) * at_pattern).sum((1, 2)),
                        "v": (pattern @ (v - other_v) * at_output).sum((1, 2))}
                for which, values in want.items():
                    mine = [got.per_example[row, got.nodes.index(f"a{layer}.h{head}<{which}>")].item()
                            for head in range(n_heads)]
                    assert mine == pytest.approx(values.tolist(), rel=1e-3, abs=1e-4 if kind == "logit" else 1e-6)


def plain_and_exact(hf, task, row, layer):
    """{(head, q or k): (attribution patching, exact effect)} of one layer, attention by hand."""
    with literal(hf) as heads:
        clean, corrupt = rows(task, row)
        metric, found = metric_of(task, row), {}
        with torch.no_grad():
            heads.run(corrupt)
            theirs = heads.seen[layer]
            before = metric(heads.run(clean)).item()
            ours = heads.seen[layer]
        for number, which in enumerate("qk"):
            for head in range(len(ours[0])):
                leaf = ours[number][head].clone().requires_grad_(True)
                slope = torch.autograd.grad(metric(heads.run(clean, {(layer, head, which): leaf})), leaf)[0]
                change = ours[number][head] - theirs[number][head]
                with torch.no_grad():
                    after = metric(heads.run(clean, {(layer, head, which): theirs[number][head]})).item()
                found[head, which] = ((change * slope).sum().item(), before - after)
    return found


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_saturated_attention_is_seen_by_the_qk_fix_alone(name):
    """Queries so long that softmax is flat, outputs so small that what follows is linear: the fix is then exact."""
    hf, task, row, layer = build(name, torch.float64), random_task(), 3, 1
    with torch.no_grad():
        if name == "gpt2":
            hf.transformer.h[layer].attn.c_attn.weight[:, :32] *= 1e5
            hf.transformer.h[layer].attn.c_attn.bias[:32] *= 1e5
            hf.transformer.h[layer].attn.c_proj.weight *= 1e-6
        else:
            hf.model.layers[layer].self_attn.q_proj.weight *= 1e5
            hf.model.layers[layer].self_attn.o_proj.weight *= 1e-4
    got = gimkit.score_nodes(NNsight(hf), task, "atp*")
    matters = 0
    for (head, which), (plain, exact) in plain_and_exact(hf, task, row, layer).items():
        score = got.per_example[row, got.nodes.index(f"a{layer}.h{head}<{which}>")].item()
        size = 1e-8 if name == "gpt2" else 1e-6
        assert score == pytest.approx(exact, rel=1e-2, abs=size)
        if abs(exact) > 10 * size:
            matters += 1
            assert abs(plain) < abs(exact) / 1e4
    assert matters >= 3


def test_atp_star_names_and_the_other_nodes():
    """Heads, MLPs and the embedding keep their plain attribution; the frame knows queries, keys and values."""
    model, task = NNsight(build("llama")), random_task()
    star, plain = (gimkit.score_nodes(model, task, method) for method in ("atp*", "gradient"))
    assert star.nodes[:3] == ("input", "a0.h0<q>", "a0.h1<q>") and star.nodes[12:15] == ("a0.h3<v>", "a0.h0", "a0.h1")
    both = [star.nodes.index(name) for name in plain.nodes]
    assert relative(star.per_example[:, both], plain.per_example) < 1e-6
    frame = star.frame()
    assert len(frame) == 1 + 3 * (4 * 4 + 1)
    assert frame[frame.node == "a1.h2<k>"].iloc[0][["kind", "layer", "head"]].tolist() == ["key", 1, 2]
    assert frame.kind.value_counts().to_dict() == {"head": 12, "query": 12, "key": 12, "value": 12, "mlp": 3,
                                                   "input": 1}
    assert len(star.plot().texts) == 3 * 5
    assert plain.top(3).graph == plain.graph
    for act in (lambda: star.top(3), lambda: star.save("nodes.json")):
        with pytest.raises(gimkit.GimkitError, match="queries, keys and values, which are no nodes of a circuit"):
            act()


def test_atp_star_refuses_what_bypasses_attention_interface():
    with pytest.raises(gimkit.GimkitError, match="attention_interface"):
        gimkit.score_nodes(NNsight(build("gpt_neo")), random_task(), "atp*")


# --- neurons ---


def neuron_place(hf, layer, neuron):
    path = output_projections(NNsight(hf), architecture_of(NNsight(hf)))[layer]
    return hf.get_submodule(path), True, slice(neuron, neuron + 1)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "stablelm", "opt"])
def test_neuron_gradient_is_the_slope_of_the_metric(name):
    hf, task, step = build(name, torch.float64), random_task()[3:4], 1e-5
    got = gimkit.circuits.score_neurons(NNsight(hf), task, "gradient").scores
    clean, corrupt = rows(task, 0)
    for layer, neuron in ((0, 0), (1, 7), (2, got.shape[1] - 1)):
        place = neuron_place(hf, layer, neuron)
        difference = value_of(hf, place, clean) - value_of(hf, place, corrupt)
        ends = []
        for sign in (1, -1):
            with changed(place, lambda value, move=sign * step * difference: value + move):
                ends.append(literal_metric(hf, task.clean, task, 0))
        assert got[layer, neuron].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("method", ["gradient", "gim", "relp"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3", "gpt_neox", "stablelm", "opt", "nemotron"])
def test_neurons_add_up_to_their_mlp(name, method):
    model, task = NNsight(build(name)), random_task()
    for metric in ("logit", "probability"):
        nodes = gimkit.score_nodes(model, task, method, metric=metric)
        want = torch.stack([nodes.scores[nodes.nodes.index(f"m{layer}")] for layer in range(3)])
        assert relative(gimkit.circuits.score_neurons(model, task, method, metric=metric).scores.sum(1), want) < 1e-5


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_gims_halves_do_not_shrink_a_neuron(name):
    """Last layer, small MLP: nothing but the split differs from exact patching, and the split must not count."""
    hf, task, layer = build(name, torch.float64), random_task()[3:4], 2
    with torch.no_grad():
        hf.model.layers[layer].mlp.down_proj.weight *= 1e-3
    got = gimkit.circuits.score_neurons(NNsight(hf), task, gimkit.Rules(gate=0.5, up=0.5)).scores[layer, :12]
    corrupt, exact = rows(task, 0)[1], []
    before = literal_metric(hf, task.clean, task, 0)
    for neuron in range(12):
        place = neuron_place(hf, layer, neuron)
        value = value_of(hf, place, corrupt)
        with changed(place, lambda _, value=value: value):
            exact.append(before - literal_metric(hf, task.clean, task, 0))
    exact = torch.tensor(exact, dtype=got.dtype)
    assert (got @ exact / (exact @ exact)).item() == pytest.approx(1, abs=0.01)
    assert relative(got, exact) < 0.02


@pytest.mark.parametrize("method", ["gim", "gradient"])
def test_neurons_do_not_depend_on_batches_and_padding(method):
    model, task = NNsight(build("llama")), random_task()
    whole = gimkit.circuits.score_neurons(model, task, method).scores
    assert whole.shape == (3, 48)
    for size in (1, 2):
        assert relative(gimkit.circuits.score_neurons(model, task, method, batch_size=size).scores, whole) < 1e-5
    assert relative(gimkit.circuits.score_neurons(model, padded_further(task), method).scores, whole) < 1e-5


def test_neuron_tables():
    model, task = NNsight(build("llama")), random_task()
    neurons = gimkit.circuits.score_neurons(model, task)
    frame = neurons.frame()
    assert list(frame.columns) == ["task", "method", "metric", "node", "layer", "neuron", "score"]
    assert len(frame) == 3 * 48
    assert frame.iloc[50][["node", "layer", "neuron"]].tolist() == ["m1", 1, 2]
    assert frame.iloc[50].score == pytest.approx(neurons.scores[1, 2].item()) and frame.method[0] == "gim"
    best, largest = neurons.top(5), neurons.top(5, absolute=True)
    assert best.score.tolist() == sorted(frame.score, reverse=True)[:5]
    assert largest.score.abs().tolist() == sorted(frame.score.abs(), reverse=True)[:5]
    assert len(neurons.top(0)) == 0
    for n in (-1, 3 * 48 + 1, 2.5):
        with pytest.raises(gimkit.GimkitError, match="a number of neurons"):
            neurons.top(n)


def test_neurons_refuse_bad_input():
    model, task = NNsight(build("gpt2")), random_task()
    with pytest.raises(gimkit.GimkitError, match="unknown rules 'exact'; use a gimkit.Rules, or one of [^*]*relp$"):
        gimkit.circuits.score_neurons(model, task, "exact")
    with pytest.raises(gimkit.GimkitError, match="unknown metric"):
        gimkit.circuits.score_neurons(model, task, metric="KL")
    with pytest.raises(gimkit.GimkitError, match="zero at the clean run"):
        gimkit.circuits.score_neurons(model, task, metric="kl")
    with pytest.raises(gimkit.GimkitError, match="batch_size"):
        gimkit.circuits.score_neurons(model, task, batch_size=0)
    with pytest.raises(gimkit.GimkitError, match="is not a task"):
        gimkit.circuits.score_neurons(model, "ioi")
    with pytest.raises(gimkit.GimkitError, match="already carries"):
        gimkit.circuits.score_neurons(gimkit.apply(model), task)
    for name in ("mixtral", "qwen3_moe", "deepseek_v3"):
        with pytest.raises(gimkit.GimkitError, match="experts"):
            gimkit.circuits.score_neurons(NNsight(build(name)), task)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0] = torch.nan
    with pytest.raises(gimkit.GimkitError, match="NaN"):
        gimkit.circuits.score_neurons(model, task)
