#include "cuda/moments.cuh"

namespace fastclf {

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

}  // namespace fastclf
