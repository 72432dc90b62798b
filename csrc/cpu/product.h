// The one matrix product of the engine, and what may follow it in registers.
//
// Every product of training has a sparse operand: dropout zeroes a share p of a layer's inputs, ReLU about half of its
// gradients. So a product is written as sums of panel rows, chosen by the bits of a word: 64 columns of the result stay
// in registers while the rows that take part, and only those, are added. Work shrinks with the zeros; with no zeros the
// rate is nine tenths of a dense kernel's (one load per multiply-add, which is what the load ports can do).
#pragma once

#include "cpu/kernels.h"
#include "cpu/tile.h"
#include "cpu/vec.h"

namespace fastclf::FASTCLF_ISA {

constexpr size_t kBlockVecs = kTile / kLanes < 8 ? kTile / kLanes : 8;  // accumulators that fit 16 registers

// The number of the lowest set bit, which is cleared.
inline size_t take_bit(uint64_t& bits) {
  const auto k = static_cast<size_t>(__builtin_ctzll(bits));
  bits &= bits - 1;
  return k;
}

// acc += sum of coef[k] * panel[k, :] over the set bits k.
template <size_t kVecs>
inline void add_rows(uint64_t bits, const float* coef, const float* panel, Vec (&acc)[kVecs]) {
  // Several sums at once where one would wait for its own last addition (4 to 5 cycles, two additions per cycle).
  constexpr size_t kWays = kVecs >= 8 ? 1 : kVecs >= 4 ? 2 : 4;
  Vec sum[kWays][kVecs] = {};
  const auto add = [&](size_t way) {
    const size_t k = take_bit(bits);
    const Vec c = splat(coef[k]);
    for (size_t j = 0; j < kVecs; ++j) sum[way][j] += c * load(panel + k * kTile + j * kLanes);
  };
  for (size_t j = 0; j < kVecs; ++j) sum[0][j] = acc[j];
  auto left = static_cast<size_t>(__builtin_popcountll(bits));
  for (; left >= kWays; left -= kWays) {
    for (size_t way = 0; way < kWays; ++way) add(way);
  }
  for (; left > 0; --left) add(0);
  for (size_t way = 1; way < kWays; ++way) {
    for (size_t j = 0; j < kVecs; ++j) sum[0][j] += sum[way][j];
  }
  for (size_t j = 0; j < kVecs; ++j) acc[j] = sum[0][j];
}

// Calls done(row, column, acc) with the finished sums of kVecs vectors, for every row.
template <size_t kVecs, class Done>
void product_columns(const Product& op, size_t column, Done done) {
  for (size_t r = 0; r < op.rows; ++r) {
    Vec acc[kVecs] = {};
    if (!op.first) {
      for (size_t j = 0; j < kVecs; ++j) acc[j] = load(op.out + r * kTile + column + j * kLanes);
    }
    add_rows<kVecs>(op.bits[r], op.coef + r * kTile, op.panel + column, acc);
    done(r * kTile + column, acc);
  }
}

template <class Done>
void product_then(const Product& op, Done done) {
  for (size_t column = 0; column < op.cols; column += kBlockVecs * kLanes) {
    const size_t left = op.cols - column;
    if (left <= kLanes) {
      product_columns<1>(op, column, done);
    } else if (left <= 2 * kLanes) {
      product_columns<2>(op, column, done);
    } else if (kBlockVecs > 4 && left <= 4 * kLanes) {
      product_columns<4>(op, column, done);
    } else {
      product_columns<kBlockVecs>(op, column, done);
    }
  }
}

inline void product(const Product& op) {
  product_then(op, [&](size_t at, const auto& acc) {
    for (size_t j = 0; j < sizeof acc / sizeof acc[0]; ++j) store(op.out + at + j * kLanes, acc[j]);
  });
}

inline void step(float* w, float* m, Vec g, const Sgd& sgd) {
  const Vec weight = load(w), velocity = sgd.momentum * load(m) + (sgd.scale * g + sgd.decay * weight);
  store(m, velocity);
  store(w, sgd.shrink * weight - sgd.rate * velocity);
}

inline void product_update(const Product& op, float* w, float* m, const Sgd& sgd) {
  product_then(op, [&](size_t at, const auto& acc) {
    for (size_t j = 0; j < sizeof acc / sizeof acc[0]; ++j) step(w + at + j * kLanes, m + at + j * kLanes, acc[j], sgd);
  });
}

inline void update(float* w, float* m, const float* g, size_t n, const Sgd& sgd) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) step(w + i, m + i, load(g + i), sgd);
  for (; i < n; ++i) {
    m[i] = sgd.momentum * m[i] + (sgd.scale * g[i] + sgd.decay * w[i]);
    w[i] = sgd.shrink * w[i] - sgd.rate * m[i];
  }
}

inline void transpose(const float* src, float* dst) {
  typedef float Quad __attribute__((vector_size(16)));
  const auto quad = [](const float* p) {
    Quad q;
    __builtin_memcpy(&q, p, sizeof q);
    return q;
  };
  for (size_t c = 0; c < kTile; c += 4) {
    for (size_t r = 0; r < kTile; r += 4) {
      const float* p = src + r * kTile + c;
      const Quad a = quad(p), b = quad(p + kTile), d = quad(p + 2 * kTile), e = quad(p + 3 * kTile);
      const Quad ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Quad de0 = __builtin_shufflevector(d, e, 0, 4, 1, 5), de1 = __builtin_shufflevector(d, e, 2, 6, 3, 7);
      const Quad out[4] = {__builtin_shufflevector(ab0, de0, 0, 1, 4, 5), __builtin_shufflevector(ab0, de0, 2, 3, 6, 7),
                           __builtin_shufflevector(ab1, de1, 0, 1, 4, 5),
                           __builtin_shufflevector(ab1, de1, 2, 3, 6, 7)};
      for (size_t k = 0; k < 4; ++k) __builtin_memcpy(dst + (c + k) * kTile + r, &out[k], sizeof out[k]);
    }
  }
}

inline float sum_of_squares(const float* x, size_t n) {
  Vec sum[4] = {};
  size_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (size_t j = 0; j < 4; ++j) sum[j] += load(x + i + j * kLanes) * load(x + i + j * kLanes);
  }
  float total = add_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; i < n; ++i) total += x[i] * x[i];
  return total;
}

}  // namespace fastclf::FASTCLF_ISA
