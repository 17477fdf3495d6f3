"""Toy models with known circuits: superposition, circuits in superposition, groups of features, squares.

FAMILIES names them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm.auto import tqdm

from gimkit.errors import GimkitError, check_known
from gimkit.l3d import files
from gimkit.remote.trace import seeded
from gimkit.results import Result

ACTIVE = 0.05  # the share of samples in which a feature is active
LARGEST = 3.0  # coefficients of A are uniform between 0 and this
RATE, BATCH = 1e-3, 32  # AdamW's learning rate, samples in a batch


class Linear2(nn.Module):
    """ReLU(x W_in W_out + b); with tied=True W_out is W_in transposed, and W_in the one tensor.

    >>> Linear2(5, 2, 5)(torch.rand(200, 5)).shape
    torch.Size([200, 5])
    """

    def __init__(self, n_in: int, hidden: int, n_out: int, tied: bool = False):
        super().__init__()
        self.W_in = nn.Parameter(torch.randn(n_in, hidden))
        if tied:
            nn.init.xavier_normal_(self.W_in)
        else:
            self.W_out = nn.Parameter(torch.randn(hidden, n_out))
        self.b = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.W_in @ (self.W_out if hasattr(self, "W_out") else self.W_in.T) + self.b)


class Squarer(nn.Module):
    """Linear layers, each followed by a GELU, the last one too.

    >>> Squarer(5, layers=3)(torch.rand(200, 5)).shape
    torch.Size([200, 5])
    """

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.uniform_(layer.bias, 0.01, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = nn.functional.gelu(layer(x))
        return x


class Family(NamedTuple):
    """What a kind of toy is trained on, and how it is decomposed.

    >>> FAMILIES["squared"].target(torch.tensor([3.0]))
    tensor([9.])
    """

    features: int
    build: Callable[[], nn.Module]  # an untrained module
    target: Callable | None = None  # a function of x; None: y = x A with random coefficients A
    group: int = 1  # features that are active together
    signed: bool = False  # inputs in [-1, 1] instead of [0, 1]
    copies: int = 1  # side by side
    n: int = 5  # subnetworks of its decomposition
    rank: int = 1  # of its decomposition


Name = Literal["tms", "tms x3", "superposed", "high rank", "squared"]
FAMILIES: dict[Name, Family] = {
    "tms": Family(5, lambda: Linear2(5, 2, 5, tied=True), lambda x: x),
    "tms x3": Family(5, lambda: Linear2(5, 2, 5, tied=True), lambda x: x, copies=3, n=15),
    "superposed": Family(10, lambda: Linear2(10, 5, 10), n=10),
    "high rank": Family(25, lambda: Linear2(25, 10, 25), group=5, n=10, rank=3),
    "squared": Family(5, lambda: Squarer(5, 5), torch.square, signed=True, n=5, rank=2),
}


@dataclass(frozen=True, eq=False)
class Toy(Result):
    """A trained toy: its module, to be decomposed, and what it was trained on.

    >>> toy.inputs(1000).shape
    torch.Size([1000, 5])
    """

    name: str
    seed: int
    module: nn.Module
    coefficients: torch.Tensor | None  # A [features, outputs] of y = x A
    loss: float  # mean squared error on new samples

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]

    @property
    def circuits(self) -> int:
        """How many circuits it should have: one for each feature, or for each group of features."""
        return self.family.features * self.family.copies // self.family.group

    def save(self, path: str | Path) -> None:
        """Write NAME.safetensors and NAME.json."""
        more = {} if self.coefficients is None else {"coefficients": self.coefficients}
        files.write(path, {"kind": "gimkit l3d", "toy": self.name, "seed": self.seed, "loss": self.loss},
                    {f"module.{key}": value for key, value in self.module.state_dict().items()} | more)

    @classmethod
    def load(cls, path: str | Path) -> "Toy":
        """Read what `save` wrote."""
        if (stored := files.read(path)) is None:
            raise GimkitError(f"no toy at {path}: NAME.safetensors and NAME.json are needed")
        about, tensors = stored
        state = {key.removeprefix("module."): value for key, value in tensors.items() if key.startswith("module.")}
        try:
            return cls(about["toy"], about["seed"], _module_of(about["toy"], state), tensors.get("coefficients"),
                       about["loss"])
        except (KeyError, RuntimeError) as error:  # tensors of another module
            raise GimkitError(f"{path} holds no toy: {str(error).partition(chr(10))[0]}") from error

    def inputs(self, n: int, seed: int = 0) -> torch.Tensor:
        """New samples, [n, features]; they are not those of its training."""
        generator = torch.Generator().manual_seed(7919 * (seed + 1) + 104729 * self.seed)
        return samples(self.family, n, generator, self.family.copies)

    def only(self, circuit: int, n: int, seed: int = 0) -> torch.Tensor:
        """Samples in which only one circuit's features are active, [n, features]."""
        generator = torch.Generator().manual_seed(31 * (seed + 1) + circuit)
        x = torch.zeros(n, self.family.features * self.family.copies)
        features = slice(circuit * self.family.group, (circuit + 1) * self.family.group)
        x[:, features] = _values(self.family, (n, self.family.group), generator)
        return x


def _values(family: Family, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Uniform numbers in [0, 1], or in [-1, 1] where a family is signed."""
    x = torch.rand(size, generator=generator)
    return 2 * x - 1 if family.signed else x


def samples(family: Family, n: int, generator: torch.Generator, copies: int = 1) -> torch.Tensor:
    """Inputs in which each group of features is active with probability 0.05; rows with no active feature are redrawn.

    >>> samples(FAMILIES["tms"], 7, torch.Generator()).shape
    torch.Size([7, 5])

    Args:
        family: of the toy.
        n: rows.
        generator: of the random numbers.
        copies: toys side by side, each with its own features.
    """
    groups, rows, have = family.features * copies // family.group, [], 0
    while have < n:
        active = torch.rand(n, groups, generator=generator) < ACTIVE
        x = _values(family, (n, groups * family.group), generator) * active.repeat_interleave(family.group, 1)
        rows.append(x[active.any(1)])
        have += len(rows[-1])
    return torch.cat(rows)[:n]


@torch.inference_mode(False)
@torch.enable_grad()
def train(name: Name, seeds: Sequence[int], epochs: int = 1000, tries: int = 4, n: int = 10000,
          progress: bool = False) -> list[Toy]:
    """Toys of one family, one for each seed, trained at once, each on n samples of its own.

    >>> [toy.seed for toy in train("tms", seeds=range(3), epochs=2, n=1000)]
    [0, 1, 2]

    Args:
        name: of FAMILIES. "tms x3" is "tms" three times side by side, without new training.
        seeds: whole numbers.
        epochs: passes over the samples.
        tries: starts for each seed; the one with the lowest loss on new samples is kept.
        n: samples.
        progress: whether to show a bar.

    Raises:
        GimkitError: there is no such family.

    Source:
        "Toy Model Training" of arXiv 2504.00194, with the weight decay of its code, 1e-3. There each toy has one
        start; from one start "tms" often leaves a feature out, and then there is no circuit to be found. W_in and W_out
        of "tms" are tied in training, and are two tensors afterwards.
    """
    check_known("toy", name, FAMILIES)
    family, seeds, modules, x, y, coefficients = FAMILIES[name], list(seeds), [], [], [], []
    for seed in seeds:
        with seeded(seed):
            modules += [family.build() for _ in range(tries)]
        generator = torch.Generator().manual_seed(seed)
        coefficients.append(None if family.target else
                            LARGEST * torch.rand(family.features, family.features, generator=generator))
        x.append(samples(family, n, generator))
        y.append(family.target(x[-1]) if family.target else x[-1] @ coefficients[-1])
    x, y = torch.stack(x), torch.stack(y)
    stacked = {key: value.detach().unflatten(0, (len(seeds), tries)).clone().requires_grad_(True)
               for key, value in stack_module_state(modules)[0].items()}
    one = vmap(lambda values, x: functional_call(modules[0], values, (x,)), (0, None))
    optimiser = torch.optim.AdamW(stacked.values(), lr=RATE, weight_decay=1e-3, fused=True)
    draws, which = [torch.Generator().manual_seed(seed + 1) for seed in seeds], torch.arange(len(seeds))[:, None]
    for _ in tqdm(range(epochs), desc=name, unit="epoch", disable=not progress):
        order = torch.stack([torch.randperm(n, generator=draw) for draw in draws])
        for rows in order.split(BATCH, dim=1):
            optimiser.zero_grad()
            off = vmap(one)(stacked, x[which, rows]) - y[which, rows].unsqueeze(1)
            off.square().mean((2, 3)).sum().backward()
            optimiser.step()
    found = []
    for i, seed in enumerate(seeds):
        tried = [_built(name, seed, {key: value.detach()[i, t].clone() for key, value in stacked.items()},
                       coefficients[i]) for t in range(tries)]
        found.append(min(tried, key=lambda toy: toy.loss))
    return found


def _built(name: str, seed: int, state: dict[str, torch.Tensor], coefficients: torch.Tensor | None) -> Toy:
    """A toy made of trained tensors: untied, with the copies of its family."""
    family = FAMILIES[name]
    if "W_in" in state:
        state = {"W_in": state["W_in"], "W_out": state.get("W_out", state["W_in"].T), "b": state["b"]}
        state = {key: torch.block_diag(*[value] * family.copies) if value.ndim > 1 else value.repeat(family.copies)
                 for key, value in state.items()}
    module = _module_of(name, state)
    x = samples(family, 10000, torch.Generator().manual_seed(104729 * seed + 1), family.copies)
    wanted = family.target(x) if family.target else x @ coefficients
    return Toy(name, seed, module, coefficients, float((module(x) - wanted).square().mean()))


def _module_of(name: str, state: dict[str, torch.Tensor]) -> nn.Module:
    """A family's module with these tensors, which take no gradients."""
    with seeded(0):
        module = Linear2(*state["W_in"].shape, len(state["b"])) if "W_in" in state else FAMILIES[name].build()
    module.load_state_dict(state)
    return module.requires_grad_(False)
