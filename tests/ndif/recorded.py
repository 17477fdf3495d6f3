"""SmolLM2 through the server of these tests, once, by hand: what notebook 08 shows as recorded.

    .venv/bin/python tests/ndif/recorded.py          # writes benchmarks/server-smollm2-135m.csv; two minutes

A row for each call: with which key, the seconds here and through the server, the bytes that went up, the numbers that
came down, and the largest difference between the two results.
"""

import json
import tempfile
import time
import warnings
from pathlib import Path

import pandas
import torch
from conftest import ROOT, both, serving
from nnsight import CONFIG
from nnsight.schema.request import RequestModel

import gimkit
from gimkit.model import gguf
from gimkit.remote.server import Server

NAME, NODES = "smollm2-135m", ["a20.h0", "a23.h3", "m0"]
CALLS = {
    "attribute, method occlusion": ("ordinary", lambda m, t, r, e: gimkit.attribute(
        m, t[0].clean, t[0].answer, method="occlusion", remote=r).scores),
    "attribute, method gim, forward mode": ("ordinary", lambda m, t, r, e: gimkit.attribute(
        m, t[0].clean, t[0].answer, remote=r).scores),
    "attribute, method gim": ("trusted", lambda m, t, r, e: gimkit.attribute(
        m, t[0].clean, t[0].answer, remote=r).scores),
    "score_nodes, exact, 3 parts": ("trusted", lambda m, t, r, e: gimkit.score_nodes(
        m, t, "exact", nodes=NODES, remote=r).per_example),
    "score_edges, method gim": ("trusted", lambda m, t, r, e: gimkit.score_edges(m, t, remote=r).scores),
    "run, the 1000 best edges": ("trusted", lambda m, t, r, e: gimkit.run(
        m, t, e.top(1000), remote=r)),
}


def main() -> None:
    """Run each call here and through the server."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "the server refuses gradients")
    CONFIG.APP.REMOTE_LOGGING = False
    models, sent, rows = both(NAME), [], []
    packed, envelope = Server._serialize, RequestModel.metadata

    def weighed(self, tracer):
        blob = packed(self, tracer)
        sent.append(len(blob))
        return blob

    Server._serialize = weighed
    RequestModel.metadata = lambda self: json.dumps(json.loads(envelope(self)) | {
        "trusted": CONFIG.API.APIKEY == "trusted"})
    task = gimkit.tasks.ioi(models.here, n=2, seed=0)
    edges = gimkit.score_edges(models.here, task)
    with tempfile.TemporaryDirectory() as folder, serving({NAME: gguf.packaged(NAME)}, Path(folder)) as address:
        CONFIG.API.APIKEY = "trusted"
        gimkit.attribute(models.there, task[0].clean, task[0].answer, method="gradient", remote=address)  # loads it
        for call, (key, compute) in CALLS.items():
            CONFIG.API.APIKEY = key
            seconds, found = {}, {}
            for place, model, remote in (("here", models.here, False), ("server", models.there, address)):
                sent.clear()
                start = time.perf_counter()
                found[place] = compute(model, task, remote, edges)
                seconds[place] = time.perf_counter() - start
            rows.append((call, key, *(round(value, 1) for value in seconds.values()), sum(sent), found["here"].numel(),
                         float((found["here"] - found["server"]).abs().max())))
            print(*rows[-1])
    table = pandas.DataFrame(rows, columns=["call", "key", "seconds here", "seconds through the server",
                                            "bytes up", "numbers down", "largest difference"])
    table.to_csv(ROOT / "benchmarks" / f"server-{NAME}.csv", index=False)


if __name__ == "__main__":
    main()
