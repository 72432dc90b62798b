"""The learner for any model: the lesson's calls, in the lesson's order. The work is done in the other packages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from fastclf import rank_tensors, ranks
from fastclf.argument_checks import check_count, check_flag, check_functions, check_numbers
from fastclf.calls import NOTHING_CHANGED, long_call
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.interrupts import Interrupts
from fastclf.learners.describe import describe_learner
from fastclf.learners.reporting import Reporting
from fastclf.learners.saving import Saving
from fastclf.learners.stage import Stage
from fastclf.losses import BCE, L1, NLL
from fastclf.models.freezing import LayerGroups
from fastclf.models.head import check_outputs
from fastclf.models.summary import summary_table
from fastclf.ops.head.spec import Precision
from fastclf.philox import checked_seed
from fastclf.report import counted, log, log_once, show
from fastclf.schedules import Constant, RangeTest, RateFunction, Schedule
from fastclf.training.body_policy import clip_for, describe_fine_tuning
from fastclf.training.callbacks import Callback, EndSearch, SaveBest, SaveCycles
from fastclf.training.cycles import check_whole_cycles, make_schedule, n_epochs
from fastclf.training.engine import EngineSteps, check_precision, unknown_to_engine
from fastclf.training.forward import Crit, Objective, check_final_layer, loss_of_constant, validate
from fastclf.training.inputs import check_batch_norm, check_can_train, check_data
from fastclf.training.loop import Steps, TrainLoop, derived_seed, seeded
from fastclf.training.losses import check_targets, default_loss
from fastclf.training.losses import class_weights as weights_of
from fastclf.training.memory import explains_gpu_memory
from fastclf.training.metrics import Metric as Metric
from fastclf.training.metrics import name_of, names_of
from fastclf.training.optimizer import SGDR
from fastclf.training.recorder import Recorder
from fastclf.training.resume import FitState, check_state_name, data_setting, describe_function
from fastclf.training.scores import FitScores
from fastclf.training.snapshot import unchanged, unchanged_on_error
from fastclf.training.steps import AutogradSteps, OptFn, Rates
from fastclf.training.suggestions import RateSuggestions, suggest

_FINALS = {NLL: "log_softmax", BCE: "sigmoid", L1: "none"}  # our losses -> the output that they take
_SEARCH_STEPS = 100  # of lr_find, at least


class Learner(Reporting, Saving):
    """Train and apply the user's own model; see `ConvLearner` for a pretrained one, `HeadLearner` for activations.

    Args:
        data: images or rows.
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
        precision: what the products multiply while a head of ours trains on activations on a GPU: ``"float32"``,
            ``"tf32"`` (its 10 leading bits) or ``"bf16"`` (7); they add up in float32. Refused without a GPU. A whole
            network trains on a GPU in bf16 in any case.
        seed: of everything random in training; the data's by default.
        models_name: folder below the data's path where models are saved.

    Attributes:
        metrics, crit, opt_fn, clip: as above; may be assigned.
        precision: as above.
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
        precision: Precision = "float32",
        seed: int | None = None,
        models_name: str = "models",
    ) -> None:
        check_data(type(self).__name__, data)
        if not isinstance(model, nn.Module):
            raise ValueError(f"{type(self).__name__}: model must be an nn.Module, got {model!r}")
        check_can_train(type(self).__name__, model)
        self._data = data
        self.model = model.to(data.device, torch.float32)
        rank_tensors.take_from_first(self.model)  # its weights may be random
        self.groups = LayerGroups(groups, heads=self._heads)
        self.crit: Crit = _loss_for(data, class_weights) if crit is None else crit
        if crit is not None and class_weights is not None:
            raise ValueError("class_weights: crit replaces the default loss. Pass crit=NLL(weight=...) instead.")
        self.metrics = metrics
        self.opt_fn: OptFn = SGDR if opt_fn is None else opt_fn
        self.clip = clip
        self.precision = check_precision(precision, data.device)
        self.seed = checked_seed(type(self).__name__, data.seed if seed is None else seed)
        self.sched = Recorder(Constant(), 0.0)
        self._models_name = models_name
        self._fits = self._epochs = 0
        self._fitting = False
        self._bn_frozen: bool | None = None
        self._logged: set[str] = set()

    @staticmethod
    def from_model_data(
        model: nn.Module, data: ImageClassifierData, groups: Sequence[nn.Module] | None = None, **kwargs: Any
    ) -> Learner:
        """Make a learner for the user's own whole network: one group unless ``groups`` are given; see `Learner`.

        Args:
            model: any module.
            data: what it is trained on.
            groups: parts of the model that get a rate each, from the input to the output.
            **kwargs: see `Learner`.

        Returns:
            The learner.
        """
        return Learner(data, model, groups or [model], **kwargs)

    def __repr__(self) -> str:
        """Describe the network, what of it trains, and how, in a few lines; nothing is computed."""
        return describe_learner(
            type(self).__name__, self._info()["arch"], self._data, self.model, self.groups, self._how()
        )

    def _how(self) -> dict[str, str]:
        """Return how it trains, for `repr`."""
        metrics = ", ".join(names_of(self.metrics)) or "none"
        optimizer = name_of(self.opt_fn)
        return {"loss": name_of(self.crit), "optimizer": optimizer, "metrics": metrics}

    @property
    def metrics(self) -> list[Metric]:
        """Functions of (predictions, targets); may be assigned."""
        return self._metrics

    @metrics.setter
    def metrics(self, metrics: Sequence[Metric]) -> None:
        check_functions("Learner", "metrics", metrics)
        self._metrics = list(metrics)

    @property
    def _stage(self) -> Stage:
        return Stage(self.model, self.groups, self._data)

    def set_data(self, data: ImageClassifierData) -> None:
        """Go on with other data of the same classes, such as larger images."""
        check_data("set_data", data)
        self._check_successor(data)
        self._data = data

    def _check_successor(self, data: ImageClassifierData) -> None:
        labels, own = data.trn_ds.labels, self._data.trn_ds.labels
        if labels.kind != own.kind:
            raise ValueError(
                f"set_data: data must have labels of the learner's kind ({own.kind}), got {labels.kind}. "
                "Make a new learner for such labels."
            )
        if data.classes != self._data.classes or data.c != self._data.c:
            raise ValueError(
                f"set_data: data must have the classes {self._data.classes}, got {data.classes}. "
                "Make a new learner for other classes."
            )
        rows, own_rows = (None if one.trn_ds.rows is None else one.trn_ds.rows.shape[1:] for one in (data, self._data))
        if rows != own_rows:
            takes, got = ("images" if shape is None else f"rows of {list(shape)} numbers" for shape in (own_rows, rows))
            raise ValueError(f"set_data: data must hold {takes}, as the learner's do, got {got}. Make a new learner.")

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
        schedule: Schedule | RateFunction | None = None,
        cycle_save_name: str | None = None,
        best_save_name: str | None = None,
        callbacks: Sequence[Callback] = (),
        use_wd_sched: bool = False,
        state_name: str | None = None,
        resume: bool = False,
    ) -> list[float]:
        """Train the groups that are not frozen, with a new optimizer, and print a line per epoch.

        Ctrl-C and SIGTERM end the fit after the step that is being made (Ctrl-C twice: at once); then Ctrl-C raises
        KeyboardInterrupt, which says where the fit was stopped, and SIGTERM ends the process with code 143. Everything
        is consistent then.

        Args:
            lrs: the highest rate: one number, or one per layer group.
            n_cycle: cycles, or epochs where ``cycle_len`` is not given.
            wds: weight decay, added to the gradient: one number, or one per layer group.
            cycle_len: epochs of the first cycle (SGDR; Loshchilov and Hutter, 2017).
            cycle_mult: how many times longer each cycle is than the one before.
            use_clr: ``(div, cut_div)``: each cycle a slanted triangle instead of a cosine.
            use_clr_beta: ``(div, pct[, max_mom, min_mom])``: each cycle a 1cycle.
            schedule: a schedule of your own instead of cycles: a function of the batch's number in this fit, from 0,
                that gives the factor on ``lrs``, or (factor, momentum); or a `fastclf.schedules` object.
            cycle_save_name: saves the model after each cycle as ``NAME_cyc_K``.
            best_save_name: saves the model whenever the validation loss is the lowest of this fit.
            callbacks: see `Callback`.
            use_wd_sched: takes ``rate * wds`` off the weights, apart from the gradient (decoupled).
            state_name: saves the model and the whole state of the fit under this name, after each epoch and when
                Ctrl-C or SIGTERM ends it. `load` takes the model from it.
            resume: goes on from the state ``state_name`` to the same end, bit for bit on a processor, as without the
                interruption; the learner and all other arguments must be what they were. Where there is no such state
                the fit begins; where the fit has ended its model is loaded. So a script that was stopped anywhere may
                simply be run again.

        Returns:
            ``[val_loss, metric, ...]`` after the last epoch.

        Raises:
            DivergedError: the training loss, or a weight or prediction after an epoch, is not finite. The model then
                holds the weights that it had before that epoch.
            GpuMemoryError: a batch is too large for the GPU.
            BadImageError: images cannot be decoded; names them all, see `ImageClassifierData.scan`.
            CheckpointError: the state cannot be read, or belongs to something else; says what differs.
        """
        check_count("fit", "n_cycle", n_cycle)
        check_functions("fit", "callbacks", callbacks, Callback)
        check_flag("fit", "use_wd_sched", use_wd_sched)
        check_flag("fit", "resume", resume)
        if cycle_save_name is not None:
            check_whole_cycles(n_cycle, cycle_len, cycle_mult)
        check_state_name(state_name, best_save_name, resume=resume)
        self._prepare()
        made = make_schedule(
            self._stage.batches, cycle_len, cycle_mult, use_clr, use_clr_beta, own=schedule, n_cycle=n_cycle
        )
        rates = self._rates(lrs, wds, made, decoupled=use_wd_sched)
        epochs = n_epochs(n_cycle, cycle_len, cycle_mult)
        hooks = [*callbacks, *self._savers(best_save_name, cycle_save_name, made)]
        plan = {
            "epochs": epochs,
            "cycle_save_name": cycle_save_name,
            "best_save_name": best_save_name,
            "callbacks": [type(callback).__name__ for callback in callbacks],
        }
        if ranks.size() > 1:
            ranks.check_same("fit", self._setting(plan, rates))
            self._tell_of_random_layers()
        state = None if state_name is None else FitState(self._model_path(state_name), self._setting(plan, rates))
        saved = state.read() if state is not None and resume else None
        fits = self._fits + 1 if saved is None else saved["fits"]
        recorder = Recorder(made, float(rates.lrs[-1]))
        with Interrupts() as interrupts, self._seeded("fit", fits):
            loop = self._loop(rates, recorder, hooks, interrupts)
            if state is not None and saved is not None:
                with unchanged_on_error(self.model):
                    self.load(state.path.name)
                    # The loaded body may bring other activations.
                    loop = self._loop(rates, recorder, hooks, interrupts)
                    state.restore(saved, loop, self._data.device)
            # Only now: what is refused leaves everything as it was.
            self._forget_decision()
            self.sched, self._fits, self._fitting = recorder, fits, True
            try:
                return self._run(loop, epochs, state)
            finally:
                self._epochs, self._fitting = loop.next_epoch, False

    def _tell_of_random_layers(self) -> None:
        if layers := self._stage.groups.random_layers():
            log_once(
                f"fit: {', '.join(layers)} sample random numbers of torch's own, other ones on each of the "
                f"{ranks.size()} processes: losses are as good as those of one process, and not the same"
            )

    def _run(self, loop: TrainLoop, epochs: int, state: FitState | None) -> FitScores:
        """Train to the end, and report what the epochs gave and whether images came too slowly."""
        names = names_of(self.metrics)
        constant = loss_of_constant(self.crit, self._data.trn_ds.labels, self._data.val_dl)
        save_state = None if state is None else partial(self._save_state, state, loop)
        values = loop.fit(epochs, self._validate, names, save_state, constant)
        line = self.data.trn_dl.input_stall.line("train")
        if line is not None:
            log(line)
        return FitScores(values, ["val_loss", *names])

    def _save_state(self, state: FitState, loop: TrainLoop) -> None:
        state.write(loop, self._fits, self._data.device, self._state(), self._saved_info())

    def _prepare(self) -> None:
        """Before anything trains: find bad images, which count in no batch, and settle what BatchNorm does."""
        if self._fitting:  # a callback that searches for a rate: what was settled holds until the fit ends
            return
        self.groups.check_hold(self.model)
        self.data.scan()
        groups = self._stage.groups
        groups.settle_batch_norm(self._bn_frozen)
        line = describe_fine_tuning(self._bn_frozen, self.clip) if groups.fine_tunes else None
        if line is not None:
            self._log_once(line)

    def _savers(self, best: str | None, cycles: str | None, schedule: Schedule) -> list[Callback]:
        """Return the callbacks that save; a name or folder that cannot be used is an error now, not after an epoch."""
        savers: list[Callback] = []
        if best is not None:
            self._model_path(best)
            savers.append(SaveBest(self.save, best))
        if cycles is not None:
            self._model_path(cycles)
            savers.append(SaveCycles(self.save, cycles, schedule, self._stage.batches))
        return savers

    def _setting(self, plan: dict[str, Any], rates: Rates) -> dict[str, Any]:
        """Return everything that must be the same for a fit to go on."""
        stage = self._stage
        info = self._info()
        info.pop("decision", None)  # a fit forgets it
        return {
            **info,
            **data_setting(stage.data),
            **plan,
            **rates.describe(),
            "crit": describe_function(self.crit),
            "opt_fn": describe_function(self.opt_fn),
            "seed": self.seed,
            "precision": None if self.precision == "float32" else self.precision,  # older fits knew no other
            "frozen groups": self.groups.frozen_to,
            "bn_freeze": self._bn_frozen,
            "autograd": unknown_to_engine(stage.module, stage.data.trn_dl, self.crit, self.opt_fn),
        }

    @long_call("the model is as it was before.")
    @explains_gpu_memory(trains=True)
    def lr_find(
        self, start_lr: ArrayLike = 1e-5, end_lr: float = 10, wds: ArrayLike | None = None, *, linear: bool = False
    ) -> RateSuggestions:
        """Train while the rate rises from ``start_lr`` to ``end_lr``, print and return suggestions for the rate.

        The search takes an epoch; where that has fewer than 100 batches, it goes over the data again until 100. It
        stops when the smoothed loss is not finite, or above four times its best since the tenth batch. `sched.plot`
        then draws the loss over the rate and marks the suggestions; where a callback searches amid a fit, ``sched``
        stays the fit's. Weights, BatchNorm statistics, generators and modes are afterwards, and after an interrupt,
        what they were before, bit for bit.

        Args:
            start_lr: the lowest rate: one number, or one per layer group. Suggestions are for the last group.
            end_lr: the highest rate of the last group.
            wds: see `fit`.
            linear: whether the rate rises on a straight line, instead of by a constant factor per step.
        """
        self._prepare()
        stage = self._stage
        check_numbers("lr_find", "end_lr", end_lr)
        last = float(self._per_group(start_lr, "start_lr")[-1])
        if not 0 < last < end_lr:
            raise ValueError(f"lr_find: rates must rise from above 0, got start_lr {last:g} and end_lr {end_lr:g}")
        steps = max(stage.batches, _SEARCH_STEPS)
        rates = self._rates(start_lr, wds, RangeTest(steps, end_lr / last, linear), decoupled=False)
        search = Recorder(rates.schedule, last)
        if not self._fitting:
            self.sched = search
        with Interrupts() as interrupts, unchanged(stage.module), self._seeded("lr_find", self._fits):
            self._loop(rates, search, [EndSearch(steps)], interrupts).search()
        search.suggestions = suggest(search.lrs, search.losses)
        log(f"lr_find: {counted(len(search.lrs), 'step')}; {search.suggestions}")
        return search.suggestions

    def _loop(self, rates: Rates, recorder: Recorder, hooks: Sequence[Callback], interrupts: Interrupts) -> TrainLoop:
        stage = self._stage
        self._check_model()
        rank_tensors.take_from_first(stage.module)
        stage.groups.set_modes()
        check_batch_norm(stage.module, stage.data.trn_dl)
        steps = self._steps(stage, rates)
        return TrainLoop(steps, stage.groups, stage.batches, recorder, hooks, interrupts, self._epochs)

    def _check_model(self) -> None:
        """Raise ValueError where the user's own network does not give what the default losses take.

        One that gives logits would train, but its predictions would be no log-probabilities.
        """
        check_targets(self.crit, self._data.trn_ds.labels)
        check_final_layer(self.model, self.crit)
        final = _FINALS.get(type(self.crit))
        if final is None or self._heads:
            return
        tfms = self._data.tfms
        shape = (3, tfms[1].sz, tfms[1].sz) if tfms is not None else (self._columns() or 0,)
        x = torch.randn(2, *shape, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
        takes = f"batches [B, {', '.join(map(str, shape))}]"
        check_outputs("model", self.model, x.to(self._data.device), takes, self._data.c, final)

    def _steps(self, stage: Stage, rates: Rates) -> Steps:
        """Train cached rows in the native engine where it knows head, loss and optimizer, else through autograd."""
        module, loader, crit = stage.module, stage.data.trn_dl, self.crit
        unknown = unknown_to_engine(module, loader, crit, self.opt_fn)
        if unknown is None:
            return EngineSteps(module, loader, crit, self.opt_fn, rates, self.precision)  # type: ignore[arg-type]
        if stage.has_features:
            self._log_once(f"the native engine does not know {unknown}: the head trains through autograd")
        return AutogradSteps(Objective(module, crit), stage.groups, loader, self.opt_fn, rates)

    def _log_once(self, text: str) -> None:
        if text not in self._logged:
            self._logged.add(text)
            log(text)

    def _rates(self, lrs: ArrayLike, wds: ArrayLike | None, schedule: Schedule, *, decoupled: bool) -> Rates:
        if self.clip is not None and not (isinstance(self.clip, int | float | np.number) and self.clip > 0):
            raise ValueError(f"clip must be a positive number, got {self.clip!r}. Pass float('inf') for no clipping.")
        wd = None if wds is None else self._per_group(wds, "wds")
        clip = clip_for(self._stage.groups, self.clip)
        return Rates(self._per_group(lrs, "lrs"), schedule, wd, decoupled, clip)

    def _per_group(self, values: ArrayLike, name: str) -> NDArray[np.float64]:
        return self._stage.groups.per_group(values, name)

    def _seeded(self, what: str, number: int) -> AbstractContextManager[None]:
        return seeded(derived_seed(self.seed, what, number), self._stage.module)

    def _validate(self) -> list[float]:
        stage = self._stage
        return validate(Objective(stage.module, self.crit), stage.data.val_dl, self.metrics)

    # Freezing

    def freeze_to(self, n: int) -> None:
        """Freeze the layer groups before index ``n`` and make the others trainable; see `bn_freeze`."""
        self.groups.freeze_to(n)

    def freeze(self) -> None:
        """Freeze all layer groups but the last."""
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Make all layer groups trainable; see `bn_freeze`."""
        self.freeze_to(0)

    def bn_freeze(self, frozen: bool) -> None:
        """Decide whether BatchNorm of groups that train normalises with its running statistics and keeps them.

        In frozen groups it always does. Without a call, it depends on the body:

        - One that was pretrained, so that its BatchNorm came with statistics, trains with them, and the head with those
          that it has from earlier fits. Statistics of small batches would change the features at once, more than
          training repairs. As nothing then keeps activations in bounds, the gradient's norm is bounded, see ``clip``.
        - One with random weights learns its statistics, and so does the user's own network with new BatchNorm.

        BatchNorm's weights (scale and shift) train in either case. The first fit that this concerns logs it.
        """
        check_flag("bn_freeze", "frozen", frozen)
        self._bn_frozen = bool(frozen)

    @long_call(NOTHING_CHANGED)
    def summary(self) -> None:
        """Print a table of the layers that are in use, their output shapes and parameters."""
        stage = self._stage
        x, _ = next(stage.data.val_dl.batches(0))
        show(summary_table(stage.module, x[:2]))


def _loss_for(data: ImageClassifierData, class_weights: str | ArrayLike | None) -> Crit:
    if class_weights is None:
        return default_loss(is_multi=data.is_multi, is_reg=data.is_reg)
    if data.is_reg:
        raise ValueError("class_weights: the labels are numbers to be predicted, not classes. Leave it out.")
    return default_loss(is_multi=data.is_multi, is_reg=False, weight=weights_of(class_weights, data.trn_y, data.c))
