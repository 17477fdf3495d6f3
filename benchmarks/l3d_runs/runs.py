"""The full runs on toys: `python -m benchmarks.l3d_runs tms --seeds 5 --out figures/l3d/tms.csv`."""

import time
from pathlib import Path

import numpy
import pandas
import torch
from scipy.stats import t

from benchmarks.l3d_runs.digits import digits_run
from benchmarks.tables import cached_table
from gimkit.errors import check_known
from gimkit.l3d import recovery, toys
from gimkit.l3d.decomposition import Decomposition, decompose_alike
from gimkit.l3d.language import attention_run
from gimkit.l3d.selection import activity
from gimkit.model.load import load

SUMMARISED = ("new_squared", "new_norm", "cosine", "cosine_random", "r2", "dead", "squared", "norm", "auroc",
              "untrained_auroc", "shuffled_auroc", "bits", "untrained_bits", "shuffled_bits")
SHORT = {"epochs": 100, "every": 10}  # where the paper has 1000 and 100
CODE = {"divergence": "mse of the code", **SHORT}
VARIANTS = {
    "tms": {"paper": {}, "short": SHORT, "divergence of the code": CODE},
    "superposed": {"paper": {}, "short": SHORT, "divergence of the code": CODE,
                   "divergence of the code, long": {"divergence": "mse of the code"}},
    "squared": {"short": SHORT, **{f"{n} subnetworks, rank 1": {"n": n, "rank": 1, **SHORT} for n in (3, 10)}},
    "tms x3": {"short": SHORT, "paper": {}},
    "high rank": {"short": SHORT, "rank 1": {"rank": 1, **SHORT}, "5 subnetworks": {"n": 5, **SHORT}},
}

TOY_EPOCHS = {"squared": 60, "tms x3": 60}  # of the toys' own training; else 200, where the paper has 1000


def run(name: str, seeds: int = 5, folder: Path | None = None, epochs: int | None = None,
        toy_epochs: int | None = None, variants=None, progress: bool = True) -> pandas.DataFrame:
    """Every variant of a family's decomposition, on toys with seeds 0, 1, ..., a row for each.

    >>> run("tms", seeds=2, epochs=1, toy_epochs=1, variants=["paper"], progress=False).shape
    (2, 20)

    Args:
        name: of VARIANTS.
        seeds: toys.
        folder: for each variant's rows, NAME-VARIANT.csv (`cached_table`), so that an interrupted run can continue;
            and, of the first variant, for the toy and the decomposition of the seed with the median error.
        epochs: of the decompositions; each variant's own when None.
        toy_epochs: of the toys; TOY_EPOCHS when None.
        variants: names; all when None.
        progress: whether to show bars.
    Returns:
        Errors over the batches of the last epoch, and on 1000 new samples with 10 references each (new_), by both
        definitions (norm: the paper's |g - g^| / |g|; squared: its square, the reference implementation's); cosines
        with the planted circuits, and of random directions, the control; r^2 of coefficients; the share of dead
        subnetworks.
    Raises:
        GimkitError: there is no such toy or variant.
    """
    check_known("toy", name, VARIANTS)
    trained, tables, toy_epochs = None, [], toy_epochs or TOY_EPOCHS.get(name, 200)
    for variant in variants or VARIANTS[name]:
        check_known(f"variant of {name}", variant, VARIANTS[name])
        settings = {"n": toys.FAMILIES[name].n, "rank": toys.FAMILIES[name].rank} | VARIANTS[name][variant]
        settings |= {"epochs": epochs, "every": max(1, epochs // 10)} if epochs else {}
        part = folder and _part(folder, name, variant)

        def measure(variant=variant, settings=settings, part=part):
            nonlocal trained
            if trained is None:
                trained = toys.train(name, range(seeds), epochs=toy_epochs, progress=progress)
            start = time.process_time()
            found = decompose_alike([toy.module for toy in trained], [toy.inputs(1000) for toy in trained],
                                    seeds=range(seeds), progress=progress, **settings)
            seconds = (time.process_time() - start) / seeds
            table = pandas.DataFrame([_row(toy, variant, one) | {"toy_epochs": toy_epochs, "cpu_seconds": seconds}
                                      for toy, one in zip(trained, found)])
            if part and variant == next(iter(VARIANTS[name])):
                median = int(table["new_squared"].rank(method="first").sub(1).eq(seeds // 2).idxmax())
                stem = str(part.with_suffix(""))
                trained[median].save(f"{stem}-toy")
                found[median].save(f"{stem}-found")
            return table

        about = {"toy": name, "variant": variant, "seeds": seeds, "toy_epochs": toy_epochs, "settings": settings}
        tables.append(cached_table(part, about, measure) if part else measure())
    return pandas.concat(tables, ignore_index=True)


def _part(folder: Path, name: str, variant: str) -> Path:
    """The file of a variant's rows."""
    return Path(folder) / f"{name}-{variant}.csv".replace(" ", "-").replace(",", "")


def middle(name: str, folder: Path) -> tuple[toys.Toy, Decomposition]:
    """The toy and the decomposition that `run` stored: of its first variant, the seed with the median error."""
    stem = str(_part(folder, name, next(iter(VARIANTS[name]))).with_suffix(""))
    return toys.Toy.load(f"{stem}-toy"), Decomposition.load(f"{stem}-found")


def run_real(name: str, model: str = "mini-gpt2", blocks=(3,), seeds: int = 1, folder: Path | None = None,
             epochs: int | None = None, prompts: int | None = None, progress: bool = True) -> pandas.DataFrame:
    """Do subnetworks of a real model select a kind of sample? The tables of `attention_run` or `digits_run`, by seed.

    For example `run_real("attention", "mini-gpt2", blocks=[3], seeds=2)`, which takes minutes.

    Args:
        name: "attention" or "digits".
        model: as in `gimkit.load`, for attention.
        blocks: their numbers, for attention.
        seeds: decompositions.
        folder: for checkpoints and each seed's rows.
        epochs: of the decompositions; the run's own when None.
        prompts: of each task, for attention; the run's own when None.
        progress: whether to show bars.
    """
    settings, tables = {"epochs": epochs, "every": max(1, epochs // 10)} if epochs else {}, []
    if prompts:
        settings["prompts"] = prompts
    for seed in range(seeds):
        part = folder and Path(folder) / f"{name}-{seed}.csv"

        def measure(seed=seed, part=part):
            options = dict(seed=seed, checkpoint=part and part.with_suffix(""), progress=progress, **settings)
            if name != "digits":
                return attention_run(load(model), blocks, **options)[1]
            _, table, accuracy = digits_run(**options)
            return table.assign(accuracy=accuracy)

        about = {"run": name, "seed": seed, "settings": settings} | (
            {} if name == "digits" else {"model": str(model), "blocks": list(blocks)})
        tables.append(cached_table(part, about, measure, dtype={"kind": str}) if part else measure())
    return pandas.concat(tables, ignore_index=True)


def summary(table: pandas.DataFrame) -> pandas.DataFrame:
    """Means over seeds with 95% t intervals, as text: a row for each variant, or for each kind of sample.

    >>> summary(pandas.DataFrame({"variant": "paper", "norm": [0.2, 0.3]})).norm["paper"]
    '0.250 [-0.385, 0.885]'
    """
    by = "variant" if "variant" in table else "kind"
    columns = [column for column in SUMMARISED if column in table and table[column].notna().any()]

    def interval(values):
        mean, half = values.mean(), 0.0
        if len(values) > 1:
            half = float(t.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5)
        return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"

    return table.groupby(by, sort=False)[columns].agg(interval)


def _row(toy: toys.Toy, variant: str, found: Decomposition) -> dict:
    """The row of one decomposition of a toy."""
    circuits, new = recovery.planted(toy), activity(found, toy.module, toy.inputs(1000, seed=1))
    cosines, _ = recovery.match_circuits(found.decoder, circuits)
    live = found.p_act[~found.dead]
    return {
        "toy": toy.name, "variant": variant, "seed": toy.seed, "n": len(found), "rank": found.settings["rank"],
        "epochs": found.settings["epochs"], "divergence": found.settings["divergence"], "toy_loss": toy.loss,
        "norm": float(found.errors[-1, 0]), "squared": float(found.errors[-1, 1]),
        "new_norm": new.norm, "new_squared": new.squared,
        "cosine": float(cosines.mean()), "cosine_lowest": float(cosines.min()),
        "cosine_random": float(recovery.random_cosines(found, circuits).mean()),
        "r2": (r_squared(*coefficients(found, toy)) if toy.coefficients is not None
               and toy.family.group == 1 else float("nan")),
        "dead": float(found.dead.float().mean()), "p_act_live": float(live.mean()) if len(live) else 0.0,
    }


def coefficients(found: Decomposition, toy: toys.Toy) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The coefficients that subnetworks contain and the true ones, [subnetworks in use, outputs] each.

    >>> toy = gimkit.l3d.toys.train("superposed", seeds=[0], epochs=1, n=200)[0]       # y = x A
    >>> guessed, true = coefficients(gimkit.l3d.decompose(toy.module, toy.inputs(200), n=10, epochs=1), toy)
    >>> guessed.shape == true.shape
    True

    A subnetwork's coefficients are one row of its W_in W_out: the feature with the largest sum of |coefficients|. The
    true ones are that row of A. Both agree up to a scale, because directions are unit vectors.

    Args:
        found: a decomposition of the toy.
        toy: of the family "superposed".
    Source: the reference implementation's notebook, without dead subnetworks, which are left out here.
    """
    guessed, true = [], []
    for which in (~found.dead).nonzero().flatten().tolist():
        part = found.subnetwork(which)
        paths = part["W_in"] @ part["W_out"]
        feature = int(paths.abs().sum(1).argmax())
        guessed.append(paths[feature])
        true.append(toy.coefficients[feature])
    return torch.stack(guessed).numpy(), torch.stack(true).numpy()


def r_squared(guessed: numpy.ndarray, true: numpy.ndarray) -> float:
    """The squared correlation of two arrays' numbers.

    >>> r_squared(numpy.array([1.0, 2.0, 3.0]), numpy.array([2.0, 4.0, 6.0]))
    1.0
    """
    return float(numpy.corrcoef(guessed.ravel(), true.ravel())[0, 1] ** 2)
