// BatchNorm's statistics of a matrix that is made while it is read.
#include "cuda/rows.cuh"

namespace fastclf::cuda {

// Element (b, j) of gathered rows.
template <class T>
struct Gathered {
  BatchRows rows;
  FASTCLF_DEVICE float operator()(size_t b, size_t j) const { return widen(row_of<T>(rows, b)[j]); }
};

// Element (b, j) of max(z + bias, 0), which is stored as well.
struct BiasRelu {
  float* z;
  const float* bias;
  size_t cols;
  FASTCLF_DEVICE float operator()(size_t b, size_t j) const {
    float* at = z + b * cols + j;
    const float sum = *at + bias[j];
    return *at = sum < 0 ? 0 : sum;  // a NaN stays one
  }
};

// A block computes mean and squared deviations of its rows; the last one puts them together (Chan, Golub and LeVeque,
// "Updating formulae and a pairwise algorithm for computing sample variances", 1979).
template <class Read>
__global__ void moments_kernel(Read read, size_t rows, size_t cols, Statistics s) {
  const size_t column = tile_column();
  const auto in_tile = [&](size_t tile) {
    return static_cast<float>(rows - tile * kTileRows < kTileRows ? rows - tile * kTileRows : kTileRows);
  };
  float x[kRowsEach], sum = 0, squares = 0;
  for (unsigned i = 0; i < kRowsEach; ++i) {
    const bool inside = tile_row(i) < rows && column < cols;
    x[i] = inside ? read(tile_row(i), column) : 0;
    sum += x[i];
  }
  const float tile_mean = block_reduce(sum) / in_tile(blockIdx.y);
  for (unsigned i = 0; i < kRowsEach; ++i) {
    const float centred = tile_row(i) < rows ? x[i] - tile_mean : 0;
    squares += centred * centred;
  }
  squares = block_reduce(squares);
  if (warp() == 0 && column < cols) {
    float* at = s.partial + size_t{blockIdx.y} * 2 * cols + column;
    at[0] = tile_mean;
    at[cols] = squares;
  }
  if (!last_block(s.block_counter + blockIdx.x, gridDim.y)) return;

  const auto n = static_cast<float>(rows);
  sum = squares = 0;
  for (size_t t = warp(); column < cols && t < gridDim.y; t += kRowWarps) {
    sum += in_tile(t) * s.partial[t * 2 * cols + column];
  }
  const float mean = block_reduce(sum) / n;
  for (size_t t = warp(); column < cols && t < gridDim.y; t += kRowWarps) {
    const float* at = s.partial + t * 2 * cols + column;
    squares += at[cols] + in_tile(t) * (at[0] - mean) * (at[0] - mean);
  }
  const float var = block_reduce(squares) / n;
  if (warp() == 0 && column < cols) {
    s.mean[column] = mean;
    s.rstd[column] = 1 / sqrtf(var + s.eps);
    s.running_mean[column] += s.momentum * (mean - s.running_mean[column]);
    s.running_var[column] += s.momentum * (var * n / (n - 1) - s.running_var[column]);
  }
}

Status batch_moments(const BatchMoments& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  return with_dtype(op.dtype, [&](auto t) {
    const Gathered<decltype(t)> read = {op};
    return launch(moments_kernel<Gathered<decltype(t)>>, column_grid(op.rows, op.cols), stream, read, op.rows, op.cols,
                  static_cast<Statistics>(op));
  });
}

Status relu_moments(const ReluMoments& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  const BiasRelu read = {op.z, op.bias, op.cols};
  return launch(moments_kernel<BiasRelu>, column_grid(op.rows, op.cols), stream, read, op.rows, op.cols,
                static_cast<Statistics>(op));
}

}  // namespace fastclf::cuda
