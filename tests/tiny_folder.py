"""A tiny random GPT-2 with a tokenizer of its own, in a folder, to run notebooks on.

    python tests/tiny_folder.py build/tiny-gpt2
    python .ci/notebooks.py --model build/tiny-gpt2 notebooks/*.py

Of random models about half prefer the wrong name on average, and circuits of these are undefined: the first seed that
prefers the right one is taken.
"""

import sys
from itertools import count

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

import gimkit

TASKS = ("ioi", "ioi_twice", "induction", "agreement", "capital", "greater_than")
OWN = (  # notebook 05's
    "The keys of the old cabinet are", "The doors of the house are", "The pictures of the famous artist are",
    "The key of the old cabinet is", "The door of the house is", "The picture of the famous artist is")


def own_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Bytes and merges, learnt from the prompts that a real model gets."""
    real, texts = gimkit.load("smollm2-135m"), 20 * list(OWN)
    for name in TASKS:
        for pair in getattr(gimkit.tasks, name)(real, n=64, seed=0):
            texts += [f"{pair.clean} {pair.answer}", f"{pair.corrupt} {pair.wrong}"]
    inner = ByteLevelBPETokenizer()
    inner.train_from_iterator(texts * 20, vocab_size=3000, special_tokens=["<s>", "</s>"], show_progress=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, bos_token="<s>", eos_token="</s>",
                                                pad_token="</s>")


def prefers_the_right_name(model) -> bool:
    """Whether clean prompts favour their answers more than corrupt ones, on the prompts of notebook 05."""
    for n, seed in ((8, 0), (4, 100)):
        task = gimkit.tasks.ioi(model, n=n, seed=seed)
        graph = gimkit.score_edges(model, task, method="random").graph
        ends = [gimkit.circuits.Circuit(graph, keep) for keep in (graph.real, graph.real & False)]
        clean, corrupt = gimkit.run(model, task, ends).mean(1)
        if clean <= corrupt:
            return False
    return True


def main(folder: str) -> None:
    """Write the folder."""
    tokenizer = own_tokenizer()
    tokenizer.save_pretrained(folder)
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=3, n_head=4, n_positions=128,
                                     initializer_range=0.3)
    for seed in count():
        torch.manual_seed(seed)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        if prefers_the_right_name(gimkit.load(folder)):
            return print(f"wrote {folder}, seed {seed}")


if __name__ == "__main__":
    main(sys.argv[1])
