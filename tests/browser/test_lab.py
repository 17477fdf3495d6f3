"""Notebooks 02 and 05 in JupyterLab: run to the end, then their widgets are used. One kernel at a time."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from patience import PATIENCE, SHOTS
from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]
SETTINGS = {  # the whole notebook is in the page, not only what is in view; nothing asks or announces
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"checkForUpdates": False, "fetchNews": "false", "doNotDisturbMode": True},
}


class Lab:
    """A JupyterLab on a copy of the notebooks."""

    def __init__(self, folder: Path):
        self.notebooks, self.log, self.token = folder / "notebooks", folder / "lab.log", secrets.token_hex()
        shutil.copytree(ROOT / "notebooks", self.notebooks, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        (folder / "figures").symlink_to(ROOT / "figures")  # recorded figures, read as ../figures
        (folder / "benchmarks").symlink_to(ROOT / "benchmarks")  # a planted circuit
        for path in self.notebooks.glob("*.ipynb"):  # without outputs, so that what is seen was made here
            notebook = nbformat.read(path, 4)
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
            nbformat.write(notebook, path)
        for plugin, settings in SETTINGS.items():
            path = folder / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
        own |= {f"JUPYTERLAB_{name}_DIR": str(folder / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
                 f"--port={self.port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.notebooks}"],
                stdout=log, stderr=log, cwd=folder,
                env={name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # of the other tests
                | own | {"PYTHONPATH": str(ROOT), "JUPYTER_TOKEN": self.token, "OMP_NUM_THREADS": "1",
                         "HF_HUB_OFFLINE": "1"})

    def ask(self, path: str, method: str = "GET"):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/{path}", method=method,
                                         headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or "null")

    def wait(self) -> None:
        """Until the server answers."""
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(urllib.error.URLError):
                return self.ask("status")
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def stop_kernels(self) -> None:
        for session in self.ask("sessions"):
            self.ask(f"sessions/{session['id']}", "DELETE")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        lab.wait()
        yield lab
    finally:
        lab.process.terminate()
        lab.process.wait()


@pytest.fixture
def run_notebook(lab, new_page):
    """run_notebook(name): the page of a notebook in JupyterLab whose cells have all run."""
    def run(name):
        page = new_page()
        # a workspace of its own: another notebook's tab would come back beside it
        page.goto(f"http://127.0.0.1:{lab.port}/lab/workspaces/{name}/tree/{name}.ipynb?token={lab.token}")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # before that, Run All asks for a kernel
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        code = [cell for cell in nbformat.read(lab.notebooks / f"{name}.ipynb", 4).cells if cell.cell_type == "code"]
        last = page.locator(".jp-CodeCell .jp-InputPrompt", has_text=f"[{len(code)}]:")
        failed = page.locator("[data-mime-type='application/vnd.jupyter.error']")
        last.or_(failed).first.wait_for(timeout=1000 * 2 * PATIENCE)
        assert failed.all_inner_texts() == []
        return page

    yield run
    lab.stop_kernels()


def cell(page, text):
    """The code cell whose source holds the text."""
    return page.locator(".jp-CodeCell", has=page.locator(".jp-InputArea", has_text=text))


def redraws(picture, act) -> None:
    """Do something, and wait until the picture is another one."""
    before = picture.get_attribute("src")
    act()
    picture.page.wait_for_function("([image, before]) => image.isConnected === false || image.src !== before",
                                   arg=[picture.element_handle(), before])
    picture.wait_for()
    assert picture.get_attribute("src") != before


def changes(drawing, act) -> None:
    """Do something, and wait until the drawing holds other lines and boxes."""
    before = drawing.inner_html()
    act()
    drawing.page.wait_for_function("([drawing, before]) => drawing.innerHTML !== before",
                                   arg=[drawing.element_handle(), before])


def test_notebook_02_runs_and_its_rules_can_be_ticked(run_notebook):
    page = run_notebook("02_the_rules")
    explorer = cell(page, "rule_explorer(")
    picture = explorer.locator(".jp-OutputArea-output img")
    picture.scroll_into_view_if_needed()
    explorer.screenshot(path=SHOTS / "lab-02-before.png")
    for rule in ("norm", "temperature"):
        redraws(picture, explorer.get_by_label(rule).check)
    explorer.screenshot(path=SHOTS / "lab-02-after.png")
    redraws(picture, explorer.get_by_label("norm").uncheck)


def test_notebook_05_runs_and_its_circuits_can_be_explored(run_notebook):
    page = run_notebook("05_find_the_circuit")
    sizes = cell(page, "circuit_size(scored")
    picture = sizes.locator(".jp-OutputArea-output img")
    handle = sizes.get_by_role("slider")
    redraws(picture, lambda: handle.press("ArrowRight"))
    sizes.screenshot(path=SHOTS / "lab-05-size.png")

    explorer = cell(page, "gimkit.explore(")
    circuit = explorer.locator(".picture")
    circuit.scroll_into_view_if_needed()
    handle = explorer.get_by_label("Size")
    changes(circuit, lambda: handle.fill(str(int(handle.input_value()) + 1)))
    opening = explorer.locator('.node[aria-pressed="true"]').get_attribute("data-name")
    assert opening in explorer.locator("caption").first.inner_text()
    node = explorer.locator('.node[data-name="a2.h1"]')
    if opening != "a2.h1":  # a click on the selected node would close its panel
        changes(circuit, node.click)
    assert explorer.locator("caption").first.inner_text().startswith("Into a2.h1: ")
    explorer.screenshot(path=SHOTS / "lab-05-explorer.png")
    node.focus()
    node.press("ArrowRight")  # JupyterLab leaves the arrows to the explorer
    assert page.evaluate("document.activeElement.dataset.name") == "a2.h2"


def test_the_kernel_ablates_several_nodes_and_edges_together(lab, run_notebook):
    source = """import gimkit
model = gimkit.load("mini-llama")
task = gimkit.tasks.ioi(model, n=4)
edges = gimkit.score_edges(model, task)
curve = gimkit.faithfulness(model, task, edges, absolute=True, sizes=(0.1, 0.3))
gimkit.explore(model, task[:1], edges, curve)"""
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata={"kernelspec": kernel})
    nbformat.write(made, lab.notebooks / "explorer.ipynb")
    page = run_notebook("explorer")
    explorer = cell(page, "gimkit.explore(")
    ablate, result = explorer.get_by_role("button", name="Ablate", exact=True), explorer.locator(".ablation .result")
    heading, said = explorer.locator(".ablation h4"), []
    for name in ("a2.h1", "m1"):
        node = explorer.locator(f'.node[data-name="{name}"]')
        if node.get_attribute("aria-pressed") == "false":
            node.click()
        ablate.click()
        expect(result).to_contain_text("after", timeout=1000 * PATIENCE)  # one node's effect is known, two are run
        said.append(result.inner_text())
    assert heading.inner_text() == "Without a2.h1, m1"
    explorer.locator('.node[data-name="a3.h1"]').click()
    explorer.get_by_role("button", name="cut ").first.click()
    expect(heading).to_contain_text("→")
    expect(result).to_contain_text("after", timeout=1000 * PATIENCE)
    explorer.screenshot(path=SHOTS / "lab-explorer-ablated.png")
    assert len({*said, result.inner_text()}) == 3
    assert page.evaluate("location.hash") == ""
