"""How a learner's model is saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastclf import ranks
from fastclf.checkpoint import class_order, load_tensors, reorder_rows, save_checkpoint
from fastclf.errors import CheckpointError
from fastclf.interrupts import Interrupts
from fastclf.learners.predicting import Predicting
from fastclf.models.precision import compute_dtype
from fastclf.paths import check_length
from fastclf.rebuild import not_rebuilt, saved_decision
from fastclf.report import warn
from fastclf.training.metrics import Metric, names_of
from fastclf.training.resume import load_model


class Saving(Predicting):
    """The part of `Learner` that saves and loads."""

    metrics: list[Metric]
    _models_name: str

    def _log_once(self, text: str) -> None:
        raise NotImplementedError

    def save(self, name: str) -> None:
        """Save the whole model as ``name`` in the models folder: ``NAME.json`` and the weights that it points to.

        `fastclf.load` rebuilds it from these two files alone. What it cannot rebuild is logged: a head or a network of
        your own.

        Raises:
            CheckpointError: the folder cannot be written, or the disk is full; an earlier model of that name stays.
            FileNotFoundError: the data's folder is gone.
        """
        path, info = self._model_path(name), self._saved_info()
        try:
            save_checkpoint(path, self._state(), info)
        finally:
            ranks.wait()  # all go on when it is there
        missing = not_rebuilt(info)
        if missing:
            what, passed = ", ".join(missing.values()), ", ".join(f"{argument}=..." for argument in missing)
            self._log_once(
                f"save: {what} cannot be rebuilt from a file: fastclf.load({name!r}, {passed}) needs the module"
            )

    def load(self, name: str) -> None:
        """Load what `save` stored: weights and statistics; groups stay frozen or not as they are.

        A head saved by itself is loaded into the head. A model trained on the same classes in another order has its
        last layer put into this data's order.

        Args:
            name: as given to `save`.

        Raises:
            FileNotFoundError: there is no such model; names those that there are.
            CheckpointError: the file is damaged, or the model has other classes, another kind of labels or
                another architecture.
        """
        path = self._model_path(name)
        tensors, info = load_model(path)
        kind, own_kind = info.get("labels"), self._data.trn_ds.labels.kind
        if kind not in (None, own_kind):  # older models and states of fits do not say
            raise CheckpointError(
                f"{path} was trained with labels of another kind: {kind} there, {own_kind} here. "
                "Load it with data like its own."
            )
        order = class_order(info.get("classes", []), self._info()["classes"], str(path))
        if order is not None:
            for key in self._class_tensors(tensors):
                # One of another shape does not fit, which `load_tensors` reports.
                if key in tensors and tensors[key].shape[:1] == (len(order),):
                    tensors[key] = reorder_rows(tensors[key], order)
        decision = saved_decision(info, str(path))
        target, tensors = self._target_of(tensors)
        with Interrupts():  # never half of it
            load_tensors(target, tensors, f"{path} holds {info.get('arch', 'another model')}")
        self.decision = decision if order is None else decision.reordered(order)
        if target is self.model:
            self.groups.pretrained = bool(info.get("pretrained", self.groups.pretrained))
        self._note_origin(info)
        differing = _differing(info, self._info(), reordered=order is not None)
        if differing:
            warn(f"load: {path} was saved with other data: {'; '.join(differing)}")

    def _note_origin(self, info: dict[str, Any]) -> None:
        """Take note of how the tensors that were loaded were trained."""

    def _state(self) -> dict[str, Tensor]:
        """Return the tensors to save, under the names that they have in a file."""
        return self.model.state_dict()

    def _target_of(self, tensors: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
        """Return the module that saved tensors belong to, and the tensors under its names."""
        return self.model, tensors

    def _class_tensors(self, tensors: dict[str, Tensor]) -> list[str]:
        """Return which saved tensors have one row per class."""
        raise CheckpointError(
            "load: the model was trained on the same classes in another order, and only a head of fastclf's own can "
            "be put into this order. Load it with data whose classes are in the saved order."
        )

    def _info(self) -> dict[str, Any]:
        data = self._data
        return {
            "arch": type(self.model).__name__,
            "pretrained": self.groups.pretrained,
            "classes": [str(name) for name in data.classes],
            "sz": data.sz,
            "transforms": None if data.tfms is None else data.tfms[1].describe(),
            "metrics": names_of(self.metrics),
            **({"decision": decision} if (decision := self.decision.to_dict()) else {}),
        }

    def _saved_info(self) -> dict[str, Any]:
        """Return what a file says of the model: all that `fastclf.load` needs beside the tensors."""
        data = self._data
        return self._info() | {
            "labels": data.trn_ds.labels.kind,
            "c": data.c,
            "precision": str(compute_dtype(data.device)).removeprefix("torch."),
        }

    def _model_path(self, name: str) -> Path:
        plain = isinstance(name, str) and name and name.isprintable() and name == name.strip()
        if not plain or "/" in name or name.startswith("."):
            raise ValueError(f"save/load: name must be a plain file name, got {name!r}")
        check_length(f"{name}.{12 * 'x'}.safetensors")
        return self._data.below(self._models_name) / name


def _differing(saved: Mapping[str, Any], here: Mapping[str, Any], *, reordered: bool) -> list[str]:
    """Say how the data that a model was saved with differs from the data here."""
    differences = ["its classes are in another order, and its last layer was put into this data's"] if reordered else []
    theirs, ours = saved.get("transforms"), here["transforms"]
    if isinstance(theirs, dict) and isinstance(ours, dict):
        # Another mean or deviation has a warning of its own, which says what comes of it.
        keys = [key for key in ours if key not in ("mean", "std") and theirs.get(key) != ours[key]]
        differences += [f"{key} {theirs.get(key)!r} there, {ours[key]!r} here" for key in keys]
    return differences
