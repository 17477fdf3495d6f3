"""L3D on language models: a sample is one position of a text, its output the logits there."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas
import torch
from nnsight.intervention.envoy import Envoy
from torch import nn

from gimkit import tasks
from gimkit.errors import GimkitError
from gimkit.l3d.decomposition import Decomposition, decompose
from gimkit.l3d.selection import selection_with_controls
from gimkit.model.apply import check_unedited
from gimkit.remote.trace import steady

TASKS = ("ioi", "ioi_twice", "greater_than", "agreement", "pronoun", "capital", "hypernymy", "induction")
ELSEWHERE = "elsewhere"
SETTINGS = {"n": 24, "rank": 2, "divergence": "kl", "epochs": 30, "rate": 0.005, "every": 3}


class NextToken(nn.Module):
    """Logits at one position of each text, [n, vocabulary], from embeddings.

    >>> module = gimkit.l3d.NextToken(gimkit.load("mini-gpt2"))
    >>> module(*module.inputs(task.clean, task.last)).shape
    torch.Size([64, 561])

    Embeddings are looked up beforehand, because token ids cannot pass through `torch.func.vmap` in every architecture;
    so the input embedding is not decomposed where it is used as an input. Sliding attention windows are not applied:
    texts must not be longer than the window.

    Args:
        model: an nnsight language model; its parameters keep their names, with "model." in front.

    Raises:
        GimkitError: the model carries edits, gimkit's or your own.
    """

    def __init__(self, model: Envoy) -> None:
        super().__init__()
        check_unedited(model)
        if getattr(model, "_edits", None):
            raise GimkitError("L3D runs the module itself, where nnsight edits do not act; give a model without them")
        self.model = getattr(model, "_module", model)

    def inputs(self, ids: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The samples: embeddings [n, seq, width] of ids [n, seq], padded on the right, and positions [n]."""
        if bool((last >= ids.shape[1]).any()) or bool((last < 0).any()):
            raise GimkitError(f"a position is outside the texts, which have {ids.shape[1]} tokens")
        with steady(self.model, gradients=False):
            return self.model.get_input_embeddings()(ids), last

    def forward(self, embeddings: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        seq = embeddings.shape[1]
        lowest = torch.finfo(embeddings.dtype).min
        mask = embeddings.new_full((seq, seq), lowest).triu(1)  # given with four axes, no model changes it
        logits = self.model(inputs_embeds=embeddings, attention_mask=mask[None, None], use_cache=False).logits
        return logits.gather(1, last[:, None, None].expand(-1, 1, logits.shape[-1]))[:, 0]


def attention_names(module: nn.Module, blocks: Iterable[int]) -> list[str]:
    """The parameters of the attention of some blocks.

    >>> attention_names(gimkit.l3d.NextToken(gimkit.load("mini-gpt2")), [2])
    ['model.transformer.h.2.attn.c_attn.weight', ..., 'model.transformer.h.2.attn.c_proj.bias']

    Args:
        module: a language model.
        blocks: their numbers, from 0.

    Raises:
        GimkitError: a block has no parameter with "attn" or "attention" in its name.
    """
    found = []
    for block in blocks:
        names = [name for name, _ in module.named_parameters()
                 if re.search(rf"\.{block}\.(\w*attn|\w*attention)\.", name)]
        if not names:
            raise GimkitError(f"block {block} has no parameters of attention (a name such as 'h.{block}.attn.'); "
                              "blocks are counted from 0")
        found += names
    return found


def task_samples(model: Envoy, n: int, seed: int = 0,
                 names: Iterable[str] = TASKS) -> tuple[tuple[torch.Tensor, ...], list[str]]:
    """Two samples of each of n prompts of every task: the position of the answer, and another one at random.

    >>> (embeddings, last), kinds = task_samples(gimkit.load("mini-gpt2"), n=4)
    >>> len(last), kinds[0], kinds[4]
    (64, 'ioi', 'elsewhere')

    Args:
        model: an nnsight model with its tokenizer.
        n: prompts of each task.
        seed: of prompts and positions.
        names: of `gimkit.tasks`.

    Returns:
        The inputs of `NextToken`, and the kind of each sample: a task's name or "elsewhere". Prompts are padded on
        the right to one length, which no position reads.
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


def attention_run(model: Envoy, blocks: Iterable[int] = (2,), prompts: int = 48, seed: int = 0,
                  checkpoint: str | Path | None = None, progress: bool = True, names: Iterable[str] = TASKS,
                  **settings: Any) -> tuple[Decomposition, pandas.DataFrame]:
    """Decompose the attention of some blocks, and test whether its subnetworks select a task.

    >>> found, table = attention_run(gimkit.load("mini-gpt2"), blocks=[2], prompts=2, names=["ioi"], epochs=1, n=4)
    >>> table[["kind", "auroc", "untrained_auroc", "shuffled_auroc"]].shape
    (2, 4)

    Args:
        model: an nnsight language model with its tokenizer.
        blocks: their numbers, from 0.
        prompts: of each task to train on, and as many new ones to judge by.
        seed, checkpoint, progress: as in `decompose`.
        names: of `gimkit.tasks`.
        settings: fields of `gimkit.l3d.training.Settings`; the others are those of SETTINGS, which are smaller than
            the paper's (100 subnetworks, 10000 texts, 100 epochs, ranks of a tenth of each axis).

    Returns:
        The decomposition, and the table of `selection_with_controls`.
    """
    module = NextToken(model)
    inputs, kinds = zip(*(task_samples(model, prompts, seed + i, names) for i in (0, 10_000)))
    found = decompose(module, inputs[0], parameters=attention_names(module, blocks), seed=seed, checkpoint=checkpoint,
                      progress=progress, **SETTINGS | settings)
    return found, selection_with_controls(found, module, inputs, kinds, seed)
