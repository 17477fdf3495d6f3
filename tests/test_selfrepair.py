"""Self-repair against literal loops: one row, one head, one prompt at a time, with eager attention and plain hooks."""

from contextlib import ExitStack

import pytest
import torch
from made_up import literal_metric, random_task
from nnsight import NNsight
from test_nodes import changed, places, value_of
from tiny import build, implementations, token_ids

import gimkit
from gimkit.interventions.score_ablation import ablations, one_layer
from gimkit.model.architecture import architecture_of
from gimkit.selfrepair.heads import EFFECTS
from gimkit.tasks import Task
from tests.oracles import phenomena

torch.set_num_threads(1)
PLACES = ["example", "layer", "head", "query", "i", "j"]


# --- attention scores ---


def softmax(a):
    e = [0.0 if x is None else 2.718281828459045 ** (x - max(y for y in a if y is not None)) for x in a]
    return [x / sum(e) for x in e]


def literal_row(a, c, sink):
    """Two largest contributions of one row of scores (None where masked), and what ablating them does, in plain Python.

    Returns i, j, contributions, d1, d2, d12, gradient sum, gradient sum at temperature 2.
    """
    row = [*a, sink]  # a sink is one more score, worth nothing; None where there is none
    c = [*c, 0.0]

    def output(scores):
        return sum(s * x for s, x in zip(softmax(scores), c))

    s = softmax(row)
    shown = [k for k, x in enumerate(a) if x is not None]
    i, j = sorted(shown, key=lambda k: -s[k] * c[k])[:2]
    mean = sum(a[k] for k in shown) / len(shown)

    def fall(*lowered):
        return output(row) - output([mean if k in lowered else x for k, x in enumerate(row)])

    def slope(p):
        return sum(p[k] * (c[k] - sum(x * y for x, y in zip(p, c))) for k in (i, j))

    warm = softmax([None if x is None else x / 2 for x in row])
    return i, j, s[i] * c[i], s[j] * c[j], fall(i), fall(j), fall(i, j), slope(s), slope(warm)


def caught(modules, hf, ids):
    """What each module returned, or read (for "in"), on one prompt."""
    found = {}
    with ExitStack() as stack, torch.no_grad():
        for name, (module, side) in modules.items():
            if side == "in":
                hook = module.register_forward_pre_hook(lambda _, args, name=name: found.update({name: args[0]}))
            else:
                hook = module.register_forward_hook(lambda _, args, out, name=name: found.update({name: out}))
            stack.callback(hook.remove)
        hf(ids, use_cache=False)
    return found


def literal_rows(hf, prompts, threshold):
    """{(example, layer, head, query): numbers} by a loop over everything, from eager attention weights.

    Scores are logarithms of the weights: the same up to a constant of the row, which no ablation sees.
    """
    parts, config, found = architecture_of(NNsight(hf)), hf.config, {}
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(parts.blocks)
    if config.model_type == "mistral":
        kinds = ["sliding_attention"] * len(parts.blocks)
    heads, width = parts.n_heads, parts.head_dim
    group = heads // (getattr(config, "num_key_value_heads", None) or heads)
    for example, ids in enumerate(prompts):
        for layer, block in enumerate(parts.blocks):
            attention = hf.get_submodule(block.attention)
            fused = hasattr(attention, "c_attn")
            out = caught({"weights": (attention, "out"), "z": (hf.get_submodule(block.output), "in"),
                          "v": (attention.c_attn if fused else attention.v_proj, "out")}, hf, ids[None])
            weights, z = out["weights"][1][0].double(), out["z"][0].double()
            v = (out["v"][..., -heads * width:] if fused else out["v"])[0].double()
            for head in range(heads):
                for query in range(1, len(ids)):
                    window = config.sliding_window if kinds[layer] == "sliding_attention" else len(ids)
                    shown = [k <= query and query - k < window for k in range(len(ids))]
                    s = weights[head, query]
                    a = [float(s[k].log()) if shown[k] else None for k in range(len(ids))]
                    left = 1 - float(s.sum())
                    sink = float(torch.tensor(left).log()) if hasattr(attention, "sinks") else None
                    mine = slice(head * width, (head + 1) * width)
                    theirs = slice(head // group * width, (head // group + 1) * width)
                    c = [float(z[query, mine] @ v[k, theirs]) for k in range(len(ids))]
                    if sum(shown) < 2:
                        continue
                    numbers = literal_row(a, c, sink)
                    assert abs(numbers[3] - threshold) > 1e-5  # otherwise rounding decides
                    if numbers[3] > threshold:
                        found[example, layer, head, query] = numbers
    return found


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma2", "gpt_oss"])
def test_rows_are_those_of_a_literal_loop(name):
    hf, prompts, threshold = build(name, attn="eager"), list(token_ids(2, 9)), 0.2
    want = literal_rows(hf, prompts, threshold)
    repair = gimkit.self_repair(NNsight(hf), prompts, threshold=threshold)
    rows = repair.rows.set_index(PLACES[:4])
    assert sorted(rows.index) == sorted(want) and len(want) > 20
    assert repair.skipped == 2 * 3 * 4 * 9 - len(want)
    for place, (i, j, *numbers) in want.items():
        row = rows.loc[place]
        assert (row.i, row.j) == (i, j)
        got = row[["contribution_i", "contribution_j", "d1", "d2", "d12", "gradient", "tsg"]].tolist()
        assert got == pytest.approx(numbers, rel=1e-3, abs=1e-4 if name == "gpt_oss" else 2e-5)  # the sink is a rest
        d1, d2, d12 = numbers[2:5]
        if abs(d12) > 1e-2:
            assert row.interaction == pytest.approx((d12 - d1 - d2) / d12, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen3", "gpt_neox", "phi3"])
def test_sdpa_is_eager(name):
    assert implementations(name) == ("sdpa", "eager")
    frames = [gimkit.self_repair(NNsight(build(name, attn=attn)), list(token_ids(3, 9)), threshold=0.2).rows
              for attn in ("sdpa", "eager")]
    assert len(frames[0]) > 20 and frames[0][PLACES].equals(frames[1][PLACES])
    assert torch.allclose(*(torch.tensor(frame.drop(columns=[*PLACES, "interaction"]).to_numpy()) for frame in frames),
                          rtol=1e-3, atol=1e-5)


def toy(a, c):
    """A single row of scores and worths: places and contributions, effects and interaction, mean gradients of i, j."""
    (row,), _ = ablations(*(torch.tensor([[x]], dtype=torch.float64) for x in (a, c)), None, -1.0)
    *_, d1, d2, d12, gradient, tsg = row.tolist()
    return row.tolist()[:6], [d1, d2, d12, (d12 - d1 - d2) / d12], gradient / 2, tsg / 2


def test_the_toy_row():
    (head, query, i, j, *contributions), effects, gradient, tsg = toy([6, 6, 0, 0, 0], [10, 10, 0, 0, 0])
    assert (head, query, {i, j}) == (0, 0, {0, 1}) and sum(contributions) == pytest.approx(9.963, abs=5e-4)
    assert effects == pytest.approx([0.035, 0.035, 1.161, 0.940], abs=5e-4)
    assert (gradient, tsg) == (pytest.approx(0.018, abs=5e-4), pytest.approx(0.323, abs=5e-4))  # of each position


def test_the_control_with_one_informative_position():
    _, (d1, _, _, interaction), gradient, tsg = toy([6, 0, 0, 0, 0], [10, 0, 0, 0, 0])
    assert d1 == pytest.approx(5.366, abs=5e-4) and interaction == pytest.approx(0.160, abs=5e-4)
    e, warm = 2.718281828459045**6, 2.718281828459045**3  # the sums hold the second position's share, s_j (0 - o), too
    assert 2 * gradient + 10 * e / (e + 4) ** 2 == pytest.approx(0.097, abs=5e-4)
    assert 2 * tsg + 10 * warm / (warm + 4) ** 2 == pytest.approx(1.385, abs=5e-4)


def test_a_row_without_repair_has_no_interaction():
    """Worth everywhere the same: no score matters, alone or with another."""
    _, (d1, d2, d12, _), gradient, tsg = toy([6, 6, 0, 0, 0], [10, 10, 10, 10, 10])
    assert max(map(abs, (d1, d2, d12, gradient, tsg))) < 1e-9
    found = gimkit.selfrepair.attention.tidy(torch.tensor([[0, 0, 0, 1, 0, 1, 3, 3, 0.5, -0.5, 0, 0, 0]]).double())
    assert found.interaction.tolist() == [0.0]


def test_saturated_rows_stay_finite():
    _, effects, gradient, tsg = toy([300, 0, 0, -300, 0], [10, 1, 0, 0, 0])
    assert all(torch.isfinite(torch.tensor(effects))) and effects[0] == pytest.approx(10 - 11 / 4)


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma2"])
def test_padding_and_batches_change_nothing(name):
    model, ids = NNsight(build(name)), token_ids(3, 9)
    prompts = [ids[0, :4], ids[1], ids[2, :7]]
    whole = gimkit.self_repair(model, prompts, threshold=0.2)
    alone = [gimkit.self_repair(model, prompt.tolist(), threshold=0.2) for prompt in prompts]
    by_two = gimkit.self_repair(model, prompts, threshold=0.2, batch_size=2)
    assert whole.skipped == sum(one.skipped for one in alone) == by_two.skipped
    for example, one in enumerate(alone):
        for several in (whole, by_two):
            mine = several.rows[several.rows.example == example].reset_index(drop=True)
            assert mine[PLACES[1:]].equals(one.rows[PLACES[1:]])
            assert torch.allclose(*(torch.tensor(f[["d1", "d2", "d12", "tsg"]].to_numpy()) for f in (mine, one.rows)),
                                  rtol=1e-3, atol=1e-5)
    mask = torch.tensor([[True] * 4 + [False] * 5, [True] * 9, [True] * 7 + [False] * 2])
    task = Task("padded", ids, ids.clone(), mask, ((5,),) * 3, ((6,),) * 3, ())
    assert gimkit.self_repair(model, task, threshold=0.2).rows[PLACES].equals(whole.rows[PLACES])


@pytest.fixture(scope="module")
def llama():
    model = gimkit.load("mini-llama")
    return model, gimkit.tasks.ioi_twice(model, n=6, seed=1)


def test_the_bundled_model_against_the_measurements_of_its_training(llama):
    model, task = llama
    got = gimkit.self_repair(model, task).rows.sort_values(PLACES[:4])
    want = phenomena.attention_self_repair(model._module, task).sort_values(PLACES[:4])
    assert len(got) == len(want) > 500
    assert (got[PLACES].to_numpy() == want[PLACES].to_numpy()).all()
    for ours, theirs in (("d1", "d1"), ("d2", "d2"), ("d12", "joint")):
        assert torch.allclose(torch.tensor(got[ours].to_numpy()), torch.tensor(want[theirs].to_numpy()).double(),
                              rtol=1e-3, atol=2e-3)  # float32 differences of outputs of about 200


def test_the_result_counts_flags_and_tells(llama):
    model, task = llama
    repair = gimkit.self_repair(model, task)
    frame = repair.frame()
    assert len(frame) + repair.skipped == int(task.mask.sum()) * 5 * 4
    assert repair.q95 == pytest.approx(frame.interaction.quantile(0.95))
    assert frame.flagged.mean() == pytest.approx(0.05, abs=0.01)
    assert f"{len(frame)} of {len(frame) + repair.skipped} attention rows on ioi_twice" in str(repair)
    assert gimkit.self_repair(model, task, threshold=5).rows.equals(
        frame[frame.contribution_j > 5].drop(columns="flagged").reset_index(drop=True))
    texts = [pair.clean for pair in task.pairs]
    assert gimkit.self_repair(model, texts).rows.equals(repair.rows)


def test_no_row_above_the_threshold_is_said(llama):
    model, task = llama
    repair = gimkit.self_repair(model, task[:2], threshold=1e6)
    assert repair.rows.empty and repair.skipped == int(task[:2].mask.sum()) * 20 and repair.q95 != repair.q95
    assert list(repair.frame().columns) == list(gimkit.self_repair(model, task[:1]).frame().columns)
    assert str(repair).startswith("0 of ") and "lower threshold" in str(repair)
    assert f"{repair.largest_second:.3g}" in str(repair)


def test_bad_input_for_scores(llama):
    model, task = llama
    with pytest.raises(gimkit.GimkitError, match="prompt 1 has a single token"):
        gimkit.self_repair(model, [[5, 6], [7]])
    with pytest.raises(gimkit.GimkitError, match="no prompt pairs"):
        gimkit.self_repair(model, task[:0])
    with pytest.raises(gimkit.GimkitError, match="prompt 1 has 65 tokens, but the model's context holds 64"):
        gimkit.self_repair(NNsight(build("gpt2")), [[5, 6], [7] * 65])
    for nothing in ([], ""):
        with pytest.raises(gimkit.GimkitError, match="no prompts|is empty"):
            gimkit.self_repair(model, nothing)
    for wrong in (-1, float("nan")):
        with pytest.raises(gimkit.GimkitError, match="threshold"):
            gimkit.self_repair(model, task, threshold=wrong)
    with pytest.raises(gimkit.GimkitError, match="already carries"):
        gimkit.self_repair(gimkit.apply(model), task)
    hf = build("gpt2")
    with torch.no_grad():
        hf.transformer.h[1].attn.c_attn.weight[0] = torch.nan
    with pytest.raises(gimkit.GimkitError, match="does not reproduce its output"):
        gimkit.self_repair(NNsight(hf), [[5, 6, 7]])


def test_attention_that_is_something_else_is_refused():
    q, k, v = (torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    causal = torch.ones(4, 4).tril().bool()
    out = (q @ k.transpose(-1, -2) * 8**-0.5).masked_fill(~causal, -torch.inf).softmax(-1) @ v
    one_layer(q, k, v, causal[None], {}, out, "attn", 1.0)
    for wrong in (dict(scaling=0.5), dict(softcap=1.0), dict(s_aux=torch.zeros(2))):
        with pytest.raises(gimkit.GimkitError, match="attn: recomputing this attention"):
            one_layer(q, k, v, causal[None], wrong, out, "attn", 1.0)


# --- heads ---


def norm_by_hand(norm, x, like):
    """A LayerNorm or RMSNorm of x, [width], with the denominator of `like`."""
    centred = "LayerNorm" in type(norm).__name__
    top, old = ((t - t.mean() if centred else t).double() for t in (x, like))
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    weight = norm.weight.double() + ("Gemma" in type(norm).__name__)
    bias = norm.bias.double() if getattr(norm, "bias", None) is not None else 0
    return top / (old.pow(2).mean() + eps).sqrt() * weight + bias


class Literal:
    """One prompt pair, head by head, with hooks."""

    def __init__(self, hf, task, row):
        self.hf, self.row, self.task = hf, row, task
        real = int(task.mask[row].sum())
        self.clean, self.corrupt = task.clean[row:row + 1, :real], task.corrupt[row:row + 1, :real]
        self.places, self.parts = places(hf), architecture_of(NNsight(hf))
        trunk = self.parts.blocks[0].path.rpartition(".")[0]
        self.norm = hf.get_submodule(next(n.path for n in self.parts.norms if not n.path.startswith(trunk + ".")))

    def run(self, patch=None):
        """The last position's final stream, what each head and MLP wrote, and the metric, under a patch."""
        modules = {"final": (self.norm, "in")}
        for layer, block in enumerate(self.parts.blocks):
            modules[f"z{layer}"] = (self.hf.get_submodule(block.output), "in")
            modules[f"o{layer}"] = (self.post(block, "attention") or self.hf.get_submodule(block.output), "out")
            modules[f"m{layer}"] = (self.post(block, "feedforward") or self.hf.get_submodule(block.mlp), "out")
        with ExitStack() as stack:
            if patch is not None:
                stack.enter_context(patch)
            found = caught(modules, self.hf, self.clean)
            metric = literal_metric(self.hf, self.task.clean, self.task, self.row)
        return {name: (x[0] if isinstance(x, tuple) else x)[0, -1].double() for name, x in found.items()}, metric

    def post(self, block, kind):
        layer = self.hf.get_submodule(block.path)
        post = getattr(layer, f"post_{kind}_layernorm", None)
        return post if hasattr(layer, "post_feedforward_layernorm") else None

    def metric(self, normalised):
        """Of the final norm's output."""
        logits = self.hf.get_output_embeddings()(normalised.to(self.hf.dtype)).double()
        cap = getattr(self.hf.config, "final_logit_softcapping", None)
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        good, bad = (list(side[self.row]) for side in (self.task.good, self.task.bad))
        return float(torch.logsumexp(logits[good], 0) - torch.logsumexp(logits[bad], 0))

    def wrote(self, layer, head, run, denominator):
        """What a head adds to the stream: its z alone through the projection, and the norm after it if there is one."""
        block, width = self.parts.blocks[layer], self.parts.head_dim
        projection = self.hf.get_submodule(block.output)
        z = run[f"z{layer}"]
        alone = torch.zeros_like(z)
        alone[head * width:(head + 1) * width] = z[head * width:(head + 1) * width]
        to = next(projection.parameters()).dtype
        out = (projection(alone.to(to)) - projection(torch.zeros_like(alone).to(to))).double()
        post = self.post(block, "attention")
        return out if post is None else norm_by_hand(post, out, projection(denominator[f"z{layer}"].to(to)).double())

    def repair(self, layer, head):
        """Effects and answers of one ablated head."""
        before, metric = self.run()
        name = f"a{layer}.h{head}"
        value = value_of(self.hf, self.places[name], self.corrupt)
        after, ablated = self.run(changed(self.places[name], lambda _: value))
        x, y = before["final"], after["final"]
        delta = self.wrote(layer, head, before, before) - self.wrote(layer, head, after, before)

        def frozen(stream):
            return self.metric(norm_by_hand(self.norm, stream, x))

        step = 1e-2 if self.hf.dtype == torch.float64 else 0.05

        def linear(change):
            """Slope along a change, by central differences: exact for a metric that is linear."""
            size = step / max(float(change.norm()), 1e-12)
            return (frozen(x + size * change) - frozen(x - size * change)) / (2 * size)

        effects = [linear(delta), metric - self.metric(norm_by_hand(self.norm, x - delta, x - delta)),
                   metric - ablated, metric - frozen(y)]
        answers = {}
        for later in range(len(self.parts.blocks)):
            if later > layer:
                for other in range(self.parts.n_heads):
                    answers[f"a{later}.h{other}"] = linear(self.wrote(later, other, after, after)
                                                           - self.wrote(later, other, before, before))
            answers[f"m{later}"] = linear(after[f"m{later}"] - before[f"m{later}"])
        answers["norm after attention"] = linear(after[f"o{layer}"] - before[f"o{layer}"] + delta)
        answers["final norm"] = effects[3] - effects[2]
        return effects, answers


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2", "olmo2"])
def test_heads_are_those_of_literal_patching(name):
    task = random_task()
    if name == "gpt2":  # the one whose norms compute in float64
        hf, close = build(name, torch.float64), dict(rel=1e-4, abs=1e-4)
    else:
        hf, close = build(name), dict(rel=2e-2, abs=2e-3)
    got = gimkit.selfrepair.head_repair(NNsight(hf), task, batch_size=3)
    for row, (layer, head) in ((0, (0, 1)), (1, (1, 3)), (3, (1, 0)), (4, (2, 2))):
        effects, answers = Literal(hf, task, row).repair(layer, head)
        i = got.heads.index(f"a{layer}.h{head}")
        assert got.effects[row, i].tolist() == pytest.approx(effects, **close)
        mine = dict(zip(got.parts, got.compensation[row, i].tolist()))
        if "norm after attention" not in mine:
            assert answers.pop("norm after attention") == pytest.approx(0, abs=1e-3)
        for part, answer in answers.items():
            assert mine[part] == pytest.approx(answer, **close), part
        assert abs(effects[0]) > 1e-3 and abs(effects[2]) > 1e-3
        if name in ("gpt2", "llama", "gpt_neox"):
            assert "norm after attention" not in mine
            if row % 2:  # single answers
                assert mine["rest"] == pytest.approx(0, abs=2e-4)
        else:
            assert abs(mine["norm after attention"]) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_heads_total_is_exact_patching_and_answers_add_up(name):
    model, task = NNsight(build(name)), random_task()
    got = gimkit.selfrepair.head_repair(model, task)
    exact = gimkit.score_nodes(model, task, "exact")
    columns = [exact.nodes.index(head) for head in got.heads]
    assert torch.allclose(got.effects[..., EFFECTS.index("total")], exact.per_example[:, columns], atol=1e-5)
    repaired = got.effects[..., 0] - got.effects[..., 2]
    assert torch.allclose(got.compensation.sum(-1), repaired, atol=1e-5)
    frame, answers = got.frame(), got.compensation_frame()
    assert frame.repaired.tolist() == pytest.approx(repaired.mean(0).tolist(), abs=1e-6)
    assert (frame.low <= frame.repaired).all() and (frame.repaired <= frame.high).all()
    sums = answers.groupby("ablated", sort=False).compensation.sum()
    assert sums.tolist() == pytest.approx(frame.repaired.tolist(), abs=1e-5)
    first = answers[answers.ablated == "a1.h0"]
    assert not set(first.part) & {"a0.h0", "m0", "a1.h1"} and {"m1", "a2.h3", "m2", "final norm"} <= set(first.part)


def test_a_head_that_changes_nothing_needs_no_repair():
    """The control: with equal prompts there is nothing to ablate."""
    task = random_task()
    same = Task(task.name, task.clean, task.clean, task.mask, task.good, task.bad, task.pairs)
    got = gimkit.selfrepair.head_repair(NNsight(build("llama")), same)
    assert got.effects.abs().max() < 1e-4 and got.compensation.abs().max() < 1e-4


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_bfloat16_is_near(name):
    """Both measurements run in half precision, and come out near those of the same weights in float32."""
    half, full = (NNsight(build(name, torch.bfloat16, gain=0.7).to(dtype)) for dtype in (torch.bfloat16, torch.float32))
    effects = [gimkit.selfrepair.head_repair(model, random_task()).effects for model in (half, full)]
    assert (effects[0] - effects[1]).abs().mean() < 0.15 * effects[1].abs().mean()  # logits are rounded to 3 digits
    rows = [gimkit.self_repair(model, list(token_ids(2, 9)), threshold=0.2).rows for model in (half, full)]
    assert abs(len(rows[0]) - len(rows[1])) <= 3
    assert rows[0].d12.median() == pytest.approx(rows[1].d12.median(), rel=0.05)


def test_batches_and_padding_change_no_head():
    model, task = NNsight(build("llama")), random_task()
    whole = gimkit.selfrepair.head_repair(model, task)
    for size in (1, 2):
        parts = gimkit.selfrepair.head_repair(model, task, batch_size=size)
        assert torch.allclose(parts.effects, whole.effects, atol=1e-4)
    wider = [torch.nn.functional.pad(x, (0, 3), value=value) for x, value in
             ((task.clean, 7), (task.corrupt, 9), (task.mask, False))]
    padded = Task(task.name, *wider, task.good, task.bad, task.pairs)
    assert torch.allclose(gimkit.selfrepair.head_repair(model, padded).compensation, whole.compensation, atol=1e-4)


def test_heads_of_the_bundled_model_against_the_measurements_of_its_training(llama):
    model, task = llama
    got = gimkit.selfrepair.head_repair(model, task)
    frame, answers = got.frame().set_index("ablated"), got.compensation_frame().set_index(["ablated", "part"])
    for row in phenomena.compensation(model._module, task, ablation="corrupt").itertuples():
        assert frame.direct[row.ablated] == pytest.approx(row.direct, abs=1e-3)
        assert frame.total[row.ablated] == pytest.approx(row.total, abs=1e-3)
        assert answers.compensation[row.ablated, row.later] == pytest.approx(row.gain, abs=1e-3)


def test_bad_input_for_heads(llama):
    model, task = llama
    with pytest.raises(gimkit.GimkitError, match="no prompt pairs"):
        gimkit.selfrepair.head_repair(model, task[:0])
    with pytest.raises(gimkit.GimkitError, match="is not a task"):
        gimkit.selfrepair.head_repair(model, "Mary and John")
    with pytest.raises(gimkit.GimkitError, match="already carries"):
        gimkit.selfrepair.head_repair(gimkit.apply(model), task)
    with pytest.raises(gimkit.GimkitError, match="residual_multiplier"):
        gimkit.selfrepair.head_repair(NNsight(build("granite")), random_task())
    hf = build("llama")
    hf.config.final_logit_softcapping = 1.0  # which this model's code does not know
    with pytest.raises(gimkit.GimkitError, match="does not reproduce the model's logits"):
        gimkit.selfrepair.head_repair(NNsight(hf), random_task())


def test_both_survive_being_sent(llama):
    """remote="local" serialises the trace and runs it here."""
    model, task = llama
    task = task[:3]
    assert gimkit.self_repair(model, task, remote="local").rows.equals(gimkit.self_repair(model, task).rows)
    near, far = (gimkit.selfrepair.head_repair(model, task, remote=remote) for remote in (False, "local"))
    assert torch.equal(near.effects, far.effects) and torch.equal(near.compensation, far.compensation)
