# %% [markdown]
# # 03 · Self-repair
#
# **Claim: attention repairs itself. Ablating one of a row's two main scores often costs it little, both a lot, most clearly where they belong to the same word; gradients side with the single ablations, and temperature 2 helps in part. Whole heads compensate for each other in one bundled model, where a sequence is repeated; in the other, what is made up for is the final norm's doing.**
#
# You need: 01, and a trace (00). Runs on: the bundled models, no network. The cells take half a minute; with the three exercises plan 45 minutes.

# %%
MODEL = "mini-gpt2"  # bundled; or a hub id, a folder, or an NDIF model
REMOTE = False

# %%
import dataclasses

import pandas
import seaborn
import torch
from matplotlib import pyplot
from scipy.stats import spearmanr

import gimkit
from gimkit.model.architecture import architecture_of
from gimkit.model.tokenizer import token_text
from gimkit.notebook import checks
from gimkit.plots.selfrepair import ablation_effect, direct_against_total, grad_vs_tsg, head_compensation
from gimkit.statistics import bootstrap

torch.manual_seed(0)
torch.set_num_threads(1)  # the models are small: threads would wait for each other
seaborn.set_style("whitegrid")
llama = gimkit.load("mini-llama")  # the text speaks of this one; its code is written out below
model = gimkit.load(MODEL)  # a second opinion, in the tables

# %% [markdown]
# ## One row
# Notebook 01 invented a row of scores. In a model, a head at one position (the *query*) gives each earlier position a score. Let z be the row's output, v_k the value at position k, and c_k = z · v_k what that position is *worth*. The contributions s_k c_k add up to o = z · z, the output in one number.
#
# `gimkit.self_repair` takes every row in which two contributions exceed a threshold (1, as in the GIM paper), ablates the two largest, each alone and both (score to the mean of its row), and notes what o loses: d1, d2, d12. First on IOI prompts that name both people twice.

# %%
task = gimkit.tasks.ioi_twice(llama, n=24, seed=0, names="held-out")
repair = gimkit.self_repair(llama, task, remote=REMOTE)
print(task[0].clean, "...", task[0].answer)
print(repair)

# %% [markdown]
# **Predict, then run.** Of the rows whose two positions hold the same word we take the one with the largest d12. What will d1 and d2 be? The cell reads its queries, keys and values where they reach the attention kernel, and repeats the ablations by hand.


# %%
def words_of(task, example):
    return [token_text(llama.tokenizer, token) for token in task.clean[example][task.mask[example]].tolist()]


def row_by_hand(ids, layer, head, query):
    """Scores and worths of one row, [query + 1] each."""
    attention = llama.get(architecture_of(llama).blocks[layer].attention)
    with llama.trace(input_ids=ids[None], use_cache=False, remote=REMOTE):
        source = attention.source
        call = source.node([name for name in source.names if name.startswith("attention_interface_")][-1])
        (_, q, k, v, *_), options = call.inputs
        group = q.shape[1] // k.shape[1]  # query heads that share a key head
        scores = (q[0, head, query] @ k[0, head // group, :query + 1].T * options["scaling"]).save()
        values = v[0, head // group, :query + 1].save()
    return scores, values @ (scores.softmax(-1) @ values)


def fall(scores, worths, *positions):
    lowered = scores.clone()
    lowered[list(positions)] = scores.mean()
    return float(scores.softmax(-1) @ worths - lowered.softmax(-1) @ worths)


rows = repair.frame()
ids = task.clean.numpy()
rows["same word"] = ids[rows["example"], rows["i"]] == ids[rows["example"], rows["j"]]
row = rows[rows["same word"]].sort_values("d12").iloc[-1]
example, layer, head, query, i, j = (int(row[name]) for name in ("example", "layer", "head", "query", "i", "j"))
words = words_of(task, example)
scores, worths = row_by_hand(task.clean[example], layer, head, query)
weights = scores.softmax(-1)
print(" ".join(words[:query + 1]))
print(f"a{layer}.h{head} at {words[query]!r}; of its output {weights @ worths:.0f},",
      ", ".join(f"{weights[k] * worths[k]:.0f} come from {words[k]!r} at {k}" for k in (i, j)))
by_hand = [fall(scores, worths, i), fall(scores, worths, j), fall(scores, worths, i, j)]
print("by hand      d1 {:8.3f}   d2 {:8.3f}   d12 {:8.3f}".format(*by_hand))
print(f"self_repair  d1 {row.d1:8.3f}   d2 {row.d2:8.3f}   d12 {row.d12:8.3f}   interaction {row.interaction:.3f}")

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
# With d the weight that a position loses, its effect is d (c - o) / (1 - d); for both, the numerators add up over 1 - d₁ - d₂: they share the denominator only.
# </details>

# %% [markdown]
# ## All rows
# **Predict:** on which side of the dashed diagonal do most rows lie, and do any lie on the vertical axis? Right: the gradient of o summed over both scores, and the same at softmax temperature 2, GIM's rule.

# %%
figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
ablation_effect(repair, ax=axes[0])
grad_vs_tsg(repair, ax=axes[1])
more = rows["d12"] > 1.1 * (rows["d1"] + rows["d2"])
print(f"joint effect over 1.1 x the sum: {more.mean():.0%} of rows")
stripe = rows[(rows["d12"] >= 100) & (rows[["d1", "d2"]].abs().max(axis=1) < 0.01 * rows["d12"])]
print(f"d12 of 100 or more, both single effects below 1% of it: {len(stripe)} rows, {(stripe['layer'] == 0).mean():.0%} "
      "of them in layer 0")

# %% [markdown]
# The stripe on the vertical axis is self-repair at its purest: nothing alone, all together. The second colour marks, as in the paper, the top 5% of the interaction (d12 - d1 - d2) / d12: above 1, where single effects are *negative*, so not the stripe.
#
# ## Is it the repetition? A control
# If repair comes from a second copy of the information, it must be strongest where both positions hold the **same word**, and weak where the second contribution is under 3% of the first: a **lone** position has no other position to take over (notebook 01's control had .16). `induction` gives a sequence of random words three times. **Predict** the order of the columns, and whether plain IOI differs from IOI with both people named twice.


# %%
def evidence(task, rows):
    """For each row: do its two positions hold the same word, or is one of them alone, or neither."""
    ids = task.clean.numpy()
    same = ids[rows["example"], rows["i"]] == ids[rows["example"], rows["j"]]
    lone = rows["contribution_j"] < 0.03 * rows["contribution_i"]
    return pandas.Series("other words", rows.index).mask(lone, "lone").mask(same, "same word")


def median_interaction(rows, examples):
    """Median over rows, its interval over prompts."""
    groups = {example: part["interaction"].to_numpy() for example, part in rows.groupby("example")}

    def statistic(index):
        return pandas.concat([pandas.Series(groups.get(k, ())) for k in index]).astype(float).median()

    return bootstrap(statistic, examples, resamples=100)


KINDS = ("same word", "other words", "lone")
PROMPTS = {"ioi": {}, "ioi_twice": {}, "induction": {"times": 3}}
found, tables = {}, {}
for name, suspect in (("mini-llama", llama), (MODEL, model)):
    for kind, options in PROMPTS.items():
        prompts = getattr(gimkit.tasks, kind)(suspect, n=24, seed=0, **options)
        table = gimkit.self_repair(suspect, prompts, remote=REMOTE).frame()
        table["evidence"] = evidence(prompts, table)
        tables[name, kind] = table
        found[name, kind] = {"rows": len(table)} | {
            group: f"{median_interaction(table[table['evidence'] == group], len(prompts))}" for group in KINDS} | {
            "all": f"{median_interaction(table, len(prompts))}"}
pandas.DataFrame(found).T

# %%
for kind in PROMPTS:
    medians = tables["mini-llama", kind].groupby("evidence")["interaction"].median()
    assert medians["lone"] < 0.25 < medians["other words"] < medians["same word"]
print("mini-llama: lone < other words < same word on every set of prompts, though hardly so on induction")

# %% [markdown]
# On mini-llama's IOI the same word repairs nearly all (median .97) and a lone position hardly; on induction the same word is no better than others. And repair needs no repeated prompts: naming both people twice moves the median over all rows from .34 to .38 only.
#
# ## What the gradient sees
# A useful score ranks rows by their joint loss. Spearman's correlation with d12 over the rows: of the gradient sum, of the same at temperature 2, and of d1 + d2, two exact ablations a row. **Predict** the best column. And on the stripe: does temperature 2 see what the gradient misses?

# %%
ranks = []
for (name, kind), table in tables.items():
    for group, part in [("all rows", table), ("same word", table[table["evidence"] == "same word"])]:
        summed = part["d1"] + part["d2"]
        ranks.append((name, kind, group, len(part), *(spearmanr(x, part["d12"]).statistic
                                                      for x in (part["gradient"], part["tsg"], summed))))
pandas.DataFrame(ranks, columns=["model", "prompts", "rows", "n", "gradient", "temperature 2", "d1 + d2"]).set_index(
    ["model", "prompts", "rows"]).round(2)

# %%
print("median slope per unit of joint effect; rows in the upper quarter of d12")
for (name, kind), table in tables.items():
    large = table[table["d12"] > table["d12"].quantile(0.75)]
    repaired = (large["d1"] + large["d2"]) / large["d12"]
    for where, part in (("stripe, sum < 5% of d12", large[repaired < 0.05]), ("others, sum > 50%", large[repaired > 0.5])):
        slopes = [(part[slope] / part["d12"]).median() for slope in ("gradient", "tsg")]
        print("{:10} {:9} {:24} n {:4}   gradient {:.5f}   temperature 2 {:.5f}".format(name, kind, where, len(part), *slopes))

# %% [markdown]
# On mini-llama, over all rows, temperature 2 ranks better than the plain gradient on each set, and exact single ablations better still. Among its same-word rows on IOI all three fail: the correlations are negative. On its IOI stripe the gradient sees nothing, temperature 2 about 1% of the loss: a help, no cure.
#
# ## From scores to heads
# Self-repair also names something larger: ablate a whole **head**, and later parts change what they write. We *resample*: the head's output, at all positions, becomes that of the corrupt prompt. Two effects on the logit difference:
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
# `gimkit.selfrepair.head_repair` does it for every head. **Predict:** where lies a head whose loss others make up for? And one that works *through* later parts?

# %%
cases = {kind: gimkit.selfrepair.head_repair(llama, getattr(gimkit.tasks, kind)(llama, n=16, seed=0, names="held-out"), remote=REMOTE)
         for kind in ("ioi", "ioi_twice")}
figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
for heads, ax in zip(cases.values(), axes):
    direct_against_total(heads, ax=ax)

# %% [markdown]
# ## Who answers?
# direct - total is **repaired**: positive where the rest makes up for a loss. It is the exact sum of the compensations: by how much each later head and MLP writes *more* for the right name than before, and the final norm, which divides the changed stream by another number. **Predict:** do later heads help, or do they miss the ablated head's information?


# %%
def answered(heads, least=0.5):
    """A line per head with a direct effect of at least `least` logits: what is repaired, and by whom."""
    table = heads.frame().set_index("ablated")
    by_kind = heads.compensation_frame().pivot_table(index="ablated", columns="kind", values="compensation", aggfunc="sum")
    table["repaired"] = [f"{row.repaired:+.2f} [{row.low:+.2f}, {row.high:+.2f}]" for row in table.itertuples()]
    by_kind = by_kind.reindex(columns=["head", "mlp", "norm"]).rename(
        columns={"head": "by later heads", "mlp": "by MLPs", "norm": "by final norm"})
    return table.loc[table["direct"].abs() >= least, ["direct", "total", "repaired"]].join(by_kind)


summary = pandas.concat({kind: answered(heads) for kind, heads in cases.items()}, names=["prompts"])
summary.round(2)

# %%
from gimkit.notebook.widgets import repair_explorer

figure, axes = pyplot.subplots(1, 2, figsize=(12, 3.4), layout="constrained")
for name, ax in zip(("a2.h3", "a4.h1"), axes):
    head_compensation(cases["ioi_twice"], name, ax=ax)
repair_explorer(repair, cases["ioi_twice"])  # choose a layer and a head; needs a running kernel

# %% [markdown]
# Wherever a head speaks for the right name, the final norm makes up for 2 to 47% of its direct effect. Later heads and MLPs mostly take something away: they had passed the head's information on. Only in the last layer does the norm outweigh them, so that the total is clearly below the direct effect. Layer 0 works through others alone.
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
#
# ## Two models
# Both can continue a sequence of words given three times. **Predict:** in which do later heads answer?

# %%
few = gimkit.tasks.ioi(llama, n=4, seed=0)
nothing = gimkit.selfrepair.head_repair(llama, dataclasses.replace(few, corrupt=few.clean), remote=REMOTE)
assert nothing.effects.abs().max() < 1e-3 and nothing.compensation.abs().max() < 1e-3
print(f"largest effect when nothing is changed: {float(nothing.effects.abs().max()):.1e} logits")
pair = {name: gimkit.selfrepair.head_repair(suspect, gimkit.tasks.induction(suspect, n=16, seed=0, times=3), remote=REMOTE)
        for name, suspect in (("mini-llama", llama), (MODEL, model))}
pandas.concat({name: answered(heads, least=0.4) for name, heads in pair.items()}, names=["model"]).round(2)

# %%
figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
heads = pair[MODEL]
table = heads.frame().set_index("ablated")
best = table["repaired"].idxmax()
direct_against_total(heads, ax=axes[0])
head_compensation(heads, best, ax=axes[1])
axes[0].set_title(f"{MODEL}, ablated heads on induction")
print(f"{MODEL} repairs {best} most: direct {table['direct'][best]:.2f}, total {table['total'][best]:.2f}, "
      f"repaired {table['repaired'][best]:.2f} [{table['low'][best]:.2f}, {table['high'][best]:.2f}]")

# %% [markdown]
# This is what McGrath et al. call the **Hydra effect**: on mini-gpt2 a head may lose its whole direct effect and the answer hardly suffers, since several later heads write more than before, and the norm has no part in it. Exact patching of one head (notebook 04) would call it unimportant. On mini-llama the same prompts show nothing of the kind.

# %% [markdown]
# ## What this does not show
# - **A row's output is not the answer.** d12 counts what a row writes, read or not; most of the stripe is in layer 0.
# - **Threshold 1 is in units of a squared head output;** mini-llama's are in the hundreds. Shares of rows do not compare models.
# - **Repaired is bookkeeping at the last position, no mechanism.** The norm rescales for any lost piece, not for this head.
# - **Resampling measures a pair of prompts.** Another corrupt prompt ablates something else.
# - **Two small models,** one training run each.
#
# Next: **04 · Who did it?** Sources: rows: GIM, [arXiv 2505.17630](https://arxiv.org/abs/2505.17630); heads: the Hydra effect, [arXiv 2307.15771](https://arxiv.org/abs/2307.15771), Rushing and Nanda, [arXiv 2402.15390](https://arxiv.org/abs/2402.15390), and IOI's backup heads, [arXiv 2211.00593](https://arxiv.org/abs/2211.00593).
