"""What a notebook shows of data, learners and the scores of a fit: a few lines of plain text, without any work."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from helpers import image_data, row_data, three_colours, tiny_learner, write_images

from fastclf import HeadLearner, ImageClassifierData, Learner, Options
from fastclf.data.data_loaders import DataLoaders
from fastclf.models.head import Head
from fastclf.training.scores import FitScores


def test_data(tmp_path):
    data = image_data(three_colours(tmp_path, n=12, n_valid=6, n_test=5))
    assert repr(data).splitlines() == [
        f"ImageClassifierData: images of 16 x 16 in batches of 8, {tmp_path}",
        "  train         36 rows",
        "  valid         18 rows",
        "  test           5 rows without labels",
        "  3 classes; in train: blue 12, green 12, red 12",
    ]


def test_data_of_many_classes_are_shortened_and_most_come_first(tmp_path, rng):
    x, y = rng.random((230, 4), np.float32), np.repeat(np.arange(20), np.arange(2, 22))
    data = ImageClassifierData.from_arrays(tmp_path, (x[: len(y)], y), (x[:20], np.arange(20)), 8)
    assert repr(data).splitlines()[-1].startswith("  20 classes; in train: 19 21, 18 20, ")
    assert repr(data).endswith(" 8 10, 8 more")


def test_several_labels_and_numbers(tmp_path, rng):
    x = rng.random((6, 4), np.float32)
    several = np.eye(3)[[0, 1, 2, 0, 0, 1]]
    several[0, 1] = 1
    data = ImageClassifierData.from_arrays(tmp_path, (x, several), (x, several), 2)
    assert repr(data).splitlines()[-1] == "  3 classes, several of them per row; in train: 0 3, 1 3, 2 1"
    data = ImageClassifierData.from_arrays(tmp_path, (x, several), (x, several), 2, continuous=True)
    assert repr(data).splitlines()[-1] == "  3 number(s) to predict"
    assert "3 number(s)" in repr(HeadLearner(data))


def test_names_with_control_characters_stay_on_their_line(tmp_path, rng):
    x = rng.random((4, 4), np.float32)
    data = ImageClassifierData.from_arrays(
        tmp_path, (x, [0, 1, 0, 1]), (x, [0, 1, 0, 1]), 2, classes=["a\n<b>", "c\x1b"]
    )
    assert repr(data).splitlines()[-1] == "  2 classes; in train: a\\n<b> 2, c\\x1b 2"


def test_a_learner(tmp_path):
    learn = tiny_learner(image_data(three_colours(tmp_path)))
    lines = [" ".join(line.split()) for line in repr(learn).splitlines()]
    assert lines == [
        "ConvLearner: test:tiny, images of 16 x 16, 3 classes",
        "group 0 body.first 116 parameters, frozen",
        "group 1 body.second 228 parameters, frozen",
        "group 2 head 171 parameters, trains",
        "head 12 -> 8 -> 3, dropout 0.2, 0.2",
        "precompute off",
        "loss NLL",
        "optimizer SGDR",
        "metrics accuracy",
    ]
    learn.precompute = True
    assert "on: the head trains on cached activations" in repr(learn)
    learn.unfreeze()
    assert repr(learn).count("parameters, trains") == 3
    learn.model.body.first.conv1.weight.requires_grad_(False)
    assert "116 parameters, 8 of them train" in " ".join(repr(learn).split())


def test_showing_a_learner_changes_nothing(tmp_path):
    learn = tiny_learner(image_data(three_colours(tmp_path)), precompute=True)
    learn.head.layers[0].weight.requires_grad_(False)
    before = {name: (p.requires_grad, p.clone()) for name, p in learn.model.named_parameters()}
    modes = [module.training for module in learn.model.modules()]
    state = torch.get_rng_state()
    repr(learn)
    for name, p in learn.model.named_parameters():
        assert p.requires_grad == before[name][0]
        assert torch.equal(p, before[name][1])
    assert [module.training for module in learn.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_learners_without_a_network_of_ours(tmp_path, rng):
    data = row_data(tmp_path, rng)
    assert "group 0 model" in " ".join(repr(HeadLearner(data)).split())
    shown = repr(HeadLearner(data, opt_fn=partial(torch.optim.SGD, momentum=0.9)))
    assert "optimizer SGD(momentum=0.9) " in " ".join(shown.split())
    shown = repr(Learner.from_model_data(Head(10, 3), data, metrics=[]))
    assert shown.startswith("Learner: Head, activations, 3 classes")
    assert shown.splitlines()[-1].split() == ["metrics", "none"]


class Printer:
    """The part of IPython's that is used."""

    def text(self, text):
        self.shown = text


def test_scores_of_a_fit(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    scores = learn.fit(1e-2, 1)
    assert isinstance(scores, list)
    assert scores == learn.sched.last() == list(copy.deepcopy(scores))
    assert scores.names == ["val_loss", "accuracy"]
    printer = Printer()
    FitScores([0.25, float("nan")], ["val_loss", "recall"])._repr_pretty_(printer, False)
    assert printer.shown == "val_loss 0.25, recall nan"
    scores._repr_pretty_(printer, False)
    assert printer.shown == f"val_loss {scores[0]:.6g}, accuracy {scores[1]:.6g}"


def test_what_a_fit_recorded(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    assert repr(learn.sched) == "Recorder: nothing trained yet"
    loss, _ = learn.fit(1e-2, 2)
    assert repr(learn.sched).startswith(f"Recorder: 8 batches, training loss {learn.sched.losses[-1]:.4f}, valid")
    assert f"validation loss {loss:.4f} after epoch 2. Draw it: plot()" in repr(learn.sched)
    learn.lr_find()
    assert "validation" not in repr(learn.sched)


@pytest.mark.parametrize("make", ["from_paths", "from_name_re", "from_name_func", "from_csv", "from_arrays"])
def test_help_shows_each_option(make):
    text = getattr(ImageClassifierData, make).__doc__
    assert "see `Options`" not in text
    for name in Options.__annotations__:
        assert f"\n    {name}: " in text
        assert name in DataLoaders.__init__.__annotations__


def test_targets_of_a_labelled_test_set(tmp_path):
    parts = {f"{part}/{name}": n for part, n in (("train", 9), ("valid", 4), ("test", 3)) for name in ("blue", "red")}
    data = image_data(write_images(tmp_path, parts), test_with_labels=True)
    learn = tiny_learner(data)
    for on in (False, True):
        learn.precompute = on
        preds, y = learn.predict_with_targs(is_test=True)
        assert y.tolist() == [0] * 3 + [1] * 3
        assert preds.shape == (6, 2)
        views, y = learn.TTA(n_aug=2, is_test=True)
        assert y.tolist() == [0] * 3 + [1] * 3
        assert views.shape == (3, 6, 2)
