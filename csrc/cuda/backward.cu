// From the gradient of a product's left operand back through dropout, BatchNorm and ReLU.
#include "cuda/rows.cuh"
#include "cuda/strips.cuh"

namespace fastclf::cuda {

__global__ void __launch_bounds__(kStripThreads, 1) column_sums_kernel(ColumnSums op, bool aligned) {
  const Strip s = strip_of(op.cols, aligned);
  Quad sum = {};
  for (size_t b = s.row; b < op.rows; b += s.step) {
    const Quad x = s.load(op.x + b * op.cols);
    for (int i = 0; i < 4; ++i) sum.v[i] += x.v[i];
  }
  sum = strip_sum(sum);
  if (s.row == 0) s.store(op.out, sum);
}

// The gradient of the operand as it lies in d.
struct Given {
  FASTCLF_DEVICE Given(const HiddenGradient&, const Strip&) {}
  FASTCLF_DEVICE Quad operator()(const HiddenGradient& op, const Strip& s, size_t b) const {
    return s.load(op.d + b * op.cols);
  }
};

// The same as the product of the gradient of the logits and the last layer's weight.
template <class T>
struct FromLogits {
  float* weight;  // [classes, 8] of this strip, in shared memory

  // Makes the last layer's gradients too. All threads call it.
  FASTCLF_DEVICE FromLogits(const HiddenGradient& op, const Strip& s) {
    FASTCLF_SHARED(float, part, kMostClasses* kStripColumns);
    weight = part;
    for (size_t c = s.row; c < op.classes; c += s.step) {
      const Quad w = s.load(op.weight + c * op.cols);
      for (int i = 0; i < 4; ++i) part[c * kStripColumns + threadIdx.x % kStripQuads * 4 + i] = w.v[i];
    }
    __syncthreads();
    last_layer(op);
  }

  // A warp per class: four rows at a time, eight columns each.
  static FASTCLF_DEVICE void last_layer(const HiddenGradient& op) {
    const size_t column = size_t{blockIdx.x} * kStripColumns + lane() % kStripColumns;
    const T* operand = static_cast<const T*>(op.operand) + column;
    for (size_t c = warp(); c < op.classes; c += blockDim.x / 32) {
      float sum = 0, bias = 0;
      for (size_t b = lane() / kStripColumns; b < op.rows; b += 32 / kStripColumns) {
        const float g = op.logits[b * op.classes + c];
        bias += g;
        if (column < op.cols) sum += g * widen(operand[b * op.cols]);
      }
      for (unsigned m = 16; m >= kStripColumns; m /= 2) {
        sum += __shfl_xor_sync(kFullMask, sum, m);
        bias += __shfl_xor_sync(kFullMask, bias, m);
      }
      if (lane() < kStripColumns && column < op.cols) op.dweight[c * op.cols + column] = sum;
      if (blockIdx.x == 0 && lane() == 0) op.dweight_bias[c] = bias;
    }
  }

  FASTCLF_DEVICE Quad operator()(const HiddenGradient& op, const Strip&, size_t b) const {
    Quad g = {};
    for (size_t c = 0; c < op.classes; ++c) {
      const float of_class = op.logits[b * op.classes + c];
      const float* w = weight + c * kStripColumns + threadIdx.x % kStripQuads * 4;
      for (int i = 0; i < 4; ++i) g.v[i] += of_class * w[i];
    }
    return g;
  }
};

// d = gamma rstd (g - dbeta / rows - xhat dgamma / rows) where the ReLU let something through.
template <class Source>
__global__ void __launch_bounds__(kStripThreads, 1)
    hidden_gradient_kernel(HiddenGradient op, DropoutSampler sampler, bool aligned) {
  const Strip s = strip_of(op.cols, aligned);
  const Source source(op, s);
  const Quad mean = s.load(op.mean), rstd = s.load(op.rstd), gamma = s.load(op.gamma);
  Quad dgamma = {}, dbeta = {}, dbias = {};
  for (size_t b = s.row; b < op.rows; b += s.step) {
    Quad g = source(op, s, b);
    const Quad h = s.load(op.h + b * op.cols);
    const unsigned keep =
        keep_quad(sampler, op.step_counter->step, static_cast<uint32_t>(b), static_cast<uint32_t>(s.column / 4));
    for (int i = 0; i < 4; ++i) {
      g.v[i] = keep >> i & 1 ? sampler.scale * g.v[i] : 0;
      dgamma.v[i] += g.v[i] * ((h.v[i] - mean.v[i]) * rstd.v[i]);
      dbeta.v[i] += g.v[i];
    }
    s.store(op.d + b * op.cols, g);
  }
  dgamma = strip_sum(dgamma);
  dbeta = strip_sum(dbeta);
  if (s.row == 0) {
    s.store(op.dgamma, dgamma);
    s.store(op.dbeta, dbeta);
  }
  const float share = op.frozen ? 0 : 1 / static_cast<float>(op.rows);
  for (size_t b = s.row; b < op.rows; b += s.step) {
    Quad d = s.load(op.d + b * op.cols);
    const Quad h = s.load(op.h + b * op.cols);
    for (int i = 0; i < 4; ++i) {
      const float xhat = (h.v[i] - mean.v[i]) * rstd.v[i];
      const float through = d.v[i] - share * dbeta.v[i] - xhat * (share * dgamma.v[i]);
      d.v[i] = h.v[i] > 0 ? gamma.v[i] * rstd.v[i] * through : 0;
      dbias.v[i] += d.v[i];
    }
    s.store(op.d + b * op.cols, d);
    if (op.copy) s.store(reinterpret_cast<BFloat16*>(op.copy) + b * op.cols, d);
  }
  dbias = strip_sum(dbias);
  if (s.row == 0) s.store(op.dbias, dbias);
}

Status column_sums(const ColumnSums& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  const bool aligned = op.cols % 4 == 0 && is_aligned(op.x, 16) && is_aligned(op.out, 16);
  return launch(column_sums_kernel, strip_grid(op.rows, op.cols), stream, op, aligned);
}

Status hidden_gradient(const HiddenGradient& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  bool aligned = op.cols % 4 == 0 && is_aligned(op.copy, 8);
  for (const float* p : {op.weight, static_cast<const float*>(op.d), op.h, op.mean, op.rstd, op.gamma,
                         static_cast<const float*>(op.dgamma), static_cast<const float*>(op.dbeta),
                         static_cast<const float*>(op.dbias)}) {
    aligned = aligned && is_aligned(p, 16);
  }
  const auto kernel = !op.logits                            ? hidden_gradient_kernel<Given>
                      : op.operand_dtype == DType::bfloat16 ? hidden_gradient_kernel<FromLogits<BFloat16>>
                                                            : hidden_gradient_kernel<FromLogits<float>>;
  return launch(kernel, strip_grid(op.rows, op.cols), stream, op, sampler_of(op), aligned);
}

}  // namespace fastclf::cuda
