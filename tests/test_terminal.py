"""What is printed fits any terminal, and caches any user."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import row_data, three_colours
from processes import ENVIRONMENT

from fastclf import HeadLearner, terminal
from fastclf.files import user_cache
from fastclf.progress import Progress
from fastclf.training.loop import _Table

NAMES = "图像 ☃ é\U0001f600"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_text_can_be_printed_on_any_stream(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
    terminal.say(NAMES, stream)
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.say(NAMES)
    stream.seek(0)
    first, second = stream.read().splitlines()
    assert first == second
    assert first.encode(encoding).decode("unicode_escape" if encoding == "ascii" else encoding)[:2] != "?"
    assert "\\u56fe" in first or encoding == "utf-8"


def test_a_stream_without_an_encoding_and_none_at_all(monkeypatch):
    stream = io.StringIO()
    terminal.say(NAMES, stream)
    assert stream.getvalue() == NAMES + "\n"
    monkeypatch.setattr(sys, "stdout", None)
    terminal.say(NAMES)


def test_progress_fits_too(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", errors="strict")
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress(10, f"copies in {NAMES}", "pictures")
    progress._last_line -= 60
    progress._start -= 60
    progress.advance(5)
    stream.seek(0)
    assert "copies in \\u56fe" in stream.read()


LESSON = """
import sys
from pathlib import Path
import fastclf
from helpers import picture_data, tiny_learner

def métrique(preds, targs):
    return 0.5

path = Path(sys.argv[1].encode("ascii").decode("unicode_escape"))
data = picture_data(path, on_bad="skip")
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
        [sys.executable, "-W", "ignore", "-c", LESSON, argument], env=environment, capture_output=True, timeout=200
    )
    assert done.returncode == 0, done.stderr.decode()
    out = done.stdout.decode(setting.get("PYTHONIOENCODING", "utf-8"))
    assert out.splitlines()[-1] == "done"
    if setting.get("PYTHONIOENCODING") == "ascii":
        assert "\\u56fe" in out
        assert r"\u043a\u0440" in out


@pytest.mark.parametrize("home", [None, "/nowhere/at/all", "/proc"])
def test_without_a_home_folder_a_temporary_one_is_taken_and_said_once(home):
    script = (
        "import os, stat\nfrom fastclf.files import user_cache\n"
        "Path = type(user_cache())\na, b = user_cache(), user_cache()\nassert a == b and a.is_dir()\n"
        "assert stat.S_IMODE(a.stat().st_mode) == 0o700\n(a / 'file').write_text('')\n"
        "if os.fork() == 0: raise SystemExit\nos.wait()\nassert (a / 'file').exists()\nprint(a)"
    )
    if os.geteuid() == 0:  # once all is imported, which another user might not read
        drop = "os.setgid(12345); os.setuid(12345)"
        script = script.replace("user_cache\n", f"user_cache\n{drop}\n", 1)
    environment = {key: value for key, value in ENVIRONMENT.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    if home is not None:
        environment["HOME"] = home
    elif os.geteuid() != 0:
        pytest.skip("this user has a home folder")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said, folder = done.stdout.splitlines()
    assert said.startswith("no home folder to write in: caches lie in ")
    assert folder in said
    assert not Path(folder).exists()  # it goes with its process


def test_a_home_folder_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "fastclf"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache() == tmp_path / ".cache" / "fastclf"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert user_cache() == Path("/somewhere/fastclf")


def test_large_numbers_do_not_run_together(capsys, rng):
    table = _Table(("trn_loss", "val_loss", "rmse"), None)
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
        [sys.executable, "-m", "fastclf", "env"], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("fastclf ")


def test_nothing_else_is_printed_at_import_and_by_runtimes(tmp_path):
    """No line of ONNX Runtime, DALI or OpenMP."""
    pytest.importorskip("nvidia.dali")
    script = (
        "import sys\nfrom pathlib import Path\nfrom helpers import picture_data, three_colours, tiny_learner\n"
        "import onnxruntime\nlearn = tiny_learner(picture_data(three_colours(Path(sys.argv[1]))))\nlearn.predict()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


class Gone(io.StringIO):
    """A pipe that nobody reads any more, or a file on a full disk."""

    def write(self, text):
        raise BrokenPipeError


def test_who_listens_may_go(tmp_path, rng, monkeypatch):
    learn = HeadLearner(row_data(tmp_path, rng))
    monkeypatch.setattr(sys, "stdout", Gone())
    assert len(learn.fit(0.01, 2)) == 2
