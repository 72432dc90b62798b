"""Values as other libraries hold them, and libraries that are not there."""

import numpy as np
import pandas as pd
import pytest
import torch

from fastclf.errors import BackendError
from fastclf.interop import as_text, is_missing, needed, numpy_of


def test_a_library_that_is_not_there_is_named_with_what_installs_it():
    with pytest.raises(BackendError, match=r"no_library_of_that_name cannot be imported .*pip install fastclf\[some\]"):
        needed("no_library_of_that_name", "fastclf[some]")
    with pytest.raises(BackendError, match=r"Install it: pip install no_library_of_that_name$"):
        needed("no_library_of_that_name")
    assert needed("numpy") is np


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_tensors_become_arrays(dtype):
    x = torch.arange(6).reshape(2, 3).to(dtype)
    x.requires_grad_(dtype.is_floating_point)
    np.testing.assert_array_equal(numpy_of(x), np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(numpy_of([[1, 2]]), [[1, 2]])


def test_bytes_are_text():
    assert [as_text(value) for value in (b"caf\xc3\xa9", b"\xff", "a", 1, None)] == ["café", "\udcff", "a", 1, None]


def test_what_is_missing():
    assert all(map(is_missing, (None, float("nan"), np.float32("nan"), pd.NA, pd.NaT)))
    assert not any(map(is_missing, (0, "", 0.0, "nan", np.float64(1), np.datetime64("2026-01-01"))))
