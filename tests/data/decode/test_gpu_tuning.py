"""What decodes fastest on a GPU: tried once, remembered, and never in the way of an error. The clock is played."""

import numpy as np
import pytest
import torch

from fastclf import autotune, tfms_from_stats, transforms_side_on
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.decode import gpu_tuning as tuning
from fastclf.data.decode import renderer
from fastclf.data.decode.decode_error import DecodeError
from fastclf.data.decode.gpu_tuning import Tuning, candidates, fastest
from fastclf.ops.crop_resize import has_crop_resize

SITUATION = {"card": "none"}
STATS = ([0.5] * 3, [0.5] * 3)


@pytest.fixture(autouse=True)
def _nothing_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def quick(monkeypatch):
    """Makes one tuning the quickest."""

    def quick(wanted):
        monkeypatch.setattr(autotune, "measure", lambda ways: {name: name != str(wanted) for name in ways})

    return quick


def test_candidates_differ_in_one_number(monkeypatch):
    monkeypatch.setattr(tuning, "available_processors", lambda: 16)
    first, *others = candidates(8)
    assert first == Tuning(8)
    for other in others:
        threads = other.num_threads != first.num_threads and other.on_processor  # it decodes with all it has
        assert sum(a != b for a, b in zip(vars(first).values(), vars(other).values(), strict=True)) == 1 + threads
    assert {other.num_threads for other in others} == {8, 16}
    assert {(other.on_processor, other.by_graph) for other in others} == {(False, False), (True, False), (False, True)}
    monkeypatch.setattr(tuning, "available_processors", lambda: 8)
    assert {one.num_threads for one in candidates(8)} == {8}


@pytest.mark.parametrize("wanted", candidates(2))
def test_the_fastest_is_taken_and_remembered(quick, wanted):
    quick(wanted)
    built, tried = [], []

    def build(one):
        built.append(one)
        return one

    assert fastest(SITUATION, 2, build, tried.append) == wanted
    assert built == tried == candidates(2)
    built.clear()
    tried.clear()
    assert fastest(SITUATION, 2, build, tried.append) == wanted
    assert (built, tried) == ([wanted], [])
    fastest({"card": "other"}, 2, build, tried.append)
    assert tried == candidates(2)


def test_few_images_are_not_worth_a_measurement(quick):
    wanted = candidates(2)[2]
    quick(wanted)
    tried = []
    assert fastest(SITUATION, 2, lambda one: one, tried.append, pays=False) == Tuning(2)
    assert tried == []
    fastest(SITUATION, 2, lambda one: one, tried.append)
    assert fastest(SITUATION, 2, lambda one: one, None, pays=False) == wanted  # known from before


def test_a_bad_image_ends_the_trial(quick):
    quick(candidates(2)[1])

    def work(_):
        raise DecodeError("cannot decode")

    assert fastest(SITUATION, 2, lambda one: one, work) == Tuning(2)
    assert fastest(SITUATION, 2, lambda one: one, lambda _: None) == candidates(2)[1]  # nothing was remembered


def test_the_trial_makes_the_batches_of_an_epoch(folders, monkeypatch, quick):
    """The whole way of a GPU, on the processor: batches come out as ever, and those of the trial are not kept."""
    wanted = Tuning(2, hw_decoder_load=0.9)
    quick(wanted)
    asked, kinds = [], set()
    first_stage = renderer._first_stage

    def on_processor(tfms, source, bs, device, tuning):
        asked.append((tuning, source.hw_decoder_load, source.on_processor))
        made = first_stage(tfms, source, bs, torch.device("cpu"), tuning)
        kinds.add((tuning.by_graph, type(made)))
        return made

    monkeypatch.setattr(renderer, "_first_stage", on_processor)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    tfms = tfms_from_stats(STATS, 24, transforms_side_on, 1.2)
    data = ImageClassifierData.from_paths(folders, 5, tfms, num_workers=2, device="cpu")
    dl = data.aug_dl
    made = renderer.gpu_renderer(tfms[0], renderer.GraphInput(), 5, torch.device("cuda"), 2, 10**6, dl._try)
    assert [one for one, *_ in asked] == candidates(2)
    assert all((one.hw_decoder_load, one.on_processor) == (load, there) for one, load, there in asked)
    renderer.gpu_renderer(tfms[0], renderer.GraphInput(), 7, torch.device("cuda"), 2, 100, None)
    assert asked[-1] == (wanted, wanted.hw_decoder_load, False)  # what was measured holds for other batch sizes
    if has_crop_resize(torch.device("cpu")):
        assert kinds == {(False, renderer.NativeRenderer), (True, renderer.GraphRenderer)}
    expected = [x for x, _ in dl.batches(0)]
    monkeypatch.setattr(dl, "take_renderer", lambda: made)
    found = [x for x, _ in dl.batches(0)]
    assert [len(x) for x in found] == [len(x) for x in expected]
    for x, y in zip(found, expected, strict=True):
        assert np.abs(x.numpy() - y.numpy()).mean() < 0.02
