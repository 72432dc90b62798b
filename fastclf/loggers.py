"""Callbacks that send the figures of each epoch to TensorBoard, Weights & Biases or MLflow, which are optional.

    learn.fit(1e-2, 3, callbacks=[TensorBoardLogger(learn, "runs/pets")])

Nothing is called between batches, so that the native engine is as fast as without. One logger may serve several fits,
whose epochs are counted on.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastclf import ranks
from fastclf.interop import needed
from fastclf.paths import given_path
from fastclf.training.callbacks import Callback
from fastclf.training.metrics import distinct, names_of

if TYPE_CHECKING:
    from fastclf.learners.learner import Learner


# Others are refused, https://mlflow.org/docs/latest/api_reference/python_api/mlflow.html#mlflow.log_metric
_NOT_IN_MLFLOW = re.compile(r"[^\w.\- /]+")


class EpochLogger(Callback):
    """Gives ``trn_loss``, ``val_loss`` and every metric of each epoch to `write`.

    Attributes:
        learn: the learner that is logged.
        epochs: how many epochs have been logged.
    """

    def __init__(self, learn: Learner) -> None:
        self.learn, self.epochs = learn, 0

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """Log the figures of an epoch, the first of which is 0."""
        raise NotImplementedError

    def on_epoch_end(self, metrics: list[float]) -> bool | None:
        """See `Callback`."""
        if not ranks.is_first():
            return None
        names = distinct(["trn_loss", "val_loss", *names_of(self.learn.metrics)])
        self.write(self.epochs, dict(zip(names, [float(self.learn.sched.losses[-1]), *metrics], strict=True)))
        self.epochs += 1
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return how many epochs have been logged."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback`."""
        self.epochs = int(state["epochs"])


class TensorBoardLogger(EpochLogger):
    """Logs to TensorBoard.

    Args:
        learn: the learner.
        folder: of the event files, which ``tensorboard --logdir`` takes.
    """

    def __init__(self, learn: Learner, folder: str | os.PathLike[str]) -> None:
        super().__init__(learn)
        needed("tensorboard")
        if not ranks.is_first():
            return
        self._writer = import_module("torch.utils.tensorboard").SummaryWriter(given_path(folder))

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """See `EpochLogger`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()


class WandbLogger(EpochLogger):
    """Logs to Weights & Biases.

    Args:
        learn: the learner.
        run: what ``wandb.init(...)`` returned.
    """

    def __init__(self, learn: Learner, run: Any) -> None:
        super().__init__(learn)
        self._run = run

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """See `EpochLogger`."""
        self._run.log({"epoch": epoch, **values})


class MlflowLogger(EpochLogger):
    """Logs to the active run of MLflow, or to one that it starts.

    Args:
        learn: the learner.
    """

    def __init__(self, learn: Learner) -> None:
        super().__init__(learn)
        self._mlflow = needed("mlflow")

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """See `EpochLogger`."""
        names = distinct(_NOT_IN_MLFLOW.sub("_", name).strip("_") or "metric" for name in values)
        self._mlflow.log_metrics(dict(zip(names, values.values(), strict=True)), step=epoch)
