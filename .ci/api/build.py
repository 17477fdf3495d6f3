"""Build the API reference from the docstrings, without network: `python .ci/api/build.py build/api`."""

import sys
from pathlib import Path

import pdoc

# gimkit brings the packages that it exports.
PAGES = ("gimkit", "gimkit.notebook.explorer", "gimkit.notebook.widgets", "gimkit.plots")

pdoc.render.configure(docformat="google", template_directory=Path(__file__).parent)
pdoc.pdoc(*PAGES, output_directory=Path(sys.argv[1]))
print(f"wrote {Path(sys.argv[1]) / 'gimkit.html'}")
