"""Token attribution's rivals against captum, literal loops and closed forms."""

import sys
import warnings

import numpy
import pytest
import torch
from captum.attr import LayerDeepLift, LayerIntegratedGradients
from nnsight import NNsight
from oracle import oracle_gradient
from test_rules import for_oracle, relative
from tiny import build, token_ids

import gimkit
from gimkit.tokens import perturbation

torch.set_num_threads(1)
PROMPT, NEUTRAL, TARGET = token_ids(1, 7)[0], 3, 5


def scores_of(hf, method, **options):
    return gimkit.attribute(NNsight(hf), PROMPT, target=TARGET, method=method, baseline=NEUTRAL, **options).scores


def literal(hf, *replaced):
    ids = PROMPT.clone()
    ids[list(replaced)] = NEUTRAL
    with torch.no_grad():
        return hf(ids[None], use_cache=False).logits[0, -1, TARGET].item()


class Last(torch.nn.Module):
    """What captum explains: the last position's logits."""

    def __init__(self, hf):
        super().__init__()
        self.hf = hf

    def forward(self, ids):
        return self.hf(input_ids=ids, use_cache=False).logits[:, -1]


def captums(explainer, hf, **options):
    options = dict(baselines=torch.full_like(PROMPT, NEUTRAL)[None], target=TARGET) | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = explainer(Last(hf), hf.get_input_embeddings()).attribute(PROMPT[None], **options)
    return found[0].sum(-1).detach()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_integrated_gradients_are_captums(name):
    hf = build(name)
    want = captums(LayerIntegratedGradients, hf, n_steps=6, method="riemann_middle")
    assert relative(scores_of(hf, "ig", steps=6), want) < 1e-4


def activated(name, activation):
    """A tiny model whose MLPs use another activation, on the same weights."""
    hf = build(name)
    for module in hf.modules():
        for key in ("act", "act_fn"):
            if isinstance(getattr(module, key, None), torch.nn.Module):
                setattr(module, key, activation())
    return hf


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.Softplus])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_deeplift_is_captums_where_captum_knows_the_activation(name, activation):
    """captum adds a millionth where inputs differ little, hence the tolerance."""
    hf = activated(name, activation)
    want = captums(LayerDeepLift, hf)
    assert relative(scores_of(hf, "deeplift"), want) < 1e-3
    assert relative(scores_of(hf, "gradient"), want) > 0.02


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_captums_deeplift_of_a_real_activation_is_the_gradient(name):
    """The evidence for deeplift of our own: captum finds neither GELU nor SiLU."""
    hf = build(name)
    assert relative(captums(LayerDeepLift, hf), scores_of(hf, "gradient")) < 1e-4
    assert relative(scores_of(hf, "deeplift"), scores_of(hf, "gradient")) > 0.02


def test_deeplift_of_rows_and_positions_in_one_axis():
    """OPT's MLP sees them so; its ReLU is one that captum knows."""
    hf = build("opt")
    hf.model.decoder.layers.apply(lambda m: setattr(m, "activation_fn", torch.nn.Tanh())
                                  if hasattr(m, "activation_fn") else None)
    assert relative(scores_of(hf, "deeplift"), captums(LayerDeepLift, hf)) < 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_attnlrp(name):
    hf = build(name)
    gradient, _ = oracle_gradient(hf, PROMPT[None], lambda logits: logits[0, -1, TARGET],
                                  for_oracle(gimkit.RULES["attnlrp"]))
    embed = hf.get_input_embeddings()
    want = ((embed(PROMPT) - embed(torch.tensor(NEUTRAL))) * gradient[0]).sum(-1)
    assert relative(scores_of(hf, "attnlrp"), want) < 1e-4
    assert relative(scores_of(hf, "gim"), want) > 0.05


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
def test_occlusion_is_a_literal_loop(name):
    hf = build(name)
    want = torch.tensor([literal(hf) - literal(hf, position) for position in range(7)])
    assert relative(scores_of(hf, "occlusion"), want) < 1e-4


def test_kernelshap_with_samples_in_plenty_is_the_average_over_permutations(monkeypatch):
    from itertools import permutations

    hf, free = build("llama"), [1, 3, 4, 6]
    want = torch.zeros(7)
    for order in permutations(free):
        for count, position in enumerate(order):
            want[position] += (literal(hf, *order[count + 1:]) - literal(hf, *order[count:])) / 24
    few = scores_of(hf, "kernelshap", free=free)
    monkeypatch.setattr(perturbation, "SAMPLES_PER_TOKEN", 200)
    many = scores_of(hf, "kernelshap", free=free)
    assert relative(many, want) < 0.25 < relative(few, want)
    assert many[[0, 2, 5]].abs().sum() == 0


def test_lime_is_the_weighted_lasso_of_the_same_variants(monkeypatch):
    """Again from the formula: sampled masks recorded, sklearn's Lasso fitted to literal logits."""
    from sklearn.linear_model import Lasso

    hf, seen = build("gpt2"), []
    values = perturbation.masked_values

    def recorded(model, asked, keep, *rest):
        seen.append(keep)
        return values(model, asked, keep, *rest)

    monkeypatch.setattr(perturbation, "masked_values", recorded)
    got = scores_of(hf, "lime", seed=1)
    keep = torch.cat(seen)
    assert keep.shape == (100, 7)
    logits = [literal(hf, *(~row).nonzero().flatten().tolist()) for row in keep]
    weight = numpy.exp(-((100 * (1 - numpy.sqrt(keep.float().mean(1).numpy())) / 25) ** 2) / 2)
    want = Lasso(alpha=0.01).fit(keep.numpy(), logits, sample_weight=weight).coef_
    assert relative(got, torch.tensor(want)) < 1e-3


def test_on_an_additive_model_all_agree(monkeypatch):
    """Where tokens only add up, leave-one-out and KernelSHAP are the terms; LIME's lasso shrinks them a little."""
    terms = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 0.25, -1.0])
    monkeypatch.setattr(perturbation, "masked_values", lambda model, asked, keep, remote=False: (
        torch.stack([keep.double() @ terms.double(), torch.ones(len(keep))], 1), [TARGET]))
    for method in ("occlusion", "kernelshap", "lime"):
        assert relative(scores_of(build("gpt2"), method), terms) < (0.2 if method == "lime" else 1e-4)


@pytest.mark.parametrize("method", ["lime", "kernelshap", "random"])
def test_seeds(method):
    hf = build("gpt2")
    one, again, other = (scores_of(hf, method, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    scores_of(hf, method)
    assert torch.equal(first, torch.rand(1))  # the caller's random numbers are left alone


@pytest.mark.parametrize("method", gimkit.tokens.METHODS)
def test_only_free_tokens_score(method):
    scores = scores_of(build("llama"), method, free=[1, 2, 4])
    assert scores.isfinite().all() and scores[[0, 3, 5, 6]].abs().sum() == 0 and scores[[1, 2, 4]].abs().sum() > 0


def test_integrated_gradients_of_free_tokens_end_at_the_prompt_without_them():
    hf, free = build("llama"), [1, 2, 4]
    change = literal(hf) - literal(hf, *free)
    gaps = [abs(scores_of(hf, "ig", free=free, steps=steps).sum().item() - change) for steps in (4, 400)]
    assert gaps[1] < 0.01 * abs(change) and gaps[1] < gaps[0]


@pytest.mark.parametrize("method", ["occlusion", "lime", "random", "deeplift"])
def test_the_top_prediction_is_explained_without_a_target(method):
    hf = build("gpt2")
    with torch.no_grad():
        best = int(hf(PROMPT[None]).logits[0, -1].argmax())
    assert gimkit.attribute(NNsight(hf), PROMPT, method=method, baseline=NEUTRAL).target == str(best)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(prompt=list(range(3, 60)) + [5] * 8), "65 tokens, but the model's context holds 64"),
    (dict(free=[7]), "from 0 to 6"),
    (dict(free=[]), "from 0 to 6"),
    (dict(free=[2], method="lime"), "only 1 may be replaced; use occlusion"),
])
def test_bad_input(arguments, message):
    options = {"prompt": PROMPT, "target": TARGET, "baseline": NEUTRAL} | arguments
    with pytest.raises(gimkit.GimkitError, match=message):
        gimkit.attribute(NNsight(build("gpt2")), **options)


def test_edited_models_and_experts_are_refused():
    with pytest.raises(gimkit.GimkitError, match="already carries the rules gim"):
        gimkit.attribute(
            gimkit.apply(NNsight(build("gpt2"))), PROMPT, target=TARGET, method="occlusion", baseline=NEUTRAL)
    with pytest.raises(gimkit.GimkitError, match="no activation module of its own, so deeplift"):
        scores_of(build("mixtral"), "deeplift")


def test_without_captum(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(gimkit.GimkitError, match="lime needs captum: pip install captum scikit-learn"):
        scores_of(build("gpt2"), "lime")
