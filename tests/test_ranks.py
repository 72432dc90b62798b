"""Several processes that train together: the same losses, predictions and files as one, however they end.

Most tests start the ranks with the environment that torchrun gives them, which saves its own start; those of failures
and of the unchanged script start torchrun.
"""

import contextlib
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import tarfile
import time
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import image_data, packed_data, three_colours, tiny_learner
from processes import ENVIRONMENT, PATIENCE

from fastclf import rank_tensors, ranks
from fastclf import report as reporting
from fastclf.cli import main

ROUNDING = 3e-6  # of losses, relative
SCRIPTS = Path(__file__).parent / "ranks"


def environment(tmp_path):
    return ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def in_this_process(tmp_path, script, *args):
    """Run a script here: what it has written as JSON, and what it has printed."""
    out, printed = tmp_path / f"{script}-1", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the set of two rows lacks a class
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        patch.setattr(sys, "argv", [script, *map(str, args), str(out)])
        patch.setattr(reporting, "_logged", set())
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    return [json.loads(out.read_text())], printed.getvalue()


def started(n, tmp_path, script, *args):
    """n ranks that run a script, whose last argument is a file of their own, without torchrun to watch them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    processes = []
    for rank in range(n):
        own = {"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RUN_ID": "test"} | common
        env = environment(tmp_path) | {name: str(value) for name, value in own.items()}
        command = [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, args), f"{tmp_path / script}-{n}.{rank}"]
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return processes


def in_ranks(n, tmp_path, script, *args):
    """Run a script in n ranks: what each has written as JSON, and what the first has printed."""
    processes = started(n, tmp_path, script, *args)
    printed, errors = zip(*map(ended, processes), strict=True)
    assert [process.returncode for process in processes] == [0] * n, errors
    assert not any(printed[1:])
    return [json.loads(Path(f"{tmp_path / script}-{n}.{rank}").read_text()) for rank in range(n)], printed[0]


def torchrun(n, tmp_path, file, *args):
    """A running torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", str(file)]
    return subprocess.Popen(
        [*command, *map(str, args)],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    """What a process printed, and its errors."""
    try:
        return process.communicate(timeout=PATIENCE)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    """What the same script finds in 1, 2 and 3 processes, each on a fresh copy of the images."""
    found = {}
    for n in (1, 2, 3):
        tmp_path = tmp_path_factory.mktemp(f"ranks{n}")
        folder = three_colours(tmp_path / "images", n=12, n_valid=5, n_test=4)
        (folder / "train" / "red" / "003.png").write_bytes(b"\x89PNG broken")
        (folder / "valid" / "blue" / "001.png").write_bytes(b"")
        found[n] = in_this_process(tmp_path, "lesson", folder) if n == 1 else in_ranks(n, tmp_path, "lesson", folder)
    return found


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("what", ["frozen", "unfrozen", "batch_norm", "own", "adam", "head", "maps", "lr_find"])
def test_losses_are_those_of_one_process(lessons, what, n):
    one = lessons[1][0][0][what]
    assert len(one) > 3
    assert np.isfinite(one).all()
    rounding = 1e-4 if what == "maps" else ROUNDING  # a loss that jumps up and down makes roundings tenfold in a step
    for other in lessons[n][0]:
        np.testing.assert_allclose(other[what], one, rtol=rounding, atol=rounding)
        assert other[what] == lessons[n][0][0][what]  # of all ranks, bit for bit


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("what", ["tta", "valid", "test", "two", "train", "maps valid"])
def test_predictions_are_those_of_one_process_on_every_rank(lessons, what, n):
    one = np.array(lessons[1][0][0][what])
    for other in lessons[n][0]:
        np.testing.assert_allclose(other[what], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [2, 3])
def test_targets_and_metrics_are_those_of_one_process(lessons, n):
    for other in lessons[n][0]:
        for what in ("y", "metrics", "bad"):
            assert other[what] == lessons[1][0][0][what], what
    assert lessons[1][0][0]["y"].count(-1) == 1


@pytest.mark.parametrize("n", [2, 3])
def test_the_first_prints_and_saves_what_one_process_does(lessons, n):
    def lines(text):  # a loss may differ in the last digit shown
        return [line.split()[0] for line in text.splitlines() if "activations of" not in line]

    assert lines(lessons[n][1]) == lines(lessons[1][1])
    assert lessons[n][1].count("printed by the script") == 1
    assert all(other["saved"] == lessons[1][0][0]["saved"] for other in lessons[n][0])


@pytest.mark.parametrize("n", [2, 3])
def test_a_pass_is_shared_and_its_files_are_whole(lessons, n):
    computed = [other["computed"] for other in lessons[n][0]]
    (one,) = lessons[1][0]
    assert sorted(row for rows in computed for row in rows) == sorted(one["computed"])  # each by one rank
    assert np.ptp([len(rows) for rows in computed]) <= 6  # one of each set, of activations and of maps
    for other in lessons[n][0]:
        np.testing.assert_allclose(other["rows"], one["rows"], rtol=1e-3, atol=1e-3)


def test_a_fit_goes_on_with_other_numbers_of_ranks(tmp_path):
    """Interrupted in 2 processes amid an epoch, then in 3, it ends in 1 as if there had always been 1."""
    folder = three_colours(tmp_path / "images", n=11)
    found = []
    for run, stop in ((partial(in_ranks, 2), 6), (partial(in_ranks, 3), 11), (in_this_process, 0)):
        results, _ = run(tmp_path, "resumes", folder, stop)
        assert all(result == results[0] for result in results)
        found.append(results[0])
    assert [len(result["losses"]) for result in found] == [6, 11, 16]
    learn = tiny_learner(image_data(folder), pretrained=True)
    learn.unfreeze()
    learn.fit([0.01, 0.02, 0.05], 4)
    np.testing.assert_allclose(found[-1]["losses"], learn.sched.losses, rtol=ROUNDING)
    np.testing.assert_allclose(found[-1]["values"], learn.sched.val_losses, rtol=ROUNDING)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """What the same script finds on packed images in 1 and 2 processes."""
    found = {}
    kinds = ["shards"]
    for module, kind in (("pyarrow", "parquet"), ("datasets", "hf")):
        with contextlib.suppress(ImportError):
            import_module(module)
            kinds.append(kind)
    for n in (1, 2):
        tmp_path = tmp_path_factory.mktemp(f"packed{n}")
        write_packed(three_colours(tmp_path / "images", n=11, n_valid=5), tmp_path / "packed", kinds)
        run = in_this_process if n == 1 else partial(in_ranks, n)
        found[n], _ = run(tmp_path, "packed", tmp_path / "packed", ",".join(kinds))
    return found


def write_packed(folder, out, kinds):
    """Archives of 11 images and their labels, tables in row groups of 4, and a data set."""
    out.mkdir()
    images = {
        part: [(one.read_bytes(), one.parent.name) for one in sorted(folder.glob(f"{part}/*/*.png"))]
        for part in ("train", "valid")
    }
    archives = {f"train-{k}": images["train"][k::3] for k in range(3)} | {"val": images["valid"]}
    for name, members in archives.items():
        with tarfile.open(out / f"{name}.tar", "w") as archive:
            for i, pair in enumerate(members):
                for ending, content in zip(("png", "cls"), (pair[0], pair[1].encode()), strict=True):
                    info = tarfile.TarInfo(f"{i:03d}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    columns = {
        part: {"image": [image for image, _ in those], "label": [name for _, name in those]}
        for part, those in images.items()
    }
    if "parquet" in kinds:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
        for part, name in (("train", "train"), ("valid", "val")):
            parquet.write_table(arrow.table(columns[part]), out / f"{name}.parquet", row_group_size=4)
    if "hf" in kinds:
        datasets = import_module("datasets")
        sets = {part: datasets.Dataset.from_dict(one) for part, one in columns.items()}
        datasets.DatasetDict(sets).save_to_disk(out / "hf")


def test_packed_images_give_what_they_give_in_one_process(packed):
    one = packed[1][0]
    for other in packed[2]:
        for what in one:
            if what.endswith(("losses", "head")):
                np.testing.assert_allclose(other[what], one[what], rtol=ROUNDING, atol=ROUNDING)
            elif what.endswith("predictions"):
                np.testing.assert_allclose(other[what], one[what], rtol=1e-4, atol=1e-5)
    kinds = [what.split()[0] for what in one if what.endswith("predictions")]
    for kind in kinds:  # and in archives, tables and data sets the same
        assert len(one[f"{kind} predictions"]) == 15


def test_each_reads_its_share_of_packed_images(packed):
    """What two read together is what one does, each image once; and of archives each reads the headers of a part."""
    one, two = packed[1][0], packed[2]
    for what in one:
        if what.endswith(("scan", "fit", "predict", "precompute", "computed")):
            together = sorted(name for other in two for name in other[what])
            if what.startswith("hf"):  # a rank that serves an image another has scanned reads it for its hash as well
                assert set(together) == set(one[what])
                assert len(together) <= len(one[what]) * 2
            else:
                assert together == one[what], what
            assert np.ptp([len(other[what]) for other in two]) <= len(one[what]) * 0.1 + 4, what
            assert len(one[what]) > 10
    assert sorted(name for other in two for name in other["headers"]) == one["headers"]
    assert max(len(other["headers"]) for other in two) < 4


def test_an_error_of_one_ends_all_and_is_shown(tmp_path):
    folder = three_colours(tmp_path / "images")
    _, errors = ended(process := torchrun(2, tmp_path, SCRIPTS / "dies.py", folder, "step", 1, "raises"))
    assert process.returncode == 1
    assert time.time() - float((folder / "died").read_text()) < 30
    assert "RuntimeError: the error to read" in errors


@pytest.mark.parametrize(("place", "rank"), [("block", 1), ("write", 0)])
def test_a_killed_one_ends_the_others_and_leaves_what_can_be_used(tmp_path, place, rank):
    folder = three_colours(tmp_path / "images")
    if place == "block":  # of images in archives
        write_packed(folder, tmp_path / "packed", ())
        folder = tmp_path / "packed"
    processes = started(2, tmp_path, "dies", folder, place, rank, "kill")
    errors = [ended(process)[1] for process in processes]
    assert time.time() - float((folder / "died").read_text()) < 30
    assert [process.returncode for process in processes] == [-9 if k == rank else 1 for k in range(2)]
    assert "another process has ended, and its error is the one to read" in errors[1 - rank]
    # The same calls go on, in one process.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        data = packed_data(folder) if place == "block" else image_data(folder)
        learn = tiny_learner(data, pretrained=True)
        learn.fit(0.1, 3, state_name="state", resume=True)
        learn.precompute = True
        learn.fit(0.1, 2)
        learn.save("m")
    assert not list(tmp_path.rglob("*.tmp-*"))


def numbers(text):
    """The lines of the epoch tables, as numbers."""
    rows = [line.partition("(")[0].split() for line in text.splitlines()]
    return [[float(value) for value in row] for row in rows if len(row) == 4 and row[0].isdigit()]


def test_the_script_of_the_readme_runs_unchanged(tmp_path, monkeypatch, capsys):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    script = readme.partition("```python\n")[2].partition("```")[0]
    assert "learn.TTA()" in script
    for there, here in (("resnet34, 224", "resnet34, 64"), ("resnet34", "efficientnet_lite0")):
        script = script.replace(there, here)
    files = []
    for n in (1, 2):
        folder = three_colours(tmp_path / f"images{n}", n=8, n_valid=3, n_test=2)
        files.append(tmp_path / f"{n}.py")
        files[-1].write_text(
            script.replace('"dogscats"', f"{str(folder)!r}, bs=8") + "\nprint(log_preds.shape, y.tolist())"
        )
    monkeypatch.setattr(reporting, "_logged", set())
    runpy.run_path(str(files[0]))
    printed = [capsys.readouterr().out]
    out, errors = ended(process := torchrun(2, tmp_path, files[1]))
    assert process.returncode == 0, errors
    printed.append(out)
    one, two = map(numbers, printed)
    assert len(one) == len(two) == 13
    # While the body is frozen; then it leaves out layers at random (stochastic depth), by torch's generators.
    np.testing.assert_allclose(two[:6], one[:6], rtol=2e-3, atol=2e-3)
    assert printed[0].splitlines()[-1] == printed[1].splitlines()[-1]


def test_alone_nothing_is_connected_and_nothing_waits(tmp_path, monkeypatch):
    for module in (ranks, rank_tensors):
        monkeypatch.setattr(module, "joined", lambda: pytest.fail("joined"))
    learn = tiny_learner(image_data(three_colours(tmp_path)))
    learn.fit(0.1, 1)
    learn.precompute = True
    learn.fit(0.1, 1)
    learn.save("m")
    learn.load("m")
    learn.TTA(1)
    assert (ranks.size(), ranks.rank(), ranks.is_first()) == (1, 0, True)


def test_what_a_rank_starts_is_no_rank(monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "3")
    assert (ranks.size(), ranks.rank(), ranks.on_this_machine()) == (3, 1, 3)
    monkeypatch.setenv("FASTCLF_RANK_PROCESS", str(os.getppid()))
    assert (ranks.size(), ranks.rank(), ranks.on_this_machine()) == (1, 0, 1)
    monkeypatch.setenv("FASTCLF_RANK_PROCESS", str(os.getpid()))
    assert ranks.size() == 3
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # a batch system's own variables do not count
    assert ranks.size() == 1


def test_shares_are_all_rows_in_order(monkeypatch, rng):
    for size in range(1, 6):
        n = int(rng.integers(0, 20))
        monkeypatch.setattr(ranks, "size", lambda size=size: size)
        shares = []
        for rank in range(size):
            monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
            shares.append(np.arange(n)[ranks.share(n)])
        np.testing.assert_array_equal(np.concatenate(shares), np.arange(n))
        assert np.ptp([len(one) for one in shares]) <= 1


def test_the_command_starts_torchrun_with_its_own_arguments(monkeypatch, tmp_path, capsys):
    started = []

    class Run:
        def __init__(self, command, env):
            started.append((command, env))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self):
            return 7

    monkeypatch.setattr(subprocess, "Popen", Run)
    argv = ["train", str(tmp_path), "--nproc", "2", "--epochs", "1"]
    assert main(argv) == 7
    ((command, env),) = started
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert "--nproc-per-node=2" in command
    assert command[-6:] == ["-m", "fastclf", "train", str(tmp_path), "--epochs", "1"]
    assert int(env["OMP_NUM_THREADS"]) >= 1
    assert main(["train", str(tmp_path), "--nproc", "0"]) == 2
    assert "--nproc must be at least 1" in capsys.readouterr().err
    assert not torch.distributed.is_initialized()
