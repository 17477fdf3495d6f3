# %% [markdown]
# # 04 · Who did it?
#
# **Claim: one backward pass finds the heads and MLPs that exact patching finds. It gets their sizes wrong; freezing the norms repairs much of that, and the rest of GIM sometimes helps and sometimes harms. Only an exact measurement shows which.**
#
# You need: 02, and a trace (00). Runs on: the bundled models, no network. The cells take about a minute; with the three exercises plan an hour.

# %%
MODEL = "mini-gpt2"  # bundled; or a hub id, a folder, or an NDIF model
REMOTE = False

# %%
import sys

import numpy
import pandas
import seaborn
import torch
from IPython.display import display
from matplotlib import pyplot
from scipy.stats import spearmanr

sys.path.append("..")  # benchmarks/ and figures/ lie beside notebooks/
import gimkit
from benchmarks.shapley_tokens import measure, summarise
from gimkit import plots
from gimkit.circuits import NodeScores
from gimkit.model.architecture import architecture_of
from gimkit.model.tokenizer import baseline_token, token_text
from gimkit.notebook import checks
from gimkit.statistics import bootstrap
from gimkit.tokens import TokenScores

torch.manual_seed(0)
torch.set_num_threads(1)  # the models are small: threads would wait for each other
seaborn.set_style("whitegrid")
model = gimkit.load(MODEL)
llama = gimkit.load("mini-llama")  # a second opinion
task = gimkit.tasks.ioi(model, n=48, seed=0, names="held-out")

# %% [markdown]
# ## The case
# Two people; one acts; who receives? *Indirect object identification*, IOI. In the corrupt prompt one name is exchanged, so that the other name is right. The measure is the **logit difference**: the clean prompt's right name minus its wrong one. **Predict:** its mean on the clean prompts, and its sign on the corrupt ones.



# %%
def answers(task):
    """Right and wrong answer ids, [n] each."""
    return [torch.tensor([ids[0] for ids in side]) for side in (task.good, task.bad)]


def logit_difference(model, ids, task):
    """Right minus wrong logit behind each row of ids, [n]."""
    rows, (right, wrong) = torch.arange(len(task)), answers(task)
    with model.trace(input_ids=ids, use_cache=False, remote=REMOTE):
        logits = model.output.logits[rows, task.last]
        difference = (logits[rows, right] - logits[rows, wrong]).save()
    return difference


pair = task[0]
clean, corrupt = (logit_difference(model, ids, task) for ids in (task.clean, task.corrupt))
print(f"clean    {pair.clean} ... {pair.answer}, not {pair.wrong}")
print(f"corrupt  {pair.corrupt}")
print(f"right in {int((clean > 0).sum())} of {len(task)}")
print(f"mean logit difference {clean.mean():+.2f}, on corrupt prompts {corrupt.mean():+.2f}")

# %% [markdown]
# ## Which words?
# The exact question for one word: put the neutral token in its place and run again. The bundled models met their neutral token, `<blank>`, in training. This **leave-one-out** takes a run per word. The others predict it: `gradient` and `gim` from one backward pass, (embedding - neutral embedding) · gradient; `ig` from 20 passes on the way between the two embeddings. **Predict:** which words get the largest bars of leave-one-out? And which sign has the *first* mention of the wrong name?


# %%
def leave_one_out(model, task, i):
    """TokenScores of prompt i: by how much the logit difference falls when a token becomes the neutral one."""
    ids = task.clean[i][task.mask[i]]
    rows = ids.repeat(len(ids) + 1, 1)
    rows.fill_diagonal_(baseline_token(model.tokenizer))  # row i lacks token i; the last row is intact
    with model.trace(input_ids=rows, use_cache=False, remote=REMOTE):
        logits = model.output.logits[:, -1]
        difference = (logits[:, task.good[i][0]] - logits[:, task.bad[i][0]]).save()
    words = tuple(token_text(model.tokenizer, token) for token in ids.tolist())
    return TokenScores(words, difference[-1] - difference[:-1], f"{task[i].answer} - {task[i].wrong}", "leave-one-out")


def words_by(model, task, i, method):
    """TokenScores of prompt i by one of gimkit's methods."""
    return gimkit.attribute(model, task[i].clean, (task[i].answer, task[i].wrong), method=method, remote=REMOTE)


words = [leave_one_out(model, task, 0), *(words_by(model, task, 0, method) for method in ("gim", "ig", "gradient"))]
figure, axes = pyplot.subplots(2, 2, figsize=(13, 6.4), sharex=True, layout="constrained")
for scores, ax in zip(words, axes.flat):
    plots.token_bars(scores, ax=ax)

# %%
from gimkit.notebook.widgets import token_tabs

token_tabs(words)  # a tab per method, the score under the pointer; needs a running kernel

# %% [markdown]
# The plain gradient hardly sees the right name. GIM calls the wrong name's first mention evidence against; taking it away says otherwise, for then no one is named twice.
#
# One prompt is an anecdote. On 16 prompts and both models: the rank correlation of each prompt's scores with leave-one-out, its mean, and a bootstrap interval over prompts. **Predict** the order of the columns.


# %%
def agreement(model, task, methods, prompts=16):
    """Per method the mean rank correlation with leave-one-out, with its interval over prompts."""
    truth = [leave_one_out(model, task, i).scores for i in range(prompts)]
    found = {}
    for method in methods:
        each = numpy.array([spearmanr(words_by(model, task, i, method).scores, truth[i]).statistic
                            for i in range(prompts)])
        found[method] = bootstrap(lambda index, each=each: each[index].mean(), prompts)
    return found


llama_task = gimkit.tasks.ioi(llama, n=48, seed=0, names="held-out")
METHODS = ("gradient", "freeze", "gim", "ig")
display(pandas.DataFrame({MODEL: agreement(model, task, METHODS), "mini-llama": agreement(llama, llama_task, METHODS)}).T[
    list(METHODS)].map(str))
tokens = summarise(measure("mini-llama", ("ioi", "redundant, twice"), (*METHODS[::2], "leave-one-out", "ig-20"), n=4, seeds=[0]))
tokens.assign(pearson=[f"{r.pearson:.2f} [{r.pearson_low:.2f}, {r.pearson_high:.2f}]" for r in tokens.itertuples()]).pivot(
    index="set", columns="method", values="pearson")

# %% [markdown]
# `freeze` is GIM's norm rule alone. Nothing comes near, the plain gradient least. In part this is the question's fault: with a blank for the last word the prompt no longer calls for a name, which no straight line predicts. And where two words say the same, leave-one-out calls both unimportant (notebook 01).
#
# The second table compares with a truth that includes interactions, **Shapley values** over all subsets of up to twelve tokens (`gimkit.tokens.shapley`; Pearson, mini-llama, four prompts a set). On plain IOI all but the gradient do well. Where both people are named twice, leave-one-out sees nothing, and one GIM pass leads 20 passes of `ig`. All results: `benchmarks/README.md`.
#
# ## Which heads?
# **Exact patching** measures one head: what if it alone had read the corrupt prompt? Its output, at all positions, is replaced by the one from the corrupt run. What the logit difference loses is the head's effect. `share` below goes only part of the way; we shall need it.


# %%
def patch_head(model, task, layer, head, share=1.0):
    """Logit differences [n] with one head's output moved from its clean to its corrupt value by a share."""
    parts, n, rows, (right, wrong) = architecture_of(model), len(task), torch.arange(len(task)), answers(task)
    path, heads = parts.blocks[layer].output, parts.n_heads
    with model.trace(input_ids=torch.cat([task.clean, task.corrupt]), use_cache=False, remote=REMOTE):
        z = model.get(path).input.clone()  # all heads side by side, [2n, seq, heads * width]
        one = z.unflatten(-1, (heads, -1))[:, :, head]
        one[:n] += share * (one[n:] - one[:n])
        model.get(path).input = z
        logits = model.output.logits[rows, task.last]
        difference = (logits[rows, right] - logits[rows, wrong]).save()
    return difference


exact = gimkit.score_nodes(model, task, method="exact", remote=REMOTE)
effects = exact.frame().query("kind == 'head'").sort_values("score", key=abs, ascending=False)
strongest = effects.iloc[0]
by_hand = (clean - patch_head(model, task, strongest.layer, strongest["head"])).mean()
print(f"strongest head {strongest.node}: by hand {by_hand:+.4f}, score_nodes(method='exact') {strongest.score:+.4f}")

# %% [markdown]
# ### Exercise 1 · Foretell a patch (15 minutes, hard)
# **Attribution patching** predicts the effect of every part from one pass: (clean - corrupt output) · gradient of the logit difference at the clean output, summed over positions. Write it for one module. Given `gimkit.apply(model)` instead of the model, the same function must return GIM's score.


# %%
def attribution_patching(model, module, task, right, wrong):
    """right, wrong: [n] answer ids. Return [n]: (clean - corrupt output of the module) . gradient at its clean one."""
    ...  # your code


checks.attribution_patching(attribution_patching, model)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Trace `torch.cat([task.clean, task.corrupt])` as above. A loaded model's weights take no gradients, so make a leaf: `output = module.output.detach().requires_grad_(True)`, then assign it back. `torch.autograd.grad(difference.sum(), output)[0]` has 2n rows; the first n are the clean ones.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def attribution_patching(model, module, task, right, wrong):
#     n, rows = len(task), torch.arange(len(task))
#     with model.trace(input_ids=torch.cat([task.clean, task.corrupt]), use_cache=False):
#         output = module.output.detach().requires_grad_(True)
#         module.output = output
#         logits = model.output.logits[rows, task.last]
#         difference = logits[rows, right] - logits[rows, wrong]
#         gradient = torch.autograd.grad(difference.sum(), output)[0]
#         scores = ((output[:n] - output[n:]) * gradient[:n]).sum((1, 2)).detach().save()
#     return scores
# ```
# </details>

# %% [markdown]
# ## The map
# `score_nodes` does this for every head and MLP at once. Left the exact effects, then two estimates, each on its own colour scale. **Predict:** will GIM's numbers be larger or smaller than the gradient's? (It halves what passes through a product.)

# %%
figure, axes = pyplot.subplots(1, 3, figsize=(15, 3.6), layout="constrained")
estimates = {method: gimkit.score_nodes(model, task, method=method, remote=REMOTE)
             for method in ("gradient", "freeze", "relp", "gim")}
for scores, ax in zip((exact, estimates["gradient"], estimates["gim"]), axes):
    plots.node_grid(scores, ax=ax)

# %%
from gimkit.notebook.widgets import node_explorer

node_explorer([exact, *estimates.values()])  # choose a method; needs a running kernel

# %% [markdown]
# ### Exercise 2 · Rank correlation (10 minutes, easy)
# Do two methods agree on the *order*? Spearman's correlation is Pearson's, of ranks. Write it without scipy. Equal values share the mean of the ranks they take up.


# %%
def spearman(a, b):
    """a, b: [n]. Return Pearson's correlation of the ranks of a and b."""
    ...  # your code


checks.spearman(spearman)

# %% [markdown]
# <details><summary>Hint</summary>
#
# A value's rank is the number of values below it, plus half the number of others equal to it. `a[:, None] > a` compares all with all.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def spearman(a, b):
#     def centred_ranks(x):
#         ranks = (x[:, None] > x).double().sum(1) + (x[:, None] == x).double().sum(1) / 2
#         return ranks - ranks.mean()
#
#     a, b = centred_ranks(a), centred_ranks(b)
#     return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()
# ```
# </details>

# %% [markdown]
# ### Exercise 3 · How sure? (10 minutes, medium)
# Other prompts would give another number. The **bootstrap** plays "other prompts": draw as many examples as there are, with replacement; average each method's scores over them; correlate; repeat. The middle 95% are the interval.


# %%
def bootstrap_interval(correlate, a, b):
    """a, b: [examples, nodes], two methods' scores; correlate(x, y): of two [nodes]. Return (low, high)."""
    ...  # your code


checks.bootstrap_interval(bootstrap_interval)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `torch.randint(n, (n,))` draws rows. Both methods get the *same* rows. 500 rounds, then `torch.quantile`.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def bootstrap_interval(correlate, a, b):
#     found = []
#     for _ in range(500):
#         rows = torch.randint(len(a), (len(a),))
#         found.append(correlate(a[rows].mean(0), b[rows].mean(0)))
#     return torch.quantile(torch.tensor(found), torch.tensor([0.025, 0.975])).tolist()
# ```
# </details>

# %% [markdown]
# ## The line-up
# Heads and MLPs against exact patching. On the dashed line an estimate is right in logits, not only in rank. **Predict:** which panel lies nearest to the line?

# %%
figure, axes = pyplot.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
for method, ax in zip(("gradient", "freeze", "gim"), axes):
    plots.method_scatter(estimates[method], exact, ax=ax)
parts = torch.tensor([i for i, node in enumerate(exact.nodes) if node != "input"])  # heads and MLPs
for method, scores in estimates.items():
    x, y = exact.scores[parts], scores.scores[parts]
    print(f"{method:9} best line through 0: {(x @ y) / (x @ x):.2f} x exact")

# %% [markdown]
# ## More cases
# The order is nearly right. The size is not: the gradient sees a quarter, GIM half, frozen norms three quarters.
#
# One task of one model proves little. Both models, five tasks that they solve. Two measures over heads and MLPs: the rank correlation with exact patching, and the **error**, the sum of |estimate - exact| over the sum of |exact|: 0 is right, and 1 no better than calling everything 0. `relp` freezes norms and linearises activations.
#
# Both methods met the same prompts, so intervals that overlap do not settle who wins; the interval of their *difference* does, in the last table. **Predict:** where will GIM do better than its norm rule alone?


# %%
def correlation(estimate, truth):
    return spearmanr(estimate, truth).statistic


def error(estimate, truth):
    return abs(estimate - truth).sum() / abs(truth).sum()


def judged(measure, truth, ours, other=None):
    """The measure of our mean scores, minus that of the other, with its bootstrap interval over examples."""
    keep = [i for i, node in enumerate(truth.nodes) if node != "input"]
    exact, ours, other = (scores.per_example[:, keep].numpy() if scores else None for scores in (truth, ours, other))

    def statistic(index):
        mean = exact[index].mean(0)
        value = measure(ours[index].mean(0), mean)
        return value if other is None else value - measure(other[index].mean(0), mean)

    return bootstrap(statistic, len(exact), resamples=200)


TASKS = ("ioi", "ioi_twice", "odd_one_out", "induction", "greater_than")
MEASURES = {"rank correlation": correlation, "error": error}
cases, rows = {}, []
for name, suspect in ((MODEL, model), ("mini-llama", llama)):
    for kind in TASKS:
        prompts = getattr(gimkit.tasks, kind)(suspect, n=32, seed=0)
        truth = gimkit.score_nodes(suspect, prompts, method="exact", remote=REMOTE)
        scored = {method: gimkit.score_nodes(suspect, prompts, method=method, remote=REMOTE) for method in estimates}
        cases[name, kind] = truth, scored
        rows += [(name, kind, method, named, *judged(measure, truth, scores))
                 for method, scores in scored.items() for named, measure in MEASURES.items()]
table = pandas.DataFrame(rows, columns=["model", "task", "method", "measure", "value", "low", "high"])
table.pivot(index=["model", "task"], columns=["measure", "method"], values="value")[list(MEASURES)].loc[list(cases)].round(2)

# %%
COLOURS = {"gradient": plots.ORANGE, "freeze": plots.GREEN, "relp": plots.PINK, "gim": plots.BLUE}
figure, axes = pyplot.subplots(2, 2, figsize=(12, 6.6), sharex="col", sharey=True, layout="constrained")
for ax, ((judge, name), part) in zip(axes.flat, table.groupby(["measure", "model"], sort=False)):
    for step, (method, found) in enumerate(part.groupby("method", sort=False)):
        height = numpy.arange(len(TASKS)) + 0.18 * (step - 1.5)
        spread = [found["value"] - found["low"], found["high"] - found["value"]]
        ax.errorbar(found["value"], height, xerr=numpy.maximum(spread, 0), fmt="o", color=COLOURS[method], label=method)
    ax.set_yticks(range(len(TASKS)), TASKS)
    ax.set(title=name, xlabel=f"{judge} against exact patching")
axes[0, 1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
axes[0, 0].invert_yaxis()


# %%
def verdict(measure, other):
    """In every case whether GIM beats the other method, and by how much."""
    for truth, scored in cases.values():
        gap = judged(MEASURES[measure], truth, scored["gim"], scored[other])
        better, worse = (gap.low > 0, gap.high < 0) if measure != "error" else (gap.high < 0, gap.low > 0)
        yield f"{'GIM wins' if better else 'GIM loses' if worse else 'tie'}  {gap}"


pandas.DataFrame({f"{measure}, gim - {other}": list(verdict(measure, other))
                  for other in ("gradient", "freeze") for measure in MEASURES}, index=pandas.MultiIndex.from_tuples(cases))

# %% [markdown]
# **Where GIM wins, where it loses.** In rank it beats the plain gradient once in ten cases and loses to it in five. In size it wins on both kinds of IOI and on greater-than, in both models, and loses on induction. Against its own norm rule it mostly loses: freezing does nearly all the good, the other rules more harm than good. The exception is mini-llama's greater-than, where frozen norms alone overshoot. In rank the plain gradient is best there.
#
# ## Controls: nothing should happen
# **Predict each.** (1) GIM's scores, shuffled over the nodes anew in every example: the interval must contain 0. (2) Shuffled *once*, the same for all examples, twenty times: how many of the bootstrap intervals will miss 0? (3) A thousand such shuffles: how high does chance get with 25 nodes?

# %%
draw, gim = torch.Generator().manual_seed(0), estimates["gim"]


def shuffled(orders):
    """GIM's scores with heads' and MLPs' columns reordered, row by row."""
    values = gim.per_example.clone()
    values[:, parts] = gim.per_example.gather(1, parts[orders])
    return NodeScores(task.name, "shuffled", gim.nodes, values)


def order():
    return torch.randperm(len(parts), generator=draw)


def ranked(scores):
    return spearmanr(scores.scores[parts], exact.scores[parts]).statistic


each = gimkit.circuits.rank_correlation(shuffled(torch.stack([order() for _ in range(len(task))])), exact)
once = [shuffled(order().expand(len(task), -1)) for _ in range(1000)]
chance = numpy.array([ranked(scores) for scores in once])
intervals = [gimkit.circuits.rank_correlation(scores, exact, resamples=200) for scores in once[:20]]
print(f"GIM's scores as they are     {gimkit.circuits.rank_correlation(gim, exact)}")
print(f"1. shuffled in every example {each}")
print(f"2. shuffled once, for example {intervals[0]}; intervals without 0:",
      sum(not low < 0 < high for _, low, high in intervals), "of", len(intervals))
print(f"3. 95% of a thousand deals   [{numpy.quantile(chance, 0.025):.2f}, {numpy.quantile(chance, 0.975):.2f}]")
assert each.low < 0 < each.high and ranked(gim) > numpy.quantile(chance, 0.975)

# %% [markdown]
# Number 2 is the warning. As a test against chance, one interval in twenty might miss 0. But an interval over examples only says how stable a number is, and a stable accident is stable.
#
# ## Why an estimate errs
# A gradient is a straight line that leaves the clean run. Here the three strongest heads go from their clean to their corrupt output step by step. **Predict:** is the truth a line? Do the effects of single parts add up to that of the whole prompt?

# %%
shares = torch.linspace(0, 1, 9)
heads = effects.head(3)
figure, axes = pyplot.subplots(1, 3, figsize=(14, 3.6), layout="constrained")
for ax, head in zip(axes, heads.itertuples()):
    falls = [(clean - patch_head(model, task, head.layer, head.head, float(share))).mean() for share in shares]
    ax.plot(shares, falls, color=plots.DARK, label="exact")
    for method in ("gradient", "freeze", "gim"):
        ax.plot(shares, shares * estimates[method].scores[exact.nodes.index(head.node)], "--", color=COLOURS[method],
                label=method)
    ax.set(title=head.node, xlabel="share of the way to the corrupt output", ylabel="fall of the logit difference")
axes[0].legend(frameon=True)
single = exact.scores[parts].sum()
print(f"effects of all heads and MLPs, patched one at a time, sum to {single:.2f};")
print(f"all at once, the corrupt prompt costs {(clean - corrupt).mean():.2f}")

# %% [markdown]
# The truth bends, and no rule makes it a line. It starts flat: the norms hide small steps, which is why freezing them helps. Frozen norms predict some seven tenths of what the whole way costs, GIM four, the plain gradient two.
#
# ## What this does not show
# - **Exact patching is exact about what it measures:** one part at a time, all others as they were. Parts that work in a chain each get the whole effect (see the two sums above); parts that compensate for each other get no share at all (notebook 03).
# - **Rank correlation counts every node alike,** and most of these 25 do next to nothing: their order is noise. Look at the scatter and at the error too.
# - **A pair of prompts measures one thing.** What both share gets no credit; `gimkit.tasks.ioi(..., corrupt="third")` measures something else.
# - **Saturation:** at logit differences of 18 much can be lost before an answer changes.
# - **Two small models, one training run each, 32 prompts a case,** which solve IOI by suppressing the repeated name. Nothing here says how the methods rank on large models.
#
# Next: **05 · Find the circuit**, where integrated gradients join. Sources: IOI, [arXiv 2211.00593](https://arxiv.org/abs/2211.00593); attribution patching, [arXiv 2310.10348](https://arxiv.org/abs/2310.10348); GIM, [arXiv 2505.17630](https://arxiv.org/abs/2505.17630); RelP, [arXiv 2508.21258](https://arxiv.org/abs/2508.21258).
