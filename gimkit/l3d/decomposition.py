"""The decomposition of a model's parameters into subnetworks: the result, and the functions that train it."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import torch
from nnsight.intervention.envoy import Envoy
from torch.func import stack_module_state, vmap

from gimkit.errors import GimkitError, check_whole
from gimkit.l3d import files, tucker
from gimkit.l3d.gradients import (
    Inputs,
    chosen_parameters,
    divergence_of,
    evaluating,
    module_and_inputs,
    outputs_of,
    per_sample_gradients,
)
from gimkit.l3d.training import Settings, Trained, settings_of, train
from gimkit.results import Result

DEAD = 1e-3


@dataclass(frozen=True, eq=False)
class Decomposition(Result):
    """n subnetworks of a model's parameters, with how often each is used and how well they rebuild gradients.

    >>> found.subnetwork(0)["W_in"].shape, found.p_act.shape, found.errors.shape
    (torch.Size([5, 2]), torch.Size([5]), torch.Size([2, 2]))
    """

    names: tuple[str, ...]  # of the parameters
    encoder: list[tucker.Factors]  # V_in, one per parameter
    decoder: list[tucker.Factors]  # V_out, every direction of norm 1
    p_act: torch.Tensor  # [v], the share of the last epoch's samples for which a subnetwork was kept
    errors: torch.Tensor  # [epochs, 2], in training: means over batches of |g - g^| / |g| and of its square
    settings: dict
    seed: int

    def __len__(self) -> int:
        return len(self.p_act)

    def subnetwork(self, which: int) -> dict[str, torch.Tensor]:
        """One direction of V_out in parameter space, written out: a tensor per parameter."""
        which = check_whole("the number of a subnetwork", which, 0, len(self) - 1)
        return dict(zip(self.names, tucker.dense(self.decoder, which)))

    @property
    def dead(self) -> torch.Tensor:
        """Which subnetworks were kept for fewer than one in 1000 samples of the last epoch, [v]."""
        return self.p_act < DEAD

    def frame(self) -> pandas.DataFrame:
        """Columns subnetwork, p_act, dead."""
        return pandas.DataFrame({"subnetwork": range(len(self)), "p_act": self.p_act.tolist(),
                                 "dead": self.dead.tolist()})

    def __repr__(self) -> str:
        return (f"{len(self)} subnetworks of {len(self.names)} parameter tensors, {int(self.dead.sum())} dead; error "
                f"{self.errors[-1, 0]:.3f} (norm), {self.errors[-1, 1]:.3f} (squared) after {len(self.errors)} epochs")

    def save(self, path: str | Path) -> None:
        """Write NAME.safetensors and NAME.json."""
        tensors = {"p_act": self.p_act, "errors": self.errors}
        for name, directions in (("encoder", self.encoder), ("decoder", self.decoder)):
            tensors |= {f"{name}.{t}.{i}": part for t, factors in enumerate(directions)
                        for i, part in enumerate(factors)}
        files.write(path, _described(self.names, self.settings, self.seed), tensors)

    @classmethod
    def load(cls, path: str | Path) -> "Decomposition":
        """Read what `save` wrote, or a checkpoint; GimkitError when there is none, or other tensors."""
        stored = files.read(path)
        if stored is None:
            raise GimkitError(f"no decomposition at {path}: NAME.safetensors and NAME.json are needed")
        try:
            return cls.of(*stored)
        except (IndexError, KeyError, TypeError) as error:
            raise GimkitError(f"{path} holds no decomposition: {error} is missing") from error

    @classmethod
    def of(cls, about: dict, tensors: dict[str, torch.Tensor]) -> "Decomposition":
        """From what the files hold: a description and named tensors."""
        names = tuple(about["names"])

        def directions(side: str) -> list:
            return [tuple(tensors[key] for key in sorted((key for key in tensors if key.startswith(f"{side}.{t}.")),
                                                         key=lambda key: int(key.rpartition(".")[2])))
                    for t in range(len(names))]

        return cls(names, directions("encoder"), directions("decoder"), tensors["p_act"], tensors["errors"],
                   about["settings"], about["seed"])


def decompose(module: Envoy | torch.nn.Module, inputs: Inputs, *, parameters: str | Iterable[str] | None = None,
              seed: int = 0, chunk: int | None = None, checkpoint: str | Path | None = None, progress: bool = True,
              **settings: Any) -> Decomposition:
    """Subnetworks: directions in parameter space, a few of which rebuild the gradient of any sample.

    >>> module, inputs = gimkit.l3d.toys.Linear2(5, 2, 5), torch.rand(200, 5)
    >>> found = gimkit.l3d.decompose(module, inputs, n=5, epochs=2)                    # 1000 epochs by default
    >>> found.p_act.shape, [part.shape for part in found.subnetwork(0).values()]
    (torch.Size([5]), [torch.Size([5, 2]), torch.Size([2, 5]), torch.Size([5])])

    Args:
        module: a torch module, or an nnsight model around one, whose output is [samples, outputs]. It is used in
            evaluation mode and not changed.
        inputs: a tensor [samples, ...], or a tuple of them, one for each argument of the module.
        parameters: names or shell patterns of the tensors to decompose; None for all.
        seed: of the start, of the order of the samples and of their references.
        chunk: samples at a time when gradients are taken; None for a whole batch. It bounds memory.
        checkpoint: a path; NAME.safetensors and NAME.json are written after every epoch and read back to continue.
        progress: whether to show a bar.
        settings: the fields of `gimkit.l3d.training.Settings`; n, the number of subnetworks, has no default.

    Returns:
        A `Decomposition`.

    Raises:
        GimkitError: no such parameter, a rank larger than its axis, fewer than two samples, a gradient that is zero
            everywhere, NaN, a checkpoint of another decomposition, an edited model.

    Source:
        section 2 and algorithm 1 of arXiv 2504.00194, as in its text. `Settings` and `DIVERGENCES` name where the
        reference implementation differs.
    """
    (module, inputs), settings = module_and_inputs(module, inputs), Settings(**settings)
    with evaluating([module]):
        values = chosen_parameters(module, parameters)
        ranks, divergence = _ranks(settings.rank, values), divergence_of(settings.divergence)
        outputs = outputs_of(module, inputs)

        def gradients_at(rows, references):
            return per_sample_gradients(module, values, tuple(part[rows] for part in inputs), outputs[references],
                                        divergence, chunk)

        about = _described(values, settings_of(settings), seed, fingerprint=_fingerprint(values, inputs, outputs))
        state = Trained([value.shape for value in values.values()], ranks, settings, [seed])
        train(state, gradients_at, len(outputs), checkpoint and (checkpoint, about), progress)
    return Decomposition.of(about, {name: tensor.clone() for name, tensor in state.tensors().items()})


def decompose_alike(modules: list[torch.nn.Module], inputs: Inputs, *, seeds: Sequence[int], progress: bool = True,
                    **settings: Any) -> list[Decomposition]:
    """`decompose` for several small modules of one class at once, each with its own samples and seed.

    >>> modules = [gimkit.l3d.toys.Linear2(5, 2, 5) for _ in range(3)]
    >>> len(gimkit.l3d.decompose_alike(modules, [torch.rand(200, 5)] * 3, seeds=range(3), n=5, epochs=2))
    3

    All parameters are decomposed. The numbers are those of one `decompose` for each module, up to rounding.

    Args:
        modules: at least two torch modules.
        inputs: as many tensors [samples, ...].
        seeds: as many whole numbers.
        progress, settings: as in `decompose`.

    Returns:
        A `Decomposition` for each module.

    Raises:
        GimkitError: the numbers of modules, inputs and seeds differ, and as in `decompose`.
    """
    settings, seeds = Settings(**settings), list(seeds)
    if not len(modules) == len(inputs) == len(seeds) >= 2:
        raise GimkitError(f"{len(modules)} modules, {len(inputs)} inputs, {len(seeds)} seeds: give as many of each, at "
                          "least two")
    with evaluating(modules):
        values = [chosen_parameters(module) for module in modules][0]
        ranks, divergence = _ranks(settings.rank, values), divergence_of(settings.divergence)
        outputs = torch.stack([outputs_of(module, (x,)) for module, x in zip(modules, inputs)])
        stacked = {name: value.detach() for name, value in stack_module_state(list(modules))[0].items()}
        x, which = torch.stack(list(inputs)), torch.arange(len(seeds))[:, None]

        def of_one(values, x, references):
            return per_sample_gradients(modules[0], values, (x,), references, divergence)

        def gradients_at(rows, references):
            return vmap(of_one)(stacked, x[which, rows], outputs[which, references])

        state = Trained([value.shape for value in values.values()], ranks, settings, seeds)
        train(state, gradients_at, x.shape[1], progress=progress)
    found = []
    for i, seed in enumerate(seeds):
        tensors = {name: (tensor[:, i] if name == "errors" else tensor[i]).clone()
                   for name, tensor in state.tensors().items() if not name.startswith("adamw")}
        found.append(Decomposition.of(_described(values, settings_of(settings), seed), tensors))
    return found


def _ranks(rank: int | dict, values: dict[str, torch.Tensor]) -> list[tuple[int, ...]]:
    """The Tucker ranks of each parameter's axes.

    >>> _ranks(2, {"weight": torch.zeros(5, 3), "bias": torch.zeros(5)})
    [(2, 2), (1,)]

    Args:
        rank: as in `gimkit.l3d.training.Settings`.
        values: the parameters by name.

    Raises:
        GimkitError: a rank is missing, or larger than its axis.
    """
    found = []
    for name, value in values.items():
        if isinstance(rank, dict):
            if name not in rank:
                raise GimkitError(f"no rank for {name}, which is {list(value.shape)}: give one per axis of every "
                                  "chosen parameter")
            ranks = tuple(rank[name])
        else:
            ranks = (rank,) * value.ndim if value.ndim > 1 else (1,) * value.ndim
        if len(ranks) != value.ndim:
            raise GimkitError(f"{len(ranks)} ranks for {name}, which is {list(value.shape)}: give one per axis")
        for axis, (r, size) in enumerate(zip(ranks, value.shape)):
            if not 1 <= r <= size:
                raise GimkitError(f"rank {r} does not fit axis {axis} of {name}, which is {list(value.shape)}: "
                                  "at least 1, at most the axis's length; ranks by name are possible")
        found.append(ranks)
    return found


def _described(names: Iterable[str], settings: dict, seed: int, **more: Any) -> dict:
    """The description of a decomposition, for its JSON file."""
    return {"kind": "gimkit l3d", "names": list(names), "settings": settings, "seed": seed, **more}


def _fingerprint(values, inputs, outputs) -> str:
    """A hash of the weights and samples that a checkpoint belongs to."""
    digest = hashlib.sha256()
    for tensor in (*values.values(), *inputs, outputs):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
