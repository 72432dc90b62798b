"""The learner for any model: the lesson's calls, in the lesson's order. The work itself is done in the other rooms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from fastclf.checkpoint import class_order, load_checkpoint, reorder_rows, save_checkpoint
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.errors import CheckpointError
from fastclf.models.freezing import LayerGroups
from fastclf.models.head import DropoutClock
from fastclf.models.net import head_of
from fastclf.models.summary import summary_table
from fastclf.training.callbacks import Callback, SaveBest, SaveCycles, StopDivergence
from fastclf.training.engine import EngineSteps, unknown_to_engine
from fastclf.training.evaluate import Crit, Objective, scores_of, validate
from fastclf.training.loop import Steps, TrainLoop, derived_seed, seeded
from fastclf.training.losses import default_loss
from fastclf.training.metrics import name_of
from fastclf.training.optimizer import SGDR
from fastclf.training.recorder import Recorder
from fastclf.training.schedule import Constant, Finder, Schedule, make_schedule, n_epochs
from fastclf.training.snapshot import unchanged
from fastclf.training.steps import AutogradSteps, OptFn, Rates

Metric = Callable[..., Any]
Array = NDArray[Any]


@dataclass(frozen=True)
class Stage:
    """What is trained and applied now: a module, its layer groups, and the data that it is fed."""

    module: nn.Module
    groups: LayerGroups
    data: ImageClassifierData


class Learner:
    """Trains and applies a model of one's own; see `ConvLearner` for a pretrained one, `HeadLearner` for activations.

    Args:
        data: pictures or rows.
        model: takes what the loaders serve and gives what ``crit`` takes: with the default loss, log-probabilities
            (one label), probabilities (several) or values (regression), ``[B, c]``.
        groups: submodules that together hold every parameter, first layers first.
        crit: the loss, a function of (output, targets).
        metrics: functions of (predictions, targets), of torch tensors or numpy arrays.
        opt_fn: makes the optimizer, called as ``opt_fn(param_groups, lr=...)``; `SGDR` with momentum .9 by default.
        seed: of everything random in training; the data's by default.
        models_name: folder below the data's path where models are saved.

    Attributes:
        metrics, crit, opt_fn: as above; may be assigned.
        clip: bound on the gradient's norm, or None; may be assigned.
        sched: rates and losses of the last fit or rate search, with their plots.
    """

    def __init__(
        self,
        data: ImageClassifierData,
        model: nn.Module,
        groups: Sequence[nn.Module],
        *,
        crit: Crit | None = None,
        metrics: Sequence[Metric] = (),
        opt_fn: OptFn | None = None,
        seed: int | None = None,
        models_name: str = "models",
    ) -> None:
        self._data = data
        self.model = model.to(data.device)
        self.groups = LayerGroups(groups)
        self.crit: Crit = crit or default_loss(is_multi=data.is_multi, is_reg=data.is_reg)
        self.metrics = list(metrics)
        self.opt_fn: OptFn = opt_fn or SGDR
        self.clip: float | None = None
        self.seed = data.seed if seed is None else seed
        self.sched = Recorder(Constant(), 0.0)
        self._models_name = models_name
        self._fits = self._epochs = 0
        self._said: set[str] = set()

    @classmethod
    def from_model_data(
        cls, model: nn.Module, data: ImageClassifierData, groups: Sequence[nn.Module] | None = None, **kwargs: Any
    ) -> Learner:
        """A learner for a whole network of one's own, as one group unless ``groups`` are given; see `Learner`."""
        return Learner(data, model, groups or [model], **kwargs)

    def _stage(self) -> Stage:
        return Stage(self.model, self.groups, self._data)

    @property
    def data(self) -> ImageClassifierData:
        """What fit, predict and the metrics work on now."""
        return self._stage().data

    def set_data(self, data: ImageClassifierData) -> None:
        """Goes on with other data of the same classes, such as larger pictures."""
        if data.classes != self._data.classes or data.c != self._data.c:
            raise ValueError(
                f"set_data: data must have the classes {self._data.classes}, got {data.classes}. "
                "Make a new learner for other classes."
            )
        self._data = data

    # Training

    def fit(
        self,
        lrs: ArrayLike,
        n_cycle: int,
        wds: ArrayLike | None = None,
        *,
        cycle_len: int | None = None,
        cycle_mult: float = 1,
        use_clr: tuple[float, float] | None = None,
        use_clr_beta: tuple[float, ...] | None = None,
        cycle_save_name: str | None = None,
        best_save_name: str | None = None,
        callbacks: Sequence[Callback] = (),
        use_wd_sched: bool = False,
    ) -> list[float]:
        """Trains the groups that are not frozen, with a new optimizer, and prints a line per epoch.

        Args:
            lrs: the highest rate: one number, or one per layer group.
            n_cycle: cycles, or epochs where ``cycle_len`` is not given and the rate is constant.
            wds: weight decay, added to the gradient: one number, or one per layer group.
            cycle_len: epochs of the first cycle (SGDR; Loshchilov and Hutter, 2017).
            cycle_mult: how many times longer each cycle is than the one before.
            use_clr: ``(div, cut_div)``: each cycle a slanted triangle instead of a cosine.
            use_clr_beta: ``(div, pct[, max_mom, min_mom])``: each cycle a 1cycle.
            cycle_save_name: saves the model after each cycle as ``NAME_cyc_K``.
            best_save_name: saves the model whenever the validation loss is the lowest of this fit.
            callbacks: see `Callback`.
            use_wd_sched: takes ``rate * wds`` off the weights, apart from the gradient (decoupled).

        Returns:
            ``[val_loss, metric, ...]`` after the last epoch.

        Raises:
            DivergedError: the training loss is not finite.
        """
        if n_cycle < 1:
            raise ValueError(f"fit: n_cycle must be at least 1, got {n_cycle}")
        stage = self._stage()
        nb = _batches(stage)
        schedule = make_schedule(nb, cycle_len, cycle_mult, use_clr, use_clr_beta)
        rates = self._rates(lrs, wds, schedule, decoupled=use_wd_sched)
        self.sched = Recorder(schedule, float(rates.lrs[-1]))
        hooks = list(callbacks)
        if best_save_name:
            hooks.append(SaveBest(self.save, best_save_name))
        if cycle_save_name:
            hooks.append(SaveCycles(self.save, cycle_save_name, schedule, nb))
        self._fits += 1
        with self._seeded(stage, "fit", self._fits):
            loop = TrainLoop(self._steps(stage, rates), stage.groups, nb, self.sched, hooks)
            epochs = n_epochs(n_cycle, cycle_len, cycle_mult)
            values = loop.fit(epochs, self._epochs, lambda: self._validate(stage), [name_of(m) for m in self.metrics])
        self._epochs += len(self.sched.val_losses)
        return values

    def lr_find(
        self, start_lr: ArrayLike = 1e-5, end_lr: float = 10, wds: ArrayLike | None = None, *, linear: bool = False
    ) -> None:
        """Trains for an epoch while the rate rises from ``start_lr`` to ``end_lr``; `sched.plot` then shows the loss.

        Stops when the smoothed loss is NaN or above four times its best. Weights, BatchNorm statistics, generators
        and modes are afterwards, and after an interrupt, what they were before, bit for bit.
        """
        stage = self._stage()
        nb = _batches(stage)
        last = float(np.asarray(start_lr, dtype=np.float64).reshape(-1)[-1])
        if not 0 < last < end_lr:
            raise ValueError(f"lr_find: rates must rise from above 0, got start_lr {last:g} and end_lr {end_lr:g}")
        rates = self._rates(start_lr, wds, Finder(nb, end_lr / last, linear), decoupled=False)
        self.sched = Recorder(rates.schedule, last)
        with unchanged(stage.module), self._seeded(stage, "lr_find", self._fits):
            loop = TrainLoop(self._steps(stage, rates), stage.groups, nb, self.sched, [StopDivergence()])
            loop.run_epoch(self._epochs, allow_nan=True)

    def _steps(self, stage: Stage, rates: Rates) -> Steps:
        """Trains cached rows in the native engine where it knows head, loss and optimizer, else through autograd."""
        module, loader, crit = stage.module, stage.data.trn_dl, self.crit
        if stage.data.has_rows:
            unknown = unknown_to_engine(module, loader, crit, self.opt_fn)
            if unknown is None:
                return EngineSteps(module, loader, crit, self.opt_fn, rates)  # type: ignore[arg-type]
            self._say_once(f"{unknown} is not known to the native engine: the head trains through autograd")
        return AutogradSteps(Objective(module, crit), stage.groups, loader, self.opt_fn, rates)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            print(text)
            self._said.add(text)

    def _rates(self, lrs: ArrayLike, wds: ArrayLike | None, schedule: Schedule, *, decoupled: bool) -> Rates:
        return Rates(
            self._per_group(lrs, "lrs"),
            schedule,
            None if wds is None else self._per_group(wds, "wds"),
            decoupled,
            self.clip,
        )

    def _per_group(self, values: ArrayLike, name: str) -> NDArray[np.float64]:
        return self._stage().groups.per_group(values, name)

    @contextmanager
    def _seeded(self, stage: Stage, *what: int | str) -> Iterator[None]:
        """Everything random in the block is a function of the learner's seed and of ``what``."""
        seed = derived_seed(self.seed, *what)
        head = head_of(stage.module)
        clock = DropoutClock() if head is None else head.clock
        before = clock.seed, clock.step
        try:
            clock.seed, clock.step = seed, 0
            with seeded(seed):
                yield
        finally:
            clock.seed, clock.step = before

    def _validate(self, stage: Stage) -> list[float]:
        return validate(Objective(stage.module, self.crit), stage.data.val_dl, self.metrics)

    # Freezing

    def freeze_to(self, n: int) -> None:
        """Freezes the layer groups before index ``n`` and makes the others trainable."""
        self.groups.freeze_to(n)

    def freeze(self) -> None:
        """Freezes all layer groups but the last."""
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Makes all layer groups trainable."""
        self.freeze_to(0)

    def bn_freeze(self, frozen: bool) -> None:
        """Whether BatchNorm uses and keeps its running statistics in groups that train, too."""
        self.groups.bn_frozen = frozen

    # Predicting

    def predict(self, is_test: bool = False) -> Array:
        """Log-probabilities (probabilities when several labels) ``[N, c]`` of the validation or test set, in order."""
        return self.predict_with_targs(is_test)[0]

    def predict_with_targs(self, is_test: bool = False) -> tuple[Array, Array]:
        """`predict`, and the targets (zeros for a test set)."""
        stage = self._stage()
        return self._predict(stage.module, _set(stage.data, is_test, "val_dl", "test_dl"))

    def predict_dl(self, dl: Any) -> Array:
        """Predictions ``[N, c]`` for every row that a loader of pictures or of activations serves."""
        return self._predict(self._module_for_loader(dl), dl)[0]

    def predict_array(self, x: ArrayLike | Tensor) -> Array:
        """Predictions ``[B, c]`` for transformed pictures ``[B, 3, h, w]``, or for activations ``[B, F]``."""
        batch = torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x, dtype=np.float32)).to(self._data.device)
        objective = Objective(self._module_for(batch.ndim), self.crit)
        objective.module.eval()
        with torch.inference_mode():
            return _numpy(objective.output(objective.scores(batch)))

    def TTA(self, n_aug: int = 4, is_test: bool = False) -> tuple[Array, Array]:  # noqa: N802
        """Predictions for the pictures as they are and for ``n_aug`` augmented views: ``[1 + n_aug, N, c]``, targets.

        Average probabilities: ``np.mean(np.exp(log_preds), 0)`` (one label), ``np.mean(preds, 0)`` (several).
        """
        if self._data.has_rows:
            raise ValueError("TTA: needs pictures, and this data holds activations")
        plain = _set(self._data, is_test, "val_dl", "test_dl")
        augmented = _set(self._data, is_test, "aug_dl", "test_aug_dl")
        first, targets = self._predict(self.model, plain)
        views = [self._predict(self.model, augmented, epoch)[0] for epoch in range(n_aug)]
        return np.stack([first, *views]), targets

    def _predict(self, module: nn.Module, dl: Any, epoch: int = 0) -> tuple[Array, Array]:
        objective = Objective(module, self.crit)
        scores, targets = scores_of(objective, dl, epoch)
        with torch.inference_mode():
            return _numpy(objective.output(scores)), _numpy(targets)

    def _module_for(self, ndim: int) -> nn.Module:
        """The module that takes a batch of ``ndim`` dimensions."""
        return self.model

    def _module_for_loader(self, dl: Any) -> nn.Module:
        return self._module_for(2 if dl.ds.rows is not None else 4)

    def summary(self) -> None:
        """Prints a table of the layers that are in use, their output shapes and parameters."""
        stage = self._stage()
        x, _ = next(stage.data.val_dl.batches(0))
        print(summary_table(stage.module, x[:2]))

    # Saving

    def save(self, name: str) -> None:
        """Saves the whole model as ``name`` in the models folder.

        Raises:
            CheckpointError: the folder cannot be written, or the disk is full; an earlier model of that name stays.
        """
        save_checkpoint(self._model_path(name), self._state(), self._info())

    def load(self, name: str) -> None:
        """Loads what `save` stored: weights and statistics; groups stay frozen or not as they are.

        A head saved by itself is loaded into the head. A model trained on the same classes in another order has its
        last layer put into this data's order.

        Raises:
            FileNotFoundError: there is no such model; names those that there are.
            CheckpointError: the file is damaged, or the model has other classes or another architecture.
        """
        path = self._model_path(name)
        tensors, info = load_checkpoint(path)
        order = class_order(info.get("classes", []), self._info()["classes"], str(path))
        if order is not None:
            for key in self._class_tensors(tensors):
                tensors[key] = reorder_rows(tensors[key], order)
        target, tensors = self._target_of(tensors)
        expected = {key: tuple(tensor.shape) for key, tensor in target.state_dict().items()}
        given = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if expected != given:
            differing = sorted(key for key in expected.keys() | given.keys() if expected.get(key) != given.get(key))
            raise CheckpointError(
                f"load: {path} holds {info.get('arch', 'another model')}, which does not fit this model: "
                f"{len(differing)} tensors differ, first {differing[:3]}"
            )
        target.load_state_dict(tensors)

    def _state(self) -> dict[str, Tensor]:
        """The tensors to save, under the names that they have in a file."""
        return self.model.state_dict()

    def _target_of(self, tensors: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
        """The module that saved tensors belong to, and the tensors under its names."""
        return self.model, tensors

    def _class_tensors(self, tensors: dict[str, Tensor]) -> list[str]:
        """Which saved tensors have one row per class."""
        raise CheckpointError(
            "load: the model was trained on the same classes in another order, and only a head of fastclf's own can "
            "be put into this order. Load it with data whose classes are in the saved order."
        )

    def _info(self) -> dict[str, Any]:
        data = self._data
        return {
            "arch": type(self.model).__name__,
            "classes": [str(name) for name in data.classes],
            "sz": data.sz,
            "transforms": None if data.tfms is None else data.tfms[1].describe(),
            "metrics": [name_of(metric) for metric in self.metrics],
        }

    def _model_path(self, name: str) -> Path:
        if not name or name != name.strip() or "/" in name or name.startswith("."):
            raise ValueError(f"save/load: name must be a plain file name, got {name!r}")
        return self._data.path / self._models_name / name


def _batches(stage: Stage) -> int:
    nb = len(stage.data.trn_dl)
    if nb == 0:
        raise ValueError(f"fit: no training batch: {stage.data.trn_dl.n} training row(s) are too few")
    return nb


def _set(data: ImageClassifierData, is_test: bool, valid: str, test: str) -> Any:
    loader = getattr(data, test if is_test else valid)
    if loader is None:
        raise ValueError("predict: is_test=True needs data with a test set: pass test_name= when making it")
    return loader


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
