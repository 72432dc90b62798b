// BatchNorm and dropout into the left operand of a product: a block per row, a thread per four columns.
#pragma once

#include "cuda/rows.cuh"

namespace fastclf {

template <class T, class Out>
__global__ void normalise_kernel(Normalise op, Draw draw, bool whole) {
  const size_t b = blockIdx.x, quads = (op.cols + 3) / 4;
  const T* row = row_of<T>(op, b);
  for (size_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
    const size_t first = quad * 4, count = op.cols - first;
    Quad x = load_quad(row + first, count, whole);
    const Quad mean = load_quad(op.mean + first, count, whole), rstd = load_quad(op.rstd + first, count, whole);
    const Quad gamma = load_quad(op.gamma + first, count, whole), beta = load_quad(op.beta + first, count, whole);
    const unsigned keep = draw.drop_below == 0
                              ? 15
                              : keep_quad(draw, op.clock->step, static_cast<uint32_t>(b), static_cast<uint32_t>(quad));
    for (int i = 0; i < 4; ++i) {
      const float y = gamma.v[i] * ((x.v[i] - mean.v[i]) * rstd.v[i]) + beta.v[i];
      x.v[i] = keep >> i & 1 ? draw.scale * y : 0;
    }
    store_quad(static_cast<Out*>(op.out) + b * op.cols + first, x, count, whole);
  }
}

}  // namespace fastclf
