"""OpenVINO by hand: its own converter, float32, tuned for the time of one batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openvino

from bench.bench_body import BodySetting


def make(setting: BodySetting) -> Callable[[int], np.ndarray]:
    x = setting.images()
    model = openvino.convert_model(setting.network(), example_input=x[:2], input=[x.shape])
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": setting.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled, images = openvino.Core().compile_model(model, "CPU", settings), x.numpy()
    return lambda _: compiled(images)[0]
