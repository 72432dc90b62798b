"""How a learner's head is cross-validated."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import nn

from fastclf.argument_checks import check_flag
from fastclf.calls import NOTHING_CHANGED, long_call
from fastclf.data.dataset import Dataset
from fastclf.data.sources.split import numbered
from fastclf.decision import Decision
from fastclf.errors import DivergedError
from fastclf.interpret.cross_validation import CrossValidation, cross_validation
from fastclf.interpret.intervals import OF_GROUPS
from fastclf.learners.predicting import Predicting
from fastclf.losses import BCE, NLL, is_ours
from fastclf.models.head import Head
from fastclf.report import counted
from fastclf.training.folds import make_folds
from fastclf.training.forward import Objective
from fastclf.training.head_choice import Choice, Setting, choose, splits_of, trained_settings
from fastclf.training.head_runs import HeadSetting, HeadTraining
from fastclf.training.inputs import refuse_numbers
from fastclf.training.metrics import mark_without_prediction


class CrossValidating(Predicting):
    """The part of a learner with a head of ours that cross-validates it."""

    @property
    def head(self) -> nn.Module:
        """What trains on features."""
        raise NotImplementedError

    @long_call(NOTHING_CHANGED)
    def cross_validate(
        self,
        k: int = 5,
        *,
        groups: Sequence[Hashable] | None = None,
        stratify: bool = True,
        lr: float = HeadSetting.lr,
        wd: float | None = None,
        epochs: int | None = None,
    ) -> CrossValidation:
        """Return how good heads like the learner's are on rows that they have not seen, as an object that prints.

        The rows are those of the training set; validation and test set have no part in it, so they stay what they are
        for: the last word. They are dealt out into k folds, and each fold is predicted by a new head, made as the
        learner's own (``ps``, ``xtra_fc``, loss and class weights), that has trained on the others. Weight decay and
        epochs that are not given are chosen for each fold by the loss on others, see `fastclf.training.head_choice`:
        no row has a part in the choice of what predicts it. The learner itself stays as it is. One image in two folds
        makes figures look better than they are: see ``data.check()``.

        Args:
            k: number of folds.
            groups: one entry per training row, in the order of ``learn.data.trn_ds``, such as person, scene or place:
                rows of one group are in one fold. By default those of the data (``groups=`` of `from_paths`).
            stratify: whether each fold gets its share of each class.
            lr: the highest rate, see `HeadSetting`.
            wd: weight decay; by default chosen.
            epochs: of each head; by default by the number of rows, and of many rows chosen.

        Raises:
            ValueError: there are no cached rows, the head or loss is the user's own, the targets are numbers, or an
                argument does not fit.
            DivergedError: a head does not end with finite values.
        """
        check_flag("cross_validate", "stratify", stratify)
        ds, head, training = self._head_training("cross_validate")
        kept = ds.groups if groups is None else groups
        folds = make_folds(ds.labels, k, groups=kept, stratify=stratify, seed=self.seed)
        splits = splits_of(ds, folds, self.seed)
        like_own = {"lr": lr, "ps": tuple(head.ps), "xtra_fc": tuple(head.widths)}
        n = max(len(split.train) for split in splits)
        settings = trained_settings(n, bs=training.bs, wd=wd, epochs=epochs, **like_own)
        found = choose(ds, Choice(splits, settings), training)
        logits = torch.from_numpy(found.all_logits(splits, ds))
        good = torch.from_numpy(ds.bad.good_rows())
        if not logits[good].isfinite().all():
            raise DivergedError(f"cross_validate: a head's weights are not finite at rate {lr:g}. Pass a lower lr.")
        preds = Decision().outputs(Objective(head, training.crit), logits, several=ds.is_multi)
        bad = torch.ones(len(ds), dtype=torch.bool)
        bad[good] = False
        targets = mark_without_prediction(torch.from_numpy(np.array(ds.y)), bad).numpy()
        chosen = _described(found.settings) if len(settings) > 1 else []
        notes = [OF_GROUPS] if kept is not None and numbered(kept).max() + 1 < len(ds) else []
        return cross_validation(preds, targets, folds, ds.labels, [*chosen, *notes])

    def _head_training(self, call: str) -> tuple[Dataset, Head, HeadTraining]:
        """Return the rows that heads train on, a head to be like, and how they train.

        Raises:
            ValueError: there are none, or heads on their own cannot train so.
        """
        self._need_features(call)
        head, crit = self._default_head(call)
        return self.data.trn_ds, head, HeadTraining(crit, self.data.trn_dl.bs, self.data.trn_dl.device)

    def _default_head(self, call: str) -> tuple[Head, NLL | BCE]:
        """Return the head and the loss, which must be those that a learner makes itself."""
        labels, head, crit = self._data.trn_ds.labels, self.head, self.crit
        refuse_numbers(call, labels)
        if not isinstance(head, Head):
            raise ValueError(f"{call}: the head must be one of fastclf's, got custom_head. Make a learner without it.")
        if not is_ours(crit) or not isinstance(crit, BCE if labels.is_multi else NLL):
            name = getattr(crit, "__name__", type(crit).__name__)
            raise ValueError(f"{call}: the loss must be the default one, with class weights or without, got {name}")
        return head, crit


def _described(settings: Sequence[Setting]) -> list[str]:
    """Return a line that says what was chosen."""
    ways = [
        f"wd {s.wd:g}" + (f" and {counted(s.epochs, 'epoch')}" if s.epochs else "")
        for s in settings
        if isinstance(s, HeadSetting)
    ]
    each = ", ".join(f"{way} ({counted(ways.count(way), 'fold')})" for way in dict.fromkeys(ways))
    return [f"chosen by the loss on other folds: {each}"]
