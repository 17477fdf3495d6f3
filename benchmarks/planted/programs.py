"""Programs compiled to GPT-2 folders: `python -m benchmarks.planted.programs`. Needs tracr-pypi, jax and dm-haiku.

Only for making the folders beside this file; using them needs neither. A compiled model has no layer norm and attends
with 1/sqrt(key size). Here each norm is the identity (weight 2^16, epsilon 2^32), a spare dimension keeps the mean of
every vector at zero, and queries carry the difference in scale. Two heads a layer, and a whole layer, do nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import haiku
import jax
import numpy
import torch
from tracr.compiler import compiling
from tracr.rasp import rasp
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.planted.prompts import FOLDER, PROGRAMS, START, tokenizer_of

SPARE_HEADS = 2


class Compiled(NamedTuple):
    """A compiled program beside its GPT-2: the compiler's model, ours, and the words of its outputs."""

    source: object
    model: GPT2LMHeadModel
    words: dict


def _same(a, b, comparison=rasp.Comparison.EQ):
    return rasp.Select(a, b, comparison)


def _before(values):
    """Each position's previous value."""
    return rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, lambda key, query: query == key + 1), values,
                          default=None)


def _count():
    """How often each token has occurred so far."""
    return rasp.SelectorWidth(_same(rasp.tokens, rasp.tokens))


def _induction():
    """What followed the last occurrence of this token."""
    return rasp.Aggregate(_same(_before(rasp.tokens), rasp.tokens), rasp.tokens, default=None)


def _reversal():
    """The first three tokens backward: position 3 + i reads position 2 - i."""
    return rasp.Aggregate(_same(rasp.indices, rasp.Map(lambda index: 5 - index, rasp.indices)), rasp.tokens,
                          default=None)


def _pattern():
    """Is this token b, after a?"""
    first, second = (rasp.Map(lambda token, letter=letter: token == letter, rasp.tokens) for letter in "ab")
    return rasp.SequenceMap(lambda a, b: bool(a and b), _before(first), second)


def _brackets():
    """Were there more closing brackets than opening ones?"""
    so_far = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ)
    shares = [rasp.numerical(rasp.Aggregate(so_far, rasp.numerical(rasp.tokens == bracket), default=0))
              for bracket in "()"]
    return rasp.Map(lambda balance: bool(balance < 0), rasp.numerical(rasp.LinearSequenceMap(*shares, 1, -1)))


def _other_name():
    """The name that is not the repeated one: the repeated token, then a name that differs from it."""
    twice = rasp.Aggregate(_same(_count(), rasp.Map(lambda token: 2, rasp.tokens)), rasp.tokens, default=None)
    others = rasp.Select(rasp.tokens, twice, lambda key, query: key != query and key in "ABC")
    return rasp.Aggregate(others, rasp.tokens, default=None)


RASP: dict[str, Callable] = {"induction": _induction, "histogram": _count, "reversal": _reversal, "pattern": _pattern,
                             "brackets": _brackets, "other-name": _other_name}


def compiled(name: str) -> Compiled:
    """A program as a GPT-2 with the compiler's weights."""
    program = PROGRAMS[name]
    source = compiling.compile_rasp_to_model(RASP[name](), set(program.tokens), program.length, causal=True,
                                             compiler_bos=START)
    outputs = source.output_encoder.encoding_map
    inputs = source.input_encoder.encoding_map
    config, params = source.model_config, source.params
    words = dict.fromkeys([*map(str, sorted(inputs, key=inputs.get)), *map(str, sorted(outputs, key=outputs.get))])
    words = {word: place for place, word in enumerate(words)}
    width = len(source.residual_labels)
    heads = config.num_heads + SPARE_HEADS
    size = max(config.key_size, -(-(width + 1) // heads))
    total = heads * size
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(words), n_embd=total, n_layer=config.num_layers + 1, n_head=heads,
        n_inner=config.mlp_hidden_size, n_positions=program.length + 1, activation_function="relu",
        layer_norm_epsilon=2.0**32, tie_word_embeddings=False, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=words[START], eos_token_id=words[START]))
    model.eval().requires_grad_(False)
    for weight in model.parameters():
        weight.zero_()

    def written(matrix) -> torch.Tensor:
        """What is written to the stream: the spare dimension makes its mean zero."""
        matrix = numpy.asarray(matrix, dtype=numpy.float64)
        out = numpy.zeros((len(matrix), total))
        out[:, :width] = matrix
        out[:, width] = -matrix.sum(1)
        return torch.tensor(out, dtype=torch.float32)

    body = model.transformer
    rows = written(params["token_embed"]["embeddings"])
    for word, place in inputs.items():
        body.wte.weight[words[str(word)]] = rows[place]
    body.wpe.weight[:] = written(params["pos_embed"]["embeddings"])[:program.length + 1]
    for norm in (body.ln_f, *(part for block in body.h for part in (block.ln_1, block.ln_2))):
        norm.weight.fill_(2.0**16)
    for layer, block in enumerate(body.h[:config.num_layers]):
        part = f"transformer/layer_{layer}"
        for which, key in enumerate(("query", "key", "value")):
            scale = (size / config.key_size) ** 0.5 if key == "query" else 1.0
            for head in range(config.num_heads):
                place = which * total + head * size
                own = slice(head * config.key_size, (head + 1) * config.key_size)
                weight = numpy.asarray(params[f"{part}/attn/{key}"]["w"])[:, own]
                block.attn.c_attn.weight[:width, place:place + config.key_size] = scale * torch.tensor(weight)
                bias = numpy.asarray(params[f"{part}/attn/{key}"]["b"])[own]
                block.attn.c_attn.bias[place:place + config.key_size] = scale * torch.tensor(bias)
        linear = written(params[f"{part}/attn/linear"]["w"])
        for head in range(config.num_heads):
            block.attn.c_proj.weight[head * size:head * size + config.key_size] = linear[
                head * config.key_size:(head + 1) * config.key_size]
        block.attn.c_proj.bias[:] = written(numpy.asarray(params[f"{part}/attn/linear"]["b"])[None])[0]
        block.mlp.c_fc.weight[:width] = torch.tensor(numpy.asarray(params[f"{part}/mlp/linear_1"]["w"]))
        block.mlp.c_fc.bias[:] = torch.tensor(numpy.asarray(params[f"{part}/mlp/linear_1"]["b"]))
        block.mlp.c_proj.weight[:] = written(params[f"{part}/mlp/linear_2"]["w"])
        block.mlp.c_proj.bias[:] = written(numpy.asarray(params[f"{part}/mlp/linear_2"]["b"])[None])[0]
    for value, place in outputs.items():  # the output's one-hot dimension, found by its label
        model.lm_head.weight[words[str(value)], _output_places(source)[place]] = 1.0
    return Compiled(source, model, words)


def _output_places(source) -> list[int]:
    """Where in the residual stream each output class stands: what the compiler's unembedding reads."""
    probe = jax.numpy.eye(len(source.residual_labels))[None]
    unembed = haiku.transform(lambda x: source.get_compiled_model().unembed(x, use_unembed_argmax=False))
    read = haiku.without_apply_rng(unembed).apply(source.params, probe)
    return [int(column.argmax()) for column in numpy.asarray(read[0]).T]


def largest_difference(name: str, found: Compiled) -> float:
    """The largest difference of the output dimensions between the two models, over the program's prompts."""
    tokenizer, most = tokenizer_of(found.words), 0.0
    outputs, places = found.source.output_encoder.encoding_map, _output_places(found.source)
    for pair in PROGRAMS[name].pairs(64):
        for prompt in pair[:2]:
            words = prompt.split()
            with torch.no_grad():
                ours = found.model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0]
            source = numpy.asarray(found.source.apply(words).transformer_output)[0]
            for value, place in outputs.items():
                logits = ours[:, found.words[str(value)]].numpy()
                most = max(most, float(abs(logits - source[:, places[place]]).max()))
    return most


def main() -> None:
    """Compile every program, compare the logits, and write the folders."""
    for name in PROGRAMS:
        found = compiled(name)
        found.model.save_pretrained(Path(FOLDER) / name)
        tokenizer_of(found.words).save_pretrained(Path(FOLDER) / name)
        print(f"{name}: largest difference from the compiler's logits {largest_difference(name, found):.1e}")


if __name__ == "__main__":
    main()
