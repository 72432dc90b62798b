// Vector code that resamples images (cpu/crop_resize.cpp). A pixel is RGB; in between it lies in 4 floats.
#pragma once

#include "cpu/vec.h"
#include "cpu/vector_code.h"
#include "device/crop.h"

namespace fastclf::cpu::FASTCLF_ISA {

typedef float Pixel __attribute__((vector_size(16)));

inline Pixel load_pixel(const float* p) {
  Pixel v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store_pixel(float* p, Pixel v) { __builtin_memcpy(p, &v, sizeof v); }

// kLanes bytes as floats.
inline Vec load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtepi32_ps(
      0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  Vec v;
  for (size_t i = 0; i < kLanes; ++i) v[i] = p[i];
  return v;
#endif
}
inline Vec load_values(const uint8_t* p) { return load_bytes(p); }
inline Vec load_values(const float* p) { return load(p); }

// Row i of the lanes becomes lane i of the rows.
inline void transpose_lanes(Vec (&v)[kLanes]) {
  for (size_t round = 1; round < kLanes; round *= 2) {
    Vec mixed[kLanes];
    for (size_t i = 0; i < kLanes / 2; ++i) {
      const Vec a = v[i], b = v[i + kLanes / 2];
#if defined(__AVX512F__)
      mixed[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      mixed[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
      mixed[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      mixed[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
      mixed[2 * i] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      mixed[2 * i + 1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
    }
    __builtin_memcpy(v, mixed, sizeof v);
  }
}

// kVectors * kLanes columns of a strip. Lanes without a row repeat the last one.
template <size_t kVectors, class T>
void blend_down_block(const T* src, size_t stride, const Blend& rows, float* strip) {
  Vec tile[kVectors][kLanes];
#pragma GCC unroll 16  // so that the tile stays in registers
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const size_t r = lane < rows.n ? lane : rows.n - 1;
    const T* from = src + rows.first[r] * stride;
    const float* weight = rows.weight + r * rows.taps;
    Vec sum[kVectors] = {};
    for (size_t k = 0; k < rows.count[r]; ++k) {
      const Vec w = splat(weight[k]);
      for (size_t i = 0; i < kVectors; ++i) sum[i] += w * load_values(from + k * stride + i * kLanes);
    }
    for (size_t i = 0; i < kVectors; ++i) tile[i][lane] = sum[i];
  }
  for (size_t i = 0; i < kVectors; ++i) {
    transpose_lanes(tile[i]);
    for (size_t c = 0; c < kLanes; ++c) store(strip + (i * kLanes + c) * kLanes, tile[i][c]);
  }
}

template <class T>
void blend_down_of(const T* src, size_t stride, const Blend& rows, size_t n, float* strip) {
  const size_t next = rows.first[rows.n - 1] + rows.count[rows.n - 1];  // row of the next strip
  size_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    if (i % (4 * kLine) == 0) {
      // Decoded images come from memory, row by row, each too short for the processor to see what follows.
      for (size_t k = 0; k < next - rows.first[0]; ++k) __builtin_prefetch(src + (next + k) * stride + i);
    }
    blend_down_block<2>(src + i, stride, rows, strip + i * kLanes);
  }
  if (i < n && n >= 2 * kLanes) {  // the last ones once more
    blend_down_block<2>(src + n - 2 * kLanes, stride, rows, strip + (n - 2 * kLanes) * kLanes);
    return;
  }
  for (; i < n; ++i) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const size_t r = lane < rows.n ? lane : rows.n - 1;
      float sum = 0;
      for (size_t k = 0; k < rows.count[r]; ++k) {
        sum += rows.weight[r * rows.taps + k] * static_cast<float>(src[(rows.first[r] + k) * stride + i]);
      }
      strip[i * kLanes + lane] = sum;
    }
  }
}

inline void blend_down(const void* src, bool bytes, size_t stride, const Blend& rows, size_t n, float* strip) {
  if (bytes) {
    blend_down_of(static_cast<const uint8_t*>(src), stride, rows, n, strip);
  } else {
    blend_down_of(static_cast<const float*>(src), stride, rows, n, strip);
  }
}

// One pixel of all rows of a strip, channel by channel. With kTaps == 0 for any number of taps, else for that many.
template <size_t kTaps>
inline void blend_pixel(const float* strip, const Blend& columns, size_t c, Vec (&channel)[3]) {
  const size_t taps = kTaps ? kTaps : columns.taps;
  const float *from = strip + size_t{columns.first[c]} * 3 * kLanes, *weight = columns.weight + c * taps;
  for (size_t i = 0; i < 3; ++i) channel[i] = Vec{};
  for (size_t k = 0; k < taps; ++k) {
    const Vec w = splat(weight[k]);
    for (size_t i = 0; i < 3; ++i) channel[i] += w * load(from + (3 * k + i) * kLanes);
  }
}

// Calls blended(c, channels) for every column.
template <class Blended>
inline void blend_across(const float* strip, const Blend& columns, size_t first, size_t n, Blended blended) {
  const auto each = [&](auto blend) {
    for (size_t c = 0; c < n; ++c) {
      Vec channel[3];
      blend(c, channel);
      blended(c, channel);
    }
  };
  switch (columns.taps) {
    case 3:
      return each([&](size_t c, Vec(&out)[3]) { blend_pixel<3>(strip, columns, first + c, out); });
    case 4:
      return each([&](size_t c, Vec(&out)[3]) { blend_pixel<4>(strip, columns, first + c, out); });
    case 5:
      return each([&](size_t c, Vec(&out)[3]) { blend_pixel<5>(strip, columns, first + c, out); });
    default:
      return each([&](size_t c, Vec(&out)[3]) { blend_pixel<0>(strip, columns, first + c, out); });
  }
}

constexpr size_t kLineVectors = kLine / kLanes;  // in a line

// Writes the first n floats of a line.
inline void store_line(float* p, const Vec (&line)[kLineVectors], size_t n, bool past_caches) {
  if (past_caches) {
    for (size_t i = 0; i < kLineVectors; ++i) stream(p + i * kLanes, line[i]);
  } else if (n == kLine) {
    for (size_t i = 0; i < kLineVectors; ++i) store(p + i * kLanes, line[i]);
  } else {
    __builtin_memcpy(p, line, n * sizeof(float));
  }
}

inline float strip_to_planes(const float* strip, const Blend& columns, size_t rows, const Planes& planes) {
  const Planes to = planes;  // its fields cannot be changed by the stores
  const size_t width = columns.n;
  Vec total = {}, tile[3][kLineVectors][kLanes];
  for (size_t first = 0; first < width; first += kLine) {
    const size_t n = width - first < kLine ? width - first : kLine;
    if (n < kLine) __builtin_memset(tile, 0, sizeof tile);
    blend_across(strip, columns, first, n, [&](size_t c, const Vec(&channel)[3]) {
      for (size_t i = 0; i < 3; ++i) {
        tile[i][c / kLanes][c % kLanes] = channel[i] * splat(to.gain[i]) + splat(to.offset[i]);
      }
    });
    for (size_t i = 0; i < 3; ++i) {
      for (size_t v = 0; v < kLineVectors; ++v) transpose_lanes(tile[i][v]);
      for (size_t r = 0; r < rows; ++r) {
        Vec line[kLineVectors];
        for (size_t v = 0; v < kLineVectors; ++v) {
          line[v] = tile[i][v][r];
          total += line[v];
        }
        store_line(to.out + i * to.plane + r * width + first, line, n, to.stream);
      }
    }
  }
  return add_lanes(total);
}

constexpr size_t kPixels = kLanes / 4;  // in a vector

inline void strip_to_pixels(const float* strip, const Blend& columns, size_t rows, float* out) {
  const size_t width = columns.n;
  Vec tile[kLanes] = {};
  for (size_t first = 0; first < width; first += kPixels) {
    const size_t n = width - first < kPixels ? width - first : kPixels;
    blend_across(strip, columns, first, n, [&](size_t c, const Vec(&channel)[3]) {
      for (size_t i = 0; i < 3; ++i) tile[4 * c + i] = channel[i];
    });
    transpose_lanes(tile);
    for (size_t r = 0; r < rows; ++r) {
      float* to = out + 4 * (r * width + first);
      if (n == kPixels) {
        store(to, tile[r]);
      } else {
        __builtin_memcpy(to, &tile[r], n * sizeof(Pixel));
      }
    }
  }
}

typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));

inline Ints floor_of(Vec v) {
  const Ints cut = __builtin_convertvector(v, Ints);
  return cut + (__builtin_convertvector(cut, Vec) > v);  // true is -1
}

inline Pixel between(Pixel a, Pixel b, float share) { return a + (b - a) * share; }

// The pixel between `up` and its right neighbour, and those `below` floats farther on.
inline Pixel inside_pixel(const float* up, int32_t below, float fx, float fy) {
  typedef float Pair __attribute__((vector_size(32)));
  Pair upper, lower;
  __builtin_memcpy(&upper, up, sizeof upper);
  __builtin_memcpy(&lower, up + below, sizeof lower);
  const Pair middle = upper + (lower - upper) * fy;
  Pixel side[2];
  __builtin_memcpy(side, &middle, sizeof middle);
  return between(side[0], side[1], fx);
}

inline Pixel border_pixel(const WarpRow& op, int32_t x, int32_t y, float fx, float fy) {
  const auto rows = static_cast<int32_t>(op.rows), cols = static_cast<int32_t>(op.cols);
  const float* up = op.src + 4 * cols * mirrored(y, rows);
  const float* down = op.src + 4 * cols * mirrored(y + 1, rows);
  const int32_t left = 4 * mirrored(x, cols), right = 4 * mirrored(x + 1, cols);
  return between(between(load_pixel(up + left), load_pixel(down + left), fy),
                 between(load_pixel(up + right), load_pixel(down + right), fy), fx);
}

inline void warp_row(const WarpRow& op) {
  const auto rows = static_cast<int32_t>(op.rows), cols = static_cast<int32_t>(op.cols);
  Vec number;
  for (size_t i = 0; i < kLanes; ++i) number[i] = static_cast<float>(i);
  for (size_t x = 0; x < op.n; x += kLanes) {
    const Vec at = number + splat(static_cast<float>(x));
    const Vec px = splat(op.x0) + at * splat(op.dx), py = splat(op.y0) + at * splat(op.dy);
    const Ints ix = floor_of(px), iy = floor_of(py);
    int32_t left[kLanes], top[kLanes];  // lanes are read one by one
    float fx[kLanes], fy[kLanes];
    __builtin_memcpy(left, &ix, sizeof ix);
    __builtin_memcpy(top, &iy, sizeof iy);
    store(fx, px - __builtin_convertvector(ix, Vec));
    store(fy, py - __builtin_convertvector(iy, Vec));
    const auto is_inside = [&](size_t i) {
      return left[i] >= 0 && top[i] >= 0 && left[i] < cols - 1 && top[i] < rows - 1;
    };
    float* out = op.out + 4 * x;
    if (x + kLanes <= op.n && is_inside(0) && is_inside(kLanes - 1)) {  // then those in between are, too
      for (size_t i = 0; i < kLanes; ++i) {
        const float* up = op.src + 4 * (top[i] * cols + left[i]);
        store_pixel(out + 4 * i, inside_pixel(up, 4 * cols, fx[i], fy[i]));
      }
    } else {
      for (size_t i = 0; i < kLanes && x + i < op.n; ++i) {
        store_pixel(out + 4 * i, border_pixel(op, left[i], top[i], fx[i], fy[i]));
      }
    }
  }
}

inline float to_planes(const float* pixels, size_t n, const Planes& to) {
  Pixel total[3] = {};
  float sum = 0;
  size_t x = 0;
#if defined(__AVX512F__)
  Vec wide = {};
  for (; x + kLanes <= n; x += kLanes) {
    const float* from = pixels + 4 * x;
    const Vec a = load(from), b = load(from + kLanes), c = load(from + 2 * kLanes), d = load(from + 3 * kLanes);
    const Vec rg_ab = __builtin_shufflevector(a, b, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const Vec rg_cd = __builtin_shufflevector(c, d, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const Vec b_ab = __builtin_shufflevector(a, b, 2, 6, 10, 14, 18, 22, 26, 30, 2, 6, 10, 14, 18, 22, 26, 30);
    const Vec b_cd = __builtin_shufflevector(c, d, 2, 6, 10, 14, 18, 22, 26, 30, 2, 6, 10, 14, 18, 22, 26, 30);
    const Vec channel[3] = {
        __builtin_shufflevector(rg_ab, rg_cd, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
        __builtin_shufflevector(rg_ab, rg_cd, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31),
        __builtin_shufflevector(b_ab, b_cd, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)};
    for (size_t i = 0; i < 3; ++i) {
      const Vec value = channel[i] * splat(to.gain[i]) + splat(to.offset[i]);
      store(to.out + i * to.plane + x, value);
      wide += value;
    }
  }
  sum = add_lanes(wide);
#endif
  for (; x + 4 <= n; x += 4) {
    const Pixel a = load_pixel(pixels + 4 * x), b = load_pixel(pixels + 4 * x + 4);
    const Pixel c = load_pixel(pixels + 4 * x + 8), d = load_pixel(pixels + 4 * x + 12);
    const Pixel rg_ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), rg_cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const Pixel b_ab = __builtin_shufflevector(a, b, 2, 6, 3, 7), b_cd = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const Pixel channel[3] = {__builtin_shufflevector(rg_ab, rg_cd, 0, 1, 4, 5),
                              __builtin_shufflevector(rg_ab, rg_cd, 2, 3, 6, 7),
                              __builtin_shufflevector(b_ab, b_cd, 0, 1, 4, 5)};
    for (size_t i = 0; i < 3; ++i) {
      const Pixel value = channel[i] * to.gain[i] + to.offset[i];
      store_pixel(to.out + i * to.plane + x, value);
      total[i] += value;
    }
  }
  const Pixel all = total[0] + total[1] + total[2];
  sum += (all[0] + all[1]) + (all[2] + all[3]);
  for (; x < n; ++x) {
    for (size_t i = 0; i < 3; ++i) {
      const float value = pixels[4 * x + i] * to.gain[i] + to.offset[i];
      to.out[i * to.plane + x] = value;
      sum += value;
    }
  }
  return sum;
}

inline float brightness_contrast(float* x, size_t n, const BrightnessContrast& op) {
  Vec total = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Vec v = load(x + i) * splat(op.contrast) + splat(op.shift);
    v = v < splat(0) ? splat(0) : v;
    v = (v > splat(op.top) ? splat(op.top) : v) * splat(op.gain) + splat(op.offset);
    store(x + i, v);
    total += v;
  }
  float sum = add_lanes(total);
  for (; i < n; ++i) {
    const float v = x[i] * op.contrast + op.shift;
    x[i] = (v < 0 ? 0 : v > op.top ? op.top : v) * op.gain + op.offset;
    sum += x[i];
  }
  return sum;
}

}  // namespace fastclf::cpu::FASTCLF_ISA
