"""Which products the engine makes for a learner."""

import numpy as np
import pytest
import torch
from helpers import row_data

from fastclf import BCE, L1, NLL, HeadLearner, ImageClassifierData
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


@pytest.mark.parametrize("kind", [NLL, BCE, L1])
def test_a_loss_derived_from_ours_is_what_it_computes(tmp_path, rng, kind):
    """Not what ours does: the engine, and the losses of logits, know that alone."""

    class Tenth(kind):
        def __call__(self, out, y):
            return super().__call__(out, y) / 10

    x, y = rng.standard_normal((40, 6), dtype=np.float32), np.arange(40) % 3
    if kind is not NLL:
        y = np.eye(3, dtype=int)[y] + np.eye(3, dtype=int)[0] * (y[:, None] == 1)
    data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), bs=20, continuous=kind is L1)
    ours, derived = HeadLearner(data, crit=kind(), ps=0), HeadLearner(data, crit=Tenth(), ps=0)
    want, got = ours.fit(0, 1), derived.fit(0, 1)
    assert got[0] == pytest.approx(want[0] / 10, rel=1e-4)
    np.testing.assert_allclose(derived.sched.losses, np.divide(ours.sched.losses, 10), rtol=1e-4)
    np.testing.assert_allclose(derived.predict(), ours.predict(), atol=1e-5)
