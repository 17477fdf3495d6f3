# %% [markdown]
# # 02 · The rules
#
# ![Four places in a block: forward unchanged, backward changed](pictures/rules.svg)
#
# **Claim: GIM's four rules change only the backward pass.**
#
# - The logits stay the same, bit for bit. The gradients change.
# - A receipt lists where each rule acts.
#
# You need: 01, and the parts of a transformer block. Runs on: SmolLM2 and a bundled model, no network. The cells take about a minute; with the four exercises plan an hour. Words: [glossary](GLOSSARY.md).

# %%
MODEL = "smollm2-135m"  # a real model; or "mini-gpt2", "mini-llama" (bundled), a hub id, a folder, an NDIF model
REMOTE = False

# %%
from itertools import combinations

import pandas
import seaborn
import torch

import gimkit
from gimkit import plots
from gimkit.interventions.gradients import scale_grad, with_grad_of
from gimkit.model.architecture import architecture_of
from gimkit.notebook import checks
from gimkit.rules import Rules

# %%
torch.manual_seed(0)
torch.set_num_threads(1)
seaborn.set_style("whitegrid")
model = gimkit.load(MODEL)
llama = gimkit.load("mini-llama")  # a small one with gated MLPs, for exercise 4

# %% [markdown]
# ## First, what it is for
# A sentence with two names, and the model must continue it. Which words speak for the right name (blue) and against it (orange)? Each score is (embedding - neutral embedding) · gradient. The last text is an exact measurement: take the word out, run again. **Predict** the two strongest words, then run.

# %%
task = gimkit.tasks.ioi(model, n=4, seed=0)
pair = task[0]
print(f"{pair.clean} ... {pair.answer}, not {pair.wrong}")
texts = {name: gimkit.attribute(model, pair.clean, (pair.answer, pair.wrong), method=method, remote=REMOTE)
         for name, method in (("plain gradient", "gradient"), ("GIM", "gim"), ("exact: taken out", "occlusion"))}
ax = plots.token_heat(texts)

# %% [markdown]
# <details><summary>What you see on SmolLM2</summary>
#
# Taken out, the right name (Charles) costs by far the most: +8.1 logits. GIM gives it the most too, +3.6. The plain gradient counts it *against* itself: -5.1. Both are wrong about the first mention of the wrong name: -3.2, where taking it out costs 2.1, for then no one is named twice.
# </details>
#
# The next cells run both backward passes on all prompts. **Predict:** in how many logits do the two models differ?


# %%
def logits_and_gradient(model, task):
    """Logits [n, seq, vocabulary], and the gradient of right minus wrong logit at the embeddings [n, seq, width]."""
    right, wrong = (torch.tensor([ids[0] for ids in answers]) for answers in (task.good, task.bad))
    rows, embedding = torch.arange(len(task)), model.get(architecture_of(model).embedding)
    with model.trace(input_ids=task.clean, use_cache=False, remote=REMOTE):
        leaf = embedding.output.detach().requires_grad_(True)
        embedding.output = leaf
        logits = model.output.logits
        last = logits[rows, task.last]
        gradient = torch.autograd.grad((last[rows, right] - last[rows, wrong]).sum(), leaf)[0].save()
        logits = logits.detach().save()
    return logits, gradient


# %%
def change(gradient, plain):
    """How far a gradient moved, as a share of the plain one's length; the mean over prompts."""
    return float(((gradient - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)).mean())


gim = gimkit.apply(model)  # an edited copy; `model` itself is untouched
logits, plain = logits_and_gradient(model, task)
gim_logits, gim_gradient = logits_and_gradient(gim, task)
print("logits that differ  ", int((logits != gim_logits).sum()), "of", logits.numel())
print(f"gradient moved by    {change(gim_gradient, plain):.0%}")
print(gimkit.receipt(gim))

# %% [markdown]
# <details><summary>What happened</summary>
#
# Not one logit differs, of 3.3 million. The gradient moved by nearly its whole length.
# </details>
#
# The **receipt** lists each rule and the modules where it acts. A rule that finds nothing to act on where it should is an error in this kit, not a silence.
#
# ## The trick
# Everything is built from two lines of torch. `x.detach()` has x's value and no gradient, so a difference `s - s.detach()` is exactly zero and still carries the gradient of s.

# %%
x = torch.tensor([3.0], requires_grad=True)
quarter = x.detach() + 0.25 * (x - x.detach())  # gimkit.interventions.gradients.scale_grad(x, 0.25)
borrowed = x.exp().detach() + (5 * x - (5 * x).detach())  # gimkit.interventions.gradients.with_grad_of(x.exp(), 5 * x)
for name, y in (("scale_grad", quarter), ("with_grad_of", borrowed)):
    [slope] = torch.autograd.grad(y, x)
    print(f"{name:12} value {y.item():.4f}, gradient {slope.item():g}")
assert torch.equal(quarter, scale_grad(x, 0.25)) and torch.equal(borrowed, with_grad_of(x.exp(), 5 * x))

# %% [markdown]
# ## Rule: q, k, v
# Where two factors make a product, gradient × input gives the whole product to each of them, and so counts it twice. GIM splits it in halves. Attention has two products: q with k, and the resulting weights with v.
#
# ### Exercise 1 · Split the gradients (5 minutes, easy)
# Which shares should q, k and v get, so that they add up to 1? Return the three tensors with the same values and with gradients times their share.


# %%
def split_gradients(q, k, v):
    """Return q, k, v: every bit of the values, each gradient times its share."""
    ...  # your code


checks.split_gradients(split_gradients)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The product of weights and v splits into ½ for v and ½ for the weights; the weights' half splits again between q and k. `scale_grad` is imported.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def split_gradients(q, k, v):
#     return scale_grad(q, 0.25), scale_grad(k, 0.25), scale_grad(v, 0.5)
# ```
# </details>

# %% [markdown]
# ## Rule: norm
# y = weight · (x - mean) / σ + bias, with σ = sqrt(variance + eps). Removing a part of x changes σ as well, and through σ every other part. GIM holds σ constant: each part then keeps its own share of y. LayerNorm's mean is still differentiated; RMSNorm has none.
#
# ### Exercise 2 · Freeze a LayerNorm (10 minutes, medium)
# You get a norm's input x and its output y. Return y's value with the gradient of the same norm, σ held constant.


# %%
def frozen_norm(x, y, weight, eps):
    """x, y: [..., width]. Return y, every bit; gradient of weight * (x - mean) / sigma with a constant sigma."""
    ...  # your code


checks.frozen_norm(frozen_norm)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Compute σ from `x.detach()` with `var(-1, correction=0, keepdim=True)`. Build the frozen norm s from it, then `with_grad_of(y, s)`. The bias has no effect on the gradient.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def frozen_norm(x, y, weight, eps):
#     sigma = (x.detach().var(-1, correction=0, keepdim=True) + eps).sqrt()
#     s = weight * (x - x.mean(-1, keepdim=True)) / sigma
#     return y.detach() + (s - s.detach())
# ```
# </details>

# %% [markdown]
# ## Rule: temperature
# In 01 you wrote the softmax's backward pass. A model's fast attention never shows its softmax: it takes q, k, v and a scaling, and returns the output. It can still be done, with two calls:
# 1. as the model does it, q and k detached: gives the value, and v's gradient;
# 2. with scaling / T and v detached: gives q's and k's gradients. Its chain rule brings a factor 1/T, which the rule does not have.
#
# ### Exercise 3 · Temper an attention (15 minutes, hard)


# %%
def tempered_attention(attend, q, k, v, scaling, temperature):
    """attend(q, k, v, scaling) is the kernel. Return its value; q and k get the softmax gradient at temperature T."""
    ...  # your code


checks.tempered_attention(tempered_attention)

# %% [markdown]
# <details><summary>Hint</summary>
#
# value = first call; s = second call; return value + T · (s - s.detach()).
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def tempered_attention(attend, q, k, v, scaling, temperature):
#     value = attend(q.detach(), k.detach(), v, scaling)
#     s = attend(q, k, v.detach(), scaling / temperature)
#     return value + temperature * (s - s.detach())
# ```
# </details>

# %% [markdown]
# ## Rule: gate, in a model
# A gated MLP multiplies act(gate) by up, then projects down. One half at the input of `down_proj` gives each factor its half. GPT-2 has no gate, so this exercise is on the Llama-type model.
#
# With nnsight, `model.edit()` stores an intervention in a copy of the model: it runs in every later trace.
#
# ### Exercise 4 · Halve the products of every layer (10 minutes, medium)


# %%
def halve_products(model):
    """Return an edited copy of the Llama-type model: half of the gradient at the input of every down_proj."""
    ...  # your code


checks.halved_products(halve_products, llama)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `with model.edit() as (tracer, edited):` and, in its body, a loop over `edited.model.layers`. A module's `.mlp.down_proj.input` can be read and assigned. Return `edited`.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def halve_products(model):
#     with model.edit() as (tracer, edited):
#         for layer in edited.model.layers:
#             layer.mlp.down_proj.input = scale_grad(layer.mlp.down_proj.input, 0.5)
#     return edited
# ```
# </details>
#
# **Bonus:** give the gate a quarter and `up` three quarters. Which tokens of the sentence above change most?

# %% [markdown]
# ## How much does each rule change?
# All 16 sets of the four rules; the change is the distance from the plain gradient as a share of its length. **Predict:** which rule moves the gradient most? Will all four together move it by the sum?

# %%
PARTS = {"norm": dict(freeze_norm=True), "temperature": dict(temperature=2.0),
         "q/k/v": dict(q=0.25, k=0.25, v=0.5), "gate": dict(gate=0.5, up=0.5)}
SETS = [frozenset(chosen) for size in range(5) for chosen in combinations(PARTS, size)]
rules = {chosen: Rules(**{key: value for part in chosen for key, value in PARTS[part].items()}) for chosen in SETS}
changes, lengths = {}, {}
for chosen in SETS:
    edited_logits, gradient = logits_and_gradient(gimkit.apply(model, rules[chosen]), task)
    assert torch.equal(edited_logits, logits), f"the forward pass changed under {set(chosen)}"
    changes[chosen] = change(gradient, plain)
    lengths[chosen] = float(gradient.norm() / plain.norm())
print("logits identical, bit for bit, under", len(SETS), "sets of rules")

# %%
shown = {part: frozenset({part}) for part in PARTS} | {"all but norm": frozenset(PARTS) - {"norm"},
                                                       "all four (GIM)": frozenset(PARTS)}
table = pandas.DataFrame([(rule, changes[chosen]) for rule, chosen in shown.items()], columns=["rules", "change"])
ax = plots.rule_changes(table)
print("length of the gradient, plain = 1:", {rule: round(lengths[chosen], 2) for rule, chosen in shown.items()})

# %% [markdown]
# <details><summary>Why do the rules not add up?</summary>
#
# Each rule changes what the others receive. Frozen norms alone make the gradient 8 times as long: a norm's own gradient takes away much of what passes, 61 times in a row. The shares for q, k, v and the gate make it shorter, and they multiply over 30 layers: all rules but the norm's leave 8% of the length. Together they leave 13%. So the norm alone moves the gradient further than all four: it makes it longer, and the distance from a much shorter one is at most about 1.
# </details>
#
# Tick rules below (this needs a running kernel; every set is already computed).

# %%
from gimkit.notebook.widgets import rule_explorer

tokens = {chosen: gimkit.attribute(model, pair.clean, (pair.answer, pair.wrong), method=rules[chosen]) for chosen in SETS}
rule_explorer(changes, tokens)

# %% [markdown]
# ## The same with every attention kernel
# `sdpa` never builds the attention map, `eager` does. Both must give full receipts and the same gradient. (Tools that patch one of the two paths do nothing on the other, and do not say so.)

# %%
eager = gimkit.apply(gimkit.load("mini-llama", attn_implementation="eager"))
sdpa = gimkit.apply(llama)
for name, edited in (("sdpa", sdpa), ("eager", eager)):
    places = gimkit.receipt(edited).places
    assert edited.config._attn_implementation == name and len(places) == 3 and all(places.values())
    print(f"{name:5}", {rule: len(modules) for rule, modules in places.items()})
few = gimkit.tasks.ioi(llama, n=16, seed=0)
gap = change(logits_and_gradient(eager, few)[1], logits_and_gradient(sdpa, few)[1])
print(f"gradients differ by {gap:.1e} of their length")

# %% [markdown]
# ## Controls: nothing should happen
# **Predict each.** Rules set to 1 must change nothing, to the last bit, and the receipt must say so. The gate rule must change nothing in GPT-2, which has no gate.

# %%
nothing = gimkit.apply(model, Rules(temperature=1.0, q=1.0, k=1.0, v=1.0))
print(gimkit.receipt(nothing))
print("gradient identical", torch.equal(logits_and_gradient(nothing, task)[1], plain))

gpt2 = gimkit.load("mini-gpt2")
print(gimkit.receipt(gimkit.apply(gpt2, rules[frozenset({"gate"})])))

# %% [markdown]
# <details><summary>What happened</summary>
#
# Both as it should be. With every rule at 1 the gradient is the plain one, bit for bit, and for GPT-2 the gate rule says that it acts on nothing.
# </details>
#
# A third one is a trap. Why not just replace `forward` in the norm's class? Because nnsight has wrapped the modules already. Here every norm of that class is made to return zeros. **Predict** the logits.

# %%
norm_class = type(gpt2.get(architecture_of(gpt2).norms[-1].path)._module)
gpt2_task = gimkit.tasks.ioi(gpt2, n=16, seed=0)
before, forward = logits_and_gradient(gpt2, gpt2_task)[0], norm_class.forward
norm_class.forward = lambda self, x: torch.zeros_like(x)
try:
    after = logits_and_gradient(gpt2, gpt2_task)[0]
finally:
    norm_class.forward = forward
print(f"{norm_class.__name__}.forward returned zeros; logits that changed: {int((before != after).sum())}")

# %% [markdown]
# <details><summary>What happened</summary>
#
# Nothing, and nothing complained. A rule placed like this would be silently absent; this is why the rules are nnsight edits, and why there is a receipt.
# </details>
#
# ## What this does not show
# - **Changed is not better.** That the gradient moves says nothing about whether it explains more. Notebook 04 measures that against exact patching.
# - **It is the gradient of no function.** Finite differences will not match it; do not train with it.
# - **The temperature costs time:** attention's scores are computed once more in the backward pass.
# - **Not every architecture.** Models whose attention does not run through transformers' `attention_interface` (GPT-Neo, Bloom, Mamba and others) are refused by name.
#
# Next: **03 · Self-repair**, inside a model this time. Sources: GIM, [arXiv 2505.17630](https://arxiv.org/abs/2505.17630).
