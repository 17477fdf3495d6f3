"""Time and peak memory of GIM against the plain gradient on a Llama-8B-sized random model. See benchmarks/README.md."""

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path

import nnsight
import pandas as pd
import torch
import transformers

import gimkit
from benchmarks.attribution import nnsight_gradient
from gimkit.files import write_table

LLAMA_8B = dict(num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, num_key_value_heads=8,
                intermediate_size=14336, vocab_size=128256)
TINY = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=96, vocab_size=512)
GIB = 2**30


def _build(sizes: dict, longest: int, device: torch.device):
    """A random Llama in bfloat16, made on the device and wrapped by nnsight.

    >>> _build(TINY, 32, torch.device("cpu")).config.num_hidden_layers
    2

    Args:
        sizes: fields of transformers' `LlamaConfig`.
        longest: tokens in the longest prompt.
        device: of the weights.
    """
    config = transformers.LlamaConfig(**sizes, max_position_embeddings=longest, attn_implementation="sdpa")
    torch.manual_seed(0)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return nnsight.NNsight(model.eval().requires_grad_(False))


def _one_gradient(model, ids) -> tuple[float, float]:
    """Seconds and peak GiB (0 without CUDA) of one gradient; an error if it is not finite."""
    cuda = ids.is_cuda
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    gradient = nnsight_gradient(model, ids, "model.embed_tokens", logits_to_keep=1)
    if cuda:
        torch.cuda.synchronize()
    spent = time.perf_counter() - start
    if not torch.isfinite(gradient).all():
        raise SystemExit(f"the gradient at {ids.shape[1]} tokens is not finite")
    return spent, torch.cuda.max_memory_allocated() / GIB if cuda else 0.0


def _compare(models: dict, tokens: int, rounds: int) -> list[dict]:
    """A row for each model: medians over rounds that alternate the models, after one call of each to warm up.

    A model that does not fit into memory has a row with that note.
    """
    device = next(models["plain"].parameters()).device
    ids = torch.randint(0, models["plain"].config.vocab_size, (1, tokens), device=device)
    calls, failed = {name: [] for name in models}, set()
    for _ in range(rounds + 1):
        for name in models.keys() - failed:
            try:
                calls[name].append(_one_gradient(models[name], ids))
            except Exception as error:  # nnsight wraps torch's out-of-memory error in a class of its own
                if "out of memory" not in str(error):
                    raise
                failed.add(name)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    rows = []
    for name in models:
        row = {"tokens": tokens, "method": name, "rounds": rounds, "note": ""}
        if name in failed:
            row["note"] = "out of memory"
        else:
            row["seconds"] = statistics.median(spent for spent, _ in calls[name][1:])
            row["peak_gib"] = max(memory for _, memory in calls[name][1:])
        rows.append(row)
    return rows


def main():
    """Measure, print and save; exit code 2 without a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers, to try this script out")
    parser.add_argument("--out", type=Path, help="default: benchmarks/gpu.csv; not written with --tiny")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here, nothing measured; try the script out with --tiny --device cpu", file=sys.stderr)
        return 2
    model = _build(TINY if arguments.tiny else LLAMA_8B, max(arguments.tokens), device)
    models = {"plain": model, "gimkit": gimkit.apply(model)}
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / GIB
    where = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "model": f"Llama, {sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters, bfloat16",
        "weights_gib": weights, "torch": torch.__version__, "transformers": transformers.__version__,
        "nnsight": nnsight.__version__,
    }
    out = arguments.out or (None if arguments.tiny else Path(__file__).parent / "gpu.csv")
    rows = []
    for tokens in arguments.tokens:
        table = pd.DataFrame(_compare(models, tokens, arguments.rounds),
                             columns=["tokens", "method", "rounds", "seconds", "peak_gib", "note"])
        plain = table.iloc[0]
        table.insert(4, "ratio", table.seconds / plain.seconds)
        beyond = table.peak_gib - weights
        table.insert(6, "peak_beyond_weights_ratio", beyond / (plain.peak_gib - weights))
        print(table.round(3).to_string(index=False), flush=True)
        rows.append(table.assign(**where))
        if out:
            write_table(out, pd.concat(rows))
    print(f"saved {out}" if out else "a trial: nothing saved")
    return 0


if __name__ == "__main__":
    sys.exit(main())
