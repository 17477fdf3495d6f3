"""Which subnetworks are used on which samples, and whether one of them selects a kind of sample."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy
import pandas
import torch
from nnsight.intervention.envoy import Envoy

from gimkit.l3d import tucker
from gimkit.l3d.decomposition import Decomposition
from gimkit.l3d.gradients import (
    Inputs,
    chosen_parameters,
    divergence_of,
    evaluating,
    module_and_inputs,
    outputs_of,
    per_sample_gradients,
    random_references,
)
from gimkit.l3d.training import energies, reconstruct
from gimkit.results import Result
from gimkit.statistics import auroc


@dataclass(frozen=True, eq=False)
class Activity(Result):
    """The use of each subnetwork on each sample, over several references; `activity` measures it.

    >>> Activity(impact=torch.zeros(200, 5), kept=torch.full((200, 5), 0.1), norm=0.3, squared=0.09).kept.shape
    torch.Size([200, 5])
    """

    impact: torch.Tensor  # [n, v], mean |h|: how far a subnetwork moves a sample's divergence, the paper's I(x, v)
    kept: torch.Tensor  # [n, v], the share of references for which a subnetwork was among the batch's largest
    norm: float  # |g - g^| / |g| over all gradients, the paper's loss
    squared: float  # its square, the reference implementation's loss

    @property
    def p_act(self) -> torch.Tensor:
        """The share of samples for which each subnetwork was kept, [v]."""
        return self.kept.mean(0)


@torch.no_grad()
def activity(found: Decomposition, module: Envoy | torch.nn.Module, inputs: Inputs, references: int = 10, seed: int = 0,
             chunk: int | None = None) -> Activity:
    """The impact of every subnetwork on every sample, whether it was kept, and the errors of the reconstruction.

    >>> gimkit.l3d.activity(found, toy.module, toy.inputs(200, seed=1)).impact.shape
    torch.Size([200, 5])

    Batches have the size and the k of training, in a random order. The errors pool the gradients of all batches and
    references.

    Args:
        found: the decomposition.
        module, inputs, chunk: as in `decompose`.
        references: random other samples for each sample; 10 in the paper.
        seed: of orders and references.

    Returns:
        An `Activity`.

    Source:
        "Measuring and Intervening" of arXiv 2504.00194.
    """
    module, inputs = module_and_inputs(module, inputs)
    k, batch = found.settings["k"], found.settings["batch"]
    divergence, draw = divergence_of(found.settings["divergence"]), torch.Generator().manual_seed(seed)
    impact = kept = missed = whole = 0
    with evaluating([module], gradients=False):
        values = {name: value for name, value in chosen_parameters(module).items() if name in found.names}
        outputs = outputs_of(module, inputs)
        n = len(outputs)
        for _ in range(references):
            order, partner = torch.randperm(n, generator=draw), random_references(n, draw)
            h, used = torch.zeros(2, n, len(found))
            for rows in order.split(batch):
                gradients = per_sample_gradients(module, values, tuple(part[rows] for part in inputs),
                                                 outputs[partner[rows]], divergence, chunk)
                rebuilt, h[rows], used[rows] = reconstruct(found.encoder, found.decoder, gradients, k)
                off, all_of_it = energies(gradients, rebuilt)
                missed, whole = missed + float(off), whole + float(all_of_it)
            impact, kept = impact + h.abs() / references, kept + used / references
    return Activity(impact, kept, (missed / whole) ** 0.5, missed / whole)


def mutual_information(kept: torch.Tensor, positive: torch.Tensor) -> float:
    """Mutual information, in bits, of a subnetwork being kept with a sample being positive.

    >>> mutual_information(torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([True, True, False, False]))
    1.0

    Args:
        kept: shares of references, [n].
        positive: whether a sample is of the kind in question, [n].
    """
    joint = torch.stack([(part * side).double().mean() for part in (kept, 1 - kept) for side in (positive, ~positive)])
    joint = joint.view(2, 2)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float(torch.where(joint > 0, joint * (joint / independent.clamp(min=1e-300)).log2(), 0).sum())


def selection(first: Activity, new: Activity, labels: Sequence[str], new_labels: Sequence[str], shuffles: int = 20,
              seed: int = 0) -> pandas.DataFrame:
    """For every kind of sample the subnetwork that selects it best, and how well it does so on new samples.

    >>> x, new = toy.inputs(100, seed=1), toy.inputs(100, seed=2)
    >>> kinds, new_kinds = (["active" if row else "not" for row in part[:, 0] != 0] for part in (x, new))
    >>> selection(activity(found, toy.module, x), activity(found, toy.module, new), kinds, new_kinds).columns.tolist()
    ['kind', 'subnetwork', 'auroc', 'bits', 'shuffled_auroc', 'shuffled_bits']

    Args:
        first: `Activity` on the samples by which subnetworks are chosen.
        new: `Activity` on the samples by which they are judged.
        labels, new_labels: the kind of each sample.
        shuffles: rounds of the control.
        seed: of the shuffles.

    Returns:
        A row for each kind. subnetwork: the one whose impact separates the kind best from all others on the first
        samples. auroc: of its impact on the new samples. bits: mutual information of its being kept there with the
        kind. shuffled_auroc, shuffled_bits: the control, means of the same choice and judgement over shuffled labels.
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
    """The second control: as many random directions of the same ranks, of norm 1, the same as encoder and decoder.

    >>> len(untrained(found))
    5
    """
    shapes = [tuple(factor.shape[2] for factor in factors[1:]) for factors in found.decoder]
    ranks = [tuple(factors[0].shape[1:]) for factors in found.decoder]
    directions = tucker.draw(shapes, ranks, len(found), torch.Generator().manual_seed(seed))
    tucker.normalise(directions)
    return replace(found, encoder=directions, decoder=directions)


def selection_with_controls(found: Decomposition, module: Envoy | torch.nn.Module, inputs: Inputs, kinds: Sequence[str],
                            seed: int = 0, references: int = 3) -> pandas.DataFrame:
    """`selection` of trained and of untrained directions, with the errors and the share of dead subnetworks.

    >>> x, new = toy.inputs(100, seed=1), toy.inputs(100, seed=2)
    >>> kinds = [["active" if row else "not" for row in part[:, 0] != 0] for part in (x, new)]
    >>> selection_with_controls(found, toy.module, (x, new), kinds).columns.tolist()[6:]
    ['untrained_auroc', 'untrained_bits', 'norm', 'squared', 'dead', 'n', 'seed']

    Args:
        found: the decomposition.
        module: as in `decompose`.
        inputs, kinds: of the samples that choose, then of the new ones that judge.
        seed: of the references, the shuffles and the untrained directions.
        references: as in `activity`.

    Returns:
        The table of `selection`, with the same numbers of untrained directions, the errors on new samples by both
        definitions (`norm`, `squared`), and `dead`, the share of dead subnetworks.
    """
    first, new = (activity(found, module, x, references, seed) for x in inputs)
    table = selection(first, new, *kinds, seed=seed)
    control = untrained(found, seed)
    random = selection(*(activity(control, module, x, references, seed) for x in inputs), *kinds, shuffles=1)
    return table.assign(untrained_auroc=random["auroc"], untrained_bits=random["bits"], norm=new.norm,
                        squared=new.squared, dead=float(found.dead.float().mean()), n=len(found), seed=seed)
