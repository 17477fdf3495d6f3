"""One line about each error on the way to a server and back: the cause and the way out."""

import platform
import re
from importlib.metadata import version

import httpx
import websocket

from gimkit.remote.transport import fetch_json, shown

SHOWN = ("nnsight", "transformers", "torch")
KEY = "get one from your host (for NDIF: https://login.ndif.us) and set NDIF_API_KEY or run nnsight.login()"


def explained(error: BaseException, host: str, model_key: str) -> str:
    """One line about an error of a remote run: the cause and the way out.

    >>> explained(ConnectionRefusedError(), "http://localhost:5001", "")
    'no answer from http://localhost:5001: the server is down or the address is wrong; check NDIF_HOST or remote=...'
    """
    return one_line(_explained(error, host, model_key).replace(host, shown(host)))


def _explained(error: BaseException, host: str, model_key: str) -> str:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        if isinstance(link, httpx.HTTPStatusError):
            return _refused(link.response.status_code, _detail(link.response), host, model_key)
        if isinstance(link, websocket.WebSocketBadStatusException):
            return _refused(link.status_code, "", host, model_key)
        if isinstance(link, websocket.WebSocketConnectionClosedException | httpx.RemoteProtocolError):
            return lost_result("the connection closed before the result came")
        if isinstance(link, httpx.TimeoutException | TimeoutError | websocket.WebSocketTimeoutException):
            return (f"{host} did not answer in time; it may be busy: try again, send less (a smaller batch_size), or "
                    "use gimkit.submit, which does not wait")
        if isinstance(link, OSError | httpx.RequestError | websocket.WebSocketException):
            return (f"no answer from {host}: the server is down or the address is wrong; check NDIF_HOST or "
                    "remote=...")
    return _failed(str(error), host, model_key)


def one_line(text: str) -> str:
    """A text as one printable line of at most 600 characters.

    >>> one_line("two\\n  lines \\x1b[31m")
    'two lines'
    """
    line = " ".join(printable(text).split())
    return line if len(line) <= 600 else line[:600] + "..."


def printable(text: str) -> str:
    """A text without the control characters that move a terminal's cursor or change its colours."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return "".join(mark for mark in text if mark.isprintable() or mark in "\n\t")


def _refused(code: int, detail: str, host: str, model_key: str) -> str:
    """The message about a request that the server refused."""
    if code == 401:
        return f"{host} wants an API key and got none; {KEY}"
    if code == 403 or "API key" in detail:
        return f"{host} does not know this API key; {KEY}"
    if "version" in detail:
        return f"{detail} Here: nnsight {version('nnsight')}, Python {platform.python_version()}{_there(host)}"
    if code in (502, 503, 504):
        return f"{host} is restarting or busy ({detail or code}); try again in a few minutes"
    if code == 404 and detail in ("", "Not Found"):
        return f"{host} is no NDIF server (status 404); check the address"
    if code == 413:
        return "the request is too large for the server; use a smaller batch_size, fewer or shorter prompts"
    return _failed(detail or f"status {code}", host, model_key)


def _failed(reason: str, host: str, model_key: str) -> str:
    """The message about a job that failed on the server. reason: the server's own text."""
    if re.search("sandbox without gradients|to not have been used in the graph|does not have a grad_fn", reason):
        return ("the server refuses gradients to this key, whose requests run in a sandbox without autograd; use a "
                "trusted key, a server of your own, or what needs no backward pass (backend='forward', "
                "method='occlusion' or 'exact')")
    own = re.findall(r"^(?:[\w.]*\.)?GimkitError: (.*)$", reason, re.MULTILINE)
    if own:
        return own[-1]
    if re.search("not deployed|deploy this model|provisioning model|starting model|does not serve", reason):
        return f"{host} does not host {_repo(model_key)} ({_last_line(reason)}); it hosts {_hosted(host)}"
    if "execution timeout" in reason:
        return f"{_last_line(reason)} Use a smaller batch_size, fewer or shorter prompts"
    if "payload could not be read" in reason or "doesn't match the one your" in reason:
        return f"{reason.splitlines()[0]} {_here()}{_there(host)}"
    if re.search("out of memory", reason, re.IGNORECASE):
        return "the server ran out of memory; use a smaller batch_size, fewer or shorter prompts"
    if re.search("cancelled|preempted|Critical server error|upload", reason):
        return f"the server gave up the job ({_last_line(reason)}); try again"
    return f"the job failed on {host}: {_last_line(reason)}"


def lost_result(why: str) -> str:
    """One line about a result that did not arrive."""
    return (f"the result did not arrive ({why}): the server restarted, or the result is too large or too "
            "old; use a smaller batch_size or fewer prompts, and run it again")


def _detail(response: httpx.Response) -> str:
    """The server's reason for a refusal; "" where it gives none."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError, httpx.ResponseNotRead):
        return ""


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"


def _repo(model_key: str) -> str:
    found = re.search(r'"repo_id": "([^"]*)"', model_key)
    return found[1] if found else model_key


def _hosted(host: str) -> str:
    """Names of the models that a server has up."""
    status = fetch_json(host, "/status")
    return names_of(status) if "deployments" in status else "models that it does not list now"


def deployments(status: dict) -> list[dict]:
    """The models that a server lists in its status.

    >>> deployments({"deployments": {"a": {"repo_id": "openai-community/gpt2"}, "b": None}})
    [{'repo_id': 'openai-community/gpt2'}]
    """
    listed = status.get("deployments")
    return [one for one in listed.values() if isinstance(one, dict)] if isinstance(listed, dict) else []


def names_of(status: dict) -> str:
    """The models that are up, by a server's status.

    >>> names_of({"deployments": {"a": {"repo_id": "openai-community/gpt2", "deployment_level": "HOT"}, "b": {}}})
    'openai-community/gpt2'
    """
    up = {name for one in deployments(status) if one.get("deployment_level") != "COLD"
          and isinstance(name := one.get("repo_id"), str)}
    return ", ".join(sorted(up)) or "none"


def _here() -> str:
    return "Here: " + ", ".join(f"{name} {version(name)}" for name in SHOWN)


def _there(host: str) -> str:
    """The server's versions."""
    packages = fetch_json(host, "/env").get("packages")
    if not isinstance(packages, dict):
        return "; the server does not report its own"
    return "; on the server: " + ", ".join(f"{name} {packages.get(name, 'missing')}" for name in SHOWN)
