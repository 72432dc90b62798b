// BatchNorm, dropout and ReLU of one tile, forward and backward.
#pragma once

#include "cpu/tile.h"
#include "cpu/vec.h"
#include "cpu/vector_code.h"

namespace fastclf::cpu::FASTCLF_ISA {

constexpr size_t kTileVecs = kTile / kLanes;

// One row of 64 columns in registers, or a running sum of such rows.
struct Row {
  Vec v[kTileVecs];
};

inline Row load_row(const float* p) {
  Row row;
  for (size_t j = 0; j < kTileVecs; ++j) row.v[j] = load(p + j * kLanes);
  return row;
}

inline void store_row(float* p, const Row& row) {
  for (size_t j = 0; j < kTileVecs; ++j) store(p + j * kLanes, row.v[j]);
}

// The sum of term(r, j), one vector of row r, over all rows: in blocks of 64 rows, so that the rounding error grows
// with the number of blocks and not with the number of rows.
template <class Term>
inline Row sum_rows(size_t rows, Term term) {
  Row total = {};
  for (size_t first = 0; first < rows; first += kTile) {
    Row sum = {};
    for (size_t r = first; r < rows && r < first + kTile; ++r) {
      for (size_t j = 0; j < kTileVecs; ++j) sum.v[j] += term(r, j);
    }
    for (size_t j = 0; j < kTileVecs; ++j) total.v[j] += sum.v[j];
  }
  return total;
}

inline void gather_tile(const GatherTile& op) {
  const size_t item = op.half ? 2 : 4;
  const char* base = static_cast<const char*>(op.src) + op.first * item;
  for (size_t b = 0; b < op.ahead_rows; ++b) {
    const char* row = base + static_cast<size_t>(op.ahead[b]) * op.width * item;
    for (size_t line = 0; line < op.cols * item; line += 64) __builtin_prefetch(row + line, 0, 2);
  }
  char padded[kTile * 4] = {};
  for (size_t b = 0; b < op.rows; ++b) {
    const char* row = base + static_cast<size_t>(op.index[b]) * op.width * item;
    if (op.cols < kTile) {
      __builtin_memcpy(padded, row, op.cols * item);
      row = padded;
    }
    float* out = op.out + b * kTile;
    for (size_t j = 0; j < kTile; j += kLanes) {
      store(out + j, op.half ? load_half(reinterpret_cast<const uint16_t*>(row) + j)
                             : load(reinterpret_cast<const float*>(row) + j));
    }
  }
}

inline void moments(const float* x, size_t rows, float* mean, float* variance) {
  const float share = 1.f / static_cast<float>(rows);
  Row mu = sum_rows(rows, [&](size_t r, size_t j) { return load(x + r * kTile + j * kLanes); });
  for (Vec& v : mu.v) v *= share;
  Row var = sum_rows(rows, [&](size_t r, size_t j) {
    const Vec centred = load(x + r * kTile + j * kLanes) - mu.v[j];
    return centred * centred;
  });
  for (Vec& v : var.v) v *= share;
  store_row(mean, mu);
  store_row(variance, var);
}

inline void normalise(const Normalise& op) {
  for (size_t j = 0; j < kTile; j += kLanes) {
    const Vec gamma = load(op.gamma + j) * op.scale, beta = load(op.beta + j) * op.scale;
    const auto operand = [&](size_t r, Vec x) {
      store(op.operand + r * kTile + j, where(op.keep[r] >> j, gamma * x + beta));
    };
    if (!op.mean) {
      for (size_t r = 0; r < op.rows; ++r) operand(r, load(op.x + r * kTile + j));
      continue;
    }
    const Vec mean = load(op.mean + j), rstd = load(op.rstd + j);
    for (size_t r = 0; r < op.rows; ++r) {
      const Vec x = (load(op.x + r * kTile + j) - mean) * rstd;
      store(op.x + r * kTile + j, x);
      operand(r, x);
    }
  }
}

inline void bias_relu(float* z, const float* bias, uint64_t* active, size_t rows) {
  const Row b = load_row(bias);
  for (size_t r = 0; r < rows; ++r) {
    uint64_t bits = 0;
    for (size_t j = 0; j < kTileVecs; ++j) {
      const Vec x = load(z + r * kTile + j * kLanes) + b.v[j];
      const uint64_t positive = positive_lanes(x);
      bits |= positive << (j * kLanes);
      store(z + r * kTile + j * kLanes, where(positive, x));
    }
    active[r] = bits;
  }
}

inline void add_bias(float* z, const float* bias, size_t rows) {
  const Row b = load_row(bias);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t j = 0; j < kTileVecs; ++j) store(z + r * kTile + j * kLanes, load(z + r * kTile + j * kLanes) + b.v[j]);
  }
}

inline void column_sums(const float* z, size_t rows, float* out) {
  store_row(out, sum_rows(rows, [&](size_t r, size_t j) { return load(z + r * kTile + j * kLanes); }));
}

inline void affine_gradient(float* g, const float* xhat, const uint64_t* keep, float scale, size_t rows, float* dgamma,
                            float* dbeta) {
  for (size_t r = 0; r < rows; ++r) {
    for (size_t j = 0; j < kTile; j += kLanes)
      store(g + r * kTile + j, where(keep[r] >> j, load(g + r * kTile + j) * scale));
  }
  column_sums(g, rows, dbeta);
  store_row(dgamma, sum_rows(rows, [&](size_t r, size_t j) {
              return load(g + r * kTile + j * kLanes) * load(xhat + r * kTile + j * kLanes);
            }));
}

inline void input_gradient(float* g, const float* xhat, const uint64_t* active, const float* abc, size_t rows,
                           float* sum) {
  for (size_t j = 0; j < kTile; j += kLanes) {
    const Vec a = load(abc + j), b = load(abc + kTile + j), c = load(abc + 2 * kTile + j);
    for (size_t r = 0; r < rows; ++r) {
      float* at = g + r * kTile + j;
      store(at, where(active[r] >> j, a * load(at) - b - c * load(xhat + r * kTile + j)));
    }
  }
  column_sums(g, rows, sum);
}

}  // namespace fastclf::cpu::FASTCLF_ISA
