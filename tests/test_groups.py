"""Groups of images that belong together: in one set, and in one fold whenever rows are held out."""

import re
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
from helpers import TFMS, image_data, row_data, three_colours, tiny_learner, write_images

from fastclf import HeadLearner, ImageClassifierData, compare
from fastclf.cli import _parser
from fastclf.commands.data import read_data
from fastclf.data.sources.labels import Labels
from fastclf.errors import DataError, LabelError
from fastclf.learners import unfrozen_trial
from fastclf.models.archs import resnet18
from fastclf.training import folds
from fastclf.training.linear_heads import LinearSetting

CALLS = {
    "fine_tune": lambda learn: learn.fine_tune(),
    "sweep": lambda learn: learn.sweep(0.1, 1e-2, epochs=1),
    "cross_validate": lambda learn: learn.cross_validate(k=3, epochs=1),
    "audit": lambda learn: learn.audit(k=3),
    "learning_curve": lambda learn: learn.learning_curve(k=3),
}


def person(name):
    return int(re.search(r"(\d+)\.", name)[1]) // 4


@pytest.fixture
def flat(tmp_path):
    """Forty images in one folder, four of each of ten people."""
    return write_images(tmp_path, {".": 40})


@pytest.fixture
def dealt(monkeypatch):
    """The folds that are made, with the groups that they were made of."""
    found, original = [], folds._dealt

    def spy(k, strata, groups, seed):
        found.append((groups, original(k, strata, groups, seed)))
        return found[-1][1]

    monkeypatch.setattr(folds, "_dealt", spy)
    return found


def assert_not_divided(dealt, ds):
    assert dealt
    for groups, made in dealt:
        np.testing.assert_array_equal(groups, ds.groups)
        assert len({*zip(groups.tolist(), made.tolist(), strict=True)}) == len(set(groups.tolist()))
        assert len(set(made.tolist())) > 1


@pytest.mark.parametrize("call", CALLS)
def test_whatever_holds_rows_out_keeps_groups_together(tmp_path, rng, dealt, call):
    data = row_data(tmp_path, rng, n=330, groups=rng.integers(0, 12, 330))
    CALLS[call](HeadLearner(data))
    assert_not_divided(dealt, data.trn_ds)


def test_figures_of_rows_that_belong_together_are_not_those_of_memory(tmp_path, rng):
    """Rows of a group are nearly the same, and what its label is, nothing tells: a head can only remember."""
    group = np.repeat(np.arange(60), 5)
    x = rng.standard_normal((60, 20))[group] + 0.01 * rng.standard_normal((300, 20))
    y = rng.permutation(np.arange(60) % 2)[group]
    found = {}
    for groups in (None, group):
        sets = (x.astype(np.float32), y), (x[:10].astype(np.float32), np.arange(10) % 2)
        learn = HeadLearner(ImageClassifierData.from_arrays(tmp_path, *sets, classes=["a", "b"], groups=groups))
        validated = learn.cross_validate()
        found[groups is None] = validated["accuracy"]
        assert ("the true ones are wider" in repr(validated)) == (groups is not None)
    assert found[True] > 0.9
    assert found[False] < 0.75


def colours_of_fours(folder):
    """Images of three colours; four of a colour belong together."""
    return image_data(folder, sz=32, augs=(), groups=lambda name: (name.split("/")[0], person(name)))


def test_bodies_and_the_trial_of_all_layers_keep_groups_together(tmp_path, dealt, monkeypatch):
    folder = three_colours(tmp_path, n=20)
    shutil.rmtree(folder / "valid")
    data = colours_of_fours(folder)
    learn = tiny_learner(data, precompute=True, pretrained=True)
    monkeypatch.setattr(unfrozen_trial, "_fit", lambda learn, _: learn)
    unfrozen_trial.share_of_before(learn, LinearSetting(0.1, "common"))
    compare(data, [resnet18], k=2, pretrained=False)
    assert len(dealt) == 2
    assert_not_divided(dealt, data.trn_ds)


def test_all_rows_of_one_group_are_trained_on_without_a_choice(tmp_path, rng, capsys):
    learn = HeadLearner(row_data(tmp_path, rng, groups=["me"] * 60))
    learn.fine_tune()
    assert "all training rows are one group" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no class has two rows or groups"):
        learn.sweep()
    with pytest.raises(ValueError, match="at most the number of groups, 1"):
        learn.audit()


def test_few_groups_may_fill_fewer_folds(rng):
    """Any groups make two folds or more, numbered without a gap."""
    for _ in range(300):
        n = int(rng.integers(4, 40))
        groups, y = rng.integers(0, rng.integers(2, 8), n), rng.integers(0, 2, n)
        labels = Labels(y, ["a", "b"])
        most = folds.most_folds(labels, groups)
        if most > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = folds.make_folds(labels, most, groups=groups, seed=int(rng.integers(100)))
            assert sorted({*made.tolist()}) == list(range(1 + made.max()))
            assert 2 <= 1 + made.max() <= most
            assert len({*zip(groups.tolist(), made.tolist(), strict=True)}) == len({*groups.tolist()})


@pytest.mark.parametrize("split", [None, "given"])
def test_a_column_of_a_table(flat, rng, split, capsys):
    names = [f"{i:03d}.png" for i in rng.permutation(40)]
    frame = pd.DataFrame({"file": names, "who": [f"p{person(name)}" for name in names]})
    frame["label"] = [f"class{person(name) % 2}" for name in names]
    if split:
        frame["split"] = ["valid" if person(name) < 2 else "train" for name in names]
    columns = {"fn_col": "file", "label_col": "label", "groups": "who", "split_col": split and "split"}
    frame.to_csv(flat / "table.csv", index=False)
    for make, table in ((ImageClassifierData.from_csv, "table.csv"), (ImageClassifierData.from_df, frame)):
        data = make(flat, ".", table, 8, TFMS, **columns)
        assert "groups in column 'who'" in capsys.readouterr().out
        for ds in (data.trn_ds, data.val_ds):
            assert len({*zip(ds.groups.tolist(), map(person, ds.fnames), strict=True)}) == len({*ds.groups.tolist()})
        assert not {*data.trn_ds.groups.tolist()} & {*data.val_ds.groups.tolist()}
        assert 4 <= len(data.val_ds) <= 12
    typed = ["check", str(flat), "--csv", str(flat / "table.csv"), "--fn-col", "file", "--label-col", "label"]
    typed += ["--group-col", "who", *(["--split-col", "split"] if split else [])]
    own = read_data(_parser().parse_args(typed), TFMS)
    np.testing.assert_array_equal(own.trn_ds.groups, data.trn_ds.groups)


@pytest.mark.parametrize("name", ["lesion_id", "PatientID", "seq", "color"])
def test_a_column_that_seems_to_group_is_mentioned(flat, capsys, name):
    """The classic leak: images of one patient in train and in valid."""
    names = [f"{i:03d}.png" for i in range(40)]
    frame = pd.DataFrame({"file": names, "label": ["a", "b"] * 20, name: list(map(person, names)), "id": range(40)})
    columns = {"fn_col": "file", "label_col": "label"}
    ImageClassifierData.from_df(flat, ".", frame, 8, TFMS, **columns)
    mentioned = f"if images of one {name!r} are alike, groups={name!r} keeps them in one set"
    assert (mentioned in capsys.readouterr().out) == (name != "color")
    ImageClassifierData.from_df(flat, ".", frame, 8, TFMS, groups=name, **columns)
    frame[name] = range(40)  # each image by itself
    ImageClassifierData.from_df(flat, ".", frame, 8, TFMS, **columns)
    assert "keeps them in one set" not in capsys.readouterr().out


def test_several_labels_and_numbers_have_groups_too(flat):
    names = [f"{i:03d}.png" for i in range(40)]
    frame = pd.DataFrame({"file": names, "label": ["a b", "b c", "a", "c"] * 10, "who": list(map(person, names))})
    data = ImageClassifierData.from_df(flat, ".", frame, 8, TFMS, fn_col="file", label_col="label", groups="who")
    assert data.is_multi
    assert not {*data.trn_ds.groups.tolist()} & {*data.val_ds.groups.tolist()}
    frame["label"] = np.linspace(0, 1, 40)
    columns = {"fn_col": "file", "label_col": "label", "groups": "who", "continuous": True}
    data = ImageClassifierData.from_df(flat, ".", frame, 8, TFMS, **columns)
    assert not {*data.trn_ds.groups.tolist()} & {*data.val_ds.groups.tolist()}


def test_what_is_no_group_is_named(flat, tmp_path, rng):
    names = [f"{i:03d}.png" for i in range(40)]
    frame = pd.DataFrame({"file": names, "label": ["a", "b"] * 20, "who": ["x", "y", "z", "w"] * 9 + ["v"] * 3 + [""]})
    columns = {"fn_col": "file", "label_col": "label"}
    with pytest.raises(LabelError, match=r"column 'who' of the groups is empty in row 39"):
        ImageClassifierData.from_df(flat, ".", frame, 8, TFMS, groups="who", **columns)
    with pytest.raises(LabelError, match="fn_col, label_col, split_col and groups must name different columns"):
        ImageClassifierData.from_df(flat, ".", frame, 8, TFMS, groups="label", **columns)
    with pytest.raises(DataError, match=r"no column 'whom' \(groups\).*Did you mean 'who'"):
        ImageClassifierData.from_df(flat, ".", frame, 8, TFMS, groups="whom", **columns)
    with pytest.raises(ValueError, match="groups must have one entry per training row, 60, got 59"):
        row_data(tmp_path, rng, groups=range(59))
    with pytest.raises(ValueError, match="groups must have an entry for every row, got None in row 3"):
        row_data(tmp_path, rng, groups=[0, 1, 2, None] * 15)


def test_a_pattern_of_names_on_the_command_line(tmp_path):
    folder = write_images(tmp_path, {"train/red": 40, "train/blue": 40})
    parse = _parser().parse_args
    for words in ([], ["--name-re", "(red|blue)"]):
        data = read_data(parse(["check", str(folder), "--group-re", r"0(\d)\d", *words]), TFMS)
        tens = [{name[-6] for name in ds.fnames} for ds in (data.trn_ds, data.val_ds)]
        assert sorted(map(len, tens)) == [1, 3]
        assert data.val_ds.is_grouped
        assert not tens[0] & tens[1]
    for words, message in (
        (["--group-col", "who"], "--group-col cannot be used with folders of images: .*Pass --group-re"),
        (["--csv", "t.csv", "--group-re", "(.)"], "--group-re cannot be used with a table .*Pass --group-col"),
        (["--group-re", "image"], "--group-re must have one group in parentheses, what an image belongs to, got 0"),
        (["--group-re", "photo(.)"], r"--group-re: 'photo\(.\)' does not match 'blue/000.png'. Fix it"),
    ):
        with pytest.raises((ValueError, LabelError), match=message):
            read_data(parse(["check", str(folder), *words]), TFMS)


def test_an_evaluation_of_groups_says_that_its_intervals_are_narrow(tmp_path, rng):
    folder = write_images(tmp_path, {"train/red": 30, "train/blue": 30})
    for groups, said in ((person, True), (lambda name: name, False)):
        learn = tiny_learner(image_data(folder, groups=groups))
        assert ("the true ones are wider" in repr(learn.evaluate())) == said
