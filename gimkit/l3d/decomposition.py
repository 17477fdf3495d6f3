"""What a decomposition found: subnetworks, their use, and how well they rebuild gradients."""

from dataclasses import dataclass
from pathlib import Path

import pandas
import torch

from gimkit.errors import GimkitError, check_whole
from gimkit.l3d import files, tucker
from gimkit.results import Result

DEAD = 1e-3


@dataclass(frozen=True, eq=False)
class Decomposition(Result):
    """n subnetworks of a model's parameters.

    >>> module, inputs = gimkit.l3d.toys.Linear2(5, 2, 5), torch.rand(200, 5)
    >>> found = gimkit.l3d.decompose(module, inputs, n=5, epochs=2)
    >>> found.subnetwork(0)["W_in"].shape, found.p_act.shape, found.errors.shape              # errors: a row per epoch
    (torch.Size([5, 2]), torch.Size([5]), torch.Size([2, 2]))
    """

    names: tuple[str, ...]  # of the parameters
    encoder: list[tucker.Factors]  # V_in, one per parameter
    decoder: list[tucker.Factors]  # V_out, every direction of norm 1
    p_act: torch.Tensor  # [v], the share of the last epoch's samples for which a subnetwork was kept
    errors: torch.Tensor  # [epochs, 2], means over batches of |g - g^| / |g| and of its square, while training
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

    def save(self, path) -> None:
        """Write NAME.safetensors and NAME.json."""
        tensors = {"p_act": self.p_act, "errors": self.errors}
        for name, directions in (("encoder", self.encoder), ("decoder", self.decoder)):
            tensors |= {f"{name}.{t}.{i}": part for t, factors in enumerate(directions)
                        for i, part in enumerate(factors)}
        files.write(Path(path), described(self.names, self.settings, self.seed), tensors)

    @classmethod
    def load(cls, path) -> "Decomposition":
        """Read what `save` wrote, or a checkpoint.

        Raises GimkitError when there is none, or other tensors.
        """
        stored = files.read(path)
        if stored is None:
            raise GimkitError(f"no decomposition at {path}: NAME.safetensors and NAME.json are needed")
        try:
            return cls.of(*stored)
        except (IndexError, KeyError, TypeError) as error:
            raise GimkitError(f"{path} holds no decomposition: {error} is missing") from error

    @classmethod
    def of(cls, about: dict, tensors: dict[str, torch.Tensor]) -> "Decomposition":
        """From what files hold: a description and named tensors."""
        names = tuple(about["names"])

        def directions(side):
            return [tuple(tensors[key] for key in sorted((key for key in tensors if key.startswith(f"{side}.{t}.")),
                                                         key=lambda key: int(key.rpartition(".")[2])))
                    for t in range(len(names))]

        return cls(names, directions("encoder"), directions("decoder"), tensors["p_act"], tensors["errors"],
                   about["settings"], about["seed"])


def described(names, settings: dict, seed: int, **more) -> dict:
    """What the JSON file says of a decomposition."""
    return {"kind": "gimkit l3d", "names": list(names), "settings": settings, "seed": seed, **more}
