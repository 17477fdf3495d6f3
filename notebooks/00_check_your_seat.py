# %% [markdown]
# # 00 · Check your seat
#
# **Claim: if this notebook runs to its end, so do the others. The models are on your disk, they predict, gradients flow through them, and none of it needs the network.**
#
# Runs on: the bundled models. To run on a hub model, or on a large model on NDIF's servers, change the first cell; the rest stays as it is. The cells take about 10 seconds; the exercise 5 minutes.

# %%
MODEL = "mini-gpt2"  # bundled; or a hub id, a folder, or an NDIF model
REMOTE = False

# %% [markdown]
# ## Versions
# If an import fails: run `make lab` from the repository's folder, or `pip install .` there.

# %%
import os
import platform
from importlib.metadata import version

import pandas
import torch

import gimkit
from gimkit.model.architecture import architecture_of
from gimkit.notebook import checks

status = {f"{name} {found}": "yes" for name, found in [("python", platform.python_version()), ("torch", torch.__version__)]}
status |= {f"{name} {version(name)}": "yes" for name in ("nnsight", "transformers")}
status |= {f"gimkit {version('gimkit-nnsight')}": "yes"}
for part in status:
    print(part)

# %% [markdown]
# ## Do the models predict?
# Both bundled models were trained for this kit, on sentences of its own; they know a few hundred words and some simple tasks. Read the prompt that the next cell prints: two people, and one of them gives, sends or lends something. **Predict** the next word, then look at the three most probable ones.

# %%
models = {name: gimkit.load(name) for name in dict.fromkeys(["mini-gpt2", "mini-llama", MODEL])}
model = models[MODEL]
pair = gimkit.tasks.ioi(model, n=1, seed=0)[0]


def next_words(model, prompt, n=3):
    """The n most probable next tokens, as {text: probability}."""
    with torch.no_grad():
        with model.trace(prompt, use_cache=False, remote=REMOTE):
            logits = model.output.logits[0, -1].save()
    top = logits.softmax(-1).topk(n)
    return {model.tokenizer.decode(i).strip(): round(float(p), 3) for p, i in zip(*top)}


print(pair.clean, "...")
for name, each in models.items():
    words = next_words(each, pair.clean)
    status[f"{name} answers {pair.answer}"] = "yes" if next(iter(words)) == pair.answer.strip() else "NO"
    print(f"{name:12}", words)

# %% [markdown]
# ### A control
# Perhaps the models say this name whatever they read; then they would say it here too. One word of the prompt was exchanged: **predict** the answer.

# %%
print(pair.corrupt, "...")
for name, each in models.items():
    words = next_words(each, pair.corrupt)
    status[f"{name} then answers {pair.wrong}"] = "yes" if next(iter(words)) == pair.wrong.strip() else "NO"
    print(f"{name:12}", words)

# %% [markdown]
# ## Reading a trace
# nnsight runs a model inside a `with model.trace(prompt):` block. There, `module.output` is what the module returns, and `.save()` keeps a value for after the block. The block's body starts on its own line. A name like `transformer.h.0.mlp` leads to a module: `model.transformer.h[0].mlp`, or `model.get("transformer.h.0.mlp")`.

# %%
first = architecture_of(model).blocks[0]  # gimkit finds the parts of a model by itself
print("attention:", first.attention, "  MLP:", first.mlp)

with model.trace(pair.clean, use_cache=False, remote=REMOTE):
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

# %% [markdown]
# ## Your seat
# NDIF, the servers of notebook 08, need a key. It is read from the environment variable `NDIF_API_KEY` and never written to disk. No other notebook needs it. (The next cell only looks; it contacts nobody.)

# %%
status["NDIF key (only for notebook 08)"] = "yes" if os.environ.get("NDIF_API_KEY") else "no"
pandas.DataFrame(status.items(), columns=["part", "ready"])

# %% [markdown]
# `NO` in capitals should not be there: please open an issue with this table. A model of your own may well fail the two rows about names; the bundled ones must not.
#
# **What this does not show:** that other models work (each is examined when it is loaded into a method, and refused by name if it cannot be done exactly), or that a server is up.
#
# Next: **01 · When gradients lie**.
