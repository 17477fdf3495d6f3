"""A loopback NDIF server that cannot import gimkit, and models without weights to call it with."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from nnsight import CONFIG
from nnsight.modeling import huggingface

import gimkit
from gimkit.model.load import BUNDLED

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-ndif" / "bin" / "python"
FOLDERS = {name: ROOT / "gimkit" / "model" / "bundled" / name for name in BUNDLED}


@contextlib.contextmanager
def serving(folders: dict[str, Path], folder: Path):
    """A server that hosts each model as tests/NAME, with an empty working folder; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [PYTHON, "-E", "-s", Path(__file__).with_name("server.py"), str(port),
         *(f"tests/{name}={path}" for name, path in folders.items())],
        cwd=folder, stderr=(folder / "stderr").open("w"), start_new_session=True,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    address, deadline = f"http://127.0.0.1:{port}", time.time() + 120
    while process.poll() is None and time.time() < deadline:
        try:
            httpx.get(f"{address}/ping")
            break
        except httpx.TransportError:
            time.sleep(0.1)
    else:
        process.kill()
        pytest.fail(f"the server did not start: {(folder / 'stderr').read_text()}")
    try:
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with its sandboxes, which would outlive it
        process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of a server that hosts tests/mini-gpt2 and tests/mini-llama."""
    if "GIMKIT_NDIF" in os.environ:  # set by whole_service.py
        yield os.environ["GIMKIT_NDIF"]
        return
    if not PYTHON.exists():
        pytest.skip("NDIF's server is not installed; `make test` puts it into .venv-ndif")
    with serving(FOLDERS, tmp_path_factory.mktemp("server")) as address:  # so that no gimkit lies beside it
        yield address


@pytest.fixture(autouse=True)
def trusted_key(monkeypatch):
    """Requests carry a key that may leave the sandbox, and print no statuses."""
    monkeypatch.setattr(CONFIG.API, "APIKEY", "trusted")
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)


@pytest.fixture(scope="session", params=FOLDERS)
def models(request):
    """A bundled model twice: `here` with weights, `there` without any, called tests/NAME by the server."""
    return both(request.param)


@pytest.fixture(scope="session")
def llama():
    """The same of mini-llama only."""
    return both("mini-llama")


def both(name: str) -> SimpleNamespace:
    there = gimkit.load(name, remote=True)
    huggingface._ID_CACHE[there.repo_id] = f"tests/{name}"  # what the hub would answer
    return SimpleNamespace(here=gimkit.load(name), there=there)
