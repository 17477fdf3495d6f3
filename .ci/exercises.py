"""Write the exercise edition of the notebooks, without solutions and outputs: `python .ci/exercises.py exercises`.

Hints, checks, pictures and the glossary stay. The folder is made anew, and only where it holds nothing else.
"""

import re
import shutil
import sys
from pathlib import Path

import jupytext
import nbformat

SOLUTION = re.compile(r"\s*<details><summary>Solution</summary>.*?</details>", re.DOTALL)
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def strip(script: Path) -> nbformat.NotebookNode:
    """The notebook of a script, its folded solutions taken out."""
    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", cell.source).strip()
    notebook.cells = [cell for cell in notebook.cells if cell.source]
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
                         "language_info": {"name": "python"}}
    return notebook


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    beside = ("pictures", "GLOSSARY.md")
    others = [path.name for path in folder.iterdir() if path.suffix != ".ipynb" and path.name not in beside]
    if others:
        sys.exit(f"{folder} holds {others[0]}; give a folder of its own")
    shutil.rmtree(folder)
    shutil.copytree(NOTEBOOKS / "pictures", folder / "pictures", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copy(NOTEBOOKS / "GLOSSARY.md", folder)
    for script in sorted(NOTEBOOKS.glob("*.py")):
        nbformat.write(strip(script), folder / f"{script.stem}.ipynb")
    print(f"wrote {len(list(folder.glob('*.ipynb')))} notebooks to {folder}")
