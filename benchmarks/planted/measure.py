"""How well each method finds a circuit that is known."""

import warnings
from pathlib import Path

import numpy
import pandas
import torch
from nnsight import TransformersModel
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import gimkit
from benchmarks.planted import train
from benchmarks.planted.prompts import FOLDER, PROGRAMS
from gimkit import statistics
from gimkit.circuits import Circuit
from gimkit.circuits.faithfulness import SIZES
from gimkit.model.graph import greedy_edges

COMPARED = ("gradient", "freeze", "gim", "relp", "attnlrp", "transformer-lrp", "ig-inputs", "gim-ig", "gp", "learned",
            "exact", "random")
KINDS, AREAS = ("compiled", "trained"), ("auroc", "mib_auroc", "average_precision")
PAIRS, LEAST, SOLVED = 32, 1e-3, 0.95
NOISES = (0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0)


def trained() -> dict[str, Path]:
    """The folders of the trained models that passed their checks, by name.

    >>> "induction-gpt2-0" in trained()
    True
    """
    return {path.name: path for path in sorted(train.FOLDER.iterdir())}


def load(name: str, noise: float = 0.0, seed: int = 0):
    """A compiled or a trained model; normal noise of this standard deviation is added to all weights but the norms'.

    >>> load("pattern").tokenizer.tokenize("a b")
    ['a', 'b']
    """
    path = FOLDER / name if name in PROGRAMS else trained()[name]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        if noise and "ln_" not in key:
            weight += noise * torch.randn(weight.shape, generator=generator)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    return TransformersModel(model, task="text-generation", tokenizer=tokenizer)


def program_of(name: str):
    """The program of a compiled or a trained model.

    >>> program_of("induction-gpt2-0").layers
    3
    """
    return PROGRAMS[name] if name in PROGRAMS else train.program_of(name.rpartition("-")[0])


def task_of(name: str, model, n: int = PAIRS, seed: int = 0):
    """The program's prompt pairs.

    >>> task_of("pattern", load("pattern"), n=2).clean.shape
    torch.Size([2, 4])
    """
    return train.task_from(program_of(name), model, name, n, seed)


def truth_of(name: str) -> Circuit:
    """The known circuit.

    >>> len(truth_of("pattern"))
    4
    >>> truth_of("counts-gpt2-0").edges[-1]
    'm1->logits'

    Of a compiled model: the edges whose exact effect is not zero, without noise. Of a trained one: those of its
    program (`Aligned.edges`).
    """
    model = load(name)
    if name in PROGRAMS:
        exact = gimkit.score_edges(model, task_of(name, model, 64), "exact")
        return Circuit(exact.graph, exact.scores.abs() > LEAST)
    return train.circuit_of(program_of(name), model)


def ranked(scores, known: Circuit, pairs: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """|score| of every edge, and whether it is in the circuit.

    >>> values, hit = ranked(gimkit.score_edges(model, task[:2], "random"), Circuit.between(edges.graph, ["input"]))
    >>> len(values), int(hit.sum())
    (761, 1)

    Args:
        pairs: count pairs of nodes, as InterpBench does: a head's queries, keys and values together, the largest
            |score| of the three.
    """
    values, hit, real = scores.scores.abs(), known.keep, known.graph.real
    if pairs:
        reader = known.graph.node_of() % (len(values) + 1)  # the logits last
        values, hit, real = (torch.zeros(len(values), len(values) + 1).scatter_reduce(
            1, reader.expand_as(real), each.float(), "amax") for each in (values, hit, real))
    return values[real.bool()], hit[real.bool()].bool()


def mib_auroc(scores, known: Circuit) -> float:
    """InterpBench's area as MIB computes it: ten greedy circuits, joined by straight lines from the first one on.

    >>> edges = gimkit.score_edges(model, task[:2], "random")
    >>> 0 <= mib_auroc(edges, Circuit(edges.graph, edges.scores > 0.5)) <= 1
    True

    The false positive rate is divided by the largest one; there is no point (0, 0). A share of the edges that is not
    whole counts as the next whole number.
    """
    real, hit, rates = known.graph.real, known.keep, []
    for share in SIZES:
        count = int(numpy.ceil(share * known.graph.n_edges))
        keep = greedy_edges(scores.scores, scores.graph, count, True)
        rates.append((int((keep & hit).sum()) / int(hit.sum()), int((keep & ~hit).sum()) / int((real & ~hit).sum())))
    true, false = numpy.array(rates).T
    return float(numpy.trapezoid(true, false / false[-1])) if false[-1] else 1.0


def average_precision(values: torch.Tensor, hit: torch.Tensor) -> float:
    """The mean precision at each edge of the circuit, edges in order of value.

    >>> average_precision(torch.tensor([0.9, 0.1, 0.5]), torch.tensor([True, True, False]))
    0.8333333333333333
    """
    hit = hit[values.argsort(descending=True, stable=True)].double()
    return float((hit * hit.cumsum(0) / torch.arange(1, len(hit) + 1)).sum() / hit.sum())


def noisy(name: str, seed: int, n: int = PAIRS, noises=NOISES) -> tuple:
    """The model with the most noise at which it still gets 95% of its prompts right, its task, and that noise.

    >>> noisy("pattern", seed=0, n=4)[2]
    0.02
    """
    for noise in noises:
        model = load(name, noise, seed)
        task = task_of(name, model, n, seed)
        if gimkit.tasks.card(model, task).accuracy >= SOLVED:
            break
    return model, task, noise


def measure(methods=COMPARED, seeds: int = 5, n: int = PAIRS, noises=NOISES, kinds=KINDS) -> pandas.DataFrame:
    """A row for each model and method.

    >>> measure(["gim", "random"], seeds=1, n=4, kinds=["compiled"]).columns.tolist()
    ['kind', 'program', 'seed', 'method', 'edges', 'circuit', 'noise', 'auroc', 'mib_auroc', 'average_precision']

    Args:
        methods: of `gimkit.score_edges`.
        seeds: of the noise on compiled weights.
        n: prompt pairs.
        noises: standard deviations of what is added to each compiled weight, tried in order (`noisy`).
        kinds: "compiled", "trained".
    """
    wanted = [("compiled", name, name, seed) for name in PROGRAMS for seed in range(seeds)]
    wanted += [("trained", name, *name.rsplit("-", 1)) for name in trained()]
    known, rows = {}, []
    for kind, name, program, seed in tqdm([each for each in wanted if each[0] in kinds], desc="planted circuits",
                                          delay=2, leave=False):
        truth = known[name] = known.get(name) or truth_of(name)
        seed = int(seed)
        model, task, noise = noisy(name, seed, n, noises if kind == "compiled" else [0.0])
        for method in methods:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                edges = gimkit.score_edges(model, task, method, seed=seed)
            values, hit = ranked(edges, truth, kind == "trained")
            rows.append({"kind": kind, "program": program, "seed": seed, "method": method, "edges": len(hit),
                         "circuit": int(hit.sum()), "noise": noise, "auroc": statistics.auroc(values, hit),
                         "mib_auroc": mib_auroc(edges, truth), "average_precision": average_precision(values, hit)})
    return pandas.DataFrame(rows)


def summary(table: pandas.DataFrame) -> pandas.DataFrame:
    """Means over programs, with 95% bootstrap intervals that draw programs, each with all its seeds.

    >>> table = measure(["random"], seeds=1, n=2, kinds=["compiled"])
    >>> summary(table).columns.tolist()
    ['kind', 'method', 'auroc', 'auroc_low', 'auroc_high', 'mib_auroc', 'mib_auroc_low', 'mib_auroc_high', ...]
    """
    rows = []
    for (kind, method), own in table.groupby(["kind", "method"], sort=False):
        row = {"kind": kind, "method": method}
        for area in AREAS:
            values = own.groupby("program", sort=False)[area].mean().to_numpy()
            found = statistics.bootstrap(lambda index, values=values: values[index].mean(), len(values))
            row |= dict(zip((area, f"{area}_low", f"{area}_high"), found))
        rows.append(row)
    return pandas.DataFrame(rows)
