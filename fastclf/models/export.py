"""A whole classifier as one file, from pixels of any size to answers: nothing to prepare outside of it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastclf.data.image_transforms import Transforms
from fastclf.errors import ExportError
from fastclf.files import publish_once, write_new
from fastclf.models.from_pixels import FromPixels
from fastclf.models.net import Net
from fastclf.models.verify import METADATA, TOLERANCE, packed, verify
from fastclf.paths import check_is_no_folder, writable
from fastclf.report import json_text
from fastclf.versions import library_versions

FORMATS = ("onnx", "pt2")
_MOST_BYTES = 2_000_000_000  # a message of protobuf ends at 2 GiB; the graph needs some of it
INPUT, GIVES = "pixels", {"one": "probabilities", "several": "probabilities", "numbers": "values"}
_TEST_SHAPES = ((48, 64), (97, 31), (1, 90), (150, 7))  # of the images that travel in a file


def format_for(path: Path, format: str | None) -> str:
    """Return the format of a file: the one that was asked for, else what its ending names, else ONNX.

    Raises:
        ValueError: there is no such format, or the ending names another.
    """
    named = path.suffix.removeprefix(".").lower()
    if format is None:
        return named if named in FORMATS else "onnx"
    check_format(format)
    if named in FORMATS and named != format:
        raise ValueError(f"export: path must end in .{format}, as format is {format!r}, got {path}")
    return format


def check_format(format: str) -> None:
    """Raise ValueError where there is no such format."""
    if format not in FORMATS:
        raise ValueError(f"export: format must be one of {', '.join(FORMATS)}, got {format!r}")


def write_model(
    file: Path,
    net: Net,
    tfms: Transforms,
    classes: Sequence[str],
    kind: str,
    tuned: Mapping[str, Any],
    format: str = "onnx",
) -> None:
    """Write a classifier as ONNX or as a program of torch.export, whole or not at all, verified before it is published.

    Its one input ``pixels`` is ``[n, h, w, 3] uint8``, RGB, upright: n images of any one size, all three free. Crop,
    resizing and normalisation as in validation, the network and the temperature are part of the file, in float32. Its
    one output ``[n, c] float32`` is called ``probabilities``, or ``values`` in a regression.

    The metadata are texts, JSON where they are no plain text: ``classes``, ``labels`` (``kind``), ``output``, ``arch``,
    ``transforms``, ``versions``, ``tests`` (images and their answers, see `verify`), and what ``tuned`` holds. ONNX has
    them as ``metadata_props``, a program of torch.export in its extra file ``fastclf.json``.

    Args:
        file: where to.
        net: body and head, as they are now.
        tfms: of validation.
        classes: names of the output's columns.
        kind: what an image is labelled with: ``"one"`` class, ``"several"`` classes or ``"numbers"``.
        tuned: ``temperature``, ``thresholds`` and ``confidences``, as far as the model has them.
        format: ``"onnx"`` or ``"pt2"``.

    Raises:
        ExportError: a package is missing, the network does something that cannot be written, or the file computes
            something else.
        IsADirectoryError: there is a folder of this name.
        ValueError: there is no such format.
    """
    check_format(format)
    check_is_no_folder(file)
    if format == "onnx" and not all(map(find_spec, ("onnx", "onnxscript"))):
        raise ExportError("export: onnx and onnxscript are not installed. pip install onnx onnxscript")
    whole = FromPixels(copy.deepcopy(net).cpu(), tfms, kind, tuned.get("temperature", 1.0)).eval().requires_grad_(False)
    values = {
        "classes": list(classes),
        "labels": kind,
        "output": GIVES[kind],
        "arch": net.body.arch,
        "transforms": tfms.describe(),
        "versions": library_versions(),
        "tests": _tests(whole, tfms),
        **tuned,
    }
    metadata = {key: value if isinstance(value, str) else json_text(value) for key, value in values.items()}
    program = _program(whole, net.body.arch)
    data = _onnx(program, metadata, GIVES[kind]) if format == "onnx" else _pt2(program, metadata)

    def write(temporary: Path) -> None:
        write_new(temporary, data)
        worst = verify(temporary, format)
        if not worst <= TOLERANCE:
            raise ExportError(f"export: the file computes other answers than the model, off by {worst:.1e}")

    with writable("Export to a folder where you may write: that of the learner's models is its models_name="):
        publish_once(file, write, waits=True)


def _tests(whole: FromPixels, tfms: Transforms) -> list[dict[str, Any]]:
    """Return small images and their answers, whose crops come from the renderer that validation uses."""
    rng = np.random.default_rng(0)
    tests = []
    for height, width in _TEST_SHAPES:
        coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
        image: NDArray[np.uint8] = coarse.repeat(4, 0).repeat(4, 1)[:height, :width].copy()
        with torch.no_grad():
            answer = whole.answers(torch.from_numpy(tfms(image))[None])[0]
        tests.append(packed(image, answer.numpy()))
    return tests


def _program(whole: FromPixels, arch: str) -> torch.export.ExportedProgram:
    example = torch.zeros(2, whole.sz + 5, whole.sz + 3, 3, dtype=torch.uint8)
    sizes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    with _silence(), _refused(arch):
        return torch.export.export(whole, (example,), dynamic_shapes=(sizes,))


def _onnx(program: torch.export.ExportedProgram, metadata: Mapping[str, str], output: str) -> bytes:
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > _MOST_BYTES:
        raise ExportError(
            f"export: the weights are {size / 1e9:.1f} GB, and an ONNX file may hold {_MOST_BYTES / 1e9:.1f}. Pass "
            'format="pt2"'
        )
    with _silence(), _refused(""):
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[output],
            dynamic_shapes=({0: "n", 1: "h", 2: "w"},),
            verbose=False,
        )
        assert made is not None
        made.model.metadata_props.update(metadata)
        data: bytes = made.model_proto.SerializeToString()
    return data


def _pt2(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with _silence():
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
    return buffer.getvalue()


@contextlib.contextmanager
def _refused(arch: str) -> Iterator[None]:
    """Turn whatever the exporter raises into an `ExportError`."""
    try:
        yield
    except Exception as error:  # it raises what it likes
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"export: {arch or 'the network'} or its head cannot be written: {reason}. A head of your own must do with "
            "tensors alone: no branches on their values, no NumPy"
        ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what the exporter prints, warns of and logs from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
