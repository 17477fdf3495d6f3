"""The measured parts of the figures: a csv file for each, so that an interrupted run can continue."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import pandas
import torch

import gimkit
from benchmarks.tables import cached_table
from gimkit.errors import check_known
from gimkit.tasks import Task

FOLDER = Path("figures")
TASKS = {name: getattr(gimkit.tasks, name) for name in
         ("ioi", "greater_than", "agreement", "pronoun", "capital", "hypernymy", "ioi_twice", "odd_one_out")}
TASKS["induction"] = partial(gimkit.tasks.induction, times=3)
SIX = ("ioi", "ioi_twice", "agreement", "pronoun", "capital", "hypernymy")  # one right answer, a logit far above 0


@dataclass(frozen=True)
class Request:
    """The model, prompts and tasks of the figures.

    >>> Request("mini-llama", n=4).task("ioi").clean.shape[0]
    4
    """

    name: str  # as in `gimkit.load`; the model is loaded when it is first used
    n: int = 12  # prompts of each task
    seed: int = 0  # of the prompts
    tasks: tuple[str, ...] = ()  # names; empty for those of each figure
    folder: Path = Path("runs/figures")  # of the measured parts
    made: dict = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def model(self):
        """The nnsight model."""
        return gimkit.load(self.name)

    @property
    def label(self) -> str:
        """The model's name in file names."""
        return Path(self.name).name

    @cached_property
    def weights(self) -> str:
        """A fingerprint of the weights, from each one's first and last 64 numbers."""
        digest = hashlib.sha256()
        for name, weight in self.model._module.state_dict().items():
            ends = torch.cat([weight.flatten()[:64], weight.flatten()[-64:]])
            digest.update(name.encode() + ends.double().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def chosen(self, default: tuple[str, ...] = SIX) -> tuple[str, ...]:
        """The requested tasks, or those of a figure."""
        return self.tasks or default

    def task(self, name: str) -> Task:
        """A task's prompts, drawn once."""
        check_known("task", name, TASKS)
        if name not in self.made:
            self.made[name] = TASKS[name](self.model, n=self.n, seed=self.seed)
        return self.made[name]

    def part(self, kind: str, prompts: Task, method: str, measure: Callable[[], pandas.DataFrame],
             **settings) -> pandas.DataFrame:
        """The table that measure() returns, or the stored one in runs/figures/MODEL/KIND/TASK-METHOD.csv.

        >>> request = Request("mini-llama", n=4)
        >>> request.part("demo", request.task("ioi"), "none", lambda: pandas.DataFrame({"x": [1.5]})).loc[0, "x"].item()
        1.5

        The file's first line has the settings: model and weights, prompts, seed, version of the kit. When they differ,
        or the file is incomplete (`benchmarks.tables.cached_table`), the part is measured again.

        Args:
            kind: the folder's name.
            prompts: the task.
            method: of the file's name.
            measure: makes the table.
            settings: what else must be the same.
        """
        digest = hashlib.sha256(prompts.clean.numpy().tobytes() + repr((prompts.good, prompts.bad)).encode())
        about = {"seed": self.seed, "n": len(prompts), "prompts": digest.hexdigest()[:16]} | settings
        return self.kept(kind, f"{prompts.name}-{method}", about, measure)

    def kept(self, kind: str, name: str, about: dict, measure: Callable[[], pandas.DataFrame]) -> pandas.DataFrame:
        """The table that measure() returns, or the one kept in runs/figures/MODEL/KIND/NAME.csv with these settings.

        >>> Request("mini-llama").kept("demo", "none", {"n": 4}, lambda: pandas.DataFrame({"x": [1.5]})).shape
        (1, 1)

        Args:
            kind: the folder's name.
            name: the file's name.
            about: settings; the model, its weights and the kit's version are added.
            measure: makes the table.
        """
        about = {"model": self.name, "weights": self.weights, "gimkit": gimkit.__version__} | about
        path = self.folder / self.label / kind / f"{re.sub(r'[^a-zA-Z0-9_=+.-]', '_', name)}.csv"
        return cached_table(path, about, measure)
