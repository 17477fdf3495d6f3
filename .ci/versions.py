"""Run the core tests with the oldest and the newest transformers that pyproject.toml allows: `make test-versions`.

`python .ci/versions.py --transformers 5.20.2 --torch 2.12.0 2.13.0` runs others. Each pair has an environment of its
own in build/versions; the other packages are those of constraints.txt. Prints a table, the README's.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parent.parent
PINS = (ROOT / "constraints.txt").read_text()
TESTS = ("rules", "oracle", "blocked_attention", "apply", "edges", "tokens", "versions")


def pinned(package: str) -> str:
    """The version in constraints.txt."""
    return re.search(rf"^{package}==(.+)$", PINS, re.MULTILINE)[1]


def oldest() -> str:
    """The oldest transformers that pyproject.toml allows."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return re.search(r"transformers>=([\d.]+)", " ".join(needed))[1]


def tested(transformers: str, torch: str) -> str:
    """pytest's last line, from a new environment with these versions."""
    folder = ROOT / "build" / "versions" / f"transformers-{transformers}-torch-{torch}"
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pins = folder / "constraints.txt"
    pins.write_text(re.sub(r"^(torch|transformers)==.*\n", "", PINS, flags=re.MULTILINE)
                    + f"torch=={torch}\ntransformers=={transformers}\n")
    pip = [python, "-m", "pip", "install", "--quiet", "-c", pins]
    subprocess.run([*pip, f"torch=={torch}"], check=True)  # first and alone, as in the Makefile
    subprocess.run([*pip, "-e", ".[captum]", "pytest"], check=True, cwd=ROOT)
    report = subprocess.run([python, "-m", "pytest", "-q", *(f"tests/test_{name}.py" for name in TESTS)], cwd=ROOT,
                            stdout=subprocess.PIPE, text=True).stdout
    (folder / "report.txt").write_text(report)
    return re.sub(r" in .*", "", report.strip().splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--transformers", nargs="+", default=[f"{oldest()}.0", pinned("transformers")])
    parser.add_argument("--torch", nargs="+", default=[pinned("torch")])
    chosen = parser.parse_args()
    rows = [(*pair, tested(*pair)) for pair in product(chosen.transformers, chosen.torch)]
    print("| transformers | torch | core tests |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    sys.exit(any("failed" in result or "passed" not in result for *_, result in rows))
