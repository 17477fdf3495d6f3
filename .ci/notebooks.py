"""Run notebooks and write them as they are committed: `python .ci/notebooks.py notebooks/01*.py`.

From the paired py:percent script: converted, executed, and stripped of metadata, of progress bars, and of widgets,
which die with their kernel: their picture stays.
"""

import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

WIDGET, PICTURES = "application/vnd.jupyter.widget-view+json", ("image/png", "image/svg+xml", "text/html")
PROGRESS = re.compile(r"\d%\|.*(it/s|s/it)\]")  # a progress bar, which is over


def build(script: Path) -> None:
    """Write the executed notebook beside its script."""
    path = script.with_suffix(".ipynb")
    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    NotebookClient(notebook, kernel_name="python3", timeout=600, record_timing=False, coalesce_streams=True,
                   resources={"metadata": {"path": str(script.parent)}}).execute()
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
                         "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            for widget in [out for out in cell.outputs if WIDGET in out.get("data", {})]:
                widget.data = {kind: data for kind, data in widget.data.items() if kind in PICTURES}
            cell.outputs = [out for out in cell.outputs
                            if out.get("data") != {} and not PROGRESS.search(out.get("text", ""))]
    nbformat.write(notebook, path)
    print(f"wrote {path}")


for name in sys.argv[1:]:
    build(Path(name).with_suffix(".py"))
