// Draws windows of pictures: one antialiased resampling of the part that is seen, then, where the window is turned or
// reaches over the border, one bilinear resampling of that; then light and normalisation. A picture is one thread's.
#include <algorithm>
#include <cmath>
#include <vector>

#include "api.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"

namespace fastclf {

namespace {

// How one axis is resampled: value i is the sum over k < taps of weight[i, k] * source[first[i] + k].
struct Taps {
  std::vector<uint32_t> first;  // [n]
  std::vector<uint32_t> count;  // [n] taps that weigh something are the first count[i]
  std::vector<float> weight;    // [n, taps, repeat]: each weight `repeat` times over
  size_t taps = 0;              // a multiple of `multiple`; those past the source weigh nothing
  size_t begin = 0, end = 0;    // what of the source has weight

  // A triangle as wide as a step of the result, or of the source where it is magnified; the outermost value goes on.
  void set(double low, double high, size_t n, size_t source, size_t multiple, size_t repeat) {
    const double step = (high - low) / static_cast<double>(n), reach = std::max(1.0, step);
    const auto used = static_cast<int64_t>(std::min(source, static_cast<size_t>(std::ceil(2 * reach))));
    const auto last = static_cast<int64_t>(source) - 1;
    taps = (static_cast<size_t>(used) + multiple - 1) / multiple * multiple;
    first.resize(n);
    count.assign(n, 1);
    weight.assign(n * taps * repeat, 0.0f);
    begin = source, end = 0;
    for (size_t i = 0; i < n; ++i) {
      const double middle = low + (static_cast<double>(i) + 0.5) * step;
      const auto from = static_cast<int64_t>(std::ceil(middle - reach - 0.5));
      const auto to = static_cast<int64_t>(std::floor(middle + reach - 0.5));
      const int64_t start = std::clamp<int64_t>(from, 0, last + 1 - used);
      double total = 0;
      for (int64_t k = from; k <= to; ++k) total += triangle(k, middle, reach);
      for (int64_t k = from; k <= to; ++k) {
        const auto share = static_cast<float>(triangle(k, middle, reach) / total);
        const int64_t tap = std::clamp<int64_t>(std::clamp<int64_t>(k, 0, last) - start, 0, used - 1);
        float* w = &weight[(i * taps + static_cast<size_t>(tap)) * repeat];
        for (size_t r = 0; r < repeat; ++r) w[r] += share;
        if (share > 0) count[i] = std::max(count[i], static_cast<uint32_t>(tap + 1));
      }
      first[i] = static_cast<uint32_t>(start);
      begin = std::min(begin, static_cast<size_t>(start));
      end = std::max(end, static_cast<size_t>(start + used));
    }
  }

 private:
  static double triangle(int64_t k, double middle, double reach) {
    return std::max(0.0, 1 - std::abs(static_cast<double>(k) + 0.5 - middle) / reach);
  }
};

// What one thread draws with: kept between pictures.
class Artist {
 public:
  explicit Artist(const DrawWindows& op) : op_(op) {
    for (size_t c = 0; c < 3; ++c) {
      gain_[c] = 1 / (op.std[c] * op.top);
      offset_[c] = -op.mean[c] / op.std[c];
    }
  }

  void draw(size_t i) {
    out_ = op_.out + i * 3 * op_.sz * op_.sz;
    sum_ = 0;
    const auto rows = static_cast<size_t>(op_.size[2 * i]), cols = static_cast<size_t>(op_.size[2 * i + 1]);
    if (op_.matrix) {
      resized_.resize(4 * rows * cols);
      resample(i, rows, cols, [&](size_t row) { return resized_.data() + 4 * row * cols; }, [](size_t) {});
      warp(op_.matrix + 6 * i, rows, cols);
    } else {
      pixels_.resize(4 * cols);
      resample(i, rows, cols, [&](size_t) { return pixels_.data(); }, [&](size_t row) { lay(row); });
    }
    light(op_.light + 2 * op_.lights * i);
  }

 private:
  // Calls place(row) for where the pixels of a row go, and then done(row).
  template <class Place, class Done>
  void resample(size_t i, size_t rows, size_t cols, Place place, Done done) {
    const auto height = static_cast<size_t>(op_.shape[2 * i]), width = static_cast<size_t>(op_.shape[2 * i + 1]);
    const float* part = op_.part + 4 * i;
    y_.set(part[0], part[2], rows, height, 1, 1);
    x_.set(part[1], part[3], cols, width, kTaps, 4);
    for (uint32_t& first : x_.first) first -= static_cast<uint32_t>(x_.begin);
    const size_t seen = x_.end - x_.begin, item = op_.bytes ? 1 : sizeof(float);
    row_.assign(3 * seen + 1, 0.0f);  // the last pixel is read as 4 floats
    wide_.assign(4 * (seen + kTaps), 0.0f);
    const auto* src = reinterpret_cast<const char*>(op_.src[i]);
    for (size_t r = 0; r < rows; ++r) {
      const char* from = src + item * 3 * (y_.first[r] * width + x_.begin);
      k_.blend_rows(from, op_.bytes, 3 * width, &y_.weight[r * y_.taps], y_.count[r], 3 * seen, row_.data());
      k_.spread(row_.data(), seen, wide_.data());
      k_.blend_columns(wide_.data(), x_.first.data(), x_.weight.data(), x_.taps, cols, place(r));
      done(r);
    }
  }

  void warp(const float* m, size_t rows, size_t cols) {
    pixels_.resize(4 * op_.sz);
    for (size_t y = 0; y < op_.sz; ++y) {  // positions are of pixels' middles
      const float v = static_cast<float>(y) + 0.5f;
      k_.warp_row({.src = resized_.data(),
                   .rows = rows,
                   .cols = cols,
                   .x0 = m[0] * 0.5f + m[1] * v + m[2] - 0.5f,
                   .y0 = m[3] * 0.5f + m[4] * v + m[5] - 0.5f,
                   .dx = m[0],
                   .dy = m[3],
                   .n = op_.sz,
                   .out = pixels_.data()});
      lay(y);
    }
  }

  // Writes a row of the window: as it is when its light changes yet, else normalised.
  void lay(size_t row) {
    constexpr float kOne[3] = {1, 1, 1}, kNothing[3] = {};
    const size_t plane = op_.sz * op_.sz;
    float* to = out_ + row * op_.sz;
    sum_ += op_.lights ? k_.to_planes(pixels_.data(), op_.sz, kOne, kNothing, to, plane)
                       : k_.to_planes(pixels_.data(), op_.sz, gain_, offset_, to, plane);
  }

  // Each change of light needs the mean that the one before has left; the last one normalises.
  void light(const float* values) {
    const size_t plane = op_.sz * op_.sz;
    for (size_t l = 0; l < op_.lights; ++l) {
      const bool last = l + 1 == op_.lights;
      const float contrast = values[2 * l + 1];
      const auto mean = static_cast<float>(sum_ / static_cast<double>(3 * plane));
      const float shift = mean * (1 - contrast) + values[2 * l] * op_.top;
      sum_ = 0;
      for (size_t row = 0; row < 3 * op_.sz; ++row) {
        const size_t c = row / op_.sz;
        const Light change = {contrast, shift, op_.top, last ? gain_[c] : 1, last ? offset_[c] : 0};
        sum_ += k_.light(out_ + row * op_.sz, op_.sz, change);
      }
    }
  }

  const DrawWindows& op_;
  const Kernels& k_ = kernels();
  Taps y_, x_;
  std::vector<float> row_, wide_, pixels_,
      resized_;  // a row of the picture, in 3 and in 4 floats; drawn pixels; a part
  float gain_[3], offset_[3];
  float* out_ = nullptr;
  double sum_ = 0;
};

}  // namespace

Status draw_windows(const DrawWindows& op, int threads) {
  run_team(op.n < 2 ? 1 : threads, [&](Team& team, unsigned) {
    Artist artist(op);
    team.for_each(op.n, [&](size_t i) { artist.draw(i); });
  });
  return {};
}

}  // namespace fastclf
