"""A whole classifier as one ONNX file, from bytes of pixels to predictions: nothing to prepare outside of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fastclf.data.transforms.spec import TransformSpec
from fastclf.errors import ExportError
from fastclf.files import publish, write_new
from fastclf.models.head import Head
from fastclf.models.net import Net
from fastclf.models.runtime.engines import onnx_runtime
from fastclf.models.runtime.operations import UnknownOperationError
from fastclf.models.runtime.trace import trace

TOLERANCE = 1e-4
INPUT = "pictures"  # part of exported files
_GIVES = {"one": "log-probabilities", "several": "probabilities", "numbers": "values"}


class _FromPixels(nn.Module):
    """Images ``[B, sz, sz, 3] uint8`` to the network's output ``[B, c]``."""

    scale: Tensor
    shift: Tensor

    def __init__(self, net: Net, stats: tuple[Sequence[float], Sequence[float]]) -> None:
        super().__init__()
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in stats)
        self.net = net
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.float().permute(0, 3, 1, 2)
        out: Tensor = self.net(x * self.scale + self.shift)
        return out


def write_onnx(
    file: Path,
    net: Net,
    tfms: TransformSpec,
    classes: Sequence[str],
    kind: str,
    temperature: float = 1.0,
    thresholds: Sequence[float] | None = None,
) -> None:
    """Write a classifier to an ONNX file, whole or not at all; see `to_onnx`.

    Args:
        file: where to.
        net: see `to_onnx`.
        tfms: of validation: size, mean and deviation.
        classes: see `to_onnx`.
        kind: what an image is labelled with: ``"one"`` class, ``"several"`` classes or ``"numbers"``.
        temperature: see `to_onnx`.
        thresholds: see `to_onnx`.
    """
    model = to_onnx(net, tfms.sz, (tfms.mean, tfms.std), classes, _GIVES[kind], temperature, thresholds)
    publish(file, lambda temporary: write_new(temporary, model))


def to_onnx(
    net: Net,
    sz: int,
    stats: tuple[Sequence[float], Sequence[float]],
    classes: Sequence[str],
    gives: str,
    temperature: float = 1.0,
    thresholds: Sequence[float] | None = None,
) -> bytes:
    """Write a classifier as an ONNX file (opset 20).

    Its input ``pictures`` is ``[n, sz, sz, 3] uint8``: RGB, already cropped and resized, any number of them. The
    normalisation, body, pool and head are in the graph, in float32. Its one output ``[n, c] float32`` is what
    `Learner.predict` gives.

    Args:
        net: body and head, as they are now.
        sz: side of the images.
        stats: mean and deviation, per channel in 0..1, that the images are normalised with.
        classes: names of the output's columns.
        gives: what the output is: ``log-probabilities``, ``probabilities`` or ``values``.
        temperature: the logits are divided by it, in the graph.
        thresholds: of several labels, the probability above which an image has each.

    Returns:
        The file. Its ``metadata_props`` are ``classes`` (a JSON list), ``sz``, ``arch`` and ``output`` (``gives``), and
        ``thresholds`` (a JSON list) where they are given.

    Raises:
        ExportError: a head that is not ours has a temperature; the network has an operation that is not known here; or
            ONNX Runtime computes other values.
    """
    whole = _FromPixels(copy.deepcopy(net).cpu(), stats).eval()
    _divide_logits(whole.net.head, temperature)
    metadata = {
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "sz": str(sz),
        "arch": net.body.arch,
        "output": gives,
    }
    if thresholds is not None:
        metadata["thresholds"] = json.dumps(list(thresholds))
    pixels = torch.randint(0, 256, (3, sz, sz, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        model, expected = trace(whole, pixels, INPUT, metadata)
    except UnknownOperationError as error:
        raise ExportError(f"export: {error}: {net.body.arch} or its head. torch.onnx.export may know it.") from error
    run = onnx_runtime(model, torch.get_num_threads(), INPUT)
    found = torch.cat([run(pixels[:1]), run(pixels[1:])])
    worst = float((found - expected).abs().max())
    if not worst <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ExportError(f"export: ONNX Runtime computes other values, off by {worst:.1e}")
    return model


def _divide_logits(head: nn.Module, temperature: float) -> None:
    """Divide a head's last layer by the temperature."""
    if temperature == 1:
        return
    if not isinstance(head, Head):
        raise ExportError("export: the logits of your own head are not known, so no temperature can be written")
    with torch.no_grad():
        for parameter in head.layers[-1].parameters():
            parameter.div_(temperature)
