"""Checks of arrays that a user hands over."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Sized
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf.arrays import mapped
from fastclf.data.sources.arrays import ArraySource, pixels_hint
from fastclf.data.sources.labels import Labels, check_classes, in_order, warn_absent
from fastclf.data.sources.source import Source
from fastclf.errors import DataError, LabelError
from fastclf.interop import as_text, numpy_of
from fastclf.paths import given_path
from fastclf.report import log

_BLOCK_BYTES = 1 << 26
_LARGEST = 1e16  # of rows: sums of their squares are float32's


def checked_sets(
    root: Path,
    trn: tuple[Any, Any],
    val: tuple[Any, Any],
    test: Any,
    classes: Sequence[str] | None,
    *,
    continuous: bool,
) -> tuple[list[Source], list[Labels]]:
    """Check all that `ImageClassifierData.from_arrays` takes.

    Returns:
        x of the training, the validation and, when it is given, the test set; and their labels, zeros where test has
        none.
    """
    sets = {"trn": trn, "val": val} | ({} if test is None else {"test": test})
    for name in ("trn", "val"):
        if not isinstance(sets[name], tuple) or len(sets[name]) != 2:
            raise ValueError(f"from_arrays: {name} must be a pair (x, y), got {_kind(sets[name])}.")
    xs = {name: _as_source(root, given[0] if isinstance(given, tuple) else given, name) for name, given in sets.items()}
    _check_alike([*xs.values()])
    ys = {"trn": trn[1], "val": val[1]}
    if isinstance(test, tuple) and test[1] is not None:
        ys["test"] = test[1]
    labels = _as_labels(ys, classes, continuous=continuous)
    _check_lengths(xs, labels)
    if test is not None and "test" not in ys:
        labels["test"] = labels["trn"].zeros(len(xs["test"]))
    return [*xs.values()], [*labels.values()]


def _kind(given: object) -> str:
    length = f" of {len(given)}" if isinstance(given, Sized) else ""
    return f"a {type(given).__name__}{length}"


def _as_source(root: Path, x: Any, name: str) -> Source:
    return x if isinstance(x, Source) else ArraySource(root, _as_x(x, name))


def _as_x(x: Any, name: str) -> npt.NDArray[Any]:
    """Check images or rows.

    Args:
        x: an array, or the path of a `.npy` file, which is mapped.
        name: of the argument, for messages.

    Returns:
        `[N, H, W, 3]` or `[N, H, W, 1]` uint8 or float32, or `[N, F]` float16 or float32.

    Raises:
        ValueError: shape, type or values are not of that form; names the first row that is wrong.
    """
    values = _mapped(x, name) if isinstance(x, str | os.PathLike) else _as_array(x, f"{name} x")
    if values.dtype.kind in "OSU" and values.ndim < 2:
        raise ValueError(
            f"from_arrays: {name} x must be an array of numbers, got {_kind(x)}. Of images of one size pass "
            "np.stack([np.asarray(one) for one in x]); names of files belong into from_df."
        )
    if values.ndim not in (2, 4) or 0 in values.shape:
        raise ValueError(
            f"from_arrays: {name} x must be images [N, H, W, 3] or rows [N, F], none of them 0, got "
            f"{list(values.shape)}. Grey images need a last axis of 1: x[..., None]."
        )
    return _as_images(values, name) if values.ndim == 4 else _as_rows(values, name)


def _mapped(file: str | os.PathLike[str], name: str) -> npt.NDArray[Any]:
    try:
        return mapped(lambda mode: np.lib.format.open_memmap(given_path(file), mode))
    except (ValueError, EOFError, SyntaxError) as error:  # numpy reads the header as a Python literal
        raise DataError(
            f"from_arrays: {name} x: {file} is not a .npy file of numbers: {error}. Save it anew."
        ) from error


def _as_array(values: Any, what: str) -> npt.NDArray[Any]:
    try:
        return numpy_of(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"from_arrays: {what} must be an array with rows of one shape: {error}.") from error


def _as_images(values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    if values.shape[3] not in (1, 3):
        hint = "They look like [N, C, H, W]: pass x.transpose(0, 2, 3, 1)." if values.shape[1] in (1, 3) else ""
        raise ValueError(
            f"from_arrays: {name} x must have 3 channels (or 1) on the last axis, got {list(values.shape)}. "
            + (hint or "Drop an alpha channel: x[..., :3].")
        )
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"from_arrays: {name} x of images must be uint8, or float in 0..1, got {values.dtype}. "
            + pixels_hint(values.dtype)
        )
    values = values.astype(np.float32, copy=False)
    check_values(values, 0.0, 1.0, f"from_arrays: {name} x of float images must be in 0..1", "Divide by 255.")
    return values


def _as_rows(values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    if values.dtype not in (np.float16, np.float32):
        if isinstance(values, np.memmap):
            raise ValueError(
                f"from_arrays: {name} x of rows must be float16 or float32 in a file, got {values.dtype}. "
                "Save x.astype(np.float32)."
            )
        if values.dtype.kind not in "fiub":
            raise ValueError(f"from_arrays: {name} x of rows must be numbers, got {values.dtype}.")
        with np.errstate(over="ignore"):  # what does not fit is infinite then, and found below
            values = values.astype(np.float32)
    if not values.flags.c_contiguous:
        values = np.ascontiguousarray(values)
    largest = min(_LARGEST, float(np.finfo(values.dtype).max))
    rule = f"from_arrays: {name} x of rows must be finite and within +-{_LARGEST:g}"
    check_values(values, -largest, largest, rule, "Look at this row, or divide all rows by a constant.")
    return values


def check_values(values: npt.NDArray[Any], low: float, high: float, rule: str, fix: str) -> None:
    """Raise ValueError for the first row with a value out of low..high, reading a mapped file block by block."""
    step = max(1, _BLOCK_BYTES // max(1, values[0].nbytes))
    for start in range(0, len(values), step):
        block = values[start : start + step].reshape(-1, values[0].size)
        if block.min() >= low and block.max() <= high:  # False for NaN as well
            continue
        wrong = ~((block >= low) & (block <= high))
        row = int(wrong.any(axis=1).argmax())
        raise ValueError(f"{rule}, got {block[row][wrong[row]][0]} in row {start + row}. {fix}")


def _check_alike(xs: Sequence[Source]) -> None:
    """Raise ValueError unless all sets hold the same kind of images or rows."""
    for x in xs[1:]:
        if _kind_of(x) != _kind_of(xs[0]):
            fix = "Give them one root" if x.values is None and xs[0].values is None else "Convert one of them"
            raise ValueError(
                f"from_arrays: trn, val and test x must be of one kind, got {_shown(xs[0])} and {_shown(x)}. {fix}."
            )


def _kind_of(x: Source) -> tuple[Any, ...]:
    if x.values is None:
        return type(x), x.root  # bad images are listed by their names below it
    return x.values.ndim, x.values.dtype, x.values.shape[-1]


def _shown(x: Source) -> str:
    return f"a {type(x).__name__} of {x.root}" if x.values is None else f"{list(x.values.shape)} {x.values.dtype}"


def _check_lengths(xs: Mapping[str, Source], ys: Mapping[str, Labels]) -> None:
    """Raise ValueError where x and y differ in length."""
    for name, y in ys.items():
        x = xs[name]
        if len(x) != len(y):
            shape = [len(x)] if x.values is None else list(x.values.shape)
            raise ValueError(
                f"from_arrays: {name} x and y must be equally long, got x {shape} and y {list(y.y.shape)}. "
                "Each row of x needs its label."
            )


def _as_labels(ys: Mapping[str, Any], classes: Sequence[str] | None, *, continuous: bool) -> dict[str, Labels]:
    """Check the labels of the sets that have some, 'trn' among them, and map names to indices.

    Raises:
        ValueError: a shape or type is not one of those that `from_arrays` names.
        LabelError: a label is out of range or unknown to the training set.
    """
    arrays = {name: _of_one_type(_as_array(y, f"{name} y"), y) for name, y in ys.items()}
    if all(y.dtype == np.bool_ for y in arrays.values()):
        arrays = {name: y.astype(np.int64) for name, y in arrays.items()}
    trn = arrays["trn"]
    for name, y in arrays.items():
        if y.ndim not in (1, 2):
            raise ValueError(f"from_arrays: {name} y must be [N] or [N, C], got {_kind(ys[name])}.")
        if y.ndim != trn.ndim or y.shape[1:] != trn.shape[1:]:
            raise ValueError(
                f"from_arrays: y must be [N] or [N, C], the same for trn and {name}, got {list(trn.shape)} and "
                f"{list(y.shape)}."
            )
    if continuous:
        return {name: _numbers(y, name) for name, y in arrays.items()}
    if trn.shape[1:] == (1,):
        raise ValueError(f"from_arrays: y of one label per row must be [N], got {list(trn.shape)}. Pass y.ravel().")
    if trn.ndim == 2:
        labels = {name: _several(y, name, classes) for name, y in arrays.items()}
        _say_one_hot(trn)
        return labels
    return _single(arrays, classes)


def _of_one_type(y: npt.NDArray[Any], given: Any) -> npt.NDArray[Any]:
    """Return labels that are Python's objects as an array of text, where bytes are text too, or of numbers."""
    if y.dtype.kind == "U" and isinstance(given, list | tuple) and any(isinstance(label, Real) for label in given):
        return np.array(given, object)  # numpy makes text of numbers beside names
    if y.dtype.kind not in "SO":
        return y
    labels = [*map(as_text, y.ravel().tolist())]
    alike = any(all(isinstance(label, kind) for label in labels) for kind in (str, Real))
    return np.array(labels).reshape(y.shape) if alike and labels else y


def _say_one_hot(y: npt.NDArray[Any]) -> None:
    if (y.sum(axis=1) == 1).all():
        log(
            f"from_arrays: several labels per row, as y is [N, {y.shape[1]}]; yet every row has exactly one 1: "
            "y.argmax(1) would make it one label"
        )


def _numbers(y: npt.NDArray[Any], name: str) -> Labels:
    if y.dtype.kind not in "fiub":
        raise ValueError(f"from_arrays: {name} y must be numbers, got {y.dtype}.")
    with np.errstate(over="ignore"):
        values = y.astype(np.float32)
    check_values(values, -3e38, 3e38, f"from_arrays: {name} y must be finite numbers", "Remove or fix this row.")
    return Labels(values, [], is_reg=True)


def check_indicators(y: npt.NDArray[Any], argument: str, otherwise: str = "") -> None:
    """Raise LabelError where an array ``[N, C]`` holds anything but 0 and 1; names the row, and what else would do."""
    wrong = ~np.isin(y, (0, 1)).all(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise LabelError(f"{argument} [N, C] must be 0 or 1, got {y[row].tolist()} in row {row}.{otherwise}")


def _several(y: npt.NDArray[Any], name: str, classes: Sequence[str] | None) -> Labels:
    check_indicators(y, f"from_arrays: {name} y", " For numbers to be predicted pass continuous=True.")
    names = [str(i) for i in range(y.shape[1])] if classes is None else [str(name) for name in classes]
    if len(names) != y.shape[1]:
        raise LabelError(f"from_arrays: classes must name the {y.shape[1]} columns of y, got {len(names)} names.")
    check_classes(names, "from_arrays")
    return Labels(y.astype(np.float32), names, is_multi=True)


def _single(ys: dict[str, npt.NDArray[Any]], classes: Sequence[str] | None) -> dict[str, Labels]:
    numbers = all(np.issubdtype(y.dtype, np.integer) for y in ys.values())
    if not numbers:
        if not all(isinstance(label, str) for y in ys.values() for label in y.tolist()):
            types = " and ".join(dict.fromkeys(str(y.dtype) for y in ys.values()))
            whole = all(y.dtype.kind == "f" and (y == np.round(y)).all() for y in ys.values())
            raise LabelError(
                f"from_arrays: y must be whole numbers or names, got {types}."
                + (" For classes pass y.astype(int)." if whole else "")
                + " For numbers to be predicted pass continuous=True."
            )
        names = in_order(ys["trn"].tolist()) if classes is None else [str(name) for name in classes]
        index = {name: i for i, name in enumerate(names)}
        ys = {part: np.array([index.get(label, -1) for label in y.tolist()], np.int64) for part, y in ys.items()}
    else:
        top = int(ys["trn"].max()) if classes is None else len(classes) - 1
        names = [str(i) for i in range(top + 1)] if classes is None else [str(name) for name in classes]
        for name, y in ys.items():
            if y.min() < 0:
                raise LabelError(
                    f"from_arrays: {name} y must be classes 0, 1, ..., got {y.min()} in row {y.argmin()}. "
                    "Number them: np.unique(y, return_inverse=True)[1]."
                )
    check_classes(names, "from_arrays")
    for name, y in ys.items():
        outside = (y < 0) | (y >= len(names))
        if outside.any():
            row = int(outside.argmax())
            raise LabelError(
                f"from_arrays: {name} y must be one of the {len(names)} classes, row {row} is not"
                + (f" ({y[row]})." if numbers else ".")
                + " Pass classes= with all names, or fix the row."
            )
    counts = np.bincount(ys["trn"], minlength=len(names))
    if counts.min() == 0:
        raise LabelError(
            f"from_arrays: every class must have a training row, got none of {names[int(counts.argmin())]!r}. "
            "Number the classes 0..C-1 without a gap, or add rows."
        )
    val_counts = np.bincount(ys["val"], minlength=len(names))
    warn_absent([name for name, count in zip(names, val_counts, strict=True) if count == 0], "val")
    return {name: Labels(y.astype(np.int64), names) for name, y in ys.items()}
