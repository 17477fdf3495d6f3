# %% [markdown]
# # 06 · Circuits in parameter space
#
# ![Gradients of samples, a few directions, and the gradients rebuilt](pictures/l3d.svg)
#
# **Claim: what a training sample requires of a small network's parameters is a sum of few directions, and L3D finds them without being told what the circuits are.**
#
# - Whether a direction is a circuit must be shown by moving along it, beside a random direction.
# - In a language model's attention some directions single out a task, others do not.
#
# You need: 00. Runs on: a toy that is trained here, then one block of a bundled model; no network. The cells take about two minutes; with the two exercises plan 45. Words: [glossary](GLOSSARY.md).

# %%
MODEL = "mini-gpt2"  # bundled; or "mini-llama", "smollm2-135m" (a real model), a hub id, a folder, an NDIF model
REMOTE = False

# %%
# setup
import pandas
import seaborn
import torch
from matplotlib import pyplot

import gimkit
from gimkit import l3d, plots
from gimkit.l3d import gradients, interventions, language, recovery
from gimkit.model.architecture import architecture_of
from gimkit.notebook import checks
from gimkit.statistics import auroc

torch.manual_seed(0)
torch.set_num_threads(1)  # toys are tiny
seaborn.set_style("whitegrid")

# %% [markdown]
# ## A toy with known circuits
# Five inputs, two hidden units, five outputs: ReLU(W_out W_in x + b), trained to copy its input. Inputs are rarely active (5% each), so five can share two units: *superposition*. It has five circuits, one per input. (The full runs train toys for 200 epochs, this one for 30.) **Predict:** in which directions do the five rows of W_in point?

# %%
toy = l3d.toys.train("tms", seeds=[0], epochs=30)[0]
x = toy.inputs(1000)
print(f"mean squared error {toy.loss:.4f}")
for i, row in enumerate(toy.module.W_in):
    print(f"input {i}: norm {row.norm():.2f}, {torch.rad2deg(torch.atan2(row[1], row[0])):4.0f} degrees")

# %% [markdown]
# <details><summary>What happened</summary>
#
# 72 degrees apart, like the corners of a pentagon: as far from each other as five directions in a plane can be.
# </details>
#
# ## What one sample requires of the parameters
# Take a sample and the output of another, random one: the *reference*. Which change of the parameters would move the sample's output towards the reference? The gradient of their distance, at the trained weights. **Predict:** only input 2 is active. Which rows of W_in have a gradient? Which columns of W_out?

# %%
parameters = gradients.chosen_parameters(toy.module)
references = toy.module(x)
one = gradients.per_sample_gradients(toy.module, parameters, (toy.only(2, 1),), references[:1])
for name, part in zip(parameters, one):
    print(name)
    print(part[0].round(decimals=2).numpy() + 0.0)

# %% [markdown]
# <details><summary>What happened</summary>
#
# Everything is zero but what leads from input 2 to outputs that are on.
# </details>
#
# Samples of one circuit have gradients in nearly the same direction of the 25-dimensional parameter space; different circuits, in different ones.
#
# ## The method
# L3D (arXiv 2504.00194) takes a batch of such gradients g and two matrices. $V_{in}$ gives each of v *subnetworks* a coefficient, h = $V_{in}$ g. Of all coefficients in the batch only the share k with the largest |h| stays; $V_{out}$ turns them back into parameters. Both are trained until |g - ĝ| / |g| is small. A row of $V_{out}$ is a direction in parameter space: a subnetwork.
#
# ### Exercise 1 · The sparse reconstruction (10 minutes, easy)


# %%
def sparse_reconstruction(gradients, v_in, v_out, k):
    """gradients: [b, p], v_in, v_out: [v, p]. Keep the int(k b v) largest |h| of the batch; return [b, p]."""
    ...  # your code


checks.sparse_reconstruction(sparse_reconstruction)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `h.abs().flatten().topk(count).values[-1]` is the smallest |h| that may stay.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def sparse_reconstruction(gradients, v_in, v_out, k):
#     h = gradients @ v_in.T
#     smallest = h.abs().flatten().topk(int(k * h.numel())).values[-1]
#     return (h * (h.abs() >= smallest)) @ v_out
# ```
# </details>

# %% [markdown]
# ## Five subnetworks
# The library keeps every row of both matrices at low rank and never writes them out: a Tucker decomposition for each parameter tensor, here of rank 1. 60 epochs instead of the paper's 1000. **Predict:** what does each of five subnetworks read, if there are five circuits? And if there were only three subnetworks?

# %%
found = l3d.decompose(toy.module, x, n=5, epochs=60, every=6, seed=2)
print(found)
new = l3d.activity(found, toy.module, toy.inputs(1000, seed=1))
print(f"on new samples: |g - g^| / |g| = {new.norm:.3f}, its square {new.squared:.3f}")

# %%
figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
reads = plots.reads(found, "W_in")
plots.reading_grid(reads, [str(i) for i in range(5)], "what W_in of each subnetwork reads", left)
left.set_ylabel("subnetwork")
part = torch.stack([found.subnetwork(i)["W_in"][int(reads[i].argmax())] for i in range(5)])
original = toy.module.W_in[reads.argmax(1)]
scale = (original * part).sum(1, keepdim=True) / part.square().sum(1, keepdim=True)
ax = plots.encoder_plane(toy.module.W_in.numpy(), (scale * part).numpy(), right)

# %% [markdown]
# <details><summary>What you see</summary>
#
# Each subnetwork reads one input. Three subnetworks (`n=3`) read inputs 1, 2 and 3, one each, and leave the other two out: the error's square rises from .19 to .51.
# </details>
#
# The paper reports an error of 19% here. That fits the *square* of |g - ĝ| / |g|, which its code computes, not the ratio in its text.
#
# ## Was it found, or does it only look so?
# To say so in a number we need the circuits' own directions. Samples in which nothing but input i is active have gradients along one direction. Which one?
#
# ### Exercise 2 · A planted direction (15 minutes, medium)


# %%
def planted_direction(gradients):
    """gradients: [n, p] of samples of one circuit. Return the unit vector [p] along which they mostly lie."""
    ...  # your code


checks.planted_direction(planted_direction)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The mean will not do: some references pull the output up, others down. The unit vector v with the largest sum of (g v)² is a singular vector.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def planted_direction(gradients):
#     return torch.linalg.svd(gradients, full_matrices=False).Vh[0]
# ```
# </details>
#
# **Bonus:** decompose the toy with `seed=1` and with `n=7`, and compare the cosines below.

# %% [markdown]
# `recovery.planted` does this for every circuit, `match_circuits` pairs circuits with subnetworks one to one, for the largest sum of |cosine|. **The control:** five random directions of the same rank, matched as generously. **Predict** their mean cosine; 25 dimensions are not many.

# %%
circuits = recovery.planted(toy)
cosines, which = recovery.match_circuits(found.decoder, circuits)
print("circuit -> subnetwork, |cosine|:", {i: (j, round(float(c), 3)) for i, (j, c) in enumerate(zip(which, cosines))})
print(f"mean {cosines.mean():.3f}; random directions {recovery.random_cosines(found, circuits).mean():.3f}")

# %% [markdown]
# <details><summary>What happened</summary>
#
# All five circuits are found, each with a cosine above .99. Random directions have .28 on average, as the best pairing is chosen for them too.
# </details>
#
# ## Move along it
# A circuit is more than a direction in which gradients lie. Changing it should change what it computes, and nothing else. f(x, W + δv) is the network moved by δ along a subnetwork v of norm 1. **Predict:** δ = 1 along the subnetwork of input 1. Which samples change? And along a random direction of the same norm?

# %%
direction, inputs = found.subnetwork(which[1]), toy.inputs(1000, seed=2)
deltas = torch.linspace(-3, 3, 25)
figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for ax, moved, title in ((axes[0], direction, "along the subnetwork"),
                         (axes[1], interventions.random_like(direction), "control: random direction")):
    change = interventions.change(toy.module, moved, 1.0, inputs)
    active = inputs[:, 1] != 0
    plots.change_scatter(inputs[:, 1].numpy(), change.numpy(), active.numpy(), ax, "input 1")
    ax.set(title=f"{title}: AUROC {auroc(change, active):.2f}", ylim=(0, 3))
swept = interventions.sweep(toy.module, direction, deltas, inputs)
ax = plots.sweep_lines(deltas.numpy(), swept.numpy(), 1, ax=axes[2])

# %%
table = interventions.intervention_table(toy, found)
table.groupby(["direction", "delta"])[["relevant", "irrelevant", "ratio", "auroc"]].mean().round(2)

# %% [markdown]
# <details><summary>What happened</summary>
#
# Along the subnetwork the samples with the input change 8 to 12 times as far as the others; along a random direction all change alike.
# </details>
#
# *AUROC*: the chance that a sample with the input changes more than one without it. Now all subnetworks, at every δ:

# %%
from gimkit.notebook.widgets import subnetwork_explorer

subnetwork_explorer(found, toy.module, inputs)  # two sliders; needs a running kernel

# %% [markdown]
# ## A real block
# Now a model that nobody built with five circuits: the attention of block 3, on last positions of eight tasks' prompts and on other positions. A sample is one position, the divergence is KL. For each kind of sample we take the subnetwork whose mean |h|, its *impact*, tells that kind from all others best, and judge it on *new* prompts.
#
# Two controls. *Shuffled* labels: the same choice and judgement on labels shuffled at random. *Untrained* directions: as many random ones of the same rank. The second is the harder one: if tasks differ in how large their gradients are, any direction will tell them apart. **Predict:** how well does the best of 16 random directions do? (16 subnetworks and 16 prompts a task here; the figure `l3d-attention` has 24 and 48.)

# %%
model = gimkit.load(MODEL)
number = min(3, len(architecture_of(model).blocks) - 1)
block, table = language.attention_run(model, blocks=[number], prompts=16, n=16, epochs=12, every=4, rate=0.01)
print(block)
print(f"on new prompts: |g - g^| / |g| = {table.norm[0]:.2f}, its square {table.squared[0]:.2f}")

# %%
# the full run, of mini-gpt2, from its csv: 24 subnetworks, 48 prompts, 30 epochs; made by `python -m figures l3d-attention`
full = pandas.read_csv("../figures/data/l3d-attention-mini-gpt2.csv")
figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), sharex=True, layout="constrained")
for ax, each, title in zip(axes, (table, full), ("this short run", "the full run")):
    plots.selection_dots(each, ax)
    ax.set_title(title)

# %% [markdown]
# <details><summary>What happened</summary>
#
# Shuffled labels give one half. Untrained directions do much better than that: a part of what looks like selection is only that tasks differ in the size of their gradients. What counts is the distance between blue and orange. A score below one half means that the block hardly matters for that task, so that every direction has less impact there than elsewhere.
# </details>
#
# **Training length decides.** In the short run IOI is not found: the best subnetwork (.48) is *worse* than the best untrained direction (.79). In the full run it is found: .92 against .78. Capitals, hypernymy and pronouns are found in both; agreement, induction and greater-than in neither.

# %% [markdown]
# ## What it cannot do
# - **It can miss a circuit.** Try `seed=1` above: one circuit is left out, and no number but the cosine tells. More subnetworks than circuits help (`n=7`).
# - **It explains a part.** In the real block most of the gradients' squared length is not rebuilt; the subnetworks are what repeats, not all that is there.
# - **The best of many is always good.** The subnetwork was chosen on some prompts and judged on new ones; its controls were chosen the same way.
# - **A direction is not a mechanism.** AUROC says that a subnetwork goes with a task; whether moving along it changes that task and no other is a further question, with its own control.
# - **Text and code of the paper differ** in the divergence and in the loss, and so in the numbers: `help(l3d.decompose)`, `python -m benchmarks.l3d_runs superposed`.
#
# Next: **07 · The papers' figures**. Sources: L3D, [arXiv 2504.00194](https://arxiv.org/abs/2504.00194); superposition, [arXiv 2209.10652](https://arxiv.org/abs/2209.10652).
