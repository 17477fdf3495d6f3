"""The blocked gradient of attention against its formula on whole maps, and when a second run takes its place."""

from types import SimpleNamespace

import pytest
import torch
from nnsight import NNsight
from oracle import OracleRules, TemperatureSoftmax, oracle_gradient, plain_gradient
from test_rules import gradient, relative, target
from tiny import build, token_ids
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import gimkit
from gimkit.interventions import backward_rules
from gimkit.interventions import blocked_attention as blocked

torch.set_num_threads(1)
F64 = torch.float64
SCALES = 0.25, 0.3, 0.5
N = 70


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def softmax(a, temperature):
    """Of each row, 0 where a row sees nothing."""
    e = torch.exp((a - a.amax(-1, keepdim=True)) / temperature).nan_to_num(0)
    return e / e.sum(-1, keepdim=True).clamp(min=1e-300)


def literal(q, k, v, g, mask=None, scaling=None, softcap=None, s_aux=None, is_causal=True, temperature=2.0):
    """The kernel's output and the gradients of q, k and v, from the formulas."""
    heads, keys, m = q.shape[1], k.shape[1], k.shape[2]
    k, v = (x.repeat_interleave(heads // keys, 1) for x in (k, v))
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    a, slope = q @ k.mT * scaling, 1
    if softcap:
        slope = 1 - torch.tanh(a / softcap) ** 2
        a = softcap * torch.tanh(a / softcap)
    if mask is None and is_causal and q.shape[2] > 1:
        mask = torch.ones(a.shape[2:], dtype=torch.bool).tril()
    if mask is not None:
        a = a.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else a + mask
    if s_aux is not None:
        a = torch.cat([a, s_aux.view(1, -1, 1, 1).expand(*a.shape[:3], 1)], -1)
    hard, soft = softmax(a, 1)[..., :m], softmax(a, temperature)[..., :m]
    by_weight = g.transpose(1, 2) @ v.mT
    by_score = soft * (by_weight - (soft * by_weight).sum(-1, keepdim=True)) * slope * scaling
    to_k, to_v = ((x.mT @ y).unflatten(1, (keys, -1)).sum(2) for x, y in
                  ((by_score, q), (hard, g.transpose(1, 2))))
    return (hard @ v).transpose(1, 2), [SCALES[0] * by_score @ k, SCALES[1] * to_k, SCALES[2] * to_v]


def window(width, n=N):
    return torch.ones(n, n, dtype=torch.bool).tril().triu(1 - width)[None, None]


def padded(left, n=N):
    """Two rows, the first with padding on the left: its queries there see nothing."""
    mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None].repeat(2, 1, 1, 1)
    mask[0, :, :, :left] = False
    return mask


def additive(mask, value=-1.7e308):
    return torch.zeros(mask.shape, dtype=F64).masked_fill_(~mask, value)


# name -> (heads that share keys, options); further options of `inputs` by their names
CASES = {
    "causal": {},
    "shared keys": dict(keys=2),
    "one key head": dict(keys=1, scaling=0.7),
    "wide values": dict(wide=5),
    "softcap": dict(softcap=2.0, keys=2),
    "sinks": dict(s_aux=random(4, seed=5), keys=2),
    "a window": dict(mask=window(9)),
    "a window and sinks": dict(mask=window(9), s_aux=random(4, seed=5)),
    "padding": dict(mask=padded(20), keys=2),
    "padding, added": dict(mask=additive(padded(20)), keys=2),
    "padding, infinity added": dict(mask=additive(padded(20), -torch.inf), softcap=3.0),
    "padding and sinks, added": dict(mask=additive(padded(20)), s_aux=random(4, seed=5)),
    "a bias for each head": dict(mask=additive(window(N)) + random(1, 4, N, N, seed=6)),
    "a mask for each row and head": dict(mask=random(2, 4, N, N, seed=7) > -1, keys=2),
    "no mask": dict(is_causal=False),
    "fewer queries than keys": dict(is_causal=False, queries=3),
    "one query": dict(queries=1),
}


def inputs(keys=4, wide=8, queries=N, **options):
    q, k, v = random(2, 4, queries, 8), random(2, keys, N, 8, seed=1), random(2, keys, N, wide, seed=2)
    return 2 * q, k, v, random(2, queries, 4, wide, seed=3), options


def found(output, q, k, v, options, temperature=2.0):
    """What blocked_attention makes of it, with q, k, v as leaves."""
    mask, leaves = options.pop("mask", None), [x.clone().requires_grad_(True) for x in (q, k, v)]
    return blocked.blocked_attention(output, SimpleNamespace(), *leaves, mask, options, temperature, SCALES), leaves


@pytest.mark.parametrize("size", [2**11, 2**18])  # many small blocks, and few
@pytest.mark.parametrize("temperature", [2.0, 0.5, 3.0])
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_the_formulas(case, temperature, size, monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", size)
    q, k, v, g, options = inputs(**CASES[case])
    output, want = literal(q, k, v, g, temperature=temperature, **options)
    value, leaves = found(output, q, k, v, options, temperature)
    assert torch.equal(value, output)
    for got, wanted in zip(torch.autograd.grad(value, leaves, g), want):
        assert (got - wanted).abs().max() < 1e-12 * wanted.abs().max()


def test_only_queries_with_a_gradient_are_visited():
    q, k, v, g, options = inputs()
    g[:, :50] = 0
    g[:, 60:] = 0
    output, want = literal(q, k, v, g)
    value, leaves = found(output, q, k, v, options)
    parts = list(blocked.blocks(g.transpose(1, 2)[:, :, None], None, N, True))
    assert {(block.start, block.stop, columns.stop) for _, _, block, columns, _ in parts} == {(50, 60, 60)}
    for got, wanted in zip(torch.autograd.grad(value, leaves, g), want):
        assert (got - wanted).abs().max() < 1e-12 * wanted.abs().max()
    zero = torch.autograd.grad(found(output, q, k, v, options)[0].sum() * 0, leaves, allow_unused=True)
    assert zero == (None, None, None)


def test_a_block_is_small_however_long_the_prompt():
    for n, group in ((2**17, 8), (2**20, 1), (100, 1), (1, 4)):
        g = torch.ones(1, 1, 1, 1, 1).expand(2, 3, group, n, 4)
        rows, own, block, columns, _ = next(blocked.blocks(g[:, :, :, :1], None, n, False))
        size = (rows.stop - rows.start) * (own.stop - own.start) * group * (block.stop - block.start) * n
        assert size <= max(blocked.BLOCK, 32 * n)


# --- what is not known ---


def test_a_kernel_with_other_semantics_is_not_taken():
    q, k, v, g, options = inputs(softcap=2.0)
    output, _ = literal(q, k, v, g, **options)
    assert found(output, q, k, v, dict(options))[0] is not None
    for wrong in (dict(softcap=None), dict(softcap=2.1), dict(scaling=0.36), dict(s_aux=random(4)),
                  dict(is_causal=False), dict(mask=window(N - 1))):
        assert found(output, q, k, v, options | wrong)[0] is None, wrong
    off = output.clone()
    off[1, -1, 3, 2] += 1e-3
    assert found(off, q, k, v, dict(options))[0] is None
    assert found(off * torch.nan, q, k, v, dict(options))[0] is None


@pytest.mark.parametrize("options", [
    dict(mask="causal"), dict(mask=window(N)[0]), dict(mask=window(N)[..., :-1]), dict(mask=window(N).long()),
    dict(mask=additive(window(N)).requires_grad_(True)), dict(s_aux=random(4).requires_grad_(True)),
    dict(s_aux=random(1, 4)), dict(position_bias=random(1, 4, N, N)), dict(turned=True),
])
def test_what_cannot_be_read_is_not_taken(options):
    q, k, v, g, _ = inputs()
    output = literal(q, k, v, g)[0]
    output = output.transpose(1, 2) if options.pop("turned", False) else output
    assert found(output, q, k, v, options)[0] is None


def test_an_unknown_kernel_runs_twice():
    """One with a bias of its own: its second run is exact, for at scaling / T it divides the bias by T as well."""
    runs = []

    def biased(module, q, k, v, mask, scaling, softmax=torch.softmax, **options):
        runs.append(scaling)
        scores = (q @ k.mT + torch.arange(q.shape[2]).to(q)) * scaling
        scores = scores.masked_fill(torch.ones(q.shape[2], q.shape[2]).triu(1) > 0, -torch.inf)
        return (softmax(scores, -1) @ v).transpose(1, 2), None

    def tempered(*arguments, **options):
        return biased(*arguments, softmax=lambda a, _: TemperatureSoftmax.apply(a, 2.0), **options)

    hf, ids = build("gpt2", F64), token_ids()
    AttentionInterface._global_mapping.update(biased=biased, tempered=tempered)
    try:
        hf.set_attn_implementation("biased")
        got, _ = gradient(gimkit.apply(NNsight(hf), "temperature"), ids)
        assert runs == [8**-0.5, 8**-0.5 / 2] * 3
        hf.set_attn_implementation("tempered")
        assert relative(got, plain_gradient(hf, ids, target)[0]) < 1e-12
    finally:
        del AttentionInterface._global_mapping["biased"], AttentionInterface._global_mapping["tempered"]


def test_a_mask_of_unknown_shape_makes_the_kernel_run_twice(monkeypatch):
    masks = []

    def flat(module, q, k, v, mask, scaling, **options):
        masks.append(tuple(mask.shape))
        return (torch.softmax(q @ k.mT * scaling + mask[:, None], -1) @ v).transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "flat", flat)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "flat", lambda *sizes, **given: eager_mask(
        *sizes, **given)[:, 0])
    hf, ids = build("gpt2", F64), token_ids()
    want, _ = oracle_gradient(hf, ids, target, OracleRules(temperature=2.0))
    hf.set_attn_implementation("flat")
    got, _ = gradient(gimkit.apply(NNsight(hf), "temperature"), ids)
    assert masks == [(2, 10, 10)] * 6
    assert relative(got, want) < 1e-12


def test_without_a_gradient_the_kernel_runs_once(monkeypatch):
    monkeypatch.setattr(backward_rules, "blocked_attention", None)  # would fail if it were called
    edited, ids = gimkit.apply(NNsight(build("gpt2"))), token_ids()
    with edited.trace(input_ids=ids, use_cache=False):
        logits = edited.output.logits.save()
    assert torch.equal(logits, build("gpt2")(ids).logits)


def test_a_second_derivative_is_refused():
    q, k, v, g, options = inputs()
    value, leaves = found(literal(q, k, v, g)[0], q, k, v, options)
    with pytest.raises(gimkit.GimkitError, match="create_graph"):
        torch.autograd.grad(value.sum(), leaves, create_graph=True)


def test_the_output_can_be_changed_in_place():
    q, k, v, g, options = inputs()
    output, want = literal(q, k, v, g)
    value, leaves = found(output, q, k, v, options)
    value[:, :, 0] = 0
    for got, wanted in zip(torch.autograd.grad(value, leaves, g), want):
        assert not got[:, 0].any()
        assert (got[:, 1:] - wanted[:, 1:]).abs().max() < 1e-12 * wanted.abs().max()


def test_only_q_k_and_v_are_kept():
    q, k, v, g, options = inputs()
    value, leaves = found(literal(q, k, v, g)[0], q, k, v, options)
    kept = [x for x in value.grad_fn.saved_tensors if x is not None]
    assert [x.data_ptr() for x in kept] == [x.data_ptr() for x in leaves]
