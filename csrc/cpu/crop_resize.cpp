// Crops and resizes images: one antialiased resampling of the crop, then, where the result is turned or reaches over
// the border, one bilinear resampling of that; then brightness, contrast and normalisation. An image is one thread's.
#include <algorithm>
#include <cmath>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/launchers.h"
#include "cpu/pool.h"
#include "cpu/tile.h"
#include "cpu/vector_code.h"
#include "device/crop.h"

namespace fastclf::cpu {

namespace {

constexpr size_t kLine = 64;         // bytes of a line of the cache
constexpr size_t kCached = 4 << 20;  // bytes of a batch that may be in a cache still when it is used
constexpr size_t kFetched = 48;      // rows at most: those of large images would not fit into a cache

// What an axis needs at most, of all images of a batch.
struct AxisRoom {
  size_t n = 0, weights = 0, span = 0;  // values, their weights, and how much of the source has weight

  void add(double low, double high, size_t values, size_t source) {
    const CropAxis axis = crop_axis(low, high, values, source);
    const auto taps = static_cast<size_t>(axis.taps), steps = static_cast<size_t>(rounded_up(high - low - axis.step));
    n = std::max(n, values);
    weights = std::max(weights, values * taps);
    span = std::max(span, std::min(source, taps + steps + 1));  // 1: positions are rounded
  }
};

// What a member renders a batch with. All of it is allocated before the team runs.
struct Room {
  explicit Room(const CropResize& op) : pixels(op.matrix ? 4 * op.sz : 0) {
    for (size_t i = 0; i < op.n; ++i) {
      const float* crop = op.crop + 4 * i;
      const auto rows = static_cast<size_t>(op.size[2 * i]), cols = static_cast<size_t>(op.size[2 * i + 1]);
      y.add(crop[0], crop[2], rows, static_cast<size_t>(op.shape[2 * i]));
      x.add(crop[1], crop[3], cols, static_cast<size_t>(op.shape[2 * i + 1]));
      if (op.matrix) resized = std::max(resized, 4 * rows * cols);
    }
  }

  AxisRoom y, x;
  size_t resized = 0, pixels;
};

// The weights of one axis.
class Taps {
 public:
  explicit Taps(const AxisRoom& room)
      : first_(Buffer<uint32_t>::unset(room.n)),
        count_(Buffer<uint32_t>::unset(room.n)),
        weight_(Buffer<float>::unset(room.weights)) {}

  size_t begin = 0, end = 0;  // what of the source has weight

  void set(double low, double high, size_t n, size_t source) {
    const CropAxis axis = crop_axis(low, high, n, source);
    n_ = n;
    taps_ = static_cast<size_t>(axis.taps);
    for (size_t i = 0; i < n; ++i) {
      const CropTaps taps = crop_taps(axis, i, &weight_[i * taps_]);
      first_[i] = taps.first, count_[i] = taps.count;
    }
    begin = *std::min_element(first_.get(), first_.get() + n);
    end = *std::max_element(first_.get(), first_.get() + n) + taps_;
  }

  // Counts the source from `begin` on.
  void trim() const {
    for (size_t i = 0; i < n_; ++i) first_[i] -= static_cast<uint32_t>(begin);
  }

  Blend blend(size_t first, size_t n) const {
    return {&first_[first], &count_[first], &weight_[first * taps_], taps_, n};
  }

 private:
  Buffer<uint32_t> first_, count_;
  Buffer<float> weight_;
  size_t n_ = 0, taps_ = 0;
};

// What one thread renders with: kept between images.
class alignas(kLine) Renderer {  // members write into their own at every strip
 public:
  Renderer(const CropResize& op, const Room& room)
      : op_(op),
        y_(room.y),
        x_(room.x),
        strip_(Buffer<float>::unset(3 * room.x.span * code_.lanes)),
        resized_(Buffer<float>::unset(room.resized)),
        pixels_(Buffer<float>::unset(room.pixels)),
        scale_(crop_scale(op.mean, op.std, op.top)) {
    const bool aligned = reinterpret_cast<uintptr_t>(op.out) % kLine == 0 && op.sz * sizeof(float) % kLine == 0;
    stream_ = aligned && !op.matrix && !op.n_ops && op.n * 3 * op.sz * op.sz * sizeof(float) > kCached;
  }

  void render(size_t i) {
    out_ = op_.out + i * 3 * op_.sz * op_.sz;
    sum_ = 0;
    const auto rows = static_cast<size_t>(op_.size[2 * i]), cols = static_cast<size_t>(op_.size[2 * i + 1]);
    if (op_.matrix) {
      float* resized = resized_.get();
      resample(i, rows, cols, [&](const float* strip, const Blend& across, size_t row, size_t n) {
        code_.strip_to_pixels(strip, across, n, resized + 4 * row * cols);
      });
      warp(op_.matrix + 6 * i, resized, rows, cols);
    } else {
      resample(i, rows, cols, [&](const float* strip, const Blend& across, size_t row, size_t n) {
        sum_ += code_.strip_to_planes(strip, across, n, planes(row));
      });
    }
    change(op_.numbers + op_.n_ops * op_.width * i);
  }

 private:
  // Fetches what the first strip is made of, which comes while the weights are computed; the others are fetched in
  // turn.
  void fetch_first(size_t i, double step) const {
    const auto height = static_cast<double>(op_.shape[2 * i]), width = static_cast<double>(op_.shape[2 * i + 1]);
    const float* crop = op_.crop + 4 * i;
    const size_t pixel = op_.bytes ? 3 : 3 * sizeof(float), row = static_cast<size_t>(width) * pixel;
    const auto within = [](double value, double end) { return static_cast<size_t>(std::clamp(value, 0.0, end)); };
    const size_t left = within(crop[1], width) * pixel, right = within(crop[3], width) * pixel;
    const size_t top = within(crop[0], height);
    const size_t bottom = std::min(within(crop[0] + static_cast<double>(code_.lanes) * step, height), top + kFetched);
    const auto* src = reinterpret_cast<const char*>(op_.src[i]);
    for (size_t y = top; y < bottom; ++y) {
      for (size_t x = left; x < right; x += kLine) __builtin_prefetch(src + y * row + x);
    }
  }

  // Blends strips of rows, top to bottom, and calls place(strip, across, row, n) for the n rows of each.
  template <class Place>
  void resample(size_t i, size_t rows, size_t cols, Place place) {
    const auto height = static_cast<size_t>(op_.shape[2 * i]), width = static_cast<size_t>(op_.shape[2 * i + 1]);
    const float* crop = op_.crop + 4 * i;
    fetch_first(i, static_cast<double>(crop[2] - crop[0]) / static_cast<double>(rows));
    y_.set(crop[0], crop[2], rows, height);
    x_.set(crop[1], crop[3], cols, width);
    x_.trim();
    const size_t values = 3 * (x_.end - x_.begin), item = op_.bytes ? 1 : sizeof(float);
    float* strip = strip_.get();
    const char* from = reinterpret_cast<const char*>(op_.src[i]) + item * 3 * x_.begin;
    for (size_t row = 0; row < rows; row += code_.lanes) {
      const size_t n = std::min(code_.lanes, rows - row);
      code_.blend_down(from, op_.bytes, 3 * width, y_.blend(row, n), values, strip);
      place(strip, x_.blend(0, cols), row, n);
    }
  }

  void warp(const float* m, const float* resized, size_t rows, size_t cols) {
    float* pixels = pixels_.get();
    for (size_t y = 0; y < op_.sz; ++y) {  // positions are of pixels' middles
      const float v = static_cast<float>(y) + 0.5f;
      code_.warp_row({.src = resized,
                      .rows = rows,
                      .cols = cols,
                      .x0 = m[0] * 0.5f + m[1] * v + m[2] - 0.5f,
                      .y0 = m[3] * 0.5f + m[4] * v + m[5] - 0.5f,
                      .dx = m[0],
                      .dy = m[3],
                      .n = op_.sz,
                      .out = pixels});
      sum_ += code_.to_planes(pixels, op_.sz, planes(y));
    }
  }

  // Where rows of the result go: as they are when pixel operations follow, else normalised.
  Planes planes(size_t row) const {
    static constexpr float kOne[3] = {1, 1, 1}, kNothing[3] = {};
    return {out_ + row * op_.sz, op_.sz * op_.sz, stream_, op_.n_ops ? kOne : scale_.gain,
            op_.n_ops ? kNothing : scale_.offset};
  }

  // Each operation leaves the sum of its values to the next one; the last one normalises.
  void change(const float* numbers) {
    for (size_t k = 0; k < op_.n_ops; ++k, numbers += op_.width) {
      const bool last = k + 1 == op_.n_ops;
      switch (static_cast<PixelOp>(op_.pixel_ops[k])) {
        case PixelOp::brightness_contrast:
          brightness_contrast(numbers[0], numbers[1], last);
          break;
      }
    }
  }

  void brightness_contrast(float brightness, float contrast, bool last) {
    const float shift = contrast_shift(sum_, 3 * op_.sz * op_.sz, brightness, contrast, op_.top);
    sum_ = 0;
    for (size_t row = 0; row < 3 * op_.sz; ++row) {
      const size_t c = row / op_.sz;
      const BrightnessContrast change = {contrast, shift, op_.top, last ? scale_.gain[c] : 1,
                                         last ? scale_.offset[c] : 0};
      sum_ += code_.brightness_contrast(out_ + row * op_.sz, op_.sz, change);
    }
  }

  const CropResize& op_;
  const VectorCode& code_ = vector_code();
  Taps y_, x_;
  Buffer<float> strip_, resized_, pixels_;  // resampled rows side by side; a crop; a row of pixels
  CropScale scale_;
  bool stream_;
  float* out_ = nullptr;
  double sum_ = 0;
};

}  // namespace

Status crop_resize(const CropResize& op, int threads) {
  const Room room(op);
  std::vector<Renderer> of_member;
  const size_t members = team_size(threads, op.n);
  of_member.reserve(members);
  while (of_member.size() < members) of_member.emplace_back(op, room);
  run_team(static_cast<int>(members), [&](Team& team, unsigned rank) noexcept {
    Renderer& renderer = of_member[rank];
    team.for_each(op.n, [&](size_t i) { renderer.render(i); });
#if defined(__x86_64__)
    _mm_sfence();  // what was streamed comes before what follows
#endif
  });
  return {};
}

}  // namespace fastclf::cpu
