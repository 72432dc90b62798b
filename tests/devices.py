"""Tests that run on the processor and, where there is one, on a GPU."""

import pytest
import torch

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))
on_both_devices = pytest.mark.parametrize("default_device", ["cpu", GPU], indirect=True)
