// BatchNorm and dropout into the left operand of a product: a block per row, a thread per four columns.
#include "cuda/rows.cuh"

namespace fastclf::cuda {

template <class T, class Out>
__global__ void normalise_kernel(Normalise op, DropoutSampler sampler, bool aligned) {
  const size_t b = blockIdx.x, quads = (op.cols + 3) / 4;
  const T* row = row_of<T>(op, b);
  for (size_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
    const size_t first = quad * 4, count = op.cols - first;
    Quad x = load_quad(row + first, count, aligned);
    const Quad mean = load_quad(op.mean + first, count, aligned), rstd = load_quad(op.rstd + first, count, aligned);
    const Quad gamma = load_quad(op.gamma + first, count, aligned), beta = load_quad(op.beta + first, count, aligned);
    const unsigned keep = sampler.drop_below == 0 ? 15
                                                  : keep_quad(sampler, op.step_counter->step, static_cast<uint32_t>(b),
                                                              static_cast<uint32_t>(quad));
    for (int i = 0; i < 4; ++i) {
      const float y = gamma.v[i] * ((x.v[i] - mean.v[i]) * rstd.v[i]) + beta.v[i];
      x.v[i] = keep >> i & 1 ? sampler.scale * y : 0;
    }
    store_quad(static_cast<Out*>(op.out) + b * op.cols + first, x, count, aligned);
  }
}

Status normalise(const Normalise& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  bool aligned = op.cols % 4 == 0;
  for (const void* p :
       {op.src, static_cast<const void*>(op.out), static_cast<const void*>(op.mean), static_cast<const void*>(op.rstd),
        static_cast<const void*>(op.gamma), static_cast<const void*>(op.beta)}) {
    aligned = aligned && is_aligned(p, 16);
  }
  const unsigned warps = blocks_for(op.cols, 4 * 32);
  const Grid grid = {dim3(static_cast<unsigned>(op.rows)), 32 * (warps < 8 ? warps : 8)};
  return with_dtype(op.dtype, [&](auto t) {
    using T = decltype(t);
    const auto kernel = op.out_dtype == DType::bfloat16 ? normalise_kernel<T, BFloat16> : normalise_kernel<T, float>;
    return launch(kernel, grid, stream, op, sampler_of(op), aligned);
  });
}

}  // namespace fastclf::cuda
