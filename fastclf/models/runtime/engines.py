"""Runtimes for ONNX files on a processor: each takes a file and gives a function from images to features."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch import Tensor

from fastclf.calls import outlives_fork

Run = Callable[[Tensor], Tensor]


def onnx_runtime(model: bytes, threads: int) -> Run:
    """ONNX Runtime.

    Its threads sleep between operations instead of spinning: decoding and the head's training share the processor.
    It gathers no telemetry, unless the environment already says that it may.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised as well, and reported by who tries it
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"x": x.contiguous().numpy()})[0])

    return outlives_fork(run)


def open_vino(model: bytes, threads: int) -> Run:
    """OpenVINO, in float32: its own choice on some processors would be bfloat16."""
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()

    def run(x: Tensor) -> Tensor:
        found = request.infer({"x": x.contiguous().numpy()}, share_inputs=True)
        return torch.from_numpy(next(iter(found.values())).copy())

    return outlives_fork(run)


ENGINES: dict[str, Callable[[bytes, int], Run]] = {"onnxruntime": onnx_runtime, "openvino": open_vino}


def installed() -> dict[str, str]:
    """Return the runtimes that are installed, best guess first, and their versions."""
    return {name: _version(name) for name in ENGINES if find_spec(name)}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a variant, whose package has another name
        return str(import_module(name).__version__)
