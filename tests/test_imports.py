"""Who may import whom: modules form no circle, and a package knows only those to its left."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import fastclf

ROOT = Path(fastclf.__file__).parent

LEFT_TO_RIGHT = """
errors arrays argument_checks versions settings report ranks rank_tensors threads interrupts philox losses schedules
calls paths files autotune interop
ops
data.sources data.input_stall data.transfer data.transforms data.decode data.bad_images data.dataset
data.image_transforms data.validation data.loader data.image_loader data.image data.options data.resize data.sets
data.summary
data.data_loaders data.stream data.served data.truth data.classifier_data data
checkpoint models
activations
training
decision predictions rebuild
interpret
learners predictor
loggers
public fastclf
demo commands cli __main__
"""  # a name stands for a module, or for a package with all that is in it
ORDER = LEFT_TO_RIGHT.split()


def modules():
    """Every module of the package, by name, with its file."""
    for file in ROOT.rglob("*.py"):
        name = ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
        yield name.removesuffix(".__init__"), file


def imports():
    """Module -> modules of the package that it imports, at the top or in a function; not those for types alone."""
    files = dict(modules())
    graph = {}
    for name, file in files.items():
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inner & files.keys() or {node.module}
        graph[name] = found & files.keys()
    return graph


def place(name):
    """The position in ORDER of the longest entry that a module is, or is in."""
    name = name.removeprefix("fastclf.")
    while name not in ORDER:
        assert "." in name, f"{name} has no place in ORDER"
        name = name.rpartition(".")[0]
    return ORDER.index(name)


def test_modules_form_no_circle():
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from error


def test_a_package_knows_only_those_to_its_left():
    backwards = [
        f"{name} imports {other}" for name, found in imports().items() for other in found if place(other) > place(name)
    ]
    assert backwards == []


def test_the_order_names_what_is_there():
    names = {name.removeprefix("fastclf.") for name, _ in modules()}
    assert set(ORDER) <= names
