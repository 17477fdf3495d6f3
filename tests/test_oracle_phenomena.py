"""phenomena.py against the Hugging Face forward pass, patched literally with hooks, one thing at a time."""

from contextlib import ExitStack
from dataclasses import replace

import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gimkit.errors import GimkitError
from gimkit.tasks import Task
from tests.oracles import apart, patched
from tests.oracles import phenomena as ph

torch.set_num_threads(1)
VOCABULARY, HEADS, D, LAYERS = 40, 4, 4, 3


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    torch.manual_seed(0)
    width = HEADS * D
    if request.param == "gpt2":
        net = GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=width, n_layer=LAYERS, n_head=HEADS)
        )
    else:
        net = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=width, intermediate_size=24, num_hidden_layers=LAYERS,
                num_attention_heads=HEADS, num_key_value_heads=2, max_position_embeddings=16,
            )
        )  # fmt: skip
    net.set_attn_implementation("eager")
    for weight in net.parameters():  # large weights and biases, so that attention is sharp and nothing is linear
        torch.nn.init.normal_(weight, mean=1.0 if weight.dim() == 1 else 0.0, std=0.5)
    return net.double().eval()


def prompts(model, seed=0, n=6, width=9) -> Task:
    g = torch.Generator().manual_seed(seed)
    clean = torch.randint(1, VOCABULARY, (n, width), generator=g)
    length = torch.randint(5, width + 1, (n,), generator=g)
    corrupt = clean.clone()
    corrupt[:, 2] = torch.randint(1, VOCABULARY, (n,), generator=g)
    corrupt[:, 3] = torch.randint(1, VOCABULARY, (n,), generator=g)
    mask = torch.arange(width) < length[:, None]
    good = tuple((int(row[2]),) for row in clean)
    bad = tuple((int(row[1]), int(row[1]) % 3 + 1) for row in clean)  # a set, as in greater-than
    task = Task("random", clean * mask, corrupt * mask, mask, good, bad, pairs=())
    if (metric(model, task) - metric(model, task, ids=task.corrupt)).mean() < 0:  # so that the gap is positive
        task = replace(task, good=bad, bad=good)
    return task


# --- the literal pass -----------------------------------------------------------------------------


def blocks(model):
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def modules(model, layer):
    """attention projection out, mlp, mlp norm, attention norm, final norm."""
    b = blocks(model)[layer]
    if hasattr(b, "attn"):
        return b.attn.c_proj, b.mlp, b.ln_2, b.ln_1, model.transformer.ln_f
    return b.self_attn.o_proj, b.mlp, b.post_attention_layernorm, b.input_layernorm, model.model.norm


def metric(model, task, hooks=(), ids=None):
    """Metric of each prompt with hooks (module, function of its input or output, 'in' or 'out')."""
    with ExitStack() as stack, torch.no_grad():
        for module, change, side in hooks:
            if side == "in":
                handle = module.register_forward_pre_hook(lambda _, args, f=change: (f(args[0]), *args[1:]))
            else:
                handle = module.register_forward_hook(lambda _, args, out, f=change: f(out))
            stack.callback(handle.remove)
        logits = model(task.clean if ids is None else ids, attention_mask=task.mask.long()).logits
    return torch.stack(
        [row[p, list(g)].logsumexp(0) - row[p, list(b)].logsumexp(0)
         for row, p, g, b in zip(logits, task.last, task.good, task.bad, strict=True)]
    )  # fmt: skip


def catch(model, task, module, side, ids=None, hooks=()):
    kept = []
    metric(model, task, [*hooks, (module, lambda t: kept.append(t) or t, side)], ids)
    return kept[0]


def put(value, head):
    def change(z):
        z = z.clone()
        z[..., head * D : head * D + D] = value[..., head * D : head * D + D]
        return z

    return change


def head_write(model, layer, z, head):
    """What one head adds to the residual stream."""
    out, *_ = modules(model, layer)
    alone = torch.zeros_like(z)
    alone[..., head * D : head * D + D] = z[..., head * D : head * D + D]
    with torch.no_grad():
        return out(alone) - out(torch.zeros_like(z))


def test_exact_patching(model):
    task = prompts(model)
    nodes = patched.node_effects(model, task).set_index("part")
    assert len(nodes) == LAYERS * (HEADS + 1)
    clean = metric(model, task)
    gap = (clean - metric(model, task, ids=task.corrupt)).mean().item()
    for layer in range(LAYERS):
        out, mlp, *_ = modules(model, layer)
        corrupt_mlp = catch(model, task, mlp, "out", task.corrupt)
        hooks = {f"m{layer}": (mlp, lambda _, v=corrupt_mlp: v, "out")}
        z = catch(model, task, out, "in", task.corrupt)
        hooks |= {f"a{layer}.h{h}": (out, put(z, h), "in") for h in range(HEADS)}
        for part, hook in hooks.items():
            effect = (clean - metric(model, task, [hook])).mean().item()
            assert nodes.effect[part] == pytest.approx(effect, rel=1e-4, abs=1e-5)
            assert nodes.normalised[part] == pytest.approx(effect / gap, rel=1e-4, abs=1e-5)
            assert abs(effect) > 1e-3


def arriving_through_mlps(model, task, sender, reads):
    """What a receiver reads when the sender is corrupt, every other head clean, and MLPs answer."""
    hooks = []
    for layer in range(LAYERS):
        out, mlp, *_ = modules(model, layer)
        value = catch(model, task, out, "in")
        if sender[0] == layer and sender[1] is not None:
            value = put(catch(model, task, out, "in", task.corrupt), sender[1])(value)
        hooks.append((out, lambda _, v=value: v, "in"))
        if sender == (layer, None):
            corrupt = catch(model, task, mlp, "out", task.corrupt)
            hooks.append((mlp, lambda _, v=corrupt: v, "out"))
    return catch(model, task, reads, "in", task.corrupt if sender == apart.INPUT else None, hooks)


def literal_edge(model, task, sender, receiver, kind, through_mlps=False):
    """Effect of one edge; sender and receiver are (layer, head or None), sender None is everything."""
    layer, head = receiver
    out, _, mlp_norm, norm, _ = modules(model, layer)
    reads = norm if head is not None else mlp_norm
    x = catch(model, task, reads, "in")
    if through_mlps and sender is not None:
        new = arriving_through_mlps(model, task, sender, reads)
    elif sender is None:
        new = catch(model, task, reads, "in", task.corrupt)
    elif sender == apart.INPUT:
        first = modules(model, 0)[3]
        new = x + catch(model, task, first, "in", task.corrupt) - catch(model, task, first, "in")
    else:
        sender_out, sender_mlp, *_ = modules(model, sender[0])
        at, side = (sender_mlp, "out") if sender[1] is None else (sender_out, "in")
        values = [catch(model, task, at, side, ids) for ids in (task.corrupt, task.clean)]
        if sender[1] is not None:
            values = [head_write(model, sender[0], z, sender[1]) for z in values]
        new = x + values[0] - values[1]
    if head is None:
        hooks = [(mlp_norm, lambda _: new, "in")]
    else:  # run once with the whole projection changed, then keep what that did to this one head
        attn = blocks(model)[layer].attn if kind and hasattr(blocks(model)[layer], "attn") else None
        with torch.no_grad():
            if attn is not None:
                slot = "qkv".index(kind) * HEADS * D
                changed = attn.c_attn(norm(new))

                def swap(t):
                    t = t.clone()
                    t[..., slot : slot + HEADS * D] = changed[..., slot : slot + HEADS * D]
                    return t

                hook = (attn.c_attn, swap, "out")
            else:
                projection = getattr(blocks(model)[layer].self_attn, f"{kind}_proj")
                changed = projection(norm(new))
                hook = (projection, lambda _: changed, "out")
        hooks = [(out, put(catch(model, task, out, "in", hooks=[hook]), head), "in")]
    return (metric(model, task) - metric(model, task, hooks)).mean().item()


@pytest.mark.parametrize("through_mlps", [False, True])
def test_path_patching(model, through_mlps):
    task = prompts(model)
    receivers = [(2, 1), (1, 3), (1, None), (2, None)]
    edges = patched.path_effects(model, task, receivers, through_mlps=through_mlps).set_index("edge")
    # heads: all, input, earlier parts, each to q, k and v; MLPs: the same and their own layer's heads, once
    per_head, per_mlp = [3 * (2 + 5 * layer) for layer in (2, 1)], [2 + 5 * layer + HEADS for layer in (1, 2)]
    assert len(edges) == sum(per_head + per_mlp) and edges.index.is_unique
    cases = {
        "all->a2.h1<q>": (None, (2, 1), "q"), "all->a2.h1<k>": (None, (2, 1), "k"),
        "all->m1": (None, (1, None), ""),
        "input->a2.h1<v>": (apart.INPUT, (2, 1), "v"), "input->a1.h3<k>": (apart.INPUT, (1, 3), "k"),
        "a0.h2->a2.h1<q>": ((0, 2), (2, 1), "q"), "a1.h3->a2.h1<k>": ((1, 3), (2, 1), "k"),
        "a0.h1->a1.h3<v>": ((0, 1), (1, 3), "v"), "m0->a2.h1<v>": ((0, None), (2, 1), "v"),
        "m1->a2.h1<q>": ((1, None), (2, 1), "q"), "a1.h0->m1": ((1, 0), (1, None), ""),
        "a0.h0->m2": ((0, 0), (2, None), ""), "m1->m2": ((1, None), (2, None), ""),
    }  # fmt: skip
    for edge, (sender, receiver, kind) in cases.items():
        effect = literal_edge(model, task, sender, receiver, kind, through_mlps)
        assert edges.effect[edge] == pytest.approx(effect, rel=1e-4, abs=1e-5), edge
        assert through_mlps or abs(effect) > 5e-5, edge
    assert edges.effect.abs().is_monotonic_decreasing
    direct = literal_edge(model, task, (0, 2), (2, 1), "v")
    assert (abs(edges.effect["a0.h2->a2.h1<v>"] - direct) > 1e-4) == through_mlps


def test_depth_counts_the_longest_chain():
    rows = [
        ("input", "m0", 0, False, False, 0.9), ("a0.h0", "m0", 0, True, False, 0.3),
        ("m0", "a1.h2", 1, False, True, 0.2), ("a1.h2", "a3.h1", 3, True, True, -0.2),
        ("a0.h1", "a3.h1", 3, True, True, 0.04), ("all", "a3.h1", 3, False, True, 0.9),
    ]  # fmt: skip
    edges = pd.DataFrame(rows, columns=["sender", "receiver", "layer", "from_head", "to_head", "normalised"])
    edges["kind"] = ["", "", "v", "q", "v", "q"]
    for order in (edges, edges[::-1]):
        assert patched.depth(order) == 3  # input or a0.h0 -> m0 -> a1.h2 -> a3.h1
        assert patched.depth(order, threshold=0.25) == 1
        assert patched.depth(order, threshold=0.95) == 0
    assert patched.late_dependence(edges, "q", n_layers=4) == pytest.approx(0.2)
    assert patched.late_dependence(edges, "v", n_layers=4) == pytest.approx(0.04)
    assert patched.late_dependence(edges, "k", n_layers=4) == 0
    nodes = pd.DataFrame({"layer": [0, 0, 1, 2, 3], "normalised": [0.5, 0.2, -0.1, 0.05, float("nan")]})
    assert patched.layers_taking_part(nodes) == 2


# --- self-repair ----------------------------------------------------------------------------------


def test_toy_of_redundant_positions():
    repaired = ph.joint_ablation(torch.tensor([[6.0, 6, 0, 0, 0]]), torch.tensor([[10.0, 10, 0, 0, 0]])).iloc[0]
    assert [round(repaired[c], 3) for c in ("d1", "d2", "joint", "interaction")] == [
        0.035,
        0.035,
        1.161,
        0.94,
    ]
    # the control: one informative position, so no repair; its second largest contribution is 0
    scores, values = torch.tensor([[6.0, 0, 0, 0, 0]]), torch.tensor([[10.0, 0, 0, 0, 0]])
    assert len(ph.joint_ablation(scores, values)) == 0
    control = ph.joint_ablation(scores, values, threshold=-1).iloc[0]
    assert round(control.d1, 3) == 5.366 and round(control.interaction, 2) == 0.16


def literal_self_repair(model, task, threshold):
    """Loops over examples, layers, heads and queries, from the model's own attention maps and values."""
    with torch.no_grad():
        maps = model(task.clean, attention_mask=task.mask.long(), output_attentions=True).attentions
    rows = []
    for layer, block in enumerate(blocks(model)):
        if hasattr(block, "attn"):
            values = catch(model, task, block.attn.c_attn, "out")[..., 2 * HEADS * D :]
        else:
            values = catch(model, task, block.self_attn.v_proj, "out")
        per_value_head = HEADS * D // values.shape[-1]
        for example, last in enumerate(task.last.tolist()):
            for head in range(HEADS):
                at = head // per_value_head * D
                for query in range(last + 1):
                    s = maps[layer][example, head, query, : query + 1]
                    v = values[example, : query + 1, at : at + D]
                    z = s @ v
                    c = v @ z
                    kept = (s * c > threshold).nonzero().flatten().tolist()
                    if len(kept) < 2:
                        continue
                    i, j = sorted(kept, key=lambda k, t=s * c: -t[k])[:2]
                    a = s.log()  # the scores, up to a constant

                    def lost(which, a=a, c=c, z=z):
                        b = a.clone()
                        b[which] = a.mean()
                        return float(z @ z - b.softmax(0) @ c)

                    d1, d2, joint = lost([i]), lost([j]), lost([i, j])
                    rows.append((example, layer, head, query, i, j, d1, d2, joint, (joint - d1 - d2) / joint))
    return rows


def test_attention_self_repair(model):
    task = prompts(model)
    found = ph.attention_self_repair(model, task, threshold=0.05)
    expected = pd.DataFrame(literal_self_repair(model, task, 0.05), columns=found.columns)
    keys = ["example", "layer", "head", "query"]
    assert 20 < len(expected) < task.mask.sum() * LAYERS * HEADS
    found, expected = (frame.sort_values(keys, ignore_index=True) for frame in (found, expected))
    places, losses = [*keys, "i", "j"], ["d1", "d2", "joint"]
    assert (found[places] == expected[places]).all(axis=None)
    assert found[losses].to_numpy() == pytest.approx(expected[losses].to_numpy(), rel=1e-4, abs=1e-4)
    clear = expected.joint.abs() > 0.1  # the models round their softmax to float32
    assert found.interaction[clear].to_numpy() == pytest.approx(
        expected.interaction[clear].to_numpy(), rel=1e-3, abs=1e-3
    )
    summary = ph.repair_summary(found)
    assert summary["rows"] == len(expected) and 0 <= summary["above_1.1"] <= summary["above"] <= 1


# --- direct attribution and compensation ----------------------------------------------------------


def frozen_metric_change(model, task, write):
    """How the linearised metric falls when `write` [n, D] leaves the final residual, the norm's scale frozen."""
    norm = modules(model, 0)[-1]
    rows = torch.arange(len(task.last))
    x = catch(model, task, norm, "in")[rows, task.last]
    if hasattr(norm, "bias"):
        centred, eps = x - x.mean(-1, keepdim=True), norm.eps
        moved = write - write.mean(-1, keepdim=True)
    else:
        centred, eps, moved = x, norm.variance_epsilon, write
    scale = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    with torch.no_grad():
        logits = model.lm_head(norm(x))
        change = model.lm_head(norm.weight * moved / scale)  # lm_head has no bias
    result = []
    for row, delta, good, bad in zip(logits, change, task.good, task.bad, strict=True):
        good, bad = list(good), list(bad)
        result.append(row[good].softmax(0) @ delta[good] - row[bad].softmax(0) @ delta[bad])
    return torch.stack(result), change


def test_direct_attribution(model):
    task = prompts(model)
    heads = ph.direct_attribution(model, task).set_index("part")
    with torch.no_grad():
        maps = model(task.clean, attention_mask=task.mask.long(), output_attentions=True).attentions
    rows, total = torch.arange(len(task.last)), metric(model, task).mean().item()
    for layer in range(LAYERS):
        z = catch(model, task, modules(model, layer)[0], "in")
        for head in range(HEADS):
            found = heads.loc[f"a{layer}.h{head}"]
            dla, change = frozen_metric_change(model, task, head_write(model, layer, z, head)[rows, task.last])
            assert found.dla == pytest.approx(dla.mean().item(), rel=1e-4, abs=1e-5)
            share = found.dla / total if total > 0 else float("nan")
            assert found.share == pytest.approx(share, nan_ok=True)
            if all(len(g) == 1 for g in task.good):
                written = [d[g[0]] - d.mean() for d, g in zip(change, task.good, strict=True)]
                assert found.good_logit == pytest.approx(torch.stack(written).mean().item(), rel=1e-4, abs=1e-5)
            seen, top = [], []
            for i, last in enumerate(task.last.tolist()):
                a = maps[layer][i, head, last, : last + 1]
                at = [k for k in range(last + 1) if int(task.clean[i, k]) in task.good[i]]
                seen.append(a[at].sum().item())
                top.append(a.argmax().item() in at)
            assert found.attention_good == pytest.approx(sum(seen) / len(seen), rel=1e-4, abs=1e-5)
            assert found.top_good == pytest.approx(sum(top) / len(top))
    assert heads.attention_bad.max() > 0


def planted(copies: float, suppresses: float) -> GPT2LMHeadModel:
    """One layer, one-hot tokens: head 0 moves tokens 1-4 to the output, head 1 moves 5-8; their signs are given."""
    config = GPT2Config(vocab_size=16, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    net = GPT2LMHeadModel(config).eval()
    for name, weight in net.named_parameters():
        torch.nn.init.ones_(weight) if "ln" in name and "weight" in name else torch.nn.init.zeros_(weight)
    attn, d = net.transformer.h[0].attn, 8
    with torch.no_grad():
        net.transformer.wte.weight.copy_(torch.eye(16))
        for head, (tokens, sign) in enumerate([(range(1, 5), copies), (range(5, 9), suppresses)]):
            attn.c_attn.bias[head * d] = 10.0  # a constant query ...
            for at, token in enumerate(tokens):
                attn.c_attn.weight[token, 16 + head * d] = 1.0  # ... for these tokens' keys
                attn.c_attn.weight[token, 32 + head * d + at] = 1.0
                attn.c_proj.weight[head * d + at, token] = sign
    return net


@pytest.mark.parametrize(
    "copies, suppresses, roles",
    [(3, -2, ["name mover", "suppressor"]), (-2, -3, ["", "suppressor"]), (3, 2, ["name mover", ""])],
)
def test_planted_roles(copies, suppresses, roles):
    clean = torch.tensor([[0, 2, 7, 10, 11], [0, 6, 3, 12, 10]])
    good, bad = ((2,), (3,)), ((7,), (6,))
    task = Task("planted", clean, clean, torch.ones_like(clean, dtype=torch.bool), good, bad, pairs=())
    heads = ph.direct_attribution(planted(copies, suppresses), task)
    assert heads.role.tolist() == roles
    assert heads.top_good.tolist() == [1, 0] and heads.top_bad.tolist() == [0, 1]


def mean_from_the_end(z, last):
    """Each position's value becomes the mean over prompts, positions counted from the last token."""
    out = z.clone()
    for i, end in enumerate(last.tolist()):
        for p in range(end + 1):
            out[i, p] = torch.stack([z[j, e - end + p] for j, e in enumerate(last.tolist()) if e - end + p >= 0]).mean(
                0
            )
    return out


@pytest.mark.parametrize("ablation", ["mean", "corrupt"])
def test_compensation(model, ablation):
    task = prompts(model)
    frame = ph.compensation(model, task, ablation).set_index(["ablated", "later"])
    assert len(frame) == HEADS * sum(1 + (HEADS + 1) * (LAYERS - 1 - layer) for layer in range(LAYERS))
    clean, rows = metric(model, task), torch.arange(len(task.last))
    for layer, head in [(0, 1), (1, 2), (2, 0)]:
        out = modules(model, layer)[0]
        z = catch(model, task, out, "in")
        new = mean_from_the_end(z, task.last) if ablation == "mean" else catch(model, task, out, "in", task.corrupt)
        hook = (out, put(new, head), "in")
        total = (clean - metric(model, task, [hook])).mean().item()
        writes = [head_write(model, layer, t, head)[rows, task.last] for t in (z, new)]
        direct = frozen_metric_change(model, task, writes[0] - writes[1])[0].mean().item()
        name = f"a{layer}.h{head}"
        for later in range(layer, LAYERS):
            later_out, later_mlp, *_ = modules(model, later)
            mlps = [catch(model, task, later_mlp, "out", hooks=h)[rows, task.last] for h in ([hook], [])]
            gains = {f"m{later}": mlps[0] - mlps[1]}
            if later > layer:
                zs = [catch(model, task, later_out, "in", hooks=h) for h in ([hook], [])]
                for h in range(HEADS):
                    added = [head_write(model, later, t, h)[rows, task.last] for t in zs]
                    gains[f"a{later}.h{h}"] = added[0] - added[1]
            for part, change in gains.items():
                found = frame.loc[(name, part)]
                assert found.direct == pytest.approx(direct, rel=1e-4, abs=1e-5)
                assert found.total == pytest.approx(total, rel=1e-4, abs=1e-5)
                assert found.compensated == pytest.approx(1 - total / direct, rel=1e-5)
                assert found.gain == pytest.approx(
                    frozen_metric_change(model, task, change)[0].mean().item(), rel=1e-4, abs=1e-5
                )


def test_compensation_summary():
    frame = pd.DataFrame(
        [("a0.h0", True, 2.0, 0.5, 0.4, 0.3), ("a0.h0", False, 2.0, 0.5, 0.4, 0.9),
         ("a1.h1", True, 1.0, 0.2, -0.5, 0.05), ("a0.h1", True, 0.01, 0.01, 9.0, 9.0)],
        columns=["ablated", "later_is_head", "direct", "direct_share", "compensated", "gain_share"],
    )  # fmt: skip
    expected = {"ablated_heads": 2, "compensated": 0.4, "backed_up_heads": 1, "backup_share": 0.3}
    assert ph.compensation_summary(frame) == expected


# --- the row, and bad input -----------------------------------------------------------------------


def test_one_flat_row_of_numbers(model):
    task = prompts(model)
    row = ph.phenomena(model, {"one": task, "two": prompts(model, seed=1)})
    assert all(isinstance(v, float) for v in row.values()) and {k.split(".")[0] for k in row} == {
        "one",
        "two",
    }
    assert row["one.accuracy"] == pytest.approx((metric(model, task) > 0).double().mean().item())
    assert row["one.layers"] == patched.layers_taking_part(patched.node_effects(model, task)) > 0
    same = ph.phenomena(model, {"one": replace(task, corrupt=task.clean)})  # nothing corrupted: no share is invented
    assert same["one.layers"] == same["one.depth"] == same["one.late_q"] == 0


def test_bad_input(model):
    task = prompts(model)
    with pytest.raises(GimkitError, match="unknown ablation 'zero'"):
        ph.compensation(model, task, "zero")
    with pytest.raises(GimkitError, match="Linear"):
        patched.node_effects(torch.nn.Linear(1, 1).eval(), task)
    model.train()
    with pytest.raises(GimkitError, match=r"model\.eval"):
        patched.node_effects(model, task)
    model.eval()
