#include <algorithm>
#include <cstring>

#include "cpu/launchers.h"
#include "cpu/pool.h"
#include "cpu/vector_code.h"

namespace fastclf::cpu {

namespace {

constexpr size_t kChunkBytes = size_t{1} << 16;  // what one item copies; less than two are not worth a second thread

}  // namespace

Status gather_rows(const GatherRows& op, int threads) {
  if (op.width == 0) return {};  // memcpy of no bytes may not be given null pointers
  const size_t item_bytes = op.dtype == DType::float16 ? 2 : 4, row_bytes = op.width * item_bytes;
  const size_t chunk = std::max<size_t>(1, kChunkBytes / std::max<size_t>(1, row_bytes));
  const size_t chunks = (op.rows + chunk - 1) / chunk;
  const VectorCode& code = vector_code();
  run_team(chunks < 2 ? 1 : threads, [&](Team& team, unsigned) noexcept {
    team.for_each(chunks, [&](size_t c) {
      for (size_t r = c * chunk; r < std::min(op.rows, (c + 1) * chunk); ++r) {
        const char* src = static_cast<const char*>(op.src) + static_cast<size_t>(op.index[r]) * row_bytes;
        float* dst = op.out + r * op.width;
        if (op.dtype == DType::float16) {
          code.widen(reinterpret_cast<const uint16_t*>(src), dst, op.width);
        } else {
          std::memcpy(dst, src, row_bytes);
        }
      }
    });
  });
  return {};
}

}  // namespace fastclf::cpu
