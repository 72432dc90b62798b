"""What a pretrained body that trains needs beside its rates: BatchNorm's statistics kept, the gradient bounded."""

from __future__ import annotations

from fastclf.models.freezing import LayerGroups

# Of the gradient's norm, where a pretrained body trains with BatchNorm's own statistics: nothing else then keeps its
# activations in bounds, and the lesson's rates are at the edge of what converges. Lower bounds learn less, higher ones
# (10, 20) learn more on the whole, but end below the frozen body on some small sets (bench/README.md).
FINE_TUNING_CLIP = 5.0


def clip_for(groups: LayerGroups, clip: float | None) -> float | None:
    """Return the bound on the gradient's norm in a fit of ``groups``: ``clip``, where it is given."""
    return FINE_TUNING_CLIP if clip is None and groups.fine_tunes and groups.kept else clip


def describe_fine_tuning(bn_frozen: bool | None, clip: float | None) -> str | None:
    """Return the line that says what BatchNorm and the gradient of a pretrained body do; None where it is known.

    Args:
        bn_frozen: see `Learner.bn_freeze`; None where the user did not choose.
        clip: the user's bound on the gradient's norm.
    """
    bound = f"the gradient's norm is bounded at {FINE_TUNING_CLIP:g} (clip)"
    if bn_frozen is None:
        kept = "the body is pretrained: BatchNorm keeps its statistics (bn_freeze(False) updates them)"
        return f"{kept if clip is not None else f'{kept} and {bound}'}, as small data sets get worse otherwise"
    if not bn_frozen:
        return "bn_freeze(False): BatchNorm of a pretrained body learns new statistics; small data sets get worse by it"
    return None if clip is not None else f"bn_freeze(True): {bound}, as nothing else keeps activations in bounds"
