"""Grad-CAM against computations that know the answer, in float64, and what it leaves as it was."""

import numpy as np
import pytest
import torch
from helpers import HALF, assert_same, image_data, state_of, three_colours, tiny_learner
from torch import nn

from fastclf.interpret.heatmap import grad_cam
from fastclf.models.body import Body, SequentialBody
from fastclf.models.net import Net


class _Tokens(Body):
    """A class token and n x n patches through two layers that mix all tokens; the token alone is the features."""

    def __init__(self, width, n):
        super().__init__("test:tokens", width, "token", HALF)
        self.cut = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.ModuleList(_Mix(1 + n * n, width) for _ in range(2))

    @property
    def stages(self):
        return [self.cut, *self.blocks]

    def forward(self, x):
        patches = self.cut(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([patches.mean(1, keepdim=True), patches], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 0]


class _Mix(nn.Module):
    def __init__(self, tokens, width):
        super().__init__()
        self.between, self.within = nn.Linear(tokens, tokens), nn.Linear(width, width)

    def forward(self, x):
        return torch.tanh(self.within(self.between(x.transpose(1, 2)).transpose(1, 2)))


def _top(values):
    positive = values.clamp_min(0)
    return (positive / positive.amax((1, 2), keepdim=True).clamp_min(1e-300)).numpy()


def test_of_a_linear_head_the_map_is_the_weighted_sum_of_maps(rng):
    channels, c = 5, 4
    body = SequentialBody(
        "test:linear", [("a", nn.Conv2d(3, 4, 3)), ("b", nn.Conv2d(4, channels, 3))], 1, channels, HALF
    )
    head = nn.Linear(2 * channels, c)
    net = Net(body, head).double()
    x = torch.from_numpy(rng.standard_normal((3, 3, 13, 13)))
    classes = torch.tensor([0, 3, 1])
    with torch.no_grad():
        maps = body.second(body.first(x))
        # Of maxima and averages, the mean gradient over places is (w_max + w_avg) / places.
        weights = head.weight[classes, :channels] + head.weight[classes, channels:]
        expected = _top(torch.einsum("bk,bkij->bij", weights, maps))
    np.testing.assert_allclose(grad_cam(net, x, classes), expected, atol=1e-6)


def test_of_a_class_token_the_patches_before_the_last_layer_count(rng):
    n, width = 3, 6
    body, head = _Tokens(width, n), nn.Linear(width, 2)
    net = Net(body, head).double()
    x = torch.from_numpy(rng.standard_normal((2, 3, 4 * n, 4 * n)))
    patches = body.cut(x).flatten(2).transpose(1, 2)
    tokens = body.blocks[0](torch.cat([patches.mean(1, keepdim=True), patches], 1)).detach()
    expected = []
    for token in tokens:  # a gradient by central differences

        def score(values):
            with torch.no_grad():
                return head(body.blocks[1](values[None])[:, 0])[0, 1]

        gradient = torch.zeros_like(token)
        for place in np.ndindex(*token.shape):
            step = torch.zeros_like(token)
            step[place] = 1e-5
            gradient[place] = (score(token + step) - score(token - step)) / 2e-5
        expected.append((token[1:] @ gradient[1:].mean(0)).reshape(n, n))
    np.testing.assert_allclose(grad_cam(net, x, torch.tensor([1, 1])), _top(torch.stack(expected)), atol=1e-6)


@pytest.mark.parametrize("precompute", [True, False])
def test_a_learner_is_left_as_it_was(tmp_path, precompute):
    learn = tiny_learner(image_data(three_colours(tmp_path)), precompute=precompute)
    predictions = learn.predict()
    learn.model.head.train()
    before, modes = state_of(learn), [module.training for module in learn.model.modules()]
    found = learn.heatmap(tmp_path / "valid" / "red" / "000.png", "red")
    assert found.cls == "red"
    assert found.image.shape == (16, 16, 3) == found.overlaid().shape
    assert found.values.min() >= 0
    assert found.values.max() in (0, 1)
    assert [module.training for module in learn.model.modules()] == modes
    assert all(p.grad is None for p in learn.model.parameters())
    assert not any(module._forward_hooks for module in learn.model.modules())
    assert_same(before, state_of(learn))
    np.testing.assert_array_equal(learn.predict(), predictions)


def test_a_class_that_is_not_there_is_named(tmp_path):
    learn = tiny_learner(image_data(three_colours(tmp_path)))
    for cls in ("yellow", 3, -1):
        with pytest.raises(ValueError, match="heatmap: cls must be"):
            learn.heatmap(np.zeros((16, 16, 3), np.uint8), cls)
