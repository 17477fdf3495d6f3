# %% [markdown]
# # 03 · Self-repair
#
# ![An attention row: one of two copies ablated costs nothing, both cost half](pictures/row.svg)
#
# **Claim: attention repairs itself: two scores ablated together often cost more than the sum of both ablated alone.**
#
# - In a real model most rows do this a little, a few do it strongly. In a small one some cost nothing alone and everything together.
# - Whole heads compensate too: in SmolLM2 one later head makes up for nearly all that a lost name mover wrote.
#
# Two halves, each for itself: **attention rows** (exercise 1) and **heads** (exercises 2 and 3).
#
# You need: 01, and a trace (00). Runs on: SmolLM2 and mini-llama (rows), both bundled models and a recorded run of SmolLM2 (heads); no network. The cells take about a minute; with the three exercises plan 45 minutes. Words: [glossary](GLOSSARY.md).

# %%
MODEL = "smollm2-135m"  # a real model; or "mini-gpt2", "mini-llama" (bundled), a hub id, a folder, an NDIF model
REMOTE = False

# %%
# setup: imports, models, and helpers that the text does not need
import dataclasses

import numpy
import pandas
import seaborn
import torch
from IPython.display import Image
from matplotlib import pyplot
from scipy.stats import spearmanr

import gimkit
from gimkit.model.architecture import architecture_of
from gimkit.model.tokenizer import token_text
from gimkit.notebook import checks
from gimkit.notebook.widgets import repair_explorer
from gimkit.plots import BLUE, DARK, GREY, ORANGE, ablation_effect, direct_against_total, head_compensation
from gimkit.statistics import bootstrap

torch.manual_seed(0)
torch.set_num_threads(1)
seaborn.set_style("whitegrid")
model, llama = gimkit.load(MODEL), gimkit.load("mini-llama")
models = {MODEL: model, "mini-llama": llama}


def words_of(model, ids):
    return [token_text(model.tokenizer, token).strip() for token in ids.tolist()]


def same_word(task, rows):
    """Whether both positions of a row hold the same token."""
    ids = task.clean.numpy()
    return ids[rows["example"], rows["i"]] == ids[rows["example"], rows["j"]]


def interval(rows, examples):
    """Median interaction, with its interval over prompts."""
    groups = {example: part["interaction"].to_numpy() for example, part in rows.groupby("example")}
    return bootstrap(lambda index: numpy.median(numpy.concatenate([groups.get(k, numpy.empty(0)) for k in index] or [[0]])),
                     examples, resamples=100)


# %% [markdown]
# # First half: attention rows
# ## One row
# Notebook 01 invented a row of scores. In a model, a head at one position (the *query*) gives each earlier position a score. Let z be the row's output, v_k the value at position k, and c_k = z · v_k what that position is *worth*. Position k contributes its weight times its worth; the contributions add up to o = z · z, the output in one number.
#
# Here is a row of mini-llama whose two main positions hold the same name. It is read where the queries, keys and values reach the attention kernel. **Predict:** what does the output lose when the first score is ablated (moved to the mean of its row)? When both are?


# %%
def row_by_hand(model, ids, layer, head, query):
    """Scores and worths of one row, [query + 1] each."""
    attention = model.get(architecture_of(model).blocks[layer].attention)
    with model.trace(input_ids=ids[None], use_cache=False, remote=REMOTE):
        source = attention.source
        call = source.node([name for name in source.names if name.startswith("attention_interface_")][-1])
        (_, q, k, v, *_), options = call.inputs
        group = q.shape[1] // k.shape[1]  # query heads that share a key head
        scores = (q[0, head, query] @ k[0, head // group, :query + 1].T * options["scaling"]).save()
        values = v[0, head // group, :query + 1].save()
    return scores, values @ (scores.softmax(-1) @ values)


# %%
def outputs_of(row, model, task):
    """The row's output in one number: intact, without i, without j, without both; and a name for it."""
    example, layer, head, query, i, j = (int(row[name]) for name in ("example", "layer", "head", "query", "i", "j"))
    scores, worths = row_by_hand(model, task.clean[example], layer, head, query)
    lowered = scores.repeat(4, 1)
    lowered[[1, 3], i] = lowered[[2, 3], j] = scores.mean()
    words = words_of(model, task.clean[example])
    return (lowered.softmax(-1) @ worths).tolist(), f"a{layer}.h{head} at {words[query]!r}: {words[i]!r} and {words[j]!r}"


# %%
tasks = {name: gimkit.tasks.ioi_twice(each, n=6, seed=0) for name, each in models.items()}
repairs = {name: gimkit.self_repair(each, tasks[name], remote=REMOTE) for name, each in models.items()}
pure = repairs["mini-llama"].frame()
pure = pure[same_word(tasks["mini-llama"], pure) & (pure[["d1", "d2"]].abs().max(axis=1) < 0.01)]
bars, title = outputs_of(pure.sort_values("d12").iloc[-1], llama, tasks["mini-llama"])
figure, ax = pyplot.subplots(figsize=(7, 2.6), layout="constrained")
drawn = ax.barh(["intact", "first ablated", "second ablated", "both ablated"], bars, color=[GREY, BLUE, BLUE, ORANGE])
labels = ax.bar_label(drawn, fmt="%.1f", padding=4)
ax.set(title=f"mini-llama, {title}", xlabel="output of the row, z · z")
ax.margins(x=0.15)
ax.invert_yaxis()

# %% [markdown]
# <details><summary>What happened</summary>
#
# Either score alone: nothing is lost, the other takes its weight. Both: everything, and more than everything. The output turns negative, because what is left of the row writes *against* what the intact row wrote; so a loss can be larger than the output.
# </details>
#
# `gimkit.self_repair` does this for every row in which two contributions exceed a threshold (1, as in the GIM paper), and notes what the output loses: d1, d2 alone, d12 together. The **interaction** is the share of d12 that the single ablations miss: (d12 - d1 - d2) / d12.

# %% [markdown]
# ### Exercise 1 · Predict the sign (10 minutes, easy)
# The first two scores of a row are ablated. Is the joint effect more than the sum of the single ones (`"+"`), as much (`"0"`), or less (`"-"`)?
#
# | row | scores | worths |
# |---|---|---|
# | A | 6, 6, 0, 0, 0 | 10, 10, 0, 0, 0 |
# | B | 6, 6, 0, 0, 0 | 10, 10, 10, 10, 10 |
# | C | 6, 6, 0, 0, 0 | 10, -10, 0, 0, 0 |
# | D | 4, 4, 2, 2, 2 | 3, 3, 9, 9, 9 |

# %%
my_signs = ...  # {"A": "+", "B": ..., "C": ..., "D": ...}

checks.predicted_signs(my_signs)

# %% [markdown]
# <details><summary>Hint</summary>
#
# When one score falls, its weight goes to the others, most of it to the second large one. What is that one worth, compared with the whole row?
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# my_signs = {"A": "+", "B": "0", "C": "0", "D": "-"}
# ```
#
# With d the weight that a position loses, its effect is d (c - o) / (1 - d). For both, the numerators add up over 1 - d₁ - d₂: they share the denominator only.
# </details>
#
# **Bonus:** find scores and worths for which both single effects are exactly 0 and the joint one is not.

# %% [markdown]
# ## All rows
# A dot is a row; above the dashed line both cost more than the sum. Prompts that name both people twice. **Predict:** where do the dots of the real model lie, where those of the small one?

# %%
figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
for (name, repair), ax in zip(repairs.items(), axes):
    ablation_effect(repair, ax=ax)
    ax.set_title(f"{name}: {ax.get_title()}")
    rows = repair.frame()
    more, pure = rows["d12"] > 1.1 * (rows["d1"] + rows["d2"]), rows[["d1", "d2"]].abs().max(axis=1) < 0.01 * rows["d12"]
    print(f"{name:13} joint loss over 1.1 x the sum in {more.mean():.0%} of rows; median interaction "
          f"{rows['interaction'].median():.2f}; nothing alone (under 1%) in {pure.mean():.1%}")

# %% [markdown]
# <details><summary>What you see</summary>
#
# In SmolLM2 most dots lie a little above the line. The joint loss is more than 1.1 times the sum in 82% of the rows, and single ablations miss 15% of it (median). No row loses nothing alone. In mini-llama 2.9% of the rows do: the stripe on the vertical axis, self-repair at its purest. Orange are the 5% with the largest interaction.
# </details>
#
# ## Is it the repetition? A control
# If repair comes from a second copy of the information, it must be strong where both positions hold the **same word**. It must be weak for a **lone** position, where the second contribution is under 3% of the first: no other position can take over. **Predict** the order of the three kinds, and whether repeated prompts matter.

# %%
PROMPTS = {"ioi": {}, "ioi_twice": {}, "induction": {"times": 3}}
found, tables = [], {}
for name, each in models.items():
    for kind, options in PROMPTS.items():
        prompts = getattr(gimkit.tasks, kind)(each, n=6, seed=0, **options)
        rows = gimkit.self_repair(each, prompts, remote=REMOTE).frame()
        kinds = pandas.Series("other words", rows.index).mask(rows["contribution_j"] < 0.03 * rows["contribution_i"], "lone")
        rows["kind"] = kinds.mask(same_word(prompts, rows), "same word")
        tables[name, kind] = rows
        found += [(name, kind, group, *interval(part, len(prompts))) for group, part in rows.groupby("kind")]
found = pandas.DataFrame(found, columns=["model", "prompts", "kind", "median", "low", "high"])

# %%
figure, axes = pyplot.subplots(1, 2, figsize=(11, 2.8), sharex=True, sharey=True, layout="constrained")
for ax, (name, part) in zip(axes, found.groupby("model", sort=False)):
    for step, (group, colour) in enumerate((("lone", GREY), ("other words", DARK), ("same word", BLUE))):
        own = part[part["kind"] == group].set_index("prompts").loc[list(PROMPTS)]
        spread = numpy.maximum([own["median"] - own["low"], own["high"] - own["median"]], 0)
        ax.errorbar(own["median"], numpy.arange(3) + 0.2 * (step - 1), xerr=spread, fmt="o", color=colour, label=group)
    ax.set(title=name, xlabel="median interaction, 95% interval over prompts", xlim=(-0.05, 1.05))
axes[0].set_yticks(range(3), PROMPTS)
legend = axes[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

# %% [markdown]
# <details><summary>What you see</summary>
#
# mini-llama does what the explanation says: a second copy repairs nearly everything, a lone position hardly anything. In SmolLM2 the three kinds hardly differ (.05 to .11, .12 to .14, .12 to .19), and prompts that name people twice change little. Its repair is what any softmax with several useful positions does; notebook 07 has random weights as the control.
# </details>
#
# ## What the gradient sees
# A useful score ranks rows by their joint loss. Spearman's correlation with d12: of the gradient summed over both scores, of the same at softmax temperature 2 (GIM's rule), and of d1 + d2, two exact ablations a row. **Predict** the best.

# %%
ranks = pandas.DataFrame({f"{name}, {kind}": {
    "gradient": spearmanr(rows["gradient"], rows["d12"]).statistic, "temperature 2": spearmanr(rows["tsg"], rows["d12"]).statistic,
    "d1 + d2 (exact)": spearmanr(rows["d1"] + rows["d2"], rows["d12"]).statistic} for (name, kind), rows in tables.items()}).T
ax = ranks.plot.barh(figsize=(8, 3.4), color=[ORANGE, BLUE, DARK], width=0.75, xlim=(0, 1), xlabel="rank correlation with d12")
ax.invert_yaxis()
legend = ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

# %% [markdown]
# <details><summary>What you see</summary>
#
# Temperature 2 ranks the rows better than the plain gradient in all six cases: by .03 or .04 in SmolLM2, where little is repaired, and by about .3 in mini-llama. Two exact single ablations are better still.
# </details>

# %% [markdown]
# # Second half: heads
# Self-repair also names something larger: ablate a whole **head**, and later parts change what they write. It takes a run for each head: seconds on the bundled models, about a minute on SmolLM2. We *resample*: the head's output, at all positions, becomes that of the corrupt prompt. Two effects on the logit difference:
# - **direct**: the change of the head's output at the last position, through the final norm with its *clean* denominator and the unembedding; no other part changes.
# - **total**: the model runs on (notebook 04's exact patching).
#
# ### Exercise 2 · The direct effect (15 minutes, hard)
# Write it for mini-llama: `model.model.layers[layer].self_attn.o_proj`, `model.model.norm` (x / root mean square · weight) and `model.lm_head`.


# %%
def direct_effect(model, task, right, wrong, layer, head):
    """right, wrong: [n] answer ids. Return [n]: the direct effect, in logits, of resampling one head."""
    ...  # your code


checks.direct_effect(direct_effect, llama)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Trace `torch.cat([task.clean, task.corrupt])`; save `o_proj.input` and, for the clean rows, `model.model.norm.input`, both at `task.last`. A head owns `architecture_of(model).head_dim` columns of `o_proj.weight`.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# from gimkit.model.architecture import architecture_of
#
#
# def direct_effect(model, task, right, wrong, layer, head):
#     n, rows, width = len(task), torch.arange(2 * len(task)), architecture_of(model).head_dim
#     o_proj, norm, mine = model.model.layers[layer].self_attn.o_proj, model.model.norm, slice(head * width, (head + 1) * width)
#     with model.trace(input_ids=torch.cat([task.clean, task.corrupt]), use_cache=False):
#         z = o_proj.input[rows, task.last.repeat(2)].save()
#         x = norm.input[rows[:n], task.last].save()
#     change = (z[:n, mine] - z[n:, mine]) @ o_proj.weight[:, mine].T
#     scale = (x.pow(2).mean(-1, keepdim=True) + architecture_of(model).norms[-1].eps).sqrt()
#     return (change / scale * norm.weight * (model.lm_head.weight[right] - model.lm_head.weight[wrong])).sum(-1)
# ```
# </details>

# %% [markdown]
# ## Direct against total
# `gimkit.selfrepair.head_repair` does it for every head. Both bundled models can continue a sequence of words given three times. Below the dashed line the rest of the model makes up for a lost head; above it the head works through later parts. **Predict:** in which model do later heads help?

# %%
def repair_on(name):
    each = gimkit.load(name)
    return gimkit.selfrepair.head_repair(each, gimkit.tasks.induction(each, n=16, seed=0, times=3), remote=REMOTE)


heads = {name: repair_on(name) for name in ("mini-llama", "mini-gpt2")}
figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
for (name, repair), ax in zip(heads.items(), axes):
    direct_against_total(repair, ax=ax)
    ax.set_title(f"{name}, ablated heads on induction")

# %% [markdown]
# <details><summary>What you see</summary>
#
# In mini-gpt2: the dots of a2.h0, a2.h3 and a3.h2 lie below the line. In mini-llama no head does by more than a little. Heads of layer 0 are far above it in both: they work through later parts.
# </details>
#
# ## Which parts compensate?
# direct - total is **repaired**: positive where the rest makes up for a loss. It is the exact sum of the compensations. A later head or MLP compensates by what it writes *more* for the right word than before; the final norm, by dividing the changed stream by another number.

# %%
figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.4), sharex=True, layout="constrained")
for (name, repair), ax in zip(heads.items(), axes):
    table = repair.frame().set_index("ablated")
    best = table.loc[table["direct"] > 0.4, "repaired"].idxmax()
    head_compensation(repair, best, ax=ax)
    direct, total, low, high = table.loc[best, ["direct", "total", "low", "high"]]
    ax.set_title(f"{name}, {best} ablated: direct {direct:.2f}, total {total:.2f}")
    print(f"{name:10} {best}: repaired {direct - total:+.2f} [{low:+.2f}, {high:+.2f}]")

# %%
rows = gimkit.self_repair(gimkit.load("mini-gpt2"), gimkit.tasks.induction(gimkit.load("mini-gpt2"), n=6, times=3))
repair_explorer(rows, heads["mini-gpt2"])  # choose a layer and a head; needs a running kernel

# %% [markdown]
# <details><summary>What happened</summary>
#
# On mini-gpt2 a head may lose its whole direct effect and the answer hardly suffers, since several later heads write more than before. McGrath et al. call this the **Hydra effect**. Exact patching of one head (notebook 04) would call it unimportant. On mini-llama the same prompts show nothing of the kind; there the little that is made up for is the norm's.
# </details>
#
# ## A real model
# The same in SmolLM2, on IOI: two names, and the right one follows. A *name mover* is a head that copies the right name to the answer. **Predict:** when the strongest name mover is ablated, what does the answer lose? The figure is recorded: `python -m figures head-repair --model smollm2-135m -n 4` drew it.

# %%
RECOMPUTE = False  # True: each head of MODEL is ablated again; the 270 of SmolLM2 take about a minute
if RECOMPUTE:
    repair = gimkit.selfrepair.head_repair(model, gimkit.tasks.ioi(model, n=4, seed=0), remote=REMOTE)
    ax = direct_against_total(repair)
Image("../figures/head-repair-smollm2-135m.png", width=950)

# %% [markdown]
# <details><summary>What you see</summary>
#
# The name mover a23.h0 writes 1.64 logits straight to the answer, a23.h2 writes 1.49, and the answer loses nothing: -0.01 and -0.04. One later head makes up for nearly all of it. a24.h4 writes *against* the answer, and without the name mover it does so by 1.35 less. Others, such as a29.h1, lie on the line: nothing replaces them. a20.h0 lies far above it: it writes nothing to the answer, but heads that do depend on it. Four prompts: repaired is 1.65 for a23.h0, interval 0.74 to 3.33.
# </details>
#
# ## A control: nothing may compensate
# ### Exercise 3 · Hold everyone (15 minutes, medium)
# The gap must close when no part can compensate. Ablate a head, and give every later head and MLP (its own layer's MLP, too) its *clean* output back. What is left must be the direct effect with the norm live.


# %%
def no_compensation(model, task, right, wrong, layer, head):
    """right, wrong: [n] answer ids. Return [n]: the effect, in logits, of resampling a head while all later parts are held."""
    ...  # your code


checks.no_compensation(no_compensation, llama)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Trace `torch.cat([task.clean, task.corrupt, task.clean])`; walk through `model.model.layers` in order. The third group's `o_proj.input` gets the corrupt columns of one head in its layer, the clean group's input in later layers; `block.mlp.output` likewise from its layer on.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# from gimkit.model.architecture import architecture_of
#
#
# def no_compensation(model, task, right, wrong, layer, head):
#     n, width = len(task), architecture_of(model).head_dim
#     rows, mine, blocks = torch.arange(n), slice(head * width, (head + 1) * width), list(enumerate(model.model.layers))
#     with model.trace(input_ids=torch.cat([task.clean, task.corrupt, task.clean]), use_cache=False):
#         for i, block in blocks:
#             z = block.self_attn.o_proj.input.clone()
#             if i == layer:
#                 z[2 * n:, :, mine] = z[n:2 * n, :, mine]
#             if i > layer:
#                 z[2 * n:] = z[:n]
#             block.self_attn.o_proj.input = z
#             m = block.mlp.output.clone()
#             if i >= layer:
#                 m[2 * n:] = m[:n]
#             block.mlp.output = m
#         logits = model.output.logits.unflatten(0, (3, n))[:, rows, task.last]
#         difference = (logits[:, rows, right] - logits[:, rows, wrong]).save()
#     return difference[0] - difference[2]
# ```
# </details>

# %% [markdown]
# A second control: where the corrupt prompt *is* the clean one, nothing may have an effect.

# %%
few = gimkit.tasks.ioi(llama, n=4, seed=0)
nothing = gimkit.selfrepair.head_repair(llama, dataclasses.replace(few, corrupt=few.clean), remote=REMOTE)
assert nothing.effects.abs().max() < 1e-3 and nothing.compensation.abs().max() < 1e-3
print(f"largest effect when nothing is changed: {float(nothing.effects.abs().max()):.1e} logits")

# %% [markdown]
# ## What this does not show
# - **A row's output is not the answer.** d12 counts what a row writes, read by a later part or not.
# - **Threshold 1 is in units of a squared head output,** which differ from model to model. Shares of rows do not compare models.
# - **Repaired is bookkeeping at the last position, no mechanism.** The norm rescales for any lost piece, not for this head.
# - **Resampling measures a pair of prompts.** Another corrupt prompt ablates something else.
# - **Few prompts:** six of each kind for rows, four for the heads of SmolLM2.
#
# Next: **04 · Who did it?** Sources: rows: GIM, [arXiv 2505.17630](https://arxiv.org/abs/2505.17630); heads: the Hydra effect, [arXiv 2307.15771](https://arxiv.org/abs/2307.15771), Rushing and Nanda, [arXiv 2402.15390](https://arxiv.org/abs/2402.15390), and IOI's backup heads, [arXiv 2211.00593](https://arxiv.org/abs/2211.00593).
