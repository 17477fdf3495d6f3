"""Node scores against finite differences, against literal patching, and against the oracle's gradient."""

import itertools
from contextlib import ExitStack, contextmanager

import pytest
import torch
from made_up import literal_metric, random_task
from nnsight import NNsight
from oracle import oracle_gradient
from test_rules import for_oracle, relative
from tiny import GIM_NAMES, TRIED_NAMES, build, implementations

import gimkit
from gimkit.model.architecture import architecture_of
from gimkit.model.graph import nodes_of
from gimkit.tasks import Task

torch.set_num_threads(1)
SOME = ("gpt2", "llama", "gemma2", "gpt_neox", "phi3", "olmo2", "opt", "gpt_oss", "mixtral", "gpt_bigcode")


def places(hf):
    """(module, of its input?, slice of heads) of every node, from the architecture's names."""
    parts = architecture_of(NNsight(hf))
    found = {}
    for node in nodes_of(parts):
        if node.kind == "input":
            found[node.name] = (hf.get_submodule(parts.embedding), False, slice(None))
        elif node.kind == "mlp":
            found[node.name] = (hf.get_submodule(parts.blocks[node.layer].mlp), False, slice(None))
        else:
            module = hf.get_submodule(parts.blocks[node.layer].output)
            width = parts.head_dim
            found[node.name] = (module, True, slice(node.head * width, (node.head + 1) * width))
    return found


@contextmanager
def changed(place, change):
    """Run with change(value) in place of a node's output."""
    module, of_input, columns = place

    def edit(value):
        value = value.clone()
        value[..., columns] = change(value[..., columns])
        return value

    def before(_, args):
        return (edit(args[0]), *args[1:])

    def after(_, args, output):
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    handle = module.register_forward_pre_hook(before) if of_input else module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def value_of(hf, place, ids):
    """A node's output on one unpadded row."""
    seen = []
    with changed(place, lambda value: seen.append(value.detach()) or value), torch.no_grad():
        hf(ids, use_cache=False)
    return seen[0]


def rows(task, row):
    real = int(task.mask[row].sum())
    return task.clean[row:row + 1, :real], task.corrupt[row:row + 1, :real]


@pytest.mark.parametrize("name", SOME)
def test_exact_is_literal_patching(name):
    hf, task = build(name), random_task()
    got = gimkit.score_nodes(NNsight(hf), task, "exact", batch_size=3)
    for node, place in places(hf).items():
        column = got.nodes.index(node)
        for row in (0, 3):
            corrupt = value_of(hf, place, rows(task, row)[1])
            clean_metric = literal_metric(hf, task.clean, task, row)
            with changed(place, lambda _, corrupt=corrupt: corrupt):
                patched = literal_metric(hf, task.clean, task, row)
            assert got.per_example[row, column].item() == pytest.approx(clean_metric - patched, abs=2e-4)


@pytest.mark.parametrize("name", sorted({*GIM_NAMES, *TRIED_NAMES} - {"nanochat", "diffllama"}))
def test_rows_that_join_late_have_the_scores_of_rows_from_the_start(name):
    """A user's hook sees all rows in every block. Eager attention has a mask with the rows that a pass begins with."""
    task, rows = random_task(), []

    def watch(_, given):
        rows.append(len(given[0]))

    for attn in implementations(name):
        model = NNsight(build(name, attn=attn))
        blocks = [model._module.get_submodule(block.path) for block in architecture_of(model).blocks]
        hooks = [block.register_forward_pre_hook(watch) for block in blocks]
        whole = gimkit.score_nodes(model, task, "exact").per_example
        assert rows == [(2 + 15) * 5] * 3
        rows.clear()
        for hook in hooks:
            hook.remove()
        joined = gimkit.score_nodes(model, task, "exact").per_example
        assert relative(joined, whole) < 1e-5 and joined.abs().max() > 0.1


def test_rows_join_at_their_block(monkeypatch):
    model, task, linear, rows = NNsight(build("llama")), random_task(), torch.nn.functional.linear, []
    weights = [block.mlp.down_proj.weight for block in model._module.model.layers]
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, weight, *bias: (
        rows.append(len(x)) if any(weight is other for other in weights) else None) or linear(x, weight, *bias))
    gimkit.score_nodes(model, task, "exact")
    assert rows == [(2 + 5) * 5, (2 + 10) * 5, (2 + 15) * 5]


@pytest.mark.parametrize("most", [1, 7, 40])
def test_passes_of_few_rows_give_the_same(most, monkeypatch):
    """One node of a pair at a time, five of them, all of two pairs."""
    model, task = NNsight(build("llama")), random_task()
    whole = gimkit.score_nodes(model, task, "exact").per_example
    monkeypatch.setattr("gimkit.circuits.nodes.rows_at_once", lambda *_: most)
    assert relative(gimkit.score_nodes(model, task, "exact").per_example, whole) < 1e-5


def test_chosen_nodes_have_the_scores_that_all_have():
    model, task = NNsight(build("llama")), random_task()
    whole = gimkit.score_nodes(model, task, "exact")
    chosen = gimkit.score_nodes(model, task, "exact", nodes=["m1", "a0.h2", "m1", "input"])
    assert chosen.nodes == ("input", "a0.h2", "m1") == whole.select(chosen.nodes).nodes
    assert torch.allclose(chosen.per_example, whole.select(chosen.nodes).per_example, atol=1e-5)
    assert not torch.allclose(chosen.per_example, whole.select(["input", "a0.h1", "m1"]).per_example, atol=1e-3)
    for act in (lambda: chosen.top(1), lambda: chosen.save("x.json")):
        with pytest.raises(gimkit.GimkitError, match="scores of 3 chosen nodes"):
            act()
    for bad in (["m9"], "m1", []):
        for act in (whole.select, lambda bad: gimkit.score_nodes(model, task, "exact", nodes=bad)):
            with pytest.raises(gimkit.GimkitError, match="nodes.*; give a list of some of input, a0.h0, ..., m2"):
                act(bad)
    with pytest.raises(gimkit.GimkitError, match="gim scores all nodes at once.*select"):
        gimkit.score_nodes(model, task, "gim", nodes=["m1"])


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "stablelm", "opt"])
def test_gradient_is_the_slope_of_the_metric(name):
    """Central differences in float64: move each node's output towards its corrupt value."""
    hf, task, step = build(name, torch.float64), random_task(), 1e-5
    got = gimkit.score_nodes(NNsight(hf), task, "gradient")
    for node, place in places(hf).items():
        row = 3
        clean, corrupt = rows(task, row)
        difference = value_of(hf, place, clean) - value_of(hf, place, corrupt)
        ends = []
        for sign in (1, -1):
            with changed(place, lambda value, move=sign * step * difference: value + move):
                ends.append(literal_metric(hf, task.clean, task, row))
        want = (ends[0] - ends[1]) / (2 * step)
        assert got.per_example[row, got.nodes.index(node)].item() == pytest.approx(want, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("method", ["gim", "freeze", "relp"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_the_input_node_is_the_oracles_gradient(name, method):
    hf, task = build(name), random_task()
    got = gimkit.score_nodes(NNsight(hf), task, method)
    embed = hf.get_input_embeddings()
    for row in (0, 2):
        clean, corrupt = rows(task, row)

        def metric(logits, row=row):
            final = logits[0, -1]
            return torch.logsumexp(final[list(task.good[row])], 0) - torch.logsumexp(final[list(task.bad[row])], 0)

        gradient, _ = oracle_gradient(hf, clean, metric, for_oracle(gimkit.RULES[method]))
        want = ((embed(clean) - embed(corrupt)) * gradient).sum()
        assert got.per_example[row, 0].item() == pytest.approx(want.item(), rel=1e-4, abs=1e-5)


# --- averaged gradients ---


def literal_averages(hf, task, row, steps, parts):
    """Scores of one example with the gradient's mean over k = 1 .. steps and over `parts`, tuples of nodes that are put
    together at corrupt + k/steps (clean - corrupt)."""
    where, total = places(hf), dict.fromkeys(places(hf), 0.0)
    clean, corrupt = rows(task, row)
    ours, theirs = ({node: value_of(hf, place, ids) for node, place in where.items()} for ids in (clean, corrupt))
    for part, k in itertools.product(parts, range(1, steps + 1)):
        leaves = {node: torch.zeros_like(value, requires_grad=True) for node, value in ours.items()}
        with ExitStack() as stack:
            for node, place in where.items():
                if node in part:
                    between = theirs[node] + k / steps * (ours[node] - theirs[node])
                    stack.enter_context(changed(place, lambda _, between=between: between))
                stack.enter_context(changed(place, lambda value, leaf=leaves[node]: value + leaf))
            final = hf(clean, use_cache=False).logits[0, -1]
        metric = torch.logsumexp(final[list(task.good[row])], 0) - torch.logsumexp(final[list(task.bad[row])], 0)
        for node, gradient in zip(leaves, torch.autograd.grad(metric, list(leaves.values()))):
            total[node] += ((ours[node] - theirs[node]) * gradient).sum().item() / (steps * len(parts))
    return total


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "opt"])
@pytest.mark.parametrize("method", ["nap-ig", "ig-activations"])
def test_averaged_gradients_spelled_out(name, method):
    hf, task, steps = build(name), random_task(), 3
    got = gimkit.score_nodes(NNsight(hf), task, method, steps=steps)
    parts = [("input",)]
    if method == "ig-activations":
        for layer in range(3):
            parts += [tuple(f"a{layer}.h{head}" for head in range(4)), (f"m{layer}",)]
    for row in (0, 3):
        want = literal_averages(hf, task, row, steps, parts)
        for node, score in want.items():
            assert got.per_example[row, got.nodes.index(node)].item() == pytest.approx(score, rel=1e-4, abs=2e-5), node
    assert relative(gimkit.score_nodes(NNsight(hf), task, "gradient").per_example, got.per_example) > 0.02


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "opt"])
def test_ig_inputs_at_the_embedding_grows_complete(name):
    """Its score tends to the whole effect of the corrupt prompt."""
    hf, task = build(name), random_task(3)
    effect = torch.tensor([literal_metric(hf, task.clean, task, row) - literal_metric(hf, task.corrupt, task, row)
                           for row in range(3)])
    few, many = ((gimkit.score_nodes(NNsight(hf), task, "nap-ig", steps=steps).per_example[:, 0] - effect).abs()
                 for steps in (8, 128))
    assert many.sum() < 0.02 * effect.abs().sum() and many.sum() < few.sum() / 8


@pytest.mark.parametrize("name", ["gemma2", "olmo2", "phi3"])
def test_ig_activations_is_what_edges_out_of_a_node_sum_to(name):
    model, task = NNsight(build(name)), random_task(3)
    edges, nodes = (score(model, task, "ig-activations", steps=2) for score in (gimkit.score_edges, gimkit.score_nodes))
    assert relative(nodes.scores, edges.scores.sum(1)) < 1e-5


def test_one_step_of_ig_inputs_is_the_gradient():
    model, task = NNsight(build("llama")), random_task()
    one, plain = (gimkit.score_nodes(model, task, method, steps=1) for method in ("nap-ig", "gradient"))
    assert relative(one.per_example, plain.per_example) < 1e-5


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("method", ["gim", "nap-ig"])
def test_scores_by_position_sum_to_the_node_scores(name, method):
    model, task = NNsight(build(name)), random_task()
    found = gimkit.circuits.position_scores(model, task, method, steps=2)
    whole = gimkit.score_nodes(model, task, method, steps=2).per_example
    assert found.shape == (*whole.shape, task.clean.shape[1]) and relative(found.sum(2), whole) < 1e-5
    assert found[:2, :, 6:].abs().max() == 0 and found.shape[2] == 8  # the first two rows are shorter
    assert relative(found.roll(1, 1).sum(2), whole) > 0.1


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_a_score_by_position_is_the_slope_there(name):
    """The metric's change when a node moves at one position towards its corrupt value, by central differences."""
    hf, task, row, by = build(name, torch.float64), random_task(), 3, 1e-4
    found = gimkit.circuits.position_scores(NNsight(hf), task, "gradient")[row]
    nodes = gimkit.score_nodes(NNsight(hf), task, "gradient").nodes
    clean, corrupt = rows(task, row)
    where = places(hf)
    for node, position in (("input", 2), ("a0.h1", 2), ("m0", 5), ("a1.h2", 4), ("m2", 7)):
        gap = value_of(hf, where[node], clean) - value_of(hf, where[node], corrupt)
        at = torch.zeros(1, clean.shape[1], 1, dtype=torch.float64)
        at[:, position] = by
        values = []
        for sign in (1, -1):
            with changed(where[node], lambda value, step=sign * at * gap: value + step):
                values.append(literal_metric(hf, task.clean, task, row))
        assert found[nodes.index(node), position].item() == pytest.approx((values[0] - values[1]) / (2 * by), rel=1e-3,
                                                                          abs=1e-5), (node, position)


@pytest.mark.parametrize("method", ["gim-ig", "ig-inputs", "clean-corrupted"])
def test_scores_by_position_sum_to_those_of_the_edges_that_leave(method):
    model, task = NNsight(build("llama")), random_task(3)
    edges = gimkit.score_edges(model, task, method, steps=2).scores.sum(1)
    found = gimkit.circuits.position_scores(model, task, method, steps=2).sum(2).mean(0)
    assert relative(found, edges) < 1e-5


def test_random_is_seeded_and_the_same_for_every_example():
    model, task = NNsight(build("llama")), random_task()
    first, again, other = (gimkit.score_nodes(model, task, "random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.per_example, again.per_example) and not torch.equal(first.scores, other.scores)
    assert first.per_example.shape == (5, 16) and bool((first.per_example == first.per_example[0]).all())


# --- what must not matter ---


def padded_further(task):
    """The same task with three more columns of padding."""
    wider = [torch.nn.functional.pad(x, (0, 3), value=value) for x, value in
             ((task.clean, 7), (task.corrupt, 9), (task.mask, False))]
    return Task(task.name, *wider, task.good, task.bad, task.pairs)


@pytest.mark.parametrize("method", ["gim", "gradient", "exact", "nap-ig", "ig-activations", "atp*"])
def test_batches_and_padding_change_nothing(method):
    model, task = NNsight(build("llama")), random_task()
    whole = gimkit.score_nodes(model, task, method, steps=2)
    for size in (1, 2):
        assert relative(gimkit.score_nodes(model, task, method, steps=2, batch_size=size).per_example,
                        whole.per_example) < 1e-5
    assert relative(gimkit.score_nodes(model, padded_further(task), method, steps=2).per_example,
                    whole.per_example) < 1e-5


def test_own_rules_and_the_control():
    model, task = NNsight(build("gpt2")), random_task()
    gim = gimkit.score_nodes(model, task, "gim")
    assert torch.equal(gimkit.score_nodes(model, task, gimkit.RULES["gim"]).per_example, gim.per_example)
    assert relative(gimkit.score_nodes(model, task, "gradient").per_example, gim.per_example) > 0.1


def test_frame_and_rank_correlation():
    model, task = NNsight(build("gpt2")), random_task()
    exact = gimkit.score_nodes(model, task, "exact")
    frame = exact.frame()
    assert list(frame.columns) == ["task", "method", "metric", "node", "kind", "layer", "head", "score"]
    assert len(frame) == len(exact.nodes) == 1 + 3 * 5 and frame.node[7] == "a1.h1"
    assert frame[frame.node == "m2"].iloc[0][["kind", "layer", "head"]].tolist() == ["mlp", 2, -1]
    same = gimkit.circuits.rank_correlation(exact, exact)
    assert same.value == pytest.approx(1) and same.low == pytest.approx(1)
    other = gimkit.circuits.rank_correlation(gimkit.score_nodes(model, task, "gradient"), exact)
    assert other.low <= other.value <= other.high


# --- bad input ---


def test_bad_input():
    model, task = NNsight(build("gpt2")), random_task()
    with pytest.raises(gimkit.GimkitError, match="unknown method 'gmi'.*exact"):
        gimkit.score_nodes(model, task, "gmi")
    for steps in (0, 2.5):
        with pytest.raises(gimkit.GimkitError, match="steps must be a whole number"):
            gimkit.score_nodes(model, task, "nap-ig", steps=steps)
    with pytest.raises(gimkit.GimkitError, match="is not a task"):
        gimkit.score_nodes(model, "ioi")
    with pytest.raises(gimkit.GimkitError, match="no prompt pairs"):
        gimkit.score_nodes(model, task[:0])
    with pytest.raises(gimkit.GimkitError, match="already carries"):
        gimkit.score_nodes(gimkit.apply(model), task)
    with pytest.raises(gimkit.GimkitError, match="different nodes or examples"):
        gimkit.circuits.rank_correlation(gimkit.score_nodes(model, task[:2]), gimkit.score_nodes(model, task))
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0] = torch.nan
    for method in ("gim", "gradient", "exact", "nap-ig", "ig-activations", "atp*"):
        with pytest.raises(gimkit.GimkitError, match="NaN"):
            gimkit.score_nodes(model, task, method)


@pytest.mark.parametrize("options, message", [
    (dict(method="gp"), "no scores by position for method 'gp'; use a gimkit.Rules, or one of gradient"),
    (dict(metric="kl"), "gradient of kl is zero"), (dict(steps=0), "steps")])
def test_what_has_no_scores_by_position(options, message):
    with pytest.raises(gimkit.GimkitError, match=message):
        gimkit.circuits.position_scores(NNsight(build("llama")), random_task(), **options)
