"""Cached activations: their fingerprint, the file, and the pass over the images that fills it."""
