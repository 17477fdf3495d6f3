"""Scores and circuits as files: the JSON and .pt that MIB's evaluation loads, and a compact .safetensors."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from nnsight.intervention.envoy import Envoy
from safetensors import safe_open
from safetensors.torch import save_file

from gimkit.errors import GimkitError, check_flag, check_number, check_whole, require_finite
from gimkit.files import atomic_write, write_text
from gimkit.model.graph import Graph
from gimkit.model.residual_stream import check_graph, residual_stream_of

LABELS = ("task", "method", "metric")
NEURONS = ("neurons", "neurons_scores", "neurons_in_graph")


class Contents(NamedTuple):
    """The contents of a file: scores and keep are [sources, targets], node_scores is [sources] or None."""

    graph: Graph
    scores: torch.Tensor
    keep: torch.Tensor
    node_scores: torch.Tensor | None
    labels: dict[str, str]  # task, method and metric; the method is the file's name where the file has none


def write(path: str | Path, graph: Graph, scores: torch.Tensor, keep: torch.Tensor,
          node_scores: torch.Tensor | None = None, labels: dict[str, str] | None = None) -> Path:
    """Write a graph file as MIB's evaluation reads it; the ending says how: .json or .pt.

    An ending .safetensors makes a compact file of a number and a mark for each edge, which only gimkit reads.

    Args:
        path: of the file.
        graph: the model's shape.
        scores: [sources, targets].
        keep: [sources, targets], True on edges in the graph.
        node_scores: [sources], for node-level circuits.
        labels: task, method and metric of the scores, under a key that MIB's loaders ignore.

    Returns:
        The path.

    Raises:
        GimkitError: another ending, NaN scores.

    Source:
        EAP-IG's Graph.from_json and Graph.from_pt as pinned by MIB-circuit-track. Its own writer fails on JSON of node
        scores, which its reader accepts.
    """
    path = Path(path)
    require_finite(scores, f"{path.name} is not written: the scores")
    if node_scores is not None:
        require_finite(node_scores, f"{path.name} is not written: the scores")
    scores, used = (scores * graph.real).float().cpu(), keep.any(1)
    data: dict = {"cfg": {"n_layers": graph.layers, "n_heads": graph.heads, "parallel_attn_mlp": graph.parallel,
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
    elif path.suffix == ".safetensors":
        tensors = {"edges_scores": scores[graph.real], "edges_in_graph": keep[graph.real].cpu()}
        if node_scores is not None:
            tensors["nodes_scores"] = node_scores.float().cpu()
        with atomic_write(path) as new:
            save_file(tensors, new, {"gimkit": json.dumps(data)})
    else:
        raise GimkitError(f"{path.name}: write a .json, .pt or .safetensors file")
    return path


def read(path: str | Path, model: Envoy | None = None) -> Contents:
    """Read a graph file of MIB's format; a .pt file cannot run code.

    Edges that a JSON leaves out are outside the circuit with score 0, as MIB reads it. Edges that run backward, which
    EAP-IG marks in node-level circuits, are dropped.

    Args:
        path: of the file.
        model: a file of another shape than this model's is refused.

    Returns:
        Its `Contents`.

    Raises:
        GimkitError: a missing file; a file that is no such graph (the message names what is missing); a neuron-level
            circuit; NaN scores.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise GimkitError(f"{path.name}: read a .json, .pt or .safetensors file")
    load, tensors_of = READERS[path.suffix]
    try:
        data = load(path)
        config, labels = data["cfg"], {"task": "", "method": path.name, "metric": ""} | data.get("labels", {})
        layers, heads, width = (check_whole(f"{path.name}: {key}", config[key]) for key in ("n_layers", "n_heads",
                                                                                           "d_model"))
        graph = Graph(layers, heads, check_flag(f"{path.name}: parallel_attn_mlp", config["parallel_attn_mlp"]), width)
        held_nodes = data["nodes"] if "nodes" in data else data.get("src_nodes")
        # Before a graph of a damaged file's size is made.
        if held_nodes is not None and graph.layers * (graph.heads + 1) >= len(held_nodes):
            raise GimkitError(f"{path.name}: its nodes do not fit a model of {graph}")
        if model is not None:
            check_graph(graph, residual_stream_of(model), f"{path.name} is")
        held, found = tensors_of(data, graph, path.name)
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


def _of_json(data: dict, graph: Graph, name: str) -> tuple[set, tuple]:
    """(the keys that describe nodes, (scores, keep, node scores or None))."""
    scores, keep, known = torch.zeros(graph.real.shape), torch.zeros_like(graph.real), graph.edges
    if data["edges"]:
        place = tuple(torch.tensor([known[edge] for edge in data["edges"]]).T)
        scores[place] = torch.tensor([check_number(f"{name}: the score of {edge}", entry["score"])
                                      for edge, entry in data["edges"].items()])
        keep[place] = torch.tensor([check_flag(f"{name}: in_graph of {edge}", entry["in_graph"])
                                    for edge, entry in data["edges"].items()])
    entries = [data["nodes"][source] for source in graph.sources]
    held = {key for entry in entries for key in entry}
    nodes = torch.tensor([float(entry["score"]) for entry in entries]) if "score" in held else None
    return held, (scores, keep, nodes)


def _of_pt(data: dict, graph: Graph, name: str) -> tuple[dict, tuple]:
    scores, keep, nodes = data["edges_scores"].float(), data["edges_in_graph"], data.get("nodes_scores")
    if not bool(((keep == 0) | (keep == 1)).all()):
        raise GimkitError(f"{name}: edges_in_graph must be True or False on every edge")
    keep = keep.bool()
    if ((tuple(data["src_nodes"]), tuple(data["dst_nodes"])) != (graph.sources, graph.targets)
            or not scores.shape == keep.shape == graph.real.shape
            or nodes is not None and nodes.shape != (len(graph.sources),)):
        raise GimkitError(f"{name}: its nodes do not fit a model of {graph}")
    return data, (scores.where(graph.real, 0), keep & graph.real, None if nodes is None else nodes.float())


def _read_safetensors(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["gimkit"]) | {key: file.get_tensor(key) for key in file.keys()}


def _of_safetensors(data: dict, graph: Graph, name: str) -> tuple[dict, tuple]:
    inside, nodes = data["edges_in_graph"], data.get("nodes_scores")
    if (inside.dtype != torch.bool or not data["edges_scores"].shape == inside.shape == (_count(graph),)
            or nodes is not None and nodes.shape != (1 + graph.layers * (graph.heads + 1),)):
        raise GimkitError(f"{name}: its edges do not fit a model of {graph}")
    scores, keep = torch.zeros(graph.real.shape), torch.zeros_like(graph.real)
    scores[graph.real], keep[graph.real] = data["edges_scores"].float(), inside
    return data, (scores, keep, nodes)


def _count(graph: Graph) -> int:
    """How many edges there are, without making them."""
    layers, heads = graph.layers, graph.heads
    before = layers + (heads + 1) * layers * (layers - 1) // 2  # sources before a layer, summed over layers
    own = 0 if graph.parallel else layers * heads
    return (3 * heads + 1) * before + own + 1 + layers * (heads + 1)


READERS = {  # how a file of this ending is read, and what makes tensors of it
    ".json": (lambda path: json.loads(path.read_text("utf-8")), _of_json),
    ".pt": (lambda path: torch.load(path, "cpu", weights_only=True), _of_pt),
    ".safetensors": (_read_safetensors, _of_safetensors),
}
