// A dropout mask by itself, for heads that train through autograd: a block per row, a thread per four columns.
#include "cuda/rows.cuh"

namespace fastclf::cuda {

__global__ void dropout_mask_kernel(DropoutMask op, DropoutSampler sampler, bool aligned) {
  const size_t b = blockIdx.x, quads = (op.cols + 3) / 4;
  for (size_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
    const size_t first = quad * 4;
    const unsigned keep = keep_quad(sampler, op.step, static_cast<uint32_t>(b), static_cast<uint32_t>(quad));
    Quad mask;
    for (int i = 0; i < 4; ++i) mask.v[i] = keep >> i & 1 ? sampler.scale : 0;
    store_quad(op.out + b * op.cols + first, mask, op.cols - first, aligned);
  }
}

Status dropout_mask(const DropoutMask& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  const unsigned warps = blocks_for(op.cols, 4 * 32);
  const Grid grid = {dim3(static_cast<unsigned>(op.rows)), 32 * (warps < 8 ? warps : 8)};
  const bool aligned = op.cols % 4 == 0 && is_aligned(op.out, 16);
  return launch(dropout_mask_kernel, grid, stream, op, sampler_of(op), aligned);
}

}  // namespace fastclf::cuda
