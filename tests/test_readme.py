"""The READMEs: the tests that a table names exist, and the figures that are shown were measured."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = re.findall(r"^\| ([A-E]\d+) \| (.+?) \| (.+?) \|$", (TESTS / "README.md").read_text(), re.MULTILINE)
COUNTS = {"A": 20, "B": 23, "C": 30, "D": 18, "E": 31}


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


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS.parent))
    from bench import report

    return report


def shown(report):
    """Every table of a benchmark that a README shows, by marker."""
    texts = [readme.read_text() for readme in report.READMES]
    return [found for text in texts for found in re.findall(r"<!-- bench:(\w+) -->\n(.*?)<!-- /bench", text, re.DOTALL)]


def test_every_figure_that_is_shown_was_measured(report):
    """Each table is what the report makes of a file in bench/results."""
    results = [json.loads(file.read_text()) for file in (TESTS.parent / "bench" / "results").glob("*.json")]
    made = [report.tables(run["results"], run["stamp"]) for run in results if "results" in run]
    tables = shown(report)
    assert len(tables) > 5
    for marker, table in tables:
        assert table in [run.get(marker) for run in made], f"{marker} shows figures that no file of results holds"


def test_every_table_is_shown_once(report):
    assert sorted(marker for marker, _ in shown(report)) == sorted(report.KINDS)
