"""The whole lesson, every call in its order, on photographs of cats and dogs: a test, and a script.

``python tests/test_lesson.py FOLDER`` runs it on a folder with train/, valid/ and test/, which it writes into.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from devices import on_both_devices

import fastclf as fc
from fastclf import (
    ConvLearner,
    HeadLearner,
    ImageClassifierData,
    accuracy,
    accuracy_np,
    confusion_matrix,
    efficientnet_lite0,
    get_cv_idxs,
    open_image,
    plot_confusion_matrix,
    tfms_from_model,
    transforms_side_on,
)

ARCH, SZ, BS = efficientnet_lite0, 96, 20


def get_data(path, sz, bs):
    tfms = tfms_from_model(ARCH, sz, aug_tfms=transforms_side_on, max_zoom=1.1)
    return ImageClassifierData.from_paths(path, bs=bs, tfms=tfms)


def weights_of(learn):
    return {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}


def changed(learn, before, part):
    now = learn.model.state_dict()
    return any(not torch.equal(now[name], before[name]) for name in before if name.startswith(part))


def sgdr_reference(nb, cycles, mult):
    """Rates for lr0 = 1, from the formula as the lesson states it."""
    rates = []
    for cycle in range(cycles):
        length = nb * mult**cycle
        rates += [0.5 * (1 + np.cos(np.pi * ci / length)) for ci in range(length)]
    return [0.01 if it < nb / 20 else rate for it, rate in enumerate(rates)]


def lesson(path):
    data = get_data(path, SZ, BS)
    assert (data.classes, data.c, data.sz, data.bs, data.path) == (["cats", "dogs"], 2, SZ, BS, path)
    n, n_valid, n_test = (len(ds) for ds in (data.trn_ds, data.val_ds, data.test_ds))
    assert data.trn_ds.fnames[0] == "train/cats/cat.1000.jpg"
    nb = len(data.trn_dl)

    # A quick look: the head on cached activations.
    learn = ConvLearner.pretrained(ARCH, data, precompute=True, metrics=[accuracy])
    val_loss, acc = learn.fit(0.01, 2)
    assert (val_loss, acc) == (learn.sched.val_losses[-1], learn.sched.rec_metrics[-1][0])
    assert acc > 0.85

    # Choosing a rate leaves everything as it was.
    before = weights_of(learn)
    learn.lr_find()
    for draw in (learn.sched.plot_lr, learn.sched.plot, learn.sched.plot_loss):
        assert draw().lines
    assert not changed(learn, before, "")

    # Augmentation, with the body frozen.
    learn.precompute = False
    learn.fit(1e-2, 2, cycle_len=1)
    assert learn.sched.lrs == pytest.approx([1e-2 * r for r in sgdr_reference(nb, 2, 1)], abs=1e-6)
    assert not changed(learn, before, "body.")
    assert changed(learn, before, "head.")

    learn.save("96_lastlayer")
    saved = learn.predict()
    learn.load("96_lastlayer")
    np.testing.assert_array_equal(learn.predict(), saved)

    # All layers, one rate per group, cycles of 1, 2 and 4 epochs.
    learn.unfreeze()
    learn.bn_freeze(True)
    before = weights_of(learn)
    rates = np.array([1e-4, 1e-3, 1e-2])
    learn.fit(rates, 3, cycle_len=1, cycle_mult=2)
    assert len(learn.sched.val_losses) == 7
    assert learn.sched.lrs == pytest.approx([1e-2 * r for r in sgdr_reference(nb, 3, 2)], abs=1e-6)
    assert changed(learn, before, "body.first.")
    assert changed(learn, before, "body.second.")
    assert not any(changed(learn, before, name) for name in before if "running" in name)
    learn.bn_freeze(False)

    # Only some of the groups.
    learn.freeze_to(1)
    before = weights_of(learn)
    learn.fit(rates, 1)
    assert not changed(learn, before, "body.first.")
    assert changed(learn, before, "body.second.")

    tuned = learn.predict()
    learn.save("96_all")
    learn.load("96_lastlayer")
    np.testing.assert_array_equal(learn.predict(), saved)
    learn.load("96_all")
    np.testing.assert_array_equal(learn.predict(), tuned)

    # Larger images, from smaller copies on disk.
    learn.freeze()
    learn.set_data(get_data(path, 128, BS).resize(160, "tmp"))
    assert learn.data.sz == 128
    learn.fit(1e-3, 1)
    learn.set_data(data)

    # What it has learned.
    log_preds, y = learn.predict_with_targs(is_test=False)
    np.testing.assert_array_equal(y, data.val_y)
    log_preds, y = learn.TTA(n_aug=4, is_test=False)
    assert log_preds.shape == (5, n_valid, 2)
    probs = np.mean(np.exp(log_preds), 0)
    assert accuracy_np(probs, y) > 0.85
    cm = confusion_matrix(y, probs.argmax(1))
    assert cm.sum() == n_valid
    assert plot_confusion_matrix(cm, data.classes) is not None
    test_preds, zeros = learn.TTA(is_test=True)
    assert test_preds.shape == (5, n_test, 2)
    assert not zeros.any()

    # One image of one's own, a loader, a table of layers.
    _, val_tfms = data.tfms
    fn = path / data.val_ds.fnames[0]
    one = learn.predict_array(val_tfms(open_image(fn))[None])
    np.testing.assert_allclose(one[0], learn.predict()[0], atol=1e-3)
    np.testing.assert_array_equal(learn.predict_dl(data.val_dl), learn.predict())
    assert learn.predict_dl(data.fix_dl).shape == (n, 2)
    learn.summary()

    # A head on activations that came from elsewhere.
    learn.precompute = True
    rows, vrows = learn.data.trn_ds.rows, learn.data.val_ds.rows
    head = HeadLearner(ImageClassifierData.from_arrays(path, (rows, data.trn_y), (vrows, data.val_y), bs=64))
    assert head.fit(1e-2, 3)[1] > 0.8
    return learn


@on_both_devices
def test_every_call_in_the_order_of_the_lesson(few_catsdogs):
    lesson(few_catsdogs)


def test_cross_validation_indices():
    idxs = get_cv_idxs(10222)
    assert (len(idxs), idxs[:5].tolist()) == (2044, [2882, 4514, 7717, 33, 4924])


if __name__ == "__main__":
    lesson(Path(sys.argv[1]))
    print(f"fastclf {fc.__version__}: the lesson is complete")
