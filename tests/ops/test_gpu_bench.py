"""`python -m bench.gpu` in its rehearsal: all that runs without a GPU, in small."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.gpu.__main__ import main

    return main


def test_rehearsal(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rehearse"]) == 0
    said = capsys.readouterr().out
    for words in ("ours float32", "torch eager", "vit_b_16, 3 groups", "whole pass"):
        assert f"| {words} | " in said
    assert "copy bytes per second" in said
    for peer in ("torch graph", "torch compile", "jax scan"):
        assert f"skipped: {peer} (RuntimeError: not rehearsed" in said
    assert "skipped: torchvision CUDA (RuntimeError: not rehearsed" in said
    assert said.endswith("a rehearsal: these figures mean nothing\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path)]) == 1
    assert "no GPU that torch can use was found; nothing is measured" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
