"""The learner for any model: the lesson's calls, in the lesson's order. The work itself is done in the other rooms."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from fastclf.calls import NOTHING_CHANGED, long_call
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.describe import describe_learner
from fastclf.errors import CheckpointError
from fastclf.interrupts import Interrupts
from fastclf.models.freezing import LayerGroups
from fastclf.models.summary import summary_table
from fastclf.report import log, show
from fastclf.saving import Saving
from fastclf.training.callbacks import Callback, EndSearch, SaveBest, SaveCycles
from fastclf.training.engine import EngineSteps, unknown_to_engine
from fastclf.training.evaluate import (
    Crit,
    Objective,
    check_final_layer,
    loss_of_constant,
    scores_of,
    validate,
)
from fastclf.training.inputs import as_batch, check_batch_norm, check_count, check_functions
from fastclf.training.loop import Steps, TrainLoop, derived_seed, seeded
from fastclf.training.losses import class_weights as weights_of
from fastclf.training.losses import default_loss
from fastclf.training.memory import explains_gpu_memory
from fastclf.training.metrics import Metric as Metric
from fastclf.training.metrics import name_of
from fastclf.training.optimizer import SGDR
from fastclf.training.recorder import Recorder
from fastclf.training.schedule import Constant, Finder, Schedule, make_schedule, n_epochs
from fastclf.training.scores import FitScores
from fastclf.training.snapshot import unchanged, unchanged_if
from fastclf.training.state import FitState, data_setting, put_back, told, where_it_stands
from fastclf.training.steps import FINE_TUNING_CLIP, AutogradSteps, OptFn, Rates
from fastclf.training.suggestions import RateSuggestions, suggest

Array = NDArray[Any]
_SEARCH_STEPS = 100  # of lr_find, at least


@dataclass(frozen=True)
class Stage:
    """What is trained and applied now: a module, its layer groups, and the data that it is fed."""

    module: nn.Module
    groups: LayerGroups
    data: ImageClassifierData


class Learner(Saving):
    """Trains and applies a model of one's own; see `ConvLearner` for a pretrained one, `HeadLearner` for activations.

    Args:
        data: pictures or rows.
        model: takes what the loaders serve and gives what ``crit`` takes: with the default loss, log-probabilities
            (one label), probabilities (several) or values (regression), ``[B, c]``.
        groups: submodules that together hold every parameter, first layers first.
        crit: the loss, a function of (output, targets). One of torch, torchvision or timm that takes logits gets them
            where the head is ours; where the model ends in probabilities it is refused. Targets of a regression are
            ``[B, k]``, as predictions are, and so they reach a loss or metric.
        class_weights: of the classes in the default loss: one number each, or ``"auto"``, the rarer the heavier; see
            `fastclf.training.losses.class_weights`.
        metrics: functions of (predictions, targets), of torch tensors or numpy arrays.
        opt_fn: makes the optimizer, called as ``opt_fn(param_groups, lr=...)``; `SGDR` with momentum .9 by default.
        clip: bound on the gradient's norm. None bounds it at 5 while a pretrained body trains with BatchNorm's own
            statistics, see `bn_freeze`, and else not at all; ``float("inf")`` never does.
        seed: of everything random in training; the data's by default.
        models_name: folder below the data's path where models are saved.

    Attributes:
        metrics, crit, opt_fn, clip: as above; may be assigned.
        sched: rates and losses of the last fit or rate search, with their plots.
    """

    _heads = 0  # how many of the last groups are a new head, not part of a body

    def __init__(
        self,
        data: ImageClassifierData,
        model: nn.Module,
        groups: Sequence[nn.Module],
        *,
        crit: Crit | None = None,
        class_weights: str | ArrayLike | None = None,
        metrics: Sequence[Metric] = (),
        opt_fn: OptFn | None = None,
        clip: float | None = None,
        seed: int | None = None,
        models_name: str = "models",
    ) -> None:
        self._data = data
        self.model = model.to(data.device)
        self.groups = LayerGroups(groups, heads=self._heads)
        self.crit: Crit = crit or _loss_for(data, class_weights)
        if crit is not None and class_weights is not None:
            raise ValueError("class_weights: crit replaces the default loss. Pass crit=NLL(weight=...) instead.")
        self.metrics = metrics
        self.opt_fn: OptFn = opt_fn or SGDR
        self.clip = clip
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

    def __repr__(self) -> str:
        """Describes the network, what of it trains, and how, in a few lines; computes nothing."""
        return describe_learner(
            type(self).__name__, self._info()["arch"], self._data, self.model, self.groups, self._how()
        )

    def _how(self) -> dict[str, str]:
        """How it trains, for `repr`."""
        metrics = ", ".join(map(name_of, self.metrics)) or "none"
        optimizer = name_of(getattr(self.opt_fn, "func", self.opt_fn))  # what a functools.partial calls
        return {"loss": name_of(self.crit), "optimizer": optimizer, "metrics": metrics}

    @property
    def metrics(self) -> list[Metric]:
        """Functions of (predictions, targets); may be assigned."""
        return self._metrics

    @metrics.setter
    def metrics(self, metrics: Sequence[Metric]) -> None:
        check_functions("Learner", "metrics", metrics)
        self._metrics = list(metrics)

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

    @long_call("the model holds what it has learnt.")
    @explains_gpu_memory(trains=True)
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
        state_name: str | None = None,
        resume: bool = False,
    ) -> list[float]:
        """Trains the groups that are not frozen, with a new optimizer, and prints a line per epoch.

        Ctrl-C and SIGTERM end the fit after the step that is being made (Ctrl-C twice: at once); then Ctrl-C raises
        KeyboardInterrupt, which says where the fit was stopped, and SIGTERM ends the process with code 143. Everything
        is consistent then.

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
            state_name: keeps the model and the whole state of the fit under this name, after each epoch and when
                Ctrl-C or SIGTERM ends it. `load` takes the model from it.
            resume: goes on from the state ``state_name`` to the same end, bit for bit on a processor, as without the
                interruption; the learner and all other arguments must be what they were. Where there is no such state
                the fit begins; where the fit has ended its model is loaded. So a script that was stopped anywhere may
                simply be run again.

        Returns:
            ``[val_loss, metric, ...]`` after the last epoch.

        Raises:
            DivergedError: the training loss, or a weight after an epoch, is not finite. The model then holds the
                weights that it had before that epoch.
            GpuMemoryError: a batch is too large for the GPU.
            BadImageError: pictures cannot be decoded; names them all, see `ImageClassifierData.scan`.
            CheckpointError: the state cannot be read, or belongs to something else; says what differs.
        """
        check_count("fit", "n_cycle", n_cycle)
        check_functions("fit", "callbacks", callbacks, Callback)
        self.data.scan()  # what is skipped counts in no batch
        self._settle_fine_tuning()
        schedule = make_schedule(_batches(self._stage()), cycle_len, cycle_mult, use_clr, use_clr_beta)
        rates = self._rates(lrs, wds, schedule, decoupled=use_wd_sched)
        epochs = n_epochs(n_cycle, cycle_len, cycle_mult)
        plan = {
            "epochs": epochs,
            "cycle_save_name": cycle_save_name,
            "best_save_name": best_save_name,
            "callbacks": [type(callback).__name__ for callback in callbacks],
        }
        state, saved = self._state_of(state_name, plan, rates, resume=resume)
        fits = self._fits + 1 if saved is None else saved["fits"]
        hooks = list(callbacks)
        for name in filter(None, (best_save_name, cycle_save_name)):
            self._model_path(name)  # a name or a folder that will not do is an error now, not after an epoch
        if best_save_name:
            hooks.append(SaveBest(self.save, best_save_name))
        if cycle_save_name:
            hooks.append(SaveCycles(self.save, cycle_save_name, schedule, _batches(self._stage())))
        self.sched = Recorder(schedule, float(rates.lrs[-1]))
        with Interrupts() as interrupts, self._seeded("fit", fits):
            loop = self._loop(rates, hooks, interrupts)
            if saved is not None:
                with unchanged_if(CheckpointError, self.model):
                    self.load(str(state_name))
                    loop = self._loop(rates, hooks, interrupts)  # a loaded body may bring other activations
                    put_back(saved, loop, self._data.device, self._model_path(str(state_name)))
            self._fits = fits
            try:
                values = loop.fit(
                    epochs,
                    self._validate,
                    [name_of(m) for m in self.metrics],
                    lambda: self._keep(state, loop),
                    loss_of_constant(self.crit, self._data.trn_ds.labels, self._data.val_dl),
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_stopped(loop, interrupts, state_name)) from None
            finally:
                self._epochs = loop.first_epoch + loop.epoch + (loop.done > 0)
        self._say_waiting()
        return FitScores(values, ["val_loss", *map(name_of, self.metrics)])

    def _state_of(
        self, name: str | None, plan: dict[str, Any], rates: Rates, *, resume: bool
    ) -> tuple[FitState | None, dict[str, Any] | None]:
        """Where the state of the next fit is kept, and the state to go on from."""
        if name is None:
            if resume:
                raise ValueError("fit: resume needs state_name, the name under which the state is kept")
            return None, None
        if name == plan["best_save_name"]:
            raise ValueError(f"fit: state_name and best_save_name must differ, got {name!r} twice")
        state = FitState(self._model_path(name), self._setting(plan, rates))
        saved = state.read() if resume else None
        if saved is not None:
            loop = saved["loop"]
            log(f"fit: {name!r} {'is over' if loop['finished'] else 'goes on'} after {loop['steps']['step']} steps")
        return state, saved

    def _setting(self, plan: dict[str, Any], rates: Rates) -> dict[str, Any]:
        """All that makes a fit what it is: what must be the same to go on with it."""
        stage = self._stage()
        return {
            **self._info(),
            **data_setting(stage.data),
            **plan,
            **rates.describe(),
            "crit": told(self.crit),
            "opt_fn": told(self.opt_fn),
            "seed": self.seed,
            "frozen groups": self.groups.frozen_to,
            "bn_freeze": self.groups.bn_frozen,
            "autograd": unknown_to_engine(stage.module, stage.data.trn_dl, self.crit, self.opt_fn),
        }

    def _keep(self, state: FitState | None, loop: TrainLoop) -> None:
        if state is None:
            return
        state.write({"fits": self._fits, **where_it_stands(loop, self._data.device)}, self._state(), self._info())

    def _say_waiting(self) -> None:
        line = self.data.trn_dl.waiting.line("train")
        if line is not None:
            log(line)

    @long_call("the model is as it was before.")
    @explains_gpu_memory(trains=True)
    def lr_find(
        self, start_lr: ArrayLike = 1e-5, end_lr: float = 10, wds: ArrayLike | None = None, *, linear: bool = False
    ) -> RateSuggestions:
        """Train while the rate rises from ``start_lr`` to ``end_lr``, print and return suggestions for the rate.

        The search takes an epoch; where that has fewer than 100 batches, it goes over the data again until 100. It
        stops when the smoothed loss is not finite, or above four times its best since the tenth batch. `sched.plot`
        then draws the loss over the rate and marks the suggestions. Weights, BatchNorm statistics, generators and modes
        are afterwards, and after an interrupt, what they were before, bit for bit.

        Args:
            start_lr: the lowest rate: one number, or one per layer group. Suggestions are for the last group.
            end_lr: the highest rate of the last group.
            wds: see `fit`.
            linear: whether the rate rises on a straight line, instead of by a constant factor per step.
        """
        self.data.scan()
        self._settle_fine_tuning()
        stage = self._stage()
        nb = _batches(stage)
        last = float(np.asarray(start_lr, dtype=np.float64).reshape(-1)[-1])
        if not 0 < last < end_lr:
            raise ValueError(f"lr_find: rates must rise from above 0, got start_lr {last:g} and end_lr {end_lr:g}")
        steps = max(nb, _SEARCH_STEPS)
        rates = self._rates(start_lr, wds, Finder(steps, end_lr / last, linear), decoupled=False)
        self.sched = Recorder(rates.schedule, last)
        with Interrupts() as interrupts, unchanged(stage.module), self._seeded("lr_find", self._fits):
            self._loop(rates, [EndSearch(steps)], interrupts).search()
        self.sched.suggestions = suggest(self.sched.lrs, self.sched.losses)
        log(f"lr_find: {len(self.sched.lrs)} steps; {self.sched.suggestions}")
        return self.sched.suggestions

    def _loop(self, rates: Rates, hooks: Sequence[Callback], interrupts: Interrupts) -> TrainLoop:
        stage = self._stage()
        stage.groups.set_modes()
        check_batch_norm(stage.module, stage.data.trn_dl)
        steps = self._steps(stage, rates)
        return TrainLoop(steps, stage.groups, _batches(stage), self.sched, hooks, interrupts, self._epochs)

    def _steps(self, stage: Stage, rates: Rates) -> Steps:
        """Trains cached rows in the native engine where it knows head, loss and optimizer, else through autograd."""
        module, loader, crit = stage.module, stage.data.trn_dl, self.crit
        check_final_layer(module, crit)
        unknown = unknown_to_engine(module, loader, crit, self.opt_fn)
        if unknown is None:
            return EngineSteps(module, loader, crit, self.opt_fn, rates)  # type: ignore[arg-type]
        if stage.data.has_rows:
            self._say_once(f"{unknown} is not known to the native engine: the head trains through autograd")
        return AutogradSteps(Objective(module, crit), stage.groups, loader, self.opt_fn, rates)

    def _settle_fine_tuning(self) -> None:
        """Decides for the fit to come what BatchNorm does, and says what that means for a pretrained body."""
        groups = self._stage().groups
        groups.settle_batch_norm()
        line = _fine_tuning_line(groups.bn_frozen, self.clip) if groups.fine_tunes else None
        if line is not None:
            self._say_once(line)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            log(text)
            self._said.add(text)

    def _rates(self, lrs: ArrayLike, wds: ArrayLike | None, schedule: Schedule, *, decoupled: bool) -> Rates:
        groups = self._stage().groups
        return Rates(
            self._per_group(lrs, "lrs"),
            schedule,
            None if wds is None else self._per_group(wds, "wds"),
            decoupled,
            FINE_TUNING_CLIP if self.clip is None and groups.fine_tunes and groups.kept else self.clip,
        )

    def _per_group(self, values: ArrayLike, name: str) -> NDArray[np.float64]:
        return self._stage().groups.per_group(values, name)

    def _seeded(self, what: str, number: int) -> AbstractContextManager[None]:
        return seeded(derived_seed(self.seed, what, number), self._stage().module)

    def _validate(self) -> list[float]:
        stage = self._stage()
        return validate(Objective(stage.module, self.crit), stage.data.val_dl, self.metrics)

    # Freezing

    def freeze_to(self, n: int) -> None:
        """Freezes the layer groups before index ``n`` and makes the others trainable; see `bn_freeze`."""
        self.groups.freeze_to(n)

    def freeze(self) -> None:
        """Freezes all layer groups but the last."""
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Makes all layer groups trainable; see `bn_freeze`."""
        self.freeze_to(0)

    def bn_freeze(self, frozen: bool) -> None:
        """Whether BatchNorm of groups that train normalises with its running statistics and keeps them.

        In frozen groups it always does. Without a call, it depends on the body:

        - One that was pretrained, so that its BatchNorm came with statistics, trains with them, and the head with those
          that it has from earlier fits. Statistics of small batches would change the features at once, more than
          training mends. As nothing then keeps activations in bounds, the gradient's norm is bounded, see ``clip``.
        - One with random weights learns its statistics, and so does a network of one's own with new BatchNorm.

        BatchNorm's weights (scale and shift) train in either case. The first fit that this concerns says so.
        """
        if not isinstance(frozen, bool | np.bool_):
            raise ValueError(f"bn_freeze: frozen must be True or False, got {frozen!r}")
        self.groups.bn_frozen = bool(frozen)

    # Predicting

    @long_call(NOTHING_CHANGED)
    def predict(self, is_test: bool = False) -> Array:
        """Log-probabilities (probabilities when several labels) ``[N, c]`` of the validation or test set, in order.

        NaN in rows whose pictures cannot be decoded and are skipped.
        """
        return self.predict_with_targs(is_test)[0]

    @long_call(NOTHING_CHANGED)
    def predict_with_targs(self, is_test: bool = False) -> tuple[Array, Array]:
        """`predict`, and the targets (zeros for a test set without labels).

        The target of a row without a prediction is -1 (NaN where targets are floats), so that `confusion_matrix`,
        `classification_report` and all metrics leave it out. ``data.val_y`` has the true ones.
        """
        stage = self._stage()
        return self._predict(stage.module, _set(stage.data, is_test, "val_dl", "test_dl"))

    @long_call(NOTHING_CHANGED)
    def predict_dl(self, dl: Any) -> Array:
        """Predictions ``[N, c]`` for every row that a loader of pictures or of activations serves."""
        return self._predict(self._module_for_loader(dl), dl)[0]

    @long_call(NOTHING_CHANGED)
    def predict_array(self, x: ArrayLike | Tensor) -> Array:
        """Predictions ``[B, c]`` for transformed pictures ``[B, 3, h, w]``, or for activations ``[B, F]``.

        Raises:
            ValueError: it is something else: one picture, channels last, pixels that are not transformed.
        """
        batch = as_batch(x, self._data.tfms and self._data.tfms[1], self._columns()).to(self._data.device)
        objective = Objective(self._module_for(batch.ndim), self.crit)
        objective.module.eval()
        with torch.inference_mode():
            return _numpy(objective.output(objective.scores(batch)))

    @long_call(NOTHING_CHANGED)
    def TTA(self, n_aug: int = 4, is_test: bool = False) -> tuple[Array, Array]:  # noqa: N802
        """Predictions for the pictures as they are and for ``n_aug`` augmented views: ``[1 + n_aug, N, c]``, targets.

        Average probabilities: ``np.mean(np.exp(log_preds), 0)`` (one label), ``np.mean(preds, 0)`` (several). Rows
        without a prediction: as in `predict` and `predict_with_targs`.
        """
        check_count("TTA", "n_aug", n_aug, least=0)
        if self._data.has_rows:
            raise ValueError("TTA: needs pictures, and this data holds activations")
        plain = _set(self._data, is_test, "val_dl", "test_dl")
        augmented = _set(self._data, is_test, "aug_dl", "test_aug_dl")
        passes = [self._predict(self.model, plain)]
        passes += [self._predict(self.model, augmented, epoch) for epoch in range(n_aug)]
        # The last pass knows of every picture that has turned out to be bad meanwhile.
        return np.stack([predictions for predictions, _ in passes]), passes[-1][1]

    @explains_gpu_memory(trains=False)
    def _predict(self, module: nn.Module, dl: Any, epoch: int = 0) -> tuple[Array, Array]:
        objective = Objective(module, self.crit)
        scores, targets = scores_of(objective, dl, epoch)
        with torch.inference_mode():
            return _numpy(objective.output(scores)), _numpy(targets)

    def _columns(self) -> int | None:
        """Columns of the rows that `predict_array` takes, or None where it takes none."""
        rows = self._data.trn_ds.rows
        return None if rows is None else rows.shape[1]

    def _module_for(self, ndim: int) -> nn.Module:
        """The module that takes a batch of ``ndim`` dimensions."""
        return self.model

    def _module_for_loader(self, dl: Any) -> nn.Module:
        return self._module_for(2 if dl.ds.rows is not None else 4)

    @long_call(NOTHING_CHANGED)
    def summary(self) -> None:
        """Prints a table of the layers that are in use, their output shapes and parameters."""
        stage = self._stage()
        x, _ = next(stage.data.val_dl.batches(0))
        show(summary_table(stage.module, x[:2]))


def _fine_tuning_line(bn_frozen: bool | None, clip: float | None) -> str | None:
    bound = f"the gradient's norm is bounded at {FINE_TUNING_CLIP:g} (clip)"
    if bn_frozen is None:
        kept = "the body is pretrained: BatchNorm keeps its statistics (bn_freeze(False) updates them)"
        return f"{kept if clip is not None else f'{kept} and {bound}'}, as small data sets get worse otherwise"
    if not bn_frozen:
        return "bn_freeze(False): BatchNorm of a pretrained body learns new statistics; small data sets get worse by it"
    return None if clip is not None else f"bn_freeze(True): {bound}, as nothing else keeps activations in bounds"


def _loss_for(data: ImageClassifierData, class_weights: str | ArrayLike | None) -> Crit:
    if class_weights is None:
        return default_loss(is_multi=data.is_multi, is_reg=data.is_reg)
    if data.is_reg:
        raise ValueError("class_weights: the labels are numbers to be predicted, not classes. Leave it out.")
    return default_loss(is_multi=data.is_multi, is_reg=False, weight=weights_of(class_weights, data.trn_y, data.c))


def _stopped(loop: TrainLoop, interrupts: Interrupts, state_name: str | None) -> str:
    """What Ctrl-C leaves of a fit, and how to go on."""
    where = f"fit was stopped after {loop.epoch} epoch(s) and {loop.done} of {loop.batches} batches"
    if not interrupts.at_rest:
        return f"{where}, in the middle of a step: load a saved model, or make a new learner."
    if state_name is None:
        return f"{where}; the model holds what it has learnt. With state_name= a fit can go on where it was stopped."
    return f"{where}; the model holds what it has learnt. The same call with resume=True goes on."


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
