"""ONNX Runtime by hand: torch's exporter, and a session with all optimizations and as many threads as the others."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch

from bench.bench_body import BodySetting


def make(setting: BodySetting) -> Callable[[int], np.ndarray]:
    file, x = io.BytesIO(), setting.images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["x"], "output_names": ["features"], "dynamic_axes": {"x": {0: "n"}}}
        torch.onnx.export(setting.network(), (x[:2],), file, dynamo=False, opset_version=17, **names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    images = x.numpy()
    return lambda _: session.run(None, {"x": images})[0]
