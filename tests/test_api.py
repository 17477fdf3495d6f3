"""The API reference builds without a warning and shows every public name, its example and its text."""

import inspect
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

import gimkit

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    built = subprocess.run([sys.executable, "-W", "error", ".ci/api/build.py", folder], cwd=ROOT, capture_output=True,
                           text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert built.returncode == 0 and not built.stderr, built.stderr
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}


def test_every_public_name_is_shown_with_its_docstring(pages):
    for page, module in {"gimkit.html": gimkit, "gimkit/circuits.html": gimkit.circuits,
                         "gimkit/tasks.html": gimkit.tasks}.items():
        shown = " ".join(unescape(re.sub("<[^>]+>", "", pages[page])).split())
        for name in module.__all__:
            thing = getattr(module, name)
            if not inspect.ismodule(thing):
                assert f'id="{name}"' in pages[page], name
            if inspect.isfunction(thing):
                assert " ".join(inspect.getdoc(thing).split("\n", 1)[0].split()).replace("`", "") in shown, name


def test_no_page_swallows_a_name_in_angle_brackets_or_needs_the_network(pages):
    for name, text in pages.items():
        assert not re.search(r"<[qkv]>", text) or name.endswith("index.html"), name
        assert not re.search(r"""(src|href)=["']https?://(?!pdoc\.dev)""", text), name
