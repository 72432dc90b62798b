"""Two processes that share a folder without locks: each makes progress of its own, and none reads half of anything."""

import itertools
import json
import os

import numpy as np
import pytest
import torch
from faults import in_child, status_of

from fastclf import autotune
from fastclf.checkpoint import load_checkpoint, save_checkpoint
from fastclf.files import publish

SITUATION = {"arch": "a"}


def ways():
    return {"fast": lambda: None, "slow": lambda: None}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_choice_of_another_process_is_taken(monkeypatch, damaged):
    """The other one's choice comes after this one has looked for it, before it puts its own in place."""
    file = autotune._file(SITUATION)
    if damaged:
        publish(file, lambda temporary: temporary.write_text("{"))
    monkeypatch.setattr(autotune, "measure", lambda ways: {"fast": 1.0, "slow": 2.0})
    original = autotune.write_new

    def write_new(path, data):
        original(path, data)
        if not damaged:
            publish(file, lambda temporary: temporary.write_text(json.dumps({"choice": "slow"})))

    monkeypatch.setattr(autotune, "write_new", write_new)
    assert autotune.autotune(SITUATION, ways(), "slow") == ("fast" if damaged else "slow")
    assert autotune.cached(SITUATION) == ("fast" if damaged else "slow")
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_processes_agree_on_what_was_measured(tmp_path, rng):
    """However often they choose at once."""
    for turn in range(20):
        situation = {"turn": turn}

        def child(first, situation=situation):
            autotune.measure = lambda ways: {first: 1.0} | dict.fromkeys(ways.keys() - {first}, 2.0)
            chosen = autotune.autotune(situation, ways(), "fast")
            assert autotune.cached(situation) == chosen
            (tmp_path / f"{situation['turn']}-{first}").write_text(chosen)

        pids = [in_child(lambda first=first, child=child: child(first)) for first in ("fast", "slow")]
        assert [status_of(pid) for pid in pids] == [0, 0]
        assert len({(tmp_path / f"{turn}-{first}").read_text() for first in ("fast", "slow")}) == 1


def test_models_saved_and_loaded_under_one_name(tmp_path, rng):
    """Two that save the same few contents again and again, and one that loads: always one of them, whole."""
    contents = [{"w": torch.full((50,), float(k))} for k in range(2)]
    path = tmp_path / "m"
    save_checkpoint(path, contents[0], {"classes": []})

    def saves(seed):
        for k in np.random.default_rng(seed).integers(0, 2, 60):
            save_checkpoint(path, contents[k], {"classes": []})

    pids = [in_child(lambda seed=seed: saves(seed)) for seed in rng.integers(1 << 30, size=2).tolist()]
    done = dict.fromkeys(pids, None)
    while None in done.values():
        value = load_checkpoint(path)[0]["w"]
        assert any(torch.equal(value, content["w"]) for content in contents)
        for pid in [pid for pid in pids if done[pid] is None]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            done[pid] = os.waitstatus_to_exitcode(status) if ended else None
    assert list(done.values()) == [0, 0]
    value = load_checkpoint(path)[0]["w"]
    assert any(torch.equal(value, content["w"]) for content in contents)
    assert not [p for p in tmp_path.iterdir() if ".tmp-" in p.name]


def test_a_file_is_published_whole_by_any_number_of_processes(tmp_path):
    texts = ["a" * 9000, "b" * 20_000]

    def publishes(text):
        for _ in range(50):
            publish(tmp_path / "file", lambda temporary: temporary.write_text(text))

    pids = [in_child(lambda text=text: publishes(text)) for text in texts]
    seen = set()
    for _ in itertools.repeat(None, 2000):
        if (tmp_path / "file").exists():
            seen.add((tmp_path / "file").read_text())
    assert [status_of(pid) for pid in pids] == [0, 0]
    assert seen <= set(texts)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
