"""Head roles against transformers' own attention weights and against direct effects and patches spelled out."""

import functools

import pandas
import pytest
import torch
from literal_edges import circuit_logits, contributions, parts_of
from made_up import random_task
from nnsight import NNsight
from tiny import GIM, build, token_ids

import gimkit
from gimkit.circuits import head_roles
from gimkit.circuits.head_roles import ATTENDS, LOOKS, STEERS, WRITES, _named, occasions
from gimkit.errors import GimkitError
from gimkit.interventions.attention import attention_call, attention_pattern
from gimkit.model.architecture import architecture_of
from gimkit.tasks import Task
from tests.oracles.phenomena import direct_attribution

torch.set_num_threads(1)
WIRED = ("gpt2", "llama", "gpt_neox", "gemma2", "olmo2")
PATTERNS = (*GIM, "deepseek_v3")  # whose values are narrower than its keys


def task_with_names():
    """Four prompts that hold their answers, some twice, rows of two lengths."""
    task = random_task(4, 9)
    clean, corrupt = task.clean.clone(), task.corrupt.clone()
    for row in range(4):
        good, bad = task.good[row][0], task.bad[row][0]
        for ids, names in ((clean, (good, bad, bad)), (corrupt, (good, bad, good))):
            ids[row, [1, 3, 5]] = torch.tensor(names)
    clean[:, 0] = corrupt[:, 0] = 3
    clean[2:, 7] = corrupt[2:, 7] = 3
    return Task(task.name, clean, corrupt, task.mask, task.good, task.bad, task.pairs)


@functools.cache
def eager(name):
    """transformers' own attention weights of each prompt, [layer][heads, seq, seq] by row."""
    hf, task = build(name, attn="eager"), task_with_names()
    return [[a[0] for a in hf(task.clean[row:row + 1, :int(task.mask[row].sum())], output_attentions=True,
                              use_cache=False).attentions] for row in range(len(task))]


@functools.cache
def measured(name):
    hf = build(name)
    return hf, head_roles(NNsight(hf), task_with_names(), batch_size=3)


@pytest.mark.parametrize("name", PATTERNS)
def test_the_pattern_is_the_models_own(name):
    """More positions than a head is wide, so that the identity comes in pieces; windows, softcaps, sinks included."""
    ids = token_ids(2, 13)
    model, hf = NNsight(build(name)), build(name, attn="eager")
    wanted = hf(ids, output_attentions=True, use_cache=False).attentions
    for layer, block in enumerate(architecture_of(model).blocks):
        with model.trace(input_ids=ids, use_cache=False):
            pattern = attention_pattern(*attention_call(model.get(block.attention))).save()
        assert torch.allclose(pattern, wanted[layer], atol=1e-5), layer


@pytest.mark.parametrize("name", WIRED)
def test_attention_columns_spelled_out(name):
    _, table = measured(name)
    task, found = task_with_names(), {}
    for row, layers in enumerate(eager(name)):
        ids, last = task.clean[row].tolist(), int(task.last[row])
        for layer, heads in enumerate(layers):
            for head, a in enumerate(heads):
                def note(kind, value, node=f"a{layer}.h{head}"):
                    found.setdefault((node, kind), []).append(float(value))

                note("right", sum(a[last, j] for j in range(last + 1) if ids[j] in task.good[row]))
                note("wrong", sum(a[last, j] for j in range(last + 1) if ids[j] in task.bad[row]))
                for i in range(1, last + 1):
                    note("previous", a[i, i - 1])
                    same = [j for j in range(i) if ids[j] == ids[i]]
                    if same:
                        note("duplicate", sum(a[i, j] for j in same))
                    after = [j + 1 for j in same if j + 1 < i]
                    if after:
                        note("induction", sum(a[i, j] for j in after))
    for node, *values in table[["node", *LOOKS]].itertuples(index=False):
        for kind, value in zip(LOOKS, values):
            assert value == pytest.approx(sum(found[node, kind]) / len(found[node, kind]), abs=1e-5), (node, kind)


def literal_directions(hf, ids):
    """Functions of the stream's change at the answer -> logits, the final norm's denominator held as it ran."""
    kept = {}
    final = parts_of(hf)[1]
    handle = final.register_forward_pre_hook(lambda _, args: kept.update(x=args[0].detach()))
    hf(ids, use_cache=False)
    handle.remove()
    x = kept["x"][0, -1]
    centred = x - x.mean() if isinstance(final, torch.nn.LayerNorm) else x
    eps = final.eps if hasattr(final, "eps") else final.variance_epsilon
    sigma = (centred.pow(2).mean() + eps).sqrt()
    weight = 1 + final.weight if "Gemma" in type(final).__name__ else final.weight
    cap = getattr(hf.config, "final_logit_softcapping", None)

    def logits(change):
        moved = x + change
        moved = moved - moved.mean() if isinstance(final, torch.nn.LayerNorm) else moved
        normed = moved / sigma * weight + (final.bias if isinstance(final, torch.nn.LayerNorm) else 0)
        out = hf.get_output_embeddings()(normed)
        return out if cap is None else cap * torch.tanh(out / cap)

    return logits


@pytest.mark.parametrize("name", WIRED)
def test_writes_are_slopes_along_each_heads_output(name):
    hf, table = measured(name)
    task, wanted = task_with_names(), {}
    for row in range(len(task)):
        ids = task.clean[row:row + 1, :int(task.mask[row].sum())]
        logits, zero = literal_directions(hf, ids), torch.zeros(hf.config.hidden_size)
        assert torch.allclose(logits(zero), hf(ids, use_cache=False).logits[0, -1], atol=1e-4)
        for node, written in contributions(hf, ids).items():
            slope = torch.func.jvp(logits, (zero,), (written[0, -1],))[1]
            out = logits(zero)
            for side, answers in (("right", task.good[row]), ("wrong", task.bad[row])):
                share = out[list(answers)].softmax(0)
                value = (share * slope[list(answers)]).sum() - slope.mean()
                wanted[node, side] = wanted.get((node, side), 0) + float(value) / len(task)
    for row in table.itertuples():
        assert row.writes_right == pytest.approx(wanted[row.node, "right"], rel=1e-3, abs=1e-4)
        assert row.writes_wrong == pytest.approx(wanted[row.node, "wrong"], rel=1e-3, abs=1e-4)
        assert row.direct == pytest.approx(row.writes_right - row.writes_wrong)


@pytest.mark.parametrize("name", ("gpt2", "llama"))
def test_effects_are_patches_spelled_out(name):
    hf, table = measured(name)
    task = task_with_names()
    edges = gimkit.score_edges(NNsight(hf), task[:1], "gradient")
    by_name = table.set_index("node")
    for node in ("a0.h1", "a1.h3"):
        later = [target for j, target in enumerate(edges.targets)
                 if edges.graph.real[edges.sources.index(node), j]]
        for column in ("effect", "queries", "keys", "values"):
            dropped = later if column == "effect" else [t for t in later if f"<{column[0]}>" in t]
            fall = 0
            for row in range(len(task)):
                clean, corrupt = (ids[row:row + 1, :int(task.mask[row].sum())] for ids in (task.clean, task.corrupt))
                ends = []
                for cut in ([], [(node, target) for target in dropped]):
                    final = circuit_logits(hf, clean, corrupt, cut)[0, -1]
                    ends.append(final[list(task.good[row])].logsumexp(0) - final[list(task.bad[row])].logsumexp(0))
                fall += float(ends[0] - ends[1]) / len(task)
            assert by_name[column][node] == pytest.approx(fall, rel=1e-3, abs=1e-4)
    last = by_name[by_name["layer"] == by_name["layer"].max()]
    assert (last[["queries", "keys", "values"]].abs() < 1e-5).all(axis=None)  # no head reads after the last layer


@pytest.mark.parametrize("name", ("mini-llama", "mini-gpt2"))
def test_a_bundled_model_agrees_with_the_measurements_that_chose_it(name):
    model = gimkit.load(name)
    task = gimkit.tasks.ioi(model, n=8, seed=0)
    ours, theirs = head_roles(model, task), direct_attribution(model._module, task)
    for column, other in (("direct", "dla"), ("writes_right", "good_logit"), ("writes_wrong", "bad_logit"),
                          ("right", "attention_good"), ("wrong", "attention_bad")):
        assert torch.allclose(torch.tensor(ours[column]), torch.tensor(theirs[other]), atol=1e-4), column
    exact = gimkit.score_nodes(model, task, "exact").frame().set_index("node")["score"]
    assert ours["effect"].tolist() == pytest.approx(exact[ours["node"]].tolist())


def a_head(**numbers):
    return {**dict.fromkeys(LOOKS, 0.0), "writes_right": 0.0, "writes_wrong": 0.0, "direct": 0.0, "queries": 0.0,
            **numbers}


@pytest.mark.parametrize("numbers, role", [
    (dict(), ""),
    (dict(right=ATTENDS, direct=10 * WRITES, writes_right=1.0), "name mover-like"),
    (dict(right=ATTENDS, direct=10 * WRITES, writes_right=-1.0), ""),
    (dict(right=0.9 * ATTENDS, direct=10 * WRITES, writes_right=1.0), ""),
    (dict(right=ATTENDS, direct=9 * WRITES, writes_right=1.0), ""),
    (dict(right=ATTENDS, direct=-10 * WRITES), "negative name mover-like"),
    (dict(wrong=ATTENDS, direct=10 * WRITES, writes_wrong=-1.0), "suppressor-like"),
    (dict(wrong=ATTENDS, direct=10 * WRITES, writes_wrong=1.0), ""),
    (dict(wrong=ATTENDS, queries=20 * STEERS), "S-inhibition-like"),
    (dict(wrong=ATTENDS, queries=19 * STEERS), ""),
    (dict(queries=20 * STEERS), ""),
    (dict(previous=ATTENDS, induction=ATTENDS), "previous-token-like, induction-like"),
    (dict(duplicate=ATTENDS, right=float("nan"), wrong=float("nan"), direct=99.0), "duplicate-token-like"),
])
def test_a_role_is_what_its_thresholds_say(numbers, role):
    assert _named(pandas.DataFrame([a_head(**numbers)]), clean=10.0, gap=20.0) == [role]


def test_no_occasion_is_no_number():
    """Answers that the prompt does not hold, and tokens that never come twice, are NaN, not 0."""
    task = random_task(2)
    clean = torch.arange(30, 38).repeat(2, 1)
    task = Task("none", clean, task.corrupt, task.mask, task.good, task.bad, task.pairs)
    assert not occasions(task)[:, [0, 1, 3, 4]].any()
    table = head_roles(NNsight(build("gpt2")), task)
    assert table[["right", "wrong", "duplicate", "induction"]].isna().all(axis=None)
    assert table["previous"].notna().all() and not table["role"].str.contains("name|inhibition").any()


def test_bad_input_is_refused():
    model, task = NNsight(build("gpt2")), random_task(2)
    with pytest.raises(GimkitError, match="already carries"):
        head_roles(gimkit.apply(model), task)
    with pytest.raises(GimkitError, match="batch_size"):
        head_roles(model, task, batch_size=0)
    with pytest.raises(GimkitError, match="no prompt pairs"):
        head_roles(model, task[:0])


def test_effects_of_chosen_heads_alone():
    hf, whole = measured("llama")
    some = head_roles(NNsight(hf), task_with_names(), heads=["a1.h2", "a0.h1"])
    chosen = some.node.isin(["a1.h2", "a0.h1"])
    effects = ["effect", "queries", "keys", "values"]
    assert some.loc[~chosen, effects].isna().all(axis=None)
    for column in (*effects, "direct", *LOOKS):
        assert some.loc[chosen, column].tolist() == pytest.approx(whole.loc[chosen, column].tolist(), abs=1e-5)
    with pytest.raises(GimkitError, match="unknown head 'm0'; use a0.h0"):
        head_roles(NNsight(hf), task_with_names(), heads=["m0"])
