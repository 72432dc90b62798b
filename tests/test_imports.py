"""Data flows one way: no module imports, at once or later, one that imports it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import fastclf

ROOT = Path(fastclf.__file__).parent


def modules():
    """Every module's name and file."""
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def imports_of(tree, known):
    """Modules that a module imports, inside functions too, but not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            yield from (name if (name := f"{node.module}.{one.name}") in known else node.module for one in node.names)
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        yield from imports_of(node, known)


def test_imports_have_no_circle():
    files = dict(modules())
    graph = {name: set(imports_of(ast.parse(file.read_text()), files)) & files.keys() for name, file in files.items()}
    assert graph["fastclf.data.decode.renderer"] >= {"fastclf.ops.crop_resize", "fastclf.data.transforms.spec"}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them
