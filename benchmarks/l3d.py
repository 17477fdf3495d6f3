"""L3D: one epoch of low-rank and of dense subnetworks, and its growth with parameters and subnetworks.

    python -m benchmarks.l3d                    # writes l3d.csv
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from benchmarks.measuring import cpu_seconds, peak
from gimkit.files import write_table
from gimkit.l3d.gradients import chosen_parameters, mse, outputs_of, per_sample_gradients
from gimkit.l3d.training import Settings, Trained

HERE = Path(__file__).parent
SAMPLES, BATCH = 128, 32
SIZES = [(32, 10), (96, 10), (288, 10), (864, 10), (288, 40), (288, 160)]  # width of the hidden layer, subnetworks
METHODS = ("low rank", "dense", "dense, a loop of gradients")


def _problem(width: int):
    """A network 64 -> width -> 64, and its samples."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 64)).requires_grad_(False)
    return module, torch.randn(SAMPLES, 64)


def _low_rank(width: int, n: int, rank: int):
    """A function that runs one epoch of gimkit's training."""
    module, x = _problem(width)
    values, outputs = chosen_parameters(module), outputs_of(module, (x,))
    ranks = [(rank,) * value.ndim if value.ndim > 1 else (1,) for value in values.values()]
    state = Trained([value.shape for value in values.values()], ranks, Settings(n=n, batch=BATCH), [0])

    def gradients_at(rows, references):
        return per_sample_gradients(module, values, (x[rows],), outputs[references])

    return lambda: state.epoch(gradients_at, SAMPLES)


def _dense(width: int, n: int, loop: bool):
    """A function that runs one epoch as in the formulas: V_in and V_out are matrices [subnetworks, parameters]."""
    module, x = _problem(width)
    values, outputs = chosen_parameters(module), module(x)
    size = sum(value.numel() for value in values.values())
    v_out = torch.randn(n, size)
    v_out /= v_out.norm(dim=1, keepdim=True)
    v_in, v_out = (v.clone().requires_grad_(True) for v in (v_out, v_out))
    optimiser = torch.optim.AdamW([v_in, v_out], lr=0.01, fused=True)

    def gradients(rows, references):
        if not loop:
            parts = per_sample_gradients(module, values, (x[rows],), outputs[references])
            return torch.cat([part.flatten(1) for part in parts], 1)
        found = []
        for row, reference in zip(rows.tolist(), references.tolist()):
            leaves = {name: value.clone().requires_grad_(True) for name, value in values.items()}
            output = torch.func.functional_call(module, leaves, (x[row:row + 1],))[0]
            parts = torch.autograd.grad(mse(output, outputs[reference]), list(leaves.values()))
            found.append(torch.cat([part.flatten() for part in parts]))
        return torch.stack(found)

    def epoch():
        order, partner = torch.randperm(SAMPLES), torch.randperm(SAMPLES)
        for start in range(0, SAMPLES, BATCH):
            g = gradients(order[start:start + BATCH], partner[start:start + BATCH])
            h = g @ v_in.T
            kept = h.abs() >= h.detach().abs().flatten().topk(max(1, int(0.1 * h.numel()))).values[-1]
            optimiser.zero_grad()
            ((g - (h * kept) @ v_out).norm() / g.norm()).backward()
            optimiser.step()
            with torch.no_grad():
                v_out.div_(v_out.norm(dim=1, keepdim=True))

    return epoch


def _way(method: str, width: int, n: int, rank: int):
    """A function that runs one epoch of a method."""
    if method == "low rank":
        return _low_rank(width, n, rank)
    return _dense(width, n, loop="loop" in method)


def _stored(method: str, width: int, n: int, rank: int) -> float:
    """MiB of V_in and V_out with their gradients and AdamW's two moments."""
    module, _ = _problem(width)
    numbers = 0
    for value in module.parameters():
        if method != "low rank":
            numbers += value.numel()
        elif value.ndim == 1:
            numbers += 1 + len(value)
        else:
            numbers += rank ** value.ndim + rank * sum(value.shape)
    return 2 * 4 * n * numbers * 4 / 2 ** 20


def main():
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=2, help="of weights (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "l3d.csv")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        method, width, n = arguments.peak
        run = _way(method, int(width), int(n), arguments.rank)
        return print(peak(_way(method, 8, 2, arguments.rank), run))
    rows = []
    for width, n in SIZES:
        runs = {method: _way(method, width, n, arguments.rank) for method in METHODS}
        for run in runs.values():
            run()
        times = pd.DataFrame([{method: cpu_seconds(run) for method, run in runs.items()}
                              for _ in range(arguments.rounds)])
        for method in METHODS:
            ratios = times[method] / times["low rank"]
            command = [sys.executable, "-m", "benchmarks.l3d", "--rank", str(arguments.rank), "--peak", method,
                       str(width), str(n)]
            memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows.append({"parameters": 64 * width * 2 + width + 64, "subnetworks": n, "rank": arguments.rank,
                         "method": method, "cpu_seconds": times[method].median(), "ratio": ratios.median(),
                         "ratio_lowest": ratios.min(), "ratio_highest": ratios.max(),
                         "stored_mib": _stored(method, width, n, arguments.rank), "peak_mib": float(memory)})
        print(pd.DataFrame(rows[-len(METHODS):]).round(3).to_string(index=False), flush=True)
        write_table(arguments.out, pd.DataFrame(rows))


if __name__ == "__main__":
    main()
