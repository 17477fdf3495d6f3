"""Random small architectures under random rules, padded and batched at random: what must hold for every model."""

from random import Random

import pytest
import torch
from made_up import literal_metric, random_task
from nnsight import NNsight
from oracle import oracle_gradient
from test_rules import WORKS, for_oracle, gradient, relative, target
from tiny import GIM_NAMES, TABLE, build, implementations, token_ids

import gimkit
from gimkit.circuits import Circuit, EdgeScores, NodeScores
from gimkit.errors import GimkitError

torch.set_num_threads(1)
SEEDS = range(80)
GPT = ("gpt2", "gpt_bigcode")


def random_model(draw):
    """An architecture, its attention kernel and its shape; names of the README's promise come twice as often."""
    name = draw.choice((*WORKS, *GIM_NAMES))
    layers, heads, width = draw.choice((1, 2, 3)), draw.choice((2, 4)), draw.choice((16, 32))
    own = TABLE[name][1]
    if name in GPT:
        shape = dict(n_layer=layers, n_head=heads, n_embd=width)
    else:
        shape = dict(num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads)
        shape["num_key_value_heads"] = heads if "kv_lora_rank" in own else draw.choice((heads, heads // 2, 1))
    if "sliding_window" in own:
        shape["sliding_window"] = draw.choice((2, 3, 5))
    if "layer_types" in own:
        shape["layer_types"] = own["layer_types"][:layers]
    if "mlp_only_layers" in own:
        shape["mlp_only_layers"] = [layers - 1]
    if "word_embed_proj_dim" in own:
        shape["word_embed_proj_dim"] = width
    attn = draw.choice(implementations(name))
    return f"{name} {attn} {shape}", build(name, attn=attn, seed=draw.randrange(100), **shape)


def random_rules(draw, model):
    """Rules that can act on this model: fused branches are scaled alike, and some activations are no modules."""
    factors = {key: draw.choice((0.25, 0.5, 1, 1.5)) for key in ("q", "k", "v", "gate")}
    rules = gimkit.Rules(temperature=draw.choice((0.3, 1, 2, 5)), freeze_norm=draw.random() < 0.5,
                         detach_attention=draw.random() < 0.2, identity_activation=draw.random() < 0.3,
                         up=draw.choice((0.25, 1)), **factors)
    for changes in ({}, dict(up=rules.gate), dict(identity_activation=False),
                    dict(up=rules.gate, identity_activation=False)):
        try:
            return rules._replace(**changes), gimkit.apply(model, rules._replace(**changes))
        except GimkitError as error:
            assert "fused" in str(error) or "no activation module of its own" in str(error)
    raise AssertionError(f"no rules act on {type(model._module).__name__}")


def padded(draw):
    """Ids and the mask of a batch padded on one side."""
    rows, length, left = draw.choice((1, 2, 4)), draw.choice((3, 6, 9)), draw.random() < 0.5
    ids, mask = token_ids(rows, length, seed=draw.randrange(100)), torch.ones(rows, length, dtype=torch.long)
    for row in mask[1:]:
        missing = draw.randrange(length - 1)
        row[slice(missing) if left else slice(length - missing, length)] = 0
    return ids, dict(attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))


@pytest.mark.parametrize("seed", SEEDS)
def test_fuzz(seed, tmp_path):
    draw = Random(seed)
    shape, hf = random_model(draw)
    model = NNsight(hf)
    rules, edited = random_rules(draw, model)
    print(shape, rules)

    ids, inputs = padded(draw)
    mask = inputs["attention_mask"]

    def aim(logits):
        return target(logits * mask[..., None])

    got, logits = gradient(edited, ids, aim, **inputs)
    want, _ = oracle_gradient(hf, ids, aim, for_oracle(rules), **inputs)
    assert torch.equal(logits, gradient(model, ids, **inputs)[1])
    assert relative(got, want) < 1e-3  # of one in 80 rounding makes 2e-4, and 6e-13 in float64

    task = random_task(draw.choice((2, 3, 5)), 6, seed=draw.randrange(100))
    nodes = gimkit.score_nodes(model, task, rules)
    one_by_one = gimkit.score_nodes(model, task, rules, batch_size=draw.choice((1, 2)))
    assert relative(one_by_one.per_example, nodes.per_example) < 1e-4
    if nodes.graph is None:
        return  # experts, and others whose edges are not covered

    edges = gimkit.score_edges(model, task, rules)
    alone = gimkit.score_edges(model, task, rules, batch_size=draw.choice((1, 2)))
    assert relative(alone.scores, edges.scores) < 1e-4
    assert relative(edges.scores.sum(1), nodes.scores) < 1e-4  # every gradient at a node comes through its edges

    graph = edges.graph
    values = gimkit.run(model, task, [Circuit(graph, torch.zeros_like(graph.real)), Circuit(graph, graph.real)])
    for value, prompts in zip(values, (task.corrupt, task.clean)):
        literal = torch.tensor([literal_metric(hf, prompts, task, row) for row in range(len(task))])
        assert relative(value, literal) < 1e-4

    ending = draw.choice((".json", ".pt"))
    circuit = edges.top(draw.randrange(1, graph.n_edges))
    found = EdgeScores.load(edges.save(tmp_path / f"edges{ending}"), model=model)
    assert (found.task, found.method, found.metric, found.graph) == (task.name, "own rules", "logit", graph)
    assert torch.equal(found.scores, edges.scores)
    assert Circuit.load(circuit.save(tmp_path / f"circuit{ending}"), model=model) == circuit
    assert torch.equal(NodeScores.load(nodes.save(tmp_path / f"nodes{ending}"), model=model).scores, nodes.scores)
