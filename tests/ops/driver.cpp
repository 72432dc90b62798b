// Runs every launcher on memory of exact size, on one to three threads, and compares the results bit by bit.
// Built with AddressSanitizer and with ThreadSanitizer by test_sanitizers.py: the sanitizers are the test.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "cpu/launchers.h"

using namespace fastclf;
using namespace fastclf::cpu;

namespace {

using Floats = std::vector<float>;
std::mt19937 generator(7);

Floats normals(size_t n, float mean = 0, float deviation = 1) {
  std::normal_distribution<float> draw(mean, deviation);
  Floats x(n);
  for (float& v : x) v = draw(generator);
  return x;
}

std::vector<int64_t> indices(size_t n, size_t below) {
  std::vector<int64_t> x(n);
  for (int64_t& v : x) v = static_cast<int64_t>(generator() % below);
  return x;
}

void require(bool fine, const char* what) {
  if (fine) return;
  std::fprintf(stderr, "driver: %s\n", what);
  std::exit(1);
}

struct Head {
  Head(const std::vector<size_t>& widths, double p) {
    for (size_t i = 0; i + 1 < widths.size(); ++i) {
      const size_t n_in = widths[i], n_out = widths[i + 1];
      tensors.push_back({normals(n_in * n_out, 0, 0.1f), normals(n_out), normals(n_in, 1, 0.1f), normals(n_in),
                         Floats(n_in, 0.f), Floats(n_in, 1.f)});
      shapes.push_back({n_in, n_out, p});
    }
  }

  std::vector<HeadLayer> layers() {
    std::vector<HeadLayer> out;
    for (size_t i = 0; i < tensors.size(); ++i) {
      auto& t = tensors[i];
      out.push_back({shapes[i].n_in, shapes[i].n_out, shapes[i].p, 1e-5f, 0.1f, t[0].data(), t[1].data(), t[2].data(),
                     t[3].data(), t[4].data(), t[5].data()});
    }
    return out;
  }

  struct Shape {
    size_t n_in, n_out;
    double p;
  };
  std::vector<std::vector<Floats>> tensors;
  std::vector<Shape> shapes;
};

struct Options {
  std::vector<size_t> widths;
  double p = 0.3, clip = 0;
  Loss loss = Loss::nll;
  bool half = true, frozen_bn = false;
};

constexpr size_t kRows = 90, kBatch = 37, kSteps = 4;

// All tensors, the losses and the logits after some steps.
Floats run_head(Head head, const Options& o, const std::vector<uint16_t>& halves, const Floats& rows,
                const void* targets, const std::vector<int64_t>& order, int threads) {
  const std::vector<HeadLayer> layers = head.layers();
  const Floats weight(o.widths.back(), 1.f);
  const SgdGroup group = {0.1, 0.9, 0.01, 0, 0, {.kind = ScheduleKind::cosine, .nb = 3, .cycle_mult = 2}};
  const void* source = o.half ? static_cast<const void*>(halves.data()) : rows.data();
  const DType dtype = o.half ? DType::float16 : DType::float32;
  HeadEngine* engine = head_create(
      {layers.data(), layers.size(), kBatch, source, dtype, o.loss, targets, weight.data(), 0.1f, &group, o.clip, 5});
  Floats losses(kSteps);
  require(!head_train({&engine, 1, order.data(), order.data(), order.size(), kBatch, 2, o.frozen_bn, losses.data()},
                      threads)
               .error,
          "head_train");
  head_destroy(engine);
  Floats logits(order.size() * o.widths.back());
  require(
      !head_predict({layers.data(), layers.size(), source, dtype, order.data(), order.size(), logits.data()}, threads)
           .error,
      "head_predict");
  for (const auto& layer : head.tensors) {
    for (const Floats& t : layer) losses.insert(losses.end(), t.begin(), t.end());
  }
  losses.insert(losses.end(), logits.begin(), logits.end());
  for (const float v : losses) require(std::isfinite(v), "a result is not finite");
  return losses;
}

void test_head(const Options& o) {
  const size_t columns = o.widths.front(), classes = o.widths.back();
  std::vector<uint16_t> halves(kRows * columns);
  for (uint16_t& h : halves) h = static_cast<uint16_t>(0x3000 + generator() % 0x1000);  // 0.125 .. 2
  const Floats rows = normals(kRows * columns);
  const std::vector<int64_t> labels = indices(kRows, classes);
  Floats several(kRows * classes);
  for (float& y : several) y = static_cast<float>(generator() % 2);
  const void* targets = o.loss == Loss::nll ? static_cast<const void*>(labels.data()) : several.data();
  const Head head(o.widths, o.p);
  const std::vector<int64_t> order = indices(kBatch * (kSteps - 1) + 5, kRows);
  const Floats first = run_head(head, o, halves, rows, targets, order, 1);
  for (const int threads : {2, 3}) {
    require(run_head(head, o, halves, rows, targets, order, threads) == first, "threads change the head's results");
  }
  Floats beside[2];  // engines of one thread each, at the same time, on the same rows
  std::vector<std::thread> callers;
  for (Floats& result : beside) {
    callers.emplace_back([&] { result = run_head(head, o, halves, rows, targets, order, 1); });
  }
  for (std::thread& caller : callers) caller.join();
  require(beside[0] == first && beside[1] == first, "an engine beside another changes its results");
}

// Heads of other widths, dropout, rates and clipping on the same batches, against each alone.
void test_heads_together() {
  constexpr size_t kColumns = 70, kHeads = 3;
  const std::vector<size_t> widths[kHeads] = {{kColumns, 66, 3}, {kColumns, 3}, {kColumns, 9, 70, 3}};
  const Floats rows = normals(kRows * kColumns), weight(3, 1.f);
  const std::vector<int64_t> labels = indices(kRows, 3), order = indices(kBatch * (kSteps - 1) + 5, kRows);
  std::vector<Head> heads;
  for (const auto& of : widths) heads.emplace_back(of, 0.3);
  const auto train = [&](std::vector<Head> of, size_t first, size_t n, int threads) {
    std::vector<HeadEngine*> engines;
    for (size_t i = first; i < first + n; ++i) {
      const std::vector<HeadLayer> layers = of[i].layers();
      const SgdGroup group = {0.1 / static_cast<double>(i + 1), 0.9, 0.01, 0, 0, {}};
      engines.push_back(head_create({layers.data(), layers.size(), kBatch, rows.data(), DType::float32, Loss::nll,
                                     labels.data(), weight.data(), 0.1f, &group, i == 1 ? 0.1 : 0.0, 5}));
    }
    Floats found(n * kSteps);
    require(!head_train({engines.data(), n, order.data(), order.data(), order.size(), kBatch, 2, false, found.data()},
                        threads)
                 .error,
            "head_train");
    for (HeadEngine* engine : engines) head_destroy(engine);
    for (size_t i = first; i < first + n; ++i) {
      for (const auto& layer : of[i].tensors) {
        for (const Floats& t : layer) found.insert(found.end(), t.begin(), t.end());
      }
    }
    return found;
  };
  Floats losses, tensors;
  for (size_t i = 0; i < kHeads; ++i) {
    const Floats alone = train(heads, i, 1, 1);
    losses.insert(losses.end(), alone.begin(), alone.begin() + kSteps);
    tensors.insert(tensors.end(), alone.begin() + kSteps, alone.end());
  }
  losses.insert(losses.end(), tensors.begin(), tensors.end());
  for (const int threads : {1, 2, 3}) {
    require(train(heads, 0, kHeads, threads) == losses, "a head among others is not what it is alone");
  }
}

void test_rows() {
  const Floats src = normals(300 * 501);
  const std::vector<int64_t> index = indices(211, 300);
  std::vector<Floats> results;
  for (const int threads : {1, 2, 3}) {
    Floats out(211 * 501), mask(33 * 77);
    require(!gather_rows({src.data(), DType::float32, index.data(), out.data(), 211, 501}, threads).error,
            "gather_rows");
    require(!dropout_mask({3, 1, 2, 0.4, mask.data(), 33, 77}, threads).error, "dropout_mask");
    out.insert(out.end(), mask.begin(), mask.end());
    results.push_back(out);
  }
  require(results[0] == results[1] && results[0] == results[2], "threads change the rows");
}

void test_sgd() {
  std::vector<Floats> results;
  const Floats start = normals(70001), gradient = normals(70001);
  for (const int threads : {1, 2, 3}) {
    Floats p = start, m(start.size()), average = start;
    const SgdTensor tensors[] = {{p.data(), gradient.data(), m.data(), average.data(), 70000, 0},
                                 {p.data() + 70000, gradient.data(), m.data() + 70000, nullptr, 1, 1}};
    const SgdGroup groups[] = {{0.1, 0.9, 0.01, 0.9, 0, {.kind = ScheduleKind::cosine, .nb = 10, .cycle_mult = 1}},
                               {0.1, 0.9, 0.01, 0, 1, {}}};
    const int64_t steps[] = {4, 4};
    require(!sgd_step({tensors, 2, groups, steps, 2}, threads).error, "sgd_step");
    p.insert(p.end(), average.begin(), average.end());
    results.push_back(p);
  }
  require(results[0] == results[1] && results[0] == results[2], "threads change the optimizer's step");
}

}  // namespace

int main() {
  for (const char* name : {"baseline", "avx2", "avx512"}) {
    if (use_isa(name).error) continue;
    test_head({.widths = {70, 66, 3}});
    test_head({.widths = {9, 70, 129}});
    test_head({.widths = {9, 70, 129}, .clip = 0.1});
    test_head({.widths = {64, 20, 40, 2}, .p = 0, .clip = 0.1});
    test_head({.widths = {5, 130}, .loss = Loss::bce, .half = false});
    test_head({.widths = {33, 17, 9}, .half = false, .frozen_bn = true});
    test_heads_together();
    test_rows();
    test_sgd();
    std::printf("%s\n", isa());
  }
}
