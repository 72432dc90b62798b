from pathlib import Path

import numpy as np
import pytest
import torch

from fastclf import ops
from fastclf.ops.arguments import IndexedRows


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


@pytest.mark.usefixtures("backend")
class TestGatherRows:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    @pytest.mark.parametrize("shape", [(1, 1), (5, 7), (100, 64), (300, 1031), (3, 40000)])
    def test_equals_indexing(self, rng: np.random.Generator, dtype: type, shape: tuple[int, int]) -> None:
        src = rng.normal(size=shape).astype(dtype)
        index = rng.integers(0, shape[0], size=211)
        assert np.array_equal(ops.gather_rows(src, index).numpy(), src[index].astype(np.float32))

    def test_every_half_is_exact(self) -> None:
        src = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(256, 256)
        got = ops.gather_rows(src, np.arange(256)).numpy()
        assert np.array_equal(got, src.astype(np.float32), equal_nan=True)
        assert np.array_equal(np.signbit(got), np.signbit(src))

    def test_read_only_map(self, rng: np.random.Generator, tmp_path: Path) -> None:
        np.save(tmp_path / "rows.npy", rng.normal(size=(40, 33)).astype(np.float16))
        src = np.load(tmp_path / "rows.npy", mmap_mode="r")
        index = torch.randint(0, 40, (25,))
        assert np.array_equal(ops.gather_rows(src, index).numpy(), src[index.numpy()].astype(np.float32))

    def test_rows_that_lie_elsewhere(self, rng: np.random.Generator) -> None:
        matrix, index = rng.standard_normal((50, 7)).astype(np.float16), rng.integers(0, 50, 80)
        rows, wanted = IndexedRows(matrix, index), rng.integers(0, 80, 30)
        np.testing.assert_array_equal(ops.gather_rows(rows, wanted), matrix[index[wanted]])
        np.testing.assert_array_equal(np.asarray(rows.take(wanted), np.float64), matrix[index[wanted]])
        np.testing.assert_array_equal(rows[3:9:2], matrix[index[3:9:2]])
        assert (len(rows), rows.shape, rows.dtype) == (80, (80, 7), np.float16)
        with pytest.raises(IndexError, match=r"got index\[1\] = 80"):
            ops.gather_rows(rows, np.array([0, 80]))
        with pytest.raises(IndexError, match=r"got index\[2\] = 50"):
            IndexedRows(matrix, np.array([0, 49, 50]))

    def test_empty_index(self) -> None:
        assert ops.gather_rows(torch.ones(3, 4), torch.zeros(0, dtype=torch.int64)).shape == (0, 4)

    def test_writes_into_out(self) -> None:
        out = torch.empty(2, 3)
        src = torch.arange(12.0).reshape(4, 3)
        assert ops.gather_rows(src, torch.tensor([3, 1]), out) is out
        assert out.tolist() == [[9, 10, 11], [3, 4, 5]]

    def test_non_contiguous_index(self) -> None:
        src = torch.arange(12.0).reshape(4, 3)
        index = torch.tensor([0, 9, 2, 9, 3, 9])[::2]
        assert torch.equal(ops.gather_rows(src, index), src[[0, 2, 3]])

    @pytest.mark.parametrize("position", [-1, 4])
    def test_names_the_index_outside(self, position: int) -> None:
        with pytest.raises(IndexError, match=rf"index must be in 0\.\.3, got index\[1\] = {position}"):
            ops.gather_rows(torch.ones(4, 2), torch.tensor([0, position]))

    def test_misuse(self) -> None:
        index = torch.tensor([0])
        with pytest.raises(TypeError, match=r"src must be float16 or float32, got torch\.float64"):
            ops.gather_rows(torch.ones(4, 2, dtype=torch.float64), index)
        with pytest.raises(TypeError, match="src must be float16 or float32, got int64"):
            ops.gather_rows(np.ones((4, 2), dtype=np.int64), index)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="src must be contiguous"):
            ops.gather_rows(torch.ones(4, 6)[:, ::2], index)
        with pytest.raises(ValueError, match="src must be C-contiguous"):
            ops.gather_rows(np.ones((4, 6), dtype=np.float32)[:, ::2], index)
        with pytest.raises(ValueError, match=r"src must be \[N, F\], got shape \[4\]"):
            ops.gather_rows(torch.ones(4), index)
        with pytest.raises(TypeError, match="index must be int64"):
            ops.gather_rows(torch.ones(4, 2), torch.tensor([0.0]))
        with pytest.raises(ValueError, match=r"out must be contiguous \[1, 2\] float32"):
            ops.gather_rows(torch.ones(4, 2), index, torch.empty(2, 2))


@pytest.mark.usefixtures("backend")
class TestDropoutMask:
    @pytest.mark.parametrize("p", [0.0, 0.1, 0.25, 0.3, 0.5, 0.999])
    @pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 64), (40, 200), (0, 7), (7, 0)])
    def test_equals_the_reference(self, p: float, shape: tuple[int, int], rng: np.random.Generator) -> None:
        seed, step, layer = int(rng.integers(2**63)), int(rng.integers(2**32)), int(rng.integers(4))
        with ops.use_backend("reference"):
            want = ops.dropout_mask(seed, step, layer, *shape, p)
        assert torch.equal(ops.dropout_mask(seed, step, layer, *shape, p), want)

    def test_known_answer(self) -> None:
        # Philox4x32-10 of a zero counter and key begins 6627e8d5 e169c58d bc57ac4c 9b00dbd8 (published vectors)
        words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
        for p in (0.3, 0.5, 0.7, 0.9):
            want = [1.0 if word >= p * 2**32 else 0.0 for word in words]
            assert (ops.dropout_mask(0, 0, 0, 1, 4, p) > 0).float().tolist() == [want]

    def test_rate_and_independence(self) -> None:
        first, second = (ops.dropout_mask(3, step, 0, 500, 400, 0.25) > 0 for step in (0, 1))
        assert abs(first.float().mean().item() - 0.75) < 0.01
        assert abs((first == second).float().mean().item() - (0.75**2 + 0.25**2)) < 0.01

    def test_scale_keeps_the_mean(self) -> None:
        assert ops.dropout_mask(1, 2, 3, 8, 8, 0.0).eq(1).all()
        assert set(ops.dropout_mask(1, 2, 3, 50, 50, 0.5).unique().tolist()) == {0.0, 2.0}

    def test_misuse(self) -> None:
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 1.0"):
            ops.dropout_mask(0, 0, 0, 1, 1, 1.0)
        with pytest.raises(ValueError, match=r"step must be in \[0, 2\*\*32\), got -1"):
            ops.dropout_mask(0, -1, 0, 1, 1, 0.5)


def test_masks_are_the_same_on_every_device(kernel_device: torch.device) -> None:
    for cols in (4, 7, 1100):
        mask = ops.dropout_mask(5, 6, 7, 33, cols, 0.4, kernel_device)
        assert mask.device.type == kernel_device.type
        with ops.use_backend("reference"):
            assert torch.equal(mask.cpu(), ops.dropout_mask(5, 6, 7, 33, cols, 0.4))


def test_unknown_backend_is_named() -> None:
    with (
        pytest.raises(ValueError, match="name must be one of reference, native, emulated, got 'gpu'"),
        ops.use_backend("gpu"),
    ):
        pass


def test_threads_do_not_change_rows() -> None:
    src, index = torch.randn(5000, 300).half(), torch.randint(0, 5000, (4000,))
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(ops.gather_rows(src, index))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
