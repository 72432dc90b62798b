"""Saved models: ``NAME.json`` and the tensors it points to, ``NAME.<random>.safetensors``.

The JSON file is put in place last and in one step, so a save that is cut off leaves the earlier model whole.
Nothing is pickled.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastclf import files, ranks
from fastclf.errors import CheckpointError
from fastclf.report import json_text
from fastclf.versions import library_versions

FORMAT = 1
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LONG = 3600.0  # seconds: weights that no JSON has come to point to by then are left from a save that was cut off


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Save ``tensors`` and their description ``info`` as model ``path`` (without suffix).

    Of processes that train together the first saves; `load_checkpoint` waits for it.

    Raises:
        CheckpointError: the folder cannot be written, or the disk is full; an earlier model of that name stays. Or a
            tensor is none, such as the extra state of a module of the user's own.
    """
    from safetensors.torch import save

    if not ranks.is_first():
        return
    data = save(_apart(tensors))
    digest = hashlib.sha256(data).hexdigest()
    # A name of its own for every save: another process may be removing weights of the same content.
    weights = path.with_name(f"{path.name}.{secrets.token_hex(6)}.safetensors")
    manifest = {
        "format": FORMAT,
        "versions": library_versions(),
        "weights": weights.name,
        "sha256": digest,
        **info,
    }
    manifest["check"] = _checksum(manifest)
    text = json_text(manifest, indent=1).encode()
    older: list[Path] = []
    try:
        files.publish(weights, lambda temporary: files.write_new(temporary, data))
        older = _older(path)
        files.publish(_manifest_of(path), lambda temporary: files.write_new(temporary, text))
    except OSError as error:
        raise CheckpointError(f"save: {_reason(error, path, len(data) + len(text))}") from error
    finally:
        with suppress(OSError):
            current = _weights_of(path)
            for file in (*older, weights):
                if file.name != current:
                    files.on_disk(file.unlink, missing_ok=True)


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of all entries but itself."""
    text = json.dumps({key: value for key, value in manifest.items() if key != "check"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous, no two of them in the same memory (tied weights are)."""
    taken: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            what = "a sparse tensor" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise CheckpointError(
                f"save: {name} in the model's state_dict is {what}, and files hold dense tensors alone. "
                "Register it as a buffer, or leave it out of the state_dict (persistent=False, get_extra_state)."
            )
        copy = tensor.detach().cpu().contiguous()
        memory = copy.untyped_storage().data_ptr()
        apart[name] = copy.clone() if memory in taken else copy
        taken.add(memory)
    return apart


def _reason(error: OSError, path: Path, needed: int) -> str:
    if error.errno in _FULL:
        free = shutil.disk_usage(path.parent).free
        return (
            f"the disk is full: {path.name} needs {needed:,} bytes, {free:,} are free in {path.parent}. "
            "What was saved there before is as it was."
        )
    return f"cannot write {error.filename or path}: {error.strerror}"


def _manifest_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _weights_of(path: Path) -> str | None:
    """Return the file of weights that model ``path`` points to; None where there is no such model, or it is damaged."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return str(json.loads(_manifest_of(path).read_bytes())["weights"])
    return None


def _older(path: Path) -> list[Path]:
    """Return the weights of this name that nothing points to once others are saved.

    Those of the model that is replaced, and those left from a save that was cut off long ago. Others may belong to a
    process that is just saving under the same name.
    """
    replaced = None
    with suppress(OSError):
        replaced = _weights_of(path)
    found = []
    for file in path.parent.iterdir() if path.parent.is_dir() else ():
        middle = file.name.removeprefix(path.name + ".").removesuffix(".safetensors")
        if file.name != f"{path.name}.{middle}.safetensors" or len(middle) != 12:
            continue
        with suppress(OSError):
            if file.name == replaced or time.time() - file.stat().st_mtime > _LONG:
                found.append(file)
    return found


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description of model ``path`` (without suffix).

    Raises:
        FileNotFoundError: there is no such model; names those that there are.
        CheckpointError: a file is damaged, or of a format that this version does not know.
    """
    from safetensors.torch import load

    ranks.wait()
    info, data = read_info(path), None
    while data is None:
        weights = path.parent / info["weights"]
        try:
            data = weights.read_bytes()
        except OSError as error:
            before, info = info, read_info(path)  # another process may have saved: then it points to other weights
            if info["weights"] == before["weights"]:
                raise CheckpointError(
                    f"load: {_manifest_of(path)} points to {weights.name}, which cannot be read: {error.strerror}"
                ) from error
    if hashlib.sha256(data).hexdigest() != info["sha256"]:
        raise CheckpointError(f"load: {weights} is damaged: its sha256 is not the one that was saved")
    try:
        return load(data), info
    except Exception as error:  # SafetensorError, KeyError or RuntimeError, depending on the damage
        raise CheckpointError(f"load: {weights} is not a safetensors file: {error!r}") from error


def read_info(path: Path) -> dict[str, Any]:
    """Return the description of model ``path`` (without suffix) without its tensors; raises as `load_checkpoint`."""
    manifest = _manifest_of(path)
    if not manifest.is_file():
        there = [place.name for place in models_in(path.parent)]
        raise FileNotFoundError(f"load: there is no model {manifest}; saved models: {', '.join(there) or 'none'}")
    try:
        info: dict[str, Any] = json.loads(manifest.read_bytes().decode("utf-8", "surrogatepass"))
        whole = info["check"] == _checksum(info)
        entries = {"format": info["format"], "weights": info["weights"], "sha256": info["sha256"]}
        classes = info.get("classes", [])
    except OSError as error:
        raise CheckpointError(f"load: {manifest} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else repr(error)
        raise CheckpointError(f"load: {manifest} is not a description of a model: {what}") from error
    if entries["format"] != FORMAT:
        raise CheckpointError(f"load: {manifest} has format {entries['format']!r}, this version reads format {FORMAT}")
    if not whole:
        raise CheckpointError(f"load: {manifest} is damaged, or was changed by hand: its checksum does not fit")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not named or not all(isinstance(entries[key], str) for key in ("weights", "sha256")):
        raise CheckpointError(f"load: {manifest} is not a description of a model: an entry has the wrong type")
    if not _is_file_name(entries["weights"]):
        raise CheckpointError(f"load: {manifest} points to {entries['weights']!r}, which is not beside it")
    return info


def models_in(folder: Path) -> list[Path]:
    """Return the places of the saved models in a folder: what has weights beside its description."""
    found = []
    for file in sorted(folder.glob("*.json")):
        place = file.with_suffix("")
        if any(folder.glob(f"{glob.escape(place.name)}.*.safetensors")):
            found.append(place)
    return found


def _is_file_name(text: str) -> bool:
    """Return whether a text names a file in a folder, and nothing outside it."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return Path(text).name == text and "\0" not in text


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put saved tensors into ``module``; ``where`` names their origin in messages.

    Raises:
        CheckpointError: names, shapes or types are not those of the module.
    """
    expected = {name: _form(tensor) for name, tensor in module.state_dict().items()}
    given = {name: _form(tensor) for name, tensor in tensors.items()}
    if expected != given:
        differing = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        raise CheckpointError(
            f"load: {where}, which does not fit this model: {len(differing)} tensors differ, first {differing[:3]}"
        )
    module.load_state_dict(tensors)


def _form(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    """Shape, and type: any of the usual floating-point types can be loaded into any other."""
    return tuple(tensor.shape), "float" if tensor.dtype in _FLOATS else str(tensor.dtype)


def class_order(saved: list[str], here: list[str], where: str) -> list[int] | None:
    """Return, for each class here, its index among the saved classes; None where both lists are equal.

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
    """Return rows of a last layer's weight or bias in the order of this data's classes."""
    return tensor[np.asarray(order)].contiguous()
