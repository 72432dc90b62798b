// The one matrix product of the engine, and what may follow it in registers.
//
// Every product of training has a sparse operand: dropout zeroes a share p of a layer's inputs, ReLU about half of its
// gradients. So a product is written as sums of panel rows, chosen by the bits of a word: 64 columns of the result stay
// in registers while the rows that take part, and only those, are added. Work shrinks with the zeros; with no zeros the
// rate is nine tenths of a dense kernel's (one load per multiply-add, which is what the load ports can do).
#pragma once

#include "cpu/tile.h"
#include "cpu/vec.h"
#include "cpu/vector_code.h"

namespace fastclf::cpu::FASTCLF_ISA {

constexpr size_t kBlockVecs = kTile / kLanes < 8 ? kTile / kLanes : 8;  // accumulators that fit 16 registers

// The number of the lowest set bit, which is cleared.
inline size_t take_bit(uint64_t& bits) {
  const auto k = static_cast<size_t>(__builtin_ctzll(bits));
  bits &= bits - 1;
  return k;
}

// acc += coef[k] * panel[k, :] for the lowest set bit k, which is cleared.
template <size_t kVecs>
inline void add_row(uint64_t& bits, const float* coef, const float* panel, Vec (&acc)[kVecs]) {
  const size_t k = take_bit(bits);
  const float* row = panel + k * kTile;
  asm("" : "+r"(row));  // one register with offsets: base + index would cost an operation more per multiply-add
  const Vec c = splat(coef[k]);
  for (size_t j = 0; j < kVecs; ++j) acc[j] += c * load(row + j * kLanes);
}

// acc += sum of coef[k] * panel[k, :] over the set bits k.
template <size_t kVecs>
inline void add_rows(uint64_t bits, const float* coef, const float* panel, Vec (&acc)[kVecs]) {
  // Where few sums would wait for their own last addition (4 to 5 cycles, at two a cycle), a second set of them.
  if constexpr (kVecs < 8) {
    Vec other[kVecs] = {};
    for (; bits & (bits - 1); add_row(bits, coef, panel, other)) add_row(bits, coef, panel, acc);
    for (size_t j = 0; j < kVecs; ++j) acc[j] += other[j];
  }
  while (bits) add_row(bits, coef, panel, acc);
}

// Calls done(place, acc) with the finished sums of kVecs vectors of every row, which start at out + place.
template <size_t kVecs, class Done>
void product_columns(const Product& op, size_t column, const Done& done) {
  const Product p = op;  // its fields cannot be changed by the stores of done
  for (size_t r = 0; r < p.rows; ++r) {
    Vec acc[kVecs] = {};
    if (!p.first) {
      for (size_t j = 0; j < kVecs; ++j) acc[j] = load(p.out + r * kTile + column + j * kLanes);
    }
    add_rows<kVecs>(p.bits[r], p.coef + r * kTile, p.panel + column, acc);
    done(r * kTile + column, acc);
  }
}

template <class Done>
void product_then(const Product& op, const Done& done) {
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

// Reads and writes what comes from memory once: fetching half a kilobyte ahead is worth a seventh of the time.
inline void update(float* w, float* m, const float* g, size_t n, const Sgd& sgd) {
  constexpr size_t kAhead = 128;
  size_t i = 0;
  for (; i + kLine <= n; i += kLine) {
    __builtin_prefetch(w + i + kAhead, 1);
    __builtin_prefetch(m + i + kAhead, 1);
    __builtin_prefetch(g + i + kAhead, 0);
    for (size_t j = i; j < i + kLine; j += kLanes) step(w + j, m + j, load(g + j), sgd);
  }
  for (; i < n; ++i) {
    m[i] = sgd.momentum * m[i] + (sgd.scale * g[i] + sgd.decay * w[i]);
    w[i] = sgd.shrink * w[i] - sgd.rate * m[i];
  }
}

inline void follow(float* average, const float* w, size_t n, float share) {
  for (size_t i = 0; i < n; ++i) average[i] += share * (w[i] - average[i]);
}

// Both blocks together fill the first-level cache, so a whole line of dst is written at a time.
inline void transpose(const float* src, float* dst) {
  typedef float Quad __attribute__((vector_size(16)));
  for (size_t r = 0; r < kTile; r += 16) {
    for (size_t c = 0; c < kTile; c += 4) {
      for (size_t q = r; q < r + 16; q += 4) {
        Quad in[4];
        for (size_t k = 0; k < 4; ++k) __builtin_memcpy(&in[k], src + (q + k) * kTile + c, sizeof in[k]);
        const Quad a = __builtin_shufflevector(in[0], in[1], 0, 4, 1, 5),
                   b = __builtin_shufflevector(in[0], in[1], 2, 6, 3, 7);
        const Quad d = __builtin_shufflevector(in[2], in[3], 0, 4, 1, 5),
                   e = __builtin_shufflevector(in[2], in[3], 2, 6, 3, 7);
        const Quad out[4] = {__builtin_shufflevector(a, d, 0, 1, 4, 5), __builtin_shufflevector(a, d, 2, 3, 6, 7),
                             __builtin_shufflevector(b, e, 0, 1, 4, 5), __builtin_shufflevector(b, e, 2, 3, 6, 7)};
        for (size_t k = 0; k < 4; ++k) __builtin_memcpy(dst + (c + k) * kTile + q, &out[k], sizeof out[k]);
      }
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

}  // namespace fastclf::cpu::FASTCLF_ISA
