"""The table of tests in README.md names tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = re.findall(r"^\| ([A-E]\d+) \| (.+?) \| (.+?) \|$", (TESTS / "README.md").read_text(), re.MULTILINE)
COUNTS = {"A": 20, "B": 18, "C": 18, "D": 14, "E": 24}


@cache
def functions_of(file):
    """The test functions of a file, methods as Class::test."""
    found = set()
    for node in ast.parse((TESTS / file).read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + n.name for n in inner if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}
    return found


def test_every_row_is_there_once():
    assert [row for row, _, _ in ROWS] == [f"{letter}{i}" for letter, n in COUNTS.items() for i in range(1, n + 1)]


@pytest.mark.parametrize(("row", "tests"), [(row, tests) for row, _, tests in ROWS], ids=[row for row, _, _ in ROWS])
def test_the_tests_of_a_row_exist(row, tests):
    named = re.findall(r"`([\w/]+\.py)::([\w:]+)`", tests)
    assert named or tests.startswith("not yet: ")
    for file, name in named:
        assert name in functions_of(file), f"{row}: {file}::{name}"
