"""Rows put between their clean and their corrupt run.

Rows of a batch are b clean prompts, then their b corrupt ones, then further points.
"""

import torch

from gimkit.interventions.residual_stream import by_row, tensor_of
from gimkit.interventions.weights import leaf_of


def plus_points(model, embedding: str, b: int, shares: list, points) -> torch.Tensor:
    """Make the embedding a leaf and return it; rows after the first 2b are at shares from corrupt (0) to clean (1), or
    given as points.
    """
    module = model.get(embedding)
    value = module.output.detach().clone()
    for i, share in enumerate(shares):
        value[(2 + i) * b:(3 + i) * b] = value[b:2 * b] + share * (value[:b] - value[b:2 * b])
    if points is not None:
        value[2 * b:] = points
    module.output = value = leaf_of(model, value)
    return value


def put_between(x: torch.Tensor, shares: dict, b: int, rows: int) -> torch.Tensor:
    """x, on {first row: share} groups of b of its rows between its corrupt (0) and its clean (1) value, as constants.

    >>> put_between(torch.tensor([[[1.0]], [[0.0]], [[9.0]]]), {2: 0.25}, b=1, rows=3).flatten()
    tensor([1.0000, 0.0000, 0.2500])
    """
    if not shares:
        return x
    out = x.clone()
    rowwise = by_row(out, rows)
    for start, share in shares.items():
        rowwise[start:start + b] = (rowwise[b:2 * b] + share * (rowwise[:b] - rowwise[b:2 * b])).detach()
    return out


def put_output(module, shares: dict, b: int, rows: int) -> torch.Tensor:
    """Put a module's output between its corrupt and its clean value, and return it."""
    value = module.output
    out = put_between(tensor_of(value), shares, b, rows)
    if shares:
        module.output = (out, *value[1:]) if isinstance(value, tuple) else out
    return out


def path_points(model, embedding: str, mask: torch.Tensor, point) -> torch.Tensor:
    """One unit step of EAP-GP's path, [b, seq, width], from `point` (None: the clean embeddings) towards the corrupt
    run's logits: by -gradient / |gradient| of ||logits - corrupt logits||^2, each example by itself.
    """
    b = len(mask)
    module = model.get(embedding)
    value = module.output.detach()
    here = leaf_of(model, (value[:b] if point is None else point).clone())
    module.output = torch.cat([here, value[b:]])
    logits = model.output.logits
    gap = (logits[:b] - logits[b:].detach()) * mask[..., None].to(logits)
    gradient = torch.autograd.grad(gap.pow(2).sum(), here)[0]
    length = gradient.flatten(1).norm(dim=1)[:, None, None]
    return (here - gradient / length.clamp(min=1e-30)).detach()
