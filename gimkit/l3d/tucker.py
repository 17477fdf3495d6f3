"""Low-rank directions in parameter space: one Tucker decomposition per parameter tensor and subnetwork.

A direction's part in a tensor [I1 ... IN] is a core [R1 ... RN] times a factor [Rn, In] along each axis. Everything is
stacked over v subnetworks: a tensor's `Factors` are (core [v, R1 ... RN], factor [v, R1, I1], ..., factor [v, RN, IN]),
and directions are a list of Factors, one per tensor. Only `dense` writes a whole direction out.
"""

from collections.abc import Sequence

import torch

Factors = tuple[torch.Tensor, ...]
AXES = "cdefghijklm"  # of a parameter tensor; ranks have the capital letters


def draw(shapes: Sequence[tuple[int, ...]], ranks: Sequence[tuple[int, ...]], n: int, generator: torch.Generator,
         dtype: torch.dtype = torch.float32) -> list[Factors]:
    """n random directions: every core and factor is standard normal, divided by n.

    >>> draw([(5, 2), (5,)], [(1, 1), (1,)], 3, torch.Generator())[0][1].shape          # [v, R1, I1]
    torch.Size([3, 1, 5])

    Args:
        shapes: of the parameter tensors.
        ranks: of each tensor, one number per axis.
        n: directions.
        generator: of the random numbers.
        dtype: of the factors.

    Source:
        the reference implementation.
    """
    def normal(*size):
        return torch.randn(n, *size, generator=generator, dtype=dtype) / n

    return [(normal(*rank), *(normal(r, size) for r, size in zip(rank, shape))) for shape, rank in zip(shapes, ranks)]


def inner(directions: list[Factors], gradients: list[torch.Tensor]) -> torch.Tensor:
    """Inner products of every gradient with every direction, [b, v].

    >>> directions = draw([(5, 2), (5,)], [(1, 1), (1,)], 3, torch.Generator())
    >>> inner(directions, [torch.ones(7, 5, 2), torch.ones(7, 5)]).shape
    torch.Size([7, 3])

    Args:
        directions: v of them.
        gradients: one tensor [b, I1 ... IN] per parameter.
    """
    total = 0
    for factors, gradient in zip(directions, gradients):
        axis, part = _all_but_one(factors)
        b, size, rank = len(gradient), gradient.shape[axis + 1], factors[0].shape[axis + 1]
        rows = gradient.movedim(axis + 1, 1).reshape(b * size, -1)
        once = rows @ part.flatten(0, 1).reshape(part.shape[0] * rank, -1).T
        once = once.view(b, size, -1, rank)  # [b, I, v, R]; I and R belong to the axis that was left out
        total = total + torch.einsum("bivr,vri->bv", once, factors[axis + 1])
    return total


def combine(directions: list[Factors], coefficients: torch.Tensor) -> list[torch.Tensor]:
    """Weighted sums of directions: a tensor [b, I1 ... IN] per parameter.

    >>> directions = draw([(5, 2), (5,)], [(1, 1), (1,)], 3, torch.Generator())
    >>> [part.shape for part in combine(directions, torch.ones(7, 3))]
    [torch.Size([7, 5, 2]), torch.Size([7, 5])]

    Args:
        directions: v of them.
        coefficients: [b, v], a row for each sum.
    """
    sums = []
    for factors in directions:
        axis, part = _all_but_one(factors)
        weighted = torch.einsum("bv,vri->bivr", coefficients, factors[axis + 1])
        whole = weighted.flatten(2).flatten(0, 1) @ part.flatten(0, 1).reshape(weighted[0, 0].numel(), -1)
        others = [factor.shape[2] for n, factor in enumerate(factors[1:]) if n != axis]
        sums.append(whole.view(len(coefficients), -1, *others).movedim(1, axis + 1))
    return sums



def norms(directions: list[Factors]) -> torch.Tensor:
    """The joint L2 norm of each direction over all its tensors, [v].

    >>> norms([(torch.tensor([[3.0]]), torch.tensor([[[1.0, 0.0]]])), (torch.tensor([[4.0]]), torch.ones(1, 1, 1))])
    tensor([5.])
    """
    total = 0
    for core, *factors in directions:
        shared = core
        for axis, factor in enumerate(factors):
            overlap = torch.einsum("vri,vsi->vrs", factor, factor)
            shared = torch.einsum("vr...,vrs->vs...", shared.movedim(axis + 1, 1), overlap).movedim(1, axis + 1)
        total = total + (shared * core).flatten(1).sum(1)
    return total.clamp(min=0).sqrt()


@torch.no_grad()
def normalise(directions: list[Factors]) -> None:
    """Scale every direction to joint L2 norm 1, in place; a direction of norm 0 stays as it is.

    The core and each factor of a tensor are divided by the same number.

    >>> directions = draw([(5, 2), (5,)], [(1, 1), (1,)], 3, torch.Generator())
    >>> normalise(directions)
    >>> torch.allclose(norms(directions), torch.ones(3))
    True

    Source:
        "unit vectors" in section 2 of arXiv 2504.00194. The reference implementation scales so that the norms of
        the tensors sum to 1.
    """
    scale = norms(directions)
    divide(directions, torch.where(scale > 0, scale, 1))


def divide(directions: list[Factors], scale: torch.Tensor) -> None:
    """Divide every direction by its number in scale, in place.

    >>> directions = [(torch.tensor([[8.0]]), torch.tensor([[[4.0]]]))]
    >>> divide(directions, torch.tensor([4.0]))
    >>> directions
    [(tensor([[4.]]), tensor([[[2.]]]))]

    Args:
        directions: v of them.
        scale: [v], or [seeds, v] where the factors have an axis of seeds too.
    """
    for factors in directions:
        root = scale ** (1 / len(factors))
        for factor in factors:
            factor.div_(root.view(*scale.shape, *[1] * (factor.ndim - scale.ndim)))


def dense(directions: list[Factors], which: int) -> list[torch.Tensor]:
    """One direction written out: a tensor [I1 ... IN] per parameter.

    >>> directions = draw([(5, 2), (5,)], [(1, 1), (1,)], 3, torch.Generator())
    >>> [part.shape for part in dense(directions, 0)]
    [torch.Size([5, 2]), torch.Size([5])]
    """
    one = torch.eye(len(directions[0][0]))[which:which + 1].to(directions[0][0])
    return [part[0] for part in combine(directions, one)]


def _all_but_one(factors: Factors) -> tuple[int, torch.Tensor]:
    """The core times all factors except one, [v, its R, other axes], and that one's axis: where low rank saves most."""
    core, *rest = factors
    axis = max(range(len(rest)), key=lambda n: rest[n].shape[2] / rest[n].shape[1])
    names = AXES[:len(rest)]
    operands, inputs = [core], ["v" + names.upper()]
    for n, factor in enumerate(rest):
        if n != axis:
            operands.append(factor)
            inputs.append("v" + names[n].upper() + names[n])
    output = "v" + names[axis].upper() + "".join(name for n, name in enumerate(names) if n != axis)
    while len(operands) > 1:  # one factor at a time
        done = inputs[0].replace(inputs[1][1], "") + inputs[1][2]
        operands[:2] = [torch.einsum(f"{inputs[0]},{inputs[1]}->{done}", *operands[:2])]
        inputs[:2] = [done]
    return axis, torch.einsum(f"{inputs[0]}->{output}", operands[0])
