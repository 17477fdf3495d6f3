"""How well a decomposition finds the known circuits of a toy."""

import torch

from gimkit.l3d import tucker
from gimkit.l3d.decomposition import Decomposition
from gimkit.l3d.gradients import Divergence, chosen_parameters, divergence_of, per_sample_gradients
from gimkit.l3d.toys import Toy


@torch.inference_mode(False)
def planted(toy: Toy, samples: int = 256, divergence: Divergence = "mse") -> list[torch.Tensor]:
    """The direction of each circuit of a toy, of norm 1: a tensor [circuits, *shape] per parameter.

    >>> planted(toy)[0].shape                                            # "tms": 5 circuits, W_in [5, 2]
    torch.Size([5, 5, 2])

    A circuit's direction is the first right singular vector of gradients: of samples in which only its features are
    active, each against the output of a random sample.

    Args:
        toy: a trained toy.
        samples: gradients for each circuit.
        divergence: a name in `DIVERGENCES`.
    """
    parameters, references = chosen_parameters(toy.module), toy.module(toy.inputs(samples, seed=7))
    rows = []
    for circuit in range(toy.circuits):
        gradients = per_sample_gradients(toy.module, parameters, (toy.only(circuit, samples),), references,
                                         divergence_of(divergence))
        flat = torch.cat([part.flatten(1) for part in gradients], 1)
        rows.append(torch.linalg.svd(flat, full_matrices=False).Vh[0])
    return [part.view(-1, *value.shape) for part, value in
            zip(torch.stack(rows).split([value.numel() for value in parameters.values()], 1), parameters.values())]


def match_circuits(directions: list[tucker.Factors],
                   circuits: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Pair circuits with subnetworks one to one, for the largest sum of |cosine|.

    >>> cosines, subnetworks = match_circuits(found.decoder, planted(toy))
    >>> cosines.shape, sorted(subnetworks)
    (torch.Size([5]), [0, 1, 2, 3, 4])

    Signs are not compared, because L3D does not distinguish a direction from its opposite.

    Args:
        directions: the decoder of a decomposition.
        circuits: of `planted`.

    Returns:
        |cosine| and subnetwork of each circuit; 0 and -1 for circuits without one, where subnetworks are fewer.
    """
    size = torch.sqrt(sum(part.flatten(1).square().sum(1) for part in circuits))[:, None] * tucker.norms(directions)
    cosines = (tucker.inner(directions, circuits) / size.clamp(min=1e-12)).abs()
    from scipy.optimize import linear_sum_assignment  # slow to import

    rows, columns = linear_sum_assignment(-cosines.numpy())
    best, which = torch.zeros(len(cosines)), [-1] * len(cosines)
    for row, column in zip(rows.tolist(), columns.tolist()):
        best[row], which[row] = cosines[row, column], column
    return best, which


def random_cosines(found: Decomposition, circuits: list[torch.Tensor], seed: int = 0) -> torch.Tensor:
    """The control: the matched |cosines| of as many random directions of the same ranks, [circuits].

    >>> random_cosines(found, planted(toy)).shape
    torch.Size([5])
    """
    shapes = [tuple(part.shape[1:]) for part in circuits]
    ranks = [tuple(factors[0].shape[1:]) for factors in found.decoder]
    return match_circuits(tucker.draw(shapes, ranks, len(found), torch.Generator().manual_seed(seed)), circuits)[0]
