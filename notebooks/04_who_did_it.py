# %% [markdown]
# # 04 · Who did it?
#
# ![One output of the corrupt run is copied into the clean run](pictures/patch.svg)
#
# **Claim: one backward pass finds most of the heads and MLPs that an exact measurement finds; how large they are it gets wrong.**
#
# - *Exact patching* replaces one part's output and runs again. It is the judge here.
# - GIM is not always the better estimate: where it wins and where it loses is shown.
#
# You need: 02, and a trace (00). Runs on: SmolLM2, then both bundled models; no network. The cells take about two minutes; with the three exercises plan an hour. Words: [glossary](GLOSSARY.md).

# %%
MODEL = "smollm2-135m"  # a real model; or "mini-gpt2", "mini-llama" (bundled), a hub id, a folder, an NDIF model
REMOTE = False

# %%
# setup: imports, the model, and helpers that the text does not need
import numpy
import pandas
import seaborn
import torch
from matplotlib import pyplot
from scipy.stats import spearmanr
from tqdm.auto import tqdm

import gimkit
from gimkit import plots
from gimkit.circuits import NodeScores, rank_correlation
from gimkit.model.architecture import architecture_of
from gimkit.notebook import checks
from gimkit.notebook.widgets import node_explorer, token_tabs
from gimkit.statistics import bootstrap

torch.manual_seed(0)
torch.set_num_threads(1)
seaborn.set_style("whitegrid")
model = gimkit.load(MODEL)
task = gimkit.tasks.ioi(model, n=8, seed=0)


def words_of(story):
    return [model.tokenizer.decode([i]) for i in model.tokenizer(story.clean)["input_ids"]]


def correlation(estimate, truth):
    return spearmanr(estimate, truth).statistic


def error(estimate, truth):
    return abs(estimate - truth).sum() / abs(truth).sum()


def judged(measure, truth, ours, other=None):
    """The measure of our mean scores, minus that of the other, with its bootstrap interval over examples."""
    exact, ours, other = (scores.per_example[:, 1:].numpy() if scores else None for scores in (truth, ours, other))

    def statistic(index):
        mean = exact[index].mean(0)
        value = measure(ours[index].mean(0), mean)
        return value if other is None else value - measure(other[index].mean(0), mean)

    return bootstrap(statistic, len(exact), resamples=200)


# %% [markdown]
# ## The case
# Two people; one acts; who receives? *Indirect object identification*, IOI. In the corrupt prompt one name is exchanged, so that the other name is right. The measure is the **logit difference**: the clean prompt's right name minus its wrong one. **Predict:** its sign on the clean prompts and on the corrupt ones.



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


# %%
pair = task[0]
clean, corrupt = (logit_difference(model, ids, task) for ids in (task.clean, task.corrupt))
print(f"clean    {pair.clean} ... {pair.answer}, not {pair.wrong}")
print(f"corrupt  {pair.corrupt}")
print(f"right in {int((clean > 0).sum())} of {len(task)}; mean logit difference {clean.mean():+.2f}, "
      f"on corrupt prompts {corrupt.mean():+.2f}")

# %% [markdown]
# <details><summary>What you see on SmolLM2</summary>
#
# Positive on clean prompts, +3.68, negative on corrupt ones, -5.57: one exchanged name turns the answer round. One of the eight prompts it gets wrong.
# </details>
#
# ## Which words?
# The exact question for one word: put the neutral token in its place and run again. This **leave-one-out** takes a run per word. The others predict it: `gradient` and `gim` from one backward pass, (embedding - neutral embedding) · gradient; `ig` from 20 passes on the way between the two embeddings. **Predict:** what does each say of the *first* mention of the wrong name?

# %%
METHODS = {"leave-one-out": "occlusion", "gim": "gim", "ig": "ig", "gradient": "gradient"}
words = {name: gimkit.attribute(model, pair.clean, (pair.answer, pair.wrong), method=method, remote=REMOTE)
         for name, method in METHODS.items()}
ax = plots.token_heat(words)

# %%
token_tabs(list(words.values()))  # a tab per method, the score under the pointer; needs a running kernel

# %% [markdown]
# <details><summary>What you see on SmolLM2</summary>
#
# Taken out, the right name (Charles) costs most: +8.1 logits. GIM gives it the most too, +3.6; the plain gradient counts it against itself, -5.1. `ig` gives it +1.6 and the largest scores to words that are no names. All three call the first mention of the wrong name evidence against the answer; taking it out says otherwise, +2.1, for then no one is named twice.
# </details>
#
# ## Right in sign?
# Leave-one-out has a blind spot: where two words say the same, it calls both unimportant (notebook 01). **Shapley values** average a word's effect over every set of the other words; for a few words they are exact. Here the words are the names. **Predict:** which methods have the sign of the Shapley values?

# %%
def names_of(i):
    """Scores of every mention of the two names in prompt i: {method: [mentions]}, and their places."""
    story = task[i]
    places = [k for k, word in enumerate(words_of(story)) if word.strip() in (story.answer.strip(), story.wrong.strip())]
    options = {"target": (story.answer, story.wrong), "free": places, "remote": REMOTE}
    found = {name: gimkit.attribute(model, story.clean, method=method, **options).scores[places]
             for name, method in METHODS.items()}
    return {"Shapley": gimkit.tokens.shapley(model, story.clean, **options).scores[places]} | found, places


mentions = [names_of(i) for i in tqdm(range(len(task)))]

# %%
found, places = mentions[0]
table = pandas.DataFrame({name: scores.tolist() for name, scores in found.items()},
                         index=[f"{words_of(task[0])[k].strip()} ({k})" for k in places])
ax = table.plot.bar(figsize=(9, 3.2), rot=0, ylabel="score (logits)", width=0.8,
                    color=[plots.GREY, *map(plots.method_colour, METHODS)])
place = ax.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.15))
for name in METHODS:
    same = [(each[name].sign() == each["Shapley"].sign()).double().mean() for each, _ in mentions]
    print(f"{name:14} has the sign of the Shapley value in {numpy.mean(same):.0%} of all mentions")

# %% [markdown]
# <details><summary>What you see on SmolLM2</summary>
#
# Twenty passes (`ig`) have the right sign in 92% of the 24 mentions, one GIM pass in 75%, the plain gradient in 58%, leave-one-out in 42%. Leave-one-out is exact about one question, a single word missing from the full prompt; with other words missing too, the same word can count the other way.
# </details>
#
# ## Which heads?
# **Exact patching** measures one head: what if it alone had read the corrupt prompt? Its output, at all positions, is replaced by the one from the corrupt run. What the logit difference loses is the head's effect. `share` goes only part of the way; it is used near the end. A run per head takes minutes on a real model, so here it judges those that an estimate calls strong.


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


# %%
estimates = {method: gimkit.score_nodes(model, task, method=method, remote=REMOTE)
             for method in ("gradient", "freeze", "relp", "gim")}
strong = {node for scores in estimates.values() for node in
          scores.frame().query("kind != 'input'").sort_values("score", key=abs).tail(12)["node"]}
chosen = [node for node in estimates["gim"].nodes if node in strong]
exact = gimkit.score_nodes(model, task, method="exact", nodes=chosen, remote=REMOTE)
effects = exact.frame().query("kind == 'head'").sort_values("score", key=abs, ascending=False)
strongest = effects.iloc[0]
by_hand = (clean - patch_head(model, task, strongest.layer, strongest["head"])).mean()
print(f"{len(chosen)} of {len(estimates['gim'].nodes) - 1} heads and MLPs are judged; strongest head {strongest.node}: "
      f"by hand {by_hand:+.3f}, score_nodes(method='exact') {strongest.score:+.3f}")

# %% [markdown]
# ### Exercise 1 · Predict a patch (15 minutes, hard)
# **Attribution patching** predicts the effect of every part from one pass. It is (clean - corrupt output) · gradient, of the logit difference and at the clean output, summed over positions. Write it for one module. Given `gimkit.apply(model)` instead of the model, the same function must return GIM's score.


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
#
# **Bonus:** the same at the *corrupt* output. Which of the two estimates is nearer to the exact effect of the first MLP?

# %% [markdown]
# ## The map
# `score_nodes` does this for every head and MLP at once; both maps have one colour scale. **Predict:** will GIM's numbers be larger or smaller than the gradient's?

# %%
shown = [estimates["gim"], estimates["gradient"]]
most = max(float(scores.scores[1:].abs().max()) for scores in shown)
figure, axes = pyplot.subplots(1, 2, figsize=(10, 6.2), layout="constrained")
for scores, ax in zip(shown, axes):
    plots.node_grid(scores, ax=ax, most=most)

# %%
node_explorer(list(estimates.values()))  # choose a method; needs a running kernel

# %% [markdown]
# <details><summary>What you see on SmolLM2</summary>
#
# Both, by part. GIM's are larger in layer 23, where heads read the names, and has a20.h0; the last layer's are nearly equal, since hardly any rule acts behind it. They disagree about the sign of the first MLP.
# </details>
#
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
# ## Estimate against exact
# On the dashed line an estimate is right in logits, not only in rank. **Predict:** which panel lies nearest to the line?

# %%
figure, axes = pyplot.subplots(1, 3, figsize=(11, 4.1), layout="constrained")
for method, ax in zip(("gradient", "relp", "gim"), axes):
    plots.method_scatter(estimates[method].select(chosen), exact, ax=ax)
for method, scores in estimates.items():
    x, y = exact.scores, scores.select(chosen).scores
    print(f"{method:9} sum of |estimate - exact| / sum of |exact|: {(y - x).abs().sum() / x.abs().sum():.2f}")

# %% [markdown]
# <details><summary>What you see on SmolLM2</summary>
#
# RelP is nearest, in rank (.98) and in size. GIM and the plain gradient rank these parts alike (.67; the intervals overlap), and their errors are alike too, .57 and .59. Every estimate rates the MLP of layer 0 far too low, and head a20.h0: below is why.
# </details>
#
# ## More cases
# One task of one model proves little. On the bundled models every part can be patched: five tasks, two measures over all heads and MLPs. The **rank correlation** with exact patching, and the **error**, the sum of |estimate - exact| over the sum of |exact|: 0 is right, and 1 no better than calling everything 0. **Predict:** where will GIM do better than its norm rule alone, `freeze`?


# %%
TASKS = ("ioi", "ioi_twice", "odd_one_out", "induction", "greater_than")
MEASURES = {"rank correlation": correlation, "error": error}
cases, rows = {}, []
for name, kind in tqdm([(name, kind) for name in ("mini-gpt2", "mini-llama") for kind in TASKS]):
    small = gimkit.load(name)
    prompts = getattr(gimkit.tasks, kind)(small, n=32, seed=0)
    truth, *scored = (gimkit.score_nodes(small, prompts, method=method) for method in ("exact", *estimates))
    cases[name, kind] = truth, dict(zip(estimates, scored))
    rows += [(name, kind, method, measure, *judged(MEASURES[measure], truth, scores))
             for method, scores in cases[name, kind][1].items() for measure in MEASURES]
table = pandas.DataFrame(rows, columns=["model", "task", "method", "measure", "value", "low", "high"])

# %%
figure, axes = pyplot.subplots(2, 2, figsize=(10, 6.4), sharex="col", sharey=True, layout="constrained")
for ax, ((judge, name), part) in zip(axes.flat, table.groupby(["measure", "model"], sort=False)):
    for step, (method, found) in enumerate(part.groupby("method", sort=False)):
        height = numpy.arange(len(TASKS)) + 0.18 * (step - 1.5)
        spread = numpy.maximum([found["value"] - found["low"], found["high"] - found["value"]], 0)
        ax.errorbar(found["value"], height, xerr=spread, fmt="o", color=plots.method_colour(method), label=method)
    ax.set_yticks(range(len(TASKS)), TASKS)
    ax.set(title=name, xlabel=f"{judge} against exact patching")
legend = axes[0, 1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
axes[0, 0].invert_yaxis()

# %%
for other in ("gradient", "freeze"):
    for name, measure in MEASURES.items():
        gaps = [judged(measure, truth, scored["gim"], scored[other]) for truth, scored in cases.values()]
        better, worse = sum(gap.low > 0 for gap in gaps), sum(gap.high < 0 for gap in gaps)
        better, worse = (better, worse) if name != "error" else (worse, better)
        print(f"{name:16} GIM against {other:8}: better in {better}, worse in {worse}, no difference in "
              f"{len(gaps) - better - worse} of {len(gaps)} cases")

# %% [markdown]
# <details><summary>Where GIM wins, where it loses</summary>
#
# In rank GIM beats the plain gradient once in ten cases and loses to it in five. In size it wins in six and loses in two, on induction. Against its own norm rule it mostly loses: freezing does nearly all the good. The exception is mini-llama's greater-than, where frozen norms alone overshoot; there the plain gradient ranks best.
# </details>
#
# ## Controls: nothing should happen
# **Predict each.** (1) GIM's scores, shuffled over the nodes anew in every example: the interval must contain 0. (2) Shuffled *once*, the same for all examples, twenty times: how many of the bootstrap intervals will miss 0? (3) A thousand such shuffles: how high does chance get with 25 nodes?

# %%
draw, (truth, scored) = torch.Generator().manual_seed(0), cases["mini-llama", "ioi"]
gim = scored["gim"].per_example[:, 1:]


def agreement(orders):
    """Rank correlation with exact patching, with interval, of GIM's scores reordered row by row."""
    return rank_correlation(NodeScores("ioi", "shuffled", truth.nodes[1:], gim.gather(1, orders)),
                            truth.select(truth.nodes[1:]), resamples=200)


def order():
    return torch.randperm(gim.shape[1], generator=draw)


# %%
as_it_is, each = agreement(torch.arange(25).expand(32, -1)), agreement(torch.stack([order() for _ in range(32)]))
once = [agreement(order().expand(32, -1)) for _ in range(20)]
mean, right = gim.mean(0), truth.scores[1:]
chance = numpy.array([spearmanr(mean[order()], right).statistic for _ in range(1000)])
print(f"GIM's scores as they are     {as_it_is}")
print(f"1. shuffled in every example {each}")
print(f"2. shuffled once: {sum(not low < 0 < high for _, low, high in once)} of 20 intervals miss 0, such as {once[0]}")
print(f"3. 95% of a thousand shuffles [{numpy.quantile(chance, 0.025):.2f}, {numpy.quantile(chance, 0.975):.2f}]")
assert each.low < 0 < each.high and as_it_is.value > numpy.quantile(chance, 0.975)

# %% [markdown]
# <details><summary>What to learn from number 2</summary>
#
# As a test against chance, one interval in twenty might miss 0. But an interval over examples only says how stable a number is, and a stable accident is stable.
# </details>
#
# ## Why an estimate errs
# A gradient is a straight line that leaves the clean run. Here three strong heads of the real model go from their clean to their corrupt output step by step. **Predict:** is the truth a line?

# %%
shares = torch.linspace(0, 1, 5)
figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
for ax, head in zip(axes, effects.head(3).itertuples()):
    falls = [(clean - patch_head(model, task, head.layer, head.head, float(share))).mean() for share in shares]
    ax.plot(shares, falls, color=plots.DARK, marker="o", label="exact")
    for method in ("gradient", "freeze", "gim"):
        slope = estimates[method].scores[estimates[method].nodes.index(head.node)]
        ax.plot(shares, shares * slope, "--", color=plots.method_colour(method), label=method)
    ax.set(title=head.node, xlabel="share of the way to the corrupt output", ylabel="fall of the logit difference")
legend = axes[0].legend(frameon=True)

# %% [markdown]
# <details><summary>What you see on SmolLM2</summary>
#
# The truth bends, and no rule makes it a line. a20.h0 starts flat: at the clean end neither the plain gradient nor frozen norms see any of its 4.9 logits, and GIM sees one. The other two heads are nearly lines; there the plain gradient is close, and GIM overshoots a23.h3.
# </details>
#
# ## Which method when
# For words take `gim`: one pass, and the highest mean of all one-pass methods on three models. With a hundred runs to spend, take `lime`. For heads and MLPs take `relp` in one pass, since GIM's halved products make early parts too small. In five passes `nap-ig` is close to patching each of them. For edges see notebook 05. The numbers are in `docs/METHODS.md`.
#
# ## What this does not show
# - **Exact patching is exact about what it measures:** one part at a time, all others as they were. Parts that work in a chain each get the whole effect; parts that compensate for each other get no share at all (notebook 03).
# - **Rank correlation counts every node alike,** and most of them do next to nothing: their order is noise. Look at the scatter and at the error too.
# - **Only parts that an estimate called strong were judged on SmolLM2.** A part that all four rate too low is not among them. `benchmarks/README.md` has all 300, on six tasks.
# - **A pair of prompts measures one thing.** What both share gets no credit; `gimkit.tasks.ioi(..., corrupt="third")` measures something else.
#
# Next: **05 · Find the circuit**, where integrated gradients join. Sources: IOI, [arXiv 2211.00593](https://arxiv.org/abs/2211.00593); attribution patching, [arXiv 2310.10348](https://arxiv.org/abs/2310.10348); GIM, [arXiv 2505.17630](https://arxiv.org/abs/2505.17630); RelP, [arXiv 2508.21258](https://arxiv.org/abs/2508.21258).
