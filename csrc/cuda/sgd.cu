// SGD with momentum for all tensors of all groups, and the norm of their gradients.
#include "cuda/reduce.cuh"

namespace fastclf::cuda {

constexpr unsigned kSgdWarps = 8;
constexpr size_t kMostBlocks = 1024, kMostGroups = 1024;

FASTCLF_DEVICE bool quads_fit(const SgdTensor& t) {
  return (reinterpret_cast<uintptr_t>(t.param) | reinterpret_cast<uintptr_t>(t.grad) |
          reinterpret_cast<uintptr_t>(t.velocity) | reinterpret_cast<uintptr_t>(t.average)) %
             16 ==
         0;
}

FASTCLF_DEVICE void sgd_one(const Sgd& s, float& w, float& m, float g) {
  m = s.momentum * m + (s.scale * g + s.decay * w);
  w = s.shrink * w - s.rate * m;
}

// A group's numbers in this step.
struct Rates {
  Sgd sgd;
  float share;  // of a new parameter in its average
};

// Three loads and two stores of 128 bits for four parameters: 20 bytes each; 28 with an average. By value: what is
// stored could, for all the compiler knows, change the table.
FASTCLF_DEVICE void sgd_tensor(const SgdTensor t, const Rates rates) {
  const Sgd& s = rates.sgd;
  const size_t quads = quads_fit(t) ? t.n / 4 : 0;
  for (size_t i = threadIdx.x; i < quads; i += blockDim.x) {
    float4 w = load_vector<float4>(t.param + 4 * i), m = load_vector<float4>(t.velocity + 4 * i);
    const float4 g = load_vector<float4>(t.grad + 4 * i);
    sgd_one(s, w.x, m.x, g.x);
    sgd_one(s, w.y, m.y, g.y);
    sgd_one(s, w.z, m.z, g.z);
    sgd_one(s, w.w, m.w, g.w);
    store_vector(t.velocity + 4 * i, m);
    store_vector(t.param + 4 * i, w);
    if (t.average) {
      float4 a = load_vector<float4>(t.average + 4 * i);
      a.x += rates.share * (w.x - a.x);
      a.y += rates.share * (w.y - a.y);
      a.z += rates.share * (w.z - a.z);
      a.w += rates.share * (w.w - a.w);
      store_vector(t.average + 4 * i, a);
    }
  }
  for (size_t i = 4 * quads + threadIdx.x; i < t.n; i += blockDim.x) {
    sgd_one(s, t.param[i], t.velocity[i], t.grad[i]);
    if (t.average) t.average[i] += rates.share * (t.param[i] - t.average[i]);
  }
}

__global__ void sgd_kernel(SgdStep op) {
  FASTCLF_DYNAMIC_SHARED(Rates, rates);  // [n_groups]
  for (size_t n = threadIdx.x; n < op.n_groups; n += blockDim.x) {
    rates[n].sgd = sgd_at(op.groups[n], op.steps[n]);
    rates[n].share = static_cast<float>(1 - op.groups[n].ema);
    if (op.scale) rates[n].sgd.scale = *op.scale;
  }
  if (last_block(op.block_counter, gridDim.x)) {  // all blocks have read the step numbers
    for (size_t n = threadIdx.x; n < op.n_groups; n += blockDim.x) op.steps[n] += 1;
    if (op.step_counter && threadIdx.x == 0) {
      ++op.step_counter->step;
      ++op.step_counter->batch;
    }
  }
  for (size_t i = blockIdx.x; i < op.n_tensors; i += gridDim.x) sgd_tensor(op.tensors[i], rates[op.tensors[i].group]);
}

__global__ void clip_kernel(ClipFactor op) {
  for (size_t i = blockIdx.x; i < op.n_tensors; i += gridDim.x) {
    const SgdTensor t = op.tensors[i];
    float squares = 0;
    for (size_t j = threadIdx.x; j < t.n; j += blockDim.x) squares += t.grad[j] * t.grad[j];
    const double total = block_sum<kSgdWarps>(static_cast<double>(squares));
    if (threadIdx.x == 0) op.partial[i] = total;
  }
  if (!last_block(op.block_counter, gridDim.x)) return;
  double sum = 0;
  for (size_t i = threadIdx.x; i < op.n_tensors; i += blockDim.x) sum += op.partial[i];
  sum = block_sum<kSgdWarps>(sum);
  if (threadIdx.x == 0) {
    const double factor = op.clip / (sqrt(sum) + 1e-6);
    *op.factor = factor > 1 ? 1 : static_cast<float>(factor);
  }
}

namespace {

Grid grid_for(size_t n_tensors, size_t dynamic_bytes) {
  const size_t blocks = n_tensors < 1 ? 1 : n_tensors < kMostBlocks ? n_tensors : kMostBlocks;
  return {dim3(static_cast<unsigned>(blocks)), 32 * kSgdWarps, dynamic_bytes};
}

}  // namespace

Status clip_factor(const ClipFactor& op, void* stream) {
  return launch(clip_kernel, grid_for(op.n_tensors, 0), stream, op);
}

Status sgd_step(const SgdStep& op, void* stream) {
  if (op.n_groups > kMostGroups) return {"sgd_step: there may be at most 1024 groups. Join some of them."};
  return launch(sgd_kernel, grid_for(op.n_tensors, op.n_groups * sizeof(Rates)), stream, op);
}

}  // namespace fastclf::cuda
