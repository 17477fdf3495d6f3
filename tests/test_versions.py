"""The versions that the kit runs with, and what it does in the process that it is imported into."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import transformers

import gimkit

ROOT = Path(__file__).parent.parent
ANYIO = """
import anyio, anyio.streams.file, anyio.streams.tls

async def three():
    await anyio.sleep(0)
    return 3

print(anyio.run(three))
"""


def python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_an_older_transformers_is_refused_at_import():
    lie = "import transformers; transformers.__version__ = '{}'; import gimkit"
    told = python(lie.format("5.16.1")).stderr.splitlines()[-1]
    assert told.startswith("ImportError: gimkit needs transformers 5.17 or newer, and 5.16.1 is installed; ")
    for fine in ("5.17.0", "6.0.0.dev0"):
        assert python(lie.format(fine)).returncode == 0


@pytest.mark.parametrize("before", ["", "import nnsight"])
def test_anyio_runs_after_the_import(before):
    assert python(f"{before}\nimport gimkit\n{ANYIO}").stdout == "3\n"


def test_nnsight_alone_breaks_anyio():
    """The control: without the kit's line the test above fails."""
    assert "'save' is missing its type annotation" in python(f"import nnsight\n{ANYIO}").stderr


def test_the_range_is_said_once_and_its_end_is_tested():
    needed = " ".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    low, high = re.search(r"transformers>=([\d.]+),<([\d.]+)", needed).groups()
    assert f"transformers {low} or newer" in (ROOT / "gimkit" / "__init__.py").read_text()
    newest = re.search(r"^transformers==(\d+)\.(\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert high == f"{newest[1]}.{int(newest[2]) + 1}"
    assert "nnsight==0.8.1" in needed


@pytest.mark.parametrize("options", [dict(remote=True), dict(dispatch=False), dict(config=True)])
def test_the_tokenizer_is_asked_for_as_the_model_is(options, monkeypatch):
    """Where nnsight has no name to find one by, on some versions of transformers."""
    asked, plain = [], transformers.AutoTokenizer.from_pretrained

    def watched(source, *rest, **access):
        asked.append(access)
        return plain(source, *rest)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", watched)
    if "config" in options:
        options = dict(config=transformers.AutoConfig.from_pretrained(
            ROOT / "gimkit" / "model" / "bundled" / "mini-llama"))
    access = dict(revision="main", token="hf_1", trust_remote_code=True)
    model = gimkit.load("mini-llama", **options, **access)
    assert asked == [access] and model.tokenizer.tokenize("Mary") == ["Mary"]
    own = plain(ROOT / "gimkit" / "model" / "bundled" / "mini-gpt2")
    assert gimkit.load("mini-llama", tokenizer=own, **options).tokenizer is own and len(asked) == 1
