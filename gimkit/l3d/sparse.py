"""The sparse reconstruction of a batch of gradients, and how far off it is."""

import torch

from gimkit.l3d.tucker import Factors, combine, inner


def top(h: torch.Tensor, k: float) -> torch.Tensor:
    """Which of h [b, v] belong to the share k with the largest |h| of the whole batch, [b, v], as 0 and 1.

    >>> top(torch.tensor([[3.0, 1.0], [0.5, -2.0]]), 0.5)
    tensor([[1., 0.],
            [0., 1.]])

    The int(k b v) largest survive, at least one; equals of the last one do too, zeros never. The reference
    implementation keeps one more, for its threshold counts from 0 and is kept itself.
    """
    size = h.detach().abs()
    threshold = size.flatten().topk(max(1, int(k * size.numel()))).values[-1]
    return ((size >= threshold) & (size > 0)).to(h.dtype)


def reconstruct(encoder: list[Factors], decoder: list[Factors], gradients: list[torch.Tensor], k: float):
    """Encode, keep the batch's largest, decode: (reconstructions [b, *shape], h [b, v], which were kept [b, v]).

    h = V_in g, reconstruction = V_out^T (h * kept); equations of section 2 of arXiv 2504.00194.
    """
    h = inner(encoder, gradients)
    kept = top(h, k)
    return combine(decoder, h * kept), h, kept


def energies(gradients: list[torch.Tensor], reconstructions: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch's sums of squares of what is missed and of all: |g - g^|^2 and |g|^2."""
    missed = sum((gradient - found).square().sum() for gradient, found in zip(gradients, reconstructions))
    return missed, sum(gradient.square().sum() for gradient in gradients)
