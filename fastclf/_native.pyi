"""The processor's native operations: addresses and sizes in, nothing checked. Call them through `fastclf.ops`."""

from collections.abc import Sequence

_Layer = tuple[float, ...]

def isa() -> str: ...
def use_isa(name: str) -> None: ...
def gather_rows(
    *, src: int, half: bool, index: int, out: int, rows: int, width: int, threads: int, stream: int
) -> None: ...
def dropout_mask(
    *, seed: int, step: int, layer: int, p: float, out: int, rows: int, cols: int, threads: int, stream: int
) -> None: ...
def draw_windows(
    *,
    src: int,
    shape: int,
    bytes: bool,
    part: int,
    size: int,
    matrix: int,
    pixel_ops: int,
    numbers: int,
    n: int,
    n_ops: int,
    width: int,
    sz: int,
    top: float,
    mean: Sequence[float],
    std: Sequence[float],
    out: int,
    threads: int,
) -> None: ...
def head_create(
    *,
    layers: Sequence[_Layer],
    max_batch: int,
    rows: int,
    half: bool,
    loss: int,
    targets: int,
    class_weight: int,
    smoothing: float,
    lr: float,
    momentum: float,
    weight_decay: float,
    decoupled: bool,
    clip: float,
    schedule: int,
    seed: int,
) -> int: ...
def head_destroy(engine: int) -> None: ...
def head_momenta(engine: int, *, tensors: Sequence[int], load: bool) -> None: ...
def head_train(
    engine: int,
    *,
    order: int,
    rows: int,
    batch: int,
    first_step: int,
    frozen_bn: bool,
    losses: int,
    threads: int,
) -> None: ...
def head_predict(
    *, layers: Sequence[_Layer], rows: int, half: bool, index: int, count: int, out: int, threads: int
) -> None: ...
def sgdr_step(*, tensors: int, n_tensors: int, groups: int, n_groups: int, threads: int) -> None: ...
def schedule_values(*, schedule: int, first: int, n: int, own: float, factor: int, momentum: int) -> None: ...
