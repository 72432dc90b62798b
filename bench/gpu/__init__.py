"""Benchmarks on a GPU, with limits measured in the same minutes: `python -m bench.gpu`."""
