"""The package's rooms: imports go downward only, in the order that DESIGN and README name, without a circle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gimkit"
# From the bottom up; rooms on one line do not import each other.
ORDER = ("errors", "files", "results", "statistics", "rules", "interventions", "model", "remote", "jvp", "tasks",
         "tokens circuits selfrepair l3d", "plots", "notebook", "cli")
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms.split()}


def imports(path):
    """(module, is it at the top) of every import of gimkit, figures, benchmarks or tests in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [node.module]
            if node.module == "gimkit":
                names = [f"gimkit.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name and name.partition(".")[0] in ("gimkit", "figures", "benchmarks", "tests"):
                yield name, node in tree.body


def room_of(name):
    return name.split(".")[1] if "." in name else None


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for name, at_top in imports(path):
        assert name.startswith("gimkit"), f"{name}: the package needs nothing beside it"
        other = room_of(name)
        if other == room:
            continue
        if other == "plots" and not at_top and LEVEL[room] < LEVEL["plots"]:
            continue  # a result draws itself when its .plot() is called
        if other is None:
            assert room in ("notebook", "cli"), "import the room, not the whole package"
            continue
        assert LEVEL[other] < LEVEL[room], f"{room} imports {name}, which is not below it"


def test_every_room_has_its_level():
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith("__")}
    assert rooms - {"py.typed"} <= set(LEVEL), rooms - set(LEVEL)


@pytest.mark.parametrize("path", sorted((PACKAGE / "interventions").glob("*.py")), ids=lambda path: path.stem)
def test_interventions_import_torch_math_and_typing_only(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = ([node.module] if isinstance(node, ast.ImportFrom) else
                 [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        for name in names:
            shipped = name == "gimkit.errors" or name.startswith("gimkit.interventions.")
            assert shipped or name in ("torch", "math", "typing"), name


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_scipy_is_imported_when_used(path):
    """It takes a fifth of the package's import time."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = ([node.module or ""] if isinstance(node, ast.ImportFrom) else
                 [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        assert not any(name.partition(".")[0] == "scipy" for name in names)


def test_modules_make_no_circle():
    """Module by module, at import time, inside rooms too."""
    edges = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
        # From inside a room, `from gimkit.room import module` names the module, not the room's __init__.
        edges[name] = {found for found, at_top in imports(path) if at_top and found != inside}
    done, active = set(), []

    def visit(name):
        if name in done or name not in edges or name == "gimkit":
            return
        assert name not in active, " -> ".join([*active[active.index(name):], name])
        active.append(name)
        for other in sorted(edges[name]):
            visit(other)
        done.add(active.pop())

    for name in edges:
        visit(name)


def functions(path):
    """The functions of a file, methods too, without those inside functions."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node in [*body, *(item for found in body if isinstance(found, ast.ClassDef) for item in found.body)]:
        if isinstance(node, ast.FunctionDef):
            yield node


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_signatures(path):
    """At most seven parameters, keyword-only options aside; outside traces and checks public ones have types."""
    room = path.relative_to(PACKAGE).parts[0]
    if room == "interventions":
        return
    for node in functions(path):
        plain = [arg for arg in (*node.args.posonlyargs, *node.args.args) if arg.arg not in ("self", "cls")]
        assert len(plain) <= 7, f"{node.name} has {len(plain)} parameters"
        if node.name.startswith("_") or "checks" in path.parts:
            continue
        untyped = [arg.arg for arg in (*plain, *node.args.kwonlyargs) if arg.annotation is None]
        assert not untyped and node.returns is not None, f"{node.name}: {untyped or 'what it returns'} has no type"
