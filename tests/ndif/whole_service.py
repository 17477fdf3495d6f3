"""The whole NDIF service on this machine, once, by hand: Redis, an S3 stand-in, Ray, controller, model actors, API.

    apt-get install redis-server
    .venv-ndif/bin/python -m pip install -r tests/ndif/whole_service.txt      # after `make test` has made .venv-ndif
    .venv/bin/python tests/ndif/whole_service.py

Starts everything (a minute, 3 GB), runs tests/ndif against it, and stops it. Not part of `make test`.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-ndif" / "bin"
API, REDIS, STORE, RAY = 8871, 6871, 9871, 6872
TESTS = (["test_trusted.py"], ["test_untrusted.py", "test_jobs.py"])  # a start each: sandboxes were late
KEYS = "test_jobs.py::test_a_job_that_fails_says_why"  # there are no keys with auth off


def hub(folder: Path) -> None:
    """A hub cache with the bundled models as tests/mini-gpt2 and tests/mini-llama."""
    for name in ("mini-gpt2", "mini-llama"):
        repo = folder / "hub" / f"models--tests--{name}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("0" * 40)
        shutil.copytree(ROOT / "gimkit" / "models" / name, repo / "snapshots" / ("0" * 40))


def main(tests: list) -> int:
    folder = Path(tempfile.mkdtemp(prefix="ndif-"))
    hub(folder)
    (folder / "code").mkdir()
    shutil.copy(Path(__file__).with_name("cpu_service.py"), folder / "code")  # alone, so that no gimkit lies beside it
    environment = {
        "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder), "PYTHONPATH": str(folder / "code"),
        "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_ADDRESS": f"127.0.0.1:{RAY}",
        "GRPC_ENABLE_FORK_SUPPORT": "0", "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_USAGE_STATS_ENABLED": "0",
        "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none",
        "NDIF_REDIS_URL": f"redis://127.0.0.1:{REDIS}", "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{STORE}",
        "NDIF_RAY_ADDRESS": "ray://127.0.0.1:9873", "NDIF_DEFAULT_DTYPE": "float32",
        "NDIF_CONTROLLER_IMPORT_PATH": "cpu_service.Controller", "NDIF_MODEL_IMPORT_PATH": "cpu_service.Model",
    }
    started, log = [], (folder / "log").open("w")

    def start(*command) -> None:
        started.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log,
                                        start_new_session=True))

    ray = [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={RAY}",
           "--ray-client-server-port=9873", "--num-cpus=4", "--num-gpus=1", f"--temp-dir={folder}/ray",
           "--include-dashboard=true", "--dashboard-port=8872",
           '--resources={"head": 10, "cuda_memory_bytes": 8000000000, "cpu_memory_bytes": 8000000000}']
    try:
        begun = time.time()
        start("redis-server", "--bind", "127.0.0.1", "--port", str(REDIS), "--save", "")
        start(BIN / "moto_server", "-H", "127.0.0.1", "-p", str(STORE))
        start(*ray)
        for _ in range(60):  # until Ray takes the controller
            controller = subprocess.run([BIN / "python", "-m", "ndif.services.ray.deployments.controller.controller"],
                                        cwd=folder, env=environment, stdout=log, stderr=log)
            if controller.returncode == 0:
                break
            time.sleep(1)
        start(BIN / "gunicorn", "--bind", f"127.0.0.1:{API}", "--config", "python:ndif.services.api.gunicorn_conf",
              "ndif.services.api.app:app")
        wait_for(f"http://127.0.0.1:{API}/connected")
        print(f"up after {time.time() - begun:.0f} s", flush=True)
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *(f"tests/ndif/{name}" for name in tests), "--deselect",
             f"tests/ndif/{KEYS}", *sys.argv[1:]],
            cwd=ROOT, env=os.environ | {"GIMKIT_NDIF": f"http://127.0.0.1:{API}", "HF_HUB_OFFLINE": "1"}).returncode
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(started):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, how)
            time.sleep(10 if how == signal.SIGTERM else 1)
        for environ in Path("/proc").glob("[0-9]*/environ"):  # sandboxes outlive their actors
            with contextlib.suppress(OSError):
                if f"HOME={folder}".encode() in environ.read_bytes().split(b"\0"):
                    os.kill(int(environ.parent.name), signal.SIGKILL)
        print(f"stopped; the log is {folder}/log")


def wait_for(address: str, seconds: int = 180) -> None:
    """Return when an address answers with success."""
    deadline = time.time() + seconds
    while time.time() < deadline:
        try:
            if httpx.get(address, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)
    raise SystemExit(f"{address} did not come up in {seconds} s")


if __name__ == "__main__":
    sys.exit(max(main(tests) for tests in TESTS))
