"""Every way into the kit that runs a model, as a function of a tiny model and a task that gives one tensor."""

import dataclasses

import torch

import gimkit
from gimkit.circuits import Circuit, head_roles, position_scores, score_neurons, shapley_nodes
from gimkit.selfrepair import head_repair

CHOSEN = ["input", "a0.h1", "m1", "a2.h3", "logits"]


def solved(hf, task):
    """The task with answers that the model gives: its prediction after the clean prompt, less that after the corrupt.
    """
    with torch.no_grad():
        clean, corrupt = (hf(ids, use_cache=False).logits[torch.arange(len(task)), task.last].topk(2).indices.tolist()
                          for ids in (task.clean, task.corrupt))
    bad = [second if first == good else first for (good, _), (first, second) in zip(clean, corrupt)]
    return dataclasses.replace(task, good=tuple((good,) for good, _ in clean), bad=tuple((i,) for i in bad))


def random_scores(model, task):
    return gimkit.score_edges(model, task, "random")


def circuits(model, task):
    """One that drops a third of the edges, and all edges."""
    edges = random_scores(model, task)
    return [Circuit(edges.graph, edges.graph.real & (edges.scores > -0.4)), Circuit(edges.graph, edges.graph.real)]


def attribute(method="gim", **options):
    return lambda model, task: gimkit.attribute(model, task.clean[-1], 7, method=method, baseline=3, **options).scores


def nodes(method, **options):
    return lambda model, task: gimkit.score_nodes(model, task, method, **options).scores


def edges(method, **options):
    return lambda model, task: gimkit.score_edges(model, task, method, **options).scores


def roles(model, task):
    return torch.tensor(head_roles(model, task).select_dtypes("number").to_numpy()).nan_to_num()


def repair(model, task):
    found = head_repair(model, task)
    return torch.cat([found.effects.flatten(), found.compensation.flatten()])


TOKENS = {
    "attribute": attribute(),
    "attribute ig": attribute("ig", steps=3),
    "attribute pattern-difference": attribute("pattern-difference"),
    "attribute occlusion": attribute("occlusion"),
    "attribute forward": attribute(backend="forward"),
}
NODES = {
    **{f"nodes {method}": nodes(method, steps=2)
       for method in ("gim", "gradient", "nap-ig", "ig-activations", "atp*", "exact")},
    "positions": lambda model, task: position_scores(model, task, "gim-ig", steps=2),
    "nodes forward": nodes("gim", backend="forward"),
    "neurons": lambda model, task: score_neurons(model, task).scores,
    "shapley": lambda model, task: shapley_nodes(model, task, orders=2).scores,
    "self_repair": lambda model, task: torch.tensor(gimkit.self_repair(model, task).rows[["d1", "d2", "d12", "tsg"]]
                                                    .to_numpy()),
    "among forward": lambda model, task: gimkit.score_edges(model, task, nodes=CHOSEN, backend="forward").scores,
}
EDGES = {
    **{f"edges {method}": edges(method, steps=2)
       for method in ("gim", "gradient", "gim-ig", "ig-activations", "clean-corrupted", "gp", "exact")},
    "among": lambda model, task: gimkit.score_edges(model, task, nodes=CHOSEN).scores,
    "run": lambda model, task: gimkit.run(model, task, circuits(model, task)),
    "faithfulness": lambda model, task: gimkit.faithfulness(model, task, random_scores(model, task), absolute=False,
                                                            sizes=(0.5, 0.9)).per_example,
    "head_roles": roles,
    "head_repair": repair,
}
ALL = {**TOKENS, **NODES, **EDGES}
