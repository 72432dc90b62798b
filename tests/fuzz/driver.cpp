// Runs every launcher of the processor on random sizes, with memory that ends where the sizes say: driver N SEED
// [LAUNCHER]. Built with AddressSanitizer by test_native.py. Each result is also compared with a plain loop, or, for
// heads, between numbers of threads.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cpu/launchers.h"

using namespace fastclf;
using namespace fastclf::cpu;

namespace {

using Floats = std::vector<float>;

std::mt19937_64 generator;

size_t upto(size_t most) { return generator() % (most + 1); }
bool chance(size_t n) { return upto(n - 1) == 0; }
int threads() { return static_cast<int>(upto(3)); }  // 0 counts as one

void require(bool fine, const char* what) {
  if (fine) return;
  std::fprintf(stderr, "fuzz driver: %s\n", what);
  std::abort();
}

// n elements at an address that is a multiple of their size and of nothing else; null for none, now and then.
template <class T>
class Exact {
 public:
  explicit Exact(size_t n) : shift_(upto(16)), size_(n), memory_(new T[shift_ + n]) {}
  T* get() { return size_ == 0 && chance(2) ? nullptr : memory_.get() + shift_; }
  T& operator[](size_t i) { return memory_[shift_ + i]; }
  size_t size() const { return size_; }

 private:
  size_t shift_, size_;
  std::unique_ptr<T[]> memory_;
};

Exact<float> normals(size_t n) {
  std::normal_distribution<float> draw;
  Exact<float> x(n);
  for (size_t i = 0; i < n; ++i) x[i] = draw(generator);
  return x;
}

Exact<uint16_t> halves(size_t n) {
  Exact<uint16_t> x(n);
  for (size_t i = 0; i < n; ++i) x[i] = static_cast<uint16_t>((chance(2) ? 0x8000u : 0u) | upto(0x4000));
  return x;
}

Exact<int64_t> below(size_t n, size_t limit) {
  Exact<int64_t> x(limit == 0 ? 0 : n);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int64_t>(chance(4) ? limit - 1 : upto(limit - 1));
  return x;
}

float widened(uint16_t h) {
  const int exponent = (h >> 10) & 31, mantissa = h & 1023;
  const float value = exponent ? std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25)
                               : std::ldexp(static_cast<float>(mantissa), -24);
  return h & 0x8000 ? -value : value;
}

void fuzz_gather() {
  const size_t n = upto(40), width = upto(chance(300) ? 70000 : 200), rows = upto(60);
  const bool half = chance(2);
  Exact<uint16_t> small = halves(half ? n * width : 0);
  Exact<float> large = normals(half ? 0 : n * width);
  Exact<int64_t> index = below(rows, n);
  Exact<float> out(index.size() * width);
  const void* src = half ? static_cast<const void*>(small.get()) : large.get();
  require(!gather_rows({src, half ? DType::float16 : DType::float32, index.get(), out.get(), index.size(), width},
                       threads())
               .error,
          "gather_rows");
  for (size_t r = 0; r < index.size(); ++r) {
    for (size_t j = 0; j < width; ++j) {
      const size_t at = static_cast<size_t>(index[r]) * width + j;
      require(out[r * width + j] == (half ? widened(small[at]) : large[at]), "gather_rows: another value");
    }
  }
}

void fuzz_dropout() {
  const size_t rows = upto(40), cols = upto(300);
  const double p = static_cast<double>(upto(99)) / 100;
  Exact<float> out(rows * cols);
  require(!dropout_mask({generator(), static_cast<uint32_t>(generator()), static_cast<uint32_t>(generator()), p,
                         out.get(), rows, cols},
                        threads())
               .error,
          "dropout_mask");
  const float scale = static_cast<float>(1 / (1 - p));
  for (size_t i = 0; i < rows * cols; ++i) require(out[i] == 0 || out[i] == scale, "dropout_mask: another value");
}

struct Head {
  explicit Head(size_t blocks) {
    const size_t most = chance(10) ? 200 : 70;
    for (size_t i = 0; i <= blocks; ++i) widths.push_back(1 + upto(most));
    for (size_t i = 0; i < blocks; ++i) {
      const size_t n_in = widths[i], n_out = widths[i + 1];
      p.push_back(chance(3) ? 0 : static_cast<double>(upto(99)) / 100);
      for (const size_t n : {n_in * n_out, n_out, n_in, n_in, n_in, n_in}) tensors.push_back(normals(n));
      Exact<float>& var = tensors.back();
      for (size_t j = 0; j < n_in; ++j) var[j] = std::fabs(var[j]) + 0.1f;
    }
  }

  std::vector<HeadLayer> layers() {
    std::vector<HeadLayer> out;
    for (size_t i = 0; i < p.size(); ++i) {
      Exact<float>* t = &tensors[6 * i];
      out.push_back({widths[i], widths[i + 1], p[i], 1e-5f, 0.1f, t[0].get(), t[1].get(), t[2].get(), t[3].get(),
                     t[4].get(), t[5].get()});
    }
    return out;
  }

  std::vector<float> values() {
    std::vector<float> all;
    for (Exact<float>& t : tensors) {
      for (size_t i = 0; i < t.size(); ++i) all.push_back(t[i]);
    }
    return all;
  }

  void write_back(const std::vector<float>& all) {
    size_t at = 0;
    for (Exact<float>& t : tensors) {
      for (size_t i = 0; i < t.size(); ++i) t[i] = all[at++];
    }
  }

  std::vector<size_t> widths;
  std::vector<double> p;
  std::vector<Exact<float>> tensors;
};

// A group with a schedule of any kind, and the memory of its table.
struct Group {
  Group() {
    const size_t n = 1 + upto(9);
    factors = Exact<double>(n), momenta = Exact<double>(n);
    for (size_t i = 0; i < n; ++i) factors[i] = 1 / static_cast<double>(i + 1), momenta[i] = 0.5;
    const Schedule schedules[] = {{.kind = ScheduleKind::constant},
                                  {.kind = ScheduleKind::cosine, .nb = 3, .cycle_mult = 2},
                                  {.kind = ScheduleKind::triangle, .nb = 5, .cycle_mult = 1, .div = 32, .cut_div = 10},
                                  {.kind = ScheduleKind::one_cycle,
                                   .nb = 7,
                                   .cycle_mult = 1,
                                   .div = 10,
                                   .pct = 10,
                                   .max_mom = 0.9,
                                   .min_mom = 0.8},
                                  {.kind = ScheduleKind::range_test, .nb = 9, .ratio = 1e5},
                                  {.kind = ScheduleKind::table,
                                   .factors = factors.get(),
                                   .momenta = chance(2) ? momenta.get() : nullptr,
                                   .n = static_cast<int64_t>(n)}};
    group = {0.01, 0.9, 0.01, 0.9, static_cast<int64_t>(upto(1)), schedules[upto(5)]};
  }

  Exact<double> factors{0}, momenta{0};
  SgdGroup group;
};

void fuzz_head() {
  Head head(1 + upto(2));
  const size_t columns = head.widths.front(), classes = head.widths.back(), n = 1 + upto(50);
  const bool half = chance(2), nll = chance(2), frozen = chance(4);
  Exact<uint16_t> small = halves(half ? n * columns : 0);
  Exact<float> large = normals(half ? 0 : n * columns);
  const void* rows = half ? static_cast<const void*>(small.get()) : large.get();
  const DType dtype = half ? DType::float16 : DType::float32;
  Exact<int64_t> labels = below(nll ? n : 0, classes);
  Exact<float> several = normals(nll ? 0 : n * classes), weight = normals(classes);
  for (size_t i = 0; i < several.size(); ++i) several[i] = several[i] > 0 ? 1.f : 0.f;
  for (size_t i = 0; i < classes; ++i) weight[i] = std::fabs(weight[i]) + 0.1f;
  const void* targets = nll ? static_cast<const void*>(labels.get()) : several.get();
  const Group group;
  const size_t batch = 2 + upto(38), max_batch = batch + upto(30);
  size_t count = upto(3 * batch);
  if (!frozen && count % batch == 1) --count;
  Exact<int64_t> order = below(count, n), wanted = below(upto(70), n);
  const double clip = chance(3) ? 0.3 : 0;
  const float smoothing = chance(2) ? 0 : 0.1f;
  const uint64_t seed = generator();
  const std::vector<float> start = head.values();
  std::vector<float> expected;
  for (int used = threads(), run = 0; run < 2; ++run, ++used) {
    head.write_back(start);
    const std::vector<HeadLayer> layers = head.layers();
    Exact<float> losses((count + batch - 1) / batch), logits(wanted.size() * classes);
    HeadEngine* engine = head_create({layers.data(), layers.size(), max_batch, rows, dtype, nll ? Loss::nll : Loss::bce,
                                      targets, weight.get(), smoothing, &group.group, clip, seed});
    require(!head_train({&engine, 1, order.get(), order.get(), count, batch, 3, frozen, losses.get()}, used).error,
            "head_train");
    head_destroy(engine);
    require(!head_predict({layers.data(), layers.size(), rows, dtype, wanted.get(), wanted.size(), logits.get()}, used)
                 .error,
            "head_predict");
    std::vector<float> found = head.values();
    for (Exact<float>* more : {&losses, &logits}) {
      for (size_t i = 0; i < more->size(); ++i) found.push_back((*more)[i]);
    }
    if (run == 1)
      require(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0, "head: threads");
    expected = std::move(found);
  }
}

void fuzz_sgd() {
  const size_t n_tensors = upto(5), n_groups = 1 + upto(2);
  std::vector<Exact<float>> memory;
  std::vector<SgdTensor> tensors;
  for (size_t i = 0; i < n_tensors; ++i) {
    const size_t n = upto(chance(50) ? 40000 : 100);
    for (int k = 0; k < 4; ++k) memory.push_back(normals(n));
    Exact<float>* of = &memory[4 * i];
    tensors.push_back(
        {of[0].get(), of[1].get(), of[2].get(), chance(50) ? of[3].get() : nullptr, n, upto(n_groups - 1)});
  }
  std::vector<Group> any(n_groups);
  std::vector<SgdGroup> groups;
  std::vector<int64_t> steps;
  for (const Group& one : any) groups.push_back(one.group), steps.push_back(static_cast<int64_t>(upto(20)));
  require(!sgd_step({tensors.data(), n_tensors, groups.data(), steps.data(), n_groups}, threads()).error, "sgd_step");
}

void fuzz_crop_resize() {
  const size_t n = upto(3), sz = 1 + upto(40), n_ops = upto(2);
  const bool bytes = chance(2), warped = chance(2);
  std::uniform_real_distribution<float> share;
  std::vector<Exact<uint8_t>> small;
  std::vector<Exact<float>> large;
  Exact<uint64_t> src(n);
  Exact<int64_t> shape(2 * n), size(2 * n);
  Exact<float> crop(4 * n), matrix(warped ? 6 * n : 0), numbers = normals(2 * n * n_ops);
  Exact<int64_t> pixel_ops(n_ops);
  for (size_t k = 0; k < n_ops; ++k) pixel_ops[k] = static_cast<int64_t>(PixelOp::brightness_contrast);
  for (size_t i = 0; i < n; ++i) {
    const size_t sides[] = {1 + upto(chance(2) ? 70 : 3), 1 + upto(chance(2) ? 70 : 3)},
                 count = 3 * sides[0] * sides[1];
    if (bytes) {
      small.emplace_back(count);
      for (size_t k = 0; k < count; ++k) small.back()[k] = static_cast<uint8_t>(upto(255));
      src[i] = reinterpret_cast<uintptr_t>(small.back().get());
    } else {
      large.push_back(normals(count));
      src[i] = reinterpret_cast<uintptr_t>(large.back().get());
    }
    for (size_t k = 0; k < 2; ++k) {
      const auto side = static_cast<float>(sides[k]);
      shape[2 * i + k] = static_cast<int64_t>(sides[k]);
      size[2 * i + k] = static_cast<int64_t>(warped ? 1 + upto(50) : sz);
      crop[4 * i + k] = side * (chance(2) ? 2 * share(generator) - 1 : 0);
      crop[4 * i + 2 + k] =
          crop[4 * i + k] + (2 * side - crop[4 * i + k]) * (chance(4) ? 1 : 1e-3f + share(generator) / 2);
    }
  }
  const float scale = chance(4) ? 1e6f : 3.f;
  for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = scale * (2 * share(generator) - 1);
  Floats expected;
  for (int run = 0; run < 2; ++run) {
    Exact<float> out(n * 3 * sz * sz);
    const CropResize op = {.src = src.get(),
                           .shape = shape.get(),
                           .bytes = bytes,
                           .crop = crop.get(),
                           .size = size.get(),
                           .matrix = warped ? &matrix[0] : nullptr,
                           .pixel_ops = pixel_ops.get(),
                           .numbers = numbers.get(),
                           .n = n,
                           .n_ops = n_ops,
                           .width = 2,
                           .sz = sz,
                           .top = bytes ? 255.f : 1.f,
                           .mean = {0.4f, 0.5f, 0.6f},
                           .std = {0.2f, 0.3f, 1},
                           .out = out.get()};
    require(!crop_resize(op, run == 0 ? 1 : threads()).error, "crop_resize");
    Floats found;
    for (size_t i = 0; i < out.size(); ++i) found.push_back(out[i]);
    for (const float x : found) require(std::isfinite(x), "crop_resize: a pixel is not finite");
    require(run == 0 || found == expected, "crop_resize: threads");
    expected = std::move(found);
  }
}

void fuzz_schedule() {
  const Group of;
  const Sgd sgd = sgd_at(of.group, static_cast<int64_t>(upto(1000)));
  require(sgd.momentum >= 0 && sgd.momentum < 1, "schedule: another momentum");
}

}  // namespace

int main(int argc, char** argv) {
  require(argc == 3 || argc == 4, "usage: driver N SEED [LAUNCHER]");
  const size_t inputs = std::strtoull(argv[1], nullptr, 10);
  generator.seed(std::strtoull(argv[2], nullptr, 10));
  constexpr struct {
    const char* name;
    void (*run)();
  } kLaunchers[] = {{"gather_rows", fuzz_gather}, {"dropout_mask", fuzz_dropout},    {"head", fuzz_head},
                    {"sgd_step", fuzz_sgd},       {"crop_resize", fuzz_crop_resize}, {"schedule", fuzz_schedule}};
  const char* names[] = {"baseline", "avx2", "avx512"};
  for (const auto& launcher : kLaunchers) {
    if (argc == 4 && std::strcmp(argv[3], launcher.name) != 0) continue;
    size_t done = 0;
    for (; done < inputs; ++done) {
      const char* name = names[upto(2)];
      if (use_isa(name).error && use_isa("baseline").error) return 1;
      launcher.run();
    }
    std::printf("%s: %zu inputs\n", launcher.name, done);
    std::fflush(stdout);
  }
}
