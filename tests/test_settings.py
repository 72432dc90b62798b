"""What a program has set in torch changes nothing here: default types and devices, modes without gradients."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import fastclf
from fastclf import ConvLearner, HeadLearner, ImageClassifierData, Learner, resnet18, tfms_from_stats
from tests.helpers import HALF, assert_same, image_data, row_data, state_of, three_colours


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def raising():
    """A program's own: an underflow is an error."""
    return np.errstate(all="raise")


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


SETTINGS = {
    "np.seterr": raising,
    "autocast": autocast,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "a device without values": lambda: torch.device("meta"),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
}


def lesson(folder, arch):
    """All that a learner gives, as arrays, and its weights."""
    torch.manual_seed(1)
    data = ImageClassifierData.from_paths(folder, bs=8, tfms=tfms_from_stats(HALF, 32))
    learn = ConvLearner.pretrained(arch, data, pretrained=False, precompute=True, xtra_fc=[8])
    found = [learn.fit(0.01, 1), learn.predict(), learn.similar(folder / data.val_ds.fnames[0], k=2).similarity]
    found += [learn.cross_validate(k=2).preds, str(learn.evaluate())]
    learn.unfreeze()
    found += [learn.fit(0.001, 1), *learn.TTA(1), learn.heatmap(folder / data.val_ds.fnames[0]).values]
    learn.save("m")
    learn.export("m")
    clf = fastclf.load(folder / "models" / "m")
    found += [clf.predict(folder / "test").outputs, *(part.outputs for part in clf.stream(folder / "test"))]
    return found, state_of(learn)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return lesson(three_colours(tmp_path_factory.mktemp("usual")), resnet18)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_lesson_is_the_same_to_the_last_bit(setting, usual, tmp_path):
    with SETTINGS[setting]():
        found, state = lesson(three_colours(tmp_path), resnet18)
    for a, b in zip(usual[0], found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert_same(usual[1], state)


@pytest.mark.parametrize("setting", SETTINGS)
def test_rows_train_and_are_predicted_the_same(setting, tmp_path, rng):
    data = row_data(tmp_path, rng)
    with SETTINGS[setting]():
        learn = HeadLearner(data)
        inside = learn.fit(0.1, 2), learn.fine_tune(), learn.predict()
    learn.fit(0.1, 1)  # also outside, where weights made in inference mode could not
    again = HeadLearner(data)
    for a, b in zip(inside, (again.fit(0.1, 2), again.fine_tune(), again.predict()), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("setting", SETTINGS)
def test_batches_are_the_same(setting, tmp_path, rng):
    """Of loaders that the user goes through, outside of any call."""
    sets = image_data(three_colours(tmp_path), augs=[lambda x, u: x]), row_data(tmp_path, rng)
    usual = [[*data.trn_dl.batches(1)] for data in sets]
    with SETTINGS[setting]():
        found = [[*data.trn_dl.batches(1)] for data in sets]
        tfms_from_stats(HALF, 16, aug_tfms=[lambda x, u: x + 1])
    for batches, others in zip(usual, found, strict=True):
        for batch, other in zip(batches, others, strict=True):
            assert [torch.equal(a, b) for a, b in zip(batch, other, strict=True)] == [True, True]


def test_settings_are_as_they_were_afterwards(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    with default_dtype(torch.float64), torch.device("meta"), raising(), autocast(), torch.inference_mode():
        learn.fit(0.1, 1)
        assert torch.empty(1).device.type == "meta"
        assert torch.get_default_dtype() == torch.float64
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert np.geterr()["under"] == "raise"


def test_a_model_that_can_never_train_is_refused(tmp_path, rng):
    data = row_data(tmp_path, rng)
    with torch.inference_mode():
        model = torch.nn.Linear(10, 3)
    with pytest.raises(ValueError, match=r"Learner: model was made inside .*\(\), .* Make it outside"):
        Learner.from_model_data(torch.nn.Sequential(model, torch.nn.LogSoftmax(1)), data)
    with pytest.raises(ValueError, match="HeadLearner: model was made inside"):
        HeadLearner(data, custom_head=torch.nn.Sequential(model, torch.nn.LogSoftmax(1)))
