"""A body on a GPU without gradients, played on the processor: batches of one size, and what runs outside cuDNN."""

import pytest
import torch
from helpers import tiny_body
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastclf.models.net import Net
from fastclf.models.runtime import frozen
from fastclf.models.runtime.on_gpu import DepthwiseOutsideCudnn, SteadyBatches


@pytest.fixture
def net(monkeypatch):
    """A network that takes the processor for a GPU, and the sizes of the batches that its body sees."""
    monkeypatch.setattr(frozen, "_takes", lambda *_: False)
    monkeypatch.setattr(frozen, "_is_on_gpu", lambda x: True)
    net = Net(tiny_body(), nn.Identity()).eval()
    net.sizes = []
    real = net.body.forward
    monkeypatch.setattr(net.body, "forward", lambda x: net.sizes.append(len(x)) or real(x))
    return net


def images(n, sz=24):
    return torch.randn(n, 3, sz, sz)


def test_a_batch_is_filled_up_to_the_largest_before_it(net):
    with torch.inference_mode():
        for n in (2, 7, 7, 3, 1, 7):
            x = images(n)
            found = net.features(x)
            assert found.shape == (n, net.body.n_features)
            largest = net.sizes[-1]
            filled = torch.cat([x, torch.zeros(largest - n, 3, 24, 24)])
            assert torch.equal(found, net.body(filled)[:n])
            torch.testing.assert_close(found, net.body(x), rtol=1e-5, atol=1e-5)
    assert net.sizes[::3] == [2, 7, 7, 7, 7, 7]


def test_sizes_of_images_do_not_mix(net):
    with torch.inference_mode():
        for n, sz in ((5, 24), (3, 32), (2, 32), (4, 24)):
            net.features(images(n, sz))
    assert net.sizes == [5, 3, 3, 5]


def test_what_trains_or_is_watched_is_not_filled_up(net):
    net.features(images(5))
    net.features(images(3))
    net.body.requires_grad_(False)
    net.features(images(4))
    handle = net.body.pool.register_forward_hook(lambda *_: None)
    net.features(images(2))
    handle.remove()
    with torch.no_grad():
        net.train()
        net.features(images(1).repeat(2, 1, 1, 1))
    assert net.sizes == [5, 3, 4, 2, 2]
    net.eval()
    net.features(images(1))
    assert net.sizes[-1] == 4


def test_normalisation_over_the_batch_sees_no_padding():
    norm = nn.BatchNorm2d(3, track_running_stats=False).eval()
    batches = SteadyBatches()
    for n in (6, 4):
        x = images(n)
        assert torch.equal(batches(norm, x, [norm]), norm(x))


class Watch(TorchFunctionMode):
    """Notes for each convolution whether cuDNN may run it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d:
            self.seen.append(torch.backends.cudnn.enabled)
        return func(*args, **(kwargs or {}))


def test_depthwise_convolutions_alone_run_outside_cudnn():
    x = images(2)
    layers = [
        nn.Conv2d(3, 3, 3, groups=3),
        nn.Conv2d(3, 6, (1, 5), groups=3, stride=2),
        nn.Conv2d(3, 3, 7, groups=3, padding="same"),  # large
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 1, groups=4),
    ]
    with torch.no_grad(), Watch() as watch:
        inputs = [x, x, x, x, images(2).new_ones(2, 4, 9, 9), images(2).new_ones(2, 4, 9, 9)]
        expected = [layer(value) for layer, value in zip(layers, inputs, strict=True)]
        assert watch.seen == [True] * 6
        watch.seen.clear()
        with DepthwiseOutsideCudnn():
            found = [layer(value) for layer, value in zip(layers, inputs, strict=True)]
            functional.conv2d(weight=layers[0].weight, input=x, groups=3)
        assert watch.seen == [False, False, True, True, True, False, False]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.backends.cudnn.enabled


def test_cudnn_is_on_again_after_an_error_and_stays_off_where_it_was(monkeypatch):
    with DepthwiseOutsideCudnn(), pytest.raises(RuntimeError):
        functional.conv2d(images(2), torch.randn(3, 2, 3, 3), groups=3)
    assert torch.backends.cudnn.enabled
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    with DepthwiseOutsideCudnn():
        functional.conv2d(images(2), torch.randn(3, 1, 3, 3), groups=3)
    assert not torch.backends.cudnn.enabled
