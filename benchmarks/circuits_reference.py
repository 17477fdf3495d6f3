"""hannamw/EAP-IG on a random HookedTransformer of GPT-2's shape. Started by circuits.py in the reference's interpreter.

Reads the names of calls from standard input and prints the CPU seconds of each; or prints one peak in MiB. Two changes
to the reference: the tensors that it always puts on "cuda" go to the CPU, and prompts are token ids.
"""

import argparse
import sys

import torch

from benchmarks.measuring import cpu_seconds, peak


def _build(layers: int):
    """A random model with the split inputs that the reference needs, and with folded layer norms, as when loaded."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=layers, d_model=768, n_ctx=1024, d_head=64, n_heads=12, d_mlp=3072, d_vocab=50257, act_fn="gelu_new",
        normalization_type="LNPre", seed=0, device="cpu", use_attn_result=True, use_split_qkv_input=True,
        use_hook_mlp_in=True, ungroup_grouped_query_attention=True)
    return HookedTransformer(config)


def _patch() -> None:
    """Put tensors on the CPU that the reference creates on "cuda", and take token ids as prompts."""
    import eap.attribute
    import eap.evaluate

    def zeros(*size, device=None, _zeros=torch.zeros, **options):
        return _zeros(*size, device="cpu" if device == "cuda" else device, **options)

    def tokenize_plus(model, ids, max_length=None):
        return ids, torch.ones_like(ids), torch.full((len(ids),), ids.shape[1]), ids.shape[1]

    torch.zeros = zeros
    eap.attribute.tokenize_plus = eap.evaluate.tokenize_plus = tokenize_plus


def _prompts(rows: int, tokens: int) -> list:
    """One batch of random (clean, corrupt, label)."""
    ids = torch.randint(0, 50257, (2, rows, tokens), generator=torch.Generator().manual_seed(0))
    return [(ids[0], ids[1], None)]


def _difference(logits, clean_logits, lengths, label):
    """The difference of two logits at the last position, summed over rows."""
    return (logits[:, -1, 7] - logits[:, -1, 8]).sum()


def _ways(model) -> dict:
    """{name: function of a batch}."""
    from eap.attribute import attribute
    from eap.evaluate import evaluate_graph
    from eap.graph import Graph

    def scored(method, embedding_alone=False, **options):
        def run(batches):
            model.requires_grad_(not embedding_alone)
            model.embed.W_E.requires_grad_(True)
            attribute(model, Graph.from_model(model), batches, _difference, method, quiet=True, **options)
            model.zero_grad()  # the gradients of parameters belong to this call's memory, not to the next one's
        return run

    half = Graph.from_model(model)
    half.in_graph |= half.real_edge_mask & (torch.rand(half.real_edge_mask.shape) < 0.5)
    half.nodes_in_graph[:] = True

    def forward(batches):
        with torch.no_grad():
            model(batches[0][0])

    return {
        "gradient": scored("EAP"), "ig-inputs": scored("EAP-IG-inputs", ig_steps=5),
        "gradient, W_E alone": scored("EAP", True), "forward": forward,
        "circuit": lambda batches: evaluate_graph(model, half, batches, _difference, quiet=True),
    }


def main():
    """Measure what standard input names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", help="folder of hannamw/EAP-IG")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--peak", metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.append(arguments.clone + "/src")
    functions = _ways(_build(arguments.layers))
    _patch()
    small, batch = _prompts(1, 4), _prompts(arguments.rows, arguments.tokens)
    if arguments.peak:
        run = functions[arguments.peak]
        return print(peak(lambda: run(small), lambda: run(batch)))
    for run in functions.values():
        run(small)
    print("ready", flush=True)
    for line in sys.stdin:
        print(cpu_seconds(functions[line.strip()], batch), flush=True)


if __name__ == "__main__":
    main()
