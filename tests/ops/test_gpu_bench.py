"""`python -m bench.gpu` in its rehearsal: all that runs without a GPU, in small."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(*options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "bench.gpu", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_rehearsal() -> None:
    status, said = run("--rehearse")
    assert status == 0, said[-3000:]
    for words in ("| ours float32 | ", "| torch eager | ", "copy bytes per second", "| vit_b_16, 3 groups | "):
        assert words in said
    assert "skipped: torch compile (RuntimeError: not rehearsed" in said
    assert said.endswith("a rehearsal: these figures mean nothing\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    status, said = run("--out", str(tmp_path))
    assert status == 1
    assert "no GPU that torch can use was found; nothing is measured" in said
    assert list(tmp_path.iterdir()) == []
