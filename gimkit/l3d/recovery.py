"""How well a decomposition finds the circuits that a toy is known to have."""

import numpy
import torch

from gimkit.l3d import tucker
from gimkit.l3d.decompose import divergence_of
from gimkit.l3d.decomposition import Decomposition
from gimkit.l3d.gradients import chosen, per_sample_gradients
from gimkit.l3d.toys import Toy


@torch.inference_mode(False)
def planted(toy: Toy, samples: int = 256, divergence: str = "mse") -> list[torch.Tensor]:
    """The direction of each circuit that a toy has, norm 1: a tensor [circuits, *shape] per parameter.

    >>> planted(toy)[0].shape                                            # "tms": 5 circuits, W_in [5, 2]
    torch.Size([5, 5, 2])

    A circuit's direction is the first singular vector of the gradients of samples in which nothing but its features are
    active, each against the output of a random sample: where they all move the output.
    """
    parameters, references = chosen(toy.module), toy.module(toy.inputs(samples, seed=7))
    rows = []
    for circuit in range(toy.circuits):
        gradients = per_sample_gradients(toy.module, parameters, (toy.only(circuit, samples),), references,
                                         divergence_of(divergence))
        flat = torch.cat([part.flatten(1) for part in gradients], 1)
        rows.append(torch.linalg.svd(flat, full_matrices=False).Vh[0])
    return [part.view(-1, *value.shape) for part, value in
            zip(torch.stack(rows).split([value.numel() for value in parameters.values()], 1), parameters.values())]


def matched(directions: list[tucker.Factors], circuits: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Cosines of circuits with subnetworks, matched one to one for the largest sum: |cosine| and subnetwork of each.

    >>> cosines, subnetworks = matched(found.decoder, planted(toy))

    With fewer subnetworks than circuits the ones left over have cosine 0 and subnetwork -1.
    Signs are not compared: L3D finds a direction as readily as its opposite.
    """
    size = torch.sqrt(sum(part.flatten(1).square().sum(1) for part in circuits))[:, None] * tucker.norms(directions)
    cosines = (tucker.inner(directions, circuits) / size.clamp(min=1e-12)).abs()
    from scipy.optimize import linear_sum_assignment  # slow to import

    rows, columns = linear_sum_assignment(-cosines.numpy())
    best, which = torch.zeros(len(cosines)), [-1] * len(cosines)
    for row, column in zip(rows.tolist(), columns.tolist()):
        best[row], which[row] = cosines[row, column], column
    return best, which


def unrelated(found: Decomposition, circuits: list[torch.Tensor], seed: int = 0) -> torch.Tensor:
    """The control: the matched cosines of as many random directions of the same ranks, [circuits]."""
    shapes = [tuple(part.shape[1:]) for part in circuits]
    ranks = [tuple(factors[0].shape[1:]) for factors in found.decoder]
    return matched(tucker.draw(shapes, ranks, len(found), torch.Generator().manual_seed(seed)), circuits)[0]


def coefficients(found: Decomposition, toy: Toy) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The coefficients that subnetworks spell out and the true ones, [subnetworks in use, outputs] each.

    >>> guessed, true = coefficients(found, toy)                        # y = x A, toy "superposed"
    >>> numpy.corrcoef(guessed.ravel(), true.ravel())[0, 1] ** 2        # r^2

    W_in W_out of a subnetwork, the row of the feature with the largest sum of |coefficients|, against that row of A; as
    the reference implementation's notebook has it, but for dead subnetworks, which are left out. Up to scale: the
    directions are unit vectors.
    """
    guessed, true = [], []
    for which in (~found.dead).nonzero().flatten().tolist():
        part = found.subnetwork(which)
        paths = part["W_in"] @ part["W_out"]
        feature = int(paths.abs().sum(1).argmax())
        guessed.append(paths[feature])
        true.append(toy.coefficients[feature])
    return torch.stack(guessed).numpy(), torch.stack(true).numpy()


def r_squared(guessed: numpy.ndarray, true: numpy.ndarray) -> float:
    """The squared correlation of all numbers of one with those of the other."""
    return float(numpy.corrcoef(guessed.ravel(), true.ravel())[0, 1] ** 2)
