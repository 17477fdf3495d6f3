"""An installed wheel, not the checkout, loads both bundled models with no network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

LOAD = """
import socket, sys

def refuse(*_):
    raise OSError("no network in this test")

socket.socket.connect = refuse
import gimkit

assert gimkit.__file__.startswith(sys.argv[1]), gimkit.__file__
for name in ("mini-gpt2", "mini-llama"):
    model = gimkit.load(name)
    with model.trace("Then , Mary and John"):
        logits = model.output.logits.save()
    print(name, len(model.tokenizer) == logits.shape[-1])
"""


def test_the_wheel_carries_the_bundled_models(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()  # a copy, so that no stale build folder leaks into the wheel
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "gimkit", source / "gimkit", ignore=shutil.ignore_patterns("__pycache__"))

    def pip(*arguments):
        subprocess.run([sys.executable, "-m", "pip", "--quiet", "--no-input", *arguments, "--no-deps", "--no-index"],
                       check=True)

    pip("wheel", "--no-build-isolation", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("gimkit_nnsight-*.whl")
    pip("install", "--target", target, wheel)

    result = subprocess.run([sys.executable, "-c", LOAD, str(target)], cwd=tmp_path, capture_output=True, text=True,
                            env=os.environ | {"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"})
    assert result.stdout.split() == ["mini-gpt2", "True", "mini-llama", "True"], result.stderr
