"""Scores and circuits as files: the JSON and .pt that MIB's evaluation loads."""

import json
from pathlib import Path
from typing import NamedTuple

import torch

from gimkit.errors import GimkitError, check_flag, check_number, check_whole, require_finite
from gimkit.files import atomic_write, write_text
from gimkit.model.graph import Graph
from gimkit.model.residual_stream import check_graph, residual_stream_of

LABELS = ("task", "method", "metric")
NEURONS = ("neurons", "neurons_scores", "neurons_in_graph")


class Contents(NamedTuple):
    """What a file holds: scores and keep are [sources, targets], node_scores [sources] or None."""

    graph: Graph
    scores: torch.Tensor
    keep: torch.Tensor
    node_scores: torch.Tensor | None
    labels: dict[str, str]  # task, method and metric; the method is the file's name where the file has none


def write(path, graph: Graph, scores: torch.Tensor, keep: torch.Tensor, node_scores: torch.Tensor | None = None,
          labels: dict[str, str] | None = None) -> Path:
    """Write a graph file as MIB's evaluation reads it; the ending says how: .json or .pt.

    node_scores: of every source, for node-level circuits. labels: task, method and metric of the scores, under a key
    that MIB's loaders pass over.
    Raises GimkitError for another ending and for NaN scores.
    Source: EAP-IG's Graph.from_json and Graph.from_pt as pinned by MIB-circuit-track. Its own writer fails on
    JSON of node scores, which its reader accepts.
    """
    path = Path(path)
    require_finite(scores, f"{path.name} is not written: the scores")
    if node_scores is not None:
        require_finite(node_scores, f"{path.name} is not written: the scores")
    scores, used = (scores * graph.real).float().cpu(), keep.any(1)
    data = {"cfg": {"n_layers": graph.layers, "n_heads": graph.heads, "parallel_attn_mlp": graph.parallel,
                    "d_model": graph.width}} | ({"labels": labels} if labels else {})
    if path.suffix == ".json":
        nodes = {name: {"in_graph": inside} for name, inside in zip(graph.sources, used.tolist())}
        if node_scores is not None:
            for node, score in zip(nodes.values(), node_scores.tolist()):
                node["score"] = score
        score, inside = scores.tolist(), keep.tolist()
        edges = {name: {"score": score[i][j], "in_graph": inside[i][j]} for name, (i, j) in graph.edges.items()}
        write_text(path, json.dumps(data | {"nodes": nodes | {"logits": {"in_graph": True}}, "edges": edges}))
    elif path.suffix == ".pt":
        data |= {"src_nodes": list(graph.sources), "dst_nodes": list(graph.targets), "edges_scores": scores,
                 "edges_in_graph": keep, "nodes_in_graph": used}
        with atomic_write(path) as new:
            torch.save(data if node_scores is None else data | {"nodes_scores": node_scores.float().cpu()}, new)
    else:
        raise GimkitError(f"{path.name}: write a .json or a .pt file")
    return path


def read(path, model=None) -> Contents:
    """Read a graph file of MIB's format; .pt files are read without executing what they hold.

    Edges that a JSON leaves out are outside the circuit with score 0, as MIB reads it; edges between nodes that run
    backward, which EAP-IG marks in node-level circuits, are dropped. model: refuse a file of another shape.
    Raises GimkitError for a file that is not there or no such graph, naming what is missing, for neuron-level circuits,
    NaN scores.
    """
    path = Path(path)
    if path.suffix not in (".json", ".pt"):
        raise GimkitError(f"{path.name}: read a .json or a .pt file")
    try:
        as_json = path.suffix == ".json"
        data = json.loads(path.read_text("utf-8")) if as_json else torch.load(path, "cpu", weights_only=True)
        config, labels = data["cfg"], {"task": "", "method": path.name, "metric": ""} | data.get("labels", {})
        layers, heads, width = (check_whole(f"{path.name}: {key}", config[key]) for key in ("n_layers", "n_heads",
                                                                                           "d_model"))
        graph = Graph(layers, heads, check_flag(f"{path.name}: parallel_attn_mlp", config["parallel_attn_mlp"]), width)
        if graph.layers * (graph.heads + 1) >= len(data["nodes" if as_json else "src_nodes"]):
            raise GimkitError(f"{path.name}: its nodes do not fit a model of {graph}")
        if model is not None:
            check_graph(graph, residual_stream_of(model), f"{path.name} is")
        held, found = (_of_json if as_json else _of_pt)(data, graph, path.name)
    except GimkitError:
        raise
    except KeyError as error:
        raise GimkitError(f"{path.name} is no circuit file of MIB's format: {error} is missing or unknown") from error
    except Exception as error:  # a damaged file can fail in any way
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise GimkitError(f"{path.name} cannot be read as a circuit file: {reason}") from error
    if any(key in held for key in NEURONS):
        raise GimkitError(f"{path.name} holds a neuron-level circuit; gimkit reads edges and nodes")
    scores, keep, nodes = found
    for values in (scores, nodes):
        if values is not None:
            require_finite(values, f"{path.name}: its scores")
    return Contents(graph, scores, keep, nodes, {key: str(labels[key]) for key in LABELS})


def _of_json(data: dict, graph: Graph, name: str):
    """(the keys that describe nodes, (scores, keep, node scores or None))."""
    scores, keep, known = torch.zeros(graph.real.shape), torch.zeros_like(graph.real), graph.edges
    for edge, entry in data["edges"].items():
        scores[known[edge]] = check_number(f"{name}: the score of {edge}", entry["score"])
        keep[known[edge]] = check_flag(f"{name}: in_graph of {edge}", entry["in_graph"])
    entries = [data["nodes"][source] for source in graph.sources]
    held = {key for entry in entries for key in entry}
    nodes = torch.tensor([float(entry["score"]) for entry in entries]) if "score" in held else None
    return held, (scores, keep, nodes)


def _of_pt(data: dict, graph: Graph, name: str):
    scores, keep, nodes = data["edges_scores"].float(), data["edges_in_graph"], data.get("nodes_scores")
    if not bool(((keep == 0) | (keep == 1)).all()):
        raise GimkitError(f"{name}: edges_in_graph must be True or False on every edge")
    keep = keep.bool()
    if ((tuple(data["src_nodes"]), tuple(data["dst_nodes"])) != (graph.sources, graph.targets)
            or not scores.shape == keep.shape == graph.real.shape
            or nodes is not None and nodes.shape != (len(graph.sources),)):
        raise GimkitError(f"{name}: its nodes do not fit a model of {graph}")
    return data, (scores.where(graph.real, 0), keep & graph.real, None if nodes is None else nodes.float())
