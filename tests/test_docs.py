"""What is public is documented, and what the documents name exists."""

import inspect
import re

import pytest

import fastclf


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
