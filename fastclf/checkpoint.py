"""Saved models: ``NAME.json`` and the tensors it points to, ``NAME.<hash>.safetensors``.

The JSON file is put in place last and in one step, so a save that is cut off leaves the earlier model whole.
Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastclf.errors import CheckpointError
from fastclf.files import publish

FORMAT = 1


def save_checkpoint(path: Path, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Saves ``tensors`` and what ``info`` tells of them as model ``path`` (without suffix).

    Raises:
        CheckpointError: the folder cannot be written, or the disk is full; an earlier model of that name stays.
    """
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    weights = path.with_name(f"{path.name}.{digest[:12]}.safetensors")
    manifest = {
        "format": FORMAT,
        "versions": {name: version(name) for name in ("fastclf", "torch")},
        "weights": weights.name,
        "sha256": digest,
        **info,
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    try:
        publish(weights, lambda temporary: temporary.write_bytes(data))
        publish(path.with_name(path.name + ".json"), lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"save: cannot write {error.filename or path}: {error.strerror}") from error
    _remove_older(path, weights)


def _remove_older(path: Path, keep: Path) -> None:
    for old in path.parent.iterdir():
        middle = old.name.removeprefix(path.name + ".").removesuffix(".safetensors")
        if old.name == f"{path.name}.{middle}.safetensors" and len(middle) == 12 and old != keep:
            old.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and what is told of them, of model ``path`` (without suffix).

    Raises:
        FileNotFoundError: there is no such model; names those that there are.
        CheckpointError: a file is damaged, or of a format that this version does not know.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    manifest = path.with_name(path.name + ".json")
    if not manifest.is_file():
        there = sorted(p.stem for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
        raise FileNotFoundError(f"load: there is no model {manifest}; saved models: {', '.join(there) or 'none'}")
    try:
        info: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
        weights, digest, known = Path(info["weights"]).name, info["sha256"], info["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"load: {manifest} is no description of a model: {error!r}") from error
    if not known:
        raise CheckpointError(f"load: {manifest} has format {info['format']}, this version reads format {FORMAT}")
    try:
        data = (path.parent / weights).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"load: {manifest} points to {weights}, which cannot be read: {error.strerror}"
        ) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"load: {path.parent / weights} is damaged: its sha256 is not the one that was saved")
    try:
        return load(data), info
    except SafetensorError as error:
        raise CheckpointError(f"load: {path.parent / weights}: {error}") from error


def class_order(saved: list[str], here: list[str], where: str) -> list[int] | None:
    """For each class here its index among the saved classes; None where both lists are equal.

    Raises:
        CheckpointError: the two lists hold different classes.
    """
    if saved == here:
        return None
    if sorted(saved) != sorted(here):
        raise CheckpointError(f"load: {where} was trained on classes {_short(saved)}, the data has {_short(here)}")
    place = {name: index for index, name in enumerate(saved)}
    return [place[name] for name in here]


def _short(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:10])
    return f"[{shown}{', ...' if len(names) > 10 else ''}] ({len(names)})"


def reorder_rows(tensor: Tensor, order: list[int]) -> Tensor:
    """Rows of a last layer's weight or bias in the order of this data's classes."""
    return tensor[np.asarray(order)].contiguous()
