#include "cuda/normalise.cuh"

namespace fastclf {

Status normalise(const Normalise& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  bool whole = op.cols % 4 == 0;
  for (const void* p :
       {op.src, static_cast<const void*>(op.out), static_cast<const void*>(op.mean), static_cast<const void*>(op.rstd),
        static_cast<const void*>(op.gamma), static_cast<const void*>(op.beta)}) {
    whole = whole && aligned(p, 16);
  }
  const unsigned warps = blocks_for(op.cols, 4 * 32);
  const Grid grid = {dim3(static_cast<unsigned>(op.rows)), 32 * (warps < 8 ? warps : 8)};
  return with_dtype(op.dtype, [&](auto t) {
    using T = decltype(t);
    const auto kernel = op.out_dtype == DType::bfloat16 ? normalise_kernel<T, BFloat16> : normalise_kernel<T, float>;
    return launch(kernel, grid, stream, op, draw_of(op), whole);
  });
}

}  // namespace fastclf
