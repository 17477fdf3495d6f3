"""What the scores cost beside a plain forward and backward pass of the same rows, at the shapes of real models.

    python -m benchmarks.scale --csv benchmarks/scale.csv

Random weights of the real widths, heads and vocabulary, fewer layers, and SmolLM2-135M whole. CPU seconds of one thread
and growth of resident memory, each model in a process of its own. See benchmarks/README.md.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import nnsight
import pandas
import torch
import transformers

import gimkit
from benchmarks.measuring import cpu_seconds, growing
from benchmarks.tables import show
from gimkit.tasks import Pair, Task

SHAPES = {  # name: (layers of the real model, its config)
    "GPT-2 XL": (48, transformers.GPT2Config(n_embd=1600, n_head=25)),
    "Qwen2.5-0.5B": (24, transformers.Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_attention_heads=14, num_key_value_heads=2,
        tie_word_embeddings=True)),
    "Llama-3.2-1B": (16, transformers.LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_attention_heads=32, num_key_value_heads=8,
        tie_word_embeddings=True)),
    "Gemma-2-2B": (26, transformers.Gemma2Config(
        vocab_size=256000, hidden_size=2304, intermediate_size=9216, num_attention_heads=8, num_key_value_heads=4,
        head_dim=256)),
}
REAL = "smollm2-135m"
COLUMNS = ["model", "layers", "of", "tokens", "pairs", "what", "seconds", "times forward", "times forward and backward",
           "MiB", "times MiB"]


def build(name: str, layers: int):
    """A random model of a real shape with fewer layers, wrapped by nnsight.

    >>> build("Qwen2.5-0.5B", 1).config.num_hidden_layers
    1
    """
    config = SHAPES[name][1]
    config.num_hidden_layers = layers
    if hasattr(config, "layer_types"):
        config.layer_types = config.layer_types[:layers]
    torch.manual_seed(0)
    return nnsight.NNsight(transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False))


def random_task(model, pairs: int, tokens: int) -> Task:
    """Random prompts that differ in one token, and as answers the token that this helps most and the one it hurts most.
    """
    ids = torch.randint(10, 5000, (pairs, tokens), generator=torch.Generator().manual_seed(tokens))
    other = ids.clone()
    other[:, tokens // 2] += 1
    with torch.no_grad():
        change = model._module(ids, use_cache=False).logits[:, -1] - model._module(other, use_cache=False).logits[:, -1]
    good, bad = (tuple((int(token),) for token in best) for best in (change.argmax(-1), change.argmin(-1)))
    return Task("random", ids, other, torch.ones_like(ids).bool(), good, bad, (Pair("", "", "", ""),) * pairs)


def measure(name: str, layers: int, tokens: int, pairs: int) -> list[tuple]:
    """The rows of one model."""
    torch.set_num_threads(1)
    model = gimkit.load(REAL) if name == REAL else build(name, layers)
    task = gimkit.tasks.ioi(model, n=pairs, seed=0) if name == REAL else random_task(model, pairs, tokens)
    root = model._module
    rows = torch.cat([task.clean, task.corrupt])
    edges = gimkit.score_edges(model, task, "gim")

    def forward():
        with torch.no_grad():
            root(rows, use_cache=False, logits_to_keep=1)

    def backward(ids=rows):
        leaf = root.get_input_embeddings()(ids).requires_grad_(True)
        torch.autograd.grad(root(inputs_embeds=leaf, use_cache=False, logits_to_keep=1).logits.sum(), leaf)

    def exact_from_the_start():
        hook = root.get_input_embeddings().register_forward_hook(lambda *_: None)  # gimkit then lets no rows join later
        gimkit.score_nodes(model, task, "exact")
        hook.remove()

    works = {
        "attribute, gim (against one row)": lambda: gimkit.attribute(model, task.clean[0], task.good[0][0], baseline=0),
        "nodes, gim": lambda: gimkit.score_nodes(model, task, "gim"),
        "edges, gim": lambda: gimkit.score_edges(model, task, "gim"),
        "edges, ig-inputs (5 points)": lambda: gimkit.score_edges(model, task, "ig-inputs"),
        "run of one circuit": lambda: gimkit.run(model, task, edges.top(edges.graph.n_edges // 10)),
        "faithfulness, ten sizes": lambda: gimkit.faithfulness(model, task, edges, absolute=True),
        "nodes, exact": lambda: gimkit.score_nodes(model, task, "exact"),
        "nodes, exact, all rows from the start": exact_from_the_start,
    }
    ahead, back = (statistics.median(cpu_seconds(plain) for _ in range(3)) for plain in (forward, backward))
    one, kept, kept_by_one = cpu_seconds(backward, rows[:1]), growing(backward)[1], growing(backward, rows[:1])[1]
    found = []
    for what, work in works.items():
        spent, grown = growing(cpu_seconds, work)
        base, least = (one, kept_by_one) if "one row" in what else (back, kept)
        found.append((name, len(root.get_submodule("transformer.h" if name == "GPT-2 XL" else "model.layers")),
                      SHAPES[name][0] if name in SHAPES else 30, task.clean.shape[1], pairs, what, spent, spent / ahead,
                      spent / base, grown, grown / max(least, 1)))
        print(*found[-1], flush=True)
    return found


def whole(table: pandas.DataFrame) -> pandas.DataFrame:
    """Seconds a pair of the whole model, from the lines through two measured numbers of layers.

    >>> table = pandas.DataFrame({"model": "m", "layers": [2, 4], "of": 10, "tokens": 16, "pairs": 1,
    ...                           "what": "edges, gim", "seconds": [3.0, 5.0]})
    >>> whole(table).seconds.tolist()
    [11.0]

    Args:
        table: the rows of `measure` at two numbers of layers, or at all of the model's.
    """
    found = []
    for (name, layers, tokens, what), rows in table.groupby(["model", "of", "tokens", "what"], sort=False):
        few, many = rows.layers.min(), rows.layers.max()
        low, high = (rows.loc[rows.layers == count, "seconds"].mean() for count in (few, many))
        if few < many or few == layers:
            slope = (high - low) / (many - few) if few < many else 0.0
            found.append((name, layers, tokens, what, (high + slope * (layers - many)) / rows.pairs.iloc[0]))
    return pandas.DataFrame(found, columns=["model", "layers", "tokens", "what", "seconds"])


def main() -> None:
    """Measure every model in a process of its own; --model is such a process."""
    parser = argparse.ArgumentParser("python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[REAL, *SHAPES], help="only this one, in this process")
    parser.add_argument("--layers", type=int, default=2, help="of random models (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="of their prompts (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=1, help="prompt pairs (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="write the table here; what it holds of other models stays")
    parser.add_argument("--whole", type=Path, metavar="CSV", help="measure nothing; seconds a pair of whole models")
    options = parser.parse_args()
    if options.whole:
        seconds = whole(pandas.read_csv(options.whole)).pivot(index="what", columns="model", values="seconds")
        print(seconds.to_string(float_format="{:.2f}".format))
        return
    if options.model is None:
        for name in (REAL, *SHAPES):
            subprocess.run([sys.executable, "-m", "benchmarks.scale", *sys.argv[1:], "--model", name], check=True)
        return
    table = pandas.DataFrame(measure(options.model, options.layers, options.tokens, options.pairs),
                             columns=COLUMNS)
    if options.csv and options.csv.exists():
        before = pandas.read_csv(options.csv)
        key = ["model", "layers", "tokens"]
        old = before[~before.set_index(key).index.isin(table.set_index(key).index)]
        table = pandas.concat([old, table], ignore_index=True)
    show(table, options.csv, "Cost beside plain passes of the same rows")


if __name__ == "__main__":
    main()
