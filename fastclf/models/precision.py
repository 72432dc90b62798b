"""The number format that forward passes run in."""

from __future__ import annotations

import torch


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return float32 on a processor; bf16 on a GPU, or fp16 on one without bf16."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def autocast(device: torch.device) -> torch.autocast:
    """Run a block in `compute_dtype`; do nothing on a processor."""
    on_gpu = device.type == "cuda"
    return torch.autocast(device.type, compute_dtype(device) if on_gpu else torch.bfloat16, enabled=on_gpu)
