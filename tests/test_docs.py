"""What is public is documented, and what the documents name exists."""

import ast
import builtins
import inspect
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import fastclf
import fastclf.loggers
from fastclf import SGDR, Classifier, ConvLearner, ImageClassifierData, ImageModelResults, Options


def functions_of(name):
    """The public functions of a public name, each once, where it is defined."""
    thing = getattr(fastclf, name)
    if not inspect.isclass(thing):
        return {name: thing} if inspect.isfunction(thing) else {}
    found = {}
    for key, value in vars(thing).items():
        inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not key.startswith("_") and inspect.isfunction(inner):
            found[f"{name}.{key}"] = inner
    for base in thing.__mro__[1:]:
        if base.__module__.startswith("fastclf"):
            for key, value in vars(base).items():
                inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
                if not key.startswith("_") and inspect.isfunction(inner):
                    found.setdefault(f"{name}.{key}", inner)
    return found


FUNCTIONS = {}
for public in sorted(fastclf.__all__):
    for key, function in functions_of(public).items():
        if function not in FUNCTIONS.values():
            FUNCTIONS[key] = function


def shortcomings(function):
    """What a docstring lacks."""
    text = inspect.getdoc(function) or ""
    if not text:
        yield "a docstring"
        return
    if re.match(r"See `[\w.]+`", text) or re.search(r"Arguments as th(ere|ose of)", text):  # told elsewhere
        return
    signature = inspect.signature(function)
    names = [
        name for name in signature.parameters if name not in ("self", "cls") or name != next(iter(signature.parameters))
    ]
    names = [name for name in names if name not in ("options", "kwargs")]
    missing = [name for name in names if not re.search(rf"\b{name}\b", text)]
    if missing:
        yield f"what {', '.join(missing)} is"
    elif len(names) > 1 and "Args:" not in text:
        yield "Args:"
    returned = signature.return_annotation
    if returned not in (None, "None", inspect.Parameter.empty) and not re.search(
        r"Returns:|\b[Rr]eturns? |[Yy]ield|^Whether", text
    ):
        yield f"what is returned ({returned})"


@pytest.mark.parametrize("name", fastclf.__all__)
def test_every_public_name_has_a_docstring(name):
    thing = getattr(fastclf, name)
    if callable(thing):
        assert inspect.getdoc(thing)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_tells_arguments_and_result(name):
    assert list(shortcomings(FUNCTIONS[name])) == []


# What README.md, docs/*.md and the notebook name

ROOT = Path(__file__).parents[1]
KINDS = {
    "learn": ConvLearner,
    "data": ImageClassifierData,
    "clf": Classifier,
    "results": ImageModelResults,
    "fastclf": fastclf,
    "log_preds": np.ndarray,
    "probs": np.ndarray,
    "np": np,
}
MORE = {  # arguments that are handed on as **kwargs
    "ImageClassifierData": set(Options.__annotations__),
    "ConvLearner": set(inspect.signature(ConvLearner).parameters),
}
OWNERS = (fastclf, ConvLearner, ImageClassifierData, Classifier, ImageModelResults, SGDR)
ELSEWHERE = {"f", "Path", "name", "val_tfms", "write_digits", "TensorBoardLogger", "Source"}  # own names, other modules
FILES = re.compile(r"[\w/{}]+\.(py|html|json|csv|onnx|pt2|md|ipynb|safetensors|svg|png)")


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def inline_code(text):
    """What stands in backticks, as far as it is Python once ``a=`` has a value and "..." is no argument."""
    for piece in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if FILES.fullmatch(piece):
            continue
        code = re.sub(r"(\w=)(?=[,)])", r"\1None", re.sub(r",? ?\.\.\.(?=[,)])", "", piece))
        try:
            ast.parse(code)
        except SyntaxError:
            continue
        yield code


def snippets():
    """Every piece of code in the documents, with its file."""
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = file.read_text()
        if file.name == "coming_from.md":  # the first column is other libraries' code
            text = "\n".join(" ".join(line.split("|")[2:]) for line in text.splitlines())
        for code in (*python_blocks(text), *inline_code(text)):
            yield file.name, code
    for cell in json.loads((ROOT / "docs" / "lesson.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            yield "lesson.ipynb", "".join(cell["source"])
        else:
            for code in inline_code("".join(cell["source"])):
                yield "lesson.ipynb", code


def resolve(node):
    """The object that a name or an attribute stands for, None where that cannot be told; AttributeError if missing."""
    if isinstance(node, ast.Name):
        known = KINDS.get(node.id)
        return known if known is not None else getattr(fastclf, node.id, None)
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value)
        if owner is None or isinstance(owner, property):
            return None
        if node.attr in set_in_init(owner):
            return None
        return inspect.getattr_static(owner, node.attr) if inspect.isclass(owner) else getattr(owner, node.attr)
    return None


@cache
def set_in_init(owner):
    """Names of the attributes that instances of a class get."""
    if not inspect.isclass(owner) or not owner.__module__.startswith("fastclf"):
        return frozenset()
    names = set()
    for kind in owner.__mro__[:-1]:
        names |= set(getattr(kind, "__annotations__", {}))
        if kind.__module__.startswith("fastclf"):
            names |= set(re.findall(r"self\.(\w+)(?=[,:]| =)", inspect.getsource(kind)))
    return frozenset(names)


def called(node):
    """The function that a call calls, its owner's name and whether a bare name stands for nothing."""
    function = node.func
    if isinstance(function, ast.Name) and function.id not in KINDS:
        for owner in OWNERS:
            found = getattr(owner, function.id, None)
            if found is not None:
                return found, getattr(owner, "__name__", "")
        assert hasattr(builtins, function.id) or function.id in ELSEWHERE, f"no call is named {function.id}"
        return None, ""
    found = resolve(function)
    owner = resolve(function.value) if isinstance(function, ast.Attribute) else None
    if isinstance(found, classmethod | staticmethod):
        found = getattr(owner, function.attr)
    return found, getattr(owner, "__name__", "")


def check_call(node):
    function, owner = called(node)
    if function is None or not callable(function) or not getattr(function, "__module__", "").startswith("fastclf"):
        return
    parameters = inspect.signature(function).parameters
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in parameters:
            continue
        handed_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        assert handed_on, f"{function.__qualname__} has no argument {keyword.arg}"
        assert keyword.arg in MORE.get(owner, ()), f"{function.__qualname__} hands on no argument {keyword.arg}"


def wrong_names(code):
    """What a piece of code names that is not there."""
    for node in ast.walk(ast.parse(code)):
        try:
            if isinstance(node, ast.Attribute):
                resolve(node)
            elif isinstance(node, ast.Call):
                check_call(node)
        except (AttributeError, AssertionError) as error:
            yield f"{code}: {str(error).splitlines()[0]}"


@pytest.mark.parametrize("file", sorted({file for file, _ in snippets()}))
def test_what_a_document_names_exists(file):
    found = [code for name, code in snippets() if name == file]
    assert len(found) > 5
    assert [wrong for code in found for wrong in wrong_names(code)] == []


@pytest.mark.parametrize(
    "code",
    [
        "learn.fit_one_cycle(3)",
        "learn.fit(1e-2, 3, cycles=2)",
        "ConvLearner.pretrained(a, data, frozen=1)",
        "fastclf.lod('x')",
        "fitt(3)",
    ],
)
def test_what_does_not_exist_is_noticed(code):
    assert list(wrong_names(code))
