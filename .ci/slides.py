"""Ten slides from the notebooks, as one HTML file: `python .ci/slides.py build/slides.html`.

A title, and of each notebook its title, key picture, claim and takeaway. The pictures are inside. nbconvert's slides
load reveal.js from the network when they are opened; without one, the same file is ten pages to scroll through.
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

PAGES = """<style>  /* where reveal.js did not load, which makes the body a reveal-viewport */
body:not(.reveal-viewport) .slides > section { box-sizing: border-box; min-height: 100vh; padding: 4vh 8vw }
body:not(.reveal-viewport) .slides > section { font-size: 130%; scroll-snap-align: start }
body:not(.reveal-viewport) .slides > section > section { font-size: 100% }
body:not(.reveal-viewport) .jp-InputPrompt, body:not(.reveal-viewport) .jp-Collapser { display: none }
html:has(body:not(.reveal-viewport)) { scroll-snap-type: y proximity; overflow: auto }
</style>
"""


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
    target.write_text(page.replace("</head>", PAGES + "</head>", 1), encoding="utf-8")
    print(f"wrote {target}: {len(re.findall('<section', page)) // 2} slides")
