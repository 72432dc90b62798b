// From the gradient of a product's left operand back through dropout, BatchNorm and ReLU.
#include "cuda/rows.cuh"

namespace fastclf::cuda {

__global__ void column_sums_kernel(ColumnSums op) {
  const size_t column = tile_column();
  float sum[1] = {};
  for (unsigned i = 0; i < kRowsEach; ++i) {
    if (tile_row(i) < op.rows && column < op.cols) sum[0] += op.x[tile_row(i) * op.cols + column];
  }
  if (!column_totals(sum, op.cols, op.partial, op.block_counter)) return;
  if (warp() == 0 && column < op.cols) op.out[column] = sum[0];
}

template <class T>
__global__ void affine_gradient_kernel(AffineGradient op, DropoutSampler sampler) {
  const size_t column = tile_column();
  const unsigned keep = keep_column(sampler, op.step_counter);
  float sum[2] = {};  // for gamma, for beta
  for (unsigned i = 0; i < kRowsEach; ++i) {
    const size_t b = tile_row(i);
    if (b >= op.rows || column >= op.cols) continue;
    float* at = op.g + b * op.cols + column;
    const float g = keep >> i & 1 ? sampler.scale * *at : 0;
    sum[0] += g * ((widen(row_of<T>(op, b)[column]) - op.mean[column]) * op.rstd[column]);
    sum[1] += g;
    if (op.write) *at = g;
  }
  if (!column_totals(sum, op.cols, op.partial, op.block_counter)) return;
  if (warp() == 0 && column < op.cols) {
    op.dgamma[column] = sum[0];
    op.dbeta[column] = sum[1];
  }
}

// gamma rstd (g - dbeta / rows - xhat dgamma / rows) where the ReLU let something through.
__global__ void input_gradient_kernel(InputGradient op) {
  const size_t column = tile_column();
  float sum[1] = {};
  if (column < op.cols) {
    const float share = op.frozen ? 0 : 1 / static_cast<float>(op.rows), mean = op.mean[column], rstd = op.rstd[column];
    const float a = op.gamma[column] * rstd, b = share * op.dbeta[column], c = share * op.dgamma[column];
    for (unsigned i = 0; i < kRowsEach; ++i) {
      if (tile_row(i) >= op.rows) continue;
      const size_t at = tile_row(i) * op.cols + column;
      const float h = op.h[at], d = h > 0 ? a * (op.g[at] - b - (h - mean) * rstd * c) : 0;
      op.g[at] = d;
      if (op.copy) narrow(d, reinterpret_cast<BFloat16*>(op.copy) + at);
      sum[0] += d;
    }
  }
  if (!column_totals(sum, op.cols, op.partial, op.block_counter)) return;
  if (warp() == 0 && column < op.cols) op.dbias[column] = sum[0];
}

Status column_sums(const ColumnSums& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  return launch(column_sums_kernel, column_grid(op.rows, op.cols), stream, op);
}

Status affine_gradient(const AffineGradient& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  return with_dtype(op.dtype, [&](auto t) {
    return launch(affine_gradient_kernel<decltype(t)>, column_grid(op.rows, op.cols), stream, op, sampler_of(op));
  });
}

Status input_gradient(const InputGradient& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  return launch(input_gradient_kernel, column_grid(op.rows, op.cols), stream, op);
}

}  // namespace fastclf::cuda
