"""The README's code prints what the README says."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()
NUMBER = re.compile(r"[-+]?\d+\.\d+")


def test_the_code_prints_what_the_readme_shows(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where its files go
    ((code, shown),) = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", README, re.DOTALL)
    printed, names = StringIO(), {}
    with redirect_stdout(printed):
        exec(code, names)
    printed = printed.getvalue()
    for further in re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1:]:
        exec(further, names)
    words, numbers = NUMBER.sub("#", printed).split(), [float(x) for x in NUMBER.findall(printed)]
    assert words == NUMBER.sub("#", shown).split(), f"the code prints:\n{printed}"
    for ours, theirs in zip(numbers, [float(x) for x in NUMBER.findall(shown)], strict=True):
        # the last printed digit may differ between processors
        assert abs(ours - theirs) <= 0.02, f"the code prints:\n{printed}"


def test_every_path_in_the_readme_exists():
    for path in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (Path(__file__).parent.parent / path).exists(), path
