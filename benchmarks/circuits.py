"""CPU seconds and peak memory of edge scores and circuit runs, and of hannamw/EAP-IG. See benchmarks/README.md."""

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

import gimkit
from benchmarks.attribution import HERE, build, machine
from benchmarks.measuring import cpu_seconds, peak
from gimkit.circuits import Circuit
from gimkit.files import write_table
from gimkit.tasks import Pair, Task

ROWS, TOKENS, CIRCUITS = 10, 20, 10
NAMES = ("forward", "forward, last logits", "gradient", "ig-inputs", "gim", "circuit")
THEIRS = ("forward", "gradient", "ig-inputs", "circuit", "gradient, W_E alone")  # the last with other weights frozen
GROWTH = ("gradient",)  # of THEIRS at other numbers of layers


def random_task(rows: int, tokens: int) -> Task:
    """Pairs of random prompts without padding; the metric is the difference of two logits.

    >>> random_task(2, 5).clean.shape
    torch.Size([2, 5])
    """
    clean, corrupt = torch.randint(0, 50257, (2, rows, tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    return Task("random", clean, corrupt, mask, ((7,),) * rows, ((8,),) * rows, (Pair("", "", "", ""),) * rows)


def _ways(layers: int) -> dict:
    """{name: function of a task}; "circuit" runs ten circuits together, each of a random half of the edges."""
    plain, wrapped = build(layers)
    graph = gimkit.score_edges(wrapped, random_task(1, 4), "random").graph
    half = [Circuit(graph, graph.real & (torch.rand(graph.real.shape) < 0.5)) for _ in range(CIRCUITS)]

    def forward(task, **options):
        with torch.no_grad():
            plain(task.clean, use_cache=False, **options)

    return {
        "forward": forward, "forward, last logits": lambda task: forward(task, logits_to_keep=1),
        "gradient": lambda task: gimkit.score_edges(wrapped, task, "gradient"),
        "ig-inputs": lambda task: gimkit.score_edges(wrapped, task, "ig-inputs", steps=5),
        "gim": lambda task: gimkit.score_edges(wrapped, task, "gim"),
        "circuit": lambda task: gimkit.run(wrapped, task, half),
    }


class _Reference:
    """hannamw/EAP-IG in its own interpreter, with one model for all calls."""

    def __init__(self, arguments, layers: int):
        self.command = [arguments.reference_python, "-m", "benchmarks.circuits_reference", arguments.reference,
                        "--layers", str(layers), "--rows", str(ROWS), "--tokens", str(TOKENS)]
        self.worker = subprocess.Popen(self.command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL)
        while self._line() != "ready":
            pass

    def _line(self) -> str:
        """The next line that the interpreter prints."""
        line = self.worker.stdout.readline()
        if not line:
            raise SystemExit(f"the reference stopped; try by hand: {' '.join(map(str, self.command))}")
        return line.strip()

    def seconds(self, name: str) -> float:
        """CPU seconds of one call."""
        print(name, file=self.worker.stdin, flush=True)
        return float(self._line())

    def close(self) -> None:
        """End the interpreter."""
        self.worker.stdin.close()
        self.worker.wait()


def _last_number(command: list) -> float:
    """The last number that a new process prints."""
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True,
                                stderr=subprocess.DEVNULL).stdout.split()[-1])


def _measure(arguments, layers: int, rounds: int, theirs: tuple) -> list[dict]:
    """A row for each tool and name: median CPU seconds of rounds in rotating order, peak MiB in a new process."""
    functions, task = _ways(layers), random_task(ROWS, TOKENS)
    reference = _Reference(arguments, layers) if arguments.reference else None
    calls = {("gimkit", name): lambda name=name: cpu_seconds(functions[name], task) for name in NAMES}
    if reference:
        calls |= {("EAP-IG", name): lambda name=name: reference.seconds(name)
                  for name in theirs}
    for name in NAMES:
        functions[name](random_task(1, 4))
    times = {key: [] for key in calls}
    for round_ in range(rounds):
        keys = list(calls)
        first = round_ * len(keys) // rounds
        for key in keys[first:] + keys[:first]:
            times[key].append(calls[key]() / (CIRCUITS if key == ("gimkit", "circuit") else 1))
    if reference:
        reference.close()
    rows = []
    for (tool, name), seconds in times.items():
        ours = [sys.executable, "-m", "benchmarks.circuits", "--layers", str(layers)]
        command = ours if tool == "gimkit" else reference.command
        column = pd.Series(seconds)
        rows.append({"layers": layers, "tool": tool, "what": name, "rounds": rounds, "cpu_seconds": column.median(),
                     "lowest": column.min(), "highest": column.max(),
                     "peak_mib": None if arguments.no_memory else _last_number([*command, "--peak", name])})
    return rows


def main():
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 8, 4, 2])
    parser.add_argument("--rounds", type=int, default=3, help="of the first number of layers, one of the others")
    parser.add_argument("--reference", metavar="PATH", help="clone of hannamw/EAP-IG; without it, only gimkit")
    parser.add_argument("--reference-python", metavar="PATH", default=sys.executable,
                        help="a Python that has transformer_lens 2.16.1")
    parser.add_argument("--no-memory", action="store_true", help="CPU seconds only")
    parser.add_argument("--out", type=Path, default=HERE / "circuits.csv")
    parser.add_argument("--peak", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        run = _ways(arguments.layers[0])[arguments.peak]
        return print(peak(lambda: run(random_task(1, 4)), lambda: run(random_task(ROWS, TOKENS))))
    rows = []
    for layers in arguments.layers:
        main_one = layers == arguments.layers[0]
        rows += _measure(arguments, layers, arguments.rounds if main_one else 1, THEIRS if main_one else GROWTH)
        table = pd.DataFrame(rows)
        print(table[table.layers == layers].round(2).to_string(index=False), flush=True)
        write_table(arguments.out, table.assign(**machine()))
    print(f"saved {arguments.out}")


if __name__ == "__main__":
    main()
