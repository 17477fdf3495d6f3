"""What every notebook keeps to: pairs in step, clean outputs, size, the switch cell, exercises with folded answers.

nbmake runs the notebooks themselves (see the Makefile); test_checks.py runs their solutions.
"""

import re
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
SWITCHES = [f'MODEL = "{name}"  # bundled; or a hub id, a folder, or an NDIF model\nREMOTE = False'
            for name in ("mini-gpt2", "mini-llama")]
SOLUTION = re.compile(r"<details><summary>Solution</summary>\s*```python\n(.*?)```.*?</details>", re.DOTALL)
HINT = re.compile(r"<details><summary>Hint</summary>(.*?)</details>", re.DOTALL)
CHECK = re.compile(r"^checks\.(\w+)\((\w+).*\)$", re.MULTILINE)

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


class Exercise(NamedTuple):
    """One exercise: its check's name, the call, the committed cell, and the folded solution."""

    name: str
    call: str
    stub: str
    solution: str


def exercises(path: Path) -> list[Exercise]:
    """The exercises of a notebook: each code cell that calls a check, with the solution folded under it."""
    cells = nbformat.read(path, 4).cells
    found = []
    for cell, below in zip(cells, [*cells[1:], None]):
        call = CHECK.search(cell.source) if cell.cell_type == "code" else None
        if call:
            folded = SOLUTION.search(below.source if below else "")
            assert folded, f"{path.name}: no folded solution under the exercise that calls checks.{call[1]}"
            found.append(Exercise(call[1], call[0], cell.source, folded[1]))
    return found


def prose(notebook) -> str:
    """The text of the markdown cells, without code in folded solutions."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


@each_notebook
def test_the_notebook_and_its_script_agree(path):
    pair = [jupytext.read(path), jupytext.read(path.with_suffix(".py"))]
    cells = [[(cell.cell_type, cell.source) for cell in notebook.cells] for notebook in pair]
    assert cells[0] == cells[1], f"run: python .ci/notebooks.py {path.relative_to(NOTEBOOKS.parent)}"


def test_every_script_has_its_notebook():
    assert {p.stem for p in NOTEBOOKS.glob("*.py")} == {p.stem for p in NOTEBOOKS.glob("*.ipynb")}


@each_notebook
def test_the_notebook_was_run_from_top_to_bottom_without_errors(path):
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error", f"{path.name}: {cell.source}"
            assert output.get("name") != "stderr", f"{path.name}: a warning is shown: {output.text}"


@each_notebook
def test_the_metadata_is_stripped(path):
    notebook = nbformat.read(path, 4)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata.get("language_info", {})) <= {"name"}
    assert not any(cell.metadata for cell in notebook.cells)
    header = jupytext.read(path.with_suffix(".py")).metadata
    assert set(header) <= {"kernelspec", "jupytext"}


@each_notebook
def test_the_notebook_is_short_and_small(path):
    notebook = nbformat.read(path, 4)
    assert len(notebook.cells) <= 35
    assert len(prose(notebook)) <= 8000
    assert path.stat().st_size <= 1_000_000


@each_notebook
def test_the_notebook_opens_with_its_claim_and_the_switch_cell(path):
    cells = nbformat.read(path, 4).cells
    title = cells[0].source
    assert title.startswith(f"# {path.stem[:2]} · ") and "**Claim: " in title and re.search("[Rr]uns on", title)
    assert next(cell.source for cell in cells if cell.cell_type == "code") in SWITCHES


@each_notebook
def test_the_notebook_has_what_a_workshop_needs(path):
    notebook = nbformat.read(path, 4)
    text = prose(notebook)
    assert "The cells take" in notebook.cells[0].source, "say what time it takes"
    assert re.search(r"\*\*Predict", text, re.IGNORECASE), "ask for a prediction before a run"
    assert re.search(r"\bcontrols?\b", text, re.IGNORECASE), "have a control that must fail"
    assert re.search(r"What this does not show|cannot do", text), "say what it does not show"
    for number in re.findall(r"Next: \*\*(\d\d) · ", text):
        assert int(number) == int(path.stem[:2]) + 1


@each_notebook
def test_each_exercise_says_its_time_and_folds_hint_and_solution(path):
    cells = nbformat.read(path, 4).cells
    titles = [cell.source for cell in cells
              if re.search(r"^### Exercise \d+ · .* \(\d+ minutes, (easy|medium|hard)\)$", cell.source, re.MULTILINE)]
    assert len(titles) == len(exercises(path)) >= 1
    for cell, below in zip(cells, cells[1:]):
        if cell.cell_type == "code" and CHECK.search(cell.source):
            assert HINT.search(below.source), f"{path.name}: no folded hint under {CHECK.search(cell.source)[0]}"
            assert "Your turn: " in "".join(output.get("text", "") for output in cell.outputs)


@each_notebook
def test_nothing_names_the_machine_it_ran_on(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/home/|/root/|/work/|/tmp/|site-packages|/Users/", text)
