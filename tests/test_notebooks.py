"""Every notebook agrees with its paired script (nbmake runs them, see the Makefile)."""

from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_notebook_and_its_script_agree(notebook):
    pair = [jupytext.read(notebook), jupytext.read(notebook.with_suffix(".py"))]
    cells = [[(cell.cell_type, cell.source) for cell in notebook.cells] for notebook in pair]
    assert cells[0] == cells[1], f"run: jupytext --sync {notebook.relative_to(NOTEBOOKS.parent)}"


def test_every_script_has_its_notebook():
    assert {p.stem for p in NOTEBOOKS.glob("*.py")} == {p.stem for p in NOTEBOOKS.glob("*.ipynb")}
