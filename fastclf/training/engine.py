"""Training steps of a head of ours on cached rows, many per native call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import nn

from fastclf import rank_tensors, ranks
from fastclf.arrays import RowNumbers
from fastclf.data.loader import RowLoader
from fastclf.losses import BCE, NLL
from fastclf.models.head import Head
from fastclf.ops import HeadEngine, HeadRates, HeadSpec, train_together
from fastclf.ops.head.spec import Precision, steps_in
from fastclf.training.forward import Crit
from fastclf.training.losses import gradient_scale
from fastclf.training.optimizer import SGDR
from fastclf.training.steps import OptFn, Rates

_SECONDS_PER_CHUNK = 0.3  # how often progress is shown


class EngineSteps:
    """Forward, backward and update in the native head engine; equal to `AutogradSteps` up to rounding.

    Takes what `unknown_to_engine` has no objection to. Of processes that train together the first does it: it takes
    less time than to share it out.

    Attributes:
        chunk: how many batches the loop asks for at once when nothing needs to happen between them.
        step: steps done, as the schedule counts them.
        precision: what its products multiply.
    """

    def __init__(
        self,
        head: Head,
        loader: RowLoader,
        crit: NLL | BCE,
        opt_fn: OptFn,
        rates: Rates,
        precision: Precision,
        threads: int | None = None,
    ) -> None:
        self.precision: str = precision
        spec, rows, momentum = HeadSpec.from_layers(head.layers), loader.ds.rows, _momentum(opt_fn)
        assert spec is not None
        assert rows is not None
        assert momentum is not None
        wd = 0.0 if rates.wds is None else float(rates.wds[-1])
        self._scale = gradient_scale(crit, spec.n_out)
        self.chunk = steps_in(_SECONDS_PER_CHUNK, spec.device, spec.flop_per_row * loader.bs)
        self._engine = HeadEngine(
            spec,
            rows,
            loader.targets,
            loss=_minimised(crit, spec.n_out, self._scale),
            rates=HeadRates(float(rates.lrs[-1]), rates.schedule, momentum, wd, rates.decoupled, rates.clip),
            max_batch=loader.bs,
            seed=head.counter.seed,
            precision=precision,
            threads=threads,
        )
        self._head, self._loader, self._bn = head, loader, spec.blocks[0].bn
        self._order = loader.order(0)
        self.step = self._done = 0

    def start_epoch(self, epoch: int, done: int = 0) -> None:
        """Begin epoch ``epoch`` of the loader's order, after its first ``done`` batches."""
        self._order, self._done = self._loader.order(epoch), done

    def end_epoch(self) -> None:
        """Do nothing: nothing is held for an epoch."""

    def run(self, n: int) -> list[float]:
        """Train on the epoch's next ``n`` batches, or those that there still are, and return their losses."""
        rows = self._rows(n)
        minimised = ranks.from_first(lambda: self._train(rows))
        rank_tensors.take_from_first(self._head)
        return self._advance(n, minimised)

    def _rows(self, n: int) -> RowNumbers:
        bs = self._loader.bs
        return self._order[self._done * bs : (self._done + n) * bs]

    def _train(self, rows: RowNumbers) -> list[float]:
        losses: list[float] = self._engine.train(
            rows, self._loader.bs, self.step, frozen_bn=not self._bn.training
        ).tolist()
        return losses

    def _advance(self, n: int, minimised: Sequence[float]) -> list[float]:
        self._done += n
        self.step += len(minimised)
        return [loss / self._scale for loss in minimised]

    def state_dict(self) -> dict[str, Any]:
        """Return momenta and counters, for a fit that goes on later."""
        return {"step": self.step, "momenta": self._engine.momenta()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.step = state["step"]
        self._engine.load_momenta(state["momenta"])


def run_together(steps: Sequence[EngineSteps], n: int) -> list[list[float]]:
    """Train heads of one loader, all at the same step, on its next ``n`` batches, and return the losses of each.

    Each is, bit for bit, what `EngineSteps.run` makes of it; BatchNorm takes the statistics of the batches. Each of
    several processes does it all and waits for none: threads call this in no order that they could share.
    """
    first = steps[0]
    found = train_together([each._engine for each in steps], first._rows(n), first._loader.bs, first.step)
    return [each._advance(n, losses) for each, losses in zip(steps, found.tolist(), strict=True)]


def _minimised(crit: NLL | BCE, n_out: int, scale: float) -> NLL | BCE:
    """Return the loss that the engine minimises: `gradient_scale` times the one that is shown, by its class weights."""
    if isinstance(crit, NLL):
        return crit
    weight = torch.ones(n_out, dtype=torch.float32) if crit.weight is None else crit.weight
    return replace(crit, weight=weight * scale)


def check_precision(precision: Precision, device: torch.device) -> Precision:
    """Return the precision of a head's products; raise ValueError where there is no such, or not on the device."""
    known = get_args(Precision)
    if precision not in known:
        raise ValueError(f"Learner: precision must be one of {', '.join(known)}, got {precision!r}")
    if precision != "float32" and device.type != "cuda":
        raise ValueError(f"Learner: precision {precision!r} needs a GPU, and the data is on {device}. Leave it out.")
    return precision


def unknown_to_engine(module: nn.Module, loader: object, crit: Crit, opt_fn: OptFn) -> str | None:
    """Return what keeps the engine from training ``module``, in a few words; None when nothing does."""
    if not isinstance(module, Head) or HeadSpec.from_layers(module.layers) is None:
        return "this head"
    if not all(parameter.requires_grad for parameter in module.parameters()):
        return "a head that is frozen in part"
    if not isinstance(loader, RowLoader):
        return "this data"
    if type(crit) not in (NLL, BCE):
        return "this loss"
    return "this optimizer" if _momentum(opt_fn) is None else None


def _momentum(opt_fn: OptFn) -> float | None:
    """Return the momentum of an optimizer's maker that makes `SGDR`, or None where it makes anything else."""
    if opt_fn is SGDR:
        return 0.9
    if isinstance(opt_fn, partial) and opt_fn.func is SGDR and not opt_fn.args and set(opt_fn.keywords) <= {"momentum"}:
        return float(opt_fn.keywords.get("momentum", 0.9))
    return None
