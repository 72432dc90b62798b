"""Which products the engine makes for a learner."""

import pytest
import torch
from helpers import row_data

from fastclf import HeadLearner
from fastclf.training.engine import check_precision


def test_a_processor_computes_in_float32(tmp_path, rng):
    data = row_data(tmp_path, rng, device="cpu")
    assert HeadLearner(data, precision="float32").precision == "float32"
    for precision in ("tf32", "bf16"):
        with pytest.raises(ValueError, match=f"precision '{precision}' needs a GPU, and the data is on cpu"):
            HeadLearner(data, precision=precision)


def test_a_gpu_takes_any_precision():
    for precision in ("float32", "tf32", "bf16"):
        assert check_precision(precision, torch.device("cuda")) == precision
    with pytest.raises(ValueError, match="precision must be one of float32, tf32, bf16, got 'fp16'"):
        check_precision("fp16", torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_head_learns_as_well(tmp_path, rng, precision):
    data = row_data(tmp_path, rng)
    losses = [HeadLearner(data, precision=p).fit(0.05, 3)[0] for p in ("float32", precision)]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
