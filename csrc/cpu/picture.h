// Vector code that draws windows of pictures (cpu/windows.cpp). A pixel is RGB; in between it lies in 4 floats.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace fastclf::FASTCLF_ISA {

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

constexpr size_t kRowsAhead = 2;  // that are fetched before they are blended

template <size_t kVectors, class T>
void blend_block(const T* src, size_t stride, const float* weight, size_t taps, float* out) {
  Vec sum[kVectors] = {};
  for (size_t k = 0; k < taps; ++k) {
    const Vec w = splat(weight[k]);
    for (size_t i = 0; i < kVectors; ++i) sum[i] += w * load_values(src + k * stride + i * kLanes);
  }
  for (size_t i = 0; i < kVectors; ++i) store(out + i * kLanes, sum[i]);
}

template <class T>
void blend_rows_of(const T* src, size_t stride, const float* weight, size_t taps, size_t n, float* out) {
  size_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    // Decoded pictures come from memory, row by row, each too short for the processor to see what follows.
    for (size_t k = 0; k < kRowsAhead; ++k) __builtin_prefetch(src + (taps + k) * stride + i);
    blend_block<4>(src + i, stride, weight, taps, out + i);
  }
  for (; i + kLanes <= n; i += kLanes) blend_block<1>(src + i, stride, weight, taps, out + i);
  if (i < n && n >= kLanes) {  // the last ones once more
    blend_block<1>(src + n - kLanes, stride, weight, taps, out + n - kLanes);
    return;
  }
  for (; i < n; ++i) {
    out[i] = 0;
    for (size_t k = 0; k < taps; ++k) out[i] += weight[k] * static_cast<float>(src[k * stride + i]);
  }
}

inline void blend_rows(const void* src, bool bytes, size_t stride, const float* weight, size_t taps, size_t n,
                       float* out) {
  if (bytes) {
    blend_rows_of(static_cast<const uint8_t*>(src), stride, weight, taps, n, out);
  } else {
    blend_rows_of(static_cast<const float*>(src), stride, weight, taps, n, out);
  }
}

constexpr size_t kPixels = kLanes / 4;  // side by side in a vector

#if defined(__AVX2__)
// The pixels of a, then those of b, each added to its neighbour.
inline Vec add_neighbours(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
#else
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
#endif
}
#endif

// The sum over the pixels of each vector, side by side.
inline Vec add_pixels(const Vec (&v)[kPixels]) {
#if defined(__AVX512F__)
  return add_neighbours(add_neighbours(v[0], v[1]), add_neighbours(v[2], v[3]));
#elif defined(__AVX2__)
  return add_neighbours(v[0], v[1]);
#else
  return v[0];
#endif
}

// Pixels of 3 floats to pixels of 4; the last one is read as 4 floats.
inline void spread(const float* row, size_t n, float* out) {
  size_t i = 0;
#if defined(__AVX512F__)
  for (; 3 * i + kLanes <= 3 * n + 1; i += kPixels) {
    const Vec v = load(row + 3 * i);
    store(out + 4 * i, __builtin_shufflevector(v, v, 0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12));
  }
#endif
  for (; i < n; ++i) store_pixel(out + 4 * i, load_pixel(row + 3 * i));
}

// With kCount == 0 for any number of taps, else for that many.
template <size_t kCount>
void blend_columns_of(const float* row, const uint32_t* first, const float* weight, size_t taps, size_t n, float* out) {
  const size_t floats = 4 * (kCount ? kCount : taps);
  const auto blend = [&](size_t c) {
    const float *from = row + 4 * size_t{first[c]}, *w = weight + c * floats;
    Vec sum = load(w) * load(from);
    for (size_t k = kLanes; k < floats; k += kLanes) sum += load(w + k) * load(from + k);
    return sum;
  };
  Vec part[kPixels];
  size_t c = 0;
  for (; c + kPixels <= n; c += kPixels) {
    for (size_t i = 0; i < kPixels; ++i) part[i] = blend(c + i);
    store(out + 4 * c, add_pixels(part));
  }
  for (; c < n; ++c) {
    for (size_t i = 0; i < kPixels; ++i) part[i] = blend(c);
    const Vec sum = add_pixels(part);
    __builtin_memcpy(out + 4 * c, &sum, sizeof(Pixel));
  }
}

inline void blend_columns(const float* row, const uint32_t* first, const float* weight, size_t taps, size_t n,
                          float* out) {
  if (taps == 4) {
    blend_columns_of<4>(row, first, weight, taps, n, out);
  } else if (taps == 8) {
    blend_columns_of<8>(row, first, weight, taps, n, out);
  } else {
    blend_columns_of<0>(row, first, weight, taps, n, out);
  }
}

// Position -1 is 0, -2 is 1: the border is mirrored, the outermost pixel included; farther out the last one goes on.
inline int32_t mirrored(int32_t i, int32_t n) {
  if (i < 0) i = -1 - i;
  if (i >= n) i = 2 * n - 1 - i;
  return i < 0 ? 0 : i >= n ? n - 1 : i;
}

typedef int32_t Whole __attribute__((vector_size(kLanes * 4)));

inline Whole floor_of(Vec v) {
  const Whole cut = __builtin_convertvector(v, Whole);
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
    const Whole ix = floor_of(px), iy = floor_of(py);
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

// Returns the sum of what is written.
inline float to_planes(const float* pixels, size_t n, const float* gain, const float* offset, float* out,
                       size_t plane) {
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
      const Vec value = channel[i] * splat(gain[i]) + splat(offset[i]);
      store(out + i * plane + x, value);
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
      const Pixel value = channel[i] * gain[i] + offset[i];
      store_pixel(out + i * plane + x, value);
      total[i] += value;
    }
  }
  const Pixel all = total[0] + total[1] + total[2];
  sum += (all[0] + all[1]) + (all[2] + all[3]);
  for (; x < n; ++x) {
    for (size_t i = 0; i < 3; ++i) {
      const float value = pixels[4 * x + i] * gain[i] + offset[i];
      out[i * plane + x] = value;
      sum += value;
    }
  }
  return sum;
}

inline float light(float* x, size_t n, const Light& op) {
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

}  // namespace fastclf::FASTCLF_ISA
