"""What every notebook keeps to: pairs in step, clean outputs, size, the switch cell, exercises with folded answers.

nbmake runs the notebooks themselves (see the Makefile); test_checks.py runs their solutions.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
SWITCHES = [f"MODEL = {names}, a hub id, a folder, an NDIF model\nREMOTE = False" for names in (
    '"smollm2-135m"  # a real model; or "mini-gpt2", "mini-llama" (bundled)',
    '"mini-gpt2"  # bundled; or "mini-llama", "smollm2-135m" (a real model)')]
UNPLAIN = re.compile(r"foretell|\b(rungs?|deals?|news|theirs|shall|kin|lest)\b|less the|told in|who answers|must fail",
                     re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`(\d])|\n\s*\n|\n(?=[-|\d])|\|")
WIDGET = re.compile(r"^(\w+_explorer|token_tabs|circuit_size|gimkit\.explore)\(", re.MULTILINE)
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
    assert len(notebook.cells) <= 42
    long = [cell.source for cell in notebook.cells if cell.cell_type == "code" and len(cell.source.splitlines()) > 12]
    assert all(cell.startswith("# setup") for cell in long), "split it, or move helpers to the setup cell"
    assert len(re.sub("<details>.*?</details>", "", prose(notebook), flags=re.DOTALL)) <= 8000  # folds are not counted
    assert path.stat().st_size <= 1_000_000


@each_notebook
def test_the_notebook_opens_with_its_claim_and_the_switch_cell(path):
    cells = nbformat.read(path, 4).cells
    title = cells[0].source
    assert title.startswith(f"# {path.stem[:2]} · ") and re.search("[Rr]uns on", title)
    claim = re.search(r"\*\*Claim: (.*?)\*\*", title)[1]
    assert claim.count(".") == 1 and len(claim.split()) <= 40, "one claim, in one sentence"
    assert len(re.findall("^- ", title, re.MULTILINE)) == 2, "two lines of takeaway"
    assert "](GLOSSARY.md)" in title
    [picture] = re.findall(r"\]\((pictures/.*?)\)", title)
    assert (NOTEBOOKS / picture).is_file()
    assert not UNPLAIN.search(prose(nbformat.read(path, 4)))
    assert next(cell.source for cell in cells if cell.cell_type == "code") in SWITCHES


@each_notebook
def test_the_notebook_has_what_a_workshop_needs(path):
    notebook = nbformat.read(path, 4)
    text = prose(notebook)
    assert "The cells take" in notebook.cells[0].source, "say what time it takes"
    assert re.search(r"\*\*Predict", text, re.IGNORECASE), "ask for a prediction before a run"
    assert re.search(r"\bcontrols?\b", text, re.IGNORECASE), "have a control, where nothing should happen"
    assert re.search(r"\*\*bonus\b", text, re.IGNORECASE), "have a bonus exercise"
    assert re.search(r"What this does not show|cannot do", text), "say what it does not show"
    assert re.findall(r"Next: \*\*(\d\d) · ", text) == [f"{int(path.stem[:2]) + 1:02}"] * (path.stem[:2] < "08")
    assert re.search("^Next: ", text, re.MULTILINE) and re.search("Sources?[: ]", text)
    for cell in notebook.cells:  # what a figure's last line returns
        outputs = "".join(str(out.get("data", {}).get("text/plain", "")) for out in cell.get("outputs", ()))
        assert not re.search("<Axes|<matplotlib|BarContainer|\\[Text", outputs), cell.source


@each_notebook
def test_the_sentences_are_short(path):
    text = "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    text = re.sub(r"```.*?```|^#+ .*?$|\]\(.*?\)|<.*?>|[\[*]", "", text, flags=re.DOTALL | re.MULTILINE)
    long = [" ".join(part.split()) for part in SENTENCE_END.split(text) if len(part.split()) > 35]
    assert not [part for part in long if "arXiv" not in part]  # lists of sources


@each_notebook
def test_predictions_are_answered_in_a_fold(path):
    """After the code that a prediction is about, the text opens with a folded answer."""
    cells, waiting = nbformat.read(path, 4).cells, ""
    for cell in (cell for cell in cells if cell.cell_type == "markdown"):
        assert not waiting or cell.source.startswith("<details>"), f"{waiting}\n... is followed by\n{cell.source}"
        waiting = cell.source if "**Predict" in cell.source and not CHECK.search(_code_below(cells, cell)) else ""


def _code_below(cells, cell) -> str:
    """The source of the cell below."""
    place = [each is cell for each in cells].index(True)
    return cells[place + 1].source if place + 1 < len(cells) else ""


@each_notebook
def test_tables_are_short_and_whole(path):
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get("outputs", ()):
            html, text = (output.get("data", {}).get(f"text/{kind}", "") for kind in ("html", "plain"))
            assert len(re.findall("<tr", html.partition("<tbody")[2])) <= 8, "more than eight rows: draw them"
            assert "NaN" not in html + text + output.get("text", "")


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


def test_the_widgets_of_the_notebooks_leave_a_picture():
    """A viewer without a kernel, such as GitHub, shows a picture in the place of each widget."""
    seen = 0
    for path in PATHS:
        for cell in nbformat.read(path, 4).cells:
            call = WIDGET.search(cell.source)
            if cell.cell_type == "code" and call:
                kinds = {kind for out in cell.outputs for kind in out.get("data", {})}
                assert kinds & {"image/png", "image/svg+xml", "text/html"}, f"{path.stem}: {call[1]}"
                seen += 1
    assert seen >= 8


def test_the_diagrams_are_what_their_source_draws(tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(NOTEBOOKS / "pictures", folder, ignore=shutil.ignore_patterns("*.svg", "__pycache__"))
    subprocess.run([sys.executable, folder / "draw.py"], check=True, cwd=NOTEBOOKS.parent,
                   env={**os.environ, "PYTHONPATH": str(NOTEBOOKS.parent)})
    for drawn in folder.glob("*.svg"):
        assert drawn.read_bytes() == (NOTEBOOKS / "pictures" / drawn.name).read_bytes(), drawn.name


def test_there_are_ten_slides(tmp_path):
    done = subprocess.run([sys.executable, ".ci/slides.py", tmp_path / "slides.html"], cwd=NOTEBOOKS.parent, check=True,
                          capture_output=True, text=True)
    assert "10 slides" in done.stdout
    page = (tmp_path / "slides.html").read_text(encoding="utf-8")
    assert page.count("Claim: ") == 9 and "pictures/" not in page  # the pictures are inside
    assert "body:not(.reveal-viewport) .slides > section" in page  # pages, where reveal.js cannot be loaded


def test_notebook_04_runs_on_a_model_that_it_also_compares_with():
    done = subprocess.run([sys.executable, ".ci/notebooks.py", "--model", "mini-llama", "notebooks/04_who_did_it.py"],
                          cwd=NOTEBOOKS.parent, capture_output=True, text=True)
    assert "04_who_did_it.py runs on mini-llama" in done.stdout, done.stderr[-2000:]
