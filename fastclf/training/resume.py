"""Fits that go on after an interruption: their state, saved in a model beside its weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastclf import ranks
from fastclf.checkpoint import load_checkpoint, read_info, save_checkpoint
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.dataset import Dataset
from fastclf.errors import CheckpointError
from fastclf.losses import BCE, L1, NLL
from fastclf.report import counted, log
from fastclf.training.loop import TrainLoop
from fastclf.training.metrics import name_of

PREFIX = "fit/"  # of tensors that belong to the fit, not to the model
_SAMPLED = 64
_SHOWN = 5
_LONGEST = 60


class FitState:
    """The state of one fit in the saved model ``path``.

    Args:
        path: without suffix.
        setting: everything that must be the same for the fit to go on, in plain numbers, texts and lists.
    """

    def __init__(self, path: Path, setting: Mapping[str, Any]) -> None:
        self.path, self.setting = path, json.loads(json.dumps(setting, default=_plain))

    def read(self) -> dict[str, Any] | None:
        """Return the state that was written last, and log where it goes on; None where there is none.

        Raises:
            CheckpointError: the file is damaged, holds a model without a fit, or a fit that cannot go on here because
                something differs; says what.
        """
        ranks.wait()  # until the first has written what it was writing
        try:
            fit = read_info(self.path).get("fit")
        except FileNotFoundError:
            return None
        if not isinstance(fit, dict) or not isinstance(fit.get("setting"), dict):
            raise CheckpointError(
                f"fit: {self.path} holds a model, not the state of a fit. Leave resume out, or take another state_name."
            )
        saved = fit["setting"]
        differing = [key for key in {**saved, **self.setting} if saved.get(key) != self.setting.get(key)]
        if differing:
            both = [f"{k}: {_short(saved.get(k))} there, {_short(self.setting.get(k))} here" for k in differing]
            raise CheckpointError(f"fit: the fit in {self.path} cannot go on, as these differ: {'; '.join(both)}")
        tensors, info = load_checkpoint(self.path)
        try:
            state: dict[str, Any] = unpacked(info["fit"]["state"], tensors)
            numbers = state["fits"], state["loop"]["first_epoch"], state["loop"]["steps"]["step"]
            whole = all(isinstance(number, int) for number in numbers) and isinstance(state["loop"]["finished"], bool)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise CheckpointError(f"fit: the state of the fit in {self.path} is damaged: {error!r}") from error
        if not whole:
            raise CheckpointError(f"fit: the state of the fit in {self.path} is damaged: a counter is not a number")
        loop = state["loop"]
        what = "is over" if loop["finished"] else "goes on"
        log(f"fit: {self.path.name!r} {what} after {counted(loop['steps']['step'], 'step')}")
        return state

    def write(
        self, loop: TrainLoop, fits: int, device: torch.device, model: Mapping[str, Tensor], info: Mapping[str, Any]
    ) -> None:
        """Save the model and all that changes while a fit runs, in the place of what was saved before.

        Args:
            loop: the fit.
            fits: how many fits the learner has begun.
            device: where the model is.
            model: its tensors.
            info: its description.

        Raises:
            CheckpointError: it cannot be written; what was saved before stays.
        """
        generators = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(device)
        state = {"fits": fits, "loop": loop.state_dict(), "generators": generators}
        tensors: dict[str, Tensor] = {}
        fit = {"setting": self.setting, "state": packed(state, PREFIX.rstrip("/"), tensors)}
        save_checkpoint(self.path, {**model, **tensors}, {**info, "fit": fit})

    def restore(self, state: Mapping[str, Any], loop: TrainLoop, device: torch.device) -> None:
        """Make a new loop, and torch's generators, go on where ``state`` was written.

        Raises:
            CheckpointError: something is missing, or does not fit.
        """
        try:
            loop.load_state_dict(state["loop"])
            if ranks.is_first():  # the others' generators go on as they were seeded
                torch.set_rng_state(state["generators"]["cpu"])
            if device.type == "cuda" and ranks.is_first():
                torch.cuda.set_rng_state(state["generators"]["cuda"], device)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"fit: the state of the fit in {self.path} is damaged: {error!r}") from error


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `load_checkpoint` does, without the tensors of an interrupted fit."""
    tensors, info = load_checkpoint(path)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}, info


def check_state_name(name: str | None, best: str | None, *, resume: bool) -> None:
    """Raise ValueError where a fit's arguments name no state to resume, or one name for two things."""
    if name is None and resume:
        raise ValueError("fit: resume needs state_name, the name under which the state is saved")
    if name is not None and name == best:
        raise ValueError(f"fit: state_name and best_save_name must differ, got {name!r} twice")


def packed(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``tree`` as JSON can hold it; its tensors go to ``tensors``, under names that begin with ``name/``.

    Raises:
        CheckpointError: it holds something other than dicts, lists, tuples, texts, numbers, None, tensors and arrays.
    """
    if isinstance(tree, Tensor | np.ndarray) and (isinstance(tree, Tensor) or _is_plain(tree.dtype)):
        while name in tensors:  # {"a/b": x, "a": {"b": y}}
            name += "'"
        tensors[name] = (
            tree if isinstance(tree, Tensor) else torch.from_numpy(tree.astype(tree.dtype.newbyteorder("=")))
        )
        return {"tensor" if isinstance(tree, Tensor) else "array": name}
    if isinstance(tree, Mapping) and all(isinstance(key, str) for key in tree):
        return {"dict": {key: packed(value, f"{name}/{key}", tensors) for key, value in tree.items()}}
    if isinstance(tree, Mapping):  # JSON's keys are texts
        return {"items": [packed(item, f"{name}/{i}", tensors) for i, item in enumerate(tree.items())]}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [packed(value, f"{name}/{i}", tensors) for i, value in enumerate(tree)]}
    if isinstance(tree, np.generic):
        tree = tree.item()
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise CheckpointError(f"save: {name.removeprefix(PREFIX)} is a {type(tree).__name__}, which a file cannot hold")


def _is_plain(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biuf" and dtype.itemsize <= 8


def _plain(value: Any) -> Any:
    """Return a number of NumPy as one of Python, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(
        f"a fit that is saved with state_name= takes numbers, texts and lists, got a {type(value).__name__}"
    )


def unpacked(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `packed` was given."""
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "array":
        return tensors[value].numpy()
    if kind == "dict":
        return {key: unpacked(child, tensors) for key, child in value.items()}
    children = [unpacked(child, tensors) for child in value]
    return {"list": list, "tuple": tuple, "items": dict}[kind](children)


def data_setting(data: ImageClassifierData) -> dict[str, Any]:
    """Return what tells one training from another as far as the data goes."""
    return {
        "training set": _identity(data.trn_ds),
        "validation set": _identity(data.val_ds),
        "bs": data.bs,
        "data's seed": data.seed,
        # In files: another word would keep interrupted fits from going on.
        "trains on": "pictures" if data.trn_ds.rows is None else f"{len(data.trn_ds.rows)} rows of activations",
        "device": data.device.type,
    }


def _identity(ds: Dataset) -> str:
    """Return a hash of names and labels of all rows; where they have no names, of the values of some."""
    digest = hashlib.sha256(np.ascontiguousarray(ds.y).tobytes())
    for name in ds.fnames:
        digest.update(f"{name}\n".encode("utf-8", "surrogateescape"))
    values = ds.rows if ds.rows is not None else ds.images
    if values is not None and not ds.fnames and len(ds):
        sample = values[np.linspace(0, len(ds) - 1, _SAMPLED).astype(np.int64)]
        digest.update(f"{values.shape} {values.dtype}".encode() + np.ascontiguousarray(sample).tobytes())
    return f"{len(ds)} rows, {digest.hexdigest()[:12]}"


def describe_function(function: Callable[..., Any]) -> str:
    """Return a loss, or the maker of an optimizer, by name and arguments: the same in every process."""
    if isinstance(function, partial):
        given = repr((*function.args, *sorted(function.keywords.items())))
        return describe_function(function.func) + re.sub(r" at 0x[0-9a-f]+", "", given)
    if isinstance(function, NLL | BCE):
        weight = None if function.weight is None else function.weight.tolist()
        return f"{type(function).__name__}(weight={weight}, label_smoothing={function.label_smoothing})"
    return type(function).__name__ if isinstance(function, L1) else name_of(function)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
