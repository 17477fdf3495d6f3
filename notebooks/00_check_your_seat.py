# %% [markdown]
# # 00 · Check your seat
#
# ![A model is a tree of modules; a trace reads one of them](pictures/trace.svg)
#
# **Claim: if this notebook runs to its end, so do the others.**
#
# - A model is a tree of modules. A *trace* runs it and reads any of them.
# - The models are on your disk; nothing here needs the network.
#
# Runs on: SmolLM2, a real model of 135 million parameters, and two bundled ones. The cells take about half a minute; the exercise 5 minutes. Words you do not know are in the [glossary](GLOSSARY.md).

# %%
MODEL = "smollm2-135m"  # a real model; or "mini-gpt2", "mini-llama" (bundled), a hub id, a folder, an NDIF model
REMOTE = False

# %% [markdown]
# The switch above opens every notebook. Where SmolLM2 is not installed, the next cell names the command that installs it; with a bundled model everything runs too.

# %%
# setup
import os
import platform
from importlib.metadata import version

import pandas
import torch

import gimkit
from gimkit import plots
from gimkit.model.architecture import architecture_of
from gimkit.notebook import checks

model = gimkit.load(MODEL)
print("python", platform.python_version(), *(f"{name} {version(name)}" for name in ("torch", "transformers", "nnsight")))

# %% [markdown]
# ## What the kit is for
# Two people; one gives something to the other. Which words speak for the right name? Below, the same model and the same sentence, with two backward passes on one colour scale: blue speaks for the right name, orange against it. **Predict:** how strong is the right name itself?

# %%
task = gimkit.tasks.ioi(model, n=8, seed=0)
pair = task[0]
scores = {name: gimkit.attribute(model, pair.clean, (pair.answer, pair.wrong), method=method, remote=REMOTE)
          for name, method in (("GIM", "gim"), ("plain gradient", "gradient"))}
ax = plots.token_heat(scores)

# %% [markdown]
# <details><summary>What you see on SmolLM2</summary>
#
# GIM gives the right name, Charles, the most: +3.6 logits. The plain gradient counts it as evidence *against* itself: -5.1. Notebook 01 shows on five numbers how a gradient can be so wrong, notebook 04 asks an exact measurement who is right.
# </details>

# %% [markdown]
# ## Do the models predict?
# Both bundled models were trained for this kit, on a few hundred words. **Predict** the next word of each prompt, then look at the three most probable ones. A real model also knows words that are no names; what counts is which of the two names it prefers.


# %%
def next_words(model, prompt, n=3):
    """The probabilities of the next token: the n most probable ones, as {text: probability}, and all of them."""
    with torch.no_grad():
        with model.trace(prompt, use_cache=False, remote=REMOTE):
            logits = model.output.logits[0, -1].save()
    chances = logits.softmax(-1)
    top = {model.tokenizer.decode(i).strip(): round(float(p), 3) for p, i in zip(*chances.topk(n))}
    return top, chances


# %%
status = {}
for name in dict.fromkeys([MODEL, "mini-gpt2", "mini-llama"]):
    each = model if name == MODEL else gimkit.load(name)
    few = gimkit.tasks.ioi(each, n=8, seed=0)
    names = [few.good[0][0], few.bad[0][0]]  # the tokens of the right and the wrong name
    for prompt, (right, wrong) in ((few[0].clean, names), (few[0].corrupt, names[::-1])):
        words, chances = next_words(each, prompt)
        who = each.tokenizer.decode(right).strip()
        status[f"{name} prefers {who}"] = "yes" if chances[right] > chances[wrong] else "NO"
        print(f"{name}: {prompt} ...\n    {words}; {who} {chances[right]:.2g}, the other {chances[wrong]:.2g}")

# %% [markdown]
# <details><summary>What you see</summary>
#
# For SmolLM2 the right name is only the third guess, after "his" and "the": a sentence may go on in many ways. But it is nine times as probable as the other name. The bundled models saw little else in training and are sure.
# </details>
#
# The second prompt of each model is a **control**: one name was exchanged, so the answer must change too. A model that always says the same name would fail here.

# %% [markdown]
# ## Reading a trace
# nnsight runs a model inside a `with model.trace(prompt):` block. There, `module.output` is what the module returns, and `.save()` keeps a value for after the block. The block's body starts on its own line. A name like `model.layers.0.mlp` leads to a module: `model.get("model.layers.0.mlp")`.

# %%
first = architecture_of(model).blocks[0]  # gimkit finds the parts of a model by itself
print("attention:", first.attention, "  MLP:", first.mlp)

with model.trace(task[0].clean, use_cache=False, remote=REMOTE):
    leaf = model.get(architecture_of(model).embedding).output.detach().requires_grad_(True)
    model.get(architecture_of(model).embedding).output = leaf
    gradient = torch.autograd.grad(model.output.logits[0, -1].max(), leaf)[0].save()
status["gradients flow to the embeddings"] = "yes" if bool(gradient.abs().sum() > 0) else "NO"
print("gradient of the top logit at the embeddings:", tuple(gradient.shape))

# %% [markdown]
# ### Exercise 1 · Read one activation (5 minutes, easy)
# Trace the prompt, save the module's output, and return its shape. **Predict** the shape's three numbers first: what stands on each axis?


# %%
def activation_shape(model, module, prompt):
    """Return the shape of `module`'s output when `model` reads `prompt`."""
    ...  # your code


checks.read_a_trace(activation_shape, model)

# %% [markdown]
# <details><summary>Hint</summary>
#
# In the block: `output = module.output.save()`. After it: `output.shape`.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def activation_shape(model, module, prompt):
#     with model.trace(prompt):
#         output = module.output.save()
#     return output.shape
# ```
# </details>
#
# **Bonus:** which word does the model expect after the *first* five words of the prompt? Trace them, and read the logits at the last position.

# %% [markdown]
# ## Your seat
# NDIF, the servers of notebook 08, need a key. It is read from the environment variable `NDIF_API_KEY` and never written to disk. No other notebook needs it. (The next cell only looks; it contacts nobody.)

# %%
status["NDIF key (only for notebook 08)"] = "yes" if os.environ.get("NDIF_API_KEY") else "no"
pandas.DataFrame(status.items(), columns=["part", "ready"])

# %% [markdown]
# `NO` in capitals should not be there: please open an issue with this table. A model of your own may well fail the rows about names; SmolLM2 and the bundled ones must not.
#
# **What this does not show:** that other models work (each is examined when a method meets it, and refused by name if it cannot be done exactly), or that a server is up.
#
# Next: **01 · When gradients lie**. Sources: nnsight and NDIF, [arXiv 2407.14561](https://arxiv.org/abs/2407.14561); indirect object identification, the task of the first picture, [arXiv 2211.00593](https://arxiv.org/abs/2211.00593).
