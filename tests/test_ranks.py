"""Several processes that train together: the same losses, predictions and files as one, however they end.

Most tests start the ranks with the environment that torchrun gives them, which saves its own start; those of failures
and of the unchanged script start torchrun.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import image_data, three_colours, tiny_learner
from processes import ENVIRONMENT

from fastclf import ranks
from fastclf.cli import main

ROUNDING = 3e-6  # of losses, relative
SCRIPTS = Path(__file__).parent / "ranks"
LIMIT = 120  # seconds until a test takes a hang for granted


def environment(tmp_path):
    return ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def in_ranks(n, tmp_path, script, *args):
    """Run a script in n ranks; what each has written as JSON into the file that is its last argument."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    out = tmp_path / f"{script}-{n}"
    common = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    started = []
    for rank in range(n):
        own = {"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RUN_ID": "test"} | common if n > 1 else {}
        command = [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, args), f"{out}.{rank}"]
        own = environment(tmp_path) | {name: str(value) for name, value in own.items()}
        started.append(subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        ended = [process.communicate(timeout=LIMIT) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * n, [errors for _, errors in ended]
    assert all(not printed for printed, _ in ended[1:])
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(n)], ended[0][0]


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
        return process.communicate(timeout=LIMIT)
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
        found[n] = in_ranks(n, tmp_path, "lesson", folder)
    return found


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("what", ["frozen", "unfrozen", "batch_norm", "own", "adam", "head", "lr_find"])
def test_losses_are_those_of_one_process(lessons, what, n):
    one = lessons[1][0][0][what]
    assert len(one) > 3
    assert np.isfinite(one).all()
    for other in lessons[n][0]:
        np.testing.assert_allclose(other[what], one, rtol=ROUNDING, atol=ROUNDING)
        assert other[what] == lessons[n][0][0][what]  # of all ranks, bit for bit


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("what", ["tta", "valid", "test", "two", "train"])
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
    assert np.ptp([len(rows) for rows in computed]) <= 3  # one of each set
    for other in lessons[n][0]:
        np.testing.assert_allclose(other["rows"], one["rows"], rtol=1e-3, atol=1e-3)


def test_a_fit_goes_on_with_other_numbers_of_ranks(tmp_path):
    """Interrupted in 2 processes amid an epoch, then in 3, it ends in 1 as if there had always been 1."""
    folder = three_colours(tmp_path / "images", n=11)
    found = []
    for n, stop in ((2, 6), (3, 11), (1, 0)):
        results, _ = in_ranks(n, tmp_path, "resumes", folder, stop)
        assert all(result == results[0] for result in results)
        found.append(results[0])
    assert [len(result["losses"]) for result in found] == [6, 11, 16]
    learn = tiny_learner(image_data(folder), pretrained=True)
    learn.unfreeze()
    learn.fit([0.01, 0.02, 0.05], 4)
    np.testing.assert_allclose(found[-1]["losses"], learn.sched.losses, rtol=ROUNDING)
    np.testing.assert_allclose(found[-1]["values"], learn.sched.val_losses, rtol=ROUNDING)


@pytest.mark.parametrize(("place", "rank", "how"), [("step", 1, "raises"), ("block", 1, "kill"), ("write", 0, "kill")])
def test_whoever_dies_ends_all_with_its_error(tmp_path, place, rank, how):
    folder = three_colours(tmp_path / "images")
    _, errors = ended(process := torchrun(2, tmp_path, SCRIPTS / "dies.py", folder, place, rank, how))
    assert process.returncode == 1
    assert time.time() - float((folder / "died").read_text()) < 30
    assert ("RuntimeError: the error to read" if how == "raises" else "SIGKILL") in errors
    assert "another process has ended, and its error is the one to read" in errors
    # What is left can be used: the same calls go on, in one process.
    learn = tiny_learner(image_data(folder), pretrained=True)
    learn.fit(0.1, 3, state_name="state", resume=True)
    learn.precompute = True
    learn.fit(0.1, 2)
    learn.save("m")
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_ctrl_c_stops_all_at_one_step(tmp_path):
    folder = three_colours(tmp_path / "images")
    _, errors = ended(process := torchrun(2, tmp_path, SCRIPTS / "dies.py", folder, "step", 1, "interrupts"))
    assert process.returncode != 0
    stopped = [line.partition("fit was stopped")[2] for line in errors.splitlines() if "fit was stopped" in line]
    assert len(stopped) == 2
    where = {line for line in stopped if "epoch(s)" in line}  # the other one's own signal may end it before it says so
    assert len(where) == 1
    assert "resume=True goes on" in where.pop()


def numbers(text):
    """The lines of the epoch tables, as numbers."""
    rows = [line.partition("(")[0].split() for line in text.splitlines()]
    return [[float(value) for value in row] for row in rows if len(row) == 4 and row[0].isdigit()]


def test_the_script_of_the_readme_runs_unchanged(tmp_path):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    script = readme.partition("```python\n")[2].partition("```")[0]
    assert "learn.TTA()" in script
    for there, here in (("resnet34, 224", "resnet34, 64"), ("resnet34", "efficientnet_lite0")):
        script = script.replace(there, here)
    printed = []
    for n in (1, 2):
        folder = three_colours(tmp_path / f"images{n}", n=8, n_valid=3, n_test=2)
        (tmp_path / f"{n}.py").write_text(
            "import matplotlib; matplotlib.use('Agg')\n"
            + script.replace('"dogscats"', f"{str(folder)!r}, bs=8")
            + "\nprint(log_preds.shape, y.tolist())"
        )
        if n == 1:
            process = subprocess.Popen(
                [sys.executable, str(tmp_path / "1.py")],
                env=environment(tmp_path),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        else:
            process = torchrun(n, tmp_path, tmp_path / "2.py")
        out, errors = ended(process)
        assert process.returncode == 0, errors
        printed.append(out)
    one, two = map(numbers, printed)
    assert len(one) == len(two) == 13
    # While the body is frozen; then it leaves out layers at random (stochastic depth), by torch's generators.
    np.testing.assert_allclose(two[:6], one[:6], rtol=2e-3, atol=2e-3)
    assert printed[0].splitlines()[-1] == printed[1].splitlines()[-1]


def test_alone_nothing_is_connected_and_nothing_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "_joined", lambda: pytest.fail("joined"))
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
    assert command[-len(argv) - 2 :] == ["-m", "fastclf", *argv]
    assert int(env["OMP_NUM_THREADS"]) >= 1
    assert main(["train", str(tmp_path), "--nproc", "0"]) == 2
    assert "--nproc must be at least 1" in capsys.readouterr().err
    assert not torch.distributed.is_initialized()
