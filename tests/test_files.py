"""The user's cache folder, whoever the user is, and the one seam for what changes on disk."""

import ast
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ENVIRONMENT, PATIENCE

import fastclf
from fastclf.files import publish
from fastclf.paths import given_path, too_long, user_cache


@pytest.mark.parametrize("home", [None, "/nowhere/at/all", "/proc"])
def test_without_a_home_folder_a_temporary_one_is_taken_and_logged_once(home):
    script = (
        "import os, stat\nfrom fastclf.paths import user_cache\n"
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
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    said, folder = done.stdout.splitlines()
    assert said.startswith("no home folder to write in: caches lie in ")
    assert folder in said
    assert not Path(folder).exists()  # it goes with its process


def test_a_path_is_what_a_user_means():
    assert given_path("a/b") == Path("a/b")
    with pytest.raises(ValueError, match="empty"):
        given_path("")
    for nothing in (None, 3, b"a"):
        with pytest.raises(TypeError, match="a path must be a string"):
            given_path(nothing)


def is_too_long(path):
    """Whether Linux says so."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def test_what_is_too_long_for_linux_is_named(tmp_path, rng):
    paths = [
        f"{tmp_path}/{'a' * n}{letter * m}" for letter in "b\u00e9\u732b\udcff" for n in (0, 1) for m in (80, 127, 255)
    ]
    paths += [f"{tmp_path}/{'c' * n}" for n in rng.integers(240, 270, 20)]
    paths += ["./" * 2000 + "d" * n for n in (90, 95, 96, *rng.integers(80, 110, 10))]
    assert {is_too_long(path) for path in paths} == {True, False}
    for path in paths:
        assert bool(too_long(path)) == is_too_long(path), path
        if is_too_long(str(Path(path))):  # pathlib takes "./" away
            with pytest.raises(ValueError, match=r"got '.{50}\.\.\.': .* and a (file's|path) may have .*a shorter one"):
                given_path(path)
        else:
            assert given_path(path) == Path(path)


@pytest.mark.parametrize("name", ["e" * 255, "\u732b" * 85, "e" + "\u00e9" * 127])
def test_any_name_that_a_file_may_have_can_be_published(tmp_path, name):
    publish(tmp_path / name, lambda file: file.write_text("a"))
    assert [*tmp_path.iterdir()] == [tmp_path / name]


def test_errors_name_the_file_that_was_asked_for(tmp_path, monkeypatch):
    with pytest.raises(IsADirectoryError, match="it is a folder") as caught:
        publish(tmp_path, lambda file: file.write_text("a"))
    assert caught.value.filename == str(tmp_path)

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    with pytest.raises(OSError, match="No space") as caught:
        publish(tmp_path / "a.csv", full)
    assert caught.value.filename == str(tmp_path / "a.csv")


def test_a_home_folder_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "fastclf"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache() == tmp_path / ".cache" / "fastclf"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert user_cache() == Path("/somewhere/fastclf")


def test_models_and_activations_are_written_through_one_seam():
    """So that `faults` meets every call that changes what is on disk."""
    package = Path(fastclf.__file__).parent
    changing = re.compile(
        r"os\.(open|write|replace|rename|unlink|remove|fsync|ftruncate|posix_fallocate)$|shutil\.rmtree$"
        r"|\.(mkdir|unlink|rename|rmdir|touch|write_bytes|write_text)$"
    )
    outside = []
    for file in (package / "checkpoint.py", *(package / "activations").glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        outside += [f"{file.name}:{call.lineno}" for call in calls if changing.search(ast.unparse(call.func))]
    assert outside == []
