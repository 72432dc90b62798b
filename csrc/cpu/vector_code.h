// The vector code: a table of functions per instruction set, filled in vector_code.cpp, chosen once in dispatch.cpp.
// A "tile" is [rows, 64] float, contiguous (cpu/tile.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/sgd.h"

namespace fastclf::cpu {

// Which random words decide the dropout of one row.
struct DropoutRow {
  uint64_t seed;
  uint32_t step, layer, row;
  uint64_t drop_below;  // device/philox.h
};

// out[r, :] (+)= sum of coef[r, k] * panel[k, :] over the k whose bit is set in bits[r].
struct Product {
  const uint64_t* bits;  // [rows]
  const float* coef;     // [rows, 64]
  const float* panel;    // [64, 64]
  float* out;            // [rows, 64]
  size_t rows;
  size_t cols;  // columns of the panel that matter, <= 64; the others may or may not be computed
  bool first;   // out starts at zero instead of its content
};

// Columns [first, first + cols) of the rows index[0..rows) of a matrix [n, width], as a tile; zeros from cols on.
struct GatherTile {
  const void* src;
  bool half;
  size_t width, first, cols;
  const int64_t* index;
  size_t rows;
  float* out;            // [rows, 64]
  const int64_t* ahead;  // rows that the next batch will read: fetched into the cache
  size_t ahead_rows;
};

// BatchNorm and dropout of a tile: x becomes (x - mean) * rstd, or is that already where mean is null; operand is
// keep ? scale * (gamma * x + beta) : 0.
struct Normalise {
  float* x;                                 // [rows, 64]
  const float *mean, *rstd, *gamma, *beta;  // [64]
  const uint64_t* keep;                     // [rows]
  float scale;
  float* operand;  // [rows, 64]
  size_t rows;
};

// One row of logits in tiles, tile t at z + t*stride; becomes the gradient of the row's share in the loss.
struct LossRow {
  float* z;
  size_t stride, tiles;
  const float* weight;  // [64 * tiles] class weights, zero in the padding (where logits are -1e30)
  float smoothing;
  float classes;
};

// How one axis is resampled: value i is the sum over k < count[i] of weight[i, k] * source[first[i] + k].
struct Blend {
  const uint32_t *first, *count;  // [n], count >= 1
  const float* weight;            // [n, taps]
  size_t taps, n;
};

// Where the rows of an image go: out[c * plane + r * columns + i] = value * gain[c] + offset[c].
struct Planes {
  float* out;
  size_t plane;
  bool stream;                 // past the caches; out and its rows are aligned to lines of the cache
  const float *gain, *offset;  // [3]
};

// n pixels of an image [rows, cols] of 4 floats each, bilinear, at positions (x0, y0) + i * (dx, dy); pixel (0, 0) is
// at (0, 0) and the border is mirrored.
struct WarpRow {
  const float* src;
  size_t rows, cols;
  float x0, y0, dx, dy;
  size_t n;
  float* out;  // [n, 4]
};

// clip(contrast * x + shift, 0, top) * gain + offset.
struct BrightnessContrast {
  float contrast, shift, top, gain, offset;
};

struct VectorCode {
  const char* name;

  // dst[i] = float32(src[i]), i < n.
  void (*widen)(const uint16_t* src, float* dst, size_t n);
  // Bit j of the result: element 64*word + j of the row is kept.
  uint64_t (*keep_bits)(const DropoutRow& row, uint32_t word);

  void (*product)(const Product& op);
  // The product is a gradient: updates w and m, [rows, 64] each, with it; `out` holds the sum so far unless first.
  void (*product_update)(const Product& op, float* w, float* m, const Sgd& sgd);
  void (*update)(float* w, float* m, const float* g, size_t n, const Sgd& sgd);
  // average += share * (w - average), [n] both.
  void (*follow)(float* average, const float* w, size_t n, float share);
  // dst[c, r] = src[r, c], [64, 64] both.
  void (*transpose)(const float* src, float* dst);
  float (*sum_of_squares)(const float* x, size_t n);

  void (*gather_tile)(const GatherTile& op);
  // Mean and (biased) variance of a tile's columns, [64] each.
  void (*moments)(const float* x, size_t rows, float* mean, float* variance);
  void (*normalise)(const Normalise& op);
  // z = max(z + bias, 0), bit c of active[r]: z[r, c] > 0.
  void (*bias_relu)(float* z, const float* bias, uint64_t* active, size_t rows);
  void (*add_bias)(float* z, const float* bias, size_t rows);
  // out[c] = sum over rows of z[r, c], [64].
  void (*column_sums)(const float* z, size_t rows, float* out);
  // g becomes keep ? scale * g : 0; dgamma and dbeta [64] are the column sums of g * xhat and of g.
  void (*affine_gradient)(float* g, const float* xhat, const uint64_t* keep, float scale, size_t rows, float* dgamma,
                          float* dbeta);
  // g becomes active ? a*g - b - c*xhat : 0, with a, b, c [64]; sum [64] its column sums.
  void (*input_gradient)(float* g, const float* xhat, const uint64_t* active, const float* abc, size_t rows,
                         float* sum);

  // Negative log likelihood of class y, times `mean` (1 / the batch's total weight).
  float (*nll_row)(const LossRow& op, size_t y, float weight_sum, float mean);
  // Binary cross-entropy with targets y [classes], times `mean` (1 / (rows * classes)).
  float (*bce_row)(const LossRow& op, const float* y, float mean);

  // A strip holds up to `lanes` rows of pixels side by side: [columns, 3, lanes].
  size_t lanes;
  // strip[j, r] is row r < rows.n of the image resampled downwards, src [., stride] uint8 or float, j < n values.
  void (*blend_down)(const void* src, bool bytes, size_t stride, const Blend& rows, size_t n, float* strip);
  // A strip resampled across, to planes (returns the sum of what is written) or to pixels [rows, columns.n, 4].
  float (*strip_to_planes)(const float* strip, const Blend& columns, size_t rows, const Planes& to);
  void (*strip_to_pixels)(const float* strip, const Blend& columns, size_t rows, float* out);
  void (*warp_row)(const WarpRow& op);
  // A row of the image from n pixels of 4 floats; returns the sum of what is written.
  float (*to_planes)(const float* pixels, size_t n, const Planes& to);
  float (*brightness_contrast)(float* x, size_t n, const BrightnessContrast& op);  // returns the sum of the result
};

// The table in use: the best that this processor runs, or what use_isa() chose.
const VectorCode& vector_code();

}  // namespace fastclf::cpu
