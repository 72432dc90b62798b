"""The head engine on the processor (csrc/cpu/head.h)."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastclf.losses import BCE
from fastclf.ops.arguments import DTYPES, RowSource
from fastclf.ops.head.spec import HeadSpec, HeadTraining
from fastclf.ops.registry import address
from fastclf.ops.sgd import group_records

_TENSORS = ("weight", "bias", "gamma", "beta", "running_mean", "running_var")
_LAYER = np.dtype(  # csrc/cpu/launchers.h: HeadLayer
    [
        ("n_in", np.uint64),
        ("n_out", np.uint64),
        ("p", np.float64),
        ("eps", np.float32),
        ("bn_momentum", np.float32),
        *((name, np.uint64) for name in _TENSORS),
    ]
)


class CpuHead:
    """Trains a head in the processor's engine, which keeps the momentum in tiles of its own."""

    def __init__(self, native: ModuleType, training: HeadTraining) -> None:
        spec, loss = training.spec, training.loss
        weight = torch.ones(spec.n_out, dtype=torch.float32) if loss.weight is None else loss.weight
        weight = weight.detach().float().contiguous().cpu()
        # The engine reads the rows, the targets and a schedule's table at every step.
        self._native, self._training = native, training
        layers, group = _layers(spec), group_records([training.rates.group])
        self._engine: int = native.head_create(
            layers=address(layers),
            n_layers=len(layers),
            max_batch=training.max_batch,
            rows=address(training.rows.matrix),
            dtype=DTYPES[training.rows.matrix.dtype],
            loss=int(isinstance(loss, BCE)),
            targets=address(training.targets),
            class_weight=address(weight),
            smoothing=loss.label_smoothing,
            group=address(group),
            clip=training.rates.clip or 0.0,
            seed=training.seed,
        )
        weakref.finalize(self, native.head_destroy, self._engine)
        self._shapes = [p.shape for p in spec.parameters()]

    def momenta(self) -> list[Tensor]:
        """Return a copy of the momentum of every parameter."""
        found = [torch.empty(shape, dtype=torch.float32) for shape in self._shapes]
        self._native.head_momenta(self._engine, tensors=[v.data_ptr() for v in found], load=False)
        return found

    def load_momenta(self, momenta: Sequence[Tensor]) -> None:
        """Replace the momenta."""
        given = [v.to("cpu", torch.float32).contiguous() for v in momenta]
        self._native.head_momenta(self._engine, tensors=[v.data_ptr() for v in given], load=True)

    def train(self, order: Tensor, batch_size: int, first_step: int, *, frozen_bn: bool) -> Tensor:
        """Return the loss of every batch."""
        return self._train([self], order, batch_size, first_step, frozen_bn)[0]

    def train_with(self, others: Sequence[CpuHead], order: Tensor, batch_size: int, first_step: int) -> Tensor:
        """Train with others that see the same input, and return the losses of every batch, a row per head."""
        return self._train([self, *others], order, batch_size, first_step, False)

    def _train(
        self, heads: Sequence[CpuHead], order: Tensor, batch_size: int, first_step: int, frozen_bn: bool
    ) -> Tensor:
        losses = torch.empty(len(heads), -(-len(order) // batch_size), dtype=torch.float32)
        engines = np.array([head._engine for head in heads], np.uint64)
        sources = self._training.rows.places(order)
        self._native.head_train(
            engines=address(engines),
            n_engines=len(engines),
            order=address(order),
            sources=address(sources),
            rows=len(order),
            batch=batch_size,
            first_step=first_step,
            frozen_bn=frozen_bn,
            losses=address(losses),
            threads=self._training.threads or torch.get_num_threads(),
        )
        return losses


def predict(native: ModuleType, spec: HeadSpec, rows: RowSource, index: Tensor) -> Tensor:
    """Return logits `[M, C]` of rows `index`."""
    out, layers = torch.empty(len(index), spec.n_out, dtype=torch.float32), _layers(spec)
    places = rows.places(index)
    native.head_predict(
        layers=address(layers),
        n_layers=len(layers),
        rows=address(rows.matrix),
        dtype=DTYPES[rows.matrix.dtype],
        index=address(places),
        count=len(index),
        out=address(out),
        threads=torch.get_num_threads(),
    )
    return out


def _layers(spec: HeadSpec) -> npt.NDArray[Any]:
    layers = np.zeros(len(spec.blocks), _LAYER)
    for n, block in enumerate(spec.blocks):
        linear, bn = block.linear, block.bn
        numbers = (linear.in_features, linear.out_features, block.p, bn.eps, bn.momentum or 0.0)
        layers[n] = (*numbers, *map(address, block.tensors()))
    return layers
