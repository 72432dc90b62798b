"""Arguments that look right and are not: said with their name, before anything is trained or written."""

import numpy as np
import pytest
import torch
from helpers import picture_data, row_data, three_colours, tiny_learner

from fastclf import Callback, HeadLearner, ImageClassifierData, accuracy, confusion_matrix

WRONG_FITS = {
    "half a cycle": ({"n_cycle": 1.5}, r"n_cycle must be a whole number of at least 1, got 1\.5"),
    "a text": ({"n_cycle": "3"}, "n_cycle must be a whole number"),
    "one callback": ({"callbacks": Callback()}, "callbacks must be a list of Callback objects.*brackets"),
    "a class": ({"callbacks": [Callback]}, "callbacks must be a list of Callback objects"),
    "one number": ({"cycle_len": 1, "use_clr": 10}, r"use_clr must be \(div, cut_div\), got 10"),
}


@pytest.mark.parametrize("kind", WRONG_FITS)
def test_fit_names_the_argument(kind, tmp_path, rng):
    given, message = WRONG_FITS[kind]
    with pytest.raises(ValueError, match=message):
        HeadLearner(row_data(tmp_path, rng)).fit(1e-2, **({"n_cycle": 1} | given))


@pytest.mark.parametrize(
    ("crit", "why"),
    [
        (torch.nn.MSELoss(reduction="none"), None),
        (torch.nn.BCELoss(), "Using a target size"),
        (torch.nn.CrossEntropyLoss(weight=torch.ones(7)), "weight tensor"),
        (torch.nn.CrossEntropyLoss(reduction="none"), r"gives \[\d+\]\. Take its mean"),
        (lambda out, y: 1.0, "gives a float"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_that_does_not_fit_is_named(crit, why, tmp_path, rng):
    name = getattr(crit, "__name__", type(crit).__name__)
    with pytest.raises(ValueError, match=rf"(?s)crit '{name}' must give one number for predictions.*{why or ''}"):
        HeadLearner(row_data(tmp_path, rng), crit=crit).fit(1e-2, 1)


@pytest.mark.parametrize(
    "opt_fn",
    [
        "adam",
        lambda groups: torch.optim.Adam(groups),
        torch.optim.Adam([torch.zeros(1)]),
        torch.optim.LBFGS,
        lambda groups, lr: None,
    ],
)
@pytest.mark.filterwarnings("error")
def test_an_optimizer_that_does_not_fit_is_named(opt_fn, tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    learn.opt_fn = opt_fn
    with pytest.raises(ValueError, match="opt_fn must"):
        learn.fit(1e-2, 1)


def test_metrics_are_a_list_of_functions_whenever_they_are_given(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    for wrong in (accuracy, "accuracy", ["accuracy"], None):
        with pytest.raises(ValueError, match="metrics must be a list of functions"):
            learn.metrics = wrong
    assert learn.metrics == [accuracy]


def test_a_metric_and_a_user_may_write_into_what_they_get(tmp_path, rng):
    def scribbles(preds, targs):
        preds[:], targs[:] = 0, 0
        return 0.0

    seed = int(rng.integers(2**32))
    data, same = (row_data(tmp_path, np.random.default_rng(seed)) for _ in range(2))
    before = data.val_y.copy()
    learn, plain = HeadLearner(data, metrics=[scribbles, accuracy]), HeadLearner(same, metrics=[accuracy])
    assert learn.fit(1e-2, 2)[2] == plain.fit(1e-2, 2)[1]
    learn.predict_with_targs()[1][:] = 0
    np.testing.assert_array_equal(data.val_y, before)
    assert before.any()


def test_freezing_and_names_of_files(tmp_path):
    learn = tiny_learner(picture_data(three_colours(tmp_path)))
    with pytest.raises(ValueError, match=r"freeze_to: n must be a group's index.*got 1\.5"):
        learn.freeze_to(1.5)
    with pytest.raises(ValueError, match="bn_freeze: frozen must be True or False, got 'no'"):
        learn.bn_freeze("no")
    for name in (5, "a\0b", "a\nb"):
        with pytest.raises(ValueError, match="must be a plain file name"):
            learn.save(name)
    for n_aug in (-1, 1.5):
        with pytest.raises(ValueError, match="n_aug must be a whole number of at least 0"):
            learn.TTA(n_aug)


def test_sets_and_transforms_that_are_mixed_up(tmp_path):
    three_colours(tmp_path)
    tfms = picture_data(tmp_path).tfms
    with pytest.raises(ValueError, match=r"tfms must be \(training, validation\)"):
        ImageClassifierData.from_paths(tmp_path, tfms=tfms[::-1])
    with pytest.raises(ValueError, match="val_name='train' is the folder to train on"):
        ImageClassifierData.from_paths(tmp_path, tfms=tfms, val_name="train")


def test_arrays_come_in_pairs_and_classes_have_names_of_their_own(tmp_path):
    x, y = np.eye(6, dtype=np.float32), np.arange(6) % 3
    for wrong in (x, None, (x, y, 1), [x, y]):
        with pytest.raises(ValueError, match=r"val must be a pair \(x, y\)"):
            ImageClassifierData.from_arrays(tmp_path, (x, y), wrong)
    for names in (["a", "b", "a"], ["a", "", "b"]):
        with pytest.raises(ValueError, match="every class must have a name of its own"):
            ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), classes=names)
    with pytest.warns(UserWarning, match="bs=64"):
        assert ImageClassifierData.from_arrays(tmp_path, (x, y > 0), (x, y > 0)).classes == ["0", "1"]


def test_a_confusion_matrix_of_names_is_refused():
    with pytest.raises(ValueError, match=r"must be \[N\] class numbers"):
        confusion_matrix(["a", "b"], ["a", "a"], ["a", "b"])
