"""Which subnetworks answer to which samples, and how well gradients are rebuilt on samples of any kind."""

from dataclasses import dataclass

import torch

from gimkit.l3d.decompose import divergence_of, evaluating, given
from gimkit.l3d.decomposition import Decomposition
from gimkit.l3d.gradients import chosen, others, outputs_of, per_sample_gradients
from gimkit.l3d.sparse import energies, reconstruct
from gimkit.results import Result


@dataclass(frozen=True, eq=False)
class Activity(Result):
    """The use of subnetworks on samples, over several references each; `activity` measures it.

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
def activity(found: Decomposition, module, inputs, references: int = 10, seed: int = 0,
             chunk: int | None = None) -> Activity:
    """Impact and selection of every subnetwork on every sample, and the error on them.

    >>> module, inputs = gimkit.l3d.toys.Linear2(5, 2, 5), torch.rand(200, 5)
    >>> found = gimkit.l3d.decompose(module, inputs, n=5, epochs=2)
    >>> gimkit.l3d.activity(found, module, inputs).impact.shape
    torch.Size([200, 5])

    inputs: as in `decompose`. references: random other samples per sample, 10 in the paper. Batches have the size and k
    of training, in a random order. The errors pool the gradients of all batches and references.
    Source: "Measuring and Intervening" of arXiv 2504.00194.
    """
    module, inputs = given(module, inputs)
    k, batch = found.settings["k"], found.settings["batch"]
    divergence, draw = divergence_of(found.settings["divergence"]), torch.Generator().manual_seed(seed)
    impact = kept = missed = whole = 0
    with evaluating([module], gradients=False):
        values = {name: value for name, value in chosen(module).items() if name in found.names}
        outputs = outputs_of(module, inputs)
        n = len(outputs)
        for _ in range(references):
            order, partner = torch.randperm(n, generator=draw), others(n, draw)
            h, used = torch.zeros(2, n, len(found))
            for rows in order.split(batch):
                gradients = per_sample_gradients(module, values, tuple(part[rows] for part in inputs),
                                                 outputs[partner[rows]], divergence, chunk)
                rebuilt, h[rows], used[rows] = reconstruct(found.encoder, found.decoder, gradients, k)
                off, all_of_it = energies(gradients, rebuilt)
                missed, whole = missed + float(off), whole + float(all_of_it)
            impact, kept = impact + h.abs() / references, kept + used / references
    return Activity(impact, kept, (missed / whole) ** 0.5, missed / whole)
