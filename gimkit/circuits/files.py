"""Scores and circuits as files: the JSON and .pt that MIB's evaluation loads."""

import json
import pickle
from pathlib import Path

import torch

from gimkit.circuits.edges import EdgeScores
from gimkit.circuits.graph import Circuit, Graph
from gimkit.errors import GimkitError


def save_edges(edges: EdgeScores | Circuit, path, *, d_model: int) -> Path:
    """Write edge scores, or a circuit, for MIB's evaluation; the ending says how: .json or .pt.

    >>> save_edges(edges, "ioi.json", d_model=128)
    PosixPath('ioi.json')

    Scores come with every edge in the graph, a circuit with its own edges (and its scores, or 0 and 1).
    d_model: the model's width, which the format holds. Raises GimkitError for another ending.
    Source: the format of MIB-circuit-track's graph files (`Graph.from_json`, `Graph.from_pt`).
    """
    path, graph = Path(path), edges.graph
    circuit = isinstance(edges, Circuit)
    keep = edges.keep if circuit else graph.real
    scores = (keep.float() if edges.scores is None else edges.scores) * graph.real
    used = keep.any(1)
    config = {"n_layers": graph.layers, "n_heads": graph.heads, "parallel_attn_mlp": graph.parallel, "d_model": d_model}
    if path.suffix == ".json":
        sources, targets = graph.sources, graph.targets
        node = {name: {"in_graph": bool(used[i])} for i, name in enumerate(sources)} | {"logits": {"in_graph": True}}
        edge = {f"{sources[i]}->{targets[j]}": {"score": float(scores[i, j]), "in_graph": bool(keep[i, j])}
                for i, j in graph.real.nonzero().tolist()}
        path.write_text(json.dumps({"cfg": config, "nodes": node, "edges": edge}))
    elif path.suffix == ".pt":
        torch.save({"cfg": config, "src_nodes": list(graph.sources), "dst_nodes": list(graph.targets),
                    "edges_scores": scores.float(), "edges_in_graph": keep, "nodes_in_graph": used}, path)
    else:
        raise GimkitError(f"{path.name}: write a .json or a .pt file")
    return path


def load_edges(path, *, task: str = "", method: str = "", metric: str = "") -> tuple[EdgeScores, Circuit]:
    """Read a file of MIB's format: the scores, and the circuit of the edges marked as in the graph.

    >>> scores, circuit = load_edges("ioi.json")

    .pt files are read without executing what they hold. task, method, metric: labels for the scores.
    Raises GimkitError for a file that is no such graph, naming what is missing.
    """
    path = Path(path)
    try:
        if path.suffix == ".json":
            data = json.loads(path.read_text())
            graph = _graph(data["cfg"])
            scores, keep = torch.zeros(graph.real.shape), torch.zeros_like(graph.real)
            rows = {name: i for i, name in enumerate(graph.sources)}
            columns = {name: j for j, name in enumerate(graph.targets)}
            for name, edge in data["edges"].items():
                source, _, target = name.partition("->")
                scores[rows[source], columns[target]] = float(edge["score"])
                keep[rows[source], columns[target]] = bool(edge["in_graph"])
        elif path.suffix == ".pt":
            data = torch.load(path, weights_only=True)
            graph = _graph(data["cfg"])
            scores, keep = data["edges_scores"].float(), data["edges_in_graph"].bool()
            if tuple(data["src_nodes"]) != graph.sources or not scores.shape == keep.shape == graph.real.shape:
                raise GimkitError(f"{path.name}: its nodes do not fit a model of {graph.layers} layers with "
                                  f"{graph.heads} heads")
            keep &= graph.real
        else:
            raise GimkitError(f"{path.name}: read a .json or a .pt file")
    except KeyError as error:
        raise GimkitError(f"{path.name} is no circuit file of MIB's format: {error} is missing or unknown") from error
    except (json.JSONDecodeError, pickle.UnpicklingError, RuntimeError) as error:
        raise GimkitError(f"{path.name} cannot be read as a circuit file: {str(error).splitlines()[0]}") from error
    return EdgeScores(task, method, graph, scores, metric), Circuit(graph, keep, scores)


def _graph(config) -> Graph:
    return Graph(int(config["n_layers"]), int(config["n_heads"]), bool(config["parallel_attn_mlp"]),
                 int(config["d_model"]))
