"""The learner for images: a new head on a pretrained body."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from fastclf.argument_checks import check_count, check_flag
from fastclf.calls import NOTHING_CHANGED, long_call
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.served import block_server
from fastclf.data.stream import blocks, items
from fastclf.errors import BadImageError
from fastclf.interrupts import Interrupts
from fastclf.learners.cached_stage import CachedActivations
from fastclf.learners.head_learner import LearnerWithHead, describe_head, make_head, metrics_for
from fastclf.learners.stage import Stage
from fastclf.learners.unfrozen_trial import share_of_before, train_all_layers
from fastclf.models.archs import Architecture, build_bodies
from fastclf.models.body import Body
from fastclf.models.export import format_for, write_model
from fastclf.models.halves import uncut
from fastclf.models.net import Net
from fastclf.models.precision import autocast
from fastclf.models.runtime.checksum import Layers, checksum, layers_of
from fastclf.report import counted, log, warn
from fastclf.training.callbacks import Callback
from fastclf.training.head_choice import Setting
from fastclf.training.inputs import check_data, check_images
from fastclf.training.loop import TrainLoop
from fastclf.training.metrics import Metric
from fastclf.training.recorder import Recorder
from fastclf.training.steps import Rates

Statistics: TypeAlias = tuple[Sequence[float], Sequence[float]]
_SAME_STATISTICS = 0.01  # 2.55 of 255: means of data sets of photographs differ by more


def _check_size(body: Body, data: ImageClassifierData) -> None:
    if data.tfms is not None:
        body.check_size(data.tfms[1].sz)


class ConvLearner(LearnerWithHead):
    """A pretrained body and a new head, made by `pretrained`.

    Attributes:
        model: the whole network, images to predictions; ``model.body`` and ``model.head`` are its parts.
        precompute: whether what is frozen is cached and what trains does so on it; may be assigned at any time.
        views: how many augmented views of every image precompute keeps; 1 for the plain images alone.
    """

    model: Net

    def __init__(
        self,
        data: ImageClassifierData,
        model: Net,
        *,
        views: int = 1,
        act_dtype: str = "float16",
        tmp_name: str = "tmp",
        **kwargs: Any,
    ) -> None:
        check_count("ConvLearner", "views", views)
        self._cache = CachedActivations(int(views), act_dtype, tmp_name)
        super().__init__(data, model, model.groups, **kwargs)
        self._precomputes = False
        self._cached: Stage | None = None
        self._cached_from: tuple[Layers, int] | None = None  # what is frozen, as it was then
        self._trained_with: Statistics | None = None
        model.body.to(memory_format=torch.channels_last)  # faster than channels first, on processors as on GPUs
        for group in model.groups[:-1]:
            group.requires_grad_(False)
        self.groups.frozen_to = len(self.groups) - 1  # as `freeze` does, but what is frozen inside a head stays so

    @classmethod
    @long_call("no learner was made; call it again.")
    def pretrained(
        cls,
        arch: Architecture | Sequence[Architecture],
        data: ImageClassifierData,
        *,
        precompute: bool = False,
        views: int = 1,
        ps: float | Sequence[float] | None = None,
        xtra_fc: Sequence[int] | None = None,
        custom_head: nn.Module | None = None,
        metrics: Sequence[Metric] | None = None,
        pretrained: bool = True,
        weights: str | Path | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> ConvLearner:
        """Make a new head for this data's classes on a frozen, pretrained body.

        Args:
            arch: such as ``resnet34`` or ``efficientnet_lite0``, a torchvision builder, or a timm name; or a list of
                them, whose features of the same images stand side by side, see `JoinedBody`. The data's transforms are
                those of the first.
            data: images.
            precompute: runs the body once, keeps its pooled features in a file, and trains the head on them; see
                `precompute` for other layers.
            views: with 1, precompute keeps the features of the images as they are, and augmentation has no effect.
                With K > 1, it keeps those of K augmented views of every training image, the ones that ``trn_dl``
                samples in epochs 0 to K - 1; each epoch of training takes one view of each image, chosen by
                (seed, epoch, row) so that K epochs take each of them once. Validation and test keep the features of the
                images as they are, which `predict` and the metrics use, and of K augmented views, which `TTA`
                averages. The pass takes K times as long, and its file is K times as large.
            ps: dropout probabilities: one for all linear layers, or one each; [.25, ..., .5] by default.
            xtra_fc: widths of the head's hidden layers; [512] by default.
            custom_head: takes the body's features ``[B, F]``, gives log-probabilities (probabilities when several
                labels) ``[B, c]``, and replaces the head.
            metrics: functions of (predictions, targets); by default accuracy where there is one label, and
                `mean_average_precision` where there are several.
            pretrained: False for a body with random weights.
            weights: a local file of weights for the body: a state dict in ``.pth`` or ``.safetensors``.
            seed: of the head's weights, the dropout masks and everything else random in training; the data's by
                default.
            **kwargs: ``crit``, ``class_weights``, ``opt_fn``, ``clip`` and ``precision``, see `Learner`; ``act_dtype``,
                the type of cached activations, float16 or float32; ``tmp_name`` and ``models_name``, folders below the
                data's path.

        Returns:
            The learner; only its head trains until `unfreeze`.

        Raises:
            WeightsError: the weights cannot be had, or do not fit; says where to put the file.
            ValueError: ``custom_head`` does not fit the body or the classes.
        """
        check_data("ConvLearner.pretrained", data)
        check_images("ConvLearner", data)
        body = build_bodies(arch, pretrained, weights)
        _check_size(body, data)
        head = make_head(data, body.n_features, ps, xtra_fc, custom_head, seed)
        learn = cls(data, Net(body, head), metrics=metrics_for(data, metrics), seed=seed, views=views, **kwargs)
        if pretrained or weights is not None:
            learn._check_statistics((body.mean, body.std))
        learn.precompute = precompute
        return learn

    # Precomputed activations

    @property
    def views(self) -> int:
        """How many augmented views of every image are cached; 1: the plain images alone."""
        return self._cache.views

    @property
    def precompute(self) -> bool:
        """Whether what is frozen has been computed once, and what trains does so on that instead of on images.

        While the head alone trains, that are pooled features; after ``freeze_to(1)``, the feature maps that group 1
        trains on: `freeze`, `freeze_to` and `load` bring those that belong to the new state. Maps are larger by far;
        their size is logged before they are computed, and afterwards how fast they and the images come.

        Raises:
            ValueError: nothing is frozen; or group 0 alone is, of a network that cannot be cut there: a transformer, or
                one of timm.
        """
        return self._precomputes

    @precompute.setter
    @long_call("what was computed is kept; do it again to go on.")
    def precompute(self, on: bool) -> None:
        check_flag("ConvLearner", "precompute", on)
        self._cached = self._cached_stage(self._data) if on else None
        self._precomputes = on

    def _refresh_rows(self) -> None:
        """Compute activations again after the body, or what is frozen of it, has changed, where they are in use."""
        self._cached = None  # after an error or Ctrl-C nothing is out of date: whoever needs it goes on, see `_stage`
        self._cached = self._cached_stage(self._data) if self.precompute else None

    def _cached_stage(self, data: ImageClassifierData) -> Stage:
        frozen = self._frozen_layers()
        stage = self._cache.stage(self.model, self.groups, data)
        self._cached_from = frozen
        return stage

    @property
    def head(self) -> nn.Module:
        """What trains on the body's features."""
        return self.model.head

    def _frozen_layers(self) -> tuple[Layers, int]:
        frozen = [module for group in self.groups.groups[: self.groups.frozen_to] for module in group.modules()]
        return layers_of(frozen), checksum(frozen)

    @property
    def data(self) -> ImageClassifierData:
        """What fit, predict and the metrics work on now; activations follow a body that was changed by hand."""
        if self._cached is not None and self._cached_from != self._frozen_layers():
            log("precompute: what is frozen has been changed, and its activations are computed again")
            self._refresh_rows()
        return super().data

    def _need_rows(self) -> None:
        if not self._stage.has_features:
            self.freeze()
            self.precompute = True

    @long_call("the model holds what it has learnt.")
    def fine_tune(
        self, setting: Setting | None = None, callbacks: Sequence[Callback] = (), unfreeze: bool = True
    ) -> list[float]:
        """Make the best model that can be had without a number: find the best head, then train all layers if it helps.

        First the head, on cached activations: see `HeadLearner.fine_tune`. Then all layers train on, on augmented
        images, at rates of .003 and .01 in one 1cycle of 7 epochs, and the model becomes the mean of its weights before
        and after, which is more accurate than either (Wortsman et al., "Robust fine-tuning of zero-shot models",
        2022). A copy of the model is trained so first, on four fifths of the training images: where its log loss on the
        other fifth is clearly higher than that of the head alone, the body stays frozen; where it is clearly lower
        without the weights before, as after a body with random weights, they are left out. The validation set has no
        part in any choice. The time is logged before; on a processor it is minutes for a thousand images.

        Afterwards, where the body trained, it is unfrozen and ``precompute`` is off. Else the body is frozen,
        ``precompute`` is on, and the body is as it was to the last bit. Ctrl-C during the trial keeps the best head on
        the frozen body.

        Args:
            setting: of the head, instead of choosing, such as ``learn.sweep().best``.
            callbacks: of the fits that end in the learner, not of the trial.
            unfreeze: whether to try to train all layers.

        Returns:
            ``[val_loss, metric, ...]``, as `fit`.

        Raises:
            ValueError: the head or the loss is the user's own, or the labels are numbers to be predicted.
            DivergedError: the setting does not end with finite weights; the head is as it was.
        """
        check_flag("fine_tune", "unfreeze", unfreeze)
        self._check_fine_tune(setting, callbacks)
        self._need_rows()
        setting = self._best_setting() if setting is None else setting
        scores = self._train_head(setting, callbacks)
        share = share_of_before(self, setting) if unfreeze else None
        if share is None:
            return scores
        self.unfreeze()
        return train_all_layers(self, share, callbacks)

    @property
    def _stage(self) -> Stage:
        if self.precompute and self._cached is None:  # computing it was stopped
            self._refresh_rows()
        return self._cached or super()._stage

    def _how(self) -> dict[str, str]:
        views = "" if self.views == 1 else f", {self.views} views of each"
        what = "the head trains on cached activations"
        if self.groups.frozen_to < len(self.groups) - 1:
            what = "group 1 and the head train on cached feature maps"
        return {"precompute": f"on: {what}{views}" if self.precompute else "off"} | super()._how()

    def _loop(self, rates: Rates, recorder: Recorder, hooks: Sequence[Callback], interrupts: Interrupts) -> TrainLoop:
        if not self.precompute and self._data.tfms is not None:
            self.model.prepare(self._data.tfms[1].sz)
        return super()._loop(rates, recorder, hooks, interrupts)

    def _per_group(self, values: ArrayLike, name: str) -> NDArray[np.float64]:
        checked = self.groups.per_group(values, name)
        if not self._stage.has_features:
            return checked
        if np.ndim(values):
            warn(
                f"{name}: under precompute only the head trains; its {checked[-1]:g} is used. "
                "unfreeze() or set precompute = False to train other groups."
            )
        return checked[-1:]

    @long_call("what was computed is kept, and whatever needs the rest goes on with it.")
    def freeze_to(self, n: int) -> None:
        """Freeze the layer groups before index ``n`` and make the others trainable.

        Under precompute, what is frozen then is cached, see `precompute`. Where that is nothing, or the network cannot
        be cut there, ``precompute`` is turned off.
        """
        before = self.groups.frozen_to
        super().freeze_to(n)
        if not self.precompute or self.groups.frozen_to == before:
            return
        if self.groups.frozen_to and not (self.groups.frozen_to == 1 and uncut(self.model.body)):
            self._refresh_rows()
        else:
            log("precompute is off: the body trains on images")
            self.precompute = False

    @long_call("the data are those of before, and what was computed is kept; call it again.")
    def set_data(self, data: ImageClassifierData) -> None:
        """Go on with other images of the same classes; under precompute, with their activations.

        After an error the learner is as it was.

        Args:
            data: see `Learner.set_data`.
        """
        check_data("set_data", data)
        check_images("set_data", data)
        _check_size(self.model.body, data)
        self._check_successor(data)
        self._cached = self._cached_stage(data) if self.precompute else None
        self._data = data
        self._check_statistics(self._trained_with)

    def _note_origin(self, info: dict[str, Any]) -> None:
        tfms = info.get("transforms")
        if isinstance(tfms, dict) and {"mean", "std"} <= tfms.keys():
            self._check_statistics((tfms["mean"], tfms["std"]))

    def _check_statistics(self, trained_with: Statistics | None) -> None:
        """Warn where the transforms normalise images in another way than the weights were trained with."""
        self._trained_with = trained_with
        if trained_with is None or self._data.tfms is None:
            return
        tfms = self._data.tfms[1]
        if not np.allclose(trained_with, (tfms.mean, tfms.std), atol=_SAME_STATISTICS):
            (mean, std), (data_mean, data_std) = trained_with, (tfms.mean, tfms.std)
            warn(
                f"the weights were trained on images normalised with mean {tuple(mean)} and deviation {tuple(std)}, "
                f"and the data's transforms use mean {tuple(data_mean)} and deviation {tuple(data_std)}: predictions "
                "are worse for it. Make the data with tfms_from_model(arch, sz), with the arch of the learner."
            )

    @long_call("what was computed is kept; call it again.")
    def load(self, name: str) -> None:
        """Load what `save` stored, see `Learner.load`; under precompute, activations follow the loaded body.

        Args:
            name: as given to `save`.
        """
        super().load(name)
        self._refresh_rows()

    @long_call("nothing was written; call it again.")
    def export(self, name: str, format: str | None = None) -> Path:
        """Write the whole classifier as ``NAME.onnx`` or ``NAME.pt2`` in the models folder, for use without fastclf.

        Its input ``pixels`` is ``[n, h, w, 3] uint8`` RGB, of any size; crop, resizing and normalisation are part of
        the file. Its output are probabilities. See `fastclf.models.export.write_model` for the rest.

        Args:
            name: of the file, with or without its ending.
            format: ``"onnx"``, or ``"pt2"`` for a program of torch.export; by default what the name's ending says, and
                ONNX where it says nothing.

        Returns:
            The path of the file.

        Raises:
            ExportError: the network does something that cannot be written, or the file computes something else.
            ValueError: there is no such format, the name's ending is another's, or the data has no transforms.
        """
        data = self._data
        if data.tfms is None:
            raise ValueError("export: data has no transforms, so sz and normalisation are not known")
        path = self._model_path(name)
        format = format_for(path, format)
        if path.suffix.lower() != f".{format}":
            path = path.with_name(f"{path.name}.{format}")
        kind, classes = data.trn_ds.labels.kind, [str(c) for c in data.classes]
        write_model(path, self.model, data.tfms[1], classes, kind, self.decision.to_dict(), format)
        return path

    @long_call(NOTHING_CHANGED)
    def TTA(self, n_aug: int = 4, is_test: bool = False) -> tuple[NDArray[Any], NDArray[Any]]:  # noqa: N802
        """Return predictions for the images as they are and for ``n_aug`` augmented views, see `Learner.TTA`.

        Under precompute with ``views`` > 1, the views are the cached ones, and no image is read.

        Args:
            n_aug: how many augmented views.
            is_test: the test set instead of the validation set.

        Raises:
            ValueError: more views are asked for than are cached.
        """
        if not self.precompute or self.views == 1:
            return super().TTA(n_aug, is_test)
        check_count("TTA", "n_aug", n_aug, least=0)
        if n_aug > self.views:
            raise ValueError(
                f"TTA: n_aug must be at most {self.views}, the cached views, got {n_aug}. "
                f"Pass views={n_aug} when making the learner, or set precompute = False to read the images."
            )
        first, targets = self.predict_with_targs(is_test)
        stage = self._stage
        augmented = stage.data.test_aug_dl if is_test else stage.data.aug_dl
        views = [self._predict(stage.module, augmented, view)[0] for view in range(n_aug)]
        return np.stack([first, *views]), targets

    def _features(self, call: str, images: Any) -> tuple[list[str], Tensor]:
        if getattr(images, "ndim", None) == 2 and not isinstance(images, str):
            return super()._features(call, images)
        assert self._data.tfms is not None
        options = self._data.options
        server = block_server(self._data.tfms[1], options)
        self.model.eval()
        names: list[str] = []
        found: list[Tensor] = []
        for block in blocks(items(images), options.bs):
            bad = {row: item.why for row, item in enumerate(block.items) if item.why}
            own = [item.name or f"image {len(names) + row}" for row, item in enumerate(block.items)]
            with torch.inference_mode(), autocast(options.device):
                found += [self.model.features(x).float().cpu() for _, x in server.batches(block, bad)]
            if bad:
                named = {own[row]: why for row, why in sorted(bad.items())}
                name, why = next(iter(named.items()))
                raise BadImageError(
                    f"{call}: {counted(len(bad), 'image')} cannot be decoded. First: {name}: {why}", named
                )
            names += own
        if not found:
            raise ValueError(f"{call}: images must be one or more, got none.")
        return names, torch.cat(found)

    def _columns(self) -> int | None:
        return self.model.body.n_features

    def _module_for(self, ndim: int) -> nn.Module:
        return self.head if ndim == 2 else self.model

    def _module_for_loader(self, dl: Any) -> nn.Module:
        stage = self._stage
        of_stage = any(dl is loader for loader in vars(stage.data).values())
        return stage.module if of_stage and dl.ds.rows is not None else super()._module_for_loader(dl)

    def _info(self) -> dict[str, Any]:
        body = self.model.body
        return (
            super()._info()
            | {"arch": body.arch, "mean": list(body.mean), "std": list(body.std)}
            | describe_head(self.head)
        )
