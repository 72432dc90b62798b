"""Everything that the library prints goes through one channel, which can be silenced and fits any terminal."""

import ast
import io
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import row_data, three_colours
from processes import ENVIRONMENT, PATIENCE

import fastclf
from fastclf import HeadLearner, ImageClassifierData, report
from fastclf.report import Progress, log, track
from fastclf.training.epoch_table import EpochTable

NAMES = "图像 ☃ é\U0001f600"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_text_can_be_printed_on_any_stream(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    log(NAMES)
    report.show(NAMES)
    stream.seek(0)
    first, second = stream.read().splitlines()
    assert first == second
    assert first.encode(encoding).decode("unicode_escape" if encoding == "ascii" else encoding)[:2] != "?"
    assert "\\u56fe" in first or encoding == "utf-8"


def test_a_stream_without_an_encoding_and_none_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    log(NAMES)
    assert sys.stdout.getvalue() == NAMES + "\n"
    monkeypatch.setattr(sys, "stdout", None)
    log(NAMES)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when the test moves it."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(report.time, "monotonic", lambda: Clock.now)
    return Clock


def test_progress_fits_any_stream(monkeypatch, clock):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", errors="strict")
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress(10, f"copies in {NAMES}", "images")
    clock.now += 60
    progress.advance(5)
    stream.seek(0)
    assert "copies in \\u56fe" in stream.read()


def test_work_that_goes_on_counts_what_was_done_before_but_not_in_the_rate(capsys, clock):
    with Progress(100, "train", "batches", done=50) as bar:
        clock.now += 20
        bar.advance(20)
    assert capsys.readouterr().err == "train: 70/100 (70%), 1 batches/s, 30 s left\n"


def test_work_of_which_nothing_is_done_yet_has_no_rate(capsys, clock):
    with Progress(100, "scan", "images") as bar:
        clock.now += 20
        bar.advance(0)
    assert capsys.readouterr().err == "scan: 0/100 (0%), 0 images/s\n"


class Tee:
    """A stream that does no more than write, as programs put in place of stdout."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


def test_streams_that_only_write_and_closed_ones(monkeypatch, clock):
    tee = Tee()
    monkeypatch.setattr(sys, "stdout", tee)
    monkeypatch.setattr(sys, "stderr", tee)
    log("a line")
    with Progress(10, "train", "batches") as bar:
        clock.now += 20
        bar.advance(5)
    assert tee.text.splitlines() == ["a line", "train: 5/10 (50%), 0.25 batches/s, 20 s left"]
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        log("a line")
        assert not report.shows_bars()


def test_a_terminal_gets_a_bar_that_is_removed(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(track(iter([1, 2]), 2, "train", "batches")) == [1, 2]
    assert "\n" not in terminal.getvalue()


@pytest.fixture
def quiet():
    fastclf.quiet()
    yield
    fastclf.quiet(False)


def test_one_call_silences_lines_and_progress(quiet, capsys, clock, monkeypatch):
    log("a line")
    report.log_once("a line that nobody saw")
    bar = Progress(10, "train", "batches")
    clock.now += 60
    bar.advance(5)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert not report.shows_bars()
    with pytest.warns(UserWarning, match="still a warning"):
        report.warn("still a warning")
    assert capsys.readouterr() == ("", "")
    report.show("an answer")
    fastclf.quiet(False)
    log("a line")
    assert capsys.readouterr().out == "an answer\na line\n"


def test_a_logger_that_is_disabled_is_named_once(capsys, monkeypatch):
    """As `logging.config` does with every logger that it does not know, unless it is told not to."""
    monkeypatch.setattr(report._lines, "disabled", True)
    with pytest.warns(UserWarning, match=r"its logger is disabled.* disable_existing_loggers=False") as caught:
        [log("lost") for _ in range(2)]
    assert len(caught) == 1
    report._logged.clear()
    monkeypatch.setattr(report._lines, "level", logging.WARNING)  # fastclf.quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log("meant to be lost")
    assert capsys.readouterr() == ("", "")


def test_of_several_processes_that_train_together_one_prints(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    log("alone, whatever a batch system says")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    log("rank 1")
    monkeypatch.setenv("RANK", "0")
    log("rank 0")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        log(f"initialised, rank {rank}")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert not report.shows_bars()
    alone = "alone, whatever a batch system says\n"
    assert capsys.readouterr().out == f"{alone}rank 0\ninitialised, rank 0\n"


def test_a_warning_names_the_line_that_called_the_library():
    pair = np.zeros((4, 3)), [0, 1, 0, 1]
    with pytest.warns(UserWarning, match="'Cat' and 'cat' look the same") as caught:
        ImageClassifierData.from_arrays(".", pair, pair, bs=2, classes=["Cat", "cat"])
    assert caught[0].filename == __file__


def test_nothing_is_printed_or_warned_outside_the_channel():
    """Nor does a module write to stdout or stderr itself, or make a bar; the command line's streams are its own."""
    package, outside = Path(fastclf.__file__).parent, []
    own_streams = {package / f"{name}.py" for name in ("report", "cli", "models/verify")}  # `verify` runs alone, too
    own_streams |= {*(package / "commands").glob("*.py")}
    for file in sorted({*package.rglob("*.py")} - own_streams):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Name | ast.Attribute | ast.Import | ast.ImportFrom):
                text = ast.unparse(node)
                if text in ("print", "sys.stdout", "sys.stderr", "warnings.warn") or re.match(
                    "(from|import) tqdm", text
                ):
                    outside.append(f"{file.name}:{node.lineno}: {text}")
    assert outside == []


LESSON = """
import sys
from pathlib import Path
import fastclf
from helpers import image_data, tiny_learner

def métrique(preds, targs):
    return 0.5

path = Path(sys.argv[1].encode("ascii").decode("unicode_escape"))
data = image_data(path, on_bad="skip")
print(data.check())
learn = tiny_learner(data, precompute=True, metrics=[métrique])
learn.fit(.01, 1, state_name="Zustände")
learn.fit(.01, 1, state_name="Zustände", resume=True)
learn.unfreeze()
learn.summary()
preds, y = learn.predict_with_targs()
print(fastclf.classification_report(y, preds.argmax(1), data.classes))
print("done")
"""


@pytest.mark.parametrize("setting", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C"}])
def test_a_lesson_with_names_of_all_scripts(tmp_path, setting):
    pytest.importorskip("nvidia.dali")
    root = three_colours(tmp_path / "données 数据")
    (root / "train/red").rename(root / "train/красный")
    (root / "valid/red").rename(root / "valid/красный")
    for i in range(12):
        (root / "train/красный" / f"{i:03d}.png").rename(root / "train/красный" / f"{i} {NAMES}.png")
    (root / "train/blue" / f"{NAMES}.jpg").write_bytes(b"broken")
    argument = str(root).encode("unicode_escape").decode()
    environment = {**ENVIRONMENT, **setting, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LESSON, argument], env=environment, capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr.decode()
    out = done.stdout.decode(setting.get("PYTHONIOENCODING", "utf-8"))
    assert out.splitlines()[-1] == "done"
    if setting.get("PYTHONIOENCODING") == "ascii":
        assert "\\u56fe" in out
        assert r"\u043a\u0440" in out


QUIET = """
import sys
from pathlib import Path
import fastclf
from helpers import image_data, three_colours, tiny_learner

data = image_data(three_colours(Path(sys.argv[1])), on_bad="skip")
learn = tiny_learner(data, precompute=True)
learn.fit(.01, 1, state_name="run")
learn.fit(.01, 1, state_name="run", resume=True)
learn.lr_find()
learn.unfreeze()
learn.fit(.001, 1, cycle_len=1)
log_preds, y = learn.TTA()
fastclf.confusion_matrix(y, log_preds[0].argmax(1), data.classes)
learn.save("done")
learn.load("done")
"""


def test_a_quiet_lesson_prints_nothing(tmp_path):
    pytest.importorskip("nvidia.dali")
    environment = {**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path / "cache"), "FASTCLF_QUIET": "1"}
    command = [sys.executable, "-c", QUIET, tmp_path / "data"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    del environment["FASTCLF_QUIET"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    tables = [line for line in done.stdout.splitlines() if line.startswith("epoch  ")]
    assert len(tables) == 3  # the resumed fit prints its head alone


class Gone(io.StringIO):
    """A pipe that nobody reads any more, or a file on a full disk."""

    def write(self, text):
        raise BrokenPipeError


def test_a_reader_that_has_gone_does_not_end_a_fit(tmp_path, rng, monkeypatch):
    learn = HeadLearner(row_data(tmp_path, rng))
    monkeypatch.setattr(sys, "stdout", Gone())
    assert len(learn.fit(0.01, 2)) == 2


def test_large_numbers_do_not_run_together(capsys, rng):
    table = EpochTable(("trn_loss", "val_loss", "rmse"), None)
    values = [*(10.0 ** rng.uniform(-8, 300, 200)), 0.0, 1.5, 12345.678, -99999.5, float("inf"), float("nan")]
    for value in values:
        for signed in (value, -value):
            table.row(0, [signed] * 3)
            cells = capsys.readouterr().out.splitlines()[-1].split()
            assert len(cells) == 4
            if value == value:
                assert float(cells[1]) == pytest.approx(signed, rel=1e-3, abs=1e-6)
    table.row(3, [1.25, 0.333333333, 1.0])
    assert capsys.readouterr().out == "    3     1.250000    0.333333    1.000000\n"


def test_fastclf_can_be_run_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "fastclf", "env"], env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("fastclf ")


def test_nothing_else_is_printed_at_import_and_by_runtimes(tmp_path):
    """No line of ONNX Runtime, DALI or OpenMP."""
    pytest.importorskip("nvidia.dali")
    script = (
        "import sys\nfrom pathlib import Path\nfrom helpers import image_data, three_colours, tiny_learner\n"
        "import onnxruntime\nlearn = tiny_learner(image_data(three_colours(Path(sys.argv[1]))))\nlearn.predict()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        env=ENVIRONMENT | {"FASTCLF_QUIET": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
