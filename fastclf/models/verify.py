"""Check an exported file against the answers that travel in it, with ONNX Runtime and NumPy (or torch) alone.

This file imports nothing of fastclf: copied to another machine, it runs there as ``python verify.py FILE``.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-4
"""Of a probability; of a regression's value relative to it where that is above 1."""

METADATA = "fastclf.json"  # beside a program of torch, where ONNX has properties of its own

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def packed(image: NDArray[np.uint8], answer: NDArray[np.float32]) -> dict[str, Any]:
    """Return a test image ``[h, w, 3]`` and its answer ``[c]`` as JSON values."""
    pixels = base64.b64encode(zlib.compress(image.tobytes())).decode()
    return {"shape": list(image.shape), "pixels": pixels, "answer": [float(value) for value in answer]}


def verify(file: str | Path, format: str | None = None) -> float:
    """Return by how much a file's answers differ from those in it, at most.

    Args:
        file: ONNX, or a program of torch.export.
        format: ``"onnx"`` or ``"pt2"``; as the file's name ends by default.

    Raises:
        ValueError: it holds no test images, or is no file that can be read.
    """
    path = Path(os.path.expanduser(file))  # noqa: PTH111  # as the rest of fastclf takes paths
    run, metadata = _opened(path, format or path.suffix.removeprefix("."))
    return largest_difference(run, metadata)


def largest_difference(run: Run, metadata: Mapping[str, str]) -> float:
    """Return by how much the answers of ``run`` differ from those in the metadata, at most.

    Raises:
        ValueError: there are no test images in it.
    """
    if "tests" not in metadata:
        raise ValueError("verify: the file holds no test images. Export the model again")
    worst = 0.0
    for image, answer in _tests(metadata["tests"]):
        found = run(image[None])[0].astype(np.float64)
        if found.shape != answer.shape or not np.isfinite(found).all():
            return float("inf")
        worst = max(worst, float((np.abs(found - answer) / np.maximum(1, np.abs(answer))).max()))
    return worst


def _tests(text: str) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float64]]]:
    for test in json.loads(text):
        pixels = np.frombuffer(zlib.decompress(base64.b64decode(test["pixels"])), np.uint8)
        yield pixels.reshape(test["shape"]), np.array(test["answer"], np.float64)


def _opened(file: Path, format: str) -> tuple[Run, Mapping[str, str]]:
    if not file.is_file():
        raise ValueError(f"verify: there is no file {file}")
    try:
        return _program(file) if format == "pt2" else _session(file)
    except ImportError:
        raise
    except Exception as error:  # the runtimes raise what they like
        raise ValueError(f"verify: {file} cannot be read: {' '.join(str(error).split())[:300]}") from error


def _session(file: Path) -> tuple[Run, Mapping[str, str]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})[0], session.get_modelmeta().custom_metadata_map


def _program(file: Path) -> tuple[Run, Mapping[str, str]]:
    import torch

    extra = {METADATA: ""}
    with file.open("rb") as stream:  # of a path it wants to know the ending, which a temporary file lacks
        module = torch.export.load(stream, extra_files=extra).module()

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            found: NDArray[np.float32] = module(torch.from_numpy(pixels.copy())).numpy()
        return found

    return run, json.loads(extra[METADATA] or "{}")


def main(file: str) -> int:
    """Print how a file's answers compare; return 0 where they agree, else 1."""
    worst = verify(file)
    agree = worst <= TOLERANCE
    sys.stdout.write(f"{file}: {'the same answers' if agree else 'OTHER ANSWERS'}, off by {worst:.1e} at most\n")
    return 0 if agree else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
