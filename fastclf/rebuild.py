"""Rebuild the network and transforms of a saved model from its description: no data, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastclf.checkpoint import load_tensors
from fastclf.data.image_transforms import Transforms, tfms_from_stats
from fastclf.data.transforms.spec import CropType
from fastclf.decision import Decision
from fastclf.errors import CheckpointError
from fastclf.models.archs import as_arch, build_bodies
from fastclf.models.body import Body
from fastclf.models.head import FINALS, Head
from fastclf.models.net import Net
from fastclf.models.weights import SkipInit


def not_rebuilt(info: Mapping[str, Any]) -> dict[str, str]:
    """Name the parts of a model that cannot be rebuilt from ``info``, by the argument of `load` that gives them."""
    if not isinstance(info.get("arch"), str) or "head" not in info:
        return {"model": f"the network {info.get('arch')}"}
    if info.get("transforms") is None:
        return {} if isinstance(info["head"], dict) else {"custom_head": f"the head {info['head']}"}
    missing = {}
    if not _is_known(info["arch"]):
        missing["model"] = f"the network on the body {info['arch']}"
    elif not isinstance(info["head"], dict):
        missing["custom_head"] = f"the head {info['head']}"
    if _transforms(info["transforms"]) is None:
        missing["transforms"] = "the transforms"
    return missing


def transforms(info: Mapping[str, Any]) -> Transforms | None:
    """Return the validation transforms; None where the model takes rows of activations."""
    return None if info.get("transforms") is None else _transforms(info["transforms"])


def saved_decision(info: Mapping[str, Any], where: str) -> Decision:
    """Return the temperature and thresholds that were saved; the defaults where none were.

    Raises:
        CheckpointError: they cannot be read; names the file, ``where``.
    """
    try:
        return Decision.from_dict(info.get("decision", {}), len(info.get("classes", [])))
    except ValueError as error:
        raise CheckpointError(f"load: {where} has a decision that cannot be read: {error}") from error


def network(
    info: Mapping[str, Any],
    tensors: dict[str, Tensor],
    where: str,
    custom_head: nn.Module | None = None,
    model: nn.Module | None = None,
) -> nn.Module:
    """Return the network with its saved tensors, in evaluation mode, on the CPU.

    Args:
        info: what the model says of itself.
        tensors: by name.
        where: the file, for messages.
        custom_head: the head where it is not ours.
        model: the whole network where it is not known by name.

    Raises:
        CheckpointError: a part cannot be rebuilt, or the tensors do not fit; says which.
        BackendError: a package that the architecture comes from is not installed.
    """
    takes_rows = info.get("transforms") is None and "head" in info
    if model is None:
        head = custom_head if custom_head is not None else _head(info, tensors, where)
        model = head if takes_rows else Net(_body(info, where), head)
    if takes_rows and not isinstance(model, Net):
        tensors = {name.removeprefix("head."): tensor for name, tensor in tensors.items()}
    load_tensors(model, tensors, f"{where} holds {info['arch']}, saved with {_versions(info)}")
    return model.eval().requires_grad_(False)


def _body(info: Mapping[str, Any], where: str) -> Body:
    try:
        with SkipInit():
            return build_bodies(info["arch"].split("+"), pretrained=False)
    except ValueError as error:
        saved_with = _versions(info)
        raise CheckpointError(f"load: {where} was saved with {saved_with}, and cannot be rebuilt: {error}") from error


def _head(info: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> Head:
    description = info["head"]
    try:
        sizes = [description["n_in"], *description["xtra_fc"], description["c"]]
        wanted = sorted(zip(sizes[1:], sizes, strict=False))
        found = sorted(tuple(t.shape) for name, t in tensors.items() if name.startswith("head.") and t.ndim == 2)
        if wanted != found or description["c"] != info["c"]:  # before anything of this size is allocated
            raise ValueError(f"its head is described with layers {wanted}, and its tensors have {found}")
        return Head(
            description["n_in"],
            description["c"],
            ps=description["ps"],
            xtra_fc=description["xtra_fc"],
            final=FINALS[info["labels"]],
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"load: {where} does not describe its head: {error!r}") from error


def _transforms(description: Any) -> Transforms | None:
    """Return transforms from their description; None where it does not describe them completely."""
    try:
        squash = CropType[description["crop_type"]] is CropType.NO
        tfms = tfms_from_stats(
            (description["mean"], description["std"]), description["sz"], crop_type=CropType.NO if squash else None
        )[1]
    except (KeyError, TypeError, ValueError):
        return None
    return tfms if tfms.describe() == description else None


def _is_known(arch: str) -> bool:
    try:
        return all(str(as_arch(one)) == one for one in arch.split("+"))
    except (TypeError, ValueError):
        return False


def _versions(info: Mapping[str, Any]) -> str:
    versions = info.get("versions")
    if not isinstance(versions, dict):
        return "unknown versions"
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to where it predicts, laid out in memory as a learner's is."""
    model.to(device)
    if isinstance(model, Net):
        model.body.to(memory_format=torch.channels_last)
    return model
