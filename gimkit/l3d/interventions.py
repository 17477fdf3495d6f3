"""Moving a model's parameters along a direction, and which samples change."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch

import pandas
import torch
from nnsight.intervention.envoy import Envoy
from torch.func import functional_call

from gimkit.errors import GimkitError
from gimkit.l3d.decomposition import Decomposition
from gimkit.l3d.gradients import Inputs, evaluating, module_and_inputs
from gimkit.l3d.recovery import match_circuits, planted
from gimkit.l3d.toys import Toy
from gimkit.statistics import auroc

Direction = dict[str, torch.Tensor]


@torch.no_grad()
def moved(module: Envoy | torch.nn.Module, direction: Direction, delta: float, inputs: Inputs) -> torch.Tensor:
    """The outputs f(x, W + delta v), [n, n_o].

    >>> moved(toy.module, found.subnetwork(0), 1.0, toy.inputs(1000)).shape
    torch.Size([1000, 5])

    Args:
        module, inputs: as in `decompose`.
        direction: v, a tensor per parameter name, such as `Decomposition.subnetwork` returns; parameters that it does
            not name stay.
        delta: how far, in multiples of the direction.
    """
    module, inputs = module_and_inputs(module, inputs)
    values = dict(module.named_parameters())
    with evaluating([module], gradients=False):
        return functional_call(module, {name: values[name] + delta * part for name, part in direction.items()}, inputs)


def restricted(direction: Direction, patterns: str | Iterable[str]) -> Direction:
    """The part of a direction that lies in some parameters; its length is not scaled back to 1.

    >>> list(restricted(found.subnetwork(0), ["W_*"]))
    ['W_in', 'W_out']

    Args:
        direction: a tensor per parameter name.
        patterns: shell patterns of names.

    Raises:
        GimkitError: nothing is left.
    """
    kept = {name: part for name, part in direction.items() if any(fnmatch(name, pattern) for pattern in patterns)}
    if not kept:
        raise GimkitError(f"no part of the direction fits {list(patterns)}; it has {', '.join(direction)}")
    return kept


def random_like(direction: Direction, seed: int = 0) -> Direction:
    """The control: a random direction in the same parameters, of the same norm.

    >>> {name: part.shape for name, part in random_like({"b": torch.ones(5)}).items()}
    {'b': torch.Size([5])}
    """
    draw = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(part.shape, generator=draw) for name, part in direction.items()}
    return {name: part * _norm(direction) / _norm(noise) for name, part in noise.items()}


def _norm(direction: Direction) -> float:
    """The joint L2 norm over all parameters."""
    return float(sum(part.square().sum() for part in direction.values()) ** 0.5)


def change(module: Envoy | torch.nn.Module, direction: Direction, delta: float, inputs: Inputs) -> torch.Tensor:
    """How far every sample's output moves: |f(x, W + delta v) - f(x, W)|, [n].

    >>> change(toy.module, found.subnetwork(0), 1.0, toy.inputs(1000)).shape
    torch.Size([1000])
    """
    return (moved(module, direction, delta, inputs) - moved(module, direction, 0.0, inputs)).norm(dim=1)


def sweep(module: Envoy | torch.nn.Module, direction: Direction, deltas: Iterable[float],
          inputs: Inputs) -> torch.Tensor:
    """Each output's mean |f(x, W + delta v) - f(x, W)| over samples, at every delta, [deltas, n_o].

    >>> sweep(toy.module, found.subnetwork(0), torch.linspace(-3, 3, 31), toy.inputs(1000)).shape
    torch.Size([31, 5])
    """
    still = moved(module, direction, 0.0, inputs)
    return torch.stack([(moved(module, direction, float(delta), inputs) - still).abs().mean(0) for delta in deltas])



def intervention_table(toy: Toy, found: Decomposition, deltas: Sequence[float] = (-1.0, -0.3, 0.3, 1.0),
                       parts: str | Iterable[str] | None = None, samples: int = 1000,
                       random: int = 5) -> pandas.DataFrame:
    """Does moving along a circuit's subnetwork change the samples that use the circuit, and no others?

    >>> intervention_table(toy, found, samples=100).groupby(["direction", "delta"])[["auroc", "ratio"]].mean().shape
    (8, 2)

    Args:
        toy: a model whose circuits are known.
        found: its decomposition.
        deltas: as in `moved`.
        parts: shell patterns of the parameters to move; None for all.
        samples: new samples.
        random: random directions of the control.

    Returns:
        A row for each circuit, delta and direction: "subnetwork", the one matched to the circuit, or "random", random
        directions of its length in the same parameters (means over them). relevant, irrelevant: the mean change of
        samples in which the circuit's features are, or are not, active. ratio: relevant / irrelevant. auroc: of the
        change, as a test for relevant. own, others: the mean |change| of the output with the circuit's number and of
        the other outputs, over all samples; NaN where a circuit writes to all outputs.
    """
    inputs = toy.inputs(samples, seed=2)
    still, (_, which) = toy.module(inputs), match_circuits(found.decoder, planted(toy))
    rows, group = [], toy.family.group
    for circuit, subnetwork in enumerate(which):
        if subnetwork < 0:
            continue
        direction = found.subnetwork(subnetwork)
        direction = direction if parts is None else restricted(direction, parts)
        relevant = (inputs[:, circuit * group:(circuit + 1) * group] != 0).any(1)
        controls = [random_like(direction, seed) for seed in range(random)]
        for delta in deltas:
            for name, several in (("subnetwork", [direction]), ("random", controls)):
                difference = [moved(toy.module, one, delta, inputs) - still for one in several]
                far, outputs = [each.norm(dim=1) for each in difference], sum(d.abs().mean(0) for d in difference)
                own_change = outputs[circuit] / len(several) if toy.coefficients is None else torch.tensor(float("nan"))
                yes, no = (sum(float(each[where].mean()) for each in far) / len(far) for where in (relevant, ~relevant))
                rows.append({"toy": toy.name, "seed": toy.seed, "circuit": circuit, "subnetwork": subnetwork,
                             "delta": delta, "direction": name, "relevant": yes, "irrelevant": no,
                             "ratio": yes / max(no, 1e-12),
                             "auroc": sum(auroc(each, relevant) for each in far) / len(far), "own": float(own_change),
                             "others": float((outputs.sum() / len(several) - own_change) / (len(outputs) - 1))})
    return pandas.DataFrame(rows)
