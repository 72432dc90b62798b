#include "cuda/loss.cuh"

namespace fastclf {

Status loss_gradient(const LossGradient& op, void* stream) {
  if (op.rows == 0) return {};
  const Grid grid = {dim3(blocks_for(op.rows, kLossWarps)), 32 * kLossWarps};
  const auto kernel = op.loss == Loss::nll ? loss_kernel<ClassLoss> : loss_kernel<BinaryLoss>;
  return launch(kernel, grid, stream, op);
}

}  // namespace fastclf
