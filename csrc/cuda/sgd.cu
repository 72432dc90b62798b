// SGD with momentum for all tensors of all groups, and the norm of their gradients; and for a head's first layer
// together with its gradients.
#include <initializer_list>
#include <type_traits>

#include "cuda/strips.cuh"

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

// Leaves every group's numbers in rates, [n_groups] in shared memory. All threads call it.
FASTCLF_DEVICE void read_rates(const SgdStep& op, Rates* rates) {
  for (size_t n = threadIdx.x; n < op.n_groups; n += blockDim.x) {
    rates[n].sgd = sgd_at(op.groups[n], op.steps[n]);
    rates[n].share = static_cast<float>(1 - op.groups[n].ema);
    if (op.scale) rates[n].sgd.scale = *op.scale;
  }
  __syncthreads();
}

// Counts the step once all blocks have read the numbers; last, so that nothing waits for it. All threads call it.
FASTCLF_DEVICE void count_step(const SgdStep& op) {
  if (!last_block(op.block_counter, gridDim.x)) return;
  for (size_t n = threadIdx.x; n < op.n_groups; n += blockDim.x) op.steps[n] += 1;
  if (op.step_counter && threadIdx.x == 0) {
    ++op.step_counter->step;
    ++op.step_counter->batch;
  }
}

__global__ void sgd_kernel(SgdStep op) {
  FASTCLF_DYNAMIC_SHARED(Rates, rates);
  read_rates(op, rates);
  for (size_t i = blockIdx.x; i < op.n_tensors; i += gridDim.x) sgd_tensor(op.tensors[i], rates[op.tensors[i].group]);
  count_step(op);
}

FASTCLF_DEVICE void sgd_quad(const Sgd& sgd, const Strip& s, float* param, float* velocity, Quad w, const Quad& g) {
  Quad m = s.load(velocity);
  for (int i = 0; i < 4; ++i) sgd_one(sgd, w.v[i], m.v[i], g.v[i]);
  s.store(velocity, m);
  s.store(param, w);
}

constexpr unsigned kOutputs = 2;  // of a thread at once

// Four columns of A and M for the outputs o and o + s.step, as they lie in memory.
struct GivenProducts {
  FASTCLF_DEVICE void operator()(const FirstLayer& op, const Strip& s, size_t o, Quad (&a)[kOutputs],
                                 Quad (&m)[kOutputs]) const {
    const size_t cols = op.sums ? op.n_in : 2 * op.n_in;
    for (unsigned k = 0; k < kOutputs && o + k * s.step < op.n_out; ++k) {
      const float* row = op.products + (o + k * s.step) * cols;
      a[k] = s.load(row);
      if (!op.sums) m[k] = s.load(row + op.n_in);
    }
  }
};

// The same, added up here; the strip's factors are in shared memory.
template <class T>
struct MadeProducts {
  const float* d;
  size_t rows;
  float* factors;  // [rows, 2, 8]: keep * xhat, and keep

  // All threads call it.
  FASTCLF_DEVICE MadeProducts(const FirstStep& op, const Strip& s) : d(op.d), rows(op.rows) {
    FASTCLF_SHARED(float, part, kMostProductRows * 2 * kStripColumns);
    factors = part;
    for (size_t b = s.row; b < rows; b += s.step) {
      const T* row = static_cast<const T*>(op.factors) + b * (op.sums ? op.n_in : 2 * op.n_in);
      put(at(b, 0), s.load(row));
      if (!op.sums) put(at(b, 1), s.load(row + op.n_in));
    }
    __syncthreads();
  }

  FASTCLF_DEVICE float* at(size_t b, unsigned which) const {
    return factors + (2 * b + which) * kStripColumns + threadIdx.x % kStripQuads * 4;
  }
  static FASTCLF_DEVICE void put(float* four, const Quad& v) {
    for (int i = 0; i < 4; ++i) four[i] = v.v[i];
  }

  FASTCLF_DEVICE void operator()(const FirstLayer& op, const Strip& s, size_t o, Quad (&a)[kOutputs],
                                 Quad (&m)[kOutputs]) const {
    for (size_t b = 0; b < rows; ++b) {
      const float *x = at(b, 0), *keep = at(b, 1);
      for (unsigned k = 0; k < kOutputs; ++k) {
        const float g = o + k * s.step < op.n_out ? d[b * op.n_out + o + k * s.step] : 0;
        for (int i = 0; i < 4; ++i) {
          a[k].v[i] += g * x[i];
          if (!op.sums) m[k].v[i] += g * keep[i];
        }
      }
    }
  }
};

struct GammaBeta {
  Quad gamma, beta;
};

// Calls use(output, its weights, their gradient) for the outputs of this thread, and returns the other gradients. All
// threads have read gamma and beta when it returns.
template <class Products, class Use>
FASTCLF_DEVICE GammaBeta first_layer(const FirstLayer& op, const Strip& s, const Products& products, Use use) {
  const Quad gamma = s.load(op.gamma), beta = s.load(op.beta);
  GammaBeta d = {};
  for (size_t first = s.row; first < op.n_out; first += kOutputs * s.step) {
    Quad a[kOutputs] = {}, m[kOutputs] = {};
    products(op, s, first, a, m);
    for (unsigned k = 0; k < kOutputs; ++k) {
      const size_t o = first + k * s.step;
      if (o >= op.n_out) break;
      const Quad w = s.load(op.weight + o * op.n_in);
      Quad dw;
      for (int i = 0; i < 4; ++i) {
        if (op.sums) m[k].v[i] = op.sums[o];
        d.gamma.v[i] += w.v[i] * a[k].v[i];
        d.beta.v[i] += w.v[i] * m[k].v[i];
        dw.v[i] = op.kept_scale * (gamma.v[i] * a[k].v[i] + beta.v[i] * m[k].v[i]);
      }
      use(o, w, dw);
    }
  }
  d = {strip_sum(d.gamma), strip_sum(d.beta)};
  for (int i = 0; i < 4; ++i) {
    d.gamma.v[i] *= op.kept_scale;
    d.beta.v[i] *= op.kept_scale;
  }
  return d;
}

__global__ void __launch_bounds__(kStripThreads, 1) first_gradient_kernel(FirstGradient op, bool aligned) {
  const Strip s = strip_of(op.n_in, aligned);
  const GammaBeta d = first_layer(
      op, s, GivenProducts{}, [&](size_t o, const Quad&, const Quad& dw) { s.store(op.dweight + o * op.n_in, dw); });
  if (s.row == 0) {
    s.store(op.dgamma, d.gamma);
    s.store(op.dbeta, d.beta);
  }
}

template <class Products>
FASTCLF_DEVICE void update_first_layer(const FirstStep& op, const Strip& s, const Products& products, const Sgd sgd) {
  const GammaBeta d = first_layer(op, s, products, [&](size_t o, const Quad& w, const Quad& dw) {
    sgd_quad(sgd, s, op.weight + o * op.n_in, op.weight_velocity + o * op.n_in, w, dw);
  });
  if (s.row == 0) {
    sgd_quad(sgd, s, op.gamma, op.gamma_velocity, s.load(op.gamma), d.gamma);
    sgd_quad(sgd, s, op.beta, op.beta_velocity, s.load(op.beta), d.beta);
  }
}

// The first blocks have a strip of the first layer each, the others the other tensors. Factors: float or BFloat16 where
// the products are made here, else void.
template <class Factors>
__global__ void __launch_bounds__(kStripThreads, 1) first_step_kernel(FirstStep op, unsigned strips, bool aligned) {
  FASTCLF_DYNAMIC_SHARED(Rates, rates);
  read_rates(op, rates);
  if (blockIdx.x < strips) {
    const Strip s = strip_of(op.n_in, aligned);
    if constexpr (std::is_void_v<Factors>) {
      update_first_layer(op, s, GivenProducts{}, rates[0].sgd);
    } else {
      update_first_layer(op, s, MadeProducts<Factors>(op, s), rates[0].sgd);
    }
  } else {
    for (size_t i = blockIdx.x - strips; i < op.n_tensors; i += gridDim.x - strips) {
      sgd_tensor(op.tensors[i], rates[op.tensors[i].group]);
    }
  }
  count_step(op);
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

unsigned tensor_blocks(size_t n_tensors) {
  return static_cast<unsigned>(n_tensors < 1 ? 1 : n_tensors < kMostBlocks ? n_tensors : kMostBlocks);
}

Grid grid_for(size_t n_tensors, size_t dynamic_bytes) {
  return {dim3(tensor_blocks(n_tensors)), 32 * kSgdWarps, dynamic_bytes};
}

bool is_first_aligned(const FirstLayer& op, std::initializer_list<const void*> more) {
  bool aligned = op.n_in % 4 == 0;
  for (const float* p : {op.products, static_cast<const float*>(op.weight), static_cast<const float*>(op.gamma),
                         static_cast<const float*>(op.beta)}) {
    aligned = aligned && is_aligned(p, 16);
  }
  for (const void* p : more) aligned = aligned && is_aligned(p, 16);
  return aligned;
}

}  // namespace

Status clip_factor(const ClipFactor& op, void* stream) {
  return launch(clip_kernel, grid_for(op.n_tensors, 0), stream, op);
}

Status sgd_step(const SgdStep& op, void* stream) {
  if (op.n_groups > kMostGroups) return {"sgd_step: there may be at most 1024 groups. Join some of them."};
  return launch(sgd_kernel, grid_for(op.n_tensors, op.n_groups * sizeof(Rates)), stream, op);
}

Status first_gradient(const FirstGradient& op, void* stream) {
  if (op.n_in == 0) return {};
  const bool aligned = is_first_aligned(op, {op.dweight, op.dgamma, op.dbeta});
  return launch(first_gradient_kernel, strip_grid(op.n_out, op.n_in), stream, op, aligned);
}

Status first_step(const FirstStep& op, void* stream) {
  if (op.n_groups > kMostGroups) return {"first_step: there may be at most 1024 groups. Join some of them."};
  Grid grid = strip_grid(op.n_out, op.n_in);
  const unsigned strips = grid.blocks.x;
  grid.blocks.x += tensor_blocks(op.n_tensors);
  grid.dynamic_bytes = op.n_groups * sizeof(Rates);
  const bool aligned = is_first_aligned(op, {op.weight_velocity, op.gamma_velocity, op.beta_velocity, op.factors});
  const auto kernel = op.products                           ? first_step_kernel<void>
                      : op.factors_dtype == DType::bfloat16 ? first_step_kernel<BFloat16>
                                                            : first_step_kernel<float>;
  return launch(kernel, grid, stream, op, strips, aligned);
}

}  // namespace fastclf::cuda
