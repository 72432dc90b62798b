"""A body on a GPU without gradients, played on the processor: batches of one size, and what runs outside cuDNN."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from helpers import tiny_body
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastclf.losses import NLL
from fastclf.models.freezing import LayerGroups
from fastclf.models.head import Head
from fastclf.models.net import Net
from fastclf.models.runtime import frozen
from fastclf.models.runtime.on_gpu import DepthwiseOutsideCudnn, SteadyBatches, has_depthwise
from fastclf.schedules import Constant
from fastclf.training import steps
from fastclf.training.forward import Objective
from fastclf.training.optimizer import SGDR


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


def test_a_batch_that_memory_does_not_hold_is_not_made_again(net, monkeypatch):
    real = net.body.forward

    def forward(x):
        if len(x) > 4:
            raise torch.OutOfMemoryError
        return real(x)

    monkeypatch.setattr(net.body, "forward", forward)
    with torch.inference_mode():
        for n in (6, 3, 4, 5, 2, 1):
            with pytest.raises(torch.OutOfMemoryError) if n > 4 else nullcontext():
                net.features(images(n))
    assert net.sizes == [3, 4, 2, 2]


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
        nn.Conv2d(3, 3, 7, groups=3, padding=3),  # large
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


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_depthwise_convolutions_are_those_of_torch(bias, autocast):
    error = 0.03 if autocast else 1e-4
    for kernel, stride, padding, dilation, width in ((3, 1, 1, 1, 4), (5, 2, 2, 1, 8), ((1, 3), (2, 1), (0, 2), 2, 4)):
        layers = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, width, kernel, stride, padding, dilation, groups=4, bias=bias),
            nn.Tanh(),
        )
        layers.to(memory_format=torch.channels_last)
        x, found = images(5), []
        for mode in (nullcontext(), DepthwiseOutsideCudnn()):
            layers.zero_grad()
            with mode, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = layers(x).float()
                (out.square() * torch.linspace(0, 1, out.shape[-1])).mean().backward()
            found.append([out.detach(), *(p.grad.clone() for p in layers.parameters())])
            assert all(p.grad.dtype == torch.float32 for p in layers.parameters())
        for one, other in zip(*found, strict=True):
            assert one.stride() == other.stride()
            assert float((one - other).abs().max() / (1e-3 + other.abs().max())) < error
    assert has_depthwise(layers)
    assert not has_depthwise(layers[0])


def test_gradients_are_computed_outside_cudnn(monkeypatch):
    seen, real = [], torch.ops.aten.convolution_backward
    layer = nn.Conv2d(4, 4, 3, groups=4)
    with DepthwiseOutsideCudnn():
        out = layer(images(2).repeat(1, 2, 1, 1)[:, :4])

    def watched(*args):
        seen.append(torch.backends.cudnn.enabled)
        return real(*args)

    monkeypatch.setattr(torch.ops.aten, "convolution_backward", watched)
    out.sum().backward()
    assert seen == [False]
    assert torch.backends.cudnn.enabled


def test_what_trains_on_a_gpu_uses_them_at_first(monkeypatch):
    net = Net(tiny_body(), Head(12, 3))
    net.body.first.conv1 = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, stride=2, groups=4))

    class Loader:
        bs = 8

        def batches(self, epoch):
            return ((images(self.bs), torch.arange(self.bs) % 3) for _ in range(5))

    made = steps.AutogradSteps(
        Objective(net, NLL()), LayerGroups(net.groups), Loader(), SGDR, steps.Rates(np.full(3, 0.01), Constant())
    )
    entered, real = [], steps.DepthwiseOutsideCudnn
    monkeypatch.setattr(steps, "DepthwiseOutsideCudnn", lambda: entered.append(made.step) or real())
    monkeypatch.setattr(steps, "_WORTH_COMPILING", 3 * 8)
    for on_gpu in (False, True):
        assert made._depthwise == on_gpu
        made.step = 0
        made.start_epoch(0)
        assert len(made.run(9)) == 5
        assert entered == [0, 1, 2] * on_gpu
        made._depthwise = True


def test_cudnn_is_on_again_after_an_error_and_stays_off_where_it_was(monkeypatch):
    with DepthwiseOutsideCudnn(), pytest.raises(RuntimeError):
        functional.conv2d(images(2), torch.randn(3, 2, 3, 3), groups=3)
    assert torch.backends.cudnn.enabled
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    with DepthwiseOutsideCudnn():
        functional.conv2d(images(2), torch.randn(3, 1, 3, 3), groups=3)
    assert not torch.backends.cudnn.enabled
