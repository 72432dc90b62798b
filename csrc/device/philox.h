// Philox4x32-10, the counter generator behind every random number (Salmon et al., "Parallel random numbers: as
// easy as 1, 2, 3", SC 2011). The constants; the vector form is in cpu/philox.h.
#pragma once

#include <cstdint>

namespace fastclf {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;  // multipliers
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;  // key increments per round
constexpr int kPhiloxRounds = 10;

// A mask keeps an element when its random word >= drop_below(p), for 0 <= p < 1.
constexpr uint64_t drop_below(double p) { return static_cast<uint64_t>(p * 4294967296.0 + 0.5); }

}  // namespace fastclf
