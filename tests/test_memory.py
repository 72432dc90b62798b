"""A learner that goes gives back all that it held at once: nothing in it refers to itself in a circle."""

import gc
import importlib
import weakref
from pathlib import Path

import numpy as np
import pytest
from helpers import image_data, row_data, three_colours, tiny_learner

from fastclf import HeadLearner, ImageClassifierData


@pytest.fixture
def _no_collector():
    importlib.import_module(
        "torch._dynamo"
    )  # torch does so at first need, and keeps alive the functions that led there
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
def test_rows_are_no_longer_mapped(tmp_path, rng):
    file = tmp_path / "rows.npy"
    np.save(file, rng.standard_normal((40, 6)).astype(np.float16))
    y = np.arange(40) % 2
    data = ImageClassifierData.from_arrays(tmp_path, (file, y), (file, y), bs=8)
    learn = HeadLearner(data, xtra_fc=[4])
    learn.fit(1e-2, 2, cycle_len=1, best_save_name="best", state_name="run")
    learn.lr_find()
    learn.predict()
    assert str(file) in Path("/proc/self/maps").read_text()
    gone = weakref.ref(learn), weakref.ref(learn.model), weakref.ref(data)
    del learn, data
    assert [ref() for ref in gone] == [None] * 3
    assert str(file) not in Path("/proc/self/maps").read_text()


@pytest.mark.usefixtures("_no_collector")
def test_so_are_cached_activations(tmp_path):
    learn = tiny_learner(image_data(three_colours(tmp_path)), precompute=True)
    learn.fit(1e-2, 1)
    learn.precompute = False
    learn.unfreeze()
    learn.fit(1e-2, 1)
    learn.TTA(n_aug=1)
    gone = weakref.ref(learn), weakref.ref(learn.model)
    del learn
    assert [ref() for ref in gone] == [None] * 2
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_objects_do_not_pile_up(tmp_path, rng):
    data = row_data(tmp_path, rng)
    HeadLearner(data).fit(1e-2, 1)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(5):
        HeadLearner(data).fit(1e-2, 1)
    gc.collect()
    assert len(gc.get_objects()) < before + 100
