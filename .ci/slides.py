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


def slide(path: Path) -> nbformat.NotebookNode:
    """A notebook's slide: its opening without the practical part."""
    opening = nbformat.read(path, 4).cells[0].source
    opening = opening.partition("\nYou need: ")[0].partition("\nRuns on: ")[0].strip()
    return nbformat.v4.new_markdown_cell(opening, metadata={"slideshow": {"slide_type": "slide"}})


def deck() -> nbformat.NotebookNode:
    """The slides as a notebook."""
    title = nbformat.v4.new_markdown_cell(TITLE, metadata={"slideshow": {"slide_type": "slide"}})
    paths = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    return nbformat.v4.new_notebook(cells=[title, *map(slide, paths)])


if __name__ == "__main__":
    target = Path(sys.argv[1])
    exporter = SlidesExporter(embed_images=True)
    page, _ = exporter.from_notebook_node(deck(), {"metadata": {"path": str(NOTEBOOKS), "name": "gimkit"}})
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    print(f"wrote {target}: {len(re.findall('<section', page)) // 2} slides")
