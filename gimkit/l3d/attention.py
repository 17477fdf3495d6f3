"""Attention blocks of a language model, decomposed on the kit's tasks."""

import re

import pandas
import torch

from gimkit import tasks
from gimkit.errors import GimkitError
from gimkit.l3d.activity import activity
from gimkit.l3d.decompose import decompose
from gimkit.l3d.decomposition import Decomposition
from gimkit.l3d.language import NextToken
from gimkit.l3d.selection import selection, untrained

TASKS = ("ioi", "ioi_twice", "greater_than", "agreement", "pronoun", "capital", "hypernymy", "induction")
ELSEWHERE = "elsewhere"
SETTINGS = {"n": 24, "rank": 2, "divergence": "kl", "epochs": 30, "rate": 0.005, "every": 3}


def attention_names(module: torch.nn.Module, blocks) -> list[str]:
    """The parameters of the attention of these blocks.

    >>> attention_names(l3d.NextToken(gimkit.load("mini-gpt2")), [2])
    ['model.transformer.h.2.attn.c_attn.weight', ..., 'model.transformer.h.2.attn.c_proj.bias']

    Raises GimkitError when a block has none by a name with "attn" or "attention" in it.
    """
    found = []
    for block in blocks:
        mine = [name for name, _ in module.named_parameters()
                if re.search(rf"\.{block}\.(\w*attn|\w*attention)\.", name)]
        if not mine:
            raise GimkitError(f"block {block} has no parameters of attention (a name such as 'h.{block}.attn.'); "
                              "blocks are counted from 0")
        found += mine
    return found


def task_samples(model, n: int, seed: int = 0, names=TASKS) -> tuple[tuple[torch.Tensor, ...], list[str]]:
    """Two samples of each of n prompts a task, and their kinds: the answer's position, and another one at random.

    >>> inputs, kinds = task_samples(gimkit.load("mini-gpt2"), n=48)

    Returns the inputs of `NextToken`, and a kind per sample: a task's name or "elsewhere". Prompts are padded to one
    length on the right, which no position reads.
    """
    draw, ids, last, kinds = torch.Generator().manual_seed(seed), [], [], []
    made = [getattr(tasks, name)(model, n=n, seed=seed) for name in names]
    longest = max(task.clean.shape[1] for task in made)
    for task in made:
        padded = torch.nn.functional.pad(task.clean, (0, longest - task.clean.shape[1]))
        other = (torch.rand(len(task), generator=draw) * (task.last - 1)).long() + 1
        ids += [padded, padded]
        last += [task.last, other]
        kinds += [task.name] * len(task) + [ELSEWHERE] * len(task)
    return NextToken(model).inputs(torch.cat(ids), torch.cat(last)), kinds


def attention_run(model, blocks=(2,), prompts: int = 48, seed: int = 0, checkpoint=None, progress: bool = True,
                  names=TASKS, **settings) -> tuple[Decomposition, pandas.DataFrame]:
    """Decompose the attention of blocks, and ask whether subnetworks select a task.

    >>> found, table = attention_run(gimkit.load("mini-gpt2"), blocks=[2])
    >>> table[["kind", "auroc", "untrained_auroc", "shuffled_auroc"]]

    model: any that `gimkit.load` gives. blocks: numbers. prompts: of each task to train on, and new ones to judge.
    settings: see `Settings`; else SETTINGS, smaller than the paper's (100 subnetworks, 10000 texts, 100 epochs, ranks
    of a tenth). The table is `selection`'s, with the same for untrained directions beside it, the errors on new
    samples by both definitions, and the share of dead subnetworks.
    """
    module = NextToken(model)
    inputs, kinds = zip(*(task_samples(model, prompts, seed + i, names) for i in (0, 10_000)))
    found = decompose(module, inputs[0], parameters=attention_names(module, blocks), seed=seed, checkpoint=checkpoint,
                      progress=progress, **SETTINGS | settings)
    return found, judged(found, module, inputs, kinds, seed)


def judged(found: Decomposition, module, inputs, kinds, seed: int = 0, references: int = 3) -> pandas.DataFrame:
    """`selection` of trained and of untrained directions, with errors and dead share; inputs, kinds: (first, new)."""
    first, new = (activity(found, module, x, references, seed) for x in inputs)
    table = selection(first, new, *kinds, seed=seed)
    control = untrained(found, seed)
    random = selection(*(activity(control, module, x, references, seed) for x in inputs), *kinds, shuffles=1)
    return table.assign(untrained_auroc=random["auroc"], untrained_bits=random["bits"], norm=new.norm,
                        squared=new.squared, dead=float(found.dead.float().mean()), n=len(found), seed=seed)
