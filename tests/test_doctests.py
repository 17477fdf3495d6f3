"""The examples in docstrings run and print what they say, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
from matplotlib import pyplot

import benchmarks
import figures
import gimkit

EXPORTING = ("gimkit", "gimkit.circuits", "gimkit.circuits.known", "gimkit.plots", "gimkit.selfrepair",
             "gimkit.tasks", "gimkit.tokens", "gimkit.notebook.widgets", "gimkit.l3d", "gimkit.remote")
FOUND = ["gimkit", "figures", *(module.name for package in (gimkit, figures, benchmarks)
                                for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))]
COMPILER = "benchmarks.planted.programs"  # it needs tracr, which only makes the weights
MODULES = {name: importlib.import_module(name) for name in FOUND if not name.endswith("__main__") and name != COMPILER}
EXAMPLES = {test.name: test for name, module in MODULES.items() for test in doctest.DocTestFinder().find(module, name)
            if test.examples and test.name not in ("gimkit", "gimkit.l3d")}


@pytest.fixture(scope="module")
def shared():
    """The names that the package's docstring promises to all examples, and l3d's to its own."""
    names = {name: importlib.import_module(name) for name in ("gimkit", "pandas", "torch")}
    for example in doctest.DocTestParser().get_examples(gimkit.__doc__ + gimkit.l3d.__doc__):
        exec(example.source, names)
    return names


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_prints_what_it_says(name, shared, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where its files go
    for seen in ("gimkit.notebook.widgets.display", "ipywidgets.widgets.interaction.clear_output"):
        monkeypatch.setattr(seen, lambda *given, **options: None)  # without a kernel they print escape codes
    example, said = EXAMPLES[name], []
    example.globs = shared | example.globs
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(example, out=said.append)
    pyplot.close("all")
    assert not said, "".join(said)


def public_names():
    """What the exporting modules export: by `__all__`, or what they define without a leading underscore."""
    for module in map(MODULES.get, EXPORTING):
        for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
            thing = getattr(module, name)
            if (inspect.isfunction(thing) or inspect.isclass(thing)) and (
                    hasattr(module, "__all__") or thing.__module__ == module.__name__):
                yield f"{thing.__module__}.{name}"


@pytest.mark.parametrize("name", dict.fromkeys(public_names()))
def test_every_public_name_has_an_example_and_its_sections(name):
    assert name in EXAMPLES, f"{name} needs an example in its docstring"
    module, _, own = name.rpartition(".")
    thing = getattr(MODULES[module], own)
    if not inspect.isfunction(thing) or not inspect.signature(thing).parameters:  # a class, or the first line says it
        return
    text = inspect.getdoc(thing)
    arguments = text.partition("\nArgs:\n")[2]
    signature = inspect.signature(thing)
    missing = [one for one in signature.parameters if not re.search(rf"^ +.*\b{one}\b.*:", arguments, re.M)]
    assert not missing, f"{name} needs a line for {', '.join(missing)} under Args:"
    returns = signature.return_annotation
    assert returns in (None, "None") or "\nReturns:\n" in text, f"{name} needs a section Returns:"
