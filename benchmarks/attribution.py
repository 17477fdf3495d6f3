"""CPU seconds, peak memory and bytes kept for backward of one input gradient, four ways. See benchmarks/README.md."""

import argparse
import copy
import itertools
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import nnsight
import pandas as pd
import torch
import transformers

import gimkit
from benchmarks.measuring import cpu_seconds, peak
from gimkit.files import write_table

HERE = Path(__file__).parent
METHODS = ("torch", "nnsight", "gimkit", "gim-explain")
ROUNDS = {64: 11, 256: 7, 1024: 4, 2048: 2, 4096: 2}
MIB = 2**20
TARGET = 7  # which token's logit is explained: any, the weights are random


def build(layers: int = 12, attention: str = "sdpa", sharpness: float = 1.0):
    """A random model of GPT-2 small's size, as a plain transformers model and wrapped by nnsight, with shared weights.

    >>> plain, wrapped = build(layers=1)
    >>> plain.lm_head.weight is wrapped._module.lm_head.weight
    True

    Args:
        layers: blocks.
        attention: transformers' implementation.
        sharpness: a factor of all queries, keys and values; large ones saturate the softmax.
    """
    config = transformers.GPT2Config(n_layer=layers, n_positions=max(ROUNDS), attn_implementation=attention)
    torch.manual_seed(0)
    plain = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    for block in plain.transformer.h:
        block.attn.c_attn.weight.mul_(sharpness)
    wrapped = copy.deepcopy(plain, {id(p): p for p in plain.parameters()})
    return plain, nnsight.NNsight(wrapped)


def prompt(tokens: int) -> torch.Tensor:
    """Random token ids, [1, tokens].

    >>> prompt(8).shape
    torch.Size([1, 8])
    """
    return torch.randint(0, 50257, (1, tokens), generator=torch.Generator().manual_seed(tokens))


def _torch_logit(model, ids, **options):
    """The explained logit, and the embeddings by which it is differentiated, in plain torch."""
    leaf = model.get_input_embeddings()(ids).requires_grad_(True)
    return model(inputs_embeds=leaf, use_cache=False, **options).logits[0, -1, TARGET], leaf


def _torch_gradient(model, ids, **options):
    """The gradient of one logit at the embeddings, [1, tokens, width], in plain torch."""
    return torch.autograd.grad(*_torch_logit(model, ids, **options))[0]


def nnsight_gradient(model, ids, embedding: str = "transformer.wte", **options):
    """The same through an nnsight trace."""
    with model.trace(ids, use_cache=False, **options):
        leaf = model.get(embedding).output.detach().requires_grad_(True)
        model.get(embedding).output = leaf
        gradient = torch.autograd.grad(model.output.logits[0, -1, TARGET], leaf)[0].save()
    return gradient


def _ways(plain, wrapped, gim_explain) -> dict:
    """{method: function of (ids, **options) that returns the gradient}; gim-explain only where it is installed."""
    edited = gimkit.apply(wrapped)
    functions = {
        "torch": lambda ids, **options: _torch_gradient(plain, ids, **options),
        "nnsight": lambda ids, **options: nnsight_gradient(wrapped, ids, **options),
        "gimkit": lambda ids, **options: nnsight_gradient(edited, ids, **options),
    }

    def explain(ids, **options):
        with gim_explain.GIM(plain):
            return _torch_gradient(plain, ids, **options)

    return functions | ({"gim-explain": explain} if gim_explain else {})


def _load_gim_explain(folder: str | None):
    """The module of gim-explain, from the folder where it was installed; None without a folder."""
    if folder is None:
        return None
    sys.path.append(folder)
    import gim

    return gim


# -- CPU seconds ------------------------------------------------------------------------------------------------------

def _seconds(functions: dict, tokens: int, rounds: int, options: dict) -> pd.DataFrame:
    """CPU seconds of every call, a row for each round; each round runs all methods and starts with another one."""
    ids, rows = prompt(tokens), []
    for round_ in range(rounds):
        names = list(functions)
        first = round_ % len(names)
        row = {}
        for name in names[first:] + names[:first]:
            row[name] = cpu_seconds(functions[name], ids, **options)
        rows.append(row)
    return pd.DataFrame(rows)


# -- peak memory ------------------------------------------------------------------------------------------------------

def _peak_of(method: str, tokens: int, gim_explain, options: dict) -> float:
    """MiB that one gradient needs at most, beyond the loaded model; only meaningful in a fresh process."""
    run = _ways(*build(), gim_explain)[method]
    return peak(lambda: run(prompt(8), **options), lambda: run(prompt(tokens), **options))


def _peak_elsewhere(method: str, tokens: int, arguments) -> float:
    """`_peak_of` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.attribution", "--peak", method, "--tokens", str(tokens), "--logits",
               arguments.logits]
    command += ["--gim-explain", arguments.gim_explain] if arguments.gim_explain else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


# -- bytes kept for backward ------------------------------------------------------------------------------------------

def _saved_tensors(result: torch.Tensor) -> list:
    """Every tensor that the backward pass from a result can reach: all `_saved_*` of all nodes of its graph.

    saved_tensors_hooks would also count what is saved and freed at once, such as the graphs that rules replace;
    on a plain model both give the same.
    """
    todo, seen, found = [result.grad_fn], set(), []
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        values = [getattr(node, key) for key in dir(node) if key.startswith("_saved_")]
        values += getattr(node, "saved_tensors", ())
        for value in values:
            found += [t for t in (value if isinstance(value, (list, tuple)) else [value]) if torch.is_tensor(t)]
    return found


def _kept(result: torch.Tensor, model) -> tuple[float, int]:
    """MiB of the distinct storages kept for backward, without the model's own; and how many are attention maps."""
    own = {t.untyped_storage().data_ptr() for t in itertools.chain(model.parameters(), model.buffers())}
    tensors = [t for t in _saved_tensors(result) if t.untyped_storage().data_ptr() not in own]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    maps = {t.untyped_storage().data_ptr() for t in tensors if t.dim() >= 3 and _is_map(t, model.config)}
    return sum(storages.values()) / MIB, len(maps)


def _is_map(t: torch.Tensor, config) -> bool:
    """Whether a saved tensor is [..., tokens, tokens], or anything else larger than all that the MLP needs."""
    square = t.shape[-1] == t.shape[-2] != config.n_embd // config.n_head
    return square or t.numel() > 4 * config.n_embd * max(t.shape[-3:])


def _bytes_kept(tokens: int, gim_explain, attention: str = "sdpa") -> dict:
    """{method: (MiB kept by one attention module, MiB kept by a whole one-layer model, attention maps among them)}.

    The attention module's share: a leaf at its input, then the graph from its output back to that leaf.
    """
    plain, wrapped = build(1, attention)
    edited, ids = gimkit.apply(wrapped), prompt(tokens)

    def in_torch():
        leaf = torch.randn(1, tokens, plain.config.n_embd, requires_grad=True)
        mask = None if attention == "sdpa" else torch.ones(tokens, tokens).tril().log()[None, None]
        share, _ = _kept(plain.transformer.h[0].attn(leaf, attention_mask=mask)[0], plain)
        return (share, *_kept(_torch_logit(plain, ids, logits_to_keep=1)[0], plain))

    def in_trace(model):
        with model.trace(ids, use_cache=False, logits_to_keep=1):
            leaf = model.transformer.h[0].attn.input.detach().requires_grad_(True)
            model.transformer.h[0].attn.input = leaf
            heads = model.transformer.h[0].attn.output[0].save()
        with model.trace(ids, use_cache=False, logits_to_keep=1):
            leaf = model.transformer.wte.output.detach().requires_grad_(True)
            model.transformer.wte.output = leaf
            logit = model.output.logits[0, -1, TARGET].save()
        return (_kept(heads, plain)[0], *_kept(logit, plain))

    found = {"torch": in_torch(), "nnsight": in_trace(wrapped), "gimkit": in_trace(edited)}
    if gim_explain:
        with gim_explain.GIM(plain):
            found["gim-explain"] = in_torch()
    return found


# -- which rules act --------------------------------------------------------------------------------------------------

EXPLAIN_OFF = dict(freeze_norm=False, softmax_temperature=None, q_scale=None, k_scale=None, v_scale=None)
ONE_RULE = {
    "norm frozen": ("freeze", dict(freeze_norm=True)),
    "softmax at T=2": ("temperature", dict(softmax_temperature=2.0)),
    "q/k/v scaled": (gimkit.Rules(q=0.25, k=0.25, v=0.5), dict(q_scale=0.25, k_scale=0.25, v_scale=0.5)),
    "all": ("gim", {}),
}


def _rules_in_force(gim_explain) -> pd.DataFrame:
    """Relative change of the gradient when one rule alone is on, 0 where it does nothing (2 layers)."""
    rows = []
    for attention in ("sdpa", "eager"):
        plain, wrapped = build(2, attention, sharpness=6.0)
        ids = prompt(64)
        reference = _torch_gradient(plain, ids)
        for rule, (name, options) in ONE_RULE.items():
            row = {"attention": attention, "rule": rule}
            row["gimkit"] = _distance(nnsight_gradient(gimkit.apply(wrapped, name), ids), reference)
            if gim_explain:
                with gim_explain.GIM(plain, **({**EXPLAIN_OFF, **options} if options else {})):
                    row["gim-explain"] = _distance(_torch_gradient(plain, ids), reference)
            rows.append(row)
        if gim_explain:
            with gim_explain.GIM(plain):
                off = _distance(_torch_gradient(plain, ids), nnsight_gradient(gimkit.apply(wrapped), ids))
            rows.append({"attention": attention, "rule": "off gimkit's GIM by", "gimkit": 0.0, "gim-explain": off})
    return pd.DataFrame(rows)


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / |b|."""
    return float((a - b).norm() / b.norm())


# -- the whole --------------------------------------------------------------------------------------------------------

def machine() -> dict:
    """The machine and the versions of the measurement."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 1), "torch": torch.__version__,
            "transformers": transformers.__version__, "nnsight": nnsight.__version__}


def _measure(arguments):
    """Print and save a row for each length and method."""
    gim_explain, options = _load_gim_explain(arguments.gim_explain), _logits_option(arguments.logits)
    names = METHODS if gim_explain else METHODS[:-1]
    where = machine()
    peaks = {}
    if not arguments.no_memory:
        peaks = {(m, n): _peak_elsewhere(m, n, arguments) for n in arguments.tokens for m in names}
    functions = _ways(*build(), gim_explain)
    for run in functions.values():
        run(prompt(64), **options)
    rows = []
    for tokens in arguments.tokens:
        times = _seconds(functions, tokens, arguments.rounds or ROUNDS.get(tokens, 5), options)
        memory = {} if arguments.no_memory else _bytes_kept(tokens, gim_explain)
        for name in names:
            ratios = times[name] / times["nnsight"]
            share, block, maps = memory.get(name, (None, None, None))
            rows.append({
                "logits": arguments.logits, "tokens": tokens, "method": name, "rounds": len(times),
                "cpu_seconds": times[name].median(), "ratio": statistics.median(ratios),
                "ratio_lowest": ratios.min(), "ratio_highest": ratios.max(), "peak_mib": peaks.get((name, tokens)),
                "kept_attention_mib": share, "kept_attention_ratio": share and share / memory["torch"][0],
                "kept_one_layer_model_mib": block, "attention_maps_kept": maps, **where,
            })
        print(pd.DataFrame(rows[-len(names):]).iloc[:, 1:13].round(3).to_string(index=False), flush=True)
        write_table(arguments.out, pd.DataFrame(rows))


def _logits_option(logits: str) -> dict:
    """The model's argument for computing only the last position's logits, or all of them."""
    return {"logits_to_keep": 1} if logits == "last" else {}


def main():
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(ROUNDS))
    parser.add_argument("--rounds", type=int, help="rounds per length (default: more for shorter prompts)")
    parser.add_argument("--logits", choices=("last", "all"), default="last", help="positions that are unembedded")
    parser.add_argument("--gim-explain", metavar="PATH", help="folder with gim-explain; without it, left out")
    parser.add_argument("--no-memory", action="store_true", help="CPU seconds only")
    parser.add_argument("--out", type=Path, default=HERE / "attribution.csv")
    parser.add_argument("--peak", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        gim_explain = _load_gim_explain(arguments.gim_explain)
        return print(_peak_of(arguments.peak, arguments.tokens[0], gim_explain, _logits_option(arguments.logits)))
    if not arguments.gim_explain:
        print("gim-explain is not measured: install it with `pip install --no-deps --target FOLDER gim-explain`, "
              "then pass --gim-explain FOLDER")
    rules = _rules_in_force(_load_gim_explain(arguments.gim_explain))
    print("relative change of the gradient with one rule on (0: the rule does nothing)")
    print(rules.round(4).to_string(index=False), flush=True)
    write_table(arguments.out.with_name(arguments.out.stem + "-rules.csv"), rules)
    if not arguments.no_memory:
        seen = _bytes_kept(256, None, "eager")["nnsight"][2]
        print(f"control: with eager attention {seen} kept tensors of one layer are found to be attention maps")
    _measure(arguments)
    print(f"saved {arguments.out}")


if __name__ == "__main__":
    main()
