"""CPU seconds of forward mode divided by those of the backward pass, for the same scores. See benchmarks/README.md."""

import argparse
from pathlib import Path

import pandas as pd
import torch

import gimkit
from benchmarks.attribution import build, machine
from benchmarks.circuits import random_task
from benchmarks.measuring import cpu_seconds
from gimkit.files import write_table
from gimkit.model.load import BUNDLED

HERE = Path(__file__).parent
CHOSEN = ["input", "a0.h0", "a1.h1", "m1", "a2.h2", "m2", "logits"]


def _cases():
    """(model's name, the scores' name, rows in forward mode, function of the backend) of each case."""
    for name in BUNDLED:
        model = gimkit.load(name)
        task = gimkit.tasks.ioi(model, n=8, seed=0)
        prompt, nodes = task[0], len(gimkit.score_nodes(model, task, "random").nodes)
        ids = model.tokenizer(prompt.clean).input_ids
        edges = len(gimkit.score_edges(model, task[:1], nodes=CHOSEN).edges)
        yield name, f"{len(ids)} tokens", len(ids) + 2, lambda backend, model=model, prompt=prompt: gimkit.attribute(
            model, prompt.clean, prompt.answer, backend=backend).scores
        yield name, f"{nodes} nodes, 8 pairs", 8 * (nodes + 2) + 1, lambda backend, model=model, task=task: (
            gimkit.score_nodes(model, task, backend=backend).per_example)
        yield name, f"{edges} chosen edges, 8 pairs", None, lambda backend, model=model, task=task: (
            gimkit.score_edges(model, task, nodes=CHOSEN, backend=backend).scores)
    _, model = build(12)
    task = random_task(1, 16)
    yield "GPT-2 small's size", "16 tokens", 18, lambda backend: gimkit.attribute(
        model, task.clean[0], 7, baseline=0, backend=backend).scores
    yield "GPT-2 small's size", "157 nodes, 1 pair", 160, lambda backend: gimkit.score_nodes(
        model, task, backend=backend).per_example


def main():
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "forward.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for name, what, rows, score in _cases():
        forward, reverse = score("forward"), score("reverse")  # also warms up
        seconds = pd.DataFrame([{backend: cpu_seconds(score, backend) for backend in order}
                                for turn in range(arguments.rounds)
                                for order in [("forward", "reverse")[::1 - 2 * (turn % 2)]]])
        ratios = seconds.forward / seconds.reverse
        found.append({"model": name, "scores": what, "rows": rows, **seconds.median().round(3).to_dict(),
                      "ratio": ratios.median().round(2), "ratio_lowest": ratios.min().round(2),
                      "ratio_highest": ratios.max().round(2),
                      "difference": f"{float((forward - reverse).norm() / reverse.norm()):.0e}"})
        print(found[-1], flush=True)
    write_table(arguments.out, pd.DataFrame(found).assign(**machine()))


if __name__ == "__main__":
    main()
