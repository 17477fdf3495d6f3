"""The checks of circuits, in notebook 05."""

import numpy
import torch

from gimkit.circuits import Graph
from gimkit.notebook.checks.answers import close, exercise, random_numbers, recognise, unwritten


@exercise
def cut_circuit(answer) -> None:
    """Exercise 05.1: `answer(scores, real, n, absolute)` is True on the n real edges of highest score, or |score|.

    >>> cut_circuit(lambda *given: None)
    Your turn: return a mask [sources, targets], True on the n best edges.
    """
    real = Graph(2, 2, False, 8).real
    scores = ((random_numbers(*real.shape) - 1) * real).float()
    signed = {True: scores.abs(), False: scores}

    def best(value, n, candidates):
        keep = torch.zeros_like(real)
        keep.view(-1)[value.masked_fill(~candidates, -torch.inf).flatten().topk(n).indices] = True
        return keep

    for absolute, n in ((True, 7), (False, 7), (False, 20)):
        result = answer(scores.clone(), real.clone(), n, absolute)
        if unwritten(result, "return a mask [sources, targets], True on the n best edges."):
            return
        assert isinstance(result, torch.Tensor) and result.shape == real.shape and result.dtype == torch.bool, (
            f"Return a tensor of True and False, one for each cell: shape {list(real.shape)}, dtype torch.bool.")
        value, other = signed[absolute], signed[not absolute]
        recognise(result.float(), [
            (best(other, n, real).float(), f"You cut by {'score' if absolute else '|score|'} although absolute is "
                                           f"{absolute}: does your function look at the argument?"),
            (best(-value, n, real).float(), "These are the worst edges: sort in descending order."),
        ])
        foreign = int((result & ~real).sum())
        assert not foreign, (
            f"{foreign} of your edges do not exist: their source comes after their target. Such cells score 0, which "
            "beats every negative score. Put them at minus infinity before you choose.")
        assert int(result.sum()) == n, (
            f"{int(result.sum())} edges instead of {n}. Take the first n of the sorted edges, of either sign.")
        assert torch.equal(result, best(value, n, real)), "The number is right, the edges are not the best ones."
    print("Correct: n edges by score, or by |score|, and only edges that the model has.")


@exercise
def areas(answer) -> None:
    """Exercise 05.2: `answer(shares, faithfulness)` is (CPR, CMD), the areas under f and |1 - f| by trapezoids.

    >>> areas(lambda shares, faithfulness: None)
    Your turn: return two numbers, (CPR, CMD).
    """
    shares = torch.tensor([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0], dtype=torch.float64)
    kept = torch.tensor([0, 0, 0.03, 0.1, 0.3, 0.7, 0.9, 1.1, 1.2, 1.0], dtype=torch.float64)
    result = answer(shares.clone(), kept.clone())
    if unwritten(result, "return two numbers, (CPR, CMD)."):
        return
    pair = isinstance(result, tuple | list) or (isinstance(result, torch.Tensor) and result.dim() == 1)
    assert pair and len(result) == 2, "Return two numbers: (CPR, CMD)."
    result = torch.tensor([float(number) for number in result], dtype=torch.float64)

    def both(area):
        return torch.tensor([float(area(kept, shares)), float(area((1 - kept).abs(), shares))])

    widths = shares.diff()
    wanted = both(numpy.trapezoid)
    cpr = wanted[0]
    recognise(result, [
        (both(lambda f, x: f.mean()), "This is the mean over the sizes, which lie close together where circuits are "
                                      "small. An area weighs each stretch by its width."),
        (both(lambda f, x: (f[1:] * widths).sum()), "These are rectangles as high as their right end. A trapezoid "
                                                    "takes the mean of both ends."),
        (both(lambda f, x: (f[:-1] * widths).sum()), "These are rectangles as high as their left end. A trapezoid "
                                                     "takes the mean of both ends."),
        (both(lambda f, x: numpy.trapezoid(f, x.log10())), "This is the area over the logarithm of the share. The "
                                                           "figure has such an axis, MIB's areas have not."),
        (wanted.flip(0), "CPR and CMD are the wrong way round."),
    ])
    recognise(result[1], [
        (numpy.trapezoid(1 - kept, shares), "Where f is above 1, your CMD gives back what it took where f is below. "
                                            "Take the absolute value at each size, before the area."),
        (abs(1 - cpr), "That is |1 - CPR|: a circuit that is too low here and too high there would look perfect. Take "
                       "the absolute value at each size, before the area."),
    ])
    assert close(result[0], wanted[0]), "CPR is off: sum (width of the stretch) x (mean of f at its two ends)."
    assert close(result[1], wanted[1]), "CPR is right, CMD is not: the same area, of |1 - f|."
    print(f"Correct: CPR {wanted[0]:.3f} and CMD {wanted[1]:.3f} for a curve that overshoots.")


@exercise
def shuffled_scores(answer) -> None:
    """Exercise 05.3: `answer(scores, real, generator)` shuffles the scores of the real edges over the real edges.

    >>> shuffled_scores(lambda *given: None)
    Your turn: return scores of the same shape, [sources, targets].
    """
    real = Graph(2, 2, False, 8).real
    scores = (random_numbers(*real.shape).exp() * real).float()
    given, draw = scores.clone(), torch.Generator().manual_seed(0)
    result = answer(given, real.clone(), draw)
    if unwritten(result, "return scores of the same shape, [sources, targets]."):
        return
    assert isinstance(result, torch.Tensor) and result.shape == real.shape, (
        f"Return one score for each cell: shape {list(real.shape)}.")
    assert torch.equal(given, scores), "Your function changed the scores that it was given. Write into a copy."
    foreign = int((result[~real] != 0).sum())
    assert not foreign, (
        f"{foreign} scores lie in cells that are no edges, and were lost to the circuit. Reorder scores[real] alone.")
    assert close(result[real].sort().values, scores[real].sort().values), (
        "These are other numbers. The control has to differ from the method in one thing, which edge has which score: "
        "shuffle the same scores.")
    assert not torch.equal(result, scores), "Nothing moved: every edge still has its own score."
    again = answer(scores.clone(), real.clone(), draw)
    assert not torch.equal(again, result), (
        "Two shuffles from one generator are equal. Pass it on: torch.randperm(n, generator=generator); with a seed "
        "of your own every shuffle would be the same.")
    repeated = answer(scores.clone(), real.clone(), torch.Generator().manual_seed(0))
    assert torch.equal(repeated, result), "The same seed gave another order: draw from the generator that is passed in."
    many = torch.stack([answer(scores.clone(), real.clone(), draw)[real] for _ in range(400)]).double()
    spread = scores[real].double().std(correction=0) / 400**0.5
    assert float((many.mean(0) - scores[real].mean()).abs().max()) < 5 * float(spread), (
        "Over many shuffles some edges get higher scores than others, as if a score could only go to a few places. "
        "Every edge must be able to get every score: one permutation of all real edges.")
    print(f"Correct: the same {int(real.sum())} scores, any of them on any edge.")
