"""Ten slides from the notebooks, as one HTML file: `python .ci/slides.py build/slides.html`.

A title, and of each notebook its title, key picture, claim and takeaway. The file loads reveal.js from the network when
it is opened, as all slides of nbconvert do; the pictures are inside.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
TITLE = """# gimkit

Interpretability of language models with nnsight: what a backward pass says, and when to believe it

`make lab` opens the exercises, `make lab-solved` the solved notebooks"""


def slide(path: Path) -> list:
    """The cells of a notebook's slide: its opening without the practical part, and a figure where it has no picture."""
    cells = nbformat.read(path, 4).cells
    opening = cells[0].source.partition("\nYou need: ")[0].partition("\nRuns on: ")[0].strip()
    found = [nbformat.v4.new_markdown_cell(opening, metadata={"slideshow": {"slide_type": "slide"}})]
    if "](pictures/" not in opening:
        figure = next(out for cell in cells for out in cell.get("outputs", ()) if "image/png" in out.get("data", {}))
        found.append(nbformat.v4.new_code_cell("", outputs=[figure], metadata={"slideshow": {"slide_type": "-"}}))
    return found


def deck() -> nbformat.NotebookNode:
    """The slides as a notebook."""
    title = nbformat.v4.new_markdown_cell(TITLE, metadata={"slideshow": {"slide_type": "slide"}})
    paths = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    return nbformat.v4.new_notebook(cells=[title, *(cell for path in paths for cell in slide(path))])


if __name__ == "__main__":
    target = Path(sys.argv[1])
    exporter = SlidesExporter(embed_images=True, exclude_input=True, exclude_output_prompt=True)
    page, _ = exporter.from_notebook_node(deck(), {"metadata": {"path": str(NOTEBOOKS), "name": "gimkit"}})
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    print(f"wrote {target}: {len(re.findall('<section', page)) // 2} slides")
