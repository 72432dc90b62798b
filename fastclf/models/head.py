"""The head: what is trained on the body's pooled activations."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fastclf import ops
from fastclf.models.modes import evaluated
from fastclf.philox import checked_seed


class AdaptiveConcatPool2d(nn.Module):
    """Maximum, then average, over all positions: ``[B, C, h, w] -> [B, 2C]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``x``."""
        return torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1)


@dataclass
class StepCounter:
    """Which masks a head's dropouts apply: a function of seed, step, layer and position, the same on every backend.

    Attributes:
        seed: of all masks.
        step: of training.
        first: the position in the batch of the first row: not 0 where other processes have the rows before it.
    """

    seed: int = 0
    step: int = 0
    first: int = 0


class CounterDropout(nn.Module):
    """Dropout whose mask is a function of (seed, step, layer, row, column), not of a hidden generator.

    In training mode each element is kept with probability ``1 - p`` and scaled by ``1/(1 - p)``.
    """

    def __init__(self, p: float, layer: int, counter: StepCounter) -> None:
        super().__init__()
        self.p, self.layer, self.counter = p, layer, counter

    def forward(self, x: Tensor) -> Tensor:
        """Apply this step's mask to ``x [B, F]``."""
        if not self.training:
            return x
        rows, cols = x.shape
        counter, end = self.counter, self.counter.first + rows
        mask = ops.dropout_mask(counter.seed, counter.step, self.layer, end, cols, self.p, x.device)
        return x * mask[counter.first :].to(x.dtype)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"p={self.p}"


def resolve_ps(ps: float | Sequence[float] | None, n_hidden: int) -> list[float]:
    """Dropout probabilities, one per linear layer: default .25 before hidden layers and .5 before the last."""
    if ps is None:
        return [0.25] * n_hidden + [0.5]
    try:
        probs = [float(p) for p in (np.full(n_hidden + 1, ps) if np.ndim(ps) == 0 else ps)]  # type: ignore[union-attr]
    except (TypeError, ValueError) as error:
        raise ValueError(f"ps must be one number, or one per linear layer ({n_hidden + 1}), got {ps!r}") from error
    if len(probs) != n_hidden + 1:
        raise ValueError(f"ps must be one number, or one per linear layer ({n_hidden + 1}), got {len(probs)}")
    if not all(0 <= p < 1 for p in probs):
        raise ValueError(f"ps must be probabilities in [0, 1), got {probs}")
    return probs


def resolve_widths(xtra_fc: Sequence[int] | None) -> list[int]:
    """Widths of the hidden layers: by default one of 512."""
    try:
        widths = [512] if xtra_fc is None else [operator.index(width) for width in xtra_fc]
    except TypeError as error:
        raise ValueError(f"Head: xtra_fc must be a list of whole numbers such as [512], got {xtra_fc!r}.") from error
    if any(width < 1 for width in widths):
        raise ValueError(f"Head: widths must be positive, got xtra_fc {widths}")
    return widths


FINALS = {"one": "log_softmax", "several": "sigmoid", "numbers": "none"}
"""What a row is labelled with (`Labels.kind`) -> what the head ends in."""


def final_layer(final: str) -> nn.Module:
    """Return what makes log-probabilities, probabilities or values of logits, by its name in `FINALS`."""
    layers: dict[str, nn.Module] = {"log_softmax": nn.LogSoftmax(1), "sigmoid": nn.Sigmoid(), "none": nn.Identity()}
    if final not in layers:
        raise ValueError(f"Head: final must be one of {(*layers,)}, got {final!r}")
    return layers[final]


class Head(nn.Module):
    """Per width in ``xtra_fc``: BatchNorm, Dropout, Linear, ReLU; then BatchNorm, Dropout, Linear(c) and ``final``.

    ``layers`` ends with the logits. Weights are Kaiming-normal (He et al., 2015), biases zero but for the last layer's
    where ``bias`` is given; p = 0 omits a dropout.

    Args:
        n_in: features per row.
        c: classes, or targets in a regression.
        ps: dropout probabilities; see `resolve_ps`.
        xtra_fc: widths of the hidden layers; see `resolve_widths`.
        final: ``log_softmax`` (one label), ``sigmoid`` (several) or ``none`` (regression).
        seed: of the initial weights, and of the dropout masks until a fit sets its own.
        bias: ``[c]`` of the last layer: the logits that are right on average.
    """

    def __init__(
        self,
        n_in: int,
        c: int,
        *,
        ps: float | Sequence[float] | None = None,
        xtra_fc: Sequence[int] | None = None,
        final: str = "log_softmax",
        seed: int = 0,
        bias: ArrayLike | None = None,
    ) -> None:
        super().__init__()
        last = final_layer(final)
        seed = checked_seed("Head", seed)
        widths = resolve_widths(xtra_fc)
        if n_in < 1 or c < 1:
            raise ValueError(f"Head: widths must be positive, got n_in {n_in}, xtra_fc {widths}, c {c}")
        self.n_in, self.c, self.ps, self.widths = n_in, c, resolve_ps(ps, len(widths)), widths
        self.counter = StepCounter(seed)
        self.layers = nn.Sequential(*self._blocks())
        self.final = last
        self._init_weights(seed)
        if bias is not None:
            with torch.no_grad():
                self.layers[-1].bias.copy_(torch.as_tensor(bias))  # type: ignore[operator]

    def _blocks(self) -> list[nn.Module]:
        sizes = [self.n_in, *self.widths, self.c]
        layers: list[nn.Module] = []
        for k, (n_in, n_out, p) in enumerate(zip(sizes, sizes[1:], self.ps, strict=False)):
            layers.append(nn.BatchNorm1d(n_in, dtype=torch.float32))
            if p > 0:
                layers.append(CounterDropout(p, k, self.counter))
            layers.append(nn.Linear(n_in, n_out, dtype=torch.float32))
            if k < len(self.widths):
                layers.append(nn.ReLU())
        return layers

    def _init_weights(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)

    def become(self, other: Head) -> None:
        """Take the layers of another head of the same classes, so that whoever holds this one goes on with them."""
        self.ps, self.widths, self.counter, self.layers = other.ps, other.widths, other.counter, other.layers

    def logits(self, x: Tensor) -> Tensor:
        """Compute logits ``[B, c]`` of rows ``x [B, n_in]``."""
        out: Tensor = self.layers(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities, probabilities or values ``[B, c]`` of rows ``x [B, n_in]``."""
        out: Tensor = self.final(self.logits(x))
        return out


def check_custom_head(head: nn.Module, n_in: int, c: int, final: str) -> None:
    """Raise ValueError where the user's own head does not fit, see `check_outputs`."""
    device = next((p.device for p in head.parameters()), None) if isinstance(head, nn.Module) else None
    rows = torch.randn(2, n_in, dtype=torch.float32, generator=torch.Generator().manual_seed(0)).to(device)
    check_outputs("custom_head", head, rows, f"rows of {n_in} features (the body's, pooled)", c, final)


def check_outputs(name: str, module: nn.Module, x: Tensor, takes: str, c: int, final: str) -> None:
    """Send two rows ``x`` through the user's module, so that one that does not fit is refused at once.

    Raises:
        ValueError: it takes something else, gives another number of classes, or values that are no
            (log-)probabilities where the labels ask for them.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"{name} must be an nn.Module, got {module!r}")
    try:
        with evaluated(module), torch.no_grad():
            out = module(x)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the user's code
        raise ValueError(f"{name} must take {takes}: {error}") from error
    shape = tuple(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
    if shape != (2, c) and not (final == "none" and c == 1 and shape == (2,)):
        raise ValueError(f"{name} must give [B, {c}], one column per class, got {shape} for B = 2")
    if final == "log_softmax" and not bool(out.logsumexp(1).abs().max() < 1e-3):
        raise ValueError(f"{name} must end in nn.LogSoftmax(1): its outputs are not log-probabilities")
    if final == "sigmoid" and not bool(((out >= 0) & (out <= 1)).all()):
        raise ValueError(f"{name} must end in nn.Sigmoid(): its outputs are not probabilities")
