// BatchNorm with the batch's statistics, and dropout, into the left operand of a product.
#include "cuda/rows.cuh"
#include "cuda/strips.cuh"

namespace fastclf::cuda {

// Gathered rows.
template <class T>
struct Gathered {
  BatchRows rows;
  FASTCLF_DEVICE Quad first(size_t b, const Strip& s) const { return s.load(row_of<T>(rows, b)); }
  FASTCLF_DEVICE Quad again(size_t b, const Strip& s) const { return first(b, s); }
};

// A product that becomes a hidden layer, max(z + bias, 0), when it is first read.
struct BiasRelu {
  float* z;
  const float* bias;
  size_t cols;
  FASTCLF_DEVICE Quad first(size_t b, const Strip& s) const {
    Quad x = again(b, s);
    const Quad add = s.load(bias);
    for (int i = 0; i < 4; ++i) {
      const float sum = x.v[i] + add.v[i];
      x.v[i] = sum < 0 ? 0 : sum;  // a NaN stays one
    }
    s.store(z + b * cols, x);
    return x;
  }
  FASTCLF_DEVICE Quad again(size_t b, const Strip& s) const { return s.load(z + b * cols); }
};

// BatchNorm's numbers for the columns of a strip.
struct Columns {
  Quad mean, var;
};

// The mean and the variance of the batch. All threads call it.
template <class Read>
FASTCLF_DEVICE Columns batch_statistics(const Read& read, size_t rows, const Strip& s) {
  const auto n = static_cast<float>(rows);
  Quad sum = {}, squares = {};
  for (size_t b = s.row; b < rows; b += s.step) {
    const Quad x = read.first(b, s);
    for (int i = 0; i < 4; ++i) sum.v[i] += x.v[i];
  }
  Quad mean = strip_sum(sum);
  for (int i = 0; i < 4; ++i) mean.v[i] /= n;
  for (size_t b = s.row; b < rows; b += s.step) {
    const Quad x = read.again(b, s);
    for (int i = 0; i < 4; ++i) squares.v[i] += (x.v[i] - mean.v[i]) * (x.v[i] - mean.v[i]);
  }
  Quad var = strip_sum(squares);
  for (int i = 0; i < 4; ++i) var.v[i] /= n;
  return {mean, var};
}

template <class Read, class Out>
__global__ void __launch_bounds__(kStripThreads, 1)
    normalise_kernel(Read read, Normalise op, DropoutSampler sampler, bool aligned) {
  const Strip s = strip_of(op.cols, aligned);
  // All that is needed later, before the first wait.
  Columns running = {s.load(op.running_mean), s.load(op.running_var)};
  const Quad gamma = s.load(op.gamma), beta = s.load(op.beta);
  const Columns by = op.frozen ? running : batch_statistics(read, op.rows, s);
  const auto n = static_cast<float>(op.rows);
  Quad rstd;
  for (int i = 0; i < 4; ++i) {
    rstd.v[i] = 1 / sqrtf(by.var.v[i] + op.eps);
    running.mean.v[i] += op.momentum * (by.mean.v[i] - running.mean.v[i]);
    running.var.v[i] += op.momentum * (by.var.v[i] * n / (n - 1) - running.var.v[i]);
  }
  if (s.row == 0) {
    s.store(op.mean, by.mean);
    s.store(op.rstd, rstd);
  }
  if (s.row == 0 && !op.frozen) {
    s.store(op.running_mean, running.mean);
    s.store(op.running_var, running.var);
  }
  for (size_t b = s.row; b < op.rows; b += s.step) {
    Quad x = op.frozen ? read.first(b, s) : read.again(b, s), mask;
    const unsigned keep =
        keep_quad(sampler, op.step_counter->step, static_cast<uint32_t>(b), static_cast<uint32_t>(s.column / 4));
    for (int i = 0; i < 4; ++i) {
      mask.v[i] = static_cast<float>(keep >> i & 1);
      x.v[i] = keep >> i & 1 ? (x.v[i] - by.mean.v[i]) * rstd.v[i] : 0;
    }
    if (op.factors) {
      Out* row = static_cast<Out*>(op.factors) + b * op.factor_cols;
      s.store(row, x);
      if (op.factor_cols > op.cols) s.store(row + op.cols, mask);
    }
    for (int i = 0; i < 4; ++i) x.v[i] = sampler.scale * (gamma.v[i] * x.v[i] + beta.v[i] * mask.v[i]);
    s.store(static_cast<Out*>(op.out) + b * op.cols, x);
  }
}

Status normalise(const Normalise& op, void* stream) {
  if (op.rows == 0 || op.cols == 0) return {};
  bool aligned = op.cols % 4 == 0;
  for (const void* p :
       {op.src, static_cast<const void*>(op.bias), static_cast<const void*>(op.mean), static_cast<const void*>(op.rstd),
        static_cast<const void*>(op.running_mean), static_cast<const void*>(op.running_var),
        static_cast<const void*>(op.gamma), static_cast<const void*>(op.beta), static_cast<const void*>(op.out),
        static_cast<const void*>(op.factors)}) {
    aligned = aligned && is_aligned(p, 16);
  }
  const auto with = [&](auto read) {
    using Read = decltype(read);
    const auto kernel =
        op.out_dtype == DType::bfloat16 ? normalise_kernel<Read, BFloat16> : normalise_kernel<Read, float>;
    return launch(kernel, strip_grid(op.rows, op.cols), stream, read, op, sampler_of(op), aligned);
  };
  if (op.bias) return with(BiasRelu{static_cast<float*>(const_cast<void*>(op.src)), op.bias, op.cols});
  return with_dtype(op.dtype, [&](auto t) { return with(Gathered<decltype(t)>{op}); });
}

}  // namespace fastclf::cuda
