"""Remedies at the command line are options that there are, and arguments in Python."""

import ast
import shlex
from pathlib import Path

import pytest
from helpers import three_colours
from PIL import Image

import fastclf
from fastclf import ImageClassifierData, efficientnet_lite0, tfms_from_model
from fastclf.cli import _parser, main
from fastclf.data.sources.tables.rules import column_argument
from fastclf.report import command_line, remedy, show


def _remedies():
    """What the library tells commands, from all calls of `remedy`; what is filled in is left out."""
    for file in Path(fastclf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "remedy":
                parts = [part.value for part in ast.walk(node.args[1]) if isinstance(part, ast.Constant)]
                yield " ".join(part for part in parts if isinstance(part, str))


def _options(command):
    commands = next(action for action in _parser()._actions if action.dest == "command")
    return set(commands.choices[command]._option_string_actions)


def test_remedies_name_options_that_there_are():
    words = {word.rstrip(".,;:") for text in _remedies() for word in text.split() if word.startswith("--")} - {"--"}
    assert len(words) > 5
    assert words <= _options("train") | _options("eval")
    with command_line():
        assert column_argument("fn_col", "'a b'") == "--fn-col 'a b'"
        assert {column_argument(f"{name}_col") for name in ("fn", "label", "split")} <= _options("train")


def test_what_a_command_shows_of_the_data_stays(capsys):
    with command_line():
        show("trn_name='a'")
    assert capsys.readouterr().out == "trn_name='a'\n"


def test_the_demo_shows_python_calls(monkeypatch, capsys):
    monkeypatch.setattr("fastclf.demo.run", lambda *_: show(remedy("views=4", "--views 4")))
    main(["demo"])
    assert capsys.readouterr().out == "views=4\n"


def _write(folder, names):
    folder.mkdir()
    for i, name in enumerate(names):
        Image.new("RGB", (20, 20), (i, 0, 9)).save(folder / name)


def _suggested(err, option):
    """The options that a message suggests from ``option`` on, as a shell would split them."""
    line = next(line for line in err.splitlines() if option in line)
    return shlex.split(line[line.index(option) :].partition(", which")[0].partition(". A ")[0])


def test_a_flat_folder_can_be_read_as_the_message_says(tmp_path, capsys):
    _write(tmp_path / "in", [f"{name}{i}.png" for i in range(5) for name in ("cloudy", "rain_")])
    assert main(["check", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "ImageClassifierData" not in err
    main(["check", str(tmp_path), *_suggested(err, "--name-re")])
    assert "2 classes" in capsys.readouterr().out


def test_a_table_can_be_read_as_the_message_says(tmp_path, capsys):
    _write(tmp_path / "in", [f"{i}.png" for i in range(12)])
    rows = [f"{i}.png,{'uvw'[i % 3]}{i % 4},{'cat' if i % 2 else 'dog'}" for i in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["file,sender,kind", *rows]))
    typed = ["check", str(tmp_path), "--csv", "t.csv", "--folder", "in"]
    assert main(typed) == 1
    main([*typed, *_suggested(capsys.readouterr().err, "--fn-col")])
    assert "column 'file'; one label per image in column 'kind'; 2 classes" in capsys.readouterr().out


def test_only_commands_name_options(tmp_path, capsys):
    folder = three_colours(tmp_path / "data", n=3, n_valid=2)
    (folder / "train" / "cow").mkdir()
    assert main(["check", str(folder)]) == 1
    assert "or remove the folder." in capsys.readouterr().err
    with pytest.raises(fastclf.errors.LabelError, match="allow_empty=True"):
        ImageClassifierData.from_paths(folder, tfms=tfms_from_model(efficientnet_lite0, 32))


@pytest.mark.parametrize("command", ["check", "train", "predict", "eval", "export"])
def test_an_empty_path_is_refused(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = {"predict": ["", "x.jpg"], "eval": ["", "x"], "export": [""]}.get(command, [""])
    try:
        code = main([command, *typed])
    except SystemExit as exit_:
        code = exit_.code
    assert code in (1, 2)
    assert "a path must not be empty" in capsys.readouterr().err
