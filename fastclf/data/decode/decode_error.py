"""The error of a decoder; in a module of its own, because DALI is imported late."""


class DecodeError(RuntimeError):
    """An image of a batch cannot be read or decoded; whoever raised it is of no more use."""
