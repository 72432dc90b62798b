#include <algorithm>
#include <vector>

#include "api.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "device/schedule.h"

namespace fastclf {

namespace {

constexpr size_t kChunk = size_t{1} << 15;  // elements of one item: they stay in the second-level cache

size_t chunks_of(const SgdrTensor& tensor) { return (tensor.n + kChunk - 1) / kChunk; }

}  // namespace

Status sgdr_step(const SgdrStep& op, int threads) {
  const Kernels& k = kernels();
  std::vector<Sgd> rates;
  for (size_t i = 0; i < op.n_groups; ++i) {
    const SgdrGroup& g = op.groups[i];
    rates.push_back(
        sgd_at({g.schedule}, static_cast<int64_t>(g.step), g.lr, g.momentum, g.weight_decay, g.decoupled != 0));
  }
  std::vector<size_t> first = {0};  // each tensor's first item
  for (size_t i = 0; i < op.n_tensors; ++i) first.push_back(first.back() + chunks_of(op.tensors[i]));
  run_team(first.back() < 2 ? 1 : threads, [&](Team& team, unsigned) {
    team.for_each(first.back(), [&](size_t item) {
      const auto after = std::upper_bound(first.begin(), first.end(), item);
      const auto i = static_cast<size_t>(after - first.begin()) - 1;
      const SgdrTensor& t = op.tensors[i];
      const size_t begin = (item - first[i]) * kChunk, n = std::min<size_t>(kChunk, t.n - begin);
      k.update(t.param + begin, t.velocity + begin, t.grad + begin, n, rates[t.group]);
      if (t.average) k.follow(t.average + begin, t.param + begin, n, static_cast<float>(1 - op.groups[t.group].ema));
    });
  });
  return {};
}

void schedule_values(const double* schedule, int64_t first, size_t n, double own, double* factor, double* momentum) {
  for (size_t i = 0; i < n; ++i) {
    factor[i] = schedule_factor({schedule}, first + static_cast<int64_t>(i));
    momentum[i] = schedule_momentum({schedule}, first + static_cast<int64_t>(i), own);
  }
}

}  // namespace fastclf
