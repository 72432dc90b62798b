"""Arguments that look right and are not: said with their name, before anything is trained or written."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import image_data, row_data, three_colours, tiny_learner
from torch import nn

from fastclf import (
    Callback,
    ConvLearner,
    HeadLearner,
    ImageClassifierData,
    Learner,
    accuracy,
    confusion_matrix,
    resnet18,
)
from fastclf.data.options import as_device

WRONG_FITS = {
    "half a cycle": ({"n_cycle": 1.5}, r"n_cycle must be a whole number of at least 1, got 1\.5"),
    "a text": ({"n_cycle": "3"}, "n_cycle must be a whole number"),
    "one callback": ({"callbacks": Callback()}, "callbacks must be a list of Callback objects.*brackets"),
    "a class": ({"callbacks": [Callback]}, "callbacks must be a list of Callback objects"),
    "one number": ({"cycle_len": 1, "use_clr": 10}, r"use_clr must be \(div, cut_div\), got 10"),
    "one of two": ({"cycle_len": 1, "use_clr_beta": (10,)}, r"use_clr_beta must be \(div, pct"),
    "no cycles to save": ({"cycle_save_name": "c"}, "cycle_save_name needs cycle_len"),
    "cycles of part epochs": (
        {"n_cycle": 2, "cycle_len": 1, "cycle_mult": 1.5, "cycle_save_name": "c"},
        r"cycles of whole epochs, but cycle_len=1 and cycle_mult=1\.5",
    ),
    "an empty name": ({"best_save_name": ""}, "must be a plain file name"),
}
NO_NUMBERS = ("1", b"1", [[1]], {"a": 1}, object(), slice(1e-4, 1e-2), float("nan"))


@pytest.mark.parametrize("kind", WRONG_FITS)
def test_fit_names_the_argument(kind, tmp_path, rng):
    given, message = WRONG_FITS[kind]
    with pytest.raises(ValueError, match=message):
        HeadLearner(row_data(tmp_path, rng)).fit(1e-2, **({"n_cycle": 1} | given))


@pytest.mark.parametrize(
    "name", ["lrs", "n_cycle", "wds", "cycle_len", "cycle_mult", "use_clr", "use_clr_beta", "use_wd_sched", "resume"]
)
def test_fit_takes_numbers_and_flags_alone(name, tmp_path, rng, capsys):
    learn = HeadLearner(row_data(tmp_path, rng))
    for wrong in NO_NUMBERS:
        given = {"lrs": 1e-2, "n_cycle": 1, "state_name": "s"}
        given |= {"cycle_len": 1} if name in ("cycle_mult", "use_clr", "use_clr_beta") else {}
        given[name] = (10, wrong) if name in ("use_clr", "use_clr_beta") else wrong
        if name in ("lrs", "wds") and wrong in ("1", b"1"):
            continue  # numpy reads the number
        with pytest.raises(ValueError, match=f"{name} must be"):
            learn.fit(**given)
    assert "epoch" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["start_lr", "end_lr", "wds"])
def test_so_does_lr_find(name, tmp_path, rng):
    for wrong in ([[1]], {"a": 1}, object(), float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{name} must be"):
            HeadLearner(row_data(tmp_path, rng)).lr_find(**{name: wrong})


@pytest.mark.parametrize("clip", [0, -1, "5", float("nan"), [1]])
def test_clip(clip, tmp_path, rng):
    with pytest.raises(ValueError, match="clip must be a positive number"):
        HeadLearner(row_data(tmp_path, rng), clip=clip).fit(1e-2, 1)


@pytest.mark.parametrize("weights", [{"class0": 1}, ["a", "b", "c"], 3, [1, 2], [0, 0, 0], [1, -1, 1], object()])
def test_class_weights(weights, tmp_path, rng):
    with pytest.raises(ValueError, match="class_weights must be 3 numbers"):
        HeadLearner(row_data(tmp_path, rng), class_weights=weights)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", 2**64])
def test_seeds(seed, tmp_path, rng):
    with pytest.raises(ValueError, match="seed must be an integer"):
        HeadLearner(row_data(tmp_path, rng), seed=seed)
    with pytest.raises(ValueError, match="seed must be an integer"):
        Learner.from_model_data(nn.Linear(10, 3), row_data(tmp_path, rng), seed=seed)


@pytest.mark.parametrize("wrong", [None, "folder", [1], resnet18])
def test_what_is_no_data(wrong, tmp_path, rng):
    learn = tiny_learner(image_data(three_colours(tmp_path)))
    for call in (
        HeadLearner,
        lambda data: ConvLearner.pretrained(resnet18, data, pretrained=False),
        lambda data: Learner.from_model_data(nn.Linear(10, 3), data),
        learn.set_data,
    ):
        with pytest.raises(ValueError, match=f"data must be an ImageClassifierData, got a {type(wrong).__name__}"):
            call(wrong)
    with pytest.raises(ValueError, match="dl must be a loader"):
        learn.predict_dl(wrong)


def test_learners_of_images(tmp_path):
    data = image_data(three_colours(tmp_path))
    for given in ({"act_dtype": np.float32}, {"act_dtype": "int8"}, {"views": 0}, {"views": 2.0}, {"views": True}):
        with pytest.raises(ValueError, match=f"ConvLearner: {next(iter(given))} must be"):
            tiny_learner(data, **given)
    assert tiny_learner(data, views=np.int64(1)).views == 1
    with pytest.raises(ValueError, match=r"model must be an nn\.Module, got <class"):
        Learner(data, nn.Linear, [])


@pytest.mark.parametrize(
    ("crit", "why"),
    [
        (torch.nn.MSELoss(reduction="none"), None),
        (torch.nn.BCELoss(), "Using a target size"),
        (torch.nn.CrossEntropyLoss(weight=torch.ones(7)), "weight tensor"),
        (torch.nn.CrossEntropyLoss(reduction="none"), r"gives \[\d+\]\. Take its mean"),
        (lambda out, y: 1.0, "gives a float"),
        (lambda out, y: (out.sum(), y), "gives a tuple"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_that_does_not_fit_is_named(crit, why, tmp_path, rng):
    name = getattr(crit, "__name__", type(crit).__name__)
    with pytest.raises(ValueError, match=rf"(?s)crit '{name}' must give one number for predictions.*{why or ''}"):
        HeadLearner(row_data(tmp_path, rng), crit=crit).fit(1e-2, 1)


class Gives(nn.Module):
    """The user's own network, whose forward gives more than predictions, or takes more than images."""

    def __init__(self, given):
        super().__init__()
        self.layer, self.given = nn.Linear(4, 3), given

    def forward(self, x):
        return self.given(self.layer(x))


OUTPUTS = {
    "a tuple": lambda out: (out, out),
    "a list": lambda out: [out],
    r"a dict with logits, features": lambda out: {"logits": out, "features": out},
    "a SimpleNamespace": lambda out: SimpleNamespace(logits=out),
    "a NoneType": lambda out: None,
    "a ndarray": lambda out: out.detach().numpy(),
}


@pytest.mark.parametrize("what", OUTPUTS)
def test_a_model_that_gives_no_tensor_is_named(what, tmp_path, rng):
    data = row_data(tmp_path, rng, f=4)
    learn = Learner.from_model_data(Gives(OUTPUTS[what]), data, crit=torch.nn.CrossEntropyLoss())
    for call in (lambda: learn.fit(1e-2, 1), lambda: learn.lr_find(), learn.predict):
        with pytest.raises(ValueError, match=rf"model must give .* one tensor, .* got {what} for a batch \[\d+, 4\]"):
            call()
    with pytest.raises(ValueError, match=rf"model must give \[B, 3\].*got {what.split(' with')[0]} for B = 2"):
        Learner.from_model_data(Gives(OUTPUTS[what]), data).fit(1e-2, 1)


def test_a_model_that_takes_something_else_is_named(tmp_path, rng):
    data = row_data(tmp_path, rng, f=4)

    class TakesTwo(Gives):
        def forward(self, x, mask):
            return self.layer(x)

    def fails(out):
        raise KeyError("mask")

    for model, why in ((TakesTwo(None), "missing 1 required positional argument"), (Gives(fails), "mask")):
        with pytest.raises(ValueError, match=rf"model must take batches \[B, 4\]: .*{why}"):
            Learner.from_model_data(model, data).fit(1e-2, 1)
    with pytest.raises(ValueError, match=r"Learner: model has lazy layers without weights. Send a batch through it"):
        Learner.from_model_data(nn.Sequential(nn.LazyLinear(3), nn.LogSoftmax(1)), data)


def test_devices(tmp_path, rng, monkeypatch):
    for wrong in ("mps", "meta", torch.device("xpu", 1), "hpu"):
        with pytest.raises(ValueError, match=r"device must be 'cpu' or 'cuda' \(an NVIDIA GPU\), got"):
            row_data(tmp_path, rng, device=wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert as_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="device must be there, got cuda:2: the last one is cuda:1"):
        as_device("cuda:2")


@pytest.mark.parametrize("crit", ["nll", 3, torch.nn.CrossEntropyLoss])
def test_what_is_no_loss(crit, tmp_path, rng):
    made = r"Make one: CrossEntropyLoss\(\)" if isinstance(crit, type) else ""
    with pytest.raises(ValueError, match=f"crit must be a function of .*{made}"):
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
    learn = tiny_learner(image_data(three_colours(tmp_path)))
    with pytest.raises(ValueError, match=r"freeze_to: n must be a group's index.*got 1\.5"):
        learn.freeze_to(1.5)
    with pytest.raises(ValueError, match="bn_freeze: frozen must be True or False, got 'no'"):
        learn.bn_freeze("no")
    for name in (5, "a\0b", "a\nb"):
        with pytest.raises(ValueError, match="must be a plain file name"):
            learn.save(name)
    for wrong in ("no", 1, None):
        for call in (learn.predict, learn.predict_with_targs, lambda is_test: learn.TTA(1, is_test)):
            with pytest.raises(ValueError, match="is_test must be True or False"):
                call(wrong)
        with pytest.raises(ValueError, match="precompute must be True or False"):
            learn.precompute = wrong
    for n_aug in (-1, 1.5):
        with pytest.raises(ValueError, match="n_aug must be a whole number of at least 0"):
            learn.TTA(n_aug)


def test_sets_and_transforms_that_are_mixed_up(tmp_path):
    three_colours(tmp_path)
    tfms = image_data(tmp_path).tfms
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
    assert ImageClassifierData.from_arrays(tmp_path, (x, y > 0), (x, y > 0)).classes == ["0", "1"]


@pytest.mark.parametrize("wrong", [["a", "b"], np.array(["a", "b"], object), [None, 1], np.array([b"a", b"b"])])
def test_a_confusion_matrix_of_names_is_refused(wrong):
    for pair in ((wrong, wrong), ([0, 1], wrong), (wrong, [0, 1])):
        with pytest.raises(ValueError, match=r"must be \[N\] class numbers"):
            confusion_matrix(*pair, ["a", "b"])
