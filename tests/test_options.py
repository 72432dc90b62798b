"""No option is ignored: each kind of data takes its own, and any other one is refused by name."""

from pathlib import Path

import pytest
from helpers import three_colours

import fastclf
from fastclf import ImageClassifierData
from fastclf.cli import _parser, main
from fastclf.commands.data import read_data
from fastclf.predictor import Classifier

TYPED = {
    "--val": "v",
    "--test": "t",
    "--csv": "t.csv",
    "--folder": "f",
    "--suffix": ".png",
    "--fn-col": "1",
    "--label-col": "l",
    "--image-col": "i",
    "--name-re": "(.)",
    "--split-col": "s",
    "--group-col": "g",
    "--group-re": "(.)",
    "--missing": "skip",
    "--allow-outside": None,
}
TAKEN = {  # how DATA ends, and what switches to this kind -> the call, and each option's argument there
    ("", "--csv"): (
        "from_csv",
        {
            "--csv": Path("t.csv"),
            "--folder": "f",
            "--suffix": (".png", "suffix"),
            "--fn-col": (1, "fn_col"),
            "--label-col": ("l", "label_col"),
            "--split-col": ("s", "split_col"),
            "--group-col": ("g", "groups"),
            "--missing": ("skip", "missing"),
            "--allow-outside": (True, "allow_outside"),
        },
    ),
    ("", "--name-re"): (
        "from_name_re",
        {
            "--name-re": ("(.)", "pat"),
            "--folder": ("f", "folder"),
            "--group-re": (None, "groups"),
            "--allow-outside": (True, "allow_outside"),
        },
    ),
    ("", None): ("from_paths", {"--group-re": (None, "groups"), "--allow-outside": (True, "allow_outside")}),
    ("/a.tar", None): (
        "from_shards",
        {
            "--val": ("v", "val"),
            "--test": ("t", "test"),
            "--label-col": ("l", "label"),
            "--image-col": ("i", "image"),
            "--group-re": (None, "groups"),
        },
    ),
}
COLUMNS = {
    "--val": ("v", "val"),
    "--test": ("t", "test"),
    "--label-col": ("l", "label_col"),
    "--image-col": ("i", "image_col"),
    "--group-col": ("g", "groups"),
}
TAKEN |= {("/a.parquet", None): ("from_parquet", COLUMNS), ("/hf", None): ("from_hf", COLUMNS)}
COMMANDS = ("train", "check", "audit", "sweep", "compare", "curve")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = three_colours(tmp_path_factory.mktemp("options") / "data", 1, 1, 1)
    for name in ("a.tar", "a.parquet"):
        (root / name).touch()
    (root / "hf").mkdir()
    (root / "hf" / "dataset_dict.json").touch()
    return root


def typed(option):
    return [option] if TYPED[option] is None else [option, TYPED[option]]


@pytest.mark.parametrize("kind", TAKEN, ids=lambda kind: "".join(filter(None, kind)))
def test_an_option_is_taken_or_refused(data, kind, monkeypatch):
    ending, switch = kind
    call, taken = TAKEN[kind]
    made = []
    for name in ("from_csv", "from_name_re", "from_paths", "from_shards", "from_parquet", "from_hf"):
        monkeypatch.setattr(
            ImageClassifierData, name, lambda *given, _name=name, **named: made.append((_name, given, named))
        )
    for k, option in enumerate(TYPED):
        if option == "--csv" and switch != "--csv":  # switches to a table
            continue
        if option == "--name-re" and switch is None:
            continue
        command = COMMANDS[k % len(COMMANDS)]
        words = [*(typed(switch) if switch and switch != option else []), *typed(option)]
        archs = ["resnet34"] if command == "compare" else []
        parsed = _parser([command]).parse_args([command, f"{data}{ending}", *archs, *words])
        if option not in taken:
            with pytest.raises(ValueError, match=f"{option} cannot be used with"):
                read_data(parsed, None)
            continue
        read_data(parsed, None)
        name, given, named = made.pop()
        assert name == call
        if isinstance(taken[option], tuple):
            value, argument = taken[option]
            assert named[argument] == value or value is None
        else:
            assert taken[option] in given
    assert made == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split-col", "s"], "--split-col cannot be used with folders of images: it is for a table (--csv)."),
        (["--name-re", "(.)", "--csv", "t.csv"], "--name-re cannot be used with a table (--csv)."),
        (
            ["--group-col", "g"],
            "--group-col cannot be used with folders of images: it is for a table (--csv), parquet files, a Hugging "
            "Face data set. Pass --group-re.",
        ),
    ],
)
def test_what_takes_a_refused_option_is_said(data, words, message, capsys):
    assert main(["check", str(data), *words]) == 1
    assert capsys.readouterr().err == f"fastclf check: {message}\n"


SMALL = {  # command, DATA, options -> the refused one
    "eval, folders": (["eval", "m", ""], ["--suffix", "--folder", "--fn-col", "--label-col", "--image-col"]),
    "eval, a table": (["eval", "m", "", "--csv", "t.csv"], ["--image-col"]),
    "eval, archives": (["eval", "m", "/a.tar"], ["--suffix", "--folder", "--fn-col"]),
    "predict, folders": (["predict", "m", ""], ["--suffix", "--folder", "--fn-col", "--image-col"]),
    "predict, files": (["predict", "m", "/a.png", "b.png"], ["--suffix", "--folder", "--fn-col", "--image-col"]),
    "predict, a table": (["predict", "m", "", "--csv", "t.csv"], ["--image-col"]),
    "predict, parquet": (["predict", "m", "/a.parquet"], ["--suffix", "--folder", "--fn-col"]),
}


@pytest.mark.parametrize("case", SMALL)
def test_eval_and_predict_refuse_as_well(data, case, capsys, monkeypatch):
    monkeypatch.setattr(fastclf.predictor, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    (command, model, ending, *more), refused = SMALL[case]
    for option in refused:
        assert main([command, model, f"{data}{ending}", *more, *typed(option)]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"fastclf {command}: {option} cannot be used with")
        assert command == "eval" or "--name-re" not in err  # which predict does not have


def test_eval_passes_on_what_a_table_takes(data, monkeypatch):
    class SeenError(Exception):
        pass

    found = {}

    def evaluate(_, x, **named):
        found.update(named)
        raise SeenError

    monkeypatch.setattr(fastclf.predictor, "load", lambda *_, **__: Classifier.__new__(Classifier))
    monkeypatch.setattr(Classifier, "evaluate", evaluate)
    options = ["--csv", "--folder", "--suffix", "--fn-col", "--label-col"]
    with pytest.raises(SeenError):
        main(["eval", "m", str(data), *(word for option in options for word in typed(option))])
    assert found == {
        **{"csv": Path("t.csv"), "folder": "f", "suffix": ".png", "fn_col": 1, "label_col": "l"},
        **{"batch_size": 64, "on_bad": "raise"},
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "m", "x.png", "--json", "--out", "p.csv"], "--json and --out exclude each other"),
        (["train", "x", "--unfreeze", "0", "--aug", "basic"], "--aug has no effect"),
        (["train", "x", "--epochs", "2", "--aug", "side_on"], "--aug has no effect"),
    ],
)
def test_options_of_one_command_that_do_not_go_together(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["--unfreeze", "2"], ["--no-precompute"], ["--epochs", "2", "--tta"], ["--unfreeze", "0", "--tta"]]
)
def test_augmentations_can_be_chosen_where_images_are_read(words, tmp_path, capsys):
    assert main(["train", str(tmp_path / "none"), "-o", str(tmp_path / "run"), "--aug", "basic", *words]) == 1
    assert "there is no folder" in capsys.readouterr().err
