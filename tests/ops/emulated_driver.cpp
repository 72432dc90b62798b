// The emulation of CUDA under the sanitizers: kernels with planted faults, each chosen by name, which must be caught;
// and, without a name, sound kernels and every launcher on memory of exact size, which must run clean.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/columns.cuh"
#include "cuda/launchers.h"

using namespace fastclf;
using namespace fastclf::cuda;

namespace {

using Floats = std::vector<float>;
std::mt19937 generator(3);

Floats normals(size_t n) {
  std::normal_distribution<float> draw(0, 1);
  Floats x(n);
  for (float& v : x) v = draw(generator);
  return x;
}

void require(bool fine, const char* what) {
  if (fine) return;
  std::fprintf(stderr, "emulated driver: %s\n", what);
  std::exit(1);
}

void done(Status status) { require(!status.error, status.error ? status.error : ""); }

// Sound: a block's sum through static and dynamic shared memory, shuffles and barriers.
void block_sum_kernel(const float* x, float* out, size_t n, bool barrier) {
  FASTCLF_SHARED(float, part, 8);
  FASTCLF_DYNAMIC_SHARED(float, copy);
  copy[threadIdx.x] = 0;
  for (size_t i = threadIdx.x; i < n; i += blockDim.x) copy[threadIdx.x] += x[blockIdx.x * n + i];
  float sum = copy[threadIdx.x];
  for (unsigned m = 16; m > 0; m /= 2) sum += __shfl_xor_sync(kFullMask, sum, m);
  if (lane() == 0) part[warp()] = sum;
  if (barrier) __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned w = 1; w < blockDim.x / 32; ++w) sum += part[w];
  out[blockIdx.x] = sum;
}

// Sound: every block sees what all have written before the grid's barrier.
void grid_kernel(float* slots, float* out) {
  if (threadIdx.x == 0) slots[blockIdx.x] = static_cast<float>(blockIdx.x + 1);
  emulate::grid_barrier();
  if (threadIdx.x != 0) return;
  for (unsigned i = 0; i < gridDim.x; ++i) out[blockIdx.x] += slots[i];
}

void count_kernel(unsigned* counter) { atomic_add(counter, threadIdx.x); }

void read_past_array(const float* x, float* out, size_t n) { out[threadIdx.x] = x[threadIdx.x + n - 31]; }

void read_past_shared(float* out) {
  FASTCLF_SHARED(float, part, 32);
  part[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = part[threadIdx.x + 1];
}

void write_from_all_blocks(float* out) {
  if (threadIdx.x == blockIdx.x) out[0] = 1;
}

void barrier_in_branch() {
  if (threadIdx.x < 32) __syncthreads();
}

void read_misaligned(const float* x, float* out) { out[threadIdx.x] = load_vector<float4>(x + threadIdx.x).x; }

void sum_blocks(size_t blocks, unsigned threads, size_t n, bool barrier) {
  const Floats x = normals(blocks * n);
  Floats out(blocks);
  emulate::run({dim3(static_cast<unsigned>(blocks)), threads, threads * sizeof(float)},
               [&] { block_sum_kernel(x.data(), out.data(), n, barrier); });
  for (size_t b = 0; b < blocks; ++b) {
    double want = 0;
    for (size_t i = 0; i < n; ++i) want += x[b * n + i];
    require(std::abs(want - out[b]) < 1e-3, "the block's sum is wrong");
  }
}

void test_emulation() {
  for (const unsigned threads : {32u, 96u, 256u}) {
    for (const size_t n : {size_t{1}, size_t{31}, size_t{700}}) sum_blocks(3, threads, n, true);
  }
  Floats slots(4), out(4);
  emulate::run({.grid = 4, .threads = 64, .cooperative = true}, [&] { grid_kernel(slots.data(), out.data()); });
  for (const float v : out) require(v == 10, "a block has passed the grid's barrier too early");
  unsigned counter = 0;
  emulate::run({5, 96}, [&] { count_kernel(&counter); });
  require(counter == 5 * 96 * 95 / 2, "additions were lost");
}

// One head of one hidden block, without the products: every launcher once, rows and columns as odd as may be.
struct Step {
  size_t rows, cols, classes;
  Loss loss;
  StepCounter step_counter = {3, 1};
  std::vector<int64_t> order = {};
  std::vector<uint16_t> src = std::vector<uint16_t>(20 * cols, 0x3c00);
  Floats mean = Floats(cols), rstd = Floats(cols), running_mean = Floats(cols), running_var = Floats(cols, 1.f);
  Floats gamma = normals(cols), beta = normals(cols), dgamma = Floats(cols), dbeta = Floats(cols);
  Floats partial = Floats((rows + 31) / 32 * 2 * cols), z = normals(rows * cols), operand = Floats(rows * cols);
  std::vector<unsigned> block_counters = std::vector<unsigned>((cols + 31) / 32);
  std::vector<uint16_t> narrow = std::vector<uint16_t>(rows * cols);

  template <class Op>
  void fill_rows(Op& op) {
    op.src = src.data(), op.dtype = DType::float16, op.order = order.data(), op.step_counter = &step_counter;
    op.stride = rows, op.rows = rows, op.cols = cols;
  }
  template <class Op>
  void fill_statistics(Op& op) {
    op.mean = mean.data(), op.rstd = rstd.data(), op.running_mean = running_mean.data();
    op.running_var = running_var.data(), op.momentum = 0.1f, op.eps = 1e-5f;
    op.partial = partial.data(), op.block_counter = block_counters.data();
  }
  template <class Op>
  void fill_sums(Op& op) {
    op.mean = mean.data(), op.rstd = rstd.data(), op.dgamma = dgamma.data(), op.dbeta = dbeta.data();
    op.partial = partial.data(), op.block_counter = block_counters.data();
  }

  void forward() {
    for (size_t i = 0; i < 2 * rows; ++i) order.push_back(static_cast<int64_t>(generator() % 20));
    for (uint16_t& h : src) h = static_cast<uint16_t>(0x3000 + generator() % 0x1000);
    BatchMoments moments;
    fill_rows(moments);
    fill_statistics(moments);
    done(batch_moments(moments, nullptr));
    Normalise normal;
    fill_rows(normal);
    normal.seed = 5, normal.layer = 0, normal.p = 0.3, normal.mean = mean.data(), normal.rstd = rstd.data();
    normal.gamma = gamma.data(), normal.beta = beta.data(), normal.out = operand.data();
    normal.out_dtype = DType::float32;
    done(normalise(normal, nullptr));
    normal.out = narrow.data(), normal.out_dtype = DType::bfloat16;
    done(normalise(normal, nullptr));
    ReluMoments relu;
    fill_statistics(relu);
    relu.z = z.data(), relu.bias = beta.data(), relu.rows = rows, relu.cols = cols;
    done(relu_moments(relu, nullptr));
  }

  void mask() {
    DropoutMask op;
    op.seed = 5, op.layer = 1, op.p = 0.3, op.step = 4, op.out = operand.data(), op.rows = rows, op.cols = cols;
    done(dropout_mask(op, nullptr));
    for (const float v : operand) require(v == 0 || v == 1 / 0.7f, "a mask has other values");
  }

  void losses() {
    Floats logits = normals(rows * classes), bias = normals(classes), weight(classes, 1.5f), row_loss(rows), out(2);
    std::vector<int64_t> labels(20);
    for (int64_t& y : labels) y = static_cast<int64_t>(generator() % classes);
    const Floats several(20 * classes, 1.f);
    std::vector<uint16_t> copy(rows * classes);
    const void* targets = loss == Loss::nll ? static_cast<const void*>(labels.data()) : several.data();
    done(loss_gradient(
        {loss, logits.data(), bias.data(), targets, order.data(), &step_counter, rows, rows, classes, weight.data(),
         1.5f * static_cast<float>(classes), 0.1f, row_loss.data(), out.data(), block_counters.data(), copy.data()},
        nullptr));
    require(std::isfinite(out[1]) && out[1] > 0, "the loss is not finite");
  }

  void backward() {
    AffineGradient affine;
    fill_rows(affine);
    fill_sums(affine);
    affine.seed = 5, affine.layer = 0, affine.p = 0.3, affine.g = operand.data(), affine.write = true;
    done(affine_gradient(affine, nullptr));
    InputGradient input;
    fill_sums(input);
    input.g = operand.data(), input.h = z.data(), input.rows = rows, input.cols = cols, input.gamma = gamma.data();
    input.frozen = false, input.dbias = running_mean.data(), input.copy = narrow.data();
    done(input_gradient(input, nullptr));
    done(column_sums({z.data(), rows, cols, dbeta.data(), partial.data(), block_counters.data()}, nullptr));
    for (const float v : operand) require(std::isfinite(v), "a gradient is not finite");
  }

  void predict() {
    const Floats weight = normals(classes * cols), bias = normals(classes);
    Floats out(weight.size()), out_bias(classes);
    done(fold({weight.data(), bias.data(), gamma.data(), beta.data(), mean.data(), running_var.data(), 1e-5f, classes,
               cols, out.data(), out_bias.data()},
              nullptr));
    done(add_bias({z.data(), beta.data(), rows, cols, true}, nullptr));
  }
};

void test_update() {
  Floats p = normals(5000), m(5000), average(4001);
  const Floats g = normals(5000);
  const SgdTensor tensors[] = {{p.data(), g.data(), m.data(), average.data(), 4001, 0},
                               {p.data() + 4001, g.data() + 4001, m.data() + 4001, nullptr, 999, 1}};
  const SgdGroup groups[] = {{0.1, 0.9, 0.01, 0.9, 0, {.kind = ScheduleKind::cosine, .nb = 10, .cycle_mult = 1}},
                             {0.1, 0.9, 0.01, 0, 1, {}}};
  int64_t steps[] = {4, 9};
  double partial[2];
  unsigned block_counter = 0;
  float factor = 0;
  StepCounter step_counter = {8, 2};
  done(clip_factor({tensors, 2, 0.5, partial, &block_counter, &factor}, nullptr));
  done(sgd_step({tensors, 2, groups, steps, 2, &factor, &step_counter, &block_counter}, nullptr));
  require(steps[0] == 5 && steps[1] == 10 && step_counter.step == 9 && step_counter.batch == 3,
          "steps are counted wrong");
}

void test_launchers() {
  for (const size_t cols : {1, 37, 64}) {
    for (const size_t rows : {2, 33, 70}) {
      Step step = {.rows = rows, .cols = cols, .classes = cols + 1, .loss = rows == 33 ? Loss::bce : Loss::nll};
      step.mask();
      step.forward();
      step.losses();
      step.backward();
      step.predict();
    }
  }
  test_update();
}

void plant(const std::string& fault) {
  const Floats x = normals(40);
  Floats out(40);
  if (fault == "array") emulate::run({1, 32}, [&] { read_past_array(x.data(), out.data(), 40); });
  if (fault == "shared") emulate::run({1, 32}, [&] { read_past_shared(out.data()); });
  if (fault == "barrier") sum_blocks(1, 64, 100, false);
  if (fault == "blocks") emulate::run({2, 32}, [&] { write_from_all_blocks(out.data()); });
  if (fault == "branch") emulate::run({1, 64}, [] { barrier_in_branch(); });
  if (fault == "aligned") emulate::run({1, 32}, [&] { read_misaligned(x.data(), out.data()); });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) {
    plant(argv[1]);
  } else {
    test_emulation();
    test_launchers();
  }
  std::puts("finished");
}
