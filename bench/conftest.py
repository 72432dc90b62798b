from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only the main sizes, in under five minutes")
    parser.addoption("--threads", type=int, default=2, help="for all")
    parser.addoption("--data", type=Path, default=None, help="where the benchmark's files are kept between runs")


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture(scope="session")
def threads(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--threads"))


@pytest.fixture(scope="session")
def data_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = request.config.getoption("--data") or tmp_path_factory.mktemp("bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
