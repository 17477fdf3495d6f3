# %% [markdown]
# # 01 · When gradients lie
#
# ![Lowering one of two scores costs nothing, lowering both a lot; the gradient predicts nothing](pictures/saturation.svg)
#
# **Claim: where two attention scores carry the same information, the plain gradient misses both.**
#
# - Lowering either score costs nothing: the other takes over. Lowering both costs a lot.
# - A softmax gradient at temperature 2 sees the pair. It overshoots.
#
# You need: how softmax works, and `torch`. Runs on: five numbers, no model, no network. The cells take seconds; with the three exercises plan 30 minutes. Words: [glossary](GLOSSARY.md).

# %%
MODEL = "smollm2-135m"  # a real model; or "mini-gpt2", "mini-llama" (bundled), a hub id, a folder, an NDIF model
REMOTE = False

# %% [markdown]
# The switch above opens every notebook. This one needs no model and leaves it alone.

# %%
import pandas
import torch

from gimkit import plots
from gimkit.notebook import checks

# %% [markdown]
# ## One query, five positions
# A query attends to five positions. `scores` are its attention scores before the softmax; `values` say how much each position adds to the right answer, in logits. Positions 0 and 1 hold the same information: think of a name that was mentioned twice.

# %%
scores = torch.tensor([6.0, 6, 0, 0, 0])
values = torch.tensor([10.0, 10, 0, 0, 0])


def output(scores):
    return scores.softmax(-1) @ values


print("weights", [round(w, 4) for w in scores.softmax(-1).tolist()])
print(f"output  {output(scores):.3f} of at most 10")

# %% [markdown]
# **Predict, then run.** We ablate the score of position 0: it goes to the mean of its row. How far does the output fall? Write down a number first.

# %%
lowered = scores.clone()
lowered[0] = scores.mean()
print("weights", [round(w, 4) for w in lowered.softmax(-1).tolist()])
print(f"output  {output(lowered):.3f}, a fall of {output(scores) - output(lowered):.3f}")

# %% [markdown]
# <details><summary>Why</summary>
#
# Almost nothing: softmax weights add up to 1, so position 1 takes over what position 0 loses, and carries the same information. The attention **repaired itself**. A test of one score at a time would call both unimportant.
# </details>

# %% [markdown]
# ### Exercise 1 · One at a time, or both? (10 minutes, easy)
# Write the effects of lowering score `i`, score `j`, and both (each to the mean of the intact row), and their **interaction**: (joint - first - second) / joint. It is 0 when effects add up, and near 1 when only both together matter. Before you run the check: will the joint effect be about twice the single one?


# %%
def ablation_effects(scores, values, i, j):
    """Return (effect of i, effect of j, effect of both, interaction); an effect is output before minus after."""
    ...  # your code


checks.ablation_effects(ablation_effects)

# %% [markdown]
# <details><summary>Hint</summary>
#
# One inner function does for all three: it copies the scores, puts the positions it is given at `scores.mean()`, and subtracts the new output from the old one.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def ablation_effects(scores, values, i, j):
#     def fall(*positions):
#         lowered = scores.clone()
#         lowered[list(positions)] = scores.mean()
#         return scores.softmax(-1) @ values - lowered.softmax(-1) @ values
#
#     first, second, both = fall(i), fall(j), fall(i, j)
#     return first, second, both, (both - first - second) / both
# ```
# </details>

# %% [markdown]
# ## What the gradient says
# A gradient is a prediction: fall ≈ gradient × distance. **Predict:** for lowering *both* scores, will it predict nearer to the sum of the single effects, or to the joint one?

# %%
leaf = scores.clone().requires_grad_(True)
output(leaf).backward()
distance = scores - scores.mean()
print("gradient of each score   ", [round(g, 4) for g in leaf.grad.tolist()])
print(f"predicted fall, both lowered {(leaf.grad * distance)[:2].sum():.3f}")

# %% [markdown]
# <details><summary>Why</summary>
#
# The gradient is tiny because a softmax row near its limit is flat: with g = dL/dweights (here the `values`), its backward pass is dL/da = p (g - Σ p g). The mean Σ p g is already almost 10, and so is g.
# </details>
#
# **The temperature rule** keeps the forward pass and takes the same formula with p at a higher temperature: p_T = softmax(a / T). A warmer row is less saturated.

# %% [markdown]
# ### Exercise 2 · The softmax's backward pass at temperature T (10 minutes, medium)
# Write dL/da = p_T (g - Σ p_T g), with no further 1/T. Rows lie along the last axis. Autograd checks you: at T = 1 it must be the softmax's own gradient.


# %%
def softmax_backward(scores, g, temperature):
    """scores, g = dL/dweights: [..., keys]. Return dL/dscores under the temperature rule, same shape."""
    ...  # your code


checks.softmax_backward(softmax_backward)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `p = torch.softmax(scores / temperature, -1)`; the weighted mean of g needs `keepdim=True`.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def softmax_backward(scores, g, temperature):
#     p = torch.softmax(scores / temperature, -1)
#     return p * (g - (p * g).sum(-1, keepdim=True))
# ```
# </details>

# %% [markdown]
# ## The picture
# The same for this row by another route: autograd through 2 · softmax(a / 2) gives the rule's gradient at T = 2. Then the kit's picture. Left: both scores are lowered step by step. Right: what is true and what is predicted once they are at the mean.

# %%
leaf = scores.clone().requires_grad_(True)
(2 * (leaf / 2).softmax(-1) @ values).backward()
print("gradient at T = 2", [round(g, 4) for g in leaf.grad.tolist()])
effects = plots.saturation_effects(scores.tolist(), values.tolist(), temperature=2.0)
left, right = plots.saturation(effects)

# %% [markdown]
# Read the right side from top to bottom. Each single ablation sees next to nothing, both at once cost over a logit, and the plain gradient sides with the single ones. Temperature 2 sees the pair, and **overshoots**: the rule finds what matters, it does not measure it.
#
# Now move the scores and the temperature (this needs a running kernel). Try equal scores of 2, 4, 8, 16. At which does the plain gradient stop being useful?

# %%
from gimkit.notebook.widgets import saturation_explorer

saturation_explorer()

# %% [markdown]
# ## Controls: nothing should happen
# If the explanation is right, three things must *not* happen. **Predict each before you run.**
# 1. *One position has the information* (a = [6, 0, 0, 0, 0], only value 0 counts): no other position can take over. A single ablation must show the effect, and little interaction may be left.
# 2. *No saturation* (a = [1, 1, 0, 0, 0]): the plain gradient must be about right.
# 3. *No information in the attention* (all values 10): every effect and every gradient must be zero, at temperature 2 too. A rule that sees something here would be making it up.


# %%
def summary(scores, values, temperature=2.0):
    table = plots.saturation_effects(scores, values, temperature).query("share == 1")
    at = table.set_index(["by", "lowered"])["effect"]
    joint, single = at["truth", "both"], at["sum of single", "both"]
    interaction = (joint - single) / joint if abs(joint) > 1e-9 else 0.0
    return {"first alone": at["truth", "first"], "both": joint, "interaction": interaction,
            "gradient": at["gradient", "both"], f"T = {temperature:g}": at[f"gradient, T = {temperature:g}", "both"]}


# %%
controls = pandas.DataFrame({
    "two positions, same information": summary([6, 6, 0, 0, 0], [10, 10, 0, 0, 0]),
    "1. one position": summary([6, 0, 0, 0, 0], [10, 0, 0, 0, 0]),
    "2. no saturation": summary([1, 1, 0, 0, 0], [10, 10, 0, 0, 0]),
    "3. no information": summary([6, 6, 0, 0, 0], [10, 10, 10, 10, 10]),
}).T
controls.round(3) + 0.0

# %% [markdown]
# <details><summary>What happened</summary>
#
# Look at control 1 again: the interaction is nearly gone, and yet the plain gradient still misses most of the effect. So there are **two** lies. Self-repair fools single ablations; saturation fools the gradient, with or without a second position. Temperature works against the second.
# </details>

# %%
one, none = controls.loc["1. one position"], controls.loc["3. no information"]
assert one["interaction"] < 0.2 and one["first alone"] > 5
assert abs(controls.loc["2. no saturation", "gradient"] / controls.loc["2. no saturation", "both"] - 1) < 0.1
assert abs(none[["both", "gradient", "T = 2"]]).max() < 1e-5
print(f"gradient / truth with one position: {one['gradient'] / one['first alone']:.0%}")

# %% [markdown]
# ### Exercise 3 · Hide from the gradient (5 minutes, easy)
# The values stay [10, 10, 0, 0, 0]. Choose five scores for which lowering both of the first two costs at least 0.1 logits, and the plain gradient predicts less than 1% of it. Raising the scores too far fails too: why?

# %%
my_scores = ...  # your five scores

checks.hidden_from_the_gradient(my_scores)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Keep the last three at 0 and try equal scores between 8 and 16. The check says which of the two conditions fails.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# my_scores = [11.5, 11.5, 0, 0, 0]
# ```
#
# The gradient shrinks like exp(-score). The true effect shrinks more slowly, since ablation puts the two scores at the mean; but beyond a score of about 12 that mean itself keeps the last three positions out.
# </details>
#
# **Bonus:** hide from temperature 2 as well: which scores make both gradients predict less than 1% of the joint effect?

# %% [markdown]
# ## What temperature cannot do
# Predicted over true joint effect, for growing scores of the first two positions; on the dashed line a prediction is right.

# %%
ratios = {}
for size in (0.5, 1, 2, 4, 6, 8, 10, 12):
    for t in (1.0, 2.0, 4.0):
        found = summary([size, size, 0, 0, 0], [10, 10, 0, 0, 0], t)
        ratios.setdefault(f"T = {t:g}", {})[size] = found[f"T = {t:g}"] / found["both"]
ratios = pandas.DataFrame(ratios).rename_axis("score")
ax = ratios.plot(logy=True, marker="o", ylabel="predicted / true", figsize=(7, 3.2),
                 color=[plots.ORANGE, plots.BLUE, plots.GREY])
line = ax.axhline(1, color=plots.DARK, linestyle="--", linewidth=0.9)

# %%
off_by = pandas.concat([ratios, 1 / ratios]).groupby(level=0).max().max()
print("worst factor   ", ", ".join(f"{name}: {factor:.1f}" for name, factor in off_by.items()))
closer = (ratios["T = 1"] - 1).abs() < (ratios["T = 2"] - 1).abs()
print("plain gradient (T = 1) closer in logits than T = 2 at scores", [float(size) for size in ratios.index[closer]])
single = summary([6, 6, 0, 0, 0], [10, 10, 0, 0, 0])
print(f"T = 2 predicts {single['T = 2'] / 2:.2f} for score 0 alone; the true single effect is {single['first alone']:.3f}")

# %% [markdown]
# - **It is no estimate in logits.** Where the row saturates, T = 2 says about twice the truth, T = 4 far more. Counted as a factor it beats the plain gradient by far; counted in logits, "almost nothing" is sometimes closer than "twice as much". Trust its ranking, not its size.
# - **Where nothing saturates there is nothing to gain,** and a high temperature makes it worse.
# - **It answers "does this score matter, alone or with others?"** If you ask what one score does alone, self-repair included, it is wrong by far, and ablation is right.
# - Five numbers prove nothing about models. Notebook 03 looks for self-repair in one.
#
# Next: **02 · The rules** puts the temperature, and three more rules, into a model whose forward pass stays the same, bit for bit.
#
# Source of the rule and of the measurement: GIM, [arXiv 2505.17630](https://arxiv.org/abs/2505.17630).
