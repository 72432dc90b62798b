// Evaluation: BatchNorm folded into the linear layer after it.
#include "cuda/reduce.cuh"

namespace fastclf::cuda {

constexpr unsigned kFoldWarps = 4;

// A block per output: out_weight = weight * gamma * rstd, out_bias = bias + weight . (beta - gamma * rstd * mean).
__global__ void fold_kernel(Fold op) {
  const size_t begin = blockIdx.x * op.n_in;
  float sum = 0;
  for (size_t i = threadIdx.x; i < op.n_in; i += blockDim.x) {
    const float w = op.weight[begin + i], factor = op.gamma[i] / sqrtf(op.var[i] + op.eps);
    op.out_weight[begin + i] = w * factor;
    sum += w * (op.beta[i] - factor * op.mean[i]);
  }
  sum = block_sum<kFoldWarps>(sum);
  if (threadIdx.x == 0) op.out_bias[blockIdx.x] = op.bias[blockIdx.x] + sum;
}

// A block per row.
__global__ void add_bias_kernel(AddBias op) {
  float* row = op.z + blockIdx.x * op.cols;
  for (size_t j = threadIdx.x; j < op.cols; j += blockDim.x) {
    const float sum = row[j] + op.bias[j];
    row[j] = op.relu && sum < 0 ? 0 : sum;
  }
}

Status fold(const Fold& op, void* stream) {
  if (op.n_out == 0) return {};
  return launch(fold_kernel, {dim3(static_cast<unsigned>(op.n_out)), 32 * kFoldWarps}, stream, op);
}

Status add_bias(const AddBias& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  const unsigned warps = blocks_for(op.cols, 32);
  return launch(add_bias_kernel, {dim3(static_cast<unsigned>(op.rows)), 32 * (warps < 8 ? warps : 8)}, stream, op);
}

}  // namespace fastclf::cuda
