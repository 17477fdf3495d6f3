"""What apply promises: the original untouched, a true receipt, refusals by name, any way of wrapping a model."""

import warnings

import pytest
import torch
import transformers
from nnsight import NNsight, TransformersModel
from test_rules import gradient, relative, target
from tiny import VOCAB, build, token_ids
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import gimkit

torch.set_num_threads(1)


def tokenizer():
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w1", eos_token="w2")


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    return NNsight(build(request.param))


def test_the_original_stays_as_it_was(model):
    ids = token_ids()
    before, _ = gradient(model, ids)
    edited = gimkit.apply(model)
    after, _ = gradient(model, ids)
    assert torch.equal(before, after)
    assert relative(gradient(edited, ids)[0], before) > 0.1


def test_applying_twice_is_refused(model):
    with pytest.raises(gimkit.GimkitError, match="already carries the rules gim"):
        gimkit.apply(gimkit.apply(model))


def test_remove_takes_off_the_rules_only(model):
    ids = token_ids()
    with model.edit() as (_, mine):
        mine.lm_head.output = mine.lm_head.output * 2
    edited = gimkit.apply(mine)
    with edited.edit() as (_, both):
        both.lm_head.output = both.lm_head.output + 1
    plain = gimkit.remove(both)
    got, logits = gradient(plain, ids)
    want, original = gradient(model, ids)
    assert torch.allclose(got, 2 * want, rtol=1e-5) and torch.allclose(logits, 2 * original + 1)
    with pytest.raises(gimkit.GimkitError, match="no gimkit rules"):
        gimkit.remove(plain)


def test_the_receipt_lists_every_place(model):
    receipt = gimkit.receipt(gimkit.apply(model))
    norms = [path for path, module in model._module.named_modules() if type(module).__name__.endswith("Norm")]
    assert sorted(receipt.places["norm frozen"]) == sorted(norms)
    assert len(receipt.places["softmax at T=2, q x0.25, k x0.25, v x0.5"]) == 3
    gated = "Llama" in type(model._module).__name__
    assert ("product, gate x0.5, up x0.5" in receipt.places) == gated
    assert "gim" in str(receipt) and norms[-1] in str(receipt)
    assert "nothing" in str(gimkit.receipt(gimkit.apply(model, "gradient")))
    with pytest.raises(gimkit.GimkitError, match="no gimkit rules"):
        gimkit.receipt(model)


def test_a_failing_trace_leaves_nothing_behind(model):
    ids, edited = token_ids(), gimkit.apply(model)
    before = gradient(edited, ids)[0]
    with pytest.raises(ZeroDivisionError):
        with edited.trace(input_ids=ids):
            edited.lm_head.output = edited.lm_head.output / (1 // 0)
    assert torch.equal(gradient(edited, ids)[0], before)
    assert relative(gradient(model, ids)[0], before) > 0.1


def test_an_edited_model_runs_in_traces_only(model):
    edited, ids = gimkit.apply(model), token_ids()
    with edited.edit() as (_, both):
        both.lm_head.output = both.lm_head.output * 2
    for copy in (edited, both):
        with pytest.raises(gimkit.GimkitError, match="outside a trace an edited model would run without its rules"):
            copy(ids)
        for method in (copy.generate, copy.pipe):
            with pytest.raises(gimkit.GimkitError, match="let the original generate"):
                method(ids)
    with edited.trace(ids):
        inside = edited(ids).logits.save()
    assert torch.equal(inside, model(ids).logits)
    plain = gimkit.remove(edited)
    assert type(plain) is type(model) and torch.equal(plain(ids).logits, inside)
    assert plain.generate(ids, max_new_tokens=1, pad_token_id=0).shape == (2, 11)


def test_several_invokes_are_the_single_prompts(model):
    edited = gimkit.apply(TransformersModel(model._module, task="text-generation", tokenizer=tokenizer()))
    embedding = gimkit.anatomy.dissect(edited).embedding
    rows = token_ids(2, 8)
    singles = torch.cat([gradient(edited, row[None])[0] for row in rows])
    with edited.trace() as tracer:
        with tracer.invoke(rows[:1]):
            pass
        with tracer.invoke(rows[1:]):
            pass
        with tracer.invoke():
            leaf = edited.get(embedding).output.detach().requires_grad_(True)
            edited.get(embedding).output = leaf
            both = torch.autograd.grad(target(edited.output.logits), leaf)[0].save()
    assert relative(both, singles) < 1e-5


def test_a_model_in_training_mode_with_dropout_is_refused():
    hf = build("llama").train()
    hf.config.attention_dropout = 0.1
    for layer in hf.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(gimkit.GimkitError, match="dropout"):
        gradient(gimkit.apply(NNsight(hf)), token_ids())


# --- any way of wrapping a model gives the same gradient ---


def test_renamed_modules():
    hf, ids = build("gpt2"), token_ids()
    renamed = NNsight(hf, rename={"transformer": "trunk", "h": "layers"})
    assert torch.equal(gradient(gimkit.apply(renamed), ids)[0], gradient(gimkit.apply(NNsight(hf)), ids)[0])


def test_folder_and_wrapped_model(tmp_path):
    hf, ids = build("llama"), token_ids()
    hf.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    want, _ = gradient(gimkit.apply(NNsight(hf)), ids)
    lazy = TransformersModel(str(tmp_path), task="text-generation")  # no weights before the first trace
    for wrapped in (lazy, TransformersModel(hf, task="text-generation", tokenizer=tokenizer())):
        assert relative(gradient(gimkit.apply(wrapped), ids)[0], want) < 1e-6


# --- refusals ---


def test_not_a_model():
    for wrong in (build("gpt2"), NNsight(torch.nn.Linear(2, 2)), "gpt2"):
        with pytest.raises(gimkit.GimkitError, match="not an nnsight model"):
            gimkit.apply(wrong)


def test_unknown_rules(model):
    with pytest.raises(gimkit.GimkitError, match="unknown rules 'gmi'.*relp"):
        gimkit.apply(model, "gmi")
    with pytest.raises(gimkit.GimkitError, match="above 0"):
        gimkit.apply(model, gimkit.Rules(temperature=0.0))


def test_reordered_attention_is_refused():
    hf = build("gpt2", attn="eager")
    hf.transformer.h[1].attn.reorder_and_upcast_attn = True
    with pytest.raises(gimkit.GimkitError, match=r"transformer.h.1.attn.*reorder_and_upcast_attn"):
        gimkit.apply(NNsight(hf))


def test_a_mask_given_by_name_is_refused():
    shape = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    hf = transformers.DogeForCausalLM(transformers.DogeConfig(**shape, num_key_value_heads=2, pad_token_id=0))
    with pytest.raises(gimkit.GimkitError, match="layers.0.self_attn gives attention_interface its mask"):
        gimkit.apply(NNsight(hf))


class Scale(torch.nn.Module):
    """A norm in disguise: its class name does not say so."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class CubedNorm(Scale):
    """Called a norm, but another function."""

    def forward(self, x):
        return super().forward(x) ** 3


class OtherAttention(torch.nn.Module):
    """An attention that goes its own way."""

    def forward(self, hidden_states, **kwargs):
        return hidden_states, None


def test_an_unregistered_norm_raises():
    hf = build("llama")
    hf.model.layers[1].input_layernorm = Scale(hf.model.layers[1].input_layernorm)
    with pytest.raises(gimkit.GimkitError, match=r"model.layers.1.input_layernorm \(Scale\)"):
        gimkit.apply(NNsight(hf))


def test_a_norm_that_cannot_be_reproduced_raises():
    hf = build("llama")
    hf.model.layers[1].input_layernorm = CubedNorm(hf.model.layers[1].input_layernorm)
    edited = gimkit.apply(NNsight(hf))
    with pytest.raises(gimkit.GimkitError, match=r"model.layers.1.input_layernorm: recomputing"):
        gradient(edited, token_ids())
    gradient(gimkit.apply(NNsight(hf), "temperature"), token_ids())


def test_an_unregistered_attention_raises():
    hf = build("llama")
    hf.model.layers[1].self_attn = OtherAttention()
    with pytest.raises(gimkit.GimkitError, match=r"model.layers.1.self_attn \(OtherAttention\)"):
        gimkit.apply(NNsight(hf))


def test_an_unknown_mlp_raises():
    hf = build("llama")
    hf.model.layers[2].mlp = torch.nn.Sequential(torch.nn.Linear(32, 32))
    with pytest.raises(gimkit.GimkitError, match=r"model.layers.2.mlp \(Sequential\)"):
        gimkit.apply(NNsight(hf))


def test_nan_weights(model):
    with torch.no_grad():
        model.lm_head.weight[0] = torch.nan  # tied or not, every logit of token 0
    with pytest.raises(gimkit.GimkitError, match="NaN"):
        gimkit.attribute(model, [0, 5, 7], target=0, baseline=3)


def test_nothing_is_warned_about(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient(gimkit.apply(model), token_ids())
