"""Which renderer makes the batches, and that all of them make the same."""

import pytest
import torch

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
from fastclf.data.decode.graphs import GraphInput
from fastclf.data.decode.native_renderer import NativeRenderer
from fastclf.data.decode.renderer import GraphRenderer, cpu_renderer
from fastclf.ops import use_backend
from fastclf.ops.crop_resize import has_crop_resize

pytestmark = pytest.mark.skipif(not has_crop_resize(torch.device("cpu")), reason="the native module is not built")

STATS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize("crop", list(CropType))
def test_loaders_serve_what_the_graph_makes(folders, crop):
    """The processor's way and the GPU's way of making a batch, both on the CPU."""
    augs = [RandomRotate(20), RandomStretch(0.2), RandomDihedral(), RandomLighting(0.2, 0.2), RandomLighting(0.1, 0.3)]
    tfms = tfms_from_stats(STATS, 24, augs, 1.3, 2, crop)
    served = []
    for backend in ("native", "reference"):
        with use_backend(backend):
            data = ImageClassifierData.from_paths(folders, 5, tfms, device="cpu")
            served.append([torch.cat([x for x, _ in dl.batches(1)]) for dl in (data.trn_dl, data.fix_dl, data.test_dl)])
    for ours, graphs in zip(*served, strict=True):
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
