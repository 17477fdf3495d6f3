"""Files are written completely or not at all; a cached table is read back only when nothing of it is missing."""

import ast
import json
import os
from pathlib import Path

import pandas
import pytest
import torch
from matplotlib.figure import Figure
from test_circuit_files import edges_made_up, nodes_made_up

import gimkit
from benchmarks.tables import cached_table, show
from gimkit import files, l3d, plots
from gimkit.notebook.explorer import Explorer

ROOT = Path(__file__).parent.parent
TABLE = pandas.DataFrame({"x": [1.5, 0.1 + 0.2, -1e-300], "name": ["a", "b, c", "d\ne"]})


def decomposition():
    return l3d.decompose(l3d.toys.Linear2(5, 2, 5), torch.rand(20, 5), n=3, epochs=1, progress=False)


def explorer():
    return Explorer(data={"title": "t"})


WRITERS = {
    "edges.json": lambda path: edges_made_up().save(path),
    "edges.pt": lambda path: edges_made_up().save(path),
    "nodes.json": lambda path: nodes_made_up().save(path),
    "circuit.pt": lambda path: edges_made_up().top(9).save(path),
    "explorer.html": lambda path: explorer().save(path),
    "found.safetensors": lambda path: decomposition().save(path.with_suffix("")),
    "figure.png": lambda path: plots.save(Figure(), path.with_suffix(""), TABLE, "Nothing."),
    "table.csv": lambda path: show(TABLE[["x"]], path, "A table"),
    "part.csv": lambda path: cached_table(path, {}, lambda: TABLE),
}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_a_run_that_is_killed_leaves_the_old_file(tmp_path, monkeypatch, name):
    path = tmp_path / name
    WRITERS[name](path)
    for file in contents(tmp_path):
        (tmp_path / file).write_bytes(b"old")
    old = contents(tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        WRITERS[name](path)
    assert contents(tmp_path) == old


@pytest.mark.parametrize("name", WRITERS)
def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path, name):
    path = tmp_path / "folder" / name
    (tmp_path / "folder").write_text("a file where a folder would be")
    with pytest.raises(gimkit.GimkitError, match="cannot write .*folder") as caught:
        WRITERS[name](path)
    assert "\n" not in str(caught.value)


def test_links_and_pipes_stay_what_they_are(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    files.write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(tmp_path / "pipe", "through")
    assert os.read(reading, 100) == b"through"
    os.close(reading)
    with pytest.raises(gimkit.GimkitError, match="is a folder"):
        files.write_text(tmp_path, "text")
    files.write_text(tmp_path / "a new folder" / "a.txt", "text")
    assert (tmp_path / "a new folder" / "a.txt").read_text() == "text"


ONLY_WHOLE = ("write_text", "write_bytes", "to_csv", "savefig", "save_file", "dump")
ELSEWHERE = {"gimkit/files.py", "gimkit/model/gguf.py",  # writes into a folder that is renamed once it is whole
             "gimkit/notebook/explorer.py",  # writes a picture into memory
             "benchmarks/tables.py",  # makes a text, which write_text writes
             "benchmarks/measuring.py"}  # writes to /proc


def test_nothing_is_written_past_the_helper():
    """Every call that writes a file gets the temporary path of `files.atomic_write`, which is called `new`."""
    for path in [*ROOT.glob("gimkit/**/*.py"), *ROOT.glob("figures/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        if str(path.relative_to(ROOT)) in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            torch_save = ast.unparse(node.func) == "torch.save"
            if torch_save or called in ONLY_WHOLE and ast.unparse(node.func) != "write_text":
                given = [ast.unparse(one) for one in (node.func, *node.args)]
                assert any(one == "new" or one.startswith("new.") for one in given), f"{path}:{node.lineno}"
            if called == "open":
                assert not any(isinstance(one, ast.Constant) and str(one.value)[:1] in "wax" for one in node.args[-1:])


def never():
    raise AssertionError("it is there, and is measured again")


def test_a_cached_table_is_read_back_exactly(tmp_path):
    path, about = tmp_path / "new" / "part.csv", {"seed": 0, "blocks": (1, 2)}
    first = cached_table(path, about, lambda: TABLE)
    pandas.testing.assert_frame_equal(first, TABLE, check_exact=True)
    pandas.testing.assert_frame_equal(cached_table(path, about, never), TABLE, check_exact=True)


@pytest.mark.parametrize("change", [
    lambda text: text[:-3], lambda text: text[:40], lambda text: "", lambda text: text.replace("1.5", "1.6"),
    lambda text: text.replace('"rows": 3', '"rows": 2'), lambda text: text + "7,z\n", lambda text: "x\n1\n",
    lambda text: text.partition("\n")[2], lambda text: "# [1]\nx\n1\n", lambda text: "# {}\n",
    lambda text: "\0\xff" * 9, lambda text: text.replace('"seed": 0', '"seed": 1'),
], ids=range(12))
def test_a_table_that_is_not_whole_is_measured_again(tmp_path, change):
    path = tmp_path / "part.csv"
    cached_table(path, {"seed": 0}, lambda: TABLE)
    whole = path.read_bytes()
    path.write_text(change(whole.decode()), encoding="latin-1")
    cached_table(path, {"seed": 0}, lambda: TABLE)
    assert path.read_bytes() == whole
    with pytest.raises(AssertionError, match="measured again"):
        cached_table(path, {"seed": 1}, never)


def test_decompositions_that_are_damaged_or_mixed_up(tmp_path):
    found = decomposition()
    found.save(tmp_path / "a=0.1")
    found.save(tmp_path / "a=0.2")
    assert sorted(contents(tmp_path)) == [f"a=0.{i}.{ending}" for i in (1, 2) for ending in ("json", "safetensors")]
    good = contents(tmp_path)

    def refused(match, load=l3d.Decomposition.load):
        with pytest.raises(gimkit.GimkitError, match=match) as caught:
            load(tmp_path / "a=0.1")
        assert "\n" not in str(caught.value)
        for name, content in good.items():
            (tmp_path / name).write_bytes(content)

    tensors, about = (tmp_path / f"a=0.1.{ending}" for ending in ("safetensors", "json"))
    for n in (0, 5, 60, len(tensors.read_bytes()) - 1):
        tensors.write_bytes(tensors.read_bytes()[:n])
        refused("delete them to start again")
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1  # one bit of one number
    tensors.write_bytes(content)
    refused("do not belong together, or were changed")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"seed": 7}))
    refused("do not belong together, or were changed")
    about.unlink()
    refused("delete them to start again")
    about.write_text("{")
    refused("delete them to start again")
    refused("holds no toy", l3d.toys.Toy.load)
    tensors.unlink()
    refused("no decomposition at")
