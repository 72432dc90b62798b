// Losses of one row of logits and their gradients.
#pragma once

#include "cpu/tile.h"
#include "cpu/vec.h"
#include "cpu/vector_code.h"

namespace fastclf::cpu::FASTCLF_ISA {

typedef int32_t Int __attribute__((vector_size(kLanes * 4)));

// exp(x) for x <= 0, to about 1e-7 relative; 1.6e-38 below -87. Cody and Waite's reduction, then a Taylor polynomial.
inline Vec exp_negative(Vec x) {
  const Vec floor = splat(-87.f);
  x = x < floor ? floor : x;
  constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number, which stands in the low bits
  const Vec shifted = x * kLog2e + kRound;
  const Vec n = shifted - kRound;
  const Vec r = (x - n * kLn2High) - n * kLn2Low;
  Vec p = splat(1.f / 5040);
  for (const float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f}) p = p * r + c;
  const Int power = (reinterpret_cast<Int>(shifted) - 0x4b400000 + 127) << 23;  // 2^n
  return p * reinterpret_cast<Vec>(power);
}

// log(1 + u) for 0 <= u <= 1, by log(1 + u) = 2 artanh(u / (2 + u)).
inline Vec log1p_unit(Vec u) {
  const Vec f = u / (u + 2.f), f2 = f * f;
  Vec p = splat(1.f / 17);
  for (const float c : {1.f / 15, 1.f / 13, 1.f / 11, 1.f / 9, 1.f / 7, 1.f / 5, 1.f / 3, 1.f}) p = p * f2 + c;
  return 2.f * f * p;
}

// Calls item(z, column) for every vector of the row.
template <class Item>
inline void for_columns(const LossRow& op, Item item) {
  for (size_t t = 0; t < op.tiles; ++t) {
    for (size_t j = 0; j < kTile; j += kLanes) item(op.z + t * op.stride + j, t * kTile + j);
  }
}

// With weights w, smoothing e and total weight W = sum of w: loss = (1-e) w_y (lse - z_y) + e/C sum w_c (lse - z_c),
// as torch.nn.functional.cross_entropy; its gradient is ((1-e) w_y + e/C W) softmax_c - e/C w_c - (1-e) w_y [c = y].
inline float nll_row(const LossRow& op, size_t y, float weight_sum, float mean) {
  Vec top = splat(-3e38f), sum = {}, weighted = {};
  for_columns(op, [&](float* z, size_t) { top = load(z) < top ? top : load(z); });
  float peak = top[0];
  for (size_t lane = 1; lane < kLanes; ++lane) peak = top[lane] < peak ? peak : top[lane];
  const float target = op.z[y / kTile * op.stride + y % kTile] - peak;
  for_columns(op, [&](float* z, size_t c) {
    const Vec shifted = load(z) - peak;
    weighted += load(op.weight + c) * shifted;
    const Vec e = exp_negative(shifted);
    sum += e;
    store(z, e);
  });
  const float total = add_lanes(sum), log_total = __builtin_logf(total);
  const float own = (1 - op.smoothing) * op.weight[y] * mean, even = op.smoothing / op.classes * mean;
  const float share = (own + even * weight_sum) / total;
  for_columns(op, [&](float* z, size_t c) { store(z, share * load(z) - even * load(op.weight + c)); });
  op.z[y / kTile * op.stride + y % kTile] -= own;
  return own * (log_total - target) + even * (weight_sum * log_total - add_lanes(weighted));
}

// w_c (max(z, 0) - z t + log(1 + exp(-|z|))) with t = y (1-s) + s/2; its gradient is w_c (sigmoid(z) - t).
inline float bce_row(const LossRow& op, const float* y, float mean) {
  Vec loss = {};
  const auto classes = static_cast<size_t>(op.classes);
  for_columns(op, [&](float* at, size_t c) {
    Vec t = {};
    if (c + kLanes <= classes) {
      t = load(y + c);
    } else {
      for (size_t lane = 0; c + lane < classes; ++lane) t[lane] = y[c + lane];
    }
    t = t * (1 - op.smoothing) + op.smoothing / 2;
    const Vec z = load(at), zero = {}, size = z < zero ? -z : z, e = exp_negative(-size),
              w = load(op.weight + c) * mean;
    loss += w * ((z < zero ? zero : z) - z * t + log1p_unit(e));
    store(at, w * ((z < zero ? e : 1.f - zero) / (1.f + e) - t));
  });
  return add_lanes(loss);
}

}  // namespace fastclf::cpu::FASTCLF_ISA
