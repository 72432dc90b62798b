#include <algorithm>
#include <vector>

#include "cpu/launchers.h"
#include "cpu/pool.h"
#include "cpu/vector_code.h"

namespace fastclf::cpu {

namespace {

constexpr size_t kChunk = size_t{1} << 15;  // elements of one item: they stay in the second-level cache

size_t chunks_of(const SgdTensor& tensor) { return (tensor.n + kChunk - 1) / kChunk; }

}  // namespace

Status sgd_step(const SgdStep& op, int threads) {
  const VectorCode& code = vector_code();
  std::vector<Sgd> rates;
  for (size_t i = 0; i < op.n_groups; ++i) rates.push_back(sgd_at(op.groups[i], op.steps[i]));
  std::vector<size_t> first = {0};  // each tensor's first item
  for (size_t i = 0; i < op.n_tensors; ++i) first.push_back(first.back() + chunks_of(op.tensors[i]));
  run_team(first.back() < 2 ? 1 : threads, [&](Team& team, unsigned) noexcept {
    team.for_each(first.back(), [&](size_t item) {
      const auto after = std::upper_bound(first.begin(), first.end(), item);
      const auto i = static_cast<size_t>(after - first.begin()) - 1;
      const SgdTensor& t = op.tensors[i];
      const size_t begin = (item - first[i]) * kChunk, n = std::min<size_t>(kChunk, t.n - begin);
      code.update(t.param + begin, t.velocity + begin, t.grad + begin, n, rates[t.group]);
      if (t.average) code.follow(t.average + begin, t.param + begin, n, static_cast<float>(1 - op.groups[t.group].ema));
    });
  });
  return {};
}

}  // namespace fastclf::cpu
