#include "cuda/predict.cuh"

namespace fastclf {

Status fold(const Fold& op, void* stream) {
  if (op.n_out == 0) return {};
  return launch(fold_kernel, {dim3(static_cast<unsigned>(op.n_out)), 32 * kFoldWarps}, stream, op);
}

Status add_bias(const AddBias& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  const unsigned warps = blocks_for(op.cols, 32);
  return launch(add_bias_kernel, {dim3(static_cast<unsigned>(op.rows)), 32 * (warps < 8 ? warps : 8)}, stream, op);
}

}  // namespace fastclf
