# %% [markdown]
# # 08 · Same code, bigger model: NDIF
#
# ![Code and names go up, scores come down, weights stay](pictures/remote.svg)
#
# **Claim: what you wrote for a small model here runs on a large one there, unchanged.**
#
# - Code and names go up, scores come down; the weights stay where they are.
# - What an ordinary key may do, and what needs a trusted one, is in a table.
#
# You need: 04. Runs on: a bundled model and SmolLM2, no network. Every request below is packed as for a server, unpacked, and run in this process (`remote="local"`): a rehearsal. One table is recorded from a real server process. The cells take about a minute, the two exercises 20 minutes. Words: [glossary](GLOSSARY.md).

# %%
MODEL = "mini-gpt2"  # bundled; or "mini-llama", "smollm2-135m" (a real model), a hub id, a folder, an NDIF model
REMOTE = False

# %%
# setup
import time

import nnsight
import pandas
import seaborn
import torch
from scipy.stats import spearmanr
from tqdm.auto import tqdm

import gimkit
from gimkit import plots
from gimkit.notebook import checks

torch.set_num_threads(1)  # the models are small: threads would wait for each other
seaborn.set_style("whitegrid")
WHERE = REMOTE or "local"  # True: NDIF, or the server in NDIF_HOST; or an address, "http://..."
LARGE = "meta-llama/Llama-3.1-8B" if REMOTE else "smollm2-135m"  # or "mini-llama" where it is not installed

# %% [markdown]
# ## What is there?
# With `REMOTE = True` the server lists the models it hosts; put one of them into `LARGE` (and a small one of the same server into `MODEL`). `gimkit.check` then shows in one table whether it will work: versions here and there, the key (set or not, never the key itself), the server, the model, and a tiny attribution as the proof. Run it the day before a workshop, from the room's network.

# %%
if REMOTE:
    print(nnsight.status())
model, large = (gimkit.load(name, remote=bool(REMOTE)) for name in (MODEL, LARGE))  # remote: no weights are loaded
gimkit.check(model, remote=WHERE)

# %% [markdown]
# ## The same line, here and there
# **Predict:** will the scores of the second line be equal, close, or something else? They come from a trace that was turned into bytes and back.

# %%
pair = gimkit.tasks.ioi(model, n=1, seed=3)[0]
there = gimkit.attribute(model, pair.clean, pair.answer, remote=WHERE)
ax = plots.token_heat({"there": there})
if not REMOTE:
    here = gimkit.attribute(model, pair.clean, pair.answer)
    print("largest difference to a run without the detour:", float((here.scores - there.scores).abs().max()))

# %% [markdown]
# <details><summary>What happened</summary>
#
# Equal to the last bit, if it is the same machine with the same versions. On other hardware the last digits differ; with other versions of transformers more may, which is why the table above compares them.
# </details>
#
# ## Through a server, recorded
# SmolLM2 behind a server of its own: another process, which has the weights and no gimkit; the client has no weights. NDIF's own code ran the requests. `python tests/ndif/recorded.py` made the table, on two busy cores. Two kinds of key are explained below. **Predict:** what do bytes up depend on?

# %%
recorded = pandas.read_csv("../benchmarks/server-smollm2-135m.csv")
for column, form in (("bytes up", "{:,}"), ("numbers down", "{:,}"), ("largest difference", "{:.0g}")):
    recorded[column] = recorded[column].map(form.format)
recorded.set_index("call")

# %% [markdown]
# <details><summary>What you see</summary>
#
# Requests have 6 to 36 kB, for a model of 500 MB: what grows is the number of places that are read or changed. Results are equal to the last bit but for one row: an ordinary key allows no backward pass, so gimkit computed the same scores forward, equal to 7 digits, and slowly. The server took one to four seconds longer where it ran the block itself, and half a minute or more where a sandbox did.
# </details>
#
# ## What travels
# A trace's block goes up as source text, with the values that it names: token ids, module paths, and the source of each function that it calls. The model goes as a name. What you `.save()` comes down, and nothing else. So the size of a request hardly depends on the model, and the size of a result is up to you.
#
# **Predict** the sizes in the next cell: a request in kilobytes, one layer's activations for a prompt of 1000 tokens in a model of width 8192, and one score per token.

# %%
sent = []
packed = nnsight.schema.request.RequestModel.serialize


def weigh(tracer, compress=False):
    sent.append(len(packed(tracer, compress=True)))
    return packed(tracer, compress)


# %%
nnsight.schema.request.RequestModel.serialize = weigh
try:
    for bundled in (gimkit.load("mini-gpt2"), gimkit.load("mini-llama")):
        case = gimkit.tasks.ioi(bundled, n=1, seed=3)[0]  # in words that it knows
        gimkit.attribute(bundled, case.clean, case.answer, backend="reverse", remote="local")
finally:
    nnsight.schema.request.RequestModel.serialize = packed
sizes = {"request, mini-gpt2": sent[0], "request, mini-llama": sent[-1], "activations of a layer": 1000 * 8192 * 4,
         "scores of 1000 tokens": 1000 * 4}
pandas.Series(sizes, name="bytes").map("{:,}".format).to_frame()

# %% [markdown]
# <details><summary>What happened</summary>
#
# 12 kB for the request, 33 MB for one layer's activations, 4 kB for the scores. So compute there, and bring back little.
# </details>
#
# For 80 layers a request of `attribute` has 12 kB, one of `score_edges` 18 kB (`pytest -s tests/test_payload.py` prints both).
#
# ### Exercise 1 · Bring back little (10 minutes, medium)
# Write `my_strengths(model, prompt, where)`: the norm of each MLP's output at the last token, [layers], from one trace that saves no more than that. Paths are in `architecture_of(model).blocks[i].mlp`, `model.get(path).output` is [1, tokens, width].


# %%
def my_strengths(model, prompt, where):
    return ...


checks.strengths(my_strengths, model)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `with model.trace(prompt, use_cache=False, remote=where):` A list made inside the block may be saved as one value, and so may `torch.stack` of it. Prepare the paths before the block: it takes along every value that it names.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# from gimkit.model.architecture import architecture_of
#
#
# def my_strengths(model, prompt, where):
#     paths = [block.mlp for block in architecture_of(model).blocks]
#     with model.trace(prompt, use_cache=False, remote=where):
#         norms = torch.stack([model.get(path).output[0, -1].norm() for path in paths]).save()
#     return norms
# ```
# </details>

# %% [markdown]
# ## A small model beside a large one
# Six prompts of the same kind for both. **Predict:** does the larger model (here: SmolLM2 beside mini-gpt2) rely on the same kinds of words?

# %%
rows, first, both = [], {}, {MODEL: model, LARGE: large}
for name, each in tqdm(both.items()):
    for pair in gimkit.tasks.ioi(each, n=6, seed=3):
        truth = gimkit.attribute(each, pair.clean, pair.answer, method="occlusion", remote=WHERE).scores
        for method, seed in (("gim", 0), ("gradient", 0), *(("random", seed) for seed in range(20))):
            start = time.perf_counter()
            scores = gimkit.attribute(each, pair.clean, pair.answer, method=method, seed=seed, remote=WHERE)
            rows.append((name, method, spearmanr(scores.scores, truth).statistic, time.perf_counter() - start))
            first.setdefault((name, method), scores)
table = pandas.DataFrame(rows, columns=["model", "method", "rank correlation", "seconds"])
table.groupby(["model", "method"], sort=False).mean().round(2)

# %%
for name in both:
    ax = plots.token_heat({f"{name}, {method}": first[name, method] for method in ("gim", "gradient")})

# %% [markdown]
# <details><summary>What you see</summary>
#
# One prompt of each is drawn. By GIM both models rely on the name that is the answer. By the plain gradient only mini-gpt2 does; for SmolLM2 it names "and" and "to". Six prompts: GIM's rank correlation is .40 and .38, the gradient's .31 and .32.
# </details>
#
# ### A control
# `random` is normal noise instead of scores, 20 times for each prompt. Its rank correlation with leave-one-out must be near 0 on both models; were it not, the agreement of the other rows would mean nothing.

# %%
noise = table[table["method"] == "random"].groupby("model", sort=False)["rank correlation"]
print(noise.agg(["mean", "sem"]).round(3).to_string())
assert (noise.mean().abs() < 4 * noise.sem()).all(), "noise agrees with leave-one-out, so something is wrong with the comparison"

# %% [markdown]
# ## Two kinds of key
# A **trusted** key (or a server of your own with auth off) runs your block in the process that holds the model. An **ordinary** key runs it in a sandbox, another process: there it may read activations, replace them and call modules. No weights are there, and no graph joins what it reads, so there are no gradients.
#
# ### Exercise 2 · What runs with an ordinary key? (10 minutes, easy)
# Predict for each call: `"yes"`; `"forward"`, if gimkit computes the same numbers without a backward pass, in forward mode; or `"no"`.
#
# | | call |
# |---|---|
# | A | `gimkit.attribute(model, prompt, answer, method="occlusion", remote=True)` |
# | B | `gimkit.attribute(model, prompt, answer, method="gim", remote=True)` |
# | C | `gimkit.score_edges(model, task, method="gim", remote=True)` (every edge) |
# | D | `gimkit.run(model, task, circuit, remote=True)` |
# | E | `gimkit.score_nodes(model, task, method="exact", remote=True)` |

# %%
my_calls = ...  # {"A": "yes", "B": ..., "C": ..., "D": ..., "E": ...}

checks.sandbox_calls(my_calls)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which of them differentiates anything? And in forward mode each thing that is scored is a row of the batch: how many tokens, heads, edges are there?
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# my_calls = {"A": "yes", "B": "forward", "C": "no", "D": "yes", "E": "yes"}
# ```
#
# Each was run on NDIF's own code for ordinary keys: `tests/ndif/test_untrusted.py`.
# </details>
#
# **Bonus:** write `my_strengths` so that it returns the three strongest layers only, and count the numbers that come back.

# %% [markdown]
# ## Long jobs
# `gimkit.submit` sends a request and does not wait. The ids are all you need to fetch the result later, from another machine too:
#
# ```python
# job = gimkit.submit(gimkit.score_edges, large, task, method="gim")
# job.ids, job.status            # (['7c9e...'], 'QUEUED')
# job.done()                     # False, or True when job.result is there
# job = gimkit.submit(gimkit.score_edges, large, task, method="gim", ids=["7c9e..."])
# ```
#
# ## What this cannot do
# - A local rehearsal (`remote="local"`) shares your Python: it does not notice that a server lacks a package of yours. `tests/ndif/` uses a server that has no gimkit.
# - Functions that you call in a trace travel as source text: decorators are dropped in silence.
# - A server's model is shared: jobs wait in a queue, and end at the host's time limit. Large tasks go as several requests (`batch_size`).
# - None of this was tried on the public NDIF or on a GPU; what was is in the README. Hosting a server for a workshop: `notebooks/HOSTING.md`.
#
# Next: your own task on your own model; notebook 05 ends with one in ten lines. Sources: nnsight and NDIF, [arXiv 2407.14561](https://arxiv.org/abs/2407.14561).
