"""A task of random tokens for tiny random models: right-padded rows, single answers and answer sets."""

import torch
from tiny import VOCAB

from gimkit.tasks import Pair, Task


def random_task(n=5, length=8, seed=0):
    """n pairs that differ in one token; the first two rows are two tokens shorter; even rows have two bad answers."""
    g = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, VOCAB, (n, length), generator=g)
    corrupt = clean.clone()
    corrupt[:, 2] = torch.randint(3, VOCAB, (n,), generator=g)
    mask = torch.ones(n, length, dtype=torch.bool)
    mask[:2, length - 2:] = False
    good = tuple((i + 5,) for i in range(n))
    bad = tuple((i + 15, i + 25) if i % 2 == 0 else (i + 15,) for i in range(n))
    return Task("made up", clean, corrupt, mask, good, bad, (Pair("", "", "", ""),) * n)


def literal_metric(hf, ids, task, row):
    """logsumexp(good) - logsumexp(bad) of one row, run alone without padding."""
    real = int(task.mask[row].sum())
    with torch.no_grad():
        logits = hf(ids[row:row + 1, :real], use_cache=False).logits[0, -1]
    return (torch.logsumexp(logits[list(task.good[row])], 0) - torch.logsumexp(logits[list(task.bad[row])], 0)).item()
