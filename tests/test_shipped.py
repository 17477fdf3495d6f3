"""What travels to a server keeps to what travels well; nothing here needs a server."""

import ast
import importlib
import inspect

import pytest
import torch

from gimkit.model.architecture import Norm
from gimkit.remote import SHIPPED
from gimkit.remote.trace import plain

each_module = pytest.mark.parametrize("name", SHIPPED)


def tree_of(name):
    return ast.parse(inspect.getsource(importlib.import_module(name)))


@each_module
def test_shipped_functions_carry_no_decorators(name):
    """They are dropped on the way, in silence, and what they did is gone."""
    defined = [node for node in ast.walk(tree_of(name)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert defined
    assert not [node.name for node in defined if node.decorator_list]


@each_module
def test_shipped_modules_import_only_what_a_server_has_and_what_is_shipped(name):
    tree = tree_of(name)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in imports:
        assert node in tree.body, f"line {node.lineno}: an import inside a function runs on the server"
        for module in [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]:
            assert module in ("torch", "math", "typing", *SHIPPED), f"line {node.lineno}: {module}"
            assert module in ("torch", "math") or isinstance(node, ast.ImportFrom), "import functions by name"


@each_module
def test_shipped_classes_call_no_super(name):
    assert not [node for node in ast.walk(tree_of(name)) if isinstance(node, ast.Name) and node.id == "super"]


def test_named_tuples_arrive_as_namespaces_and_views_as_copies():
    rows = torch.arange(12).view(4, 3)
    found = plain(([Norm("a", 1e-6, True), None], {"x": rows[1:2]}))
    assert isinstance(found, tuple) and vars(found[0][0]) == {"path": "a", "eps": 1e-6, "centred": True}
    sent = found[1]["x"]
    assert torch.equal(sent, rows[1:2]) and sent.untyped_storage().nbytes() == 3 * 8
    assert plain(rows) is rows
