"""From encoded images to batches: DALI graphs, the native renderer, the child process that decodes unknown files."""

PIPELINE_VERSION = 2
"""Raised whenever the same image and transforms would give other pixels: part of the key of activation files."""
