"""`python -m bench.gpu` in its rehearsal: all that runs without a GPU, in small; and parts that die."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.gpu import __main__
    from fastclf import quiet

    yield __main__
    quiet(on=False)


def test_rehearsal(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Here in one process, which costs less."""
    from bench.gpu.parts import measure

    monkeypatch.setattr(gpu, "in_own_process", measure)
    assert gpu.main(["--rehearse"]) == 0
    said = capsys.readouterr().out
    for words in (
        "ours float32",
        "torch eager",
        "vit_b_16, 3 groups",
        "whole pass",
        "files, plain",
        "files, the processor decodes, augmented",
        "files, DALI's graph, augmented",
        "from memory, augmented",
        "timm's loop",
        "first batch after",
    ):
        assert f"| {words}" in said
    assert "| keeping activations, images/s | loader | body | both | share of the slower |" in said
    assert "copy bytes per second" in said
    for peer in ("torch graph", "torch compile", "jax scan"):
        assert f"skipped: {peer} (RuntimeError: not rehearsed" in said
    assert "skipped: torchvision CUDA (RuntimeError: not rehearsed" in said
    assert "failed" not in said
    assert said.endswith("a rehearsal: these figures mean nothing\n")


def test_a_part_that_dies_costs_itself_alone(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.gpu.parts import answer_of

    codes = {
        "limits": "print('{\"copy_bytes_per_second\": 2e9}', file=open(sys.argv[1], 'w'))",
        "images": "print('an illegal memory access', flush=True); os.abort()",
        "optimizer": "import time; time.sleep(60)",
    }

    def measured(name: str, *, small: bool, known: dict[str, float], folder: Path) -> object:
        assert bool(known) or name == "limits"
        command = [sys.executable, "-I", "-S", "-c", f"import os, sys; {codes[name]}", str(folder / "result")]
        result, patience = folder / ("result" if name == "limits" else "none"), 0.3 if name == "optimizer" else 60.0
        return answer_of(command, result, patience, {})

    monkeypatch.setattr(gpu, "in_own_process", measured)
    monkeypatch.setattr(gpu, "_stamp", lambda **_: {"date": "today", "card": "A card"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.main(["limits", "images", "optimizer", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "| copy bytes per second | 2e+09 |" in said
    assert re.search(r"failed: images \(ended with -6 after \d+ s: an illegal memory access\)", said)
    assert "failed: optimizer (took longer than 0.3 s)" in said
    found = json.loads((tmp_path / "today-A-card.json").read_text())
    assert list(found["parts"]) == ["limits", "images", "optimizer"]
    assert (tmp_path / "today-A-card.md").read_text() in said
    assert gpu.main(["limits", "--out", str(tmp_path)]) == 1  # the others stay as they were
    assert json.loads((tmp_path / "today-A-card.json").read_text()) == found


def test_a_part_writes_what_it_finds(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bench.gpu import parts

    def ended(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", ended)
    with pytest.raises(SystemExit, match="0"):
        parts.main("limits", "1", "{}", str(tmp_path))
    assert json.loads((tmp_path / "limits.json").read_text())["launch_seconds"] > 0


def test_an_unknown_part_is_named(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["heads"])
    assert "PART must be one of limits, start-lite0" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert "no GPU that torch can use was found; nothing is measured" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
