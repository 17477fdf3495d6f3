"""Trains models whose circuit is known: `python -m benchmarks.planted.train induction-gpt2 --seed 0`.

Strict interchange intervention training, as for InterpBench (arXiv 2407.14494). The loss has three parts: the
program's answers; the heads and MLPs of some steps patched, where the answer is the program's with these steps' values
replaced; a random half of the other heads and MLPs patched, where the answer stays. Patched at all positions. Unlike
in InterpBench, several steps are patched at once, each from an input of its own: that trains edges too, since a step
has to go by the steps that it reads and by nothing else.
"""

import argparse
import sys
import time
from itertools import product
from pathlib import Path

import pandas
import torch
from nnsight import TransformersModel
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import gimkit
from benchmarks.planted.aligned import ALIGNED, Aligned
from benchmarks.planted.prompts import START, tokenizer_of
from gimkit.circuits import Circuit
from gimkit.cli import run_command
from gimkit.errors import check_all_known, check_whole
from gimkit.files import write_table
from gimkit.model.residual_stream import graph_of, residual_stream_of

FOLDER, CHECKS = Path(__file__).parent / "trained", Path(__file__).parent / "trained.csv"
SHAPES, HEADS = ("gpt2", "llama"), 4
MODELS = tuple(f"{program}-{shape}" for program, shape in product(ALIGNED, SHAPES))
STEPS = {"induction": 1000, "counts": 400, "other-name": 8000, "sums": 6000}  # of training
BATCH, RATE = 64, 3e-3
LEAST, MOST, ALONE = 0.99, 0.1, 0.95  # accuracies at least, the unaligned parts' effect at most, the circuit's accuracy


def program_of(name: str) -> Aligned:
    """The program of a model's name.

    >>> program_of("counts-llama").layers
    2
    """
    return ALIGNED[name.rpartition("-")[0]]


def build(name: str, seed: int) -> PreTrainedModel:
    """The untrained model.

    >>> build("counts-llama", seed=0).config.hidden_size
    48
    """
    torch.manual_seed(seed)
    program = program_of(name)
    length = program.draw(torch.Generator(), 1).shape[1]
    common = dict(vocab_size=1 + len(program.words), bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
                  initializer_range=0.1)
    if name.endswith("gpt2"):
        return GPT2LMHeadModel(GPT2Config(n_layer=program.layers, n_embd=32, n_head=HEADS, n_positions=length,
                                          resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **common))
    return LlamaForCausalLM(LlamaConfig(
        num_hidden_layers=program.layers, hidden_size=48, num_attention_heads=HEADS, num_key_value_heads=2,
        intermediate_size=96, max_position_embeddings=length,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0}, **common))


def places_of(program: Aligned) -> list[str]:
    """The heads and MLPs, in the order in which they run.

    >>> places_of(ALIGNED["counts"])[:6]
    ['a0.h0', 'a0.h1', 'a0.h2', 'a0.h3', 'm0', 'a1.h0']
    """
    return [place for layer in range(program.layers)
            for place in (*(f"a{layer}.h{head}" for head in range(HEADS)), f"m{layer}")]


def run(model: PreTrainedModel, ids: torch.Tensor, rows: torch.Tensor | None = None, source=()) -> tuple:
    """Logits, and what each layer's heads and MLP give; some of them patched.

    >>> logits, outputs = run(build("counts-gpt2", seed=0), torch.zeros(2, 5, dtype=torch.long))
    >>> logits.shape, [tuple(each.shape) for each in outputs[:2]]
    (torch.Size([2, 5, 7]), [(2, 5, 4, 8), (2, 5, 1, 32)])

    Args:
        model: of `build`.
        ids: [n, positions].
        rows: [n, places], the row of `source` that each head or MLP has its output from; -1 for its own (`places_of`).
        source: the outputs of another run.
    """
    seen, hooks = [], []

    def visit(value):  # [n, positions, heads or 1, size]
        if rows is not None:
            at, parts = sum(each.shape[2] for each in seen), range(value.shape[2])
            own = rows[:, at:at + len(parts)]
            other = source[len(seen)].transpose(1, 2)[own, parts].transpose(1, 2)
            value = torch.where((own >= 0)[:, None, :, None], other, value)
        seen.append(value)
        return value

    for name, part in model.named_modules():
        if name.endswith(("attn.c_proj", "attn.o_proj")):
            hooks.append(part.register_forward_pre_hook(
                lambda part, given: visit(given[0].unflatten(-1, (HEADS, -1))).flatten(-2)))
        elif name.endswith(".mlp"):
            hooks.append(part.register_forward_hook(
                lambda part, given, output: visit(output[:, :, None])[:, :, 0]))
    try:
        return model(ids, use_cache=False).logits, seen
    finally:
        for hook in hooks:
            hook.remove()


def aligned(program: Aligned) -> torch.Tensor:
    """Which places are a step's [places].

    >>> aligned(ALIGNED["counts"]).nonzero()[:, 0]
    tensor([0, 3, 9])
    """
    return torch.tensor([place in {step.place for step in program.steps.values()} for place in places_of(program)])


def patches(program: Aligned, values: dict, chosen: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """Chosen steps [n, steps] patched, each from another row: the rows of `run`, and the values of `Aligned.answers`.

    >>> ids = torch.randint(1, 4, (5, 8))
    >>> rows, patched = patches(ALIGNED["counts"], ALIGNED["counts"].values(ids), torch.ones(5, 3, dtype=torch.bool))
    >>> rows[:, [0, 1, 3]].T
    tensor([[ 1,  2,  3,  4,  0],
            [-1, -1, -1, -1, -1],
            [ 2,  3,  4,  0,  1]])
    """
    places, n = places_of(program), len(chosen)
    rows, patched = torch.full((n, len(places)), -1), {}
    for i, (name, step) in enumerate(program.steps.items()):
        source = torch.arange(n).roll(-1 - i)
        rows[:, places.index(step.place)] = torch.where(chosen[:, i], source, -1)
        patched[name] = chosen[:, i], values[name][source]
    return rows, patched


def loss_of(model: PreTrainedModel, program: Aligned, generator: torch.Generator) -> torch.Tensor:
    """Cross-entropy on new inputs: of the answers, and twice that of the patched runs.

    >>> loss_of(build("counts-gpt2", seed=0), ALIGNED["counts"], torch.Generator()).shape
    torch.Size([])
    """
    ids = program.draw(generator, BATCH)
    values, (logits, outputs) = program.values(ids), run(model, ids)
    interchange = (torch.arange(BATCH) < 0.75 * BATCH)[:, None]  # the other rows are for strictness
    chosen, others = (torch.rand(BATCH, n, generator=generator) < 0.5
                      for n in (len(program.steps), len(places_of(program))))
    rows, patched = patches(program, values, chosen & interchange)
    rows = torch.where(others & ~interchange & ~aligned(program), torch.arange(BATCH).roll(-1)[:, None], rows)
    found, _ = run(model, ids, rows, outputs)
    return _cross_entropy(logits, program.answers(ids)) + 2 * _cross_entropy(found, program.answers(ids, patched))


def _cross_entropy(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """After the start token."""
    return cross_entropy(logits[:, 1:].flatten(0, 1), answers[:, 1:].flatten())


def train(name: str, seed: int, steps: int) -> PreTrainedModel:
    """A model after this many steps; the rate rises over 100 steps and falls to 0 at the end.

    >>> train("counts-gpt2", seed=0, steps=1).training
    False
    """
    program, model, generator = program_of(name), build(name, seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in tqdm(range(steps), desc=f"{name}, seed {seed}", delay=2, leave=False):
        optimizer.param_groups[0]["lr"] = RATE * min((step + 1) / 100, 1 - step / steps)
        optimizer.zero_grad()
        loss_of(model, program, generator).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval().requires_grad_(False)


def checks(model: PreTrainedModel, name: str, n: int = 2000, seed: int = 10**6) -> dict[str, float]:
    """What a model is kept for, at the last position of n pairs of new inputs.

    >>> checks(build("counts-gpt2", seed=0), "counts-gpt2", n=50)["interchange"] < 0.9
    True

    Returns:
        accuracy: of the answers. interchange: the lowest accuracy with steps patched, each alone and random sets of
        them, on all pairs and on those where the program's answer changes. strict: accuracy with all other heads and
        MLPs patched at once. unaligned: the mean change of the logit difference by that, as a share of what the other
        input changes; unaligned_most: that of the worst of them alone; aligned_least: the step that matters least.
        alone: accuracy of the program's edges alone (`alone`).
    """
    program = program_of(name)
    places, generator = places_of(program), torch.Generator().manual_seed(seed)
    clean, corrupt = program.two_inputs(n, generator)
    answers, other, values = program.answers(clean)[:, -1], program.answers(corrupt)[:, -1], program.values(corrupt)
    sets = [torch.eye(len(program.steps), dtype=torch.bool)[i].expand(n, -1) for i in range(len(program.steps))]
    sets.append(torch.rand(n, len(program.steps), generator=generator) < 0.5)

    def patched(chosen):
        rows = torch.where(chosen, torch.arange(n)[:, None], -1)
        return run(model, clean, rows, outputs)[0][:, -1]

    def difference(logits):
        return (logits.gather(1, answers[:, None]) - logits.gather(1, other[:, None]))[:, 0]

    with torch.no_grad():
        logits, (ends, outputs) = run(model, clean)[0][:, -1], run(model, corrupt)
        whole = (difference(logits) - difference(ends[:, -1])).abs().mean()
        share = torch.stack([(difference(patched(one)) - difference(logits)).abs().mean() / whole
                             for one in torch.eye(len(places), dtype=torch.bool)])
        found = []
        for chosen in sets:
            rows, wanted = patches(program, values, chosen)
            wanted = program.answers(clean, wanted)[:, -1]
            right = run(model, clean, rows, outputs)[0][:, -1].argmax(-1) == wanted
            found += [float(right.float().mean()), float(right[wanted != answers].float().mean())]
        rest, steps = patched(~aligned(program)), aligned(program)
    return {"accuracy": float((logits.argmax(-1) == answers).float().mean()), "interchange": min(found),
            "strict": float((rest.argmax(-1) == answers).float().mean()),
            "unaligned": float((difference(rest) - difference(logits)).abs().mean() / whole),
            "unaligned_most": float(share[~steps].max()), "aligned_least": float(share[steps].min()),
            "alone": alone(model, name)}


def alone(model: PreTrainedModel, name: str, n: int = 64, seed: int = 3) -> float:
    """The share of prompt pairs that the program's edges alone, all others from the corrupt run, answer right."""
    program = program_of(name)
    wrapped = TransformersModel(model, task="text-generation", tokenizer=_tokenizer(name))
    task = task_from(program, wrapped, name, n, seed)
    return float((gimkit.run(wrapped, task, circuit_of(program, wrapped)) > 0).float().mean())


def task_from(program, model, name: str, n: int, seed: int):
    """A program's prompt pairs, of a compiled or a trained model."""
    clean, corrupt, good, bad = zip(*program.pairs(n, seed))
    return gimkit.tasks.pairs(clean, corrupt, list(zip(good, bad)), model=model, name=name)


def circuit_of(program: Aligned, model) -> Circuit:
    """The edges of a program, in a model trained to run it."""
    graph = graph_of(residual_stream_of(model))
    return Circuit.of(graph, program.edges(graph))


def _tokenizer(name: str):
    return tokenizer_of({word: place for place, word in enumerate((START, *program_of(name).words))})


def passed(found: dict) -> bool:
    """Whether a model is kept: three accuracies of .99, its edges' own of .95, and at most a tenth of the effect in all
    unaligned parts.

    >>> passed({"accuracy": 1.0, "interchange": 0.98, "strict": 1.0, "alone": 1.0, "unaligned": 0.01})
    False
    """
    return (min(found[each] for each in ("accuracy", "interchange", "strict")) >= LEAST and found["alone"] >= ALONE
            and found["unaligned"] <= MOST)


def main(arguments: list[str] | None = None) -> int:
    """Train, check, and write the folders of those that pass; bad input gives one line and exit code 2."""
    parser = argparse.ArgumentParser("python -m benchmarks.planted.train", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", default=MODELS,
                        help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and inputs (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of training (default: each program's own)")
    return run_command(_train, parser.parse_args(arguments))


def _train(options) -> None:
    check_all_known("model", options.names, MODELS)
    seed = check_whole("seed", options.seed, 0)
    for name in options.names:
        steps = STEPS[name.rpartition("-")[0]] if options.steps is None else check_whole("steps", options.steps)
        start, folder = time.process_time(), FOLDER / f"{name}-{seed}"
        model = train(name, seed, steps)
        seconds = time.process_time() - start
        model = model.half().float()  # as it is written
        found = checks(model, name)
        row = {"model": name, "seed": seed, "steps": steps, "cpu_seconds": round(seconds)} | found
        row["kept"] = passed(found)
        print(", ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
                        for key, value in row.items()), flush=True)
        if row["kept"]:
            model.half().save_pretrained(folder)
            _tokenizer(name).save_pretrained(folder)
        table = pandas.read_csv(CHECKS) if CHECKS.is_file() else pandas.DataFrame(columns=list(row))
        others = table[(table["model"] != name) | (table["seed"] != seed)]
        table = pandas.DataFrame([*others.to_dict("records"), row])
        write_table(CHECKS, table.sort_values(["model", "seed"]), digits=4)


if __name__ == "__main__":
    sys.exit(main())
