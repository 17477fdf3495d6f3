"""One table that says whether remote runs will work."""

import json
import platform
import time
from importlib.metadata import version

import nnsight
import torch

from gimkit.errors import GimkitError
from gimkit.interventions.token_scores import last_values
from gimkit.model.architecture import unembedding_of
from gimkit.remote.capabilities import gives_gradients
from gimkit.remote.messages import SHOWN, deployments, explained, names_of, one_line
from gimkit.remote.server import server_of
from gimkit.remote.trace import in_trace
from gimkit.remote.transport import NONSENSE, ask, exchange, shown


def check(model, remote=True) -> None:
    """Print one table: versions, key, server, model, which backend will be used, and a tiny attribution that proves it.

    >>> gimkit.check(model, remote=False)
                  here        fine  there
    gimkit        ...         yes   here
    ...
    3 tokens      ... s       yes   here

    model: an nnsight model; without weights (`gimkit.load(name, remote=True)`) will do for a server. remote: as in
    `gimkit.attribute`. What fails is told in its row, with the way out; nothing is raised, whatever the server
    answers. Neither the key nor a password in the address is shown.
    """
    rows = [("gimkit", version("gimkit-nnsight"), "not needed" if remote else "here", "yes")]
    there = {}
    if remote and remote != "local":
        there = _server_rows(model, remote, rows)
    for name in SHOWN:
        theirs = there.get(name, "here" if not there else "missing")
        rows.append((name, version(name), theirs, "yes" if theirs in ("here", version(name)) else "differs"))
    rows.append(("Python", platform.python_version(), there.get("python", "here"), "yes"))
    try:
        backend = "reverse" if gives_gradients(model, remote) else "forward"
        rows.append(("backend", backend, "gradients" if backend == "reverse" else "refuses gradients", "yes"))
        start = time.perf_counter()
        in_trace(model, torch.tensor([[1, 2, 3]]), last_values, unembedding_of(model), [], remote=remote)
        place = "here" if remote in (False, "local") else "there"
        rows.append(("3 tokens", f"{time.perf_counter() - start:.1f} s", place, "yes"))
    except Exception as error:  # a server may answer with anything
        why = str(error) if isinstance(error, GimkitError) else f"{type(error).__name__}: {error}"
        rows.append(("3 tokens", "-", why, "NO"))
    rows = [("", "here", "fine", "there")] + [(what, here, fine, there) for what, here, there, fine in rows]
    rows = [tuple(one_line(str(cell)) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *cells, there in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths)), there]))


def _server_rows(model, remote, rows: list) -> dict:
    """Add what a server says about itself and the model; its versions."""
    try:
        server = server_of(model, remote)
    except GimkitError as error:
        rows.append(("model", "-", str(error), "NO"))
        return {}
    rows.append(("key", "set" if server.api_key else "not set", "shown to nobody", "yes" if server.api_key else "?"))
    status, trouble = _status(server.host)
    rows.append(("server", shown(server.host), trouble or "up", "NO" if trouble else "yes"))
    name = nnsight.modeling.huggingface._ID_CACHE.get(model.repo_id, model.repo_id)
    states = [one.get("application_state", "?") for one in deployments(status) if one.get("repo_id") == name]
    told = states[0] if states else f"not hosted; hosted: {names_of(status)}"
    rows.append(("model", name, told, "yes" if states else "NO"))
    env = ask(server.host, "/env")
    packages = env["packages"] if isinstance(env.get("packages"), dict) else {}
    return packages | {"python": str(env.get("python_version", "?")).split(" ")[0]}


def _status(host: str) -> tuple[dict, str]:
    """What a server says that it hosts, and what is wrong with the answer."""
    try:
        status = json.loads(exchange("GET", f"{host}/status"))
    except GimkitError as error:
        return {}, str(error)
    except (ValueError, RecursionError):
        return {}, NONSENSE
    except Exception as error:
        return {}, explained(error, host, "")
    return (status, "") if isinstance(status, dict) else ({}, NONSENSE)
