// Philox4x32-10 for 16 counters at once: the 64 words that decide one 64-bit word of a dropout mask.
#pragma once

#include "cpu/vec.h"
#include "cpu/vector_code.h"
#include "device/philox.h"

namespace fastclf::cpu::FASTCLF_ISA {

constexpr size_t kCounters = kLanes / 2;  // a 64-bit lane holds one 32-bit word, so that products keep both halves

// Bit 4*c + l of the result is set when word l of counter `first` + c is >= drop_below, c < 16.
inline uint64_t keep_bits(const DropoutRow& row, uint32_t word) {
  I64 bits = {};
  for (size_t c = 0; c < 16; c += kCounters) {
    U64 x0, x1 = U64{} + row.row, x2 = U64{} + row.layer, x3 = U64{} + row.step;
    I64 weight;
    for (size_t lane = 0; lane < kCounters; ++lane) {
      x0[lane] = uint64_t{word} * 16 + c + lane;
      weight[lane] = int64_t{1} << ((c + lane) * 4);  // bit 60 at most before the shifts by l below
    }
    uint32_t k0 = static_cast<uint32_t>(row.seed), k1 = static_cast<uint32_t>(row.seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
      const U64 p0 = multiply_low(x0, kPhiloxM0), p1 = multiply_low(x2, kPhiloxM1);
      x0 = (p1 >> 32) ^ x1 ^ k0;
      x1 = p1;  // the high halves hold rubbish from here on; multiply_low and the comparison ignore them
      x2 = (p0 >> 32) ^ x3 ^ k1;
      x3 = p0;
    }
    const auto keep = [&](U64 x) {
      return reinterpret_cast<I64>(x & 0xffffffffu) >= static_cast<int64_t>(row.drop_below);
    };
    bits |= (keep(x0) & weight) | (keep(x1) & (weight << 1)) | (keep(x2) & (weight << 2)) | (keep(x3) & (weight << 3));
  }
  uint64_t out = 0;
  for (size_t lane = 0; lane < kCounters; ++lane) out |= static_cast<uint64_t>(bits[lane]);
  return out;
}

}  // namespace fastclf::cpu::FASTCLF_ISA
