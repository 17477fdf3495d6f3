"""The exercise edition: no solution, no output, every exercise there, unsolved and with its hint."""

import re
import subprocess
import sys

import nbformat
import pytest
from test_notebooks import CHECK, HINT, NOTEBOOKS, PATHS, exercises

ROOT = NOTEBOOKS.parent


@pytest.fixture(scope="module")
def edition(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edition") / "exercises"
    subprocess.run([sys.executable, ".ci/exercises.py", folder], cwd=ROOT, check=True, capture_output=True)
    assert {path.name for path in folder.iterdir() if path.suffix != ".ipynb"} == {"pictures", "GLOSSARY.md"}
    return {path.name: nbformat.read(path, 4) for path in folder.glob("*.ipynb")}


def told(solution: str) -> list[str]:
    """The longer lines of a solution."""
    return [line.strip() for line in solution.splitlines() if len(line.strip()) > 30 and not line.startswith("def ")]


def test_every_notebook_is_there_and_valid(edition):
    assert set(edition) == {path.name for path in PATHS}
    for notebook in edition.values():
        nbformat.validate(notebook)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_there_is_no_output_and_no_solution(path, edition):
    notebook = edition[path.name]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    own = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    text = HINT.sub("", "\n".join(cell.source for cell in notebook.cells))  # a hint may say a line of it
    assert "Solution" not in text
    for exercise in exercises(path):
        assert exercise.solution.strip() not in text
        for line in told(exercise.solution):
            assert line not in text or any(line in cell for cell in own), f"{path.name} gives away: {line}"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_exercise_is_there_with_its_check_and_its_hint(path, edition):
    cells = edition[path.name].cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert code == [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    for exercise in exercises(path):  # test_checks.py hears this very cell say "Your turn"
        assert code.count(exercise.stub) == 1 and "..." in exercise.stub
    for cell, below in zip(cells, cells[1:]):
        if cell.cell_type == "code" and CHECK.search(cell.source):
            assert HINT.search(below.source)
    folds = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert len(re.findall("<summary>Hint</summary>", folds)) == len(exercises(path))
    assert len(re.findall("<details>", folds)) == len(re.findall("</details>", folds))


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "mine.ipynb").write_text("{}")
    done = subprocess.run([sys.executable, ".ci/exercises.py", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "mine.txt" in done.stderr
    assert (tmp_path / "mine.ipynb").read_text() == "{}"
