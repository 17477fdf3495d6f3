"""Frames a second of the explorer in Chromium, and CPU time a frame: moving, zooming, choosing nodes and sizes.

`python -m benchmarks.explorer` makes a file of SmolLM2-135M's shape with random weights, 30 layers of 9 heads; files of
`python -m gimkit explore` can be given. It needs playwright and chromium. A busy machine has fewer frames a second, and
the CPU time a frame stays. See benchmarks/README.md.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import nnsight
import pandas as pd
import torch
import transformers
from playwright.sync_api import sync_playwright

import gimkit
from benchmarks.attribution import machine
from benchmarks.circuits import random_task
from gimkit.circuits import Curve
from gimkit.files import write_table

SECONDS, ROUNDS = 3, 5
COSTS = ("cpu_ms_per_frame", "main_thread_ms_per_frame")
# Each is done once a frame; i counts frames.
ACTS = {
    "move": """i => {
      const spot = { bubbles: true, buttons: 1, button: 0, pointerId: 1 }, svg = document.querySelector("svg.summed");
      svg.setPointerCapture = () => {}; // there is no real pointer
      const at = (kind, y) => svg.dispatchEvent(new PointerEvent(kind, { ...spot, clientX: 400, clientY: y }));
      if (i === 0) at("pointerdown", 500);
      at("pointermove", 500 + 300 * Math.sin(i / 9));
    }""",
    "zoom": """i => document.querySelector("svg.summed").dispatchEvent(new WheelEvent("wheel", { ctrlKey: true,
      cancelable: true, clientX: 400, clientY: 600, deltaY: 60 * Math.cos(i / 20) }))""",
    "choose a node": """i => { const all = document.querySelectorAll(".node:not(.unused)");
      all[i % all.length].dispatchEvent(new MouseEvent("click", { bubbles: true })); }""",
    "change the size": """i => { const slider = document.querySelector("input[type=range]");
      slider.value = Math.max(0, BEST - i % 2); slider.dispatchEvent(new Event("input")); }""",
}
FRAMES = """async seconds => {
  const act = ACT, start = performance.now();
  let i = 0;
  while (performance.now() - start < 1000 * seconds) {
    await new Promise(requestAnimationFrame);
    act(i++);
  }
  return i / ((performance.now() - start) / 1000);
}"""


def made(folder: Path) -> Path:
    """An explorer's file: 301 nodes and the logits, circuits around 500 edges, a prompt of 24 tokens."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=50257, hidden_size=36, intermediate_size=48, num_hidden_layers=30,
                                      num_attention_heads=9, num_key_value_heads=3)
    model = nnsight.NNsight(transformers.LlamaForCausalLM(config).eval().requires_grad_(False))
    task = random_task(1, 24)
    edges = gimkit.score_edges(model, task, "random")
    circuits = [(n, edges.top(n, absolute=True)) for n in range(3000, 6001, 500)]  # pruned
    curve = Curve("random", "random", True, False, tuple(n / edges.graph.n_edges for n, _ in circuits),
                  tuple(len(circuit) for _, circuit in circuits), torch.rand(len(circuits), 1), torch.zeros(1),
                  torch.ones(1), fingerprint=edges.fingerprint)
    return gimkit.explore(model, task, edges, curve).save(folder / "smollm2-shape.html")


def _cpu(parent: int) -> float:
    """CPU seconds of a process and all below it."""
    children, used = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        children.setdefault(int(fields[1]), []).append(int(folder.name))
        used[int(folder.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found, stack = 0.0, [parent]
    while stack:
        process = stack.pop()
        found += used.get(process, 0.0)
        stack += children.get(process, [])
    return found


def measured(path: Path) -> pd.DataFrame:
    """A row per act: nodes, lines, frames a second, CPU time a frame, of all processes and of the main thread.

    The best of several rounds: other jobs only slow it down.
    """
    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 950})
        page.goto(path.resolve().as_uri())
        sizes = page.evaluate("JSON.parse(document.getElementById('data').textContent).methods[0].curves[0].sizes")
        best = min(range(len(sizes)), key=lambda i: abs(sizes[i] - 500))
        page.get_by_label("Size").fill(str(best))
        nodes, lines = page.locator(".node").count(), page.locator(".edges path").count()
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

        def used() -> tuple[float, float]:
            found = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
            return _cpu(os.getpid()), found["TaskDuration"]

        for name, act in ROUNDS * list(ACTS.items()):
            page.get_by_role("button", name="Show all").click()
            page.get_by_role("button", name="Zoom in").click(click_count=3)  # now there is room to move
            before = used()
            rate = page.evaluate(FRAMES.replace("ACT", act.replace("BEST", str(best))), SECONDS)
            spent = [1000 * (now - then) / (SECONDS * rate) for now, then in zip(used(), before)]
            rows.append((path.name, path.stat().st_size, nodes, lines, name, rate, *spent))
        browser.close()
    known, rate, *spent = ["file", "bytes", "nodes", "lines", "act"], "frames_per_second", *COSTS
    table = pd.DataFrame(rows, columns=[*known, rate, *spent]).groupby(known, sort=False)
    return table.agg({rate: "max", **dict.fromkeys(spent, "min")}).reset_index()


def main() -> None:
    """Print one table of all files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="of gimkit explore (default: a random model's)")
    parser.add_argument("--csv", type=Path, help="also written here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = pd.concat([measured(path) for path in options.files or [made(Path(folder))]])
    print(f"{machine()}\n{table.to_string(index=False, float_format='{:.1f}'.format)}")
    if options.csv:
        write_table(options.csv, table, digits=3)


if __name__ == "__main__":
    main()
