// Crops and resizes images as cpu/crop_resize.cpp does, sum by sum in the same order; an image is one block's.
//
// A block writes the weights of both axes to scratch memory, and makes each pixel of the resized crop of all source
// pixels that it has weight in. That takes more multiplications than an axis after the other, and no memory between
// them. Where there is a matrix the resized crop goes to scratch memory, too, and is resampled from there.
#include "cuda/reduce.cuh"
#include "device/crop.h"

namespace fastclf::cuda {

namespace {

constexpr unsigned kCropWarps = 32;

struct Rgb {
  float v[3];
};

// The weights of one axis.
struct Weights {
  CropAxis axis;
  CropTaps* taps;  // [n]
  float* weight;   // [n, axis.taps]
  size_t n;

  FASTCLF_DEVICE void set(size_t i) const { taps[i] = crop_taps(axis, i, weight + i * axis.taps); }
};

// Takes the memory of the weights from the beginning of `scratch`.
FASTCLF_DEVICE Weights weights_of(double low, double high, size_t n, size_t source, float*& scratch) {
  const CropAxis axis = crop_axis(low, high, n, source);
  const Weights weights = {axis, reinterpret_cast<CropTaps*>(scratch), scratch + 2 * n, n};
  scratch = weights.weight + n * axis.taps;
  return weights;
}

template <class T>
FASTCLF_DEVICE Rgb resized_pixel(const T* src, size_t width, const Weights& y, const Weights& x, size_t row,
                                 size_t col) {
  const CropTaps down = y.taps[row], across = x.taps[col];
  const float *of_row = y.weight + row * y.axis.taps, *of_col = x.weight + col * x.axis.taps;
  src += 3 * (down.first * width + across.first);
  Rgb out = {};
  for (unsigned i = 0; i < across.count; ++i, src += 3) {
    Rgb column = {};
    const T* from = src;
    for (unsigned k = 0; k < down.count; ++k, from += 3 * width) {
      for (int c = 0; c < 3; ++c) column.v[c] += of_row[k] * static_cast<float>(from[c]);
    }
    for (int c = 0; c < 3; ++c) out.v[c] += of_col[i] * column.v[c];
  }
  return out;
}

FASTCLF_DEVICE float between(float a, float b, float share) { return a + (b - a) * share; }

// The pixel at the place in the resized crop where the matrix puts pixel (x, y) of the result: positions are of pixels'
// middles.
FASTCLF_DEVICE Rgb moved_pixel(const float* resized, int32_t rows, int32_t cols, const float* m, size_t x, size_t y) {
  const float at = static_cast<float>(x), v = static_cast<float>(y) + 0.5f;
  const float px = m[0] * 0.5f + m[1] * v + m[2] - 0.5f + at * m[0];
  const float py = m[3] * 0.5f + m[4] * v + m[5] - 0.5f + at * m[3];
  const float left = floorf(px), top = floorf(py), fx = px - left, fy = py - top;
  const auto ix = static_cast<int32_t>(left), iy = static_cast<int32_t>(top);
  const float* up = resized + 4 * size_t{static_cast<unsigned>(cols * mirrored(iy, rows))};
  const float* down = resized + 4 * size_t{static_cast<unsigned>(cols * mirrored(iy + 1, rows))};
  const int32_t x0 = 4 * mirrored(ix, cols), x1 = 4 * mirrored(ix + 1, cols);
  const float4 a = load_vector<float4>(up + x0), b = load_vector<float4>(up + x1);
  const float4 c = load_vector<float4>(down + x0), d = load_vector<float4>(down + x1);
  return {{between(between(a.x, c.x, fy), between(b.x, d.x, fy), fx),
           between(between(a.y, c.y, fy), between(b.y, d.y, fy), fx),
           between(between(a.z, c.z, fy), between(b.z, d.z, fy), fx)}};
}

// An image's crop [3, area]. Each thread changes the pixels that it has written; what is written last is normalised.
struct Crop {
  float* out;
  size_t area;
  CropScale scale;

  // Returns the sum of the three values.
  FASTCLF_DEVICE float write(size_t pixel, const Rgb& value, bool last) const {
    for (int c = 0; c < 3; ++c) {
      out[c * area + pixel] = last ? value.v[c] * scale.gain[c] + scale.offset[c] : value.v[c];
    }
    return value.v[0] + value.v[1] + value.v[2];
  }

  FASTCLF_DEVICE Rgb read(size_t pixel) const { return {{out[pixel], out[area + pixel], out[2 * area + pixel]}}; }

  // clip((x - mean) * contrast + mean + brightness * top, 0, top), where the mean is that of all threads' sums.
  FASTCLF_DEVICE float brightness_contrast(const float* numbers, float sum, float top, bool last) const {
    const float brightness = numbers[0], contrast = numbers[1];
    const double total = block_sum<kCropWarps>(static_cast<double>(sum));
    const float shift = contrast_shift(total, 3 * area, brightness, contrast, top);
    sum = 0;
    for (size_t p = threadIdx.x; p < area; p += blockDim.x) {
      Rgb value = read(p);
      for (float& v : value.v) v = fminf(fmaxf(v * contrast + shift, 0.0f), top);
      sum += write(p, value, last);
    }
    return sum;
  }
};

template <class T>
FASTCLF_DEVICE float resize(const CropResizeOnDevice& op, size_t i, const Crop& crop) {
  const auto* src = reinterpret_cast<const T*>(op.src[i]);
  const auto height = static_cast<size_t>(op.shape[2 * i]), width = static_cast<size_t>(op.shape[2 * i + 1]);
  const auto rows = static_cast<size_t>(op.size[2 * i]), cols = static_cast<size_t>(op.size[2 * i + 1]);
  const float* part = op.crop + 4 * i;
  float* const resized = op.scratch + i * op.scratch_width;
  float* scratch = resized + (op.matrix ? 4 * rows * cols : 0);
  const Weights y = weights_of(part[0], part[2], rows, height, scratch);
  const Weights x = weights_of(part[1], part[3], cols, width, scratch);
  for (size_t k = threadIdx.x; k < rows + cols; k += blockDim.x) k < rows ? y.set(k) : x.set(k - rows);
  __syncthreads();
  float sum = 0;
  for (size_t p = threadIdx.x; p < rows * cols; p += blockDim.x) {
    const Rgb value = resized_pixel(src, width, y, x, p / cols, p % cols);
    if (op.matrix) {
      store_vector(resized + 4 * p, float4{value.v[0], value.v[1], value.v[2], 0});
    } else {
      sum += crop.write(p, value, op.n_ops == 0);
    }
  }
  if (!op.matrix) return sum;
  __syncthreads();
  for (size_t p = threadIdx.x; p < crop.area; p += blockDim.x) {
    const Rgb value = moved_pixel(resized, static_cast<int32_t>(rows), static_cast<int32_t>(cols), op.matrix + 6 * i,
                                  p % op.sz, p / op.sz);
    sum += crop.write(p, value, op.n_ops == 0);
  }
  return sum;
}

}  // namespace

template <class T>
__global__ void __launch_bounds__(32 * kCropWarps) crop_resize_kernel(CropResizeOnDevice op, CropScale scale) {
  const size_t i = blockIdx.x, area = op.sz * op.sz;
  const Crop crop = {op.out + 3 * area * i, area, scale};
  float sum = resize<T>(op, i, crop);
  const float* numbers = op.numbers + op.n_ops * op.width * i;
  for (size_t k = 0; k < op.n_ops; ++k, numbers += op.width) {
    switch (static_cast<PixelOp>(op.pixel_ops[k])) {
      case PixelOp::brightness_contrast:
        sum = crop.brightness_contrast(numbers, sum, op.top, k + 1 == op.n_ops);
        break;
    }
  }
}

Status crop_resize(const CropResizeOnDevice& op, void* stream) {
  if (op.n == 0) return {};
  const Grid grid = {dim3(static_cast<unsigned>(op.n)), 32 * kCropWarps};
  const CropScale scale = crop_scale(op.mean, op.std, op.top);
  if (op.bytes) return launch(crop_resize_kernel<uint8_t>, grid, stream, op, scale);
  return launch(crop_resize_kernel<float>, grid, stream, op, scale);
}

}  // namespace fastclf::cuda
