"""Which renderer makes the batches, and that all of them make the same."""

import gc
import weakref

import pytest
import torch
from devices import GPU
from instruction_sets import instruction_set

from fastclf import (
    CropType,
    Cutout,
    ImageClassifierData,
    RandomBlur,
    RandomDihedral,
    RandomLighting,
    RandomRotate,
    RandomStretch,
    report,
    tfms_from_stats,
)
from fastclf.data.decode.graphs import GraphInput, Pipeline, _source
from fastclf.data.decode.native_renderer import NativeRenderer
from fastclf.data.decode.renderer import GraphRenderer, cpu_renderer
from fastclf.ops import use_backend
from fastclf.ops.crop_resize import has_crop_resize

pytestmark = pytest.mark.skipif(not has_crop_resize(torch.device("cpu")), reason="the native module is not built")

STATS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize("crop", list(CropType))
@pytest.mark.usefixtures("emulated_module")
def test_loaders_serve_what_the_graph_makes(folders, crop):
    """All ways of making a batch, on the CPU: the processor's code, the GPU's kernel, and DALI's graph."""
    augs = [RandomRotate(20), RandomStretch(0.2), RandomDihedral(), RandomLighting(0.2, 0.2), RandomLighting(0.1, 0.3)]
    tfms = tfms_from_stats(STATS, 24, augs, 1.3, 2, crop)
    served = []
    for backend in ("native", "emulated", "reference"):
        with use_backend(backend), instruction_set("baseline"):
            data = ImageClassifierData.from_paths(folders, 5, tfms, device="cpu")
            served.append([torch.cat([x for x, _ in dl.batches(1)]) for dl in (data.trn_dl, data.fix_dl, data.test_dl)])
    for ours, kernels, graphs in zip(*served, strict=True):
        torch.testing.assert_close(kernels, ours, rtol=0, atol=2e-5)  # the mean of a crop is summed in another order
        # Positions are float32 in both, values are stretched by contrast and 1 / std.
        assert (ours - graphs).abs().max() < 5e-3
        assert (ours - graphs).abs().mean() < 2e-4


def test_augmentations_that_only_the_graph_knows(capsys):
    """Leaving the native path is logged once."""
    report._logged.clear()
    for aug in (RandomBlur(3), Cutout(1, 4), Cutout(2, 4)):
        tfms = tfms_from_stats(STATS, 16, [aug, RandomRotate(10)])[0]
        assert isinstance(cpu_renderer(tfms, GraphInput(), 4, 1), GraphRenderer)
    line = "{}: not in the native renderer; DALI makes these batches, which takes longer"
    assert capsys.readouterr().out.splitlines() == [line.format("RandomBlur"), line.format("Cutout")]
    tfms = tfms_from_stats(STATS, 16, [RandomLighting(0.1, 0.1), RandomRotate(10)])[0]
    assert isinstance(cpu_renderer(tfms, GraphInput(), 4, 1), NativeRenderer)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "augs", [[RandomRotate(10)], [RandomBlur(3)], [lambda x, u: x]], ids=["native", "graph", "torch"]
)
def test_a_renderer_ends_with_its_last_user(augs):
    """And so do its threads; in a cycle they would live until Python looks for cycles, which it rarely does."""
    renderer = weakref.ref(made := cpu_renderer(tfms_from_stats(STATS, 16, augs)[0], GraphInput(), 4, 1))
    gc.disable()
    try:
        del made
        assert renderer() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("on_processor", [False, True])
@pytest.mark.parametrize("how", [{}, {"by_path": False}, {"files": False}, {"files": False, "white": 1.0}])
def test_images_for_a_gpu_are_decoded_onto_it(how, on_processor):
    """The graph is not built, which takes a GPU."""
    with Pipeline(batch_size=2, num_threads=1, device_id=0):
        assert _source(GraphInput(on_processor=on_processor, **how), gpu=True).device == "gpu"
        assert _source(GraphInput(on_processor=on_processor, **how), gpu=False).device == "cpu"


@pytest.mark.parametrize("device", [GPU])
def test_a_gpu_serves_what_the_processor_makes(folders, device):
    """Of PNG files, which all decoders decode alike."""
    tfms = tfms_from_stats(STATS, 24, [RandomRotate(20), RandomDihedral(), RandomLighting(0.2, 0.2)], 1.3, 2)
    served = []
    for where in ("cpu", device):
        data = ImageClassifierData.from_paths(folders, 5, tfms, device=where)
        served.append([torch.cat([x.cpu() for x, _ in dl.batches(1)]) for dl in (data.trn_dl, data.fix_dl)])
    for ours, theirs in zip(*served, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3)  # float32 positions, stretched by contrast and std
