"""The one place that runs a model: here, or on a server that has no gimkit."""

from types import SimpleNamespace

import nnsight
import torch

from gimkit.remote.backend import server_of
from gimkit.traced import on_cpu

# An installed package does not ship itself; these modules' functions run inside traces.
SHIPPED = ("gimkit.errors", "gimkit.rules", "gimkit.recomputed", "gimkit.sandbox", "gimkit.inside", "gimkit.traced",
           "gimkit.traced_layers", "gimkit.circuits.traced", "gimkit.circuits.streams", "gimkit.circuits.between",
           "gimkit.circuits.within",
           "gimkit.circuits.gradients", "gimkit.circuits.runs", "gimkit.circuits.one_edge",
           "gimkit.circuits.attention", "gimkit.forward.arithmetic", "gimkit.forward.pushing",
           "gimkit.forward.starting", "gimkit.selfrepair.traced_scores", "gimkit.selfrepair.traced_heads")


def register() -> None:
    """Tell nnsight to send gimkit's traced functions by value, so that a server needs no gimkit."""
    for name in SHIPPED:
        nnsight.register(name)


def in_trace(model, ids: torch.Tensor, body, *arguments, remote=False, **options):
    """What body(model, *arguments) returns inside a trace of token ids [rows, seq]; its tensors come back to the CPU.

    >>> from gimkit.traced import last_values
    >>> values, answers = in_trace(model, task.clean[:2], last_values, [7])
    >>> values.shape
    torch.Size([2, 2])

    body: a function of a module in SHIPPED. arguments: names, numbers, tensors, and tuples, lists and dicts of them.
    Only they, the ids and the functions go up, and only what body returns comes down. remote: see `where`.
    options: further inputs of the model's forward pass.
    """
    ids, arguments = plain(ids), plain(arguments)
    with model.trace(input_ids=ids, use_cache=False, **options, **where(model, remote)):
        found = on_cpu(body(model, *arguments)).save()
    return found


def in_session(model, body, *arguments, remote=False):
    """What body(model, *arguments) returns, which opens traces of its own: together they are one request."""
    arguments = plain(arguments)
    with model.session(**where(model, remote)):
        found = on_cpu(body(model, *arguments)).save()
    return found


def plain(value):
    """A value as a server can read it: named tuples become namespaces with the same names, views of tensors copies.

    >>> from gimkit.anatomy import Norm
    >>> plain(Norm("model.norm", 1e-6, False)).path
    'model.norm'

    A server does not know gimkit's classes, and a view would take along all of the tensor that it is a part of.
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return SimpleNamespace(**{name: plain(part) for name, part in value._asdict().items()})
    if isinstance(value, tuple | list):
        return type(value)(plain(part) for part in value)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone(memory_format=torch.contiguous_format)
    return value


def where(model, remote) -> dict:
    """The keywords of a trace or a session that send it where `remote` says; none for a run in this process.

    >>> where(model, False)
    {}

    remote: False; True for the configured server (NDIF, or NDIF_HOST); a server's address, "http://..."; or "local",
    which packs and unpacks the trace as for a server and runs it here; or the Job that asks.
    """
    if not remote:
        return {}
    if hasattr(remote, "backend"):  # a Job
        return {"backend": remote.backend(model)}
    return {"remote": "local"} if remote == "local" else {"backend": server_of(model, remote)}
