import numpy as np
import pytest
from helpers import image_data, row_data, three_colours
from torch import nn

from fastclf import ConvLearner, compare
from fastclf.models.archs import efficientnet_lite0, resnet18


def test_lists_bodies_the_best_first(tmp_path):
    data = image_data(three_colours(tmp_path), sz=32, augs=())
    found = compare(data, [efficientnet_lite0, resnet18, [efficientnet_lite0, resnet18]], k=3, pretrained=False)
    assert [body.accuracy for body in found.bodies] == sorted((body.accuracy for body in found.bodies), reverse=True)
    names = {"fastclf:efficientnet_lite0", "torchvision:resnet18"}
    assert {body.arch for body in found.bodies} == {*names, "+".join(sorted(names))}
    by_name = {body.arch: body for body in found.bodies}
    sizes = [by_name[name].megabytes for name in sorted(names)]
    assert by_name["+".join(sorted(names))].megabytes == pytest.approx(sum(sizes))
    for body in found.bodies:
        assert body.interval[0] <= body.accuracy <= body.interval[1]
        assert body.seconds > 0
        assert np.isfinite(body.log_loss)
    assert "ms per image" in repr(found)
    assert found.to_frame().shape == (3, 7)
    found.plot()
    assert data.tfms[1].mean == (0.5, 0.5, 0.5)  # of the data that were passed


def test_rows_and_no_architectures_are_refused(tmp_path, rng):
    with pytest.raises(ValueError, match="images"):
        compare(row_data(tmp_path / "rows", rng), [resnet18])
    data = image_data(three_colours(tmp_path / "images"))
    with pytest.raises(ValueError, match="archs"):
        compare(data, [])
    for wrong in (None, 3, nn.Linear):
        for call in (lambda arch=wrong: compare(data, arch), lambda arch=wrong: ConvLearner.pretrained(arch, data)):
            with pytest.raises(TypeError, match="arch must be an Arch such as resnet34"):
                call()


def test_one_architecture_needs_no_brackets(tmp_path):
    data = image_data(three_colours(tmp_path))
    one, of_list = (compare(data, archs, pretrained=False) for archs in (resnet18, [resnet18]))
    assert (len(one), one[0].arch, one[0].accuracy) == (1, of_list[0].arch, of_list[0].accuracy)
