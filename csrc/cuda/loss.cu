// The loss of a batch of logits and its gradient, in place: a warp per row, which can make the logits too.
#include "cuda/reduce.cuh"
#include "device/number.h"

namespace fastclf::cuda {

constexpr unsigned kLossWarps = 4, kTogether = 4;  // classes of a product

FASTCLF_DEVICE size_t target_row(const LossGradient& op, size_t b) {
  return static_cast<size_t>(op.order[op.step_counter->batch * op.stride + b]);
}

FASTCLF_DEVICE void put(const LossGradient& op, size_t at, float gradient) {
  op.z[at] = gradient;
  if (op.copy) narrow(gradient, reinterpret_cast<BFloat16*>(op.copy) + at);
}

// With weights w, smoothing e and W = sum of w: loss = (1-e) w_y (lse - z_y) + e/C sum w_c (lse - z_c); its gradient is
// ((1-e) w_y + e/C W) softmax_c - e/C w_c - (1-e) w_y [c = y]. As torch.nn.functional.cross_entropy.
struct ClassLoss {
  // What the mean over the batch multiplies each row's loss with.
  static FASTCLF_DEVICE float mean_factor(const LossGradient& op) {
    if (!op.weight) return 1 / static_cast<float>(op.rows);
    float total = 0;
    for (size_t b = threadIdx.x; b < op.rows; b += blockDim.x) total += op.weight[label(op, b)];
    total = block_sum<kLossWarps>(total);
    return total > 0 ? 1 / total : 0;  // no row has weight: nothing is learnt
  }

  static FASTCLF_DEVICE size_t label(const LossGradient& op, size_t b) {
    return static_cast<size_t>(static_cast<const int64_t*>(op.targets)[target_row(op, b)]);
  }

  static FASTCLF_DEVICE float row(const LossGradient& op, size_t b, float mean) {
    const size_t y = label(op, b), begin = b * op.classes;
    float peak = -INFINITY, sum = 0, weighted = 0, target = 0;
    for (size_t c = lane(); c < op.classes; c += 32) peak = fmaxf(peak, op.z[begin + c] + op.bias[c]);
    peak = warp_max(peak);
    for (size_t c = lane(); c < op.classes; c += 32) {
      const float shifted = op.z[begin + c] + op.bias[c] - peak;
      sum += expf(shifted);
      weighted += (op.weight ? op.weight[c] : 1) * shifted;
      if (c == y) target = shifted;  // one lane's; each lane reads only what it overwrites below
    }
    sum = warp_sum(sum);
    weighted = warp_sum(weighted);
    target = warp_sum(target);
    const float log_sum = logf(sum);
    const float own = (1 - op.smoothing) * (op.weight ? op.weight[y] : 1) * mean;
    const float even = op.smoothing / static_cast<float>(op.classes) * mean, share = (own + even * op.weight_sum) / sum;
    for (size_t c = lane(); c < op.classes; c += 32) {
      const float soft = share * expf(op.z[begin + c] + op.bias[c] - peak);
      put(op, begin + c, soft - even * (op.weight ? op.weight[c] : 1) - (c == y ? own : 0));
    }
    return own * (log_sum - target) + even * (op.weight_sum * log_sum - weighted);
  }
};

// w_c (max(z, 0) - z t + log(1 + exp(-|z|))) with t = y (1-s) + s/2; its gradient is w_c (sigmoid(z) - t).
struct BinaryLoss {
  static FASTCLF_DEVICE float mean_factor(const LossGradient& op) {
    return 1 / (static_cast<float>(op.rows) * static_cast<float>(op.classes));
  }

  static FASTCLF_DEVICE float row(const LossGradient& op, size_t b, float mean) {
    const float* y = static_cast<const float*>(op.targets) + target_row(op, b) * op.classes;
    float loss = 0;
    for (size_t c = lane(); c < op.classes; c += 32) {
      const size_t at = b * op.classes + c;
      const float z = op.z[at] + op.bias[c], t = y[c] * (1 - op.smoothing) + op.smoothing / 2, e = expf(-fabsf(z));
      const float w = (op.weight ? op.weight[c] : 1) * mean;
      loss += w * ((z < 0 ? 0 : z) - z * t + log1pf(e));
      put(op, at, w * ((z < 0 ? e : 1) / (1 + e) - t));
    }
    return warp_sum(loss);
  }
};

// Row b of the product; each lane writes the classes that it reads later. All lanes call it.
template <class T>
FASTCLF_DEVICE void make_row(const LossGradient& op, size_t b, bool aligned) {
  const T* left = static_cast<const T*>(op.left) + b * op.inner;
  for (size_t first = 0; first < op.classes; first += kTogether) {
    float sum[kTogether] = {};
    for (size_t at = 4 * lane(); at < op.inner; at += 4 * 32) {
      const size_t count = op.inner - at;
      const Quad x = load_quad(left + at, count, aligned);
      for (unsigned k = 0; k < kTogether; ++k) {
        if (first + k >= op.classes) break;
        const Quad w = load_quad(op.right + (first + k) * op.inner + at, count, aligned);
        for (int i = 0; i < 4; ++i) sum[k] += x.v[i] * w.v[i];
      }
    }
    for (unsigned k = 0; k < kTogether; ++k) {
      const float total = warp_sum(sum[k]);
      if (first + k < op.classes && lane() == (first + k) % 32) op.z[b * op.classes + first + k] = total;
    }
  }
}

// Given logits.
struct NoProduct {
  static FASTCLF_DEVICE void row(const LossGradient&, size_t, bool) {}
};
template <class T>
struct Product {
  static FASTCLF_DEVICE void row(const LossGradient& op, size_t b, bool aligned) { make_row<T>(op, b, aligned); }
};

template <class Kind, class Logits>
__global__ void loss_kernel(LossGradient op, bool aligned) {
  const float mean = Kind::mean_factor(op);
  const size_t b = size_t{blockIdx.x} * kLossWarps + warp();
  if (b < op.rows) {  // the same for all lanes of a warp
    Logits::row(op, b, aligned);
    const float loss = Kind::row(op, b, mean);
    if (lane() == 0) op.row_loss[b] = loss;
  }
  if (!last_block(op.block_counter, gridDim.x)) return;
  float total = 0;
  for (size_t r = threadIdx.x; r < op.rows; r += blockDim.x) total += op.row_loss[r];
  total = block_sum<kLossWarps>(total);
  if (threadIdx.x == 0) op.losses[op.step_counter->batch] = total;
}

namespace {

template <class Logits>
Status launch_loss(const LossGradient& op, void* stream) {
  const Grid grid = {dim3(blocks_for(op.rows, kLossWarps)), 32 * kLossWarps};
  const bool aligned = op.inner % 4 == 0 && is_aligned(op.left, 16) && is_aligned(op.right, 16);
  const auto kernel = op.loss == Loss::nll ? loss_kernel<ClassLoss, Logits> : loss_kernel<BinaryLoss, Logits>;
  return launch(kernel, grid, stream, op, aligned);
}

}  // namespace

Status loss_gradient(const LossGradient& op, void* stream) {
  if (op.rows == 0) return {};
  if (!op.left) return launch_loss<NoProduct>(op, stream);
  return op.left_dtype == DType::bfloat16 ? launch_loss<Product<BFloat16>>(op, stream)
                                          : launch_loss<Product<float>>(op, stream);
}

}  // namespace fastclf::cuda
