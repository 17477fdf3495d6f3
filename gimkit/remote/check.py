"""One table that shows whether remote runs will work."""

import json
import platform
import time
from importlib.metadata import version

import nnsight
import torch
from nnsight.intervention.envoy import Envoy

from gimkit.errors import GimkitError
from gimkit.interventions.token_scores import last_values
from gimkit.model.architecture import unembedding_of
from gimkit.remote.capabilities import gives_gradients
from gimkit.remote.messages import SHOWN, deployments, explained, names_of, one_line
from gimkit.remote.server import server_of
from gimkit.remote.trace import in_trace
from gimkit.remote.transport import MALFORMED, fetch_json, request_bytes, shown


def check(model: Envoy, remote: bool | str = True) -> None:
    """Print one table: versions, key, server, model, the backend that will be used, and a tiny run that proves it.

    >>> gimkit.check(model, remote=False)
                  here        fine  there
    gimkit        ...         yes   here
    ...
    3 tokens      ... s       yes   here

    A failure is reported in its row, with the way out; no answer of a server raises an error. The table shows neither
    the key nor a password in the address.

    Args:
        model: an nnsight model; for a server it needs no weights (`gimkit.load(name, remote=True)`).
        remote: as in `gimkit.attribute`.
    """
    rows = [("gimkit", version("gimkit-nnsight"), "not needed" if remote else "here", "yes")]
    there = {}
    if remote and remote != "local":
        there = _server_rows(model, remote, rows)
    for name in SHOWN:
        here, remote_version = version(name), there.get(name, "here" if not there else "missing")
        rows.append((name, here, remote_version, "yes" if remote_version in ("here", here) else "differs"))
    rows.append(("Python", platform.python_version(), there.get("python", "here"), "yes"))
    try:
        backend = "reverse" if gives_gradients(model, remote) else "forward"
        rows.append(("backend", backend, "gradients" if backend == "reverse" else "refuses gradients", "yes"))
        start = time.perf_counter()
        in_trace(model, torch.tensor([[1, 2, 3]]), last_values, unembedding_of(model), [], remote=remote)
        place = "here" if remote in (False, "local") else "there"
        rows.append(("3 tokens", f"{time.perf_counter() - start:.1f} s", place, "yes"))
    except Exception as error:  # a server can cause any error
        why = str(error) if isinstance(error, GimkitError) else f"{type(error).__name__}: {error}"
        rows.append(("3 tokens", "-", why, "NO"))
    rows = [("", "here", "fine", "there")] + [(what, here, fine, there) for what, here, there, fine in rows]
    rows = [tuple(one_line(str(cell)) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *cells, there in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths)), there]))


def _server_rows(model: Envoy, remote: bool | str, rows: list[tuple]) -> dict:
    """Add the rows about a server and the model on it; returns the server's versions."""
    try:
        server = server_of(model, remote)
    except GimkitError as error:
        rows.append(("model", "-", str(error), "NO"))
        return {}
    rows.append(("key", "set" if server.api_key else "not set", "not shown", "yes" if server.api_key else "?"))
    status, trouble = _status(server.host)
    rows.append(("server", shown(server.host), trouble or "up", "NO" if trouble else "yes"))
    name = nnsight.modeling.huggingface._ID_CACHE.get(model.repo_id, model.repo_id)
    states = [one.get("application_state", "?") for one in deployments(status) if one.get("repo_id") == name]
    state = states[0] if states else f"not hosted; hosted: {names_of(status)}"
    rows.append(("model", name, state, "yes" if states else "NO"))
    env = fetch_json(server.host, "/env")
    packages = env["packages"] if isinstance(env.get("packages"), dict) else {}
    return packages | {"python": str(env.get("python_version", "?")).split(" ")[0]}


def _status(host: str) -> tuple[dict, str]:
    """A server's status, and what is wrong with it ("": nothing)."""
    try:
        status = json.loads(request_bytes("GET", f"{host}/status"))
    except GimkitError as error:
        return {}, str(error)
    except (ValueError, RecursionError):
        return {}, MALFORMED
    except Exception as error:
        return {}, explained(error, host, "")
    return (status, "") if isinstance(status, dict) else ({}, MALFORMED)
