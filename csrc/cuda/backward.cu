#include "cuda/backward.cuh"

namespace fastclf {

Status column_sums(const ColumnSums& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  return launch(column_sums_kernel, column_grid(op.rows, op.cols), stream, op);
}

Status affine_gradient(const AffineGradient& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  return with_dtype(op.dtype, [&](auto t) {
    return launch(affine_gradient_kernel<decltype(t)>, column_grid(op.rows, op.cols), stream, op, draw_of(op));
  });
}

Status input_gradient(const InputGradient& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  return launch(input_gradient_kernel, column_grid(op.rows, op.cols), stream, op);
}

}  // namespace fastclf
