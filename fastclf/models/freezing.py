"""Layer groups: which of them train, at which rate, and in which mode their layers run.

A network that was pretrained is fine-tuned with the statistics that its BatchNorm came with, as Keras' guide "Transfer
learning and fine-tuning" advises: those of a small batch change the features so much that what follows no longer fits
them. ``bench/README.md`` has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd


class LayerGroups:
    """The groups of one network, first layers first.

    Making this object changes no parameter: what was frozen before stays so until `freeze_to`.

    Args:
        groups: modules that together hold every parameter.
        heads: how many of the last groups are new; the others, the body, may be pretrained.

    Attributes:
        frozen_to: groups before this index are frozen: no gradients, and evaluation mode (BatchNorm uses and keeps
            its running statistics).
        pretrained: whether BatchNorm of the body came with statistics.
        kept: BatchNorm layers of trainable groups that keep their statistics; see `settle_batch_norm`.
    """

    def __init__(self, groups: Sequence[nn.Module], *, heads: int = 0) -> None:
        self.groups = list(groups)
        self.frozen_to = 0
        self._n_body = len(self.groups) - heads
        self.pretrained = any(map(_has_statistics, self._batch_norm(0, self._n_body)))
        self.settle_batch_norm()

    def __len__(self) -> int:
        return len(self.groups)

    def check_hold(self, model: nn.Module) -> None:
        """Raise ValueError where a parameter of a model that could train is in no group, and so never would."""
        held = {parameter for group in self.groups for parameter in group.parameters()}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter not in held:
                raise ValueError(
                    f"fit: {name} of the model is in no layer group, and would not train. Groups must hold every "
                    "parameter; for a part that was replaced, make a new learner (ConvLearner: with custom_head=)."
                )

    def freeze_to(self, n: int) -> None:
        """Freeze groups before index ``n`` (negative: from the end) and make the others trainable."""
        if n not in range(-len(self), len(self)):
            raise ValueError(f"freeze_to: n must be a group's index, {-len(self)} to {len(self) - 1}, got {n!r}")
        self.frozen_to = n % len(self)
        for index, group in enumerate(self.groups):
            group.requires_grad_(index >= self.frozen_to)

    def settle_batch_norm(self, frozen: bool | None = None) -> None:
        """Decide which BatchNorm layers keep their statistics, until it is called again: at the start of each fit.

        Args:
            frozen: whether those of trainable groups use and keep their running statistics too. None decides by the
                layer: while a pretrained body trains, every layer that has statistics keeps them.
        """
        trainable = self._batch_norm(self.frozen_to, len(self))
        if frozen is None:
            self.kept = [layer for layer in trainable if _has_statistics(layer)] if self.fine_tunes else []
        else:
            self.kept = trainable if frozen else []

    def kept_places(self) -> list[int]:
        """Return which BatchNorm layers of trainable groups are `kept`, for a fit that goes on later."""
        kept = set(self.kept)
        return [i for i, layer in enumerate(self._batch_norm(self.frozen_to, len(self))) if layer in kept]

    def keep(self, places: Sequence[int]) -> None:
        """Take what `kept_places` gave: since the fit began, more layers have got statistics."""
        trainable = self._batch_norm(self.frozen_to, len(self))
        self.kept = [trainable[i] for i in places]

    @property
    def fine_tunes(self) -> bool:
        """Return whether BatchNorm of a pretrained body is in groups that train."""
        return self.pretrained and bool(self._batch_norm(self.frozen_to, self._n_body))

    def set_modes(self) -> None:
        """Put every layer into its mode for training; called again each epoch, since evaluation changes it."""
        for index, group in enumerate(self.groups):
            group.train(index >= self.frozen_to)
        for layer in self.kept:
            layer.eval()

    def random_layers(self) -> list[str]:
        """Return the kinds of layers of trainable groups that sample from torch's own generators, as far as is known.

        That is not the dropout of a `Head`, whose masks are functions of seed, step and position.
        """
        modules = chain.from_iterable(group.modules() for group in self.groups[self.frozen_to :])
        return sorted({type(module).__name__ for module in modules if _samples(module)})

    def _batch_norm(self, first: int, end: int) -> list[_NormBase]:
        modules = chain.from_iterable(group.modules() for group in self.groups[first:end])
        return [module for module in modules if isinstance(module, _NormBase)]

    def trainable(self) -> list[tuple[int, list[nn.Parameter]]]:
        """Return ``(group index, its parameters)`` of every group that trains and has parameters."""
        pairs = [(index, list(group.parameters())) for index, group in enumerate(self.groups)]
        return [(index, parameters) for index, parameters in pairs if index >= self.frozen_to and parameters]

    def per_group(self, values: ArrayLike, name: str) -> NDArray[np.float64]:
        """Return one value per group: a scalar serves all, an array must have as many values as there are groups."""
        wanted = f"{name} must be one number or one per layer group ({len(self)} groups)"
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:  # also of a list of lists of different lengths
            raise ValueError(f"{wanted}, got {values!r}.") from error
        if array.ndim == 0:
            array = np.full(len(self), float(array))
        if array.shape != (len(self),):
            raise ValueError(f"{wanted}, got shape {array.shape}.")
        if not (np.isfinite(array).all() and (array >= 0).all()):
            found = " lr_find suggests None where the loss does not clearly fall; choose one." if values is None else ""
            raise ValueError(f"{name} must be finite and not negative, got {values!r}.{found}")
        return array


def _samples(module: nn.Module) -> bool:
    rate = next((getattr(module, name) for name in ("p", "drop_prob", "dropout") if hasattr(module, name)), 0)
    kinds = (_DropoutNd, nn.MultiheadAttention, nn.RNNBase)
    named = type(module).__name__ in ("StochasticDepth", "DropPath")  # torchvision's and timm's
    return isinstance(rate, int | float) and rate > 0 and (isinstance(module, kinds) or named)


def _has_statistics(layer: _NormBase) -> bool:
    """Return whether running statistics are others than those that a new layer begins with."""
    mean, var = layer.running_mean, layer.running_var
    return mean is not None and var is not None and bool((mean != 0).any() or (var != 1).any())
