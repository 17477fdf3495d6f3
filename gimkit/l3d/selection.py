"""Do subnetworks select a kind of sample? AUROC and mutual information, on new samples, beside two controls."""

from dataclasses import replace

import numpy
import pandas
import torch

from gimkit.l3d import tucker
from gimkit.l3d.activity import Activity
from gimkit.l3d.decomposition import Decomposition
from gimkit.l3d.interventions import auroc


def mutual_information(kept: torch.Tensor, positive: torch.Tensor) -> float:
    """Mutual information, in bits, of being kept (a share of references, [n]) with being positive, [n].

    >>> mutual_information(torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([True, True, False, False]))
    1.0
    """
    joint = torch.stack([(part * side).double().mean() for part in (kept, 1 - kept) for side in (positive, ~positive)])
    joint = joint.view(2, 2)
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float(torch.where(joint > 0, joint * (joint / apart.clamp(min=1e-300)).log2(), 0).sum())


def selection(first: Activity, new: Activity, labels, new_labels, shuffles: int = 20,
              seed: int = 0) -> pandas.DataFrame:
    """For every kind of sample the subnetwork that selects it best, and how well it does so on new samples.

    >>> selection(activity(found, module, x), activity(found, module, new_x), kinds, new_kinds)

    first, new: `Activity` on the samples that choose, and on those that judge. labels, new_labels: a kind for each.
    Columns: kind; subnetwork, the one whose impact tells the kind from all others best on the first samples; auroc, of
    its impact on the new ones; bits, mutual information of its being kept there; shuffled_auroc, shuffled_bits: the
    control, means over as many rounds of the same choice and judgement with shuffled labels.
    """
    labels, new_labels = (numpy.asarray(given) for given in (labels, new_labels))
    draw, rows = numpy.random.default_rng(seed), []
    for kind in dict.fromkeys(labels.tolist()):
        chosen, rounds = _judged(first, new, labels == kind, new_labels == kind), []
        for _ in range(shuffles):
            rounds.append(_judged(first, new, draw.permutation(labels == kind), draw.permutation(new_labels == kind)))
        _, aurocs, bits = zip(*rounds)
        rows.append({"kind": kind, "subnetwork": chosen[0], "auroc": chosen[1], "bits": chosen[2],
                     "shuffled_auroc": float(numpy.mean(aurocs)), "shuffled_bits": float(numpy.mean(bits))})
    return pandas.DataFrame(rows)


def _judged(first: Activity, new: Activity, positive, new_positive) -> tuple[int, float, float]:
    """The subnetwork with the best AUROC on the first samples, and its AUROC and bits on the new ones."""
    positive, new_positive = torch.from_numpy(positive), torch.from_numpy(new_positive)
    values = [auroc(column, positive) for column in first.impact.T]
    best = int(numpy.argmax(values))
    return best, auroc(new.impact[:, best], new_positive), mutual_information(new.kept[:, best], new_positive)


def untrained(found: Decomposition, seed: int = 0) -> Decomposition:
    """The second control: as many random directions of the same ranks, encoder and decoder alike, of norm 1."""
    shapes = [tuple(factor.shape[2] for factor in factors[1:]) for factors in found.decoder]
    ranks = [tuple(factors[0].shape[1:]) for factors in found.decoder]
    directions = tucker.draw(shapes, ranks, len(found), torch.Generator().manual_seed(seed))
    tucker.normalise(directions)
    return replace(found, encoder=directions, decoder=directions)
