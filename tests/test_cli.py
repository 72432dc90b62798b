"""The command line: what is typed, printed and written, and its exit codes."""

import csv
import json
import shutil

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from helpers import COLOURS, row_data, three_colours, write_images
from processes import PATIENCE, lines_of, start

import fastclf
from fastclf import ConvLearner, HeadLearner, ImageClassifierData, efficientnet_lite0, tfms_from_model
from fastclf.cli import COMMANDS, main
from fastclf.data.sources.ignored import RESULTS_TAG

NAMES = sorted(COLOURS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model and a folder of images for it."""
    folder = three_colours(tmp_path_factory.mktemp("cli") / "data", n=3, n_valid=2)
    data = ImageClassifierData.from_paths(folder, bs=8, tfms=tfms_from_model(efficientnet_lite0, 32))
    learn = ConvLearner.pretrained(efficientnet_lite0, data, pretrained=False)
    learn.save("model")
    return folder / "models" / "model", folder / "valid", learn.predict()


def test_no_command_shows_the_commands(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("typed", [["--epochs", "0"], ["--lr", "0"], ["--lr", "nan"], ["--unfreeze", "-1"]])
def test_a_number_that_makes_no_sense_is_no_default(typed, tmp_path, capsys):
    assert main(["train", str(tmp_path), "-o", str(tmp_path / "run"), *typed]) == 1
    assert f"{typed[0]} must be" in capsys.readouterr().err


def test_where_nothing_can_be_written_is_known_before_training(tmp_path, capsys):
    assert main(["train", str(tmp_path), "-o", "/proc/run"]) == 1
    assert "/proc/run: cannot be made" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["train", str(tmp_path), "-o", str(tmp_path / "file" / "run")]) == 1
    assert "cannot be made" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_reads(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert COMMANDS[command].split(",")[0][1:10] in shown
    assert "None" not in shown


@pytest.mark.parametrize("typed", [["fly"], ["predict"], ["predict", "m"], ["train", "x", "--epochs", "many"]])
def test_what_makes_no_sense_is_an_error(typed, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(typed)
    assert exit_.value.code == 2
    assert "usage: fastclf" in capsys.readouterr().err


def test_an_error_is_one_line(capsys, tmp_path):
    assert main(["predict", str(tmp_path / "none"), "a.jpg"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("fastclf predict: there is no model")


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        ("fit: lrs must be", "lrs must be"),
        ("evaluate: predict: images must be", "images must be"),
        ("from_shards: there is no", "there is no"),
        ("env: from_hf: HeadSetting: lr must be", "lr must be"),
        ("ConvLearner: there is", "there is"),
        ("open_image: fit.png: empty", "fit.png: empty"),
        ("weights: the file", "weights: the file"),  # an argument
        ("--csv: load: it", "--csv: load: it"),
        ("t.csv: line 3", "t.csv: line 3"),
        ("no_such_call: x", "no_such_call: x"),
        ("fit", "fit"),
        ("a table has columns:\n  0: 'a'\n  1: 'b'", "a table has columns:\n  0: 'a'\n  1: 'b'"),
    ],
)
def test_an_error_names_no_python_call(raised, shown, monkeypatch, capsys):
    def run(_):
        raise ValueError(raised)

    monkeypatch.setattr("fastclf.commands.env.run", run)
    assert main(["env"]) == 1
    assert capsys.readouterr().err == f"fastclf env: {shown}\n"


LATE = """
import sys
from fastclf import cli
cli._failed("check", "DATA: there are no files", 1)
print("torch" in sys.modules)
"""


def test_an_error_does_not_wait_for_torch():
    assert lines_of(LATE)[-1] == "False"


def test_env_names_what_runs(capsys):
    assert main(["env"]) == 0
    assert "native code" in capsys.readouterr().out


# predict


def test_predict_prints_lines(model, capsys):
    path, images, expected = model
    assert main(["predict", str(path), str(images), "--bs", "8"]) == 0
    rows = list(csv.reader(capsys.readouterr().out.splitlines(), delimiter="\t"))
    assert [row[1] for row in rows] == [NAMES[i] for i in expected.argmax(1)]
    assert float(rows[0][2]) == pytest.approx(np.exp(expected[0].max()), abs=1e-4)


def test_predict_writes_a_table(model, tmp_path, capsys):
    path, images, expected = model
    out = tmp_path / "new" / "predictions.csv"
    typed = ["predict", str(path), str(images), "--out", str(out), "--topk", "2", "--bs", "8", "--all-probs"]
    assert main(typed) == 0
    table = pd.read_csv(out)
    assert list(table) == ["file", "label", "prob", "label_2", "prob_2", *NAMES]
    np.testing.assert_allclose(table[NAMES], np.exp(expected), rtol=1e-6)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", ["predict", "eval"])
@pytest.mark.parametrize("name", ["preds.csv.gz", "preds.XLSX", "preds.parquet", "preds.json"])
def test_a_table_named_as_another_format_is_refused_before_the_work(command, name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([command, "no model", "no images", "--out", str(tmp_path / name)])
    assert f"{name}: tables are written as CSV. Pass a name that ends in .csv" in capsys.readouterr().err


def test_predict_as_json_with_a_bad_image(model, tmp_path, capsys):
    path, images, _ = model
    (tmp_path / "bad.jpg").touch()
    assert main(["predict", str(path), str(images / "red"), str(tmp_path / "bad.jpg"), "gone.jpg", "--json"]) == 1
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["label"] is None for line in lines] == [False, False, True, True]
    assert lines[0].keys() == {"file", "label", "prob"}
    assert "bad.jpg cannot be decoded: empty file" in printed.err
    assert "gone.jpg cannot be decoded: not found" in printed.err


def test_a_table_is_written_whole_or_not_at_all(model, tmp_path, capsys):
    path, images, _ = model
    out = tmp_path / "predictions.csv"
    out.write_text("earlier")
    assert main(["predict", str(path), str(images / "*.none"), "--out", str(out)]) == 1
    assert "matches" in capsys.readouterr().err
    assert out.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


# export


def test_eval(model, tmp_path, capsys):
    path, folder, _ = model
    want = fastclf.load(path).evaluate(folder)
    assert main(["eval", str(path), str(folder)]) == 0
    assert capsys.readouterr().out == f"{want}\n"
    assert main(["eval", str(path), str(folder), "--json", "--out", str(tmp_path / "each.csv")]) == 0
    assert json.loads(capsys.readouterr().out) == want.to_dict()
    assert pd.read_csv(tmp_path / "each.csv")["name"].tolist() == NAMES
    write_images(tmp_path / "other", {"violet": 2, "red": 2})
    assert main(["eval", str(path), str(tmp_path / "other")]) == 1
    assert "'violet' in the folders" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "train", "eval", "predict", "audit", "sweep", "curve"])
def test_a_folder_that_is_empty_or_missing_is_one_line(command, model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        typed = [command, *([str(model[0])] if command in ("eval", "predict") else []), str(tmp_path / folder)]
        assert main([*typed, *(["-o", str(tmp_path / "run")] if command == "train" else [])]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"fastclf {command}: ")
        assert folder in lines[0]


def test_predict_refuses_the_unknown(model, capsys):
    path, folder, _ = model
    assert main(["predict", str(path), str(folder), "--unknown", ".05"]) == 1
    assert "fastclf train --calibrate" in capsys.readouterr().err


def test_predict_says_unknown_after_calibrate(tmp_path, capsys):
    folder = three_colours(tmp_path / "data", n=3, n_valid=10)
    data = ImageClassifierData.from_paths(folder, bs=8, tfms=tfms_from_model(efficientnet_lite0, 32))
    learn = ConvLearner.pretrained(efficientnet_lite0, data, pretrained=False, precompute=True)
    learn.fit(0.01, 5)  # so that confidences differ by more than rounding
    learn.calibrate()
    learn.save("model")
    capsys.readouterr()
    typed = ["predict", str(folder / "models" / "model"), str(folder / "valid"), "--json"]
    shown = {}
    for share in (None, 0.1, 0.5):
        assert main([*typed, *(["--unknown", str(share)] if share else [])]) == 0
        shown[share] = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    refused = [labels.count("none of these") for labels in shown.values()]
    assert refused[0] == 0
    assert refused[1] in (2, 3)  # entry floor(u (n + 1)) - 1 of 30 confidences, with rounding at the edge
    assert refused[2] in (14, 15)
    assert all(label in ("none of these", plain) for label, plain in zip(shown[0.1], shown[None], strict=True))
    assert main([*typed, "--unknown", "2"]) == 1
    assert "unknown must be a share" in capsys.readouterr().err


def test_eval_of_what_was_held_out_alone(model, tmp_path, capsys):
    """Rows of a column of sets, and names of files: the same figures as of the same images by list."""
    path, folder, _ = model
    rng, clf = np.random.default_rng(), fastclf.load(path)
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    labels = [name.split("/")[0] for name in files]
    for kinds in (["train", "valid", "test"], ["train", "valid"], ["train"]):
        parts = rng.permutation([*kinds, *rng.choice(kinds, len(files) - len(kinds))])
        table = pd.DataFrame({"file": files, "label": labels, "set": parts})
        table.to_csv(tmp_path / "t.csv", index=False)
        typed = ["eval", str(path), str(folder), "--csv", str(tmp_path / "t.csv"), "--split-col", "set", "--json"]
        assert main(typed) == (kinds == ["train"])
        printed = capsys.readouterr()
        if kinds == ["train"]:
            assert "no row is for test or validation. Leave --split-col out" in printed.err
            continue
        held = [
            (str(folder / name), label)
            for name, label, part in zip(files, labels, parts, strict=True)
            if part == kinds[-1]
        ]
        expected = clf.evaluate(*map(list, zip(*held, strict=True)))
        assert json.loads(printed.out) == json.loads(json.dumps(expected.to_dict()))
        assert (
            f"{len(held)} row{'s'[: len(held) > 1]} for {'test' if 'test' in kinds else 'validation'} alone"
            in printed.err
        )
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in files:
        shutil.copy(folder / name, flat / name.replace("/", "_"))
    assert main(["eval", str(path), str(flat)]) == 1
    assert "--name-re" in capsys.readouterr().err
    assert main(["eval", str(path), str(flat), "--name-re", r"^(\w+?)_", "--json"]) == 0
    expected = clf.evaluate([str(flat / name.replace("/", "_")) for name in files], labels)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected.to_dict()))


def test_predict_of_a_table(model, tmp_path, capsys):
    path, folder, _ = model
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    pd.DataFrame({"n": range(len(names)), "file": names}).to_csv(folder / "names.csv", index=False)
    assert main(["predict", str(path), str(folder), "--csv", str(folder / "names.csv"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == [str(folder / name) for name in names]


TABLES = {  # the table's columns, the options, and where the names lie
    "a column 'file'": ({"n": range(6), "file": None}, []),
    "another column": ({"n": range(6), "where": None}, []),
    "names alone": ({"where": None}, []),
    "a column that is named": ({"a": None, "file": range(6)}, ["--fn-col", "a"]),
    "a column that is numbered": ({"a": "x.png", "b": None}, ["--fn-col", "1"]),
    "names without suffix": ({"where": None}, ["--suffix", ".png"]),
    "a folder of its own": ({"where": None}, ["--folder", "red"]),
}


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("form", TABLES)
def test_predict_reads_a_table_as_train_does(model, tmp_path, capsys, form, header):
    path, folder, _ = model
    columns, options = TABLES[form]
    if not header and "file" in columns:
        pytest.skip("a column without a name")
    words = dict(zip(options[::2], options[1::2], strict=True))
    below = folder / words.get("--folder", ".")
    files = sorted(below.rglob("*.png"))
    names = [str(file.relative_to(below)).removesuffix(words.get("--suffix", "")) for file in files]
    cells = {name: names if given is None else [*given][:1] * len(names) for name, given in columns.items()}
    table = pd.DataFrame(cells).rename(columns=str)
    if not header and words.get("--fn-col") == "a":
        pytest.skip("a column without a name")
    table.to_csv(tmp_path / "t.csv", index=False, header=header)
    assert main(["predict", str(path), str(folder), "--csv", str(tmp_path / "t.csv"), "--json", *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == [str(file) for file in files]


def test_predict_has_a_line_for_every_row_of_a_table(model, tmp_path, capsys):
    """Names that files have in another way, files that are elsewhere, the same one twice, and one that is gone."""
    path, folder, _ = model
    shutil.copy(folder / "red" / "000.png", tmp_path / "other.png")
    names = ["red/000.png", "RED\\000.PNG", "gone.png", str(tmp_path / "other.png"), "red/000.png"]
    (tmp_path / "t.csv").write_text("\n".join(["file", *names]))
    typed = ["predict", str(path), str(folder), "--csv", str(tmp_path / "t.csv"), "--json"]
    assert main(typed) == 1
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    files = ["red/000.png", "red/000.png", "gone.png", names[3], "red/000.png"]
    assert [line["file"] for line in lines] == [str(folder / name) for name in files]
    assert [line["label"] is None for line in lines] == [False, False, True, False, False]
    assert "gone.png cannot be decoded: not found" in printed.err
    for text, message in (
        ("n,file\n1,red/000.png\n2,\n3,red/001.png", "line 3 names no file. Fill it in, or remove the row."),
        ("file\nred/000\ngreen/001", "Did you mean --suffix .png? It finds 2 of them."),
        ("file\nred/000.png\nhttp://x.org/y.png", "has the URL 'http://x.org/y.png'"),
    ):
        (tmp_path / "t.csv").write_text(text)
        assert main(typed) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert message in printed.err
    assert main([*typed[:3], str(folder), *typed[3:]]) == 1
    assert "IMAGES must be the one folder" in capsys.readouterr().err


def test_all_probabilities_in_lines(model, capsys):
    path, images, expected = model
    assert main(["predict", str(path), str(images), "--json", "--all-probs", "--bs", "8"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose([[line["probs"][name] for name in NAMES] for line in lines], np.exp(expected), rtol=1e-6)
    assert main(["predict", str(path), str(images), "--all-probs", "--bs", "8"]) == 0
    rows = list(csv.reader(capsys.readouterr().out.splitlines(), delimiter="\t"))
    np.testing.assert_allclose([[*map(float, row[3:])] for row in rows], np.exp(expected), atol=1e-4)


def test_export(model, tmp_path, capsys):
    path, _, _ = model
    assert main(["export", str(path), "-o", str(tmp_path / "model.onnx")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == NAMES
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    (found,) = session.run(None, {"pixels": pixels})
    np.testing.assert_allclose(found, fastclf.load(path).predict(pixels).probs, atol=1e-4)


def test_export_of_rows_is_refused(tmp_path, rng, capsys):
    HeadLearner(row_data(tmp_path, rng)).save("head")
    assert main(["export", str(tmp_path / "models" / "head")]) == 1
    assert "fastclf export: the model must" in capsys.readouterr().err


# check


def test_check(tmp_path, capsys):
    folder = write_images(
        tmp_path / "data", {f"{part}/{c}": 12 for part in ("train", "valid") for c in ("red", "blue")}
    )
    assert main(["check", str(folder), "--sz", "16", "--bs", "8"]) == 0
    shutil.copy(folder / "train" / "red" / "000.png", folder / "valid" / "red" / "copy.png")
    assert main(["check", str(folder), "--sz", "16", "--bs", "8"]) == 1
    assert "byte for byte" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "nothing")]) == 1
    assert "no folder" in capsys.readouterr().err


def test_check_of_class_folders_alone_and_of_a_table(tmp_path, capsys):
    folder = write_images(tmp_path / "data", {"red": 30, "blue": 30})
    assert main(["check", str(folder), "--sz", "16", "--bs", "8"]) == 0
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    pd.DataFrame({"file": names, "label": ["odd" if i % 2 else "even" for i in range(60)]}).to_csv(
        tmp_path / "labels.csv", index=False
    )
    assert main(["check", str(folder), "--csv", str(tmp_path / "labels.csv"), "--sz", "16", "--bs", "8"]) == 0
    assert "even" in capsys.readouterr().out


# train


TRAIN = """
import sys
from fastclf.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run(tmp_path, capsys):
    folder = three_colours(tmp_path / "data", n=6, n_valid=4)
    run = tmp_path / "run"
    typed = ["train", folder, "--sz", "32", "--epochs", "2", "--unfreeze", "1", "--tta", "--bs", "8", "-o", run]
    lines_of(TRAIN, *typed)
    assert {p.name for p in run.iterdir()} == {
        *("arguments.json", "epochs.csv", "valid.csv", "plots", "report.html", "model.json", RESULTS_TAG),
        *(p.name for p in run.glob("model.*.safetensors")),
    }
    assert {p.name for p in (run / "plots").iterdir()} == {"loss.png", "confusion.png"}
    epochs = pd.read_csv(run / "epochs.csv")
    assert list(epochs) == ["epoch", "trn_loss", "val_loss", "accuracy"]
    assert epochs["epoch"].tolist() == [0, 1, 2]
    summary = json.loads((run / "arguments.json").read_text())
    assert summary["arguments"]["seed"] == 42
    assert summary["versions"]["torch"]
    assert summary["results"].keys() == {"val_loss", "accuracy", "tta_accuracy"}
    valid = pd.read_csv(run / "valid.csv")
    np.testing.assert_allclose(valid[NAMES].sum(axis=1), 1, atol=1e-5)
    assert (valid["label"] == valid[NAMES].idxmax(axis=1)).mean() == pytest.approx(summary["results"]["tta_accuracy"])
    assert main(["predict", str(run), str(folder / "valid"), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12
    assert main(["train", str(folder), "-o", str(run)]) == 1
    assert "no run is overwritten" in capsys.readouterr().err


@pytest.mark.slow
def test_the_results_of_a_run_are_those_of_its_model(tmp_path, monkeypatch):
    """The mean of the weights before and after is no epoch's."""
    monkeypatch.setattr("fastclf.learners.unfrozen_trial._is_worse", lambda *_: False)
    folder, run = three_colours(tmp_path / "data", n=6, n_valid=4), tmp_path / "run"
    assert main(["train", str(folder), "--sz", "32", "--bs", "8", "-o", str(run)]) == 0
    results = json.loads((run / "arguments.json").read_text())["results"]
    valid = pd.read_csv(run / "valid.csv")
    of_true = valid[NAMES].to_numpy()[np.arange(len(valid)), [NAMES.index(name) for name in valid["label"]]]
    assert results["val_loss"] == pytest.approx(-np.log(of_true).mean(), rel=1e-4)
    assert results["val_loss"] != pytest.approx(pd.read_csv(run / "epochs.csv")["val_loss"].iloc[-1], rel=1e-4)


@pytest.mark.parametrize(
    ("typed", "called"),
    [
        ([], [("fine_tune", True)]),
        (["--unfreeze", "0"], [("fine_tune", False)]),
        (["--unfreeze", "0", "--aug", "none"], [("fine_tune", False)]),
        (["--lr", ".02"], [("fit", 0.02, 3)]),
        (["--epochs", "2"], [("fit", 0.01, 2)]),
        (["--unfreeze", "4"], [("fit", 0.01, 3), ("fit", [0.0001, 0.001, 0.01], 1)]),
        (["--no-precompute"], [("fit", 0.01, 3)]),
    ],
)
def test_train_finds_the_best_model_unless_the_lesson_is_asked_for(tmp_path, monkeypatch, typed, called):
    class StoppedError(Exception):
        pass

    def stop(*_):
        raise StoppedError

    folder, found = three_colours(tmp_path / "data", n=6, n_valid=4), []
    monkeypatch.setattr(ConvLearner, "fine_tune", lambda _, **given: found.append(("fine_tune", given["unfreeze"])))
    monkeypatch.setattr(ConvLearner, "fit", lambda _, *given, **__: found.append(("fit", *given)))
    monkeypatch.setattr(ConvLearner, "save", stop)
    monkeypatch.setattr("fastclf.interpret.figure.save_figure", lambda *_: None)
    monkeypatch.setattr("fastclf.training.recorder.Recorder.plot_loss", lambda _: None)
    with pytest.raises(StoppedError):
        main(["train", str(folder), "--sz", "32", "--bs", "8", "-o", str(tmp_path / "run"), *typed])
    assert found == called


@pytest.mark.parametrize("trained", [False, True])
def test_ctrl_c_amid_the_trial_keeps_the_head(tmp_path, monkeypatch, capsys, trained):
    def fine_tune(learn, callbacks, **_):
        if trained:
            learn.fit(0.01, 1, callbacks=callbacks)
        raise KeyboardInterrupt

    monkeypatch.setattr(ConvLearner, "fine_tune", fine_tune)
    folder, run = three_colours(tmp_path / "data", n=6, n_valid=4), tmp_path / "run"
    assert main(["train", str(folder), "--sz", "32", "--bs", "8", "-o", str(run)]) == (0 if trained else 130)
    assert (run / "model.json").exists() == trained


# audit, sweep, compare, curve


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return three_colours(tmp_path_factory.mktemp("answers") / "data", n=90, n_valid=4)


def rows_of(file):
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


ANSWERS = {
    "audit": (["--k", "2"], ["finding", "set", "row", "file"]),
    "sweep": (["--lr", ".01", ".1", "--xtra-fc", "0", "8,4", "--epochs", "2"], ["head", "loss", "low", "high", "lr"]),
    "curve": (["--k", "5"], ["class", "images", "accuracy"]),
}


@pytest.mark.parametrize("command", ANSWERS)
def test_an_answer_as_text_json_and_files(command, colours, tmp_path, capsys):
    options, columns = ANSWERS[command]
    typed = [command, str(colours), "--sz", "32", *options]
    code = main([*typed, "--json", "-o", str(tmp_path / "out")])
    found = json.loads(capsys.readouterr().out)
    assert list(found["rows"][0])[: len(columns)] == columns
    written = rows_of(tmp_path / "out" / f"{command}.csv")
    assert [list(row) for row in written] == [list(row) for row in found["rows"]]
    assert list((tmp_path / "out" / "plots").glob("*.png"))
    assert (tmp_path / "out" / RESULTS_TAG).is_file()
    assert code == (command == "audit")
    assert main(typed) == code
    printed = capsys.readouterr()
    assert printed.out.startswith(found["title"])
    assert "computing activations" not in printed.out
    assert main([*typed, "-o", str(tmp_path / "out")]) == 1
    assert "no run is overwritten" in capsys.readouterr().err


def test_a_sweep_tries_what_is_typed(colours, capsys):
    assert main(["sweep", str(colours), "--sz", "32", "--json", *ANSWERS["sweep"][0]]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["lr"], tuple(row["xtra_fc"])) for row in rows} == {(r, w) for r in (0.01, 0.1) for w in ((), (8, 4))}
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses)
    assert all(row["low"] <= row["loss"] <= row["high"] for row in rows)


@pytest.mark.parametrize("widths", ["many", "8,0", "8,", "-1", "²"])
def test_widths_that_make_no_sense_are_refused(widths, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["sweep", "data", f"--xtra-fc={widths}"])
    assert exit_.value.code == 2
    assert "or 0 for no hidden layer" in capsys.readouterr().err


def test_bodies_are_compared(colours, tmp_path, capsys):
    lite = "efficientnet_lite0"
    typed = ["compare", str(colours), lite, "--sz", "32", "--k", "2", "--json"]
    assert main([*typed, "-o", str(tmp_path / "out")]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["arch"] for row in rows] == [f"fastclf:{lite}"]
    assert (tmp_path / "out" / "plots" / "compare.png").exists()
    assert main(["compare", str(colours), f"{lite}+{lite}"]) == 1
    assert f"several different ones, got ['fastclf:{lite}', 'fastclf:{lite}']" in capsys.readouterr().err


STOPPED = """
import signal, sys
from fastclf.cli import main

class Finder:
    def find_spec(name, path, target=None):
        if name == "torch":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder)
print(main([]) or "torch" in sys.modules)
print(main(["check", "photographs"]))
"""


def test_ctrl_c_while_torch_is_imported_is_one_line():
    process = start(STOPPED)
    out, errors = process.communicate(timeout=PATIENCE)
    assert out.splitlines()[-2:] == ["False", "130"]
    assert errors == "fastclf check: stopped\n"
