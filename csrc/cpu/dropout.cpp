#include <algorithm>

#include "cpu/launchers.h"
#include "cpu/pool.h"
#include "cpu/vector_code.h"
#include "device/philox.h"

namespace fastclf::cpu {

namespace {

constexpr size_t kRowsPerItem = 16;

}  // namespace

Status dropout_mask(const DropoutMask& op, int threads) {
  const VectorCode& code = vector_code();
  const float scale = static_cast<float>(1 / (1 - op.p));
  const size_t items = (op.rows + kRowsPerItem - 1) / kRowsPerItem;
  run_team(items < 2 ? 1 : threads, [&](Team& team, unsigned) noexcept {
    team.for_each(items, [&](size_t item) {
      for (size_t r = item * kRowsPerItem; r < std::min(op.rows, (item + 1) * kRowsPerItem); ++r) {
        const DropoutRow row = {op.seed, op.step, op.layer, static_cast<uint32_t>(r), drop_below(op.p)};
        float* out = op.out + r * op.cols;
        for (size_t first = 0; first < op.cols; first += 64) {
          const uint64_t bits = code.keep_bits(row, static_cast<uint32_t>(first / 64));
          for (size_t j = first; j < std::min(op.cols, first + 64); ++j)
            out[j] = (bits >> (j - first)) & 1 ? scale : 0.f;
        }
      }
    });
  });
  return {};
}

}  // namespace fastclf::cpu
