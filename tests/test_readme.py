"""The README's code prints what the README says; its numbers, messages, paths and commands are the repository's."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pandas
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

import gimkit
from benchmarks.search import effects

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
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


def test_every_path_exists_and_every_name_of_a_test_or_table():
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"\]\(([\w./-]+)\)", README + contributing):
        assert (ROOT / path).exists(), path
    for place in re.findall(r"`([A-Za-z_]+)` (?:of|in) \[[^\]]*\]\(([\w./-]+\.py)\)", contributing):
        assert re.search(rf"\b{place[0]}\b", (ROOT / place[1]).read_text()), place


def test_the_sections_come_as_a_newcomer_needs_them():
    wanted = ["Two commands", "Ten lines", "Notebooks", "Models", "Remote", "Methods, and what they are worth",
              "Limits", "When something goes wrong", "Citing", "Development"]
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == wanted
    pictures = [README.index(alt) for alt in ("![How well circuits work", "![Scores of heads")]
    assert pictures == sorted(pictures) and pictures[-1] < README.index("## Two commands")


def test_every_command_in_the_readme_exists():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"`make (\w+)|^make (\w+)", README, re.MULTILINE):
        assert "".join(target) in targets, target
    commands = re.findall(r"add_parser\(\"(\w+)\"", (ROOT / "gimkit/cli.py").read_text())
    for command in re.findall(r"python -m gimkit ([a-z]\w+)", README):
        assert command in commands, command


COLUMNS = (("shapley-{}.csv", "pearson"), ("shapley-nodes-{}.csv", "pearson"), ("nodes-{}.csv", "spearman"),
           ("nodes-{}.csv", "size"), ("compare-{}.csv", "cmd"), ("compare-{}.csv", "cpr"))
RENAMED = {"ig": "ig-20", "occlusion": "leave-one-out"}  # in the token table


def rows_of(section: str) -> list[list[str]]:
    """The cells of a table's rows that start with a name in backticks."""
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert len({len(row) for row in rows}) == 1
    return rows


def check_cell(means: pandas.Series, name: str, number: str) -> None:
    """A number is the mean of the one method in backticks that was measured; a dash: none was."""
    measured = means.dropna()
    known = {RENAMED.get(key, key) for key in re.findall("`(.*?)`", name)} & set(measured.index)
    if number == "–":
        assert not known, (name, number)
    else:
        (method,) = known
        assert abs(measured[method] - float(number)) <= 0.6 * 10.0**-len(number.split(".")[1]), (name, number)


def test_the_method_table_is_what_the_benchmarks_measured():
    rows = rows_of(README.partition("How they compare")[2].partition("- **passes**")[0])
    assert len(rows) >= 12
    planted = pandas.read_csv(ROOT / "benchmarks/planted.csv")
    kinds = planted.assign(kind="compiled") if "kind" not in planted else planted
    planted = kinds.groupby(["kind", "program", "method"]).auroc.mean().groupby(["kind", "method"]).mean()
    for name, _, *cells, known in rows:
        for (file, measure), cell in zip(COLUMNS, cells, strict=True):
            for model, number in zip(("mini-llama", "mini-gpt2"), cell.split(" / ") if cell != "–" else "––"):
                table = pandas.read_csv(ROOT / "benchmarks" / file.format(model))
                if "statistic" in table:
                    table = table[table.statistic == measure].rename(columns={"value": measure})
                check_cell(table.groupby("method")[measure].mean(), name, number)
        for kind, number in zip(("compiled", "trained"), known.split(" / ") if known != "–" else "––"):
            check_cell(planted.get(kind, pandas.Series(dtype=float)), name, number)


def test_the_table_of_the_real_model_is_what_the_benchmarks_measured():
    tokens, nodes, edges = (pandas.read_csv(ROOT / "benchmarks" / f"{name}.csv") for name in (
        "shapley-smollm2-135m", "nodes-smollm2-135m", "compare-smollm2-135m-mean"))
    statistics = ("spearman", "strongest", "pearson", "size")
    measured = [tokens.groupby("method").pearson.mean(),
                *(nodes[nodes.statistic == name].groupby("method").value.mean() for name in statistics),
                *(edges.groupby("method")[area].mean() for area in ("cpr", "cmd"))]
    rows = rows_of(README.partition("On a real model, SmolLM2-135M")[2].partition("\n\n**")[0])
    assert len(rows) >= 8
    for name, _, *cells in rows:
        for means, cell in zip(measured, cells, strict=True):
            check_cell(means, name, cell)


MEASURED = {"gimkit.attribute": (gimkit.tokens.METHODS, *COLUMNS[0], "set", "2f"),
            "gimkit.score_nodes": (gimkit.circuits.nodes.METHODS, *COLUMNS[1], "task", "2f"),
            "gimkit.score_edges": (gimkit.circuits.edges.METHODS, *COLUMNS[4], "task", "3f")}


def written(number: float, digits: str) -> str:
    return f"{number:.{digits}}".replace("0.", ".", 1)


@pytest.mark.parametrize("function", MEASURED)
def test_the_tables_of_methods_have_every_method_and_what_was_measured(function):
    methods, file, measure, by, digits = MEASURED[function]
    section = (ROOT / "docs/METHODS.md").read_text().partition(f"`{function}`\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\S+)` \|.*\| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    assert {name for name, *_ in rows} == set(methods) and len(rows) == len(methods)
    for name, *cells in rows:
        for model, cell in zip(("mini-llama", "mini-gpt2"), cells):
            table = pandas.read_csv(ROOT / "benchmarks" / file.format(model))
            table = table[table.method == (RENAMED.get(name, name) if by == "set" else name)]
            means = table.groupby(by)[measure].mean()
            low, high = (means.idxmin(), means.idxmax()) if len(means) else ("", "")
            want = (f"{written(table[measure].mean(), digits)} ({written(means[low], '2f')} {low} to "
                    f"{written(means[high], '2f')} {high})") if len(means) else "–"
            assert cell == want, (name, model)


MODELS = ("mini-llama", "mini-gpt2", "smollm2-135m")
SEARCHED = ((("compiled", "trained"), "edges average precision", "2f"), (MODELS, "edges cmd", "3f"),
            (MODELS, "edges cpr", "2f"), (MODELS, "nodes pearson", "2f"), (MODELS, "tokens pearson", "2f"))


def searched(name: str) -> pandas.DataFrame:
    """The search's table of all models."""
    return pandas.concat([pandas.read_csv(ROOT / f"benchmarks/{name}{model}.csv") for model in ("", "-smollm2-135m")])


def test_the_table_of_searched_rules_is_what_was_measured():
    measured = searched("search-held-out").query("half == 'held out'")
    measured = measured.set_index(["setting", "model", "statistic"]).value
    section = (ROOT / "docs/METHODS.md").read_text().partition("## Rules, searched")[2].partition("\n\n- ")[0]
    rows = rows_of(section)
    assert {name.strip("`") for name, *_ in rows} == set(measured.index.get_level_values(0))
    for name, *cells in rows:
        for (models, statistic, digits), cell in zip(SEARCHED, cells, strict=True):
            keys = [(name.strip("`"), model, statistic) for model in models]
            assert cell == " / ".join(written(measured[key], digits) if key in measured else "–" for key in keys), keys


def test_the_table_of_what_each_rule_changes_is_what_was_measured():
    changes = effects(searched("search").query("half == 'search'"))
    section = (ROOT / "docs/METHODS.md").read_text().partition("What each rule changes")[2].partition("\n\n- ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert [name for name, *_ in rows] == list(changes.index)
    for name, *cells in rows:
        for (models, statistic, digits), cell in zip(SEARCHED, cells, strict=True):
            wanted = [written(changes.loc[name, (model, statistic)], digits) for model in models]
            assert cell == " / ".join(wanted), (name, statistic)


@pytest.mark.parametrize("level, averaged", [("", "ig-inputs"), ("nodes-", "nap-ig")])
def test_the_tables_of_rankings_are_what_was_measured(level, averaged):
    section = (ROOT / "docs/METHODS.md").read_text().partition("## Rankings from more than one score")[2]
    section = section.partition("\n## ")[0].split("Held-out half, ")[2 if level else 1]
    models = re.search(r"^\| way \| runs \| (.*) \|$", section, re.MULTILINE)[1].split(" | ")
    tables = [pandas.read_csv(ROOT / f"benchmarks/rankings-{level}{model}.csv").query("half == 'held out'").set_index(
        "way") for model in models]
    rows = rows_of(section)
    assert {name.strip("`") for name, *_ in rows} == {way for table in tables for way in table.index
                                                      if "'s size" not in way}
    for name, _, *cells in rows:
        for table, cell in zip(tables, cells, strict=True):
            way, above = name.strip("`"), f"cmd_above_{averaged}"
            if way not in table.index:
                assert cell == "–"
                continue
            lead = "" if way == averaged else " ({} [{}, {}])".format(
                *(written(table.loc[way, f"{above}{end}"], "3f") for end in ("", "_low", "_high")))
            assert cell == written(table.loc[way, "cmd"], "3f") + lead, way


def texts_of(path: Path):
    """Every string in a module's code, a dot for each value that is put in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "." for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_message_in_the_readme_is_in_the_code():
    section = README.partition("## When something goes wrong")[2].partition("Not the kit's own")[0]
    quoted = re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE)
    assert len(quoted) >= 12
    code = [text for path in (ROOT / "gimkit").rglob("*.py") for text in texts_of(path)]
    for message in quoted:
        pattern = re.compile(".*".join(re.escape(piece) for piece in message.split("...")), re.DOTALL)
        assert any(pattern.search(text) for text in code), f"no such message in the code: {message}"


def test_the_install_cell_is_a_cell_and_the_account_stands_in_one_place():
    (cell,) = re.findall(r"run this cell first:\n+```py\n(.*?)```", README, re.DOTALL)
    ast.parse(TransformerManager().transform_cell(cell))
    clone, install, *_, folder = map(shlex.split, cell.splitlines())  # the notebooks read ../figures
    assert clone[-1].endswith("/gimkit") and install[-1] == "./gimkit" and folder[-1] == "gimkit/notebooks"
    block = README[README.index("<!-- The account"):README.index("## Models")]
    assert "OWNER" not in README.replace(block, "")
    for path in (*ROOT.glob("*.toml"), *ROOT.glob("*.yml"), *ROOT.glob("notebooks/*.py"), *ROOT.glob("gimkit/**/*.py")):
        assert "OWNER" not in path.read_text(encoding="utf-8"), path


def pip_part() -> list[str]:
    """The lines that conda hands to pip."""
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    return next(entry["pip"] for entry in packages if isinstance(entry, dict))


def test_the_conda_environment_names_extras_and_a_file_that_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    words = [word for line in pip_part() for word in line.split()]
    assert (ROOT / words[words.index("-c") + 1]).is_file()
    assert set(re.fullmatch(r"\.\[(.*)\]", words[words.index("-e") + 1])[1].split(",")) <= set(extras)


def test_pip_accepts_what_conda_hands_to_it():
    arguments = [word for line in pip_part() for word in line.split()]
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-index",
                           "--no-build-isolation", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
