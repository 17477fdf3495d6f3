"""Moving a model's parameters along a direction, and which samples notice."""

from fnmatch import fnmatch

import pandas
import torch
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from gimkit.errors import GimkitError
from gimkit.l3d.decompose import evaluating, given
from gimkit.l3d.decomposition import Decomposition
from gimkit.l3d.gradients import chosen
from gimkit.l3d.recovery import matched, planted
from gimkit.l3d.toys import Toy

Direction = dict[str, torch.Tensor]


@torch.no_grad()
def moved(module, direction: Direction, delta: float, inputs) -> torch.Tensor:
    """The outputs f(x, W + delta v), [n, n_o].

    >>> moved(toy.module, found.subnetwork(0), 1.0, toy.inputs(1000)).shape
    torch.Size([1000, 5])

    direction: a tensor per parameter name, such as `Decomposition.subnetwork` gives; parameters it does not name stay.
    inputs: as in `decompose`.
    """
    module, inputs = given(module, inputs)
    values = dict(module.named_parameters())
    with evaluating([module], gradients=False):
        return functional_call(module, {name: values[name] + delta * part for name, part in direction.items()}, inputs)


def only(direction: Direction, patterns) -> Direction:
    """The part of a direction that lies in the parameters that fit the patterns, not made longer.

    >>> only(found.subnetwork(0), ["layers.[123].*"])                    # middle layers alone
    """
    kept = {name: part for name, part in direction.items() if any(fnmatch(name, pattern) for pattern in patterns)}
    if not kept:
        raise GimkitError(f"no part of the direction fits {list(patterns)}; it has {', '.join(direction)}")
    return kept


def random_like(direction: Direction, seed: int = 0) -> Direction:
    """The control: a random direction in the same parameters, of the same norm."""
    draw = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(part.shape, generator=draw) for name, part in direction.items()}
    return {name: part * norm(direction) / norm(noise) for name, part in noise.items()}


def norm(direction: Direction) -> float:
    """The joint L2 norm."""
    return float(sum(part.square().sum() for part in direction.values()) ** 0.5)


def change(module, direction: Direction, delta: float, inputs) -> torch.Tensor:
    """How far every sample's output moves: |f(x, W + delta v) - f(x, W)|, [n]."""
    return (moved(module, direction, delta, inputs) - moved(module, direction, 0.0, inputs)).norm(dim=1)


def auroc(scores: torch.Tensor, positive: torch.Tensor) -> float:
    """The chance that a positive sample's score is above a negative one's, ties counting half; NaN without both.

    >>> auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True]))
    0.75
    """
    high, low = scores[positive].double(), scores[~positive].double().sort().values
    if not len(high) or not len(low):
        return float("nan")
    below, up_to = torch.searchsorted(low, high), torch.searchsorted(low, high, right=True)
    return float((below + up_to).double().mean() / 2 / len(low))


def sweep(module, direction: Direction, deltas, inputs) -> torch.Tensor:
    """Mean outputs' change at every delta, [deltas, n_o]: mean over samples of |f(x, W + delta v) - f(x, W)|.

    >>> sweep(toy.module, found.subnetwork(0), torch.linspace(-3, 3, 31), toy.inputs(1000)).shape
    torch.Size([31, 5])
    """
    still = moved(module, direction, 0.0, inputs)
    return torch.stack([(moved(module, direction, float(delta), inputs) - still).abs().mean(0) for delta in deltas])


def pair(module, first: Direction, second: Direction, deltas, inputs) -> torch.Tensor:
    """Two subnetworks moved at once: mean change of each output on a grid of deltas, [deltas, deltas, n_o]."""
    still, grid = moved(module, first, 0.0, inputs), []
    for a in deltas:
        both = [{name: float(a) * first[name] + float(b) * second[name] for name in first} for b in deltas]
        grid.append(torch.stack([(moved(module, one, 1.0, inputs) - still).mean(0) for one in both]))
    return torch.stack(grid)


def top_logits(module, direction: Direction, inputs, k: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs that a small step along the direction moves most: slopes [n, k] of softmax(f) and their indices.

    >>> slopes, tokens = top_logits(l3d.NextToken(model), found.subnetwork(3), inputs)

    d softmax f(x, W + delta v)_o / d delta at 0, the k largest by size ("Real world models" of arXiv 2504.00194).
    """
    module, inputs = given(module, inputs)
    values = {name: value for name, value in chosen(module).items() if name in direction}

    def probabilities(parameters):
        return functional_call(module, parameters, inputs).softmax(-1)

    with evaluating([module], gradients=False), sdpa_kernel(SDPBackend.MATH):
        slopes = jvp(probabilities, (values,), ({name: direction[name] for name in values},))[1]
    order = slopes.abs().topk(min(k, slopes.shape[1]), dim=1).indices
    return slopes.gather(1, order), order


def interventions(toy: Toy, found: Decomposition, deltas=(-1.0, -0.3, 0.3, 1.0), parts=None, samples: int = 1000,
                  random: int = 5) -> pandas.DataFrame:
    """Does moving along a circuit's subnetwork change the samples that use the circuit, and no others?

    >>> interventions(toy, found).groupby(["direction", "delta"])[["auroc", "ratio"]].mean()

    A row per circuit, delta and direction: "subnetwork", the one matched to the circuit, or "random", as long and in
    the same parameters (means over `random` draws). relevant, irrelevant: mean change of samples that have, or have
    not, one of the circuit's features active; ratio: one by the other; auroc: of the change, as a test for relevant.
    own, others: mean |change| of the outputs with the circuit's number, and of the other ones, over all samples
    (nothing where a circuit writes to all outputs). parts: patterns of parameters to move, None for all.
    """
    inputs = toy.inputs(samples, seed=2)
    still, (_, which) = toy.module(inputs), matched(found.decoder, planted(toy))
    rows, group = [], toy.family.group
    for circuit, subnetwork in enumerate(which):
        if subnetwork < 0:
            continue
        direction = found.subnetwork(subnetwork)
        direction = direction if parts is None else only(direction, parts)
        relevant = (inputs[:, circuit * group:(circuit + 1) * group] != 0).any(1)
        controls = [random_like(direction, seed) for seed in range(random)]
        for delta in deltas:
            for name, several in (("subnetwork", [direction]), ("random", controls)):
                difference = [moved(toy.module, one, delta, inputs) - still for one in several]
                far, outputs = [each.norm(dim=1) for each in difference], sum(d.abs().mean(0) for d in difference)
                mine = outputs[circuit] / len(several) if toy.coefficients is None else torch.tensor(float("nan"))
                yes, no = (sum(float(each[where].mean()) for each in far) / len(far) for where in (relevant, ~relevant))
                rows.append({"toy": toy.name, "seed": toy.seed, "circuit": circuit, "subnetwork": subnetwork,
                             "delta": delta, "direction": name, "relevant": yes, "irrelevant": no,
                             "ratio": yes / max(no, 1e-12),
                             "auroc": sum(auroc(each, relevant) for each in far) / len(far), "own": float(mine),
                             "others": float((outputs.sum() / len(several) - mine) / (len(outputs) - 1))})
    return pandas.DataFrame(rows)
