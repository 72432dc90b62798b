"""Cached activations: their fingerprint, the file, and the pass over the pictures that fills it."""
