"""The GPU's native operations: addresses and sizes in, nothing checked. Call them through `fastclf.ops`."""

def gather_rows(
    *, src: int, half: bool, index: int, out: int, rows: int, width: int, threads: int, stream: int
) -> None: ...
