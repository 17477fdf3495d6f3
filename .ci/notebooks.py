"""Run notebooks and write them as they are committed: `python .ci/notebooks.py notebooks/01*.py`.

From the paired py:percent script: converted, executed, and stripped of metadata, of progress bars, and of widgets,
which die with their kernel: their picture stays. Pictures get a palette, a third of their size. With
`--model mini-llama`, or another name or folder, they are run on that model and nothing is written.
"""

import argparse
import base64
import io
import re
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

WIDGET, PICTURES = "application/vnd.jupyter.widget-view+json", ("image/png", "image/svg+xml", "text/html")
PROGRESS = re.compile(r"\d%\|.*(it/s|s/it)\]")  # a progress bar, which is over


def smaller(png: str) -> str:
    """A large picture in base64 in 128 colours; a small one as it is, so that colour scales stay smooth."""
    if len(png) < 60_000:
        return png
    picture, out = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    return min(base64.b64encode(out.getvalue()).decode(), png, key=len)


def build(script: Path, model: str | None = None) -> None:
    """Run a notebook; write it beside its script, unless it is run on another model than its own."""
    path = script.with_suffix(".ipynb")
    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        if model and cell.cell_type == "code":
            cell.source = re.sub(r'^MODEL = ".*?"|"smollm2-135m"',
                                 lambda found: "MODEL = " * (found[0][0] == "M") + repr(model), cell.source)
    NotebookClient(notebook, kernel_name="python3", timeout=3600, record_timing=False, coalesce_streams=True,
                   resources={"metadata": {"path": str(script.parent)}}).execute()
    if model:
        return print(f"{script.name} runs on {model}")
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
                         "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            for widget in [out for out in cell.outputs if WIDGET in out.get("data", {})]:
                widget.data = {kind: data for kind, data in widget.data.items() if kind in PICTURES}
            for data in [out.data for out in cell.outputs if "image/png" in out.get("data", {})]:
                data["image/png"] = smaller(data["image/png"])
            cell.outputs = [out for out in cell.outputs
                            if out.get("data") != {} and not PROGRESS.search(out.get("text", ""))]
    nbformat.write(notebook, path)
    print(f"wrote {path}")


parser = argparse.ArgumentParser(description="Run notebooks and write them as they are committed.")
parser.add_argument("notebooks", nargs="+", type=Path)
parser.add_argument("--model", help="run on this model and write nothing")
options = parser.parse_args()
for name in options.notebooks:
    build(name.with_suffix(".py"), options.model)
