"""What apply promises: the original untouched, a true receipt, refusals by name, any way of wrapping a model."""

import functools
import warnings

import pytest
import torch
import transformers
from entry_points import ALL, solved
from in_float64 import precise
from made_up import random_task
from nnsight import LanguageModel, NNsight, TransformersModel
from nnsight.modeling import huggingface
from test_rules import gradient, relative, target
from tiny import VOCAB, build, token_ids
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import gimkit
from gimkit.interventions import residual_stream, weights
from gimkit.interventions.recomputed import spread

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


@pytest.mark.filterwarnings("ignore:LanguageModel is deprecated")
def test_a_server_knows_an_edited_model_by_the_name_of_the_original(tmp_path):
    hf = build("llama")
    hf.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    for kind in (TransformersModel, LanguageModel):
        model = kind(str(tmp_path), task="text-generation", tokenizer=tokenizer())
        model.repo_id = "someone/tiny"
        huggingface._ID_CACHE[model.repo_id] = model.repo_id
        assert gimkit.apply(model).to_model_key() == model.to_model_key()


def test_several_invokes_are_the_single_prompts(model):
    edited = gimkit.apply(TransformersModel(model._module, task="text-generation", tokenizer=tokenizer()))
    embedding = gimkit.model.architecture.architecture_of(edited).embedding
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
    # That of the folder has no weights before its first trace.
    for wrapped in (TransformersModel(source, task="text-generation", tokenizer=tokenizer())
                    for source in (str(tmp_path), hf)):
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


# --- hooks and edits of the user's: the right numbers, or none ---

BLOCK = "model.layers.1"
EVERY = ("attribute", "nodes gim", "neurons", "among forward", "edges gradient", "edges exact", "run", "head_roles",
         "head_repair")
SUMMED = {"edges gradient", "edges exact", "run", "head_roles", "head_repair"}  # these take the residual stream apart
READ = SUMMED - {"head_repair"}  # and these recompute what heads read
FROZEN = {"attribute", "nodes gim", "neurons", "among forward", *READ}  # and these, or rules, recompute norms
CASES = [  # kind, module, the projections or norms whose weights would be scaled for the same, who refuses, naming what
    ("hook", "self_attn.q_proj", ["self_attn.q_proj"], READ, "self_attn.q_proj: its output is not its weight times"),
    ("edit", "self_attn.q_proj", ["self_attn.q_proj"], READ, "self_attn.q_proj: its output is not its weight times"),
    ("hook", "self_attn.o_proj", ["self_attn.o_proj"], SUMMED, "self_attn.o_proj: its output is not its weight times"),
    ("edit", "self_attn.o_proj", ["self_attn.o_proj"], SUMMED, "self_attn.o_proj: its output is not its weight times"),
    ("hook", "self_attn", ["self_attn.o_proj"], SUMMED, "the residual stream here is not the sum"),
    ("hook", "mlp", ["mlp.down_proj"], SUMMED, "the residual stream here is not the sum"),
    ("edit", "mlp", ["mlp.down_proj"], set(), None),
    ("hook", "mlp.down_proj", ["mlp.down_proj"], set(), None),
    ("pre-hook", "mlp", ["mlp.gate_proj", "mlp.up_proj"], READ, "mlp: its input is not what the part before it gives"),
    ("edit of input", "mlp", ["mlp.gate_proj", "mlp.up_proj"], READ, "mlp: its input is not what the part before it"),
    ("hook", "input_layernorm", ["input_layernorm"], {"edges gradient"}, "self_attn.q_proj: its input is not what"),
    ("edit", "input_layernorm", ["input_layernorm"], FROZEN, "input_layernorm|self_attn.q_proj: its input is not what"),
    ("hook", "", None, SUMMED, "the residual stream here is not the sum"),
    ("edit", "", None, SUMMED, "the residual stream here is not the sum"),
    ("edit of input", "", None, SUMMED, "the residual stream here is not the sum"),
]


def half_more(x):
    return (x[0] * 1.5, *x[1:]) if isinstance(x, tuple) else x * 1.5


def changed(kind, path):
    """A model with something of the user's that scales what a module gives or reads by 1.5."""
    model = NNsight(precise("llama"))
    module = model._module.get_submodule(path)
    if kind == "hook":
        module.register_forward_hook(lambda module, inputs, output: half_more(output))
    elif kind == "pre-hook":
        module.register_forward_pre_hook(lambda module, inputs: half_more(inputs))
    else:
        with model.edit(inplace=True):
            if kind == "edit":
                model.get(path).output = half_more(model.get(path).output)
            else:
                model.get(path).input = model.get(path).input * 1.5
    return model


@functools.cache
def the_same(paths, kind):
    """The scores of a plain model that computes the same as the changed one, and a task of answers that it gives."""
    hf = precise("llama")
    for path in paths:
        hf.get_submodule(path).weight.mul_(1.5)
    if not paths:
        forward = hf.get_submodule(BLOCK).forward

        def scaled(x, *rest, **options):
            return half_more(forward(x, *rest, **options)) if kind != "edit of input" else forward(1.5 * x, *rest,
                                                                                                   **options)

        hf.get_submodule(BLOCK).forward = scaled
    task = solved(hf, random_task(3))
    return {what: ALL[what](NNsight(hf), task) for what in EVERY if paths or what not in SUMMED}, task


@pytest.mark.parametrize("kind, module, scaled, refuses, message", CASES)
def test_hooks_and_edits_give_the_right_numbers_or_none(kind, module, scaled, refuses, message):
    path = f"{BLOCK}.{module}".rstrip(".")
    wanted, task = the_same(tuple(f"{BLOCK}.{name}" for name in scaled or ()), "" if scaled else kind)
    model = changed(kind, path)
    for what in EVERY:
        if what in refuses:
            with pytest.raises(gimkit.GimkitError, match=message):
                ALL[what](model, task)
        else:
            assert torch.allclose(ALL[what](model, task), wanted[what], rtol=1e-6, atol=1e-9), what


def test_a_steering_vector_is_a_bias():
    """What is added to clean and corrupt rows alike moves no edge's meaning: as if the MLP's bias held it."""
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0)).double()
    hf, model = precise("gpt2"), NNsight(precise("gpt2"))
    hf.transformer.h[1].mlp.c_proj.bias.add_(vector)
    with model.edit(inplace=True):
        model.transformer.h[1].output = model.transformer.h[1].output + vector
    plain, task = NNsight(hf), solved(hf, random_task(3))
    for what in EVERY:
        assert torch.allclose(ALL[what](model, task), ALL[what](plain, task), rtol=1e-6, atol=1e-9), what
    assert not torch.allclose(ALL["run"](NNsight(precise("gpt2")), task), ALL["run"](plain, task), atol=1e-2)


@pytest.mark.parametrize("path", ["model.layers.1.mlp", "model.layers.1.self_attn"])
def test_a_hook_before_a_norm_counts_with_what_leaves_it(path):
    """Gemma-2's MLP and attention are normed before they reach the stream; such a norm undoes a factor but for eps."""
    hf, model = build("gemma2"), NNsight(build("gemma2"))
    model._module.get_submodule(path).register_forward_hook(lambda module, inputs, output: half_more(output))
    hf.get_submodule(path + (".down_proj" if path.endswith("mlp") else ".o_proj")).weight.mul_(1.5)
    plain, task = NNsight(hf), solved(hf, random_task(3))
    for what in ("nodes gradient", "edges gradient", "edges exact", "run"):
        if path.endswith("mlp"):
            assert torch.allclose(ALL[what](model, task), ALL[what](plain, task), rtol=1e-4, atol=1e-4), what
        else:
            with pytest.raises(gimkit.GimkitError, match="post_attention_layernorm: its input is not what the part"):
                ALL[what](model, task)


def test_hooks_that_change_nothing_change_nothing():
    hf, seen = build("llama"), []
    for module in hf.modules():
        module.register_forward_hook(lambda module, inputs, output: seen.append(module))
    model, plain, task = NNsight(hf), NNsight(build("llama")), random_task(2)
    for what in ("edges gradient", "edges exact", "run"):
        assert torch.equal(ALL[what](model, task), ALL[what](plain, task)), what
    assert seen


@pytest.mark.parametrize("what", ["edges gradient", "edges exact", "run"])
def test_an_edit_of_logits_by_position(what):
    """Two of the rows are padded, so that their last logits are not the answers'."""
    model, task = NNsight(build("llama")), random_task(4)
    with model.edit(inplace=True):
        model.lm_head.output[:, 7] = 1.5 * model.lm_head.output[:, 7]
    plain, edited = ALL[what](NNsight(build("llama")), task[:2]), ALL[what](model, task[:2])
    assert torch.allclose(edited, plain, atol=1e-5)
    last = ALL[what](NNsight(build("llama")), task[3:])
    assert torch.allclose(ALL[what](model, task[3:]), 1.5 * last, atol=1e-4)


@pytest.mark.parametrize("kind, module", [("edit", "self_attn.q_proj"), ("hook", "self_attn.o_proj"), ("edit", "mlp")])
def test_the_circuit_of_all_edges_is_checked_beside_every_part(kind, module, monkeypatch):
    """With the checks of the parts switched off, a run that is not the clean one is still refused."""
    model, task = changed(kind, f"{BLOCK}.{module}"), random_task(3)
    for place in (residual_stream, weights):
        monkeypatch.setattr(place, "check_agrees", lambda *arguments: None)
    if module == "mlp":  # a control: of this edit the run takes account
        assert ALL["run"](model, task).isfinite().all()
        return
    with pytest.raises(gimkit.GimkitError, match="circuit of all edges does not give the clean prompts' metric"):
        ALL["run"](model, task)


# --- the norm check ---


def test_norms_are_checked_on_rows_of_the_whole_batch():
    """A norm that is off for one prompt, or at one position, is noticed, whichever it is."""
    ids = token_ids(6, 8)
    for place in [(prompt, slice(None)) for prompt in range(6)] + [(slice(None), position) for position in range(8)]:
        model = NNsight(build("llama"))
        with model.edit(inplace=True):
            out = model.model.norm.output.clone()
            out[place] = 1.05 * out[place]
            model.model.norm.output = out
        with pytest.raises(gimkit.GimkitError, match="model.norm: recomputing this norm"):
            gradient(gimkit.apply(model, "freeze"), ids)


def test_spread_meets_all_prompts_and_all_positions():
    for prompts, positions in ((8, 8), (4, 10), (6, 15), (16, 16), (3, 16)):
        rows = spread(prompts * positions)
        assert len(rows) <= 16 and len(rows.unique()) == len(rows)
        assert len((rows // positions).unique()) >= min(prompts, 16) * 0.7
        assert len((rows % positions).unique()) >= min(positions, 16) * 0.6
    assert spread(5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_norm_of_a_slightly_wrong_eps_is_refused(name):
    """The norm computes with an eps that its attribute does not tell: off by some thousandths."""
    hf = build(name)
    norm = hf.model.layers[1].input_layernorm if name == "llama" else hf.transformer.h[1].ln_1
    key = "variance_epsilon" if name == "llama" else "eps"
    forward, told = norm.forward, getattr(norm, key)

    def with_other_eps(x):
        setattr(norm, key, 1e-2)
        try:
            return forward(x)
        finally:
            setattr(norm, key, told)

    plain = hf(token_ids()).logits
    norm.forward = with_other_eps
    assert 1e-4 < relative(hf(token_ids()).logits, plain) < 3e-2
    with pytest.raises(gimkit.GimkitError, match="recomputing this norm"):
        gradient(gimkit.apply(NNsight(hf)), token_ids())
