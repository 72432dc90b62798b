"""The version of the picture pipeline."""

PIPELINE_VERSION = 2
"""Raised whenever the same picture and transforms would give other pixels: part of the key of activation files."""
