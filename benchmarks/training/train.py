"""Trains a bundled model from one seed: `python -m benchmarks.training.train mini-gpt2 --seed 2 --out DIR`."""

import argparse
import sys
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy

from benchmarks.training import corpus
from gimkit.cli import run_command
from gimkit.model.load import BUNDLED

CONTEXT = 64
ROWS = 12  # documents are packed into rows of CONTEXT tokens and do not see each other


def build_tokenizer(words: list[str]) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer with one token per word, two digits per token, and `<s>` in front.

    >>> build_tokenizer(["<pad>", "<s>", "<blank>", "<unk>", "Mary", "went"])("Mary went").input_ids
    [1, 4, 5]
    """
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d\d"), "isolated"), pre_tokenizers.Whitespace()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", mask_token="<blank>", unk_token="<unk>",
        padding_side="right", model_max_length=CONTEXT)


def build_model(name: str, vocab: int, seed: int):
    """The untrained model of a bundled name, of five layers of four heads.

    >>> build_model("mini-gpt2", 10, seed=0).config.n_layer
    5
    """
    torch.manual_seed(seed)
    special = dict(vocab_size=vocab, bos_token_id=1, eos_token_id=None, pad_token_id=0, tie_word_embeddings=True)
    if name == "mini-gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(
            n_layer=5, n_embd=128, n_head=4, n_positions=CONTEXT, initializer_range=0.03,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **special))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        num_hidden_layers=5, hidden_size=128, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=352, max_position_embeddings=CONTEXT, initializer_range=0.03, **special))


class Batches:
    """Rows of documents: ids, weights of the targets, positions, and a causal mask for each document.

    Args:
        words: the vocabulary.
        seed: of the documents.
        recipe: RECIPE with a stage's changes.
    """

    def __init__(self, words: list[str], seed: int, recipe: dict):
        self.index, self.rng, self.recipe = {word: i for i, word in enumerate(words)}, Random(seed), recipe
        self.repetition = (self.index["again"], self.index["."])  # which of both follows "came" in `again`
        self.waiting = None

    def document(self, step: int) -> tuple[list[int], list[float]]:
        """The ids of one document, and the weight of each as a target."""
        recipe = self.recipe
        document = corpus.draw(self.rng, corpus.MIXTURES[recipe["mixture"]])
        pieces = [[self.index[word] for word in corpus.PIECES.findall(text)]
                  for text in (document.prompt, document.answer, document.rest)]
        answer = 1.0
        if document.kind in corpus.ABOUT_NAMES and step >= recipe["warm"]:
            answer = recipe["answer_weight"]
        ids = [1] + sum(pieces, [])
        weights = [0.0] + [recipe["body_weight"]] * len(pieces[0]) + [answer] * len(pieces[1])
        if document.kind == "induction":
            weights = [0.0] + [0.02] * len(pieces[0]) + [0.5] * (len(pieces[1]) + len(pieces[2]))
        weights += [recipe["body_weight"]] * (len(ids) - len(weights))
        if document.kind == "again":
            weights = [1.0 if token in self.repetition else weight for token, weight in zip(ids, weights)]
        if self.rng.random() < recipe["blank"]:
            share = self.rng.random() / 2
            for i in range(1, len(ids)):
                if self.rng.random() < share:
                    ids[i], weights[i] = 2, 0.0
            weights = [min(weight, 1.0) for weight in weights]
        return ids, weights

    def draw(self, step: int):
        """One batch: ids, weights and positions [rows, context], and which token may read which."""
        ids, weights = np.zeros((ROWS, CONTEXT), int), np.zeros((ROWS, CONTEXT), np.float32)
        owner, positions = np.full((ROWS, CONTEXT), -1), np.zeros((ROWS, CONTEXT), int)
        for row in range(ROWS):
            used, number = 0, 0
            while True:
                doc_ids, doc_weights = self.waiting or self.document(step)
                self.waiting = (doc_ids, doc_weights)
                end = used + len(doc_ids)
                if end > CONTEXT:
                    break
                ids[row, used:end], weights[row, used:end] = doc_ids, doc_weights
                first = self.rng.randrange(CONTEXT - len(doc_ids) + 1) if self.recipe["shift"] else 0
                owner[row, used:end], positions[row, used:end] = number, range(first, first + len(doc_ids))
                used, number, self.waiting = end, number + 1, None
        owner = torch.from_numpy(owner)
        allowed = (owner[:, None, :, None] == owner[:, None, None, :]).tril()
        return *(torch.from_numpy(x) for x in (ids, weights, positions)), allowed


RECIPE = dict(
    answer_weight=3.0,  # of answers that are names, from step `warm` of a stage on; other answers have 1
    body_weight=0.1,  # of tokens that are no answers
    blank=0.1,  # share of documents with up to half of their tokens replaced by <blank>
    rate=2e-3, muon_rate=4e-3, decay=0.05,  # AdamW, Muon, weight decay of Muon
    shift=False,  # each document at random positions; else learned positions reveal a word's place in its task
    warm=0, cool=0,  # see answer_weight; the rate falls over the last `cool` steps
)
STAGES = (  # each continues the one before with a new optimizer; SELECTION.md explains the choice
    dict(steps=3000, warm=1000, mixture="all"),
    dict(steps=4000, mixture="last"),
    dict(steps=5000, cool=3500, mixture="final", rate=1e-3, muon_rate=2e-3),
)
EMBEDDINGS = ("wte.weight", "wpe.weight", "embed_tokens.weight")


def _optimizers(model, recipe: dict) -> list:
    """Muon for the matrices of the blocks, AdamW for embeddings, norms and biases."""
    inner = {n: p for n, p in model.named_parameters() if p.ndim == 2 and not n.endswith(EMBEDDINGS)}
    others = [p for n, p in model.named_parameters() if n not in inner]
    return [
        torch.optim.Muon(
            inner.values(), recipe["muon_rate"], weight_decay=recipe["decay"], adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, recipe["rate"], (0.9, 0.98), weight_decay=0.0),
    ]


def _run_stage(model, batches: Batches, recipe: dict, watch=None) -> None:
    """Gradient steps on new batches; `watch(step, mean loss)` is called every 250 steps."""
    steps, total = recipe["steps"], 0.0
    opts = _optimizers(model, recipe)
    schedules = [torch.optim.lr_scheduler.LambdaLR(
        opt, lambda i: min(1.0, (i + 1) / 100, 0.02 + (steps - i) / max(recipe["cool"], 1))) for opt in opts]
    model.train()
    for step in range(steps):
        ids, weights, positions, allowed = batches.draw(step)
        logits = model(input_ids=ids, attention_mask=allowed, position_ids=positions, use_cache=False).logits
        losses = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt, schedule in zip(opts, schedules):
            opt.step()
            schedule.step()
            opt.zero_grad()
        total += loss.item()
        if (step + 1) % 250 == 0:
            model.eval()
            watch(step + 1, total / 250)
            model.train()
            total = 0.0
    model.eval()


def train(name: str, seed: int, out: str | Path, report=print, stages=STAGES, watch=None) -> Path:
    """Train a bundled model from one seed, and write weights (fp16 safetensors), config and tokenizer to a folder.

    `python -m benchmarks.training.train mini-gpt2 --seed 2 --out runs/mini-gpt2` takes some 1,500 CPU seconds. The same
    seed gives the same bytes on the same machine.

    Args:
        name: "mini-gpt2" or "mini-llama".
        seed: of weights and documents.
        out: the folder.
        report: a function that gets a line of text every 250 steps.
        stages: of the training.
        watch: a function of (model, tokenizer, stage, step) that returns more text for the report.
    Returns:
        The folder.
    """
    torch.set_num_threads(1)
    words = corpus.vocabulary()
    tokenizer = build_tokenizer(words)
    model = build_model(name, len(words), seed)
    start = time.process_time()
    report(f"{name} seed {seed}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(words)} words")
    for number, stage in enumerate(stages):
        recipe = RECIPE | {"shift": name == "mini-gpt2"} | stage

        def report_step(step, loss, number=number):
            extra = watch(model, tokenizer, number, step) if watch else ""
            report(f"stage {number} step {step} loss {loss:.3f} cpu {time.process_time() - start:.0f}s {extra}")

        _run_stage(model, Batches(words, seed + 1000 * number, recipe), recipe, report_step)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out) as folder:  # each file is moved to its place when all are written
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for file in Path(folder).iterdir():
            file.replace(out / file.name)
    return out


def main(arguments: list[str] | None = None) -> int:
    """Train a bundled model; bad input gives one line and exit code 2."""
    parser = argparse.ArgumentParser("python -m benchmarks.training.train", description="Train a bundled model.")
    parser.add_argument("name", metavar="NAME", choices=BUNDLED, help=" or ".join(BUNDLED))
    parser.add_argument("--seed", type=int, default=0, help="same seed, same weights (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights, config and tokenizer")
    return run_command(_save_trained, parser.parse_args(arguments))


def _save_trained(options) -> None:
    """Train, and print the folder."""
    torch.set_num_threads(1)  # the same bytes on every machine
    options.out.mkdir(parents=True, exist_ok=True)  # an error here comes before half an hour of training
    print(f"wrote {train(options.name, options.seed, options.out)}")


if __name__ == "__main__":
    sys.exit(main())
