"""One table that says whether remote runs will work."""

import platform
import time
from importlib.metadata import version

import httpx
import nnsight
import torch

from gimkit.errors import GimkitError
from gimkit.interventions.token_scores import last_values
from gimkit.remote.capabilities import gives_gradients
from gimkit.remote.messages import SHOWN, names_of
from gimkit.remote.server import server_of
from gimkit.remote.trace import in_trace


def check(model, remote=True) -> None:
    """Print one table: versions, key, server, model, which backend will be used, and a tiny attribution that proves it.

    >>> gimkit.check(model, remote=False)
                  here        fine  there
    gimkit        ...         yes   here
    ...
    3 tokens      ... s       yes   here

    model: an nnsight model; without weights (`gimkit.load(name, remote=True)`) will do for a server. remote: as in
    `gimkit.attribute`. What fails is told in its row, with the way out; nothing is raised. The key is never shown.
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
        in_trace(model, torch.tensor([[1, 2, 3]]), last_values, [], remote=remote)
        place = "here" if remote in (False, "local") else "there"
        rows.append(("3 tokens", f"{time.perf_counter() - start:.1f} s", place, "yes"))
    except GimkitError as error:
        rows.append(("3 tokens", "-", str(error), "NO"))
    rows = [("", "here", "fine", "there")] + [(what, here, fine, there) for what, here, there, fine in rows]
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
    status, env = (_told(server.host, path) for path in ("/status", "/env"))
    rows.append(("server", server.host, "up" if status else "no answer", "yes" if status else "NO"))
    name = nnsight.modeling.huggingface._ID_CACHE.get(model.repo_id, model.repo_id)
    deployed = status.get("deployments", {}).values()
    states = [one.get("application_state", "?") for one in deployed if one.get("repo_id") == name]
    told = states[0] if states else f"not hosted; hosted: {names_of(status.get('deployments', {}))}"
    rows.append(("model", name, told, "yes" if states else "NO"))
    return env.get("packages", {}) | {"python": env.get("python_version", "?").split()[0]}


def _told(host: str, path: str) -> dict:
    """What a server answers, nothing where it does not."""
    try:
        return httpx.get(host + path, timeout=30).raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return {}
