"""Cached activations, a row for each image content: the store, and the pass over the images that fills it."""

from fastclf.activations.cache import CachedStore, cached, cached_copies, prune

__all__ = ["CachedStore", "cached", "cached_copies", "prune"]
