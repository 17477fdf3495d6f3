"""The circuit for indirect objects: which heads have a known role, and what each step from class to class carries."""

from pathlib import Path

import numpy
import pandas
import torch

import gimkit
from benchmarks.patched_nodes import measure
from figures import papers
from figures.parts import Request
from gimkit.circuits import Circuit, head_roles
from gimkit.circuits.head_roles import ATTENDS, occasions
from gimkit.interventions.head_roles import head_numbers
from gimkit.model.architecture import architecture_of
from gimkit.model.residual_stream import residual_stream_of
from gimkit.remote import in_trace
from gimkit.tasks.task import answers_of

DRAWS, STRONGEST = 3, 12
SEEN = {"previous token": "previous", "duplicate token": "of_duplicate", "induction": "of_induction",
        "S-inhibition": "wrong", "name mover": "right", "suppressor": "wrong", "negative name mover": "right"}
MOVERS = ("name mover", "suppressor", "negative name mover")
STEPS = {"previous token to induction, keys": (("previous token",), ("induction",), "k"),
         "induction to S-inhibition, values": (("induction",), ("S-inhibition",), "v"),
         "duplicate token to S-inhibition, values": (("duplicate token",), ("S-inhibition",), "v"),
         "S-inhibition to movers, queries": (("S-inhibition",), MOVERS, "q"),
         "S-inhibition to movers, keys": (("S-inhibition",), MOVERS, "k")}


def attention_at_repeat(model, task) -> pandas.DataFrame:
    """Mean attention of each head from the repeated name's last place: to its first place, and to what followed that.

    >>> attention_at_repeat(model, gimkit.tasks.ioi(model, n=4)).columns.tolist()
    ['node', 'of_duplicate', 'of_induction']

    Args:
        model: an nnsight model whose edges are covered.
        task: `gimkit.tasks.ioi`.
    """
    w, attentions = residual_stream_of(model), [block.attention for block in architecture_of(model).blocks]
    repeated = torch.stack([torch.isin(row, torch.tensor(wrong)) for row, wrong in zip(task.clean, task.bad)])
    looks = occasions(task)[:, -2:] & repeated[:, None, :, None]
    looked = in_trace(model, task.clean, head_numbers, w, attentions, looks, answers_of(task, "logit"))[0]
    seen = (looked / looks.any(-1).sum((0, 2))).flatten(0, 1)
    heads = [f"a{layer}.h{head}" for layer in range(len(attentions)) for head in range(w.heads)]
    return pandas.DataFrame({"node": heads, "of_duplicate": seen[:, 0].tolist(), "of_induction": seen[:, 1].tolist()})


def roles_of(model, task, strongest: list[str]) -> pandas.DataFrame:
    """A row for each head and role that fits it on one draw, by `gimkit.circuits.head_roles`' thresholds.

    Duplicate-token and induction heads are judged by the repeated name alone (`attention_at_repeat`).

    Args:
        model: an nnsight model.
        task: `gimkit.tasks.ioi`.
        strongest: the heads whose effect through later queries is measured.
    Returns:
        Columns role, node, seen (the attention that the role is about), direct (on the logit difference).
    """
    table = head_roles(model, task, heads=strongest).merge(attention_at_repeat(model, task), on="node")
    found = []
    for role, column in SEEN.items():
        label = f"{role}-like".replace(" token", "-token")
        fits = (table[column] >= ATTENDS if column in ("of_duplicate", "of_induction")
                else [label in given.split(", ") for given in table["role"]])
        found.append(table[fits][["node", "direct"]].assign(role=role, seen=table[column]))
    return pandas.concat(found, ignore_index=True)


def steps_of(model, task, classes: dict[str, list[str]], seed: int) -> pandas.DataFrame:
    """What is lost when the edges from one class of heads into another carry the corrupt run, as a share of all.

    The control cuts as many random heads of the same layers instead, into the same reads.

    Args:
        model: an nnsight model.
        task: `gimkit.tasks.ioi`.
        classes: {role: heads}.
        seed: of the control's heads.
    """
    graph, draw = gimkit.score_edges(model, task[:1], "random").graph, numpy.random.default_rng(seed)
    named = {head for heads in classes.values() for head in heads}
    heads = graph.real.shape[0] // graph.layers - 1

    def without(sources, targets) -> Circuit:
        out, into = (torch.tensor([name in chosen for name in names])
                     for names, chosen in ((graph.sources, sources), (graph.targets, targets)))
        return Circuit(graph, graph.real & ~(out[:, None] & into))

    circuits, names = [Circuit(graph, graph.real), Circuit(graph, torch.zeros_like(graph.real))], []
    for step, (writers, readers, read) in STEPS.items():
        sources = [head for role in writers for head in classes.get(role, ())]
        targets = [f"{head}<{read}>" for role in readers for head in classes.get(role, ())]
        others = []
        for head in sources:
            layer = head.partition(".")[0]
            others.append(draw.choice([f"{layer}.h{i}" for i in range(heads) if f"{layer}.h{i}" not in named]))
        circuits += [without(sources, targets), without(others, targets)]
        names.append(step)
    values = gimkit.run(model, task, circuits).mean(1).tolist()
    lost = [(values[0] - value) / (values[0] - values[1]) for value in values[2:]]
    return pandas.DataFrame({"step": names, "lost": lost[::2], "control": lost[1::2]})


def circuit(request: Request):
    """Heads with a role on draws of prompts, their effects, and the steps between classes: (figure, table, text)."""
    exact = measure(request.name, ["ioi"], [], request.n, DRAWS, Path("runs/nodes"))
    exact = exact[exact["node"].str.startswith("a")]
    effects = exact.assign(effect=exact.filter(like="prompt_").mean(axis=1))[["seed", "node", "effect"]]
    tasks = [gimkit.tasks.ioi(request.model, n=request.n, seed=seed) for seed in range(DRAWS)]
    drawn = []
    for seed, task in enumerate(tasks):
        own = effects[effects["seed"] == seed].set_index("node")["effect"]
        strongest = own.abs().nlargest(STRONGEST).index.tolist()
        drawn.append(request.part("ioi-roles", task, f"draw-{seed}",
                                  lambda task=task, strongest=strongest: roles_of(request.model, task, strongest))
                     .assign(seed=seed))
    by = pandas.concat(drawn).merge(effects, on=["seed", "node"]).groupby(["role", "node"])
    rows = pandas.concat([by.size().rename("draws"), *(
        by[column].agg(["mean", "min", "max"]).add_prefix(f"{column}_") for column in ("seen", "direct", "effect"))],
        axis=1).reset_index()
    rows["role"] = pandas.Categorical(rows["role"], list(SEEN))
    rows = rows.sort_values(["role", "draws", "seen_mean"], ascending=[True, False, False], ignore_index=True)
    classes = {role: own["node"].tolist()
               for role, own in rows[rows["draws"] == DRAWS].groupby("role", observed=True)}
    steps = pandas.concat([request.part("ioi-steps", task, f"draw-{seed}",
                                        lambda task=task, seed=seed: steps_of(request.model, task, classes, seed))
                           .assign(seed=seed) for seed, task in enumerate(tasks)])
    steps = steps.groupby("step", sort=False)[["lost", "control"]].agg(["mean", "min", "max"])
    steps.columns = ["_".join(name) for name in steps.columns]
    listed = "; ".join(f"{role}: {', '.join(heads)}" for role, heads in classes.items())
    said = "; ".join(f"{step} {row.lost_mean:.0%} (random heads of the same layers {row.control_mean:.0%})"
                     for step, row in steps.iterrows())
    alt = (f"Heads of {request.label} whose numbers fit a known role on all of {DRAWS} draws of {request.n} prompts: "
           f"{listed}. Lost of clean minus corrupt logit difference when only the edges of one step carry the corrupt "
           f"run: {said}.")
    frame = pandas.concat([rows.assign(part="head"), steps.reset_index().assign(part="step")], ignore_index=True)
    return papers.ioi_circuit(rows, steps.reset_index(), DRAWS, ATTENDS), frame, alt
