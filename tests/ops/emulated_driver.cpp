// The emulation of CUDA under the sanitizers: kernels with planted faults, each chosen by name, which must be caught;
// and, without a name, sound kernels and every launcher on memory of exact size, which must run clean.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/launchers.h"
#include "cuda/reduce.cuh"

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
  Floats z = normals(rows * cols), operand = normals(rows * cols), d = Floats(rows * cols);
  Floats logits = normals(rows * classes), weight = normals(classes * cols), dweight = Floats(classes * cols);
  Floats of_classes = normals(classes);
  unsigned block_counter = 0;
  std::vector<uint16_t> narrow = std::vector<uint16_t>(rows * cols);

  template <class Op>
  void fill_rows(Op& op) {
    op.src = src.data(), op.dtype = DType::float16, op.order = order.data(), op.step_counter = &step_counter;
    op.stride = rows, op.rows = rows, op.cols = cols;
  }
  void forward() {
    for (size_t i = 0; i < 2 * rows; ++i) order.push_back(static_cast<int64_t>(generator() % 20));
    for (uint16_t& h : src) h = static_cast<uint16_t>(0x3000 + generator() % 0x1000);
    Floats factors(rows * 2 * cols);
    Normalise op;
    fill_rows(op);
    op.seed = 5, op.layer = 0, op.p = 0.3, op.mean = mean.data(), op.rstd = rstd.data(), op.bias = nullptr;
    op.running_mean = running_mean.data(), op.running_var = running_var.data(), op.momentum = 0.1f, op.eps = 1e-5f;
    op.gamma = gamma.data(), op.beta = beta.data(), op.out = operand.data(), op.out_dtype = DType::float32;
    op.frozen = false, op.factors = factors.data(), op.factor_cols = 2 * cols;
    done(normalise(op, nullptr));
    op.src = z.data(), op.order = nullptr, op.bias = beta.data(), op.factor_cols = cols;
    done(normalise(op, nullptr));
    std::vector<uint16_t> narrow_factors(rows * cols);
    op.out = narrow.data(), op.out_dtype = DType::bfloat16, op.factors = narrow_factors.data(), op.frozen = true;
    done(normalise(op, nullptr));
  }

  void mask() {
    DropoutMask op;
    op.seed = 5, op.layer = 1, op.p = 0.3, op.step = 4, op.out = operand.data(), op.rows = rows, op.cols = cols;
    done(dropout_mask(op, nullptr));
    for (const float v : operand) require(v == 0 || v == 1 / 0.7f, "a mask has other values");
  }

  void losses() {
    const Floats weights(classes, 1.5f);
    Floats row_loss(rows), out(2);
    std::vector<int64_t> labels(20);
    for (int64_t& y : labels) y = static_cast<int64_t>(generator() % classes);
    const Floats several(20 * classes, 1.f);
    std::vector<uint16_t> copy(rows * classes);
    LossGradient op = {};
    op.loss = loss, op.z = logits.data(), op.bias = of_classes.data(), op.order = order.data();
    op.targets = loss == Loss::nll ? static_cast<const void*>(labels.data()) : several.data();
    op.step_counter = &step_counter, op.stride = rows, op.rows = rows, op.classes = classes;
    op.weight = weights.data(), op.weight_sum = 1.5f * static_cast<float>(classes), op.smoothing = 0.1f;
    op.row_loss = row_loss.data(), op.losses = out.data(), op.block_counter = &block_counter, op.copy = copy.data();
    done(loss_gradient(op, nullptr));
    op.left = operand.data(), op.left_dtype = DType::float32, op.right = weight.data(), op.inner = cols;
    done(loss_gradient(op, nullptr));
    op.left = narrow.data(), op.left_dtype = DType::bfloat16;
    done(loss_gradient(op, nullptr));
    require(std::isfinite(out[1]) && out[1] > 0, "the loss is not finite");
  }

  void backward() {
    Floats dbias(cols), sums(classes);
    HiddenGradient op = {};
    op.seed = 5, op.layer = 0, op.p = 0.3, op.step_counter = &step_counter, op.d = d.data(), op.h = z.data();
    op.rows = rows, op.cols = cols, op.mean = mean.data(), op.rstd = rstd.data(), op.gamma = gamma.data();
    op.dgamma = dgamma.data(), op.dbeta = dbeta.data(), op.dbias = dbias.data();
    done(hidden_gradient(op, nullptr));
    op.logits = logits.data(), op.classes = classes, op.weight = weight.data(), op.operand = operand.data();
    op.operand_dtype = DType::float32, op.dweight = dweight.data(), op.dweight_bias = sums.data();
    done(hidden_gradient(op, nullptr));
    std::vector<uint16_t> copy(rows * cols);
    op.operand = narrow.data(), op.operand_dtype = DType::bfloat16, op.copy = copy.data(), op.frozen = true;
    done(hidden_gradient(op, nullptr));
    done(column_sums({d.data(), rows, cols, dbias.data()}, nullptr));
    for (const float v : d) require(std::isfinite(v), "a gradient is not finite");
  }

  void first_layer() {
    Floats products = normals(classes * 2 * cols), velocity(classes * cols), gamma_velocity(cols), beta_velocity(cols);
    FirstGradient gradient = {};
    fill_layer(gradient, products);
    gradient.dweight = dweight.data(), gradient.dgamma = dgamma.data(), gradient.dbeta = dbeta.data();
    done(first_gradient(gradient, nullptr));
    gradient.sums = of_classes.data();
    done(first_gradient(gradient, nullptr));
    const SgdTensor rest = {logits.data(), z.data(), operand.data(), nullptr, 1, 0};
    const SgdGroup group = {0.1, 0.9, 0.01, 0, 0, {.kind = ScheduleKind::cosine, .nb = 10, .cycle_mult = 1}};
    int64_t steps = 4;
    FirstStep step = {};
    fill_layer(step, products);
    step.tensors = &rest, step.n_tensors = 1, step.groups = &group, step.steps = &steps, step.n_groups = 1;
    step.step_counter = &step_counter, step.block_counter = &block_counter;
    step.weight_velocity = velocity.data(), step.gamma_velocity = gamma_velocity.data();
    step.beta_velocity = beta_velocity.data();
    done(first_step(step, nullptr));
    require(steps == 5 && step_counter.step == 4, "steps are counted wrong");
    const Floats of_outputs = normals(rows * classes), factors = normals(rows * 2 * cols);
    step.products = nullptr, step.d = of_outputs.data(), step.rows = rows;
    step.factors = factors.data(), step.factors_dtype = DType::float32;
    done(first_step(step, nullptr));
    step.sums = of_classes.data(), step.factors = narrow.data(), step.factors_dtype = DType::bfloat16;
    done(first_step(step, nullptr));
    for (const float v : velocity) require(std::isfinite(v), "a momentum is not finite");
    require(std::isfinite(operand[0]), "a momentum is not finite");
  }

  template <class Op>
  void fill_layer(Op& op, const Floats& products) {
    op.products = products.data(), op.n_out = classes, op.n_in = cols, op.kept_scale = 1.4f;
    op.weight = weight.data(), op.gamma = gamma.data(), op.beta = beta.data();
  }

  void predict() {
    Floats out(weight.size()), out_bias(classes);
    done(fold({weight.data(), of_classes.data(), gamma.data(), beta.data(), mean.data(), running_var.data(), 1e-5f,
               classes, cols, out.data(), out_bias.data()},
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

// Images of exact size, bytes and floats, up and down, with a matrix and without.
template <class T>
void test_crops(bool moved, size_t n_ops) {
  const std::vector<int64_t> shape = {1, 1, 7, 90, 61, 2},
                             size = {5, 5, moved ? 9 : 5, 5, moved ? 3 : 5, moved ? 1 : 5};
  std::vector<std::vector<T>> images;
  std::vector<uint64_t> src;
  Floats part, matrix, numbers;
  for (size_t i = 0; i < 3; ++i) {
    images.emplace_back(static_cast<size_t>(3 * shape[2 * i] * shape[2 * i + 1]), T{1});
    const auto height = static_cast<float>(shape[2 * i]), width = static_cast<float>(shape[2 * i + 1]);
    for (const float x : {-0.3f * height, 0.1f * width, 1.9f * height, width}) part.push_back(x);
    for (const float x : {0.9f, 0.2f, -1.f, -0.3f, 1.1f, 2.f}) matrix.push_back(x);
    for (size_t k = 0; k < 2 * n_ops; ++k) numbers.push_back(k % 2 ? 1.2f : 0.1f);
  }
  for (const auto& image : images) src.push_back(reinterpret_cast<uintptr_t>(image.data()));
  const std::vector<int64_t> pixel_ops(n_ops, static_cast<int64_t>(PixelOp::brightness_contrast));
  const size_t width = 4 * 45 + 2 * 14 + 2 * (144 + 84);
  Floats out(3 * 3 * 25), scratch(3 * width);
  CropResizeOnDevice op = {};
  op.src = src.data(), op.shape = shape.data(), op.bytes = sizeof(T) == 1, op.crop = part.data();
  op.size = size.data(), op.matrix = moved ? matrix.data() : nullptr, op.pixel_ops = pixel_ops.data();
  op.numbers = numbers.data(), op.n = 3, op.n_ops = n_ops, op.width = 2, op.sz = 5, op.top = 4;
  for (float& x : op.std) x = 0.5f;
  op.out = out.data(), op.scratch = scratch.data(), op.scratch_width = width;
  done(crop_resize(op, nullptr));
  const float value = n_ops == 0 ? 0.5f : n_ops == 1 ? 0.7f : 0.9f;  // of images that are all 1
  for (const float v : out) require(std::abs(v - value) < 1e-5f, "a crop of one colour has another");
}

void test_launchers() {
  for (const size_t cols : {1, 37, 64}) {
    for (const size_t rows : {2, 33, 70}) {
      Step step = {
          .rows = rows, .cols = cols, .classes = cols < 64 ? cols + 1 : 64, .loss = rows == 33 ? Loss::bce : Loss::nll};
      step.mask();
      step.forward();
      step.losses();
      step.backward();
      step.first_layer();
      step.predict();
    }
  }
  test_update();
  for (const size_t n_ops : {size_t{0}, size_t{1}, size_t{2}}) {
    test_crops<uint8_t>(n_ops == 2, n_ops);
    test_crops<float>(n_ops != 2, n_ops);
  }
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
